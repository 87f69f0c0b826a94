//! [`compare`]: where the maps of two headers differ, pruned by identity.
//!
//! Both trees are walked from the root down, side by side. Equal slots are not descended into:
//! both nil, the same run of the same layer, or a node of the same hash, wherever its bytes lie.
//! So what is read grows with what differs, not with the images. Slots of one kind with other
//! contents are taken apart until they are equal or flat:
//!
//! | one side         | the other        | then                                           |
//! |------------------|------------------|------------------------------------------------|
//! | nil or a run     | nil or a run     | equal, or a difference over the whole span     |
//! | a node           | anything else    | each child beside the child, or part, beside it |
//! | of a lower level | anything         | as a node with it as first child, zeros beside |
//!
//! The last row is an image that is smaller than the other: its root stands lower.
//!
//! Invariants:
//! - A difference is never past the end of both images, and reads as zeros past the end of one.
//! - It is about maps: the same bytes in two layers are a difference here.
//! - A walk is as deep as the higher map, whatever the pointers say.
//!
//! Relied upon: a map holds nothing past its device's end ([`crate::header`]), so that a slot
//! which both images have means the same in both.

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::{BlockIndex, BlockRange};

use crate::error::StoreError;
use crate::header::Header;
use crate::header::map::{MapRun, Target, span_at};
use crate::header::node::{Node, Slot};
use crate::header::nodes::Nodes;
use crate::limits::{INNER_SLOTS, span};

/// Blocks that two maps lead to different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapDifference {
    /// The blocks of the images.
    pub blocks: BlockRange,
    /// What the first of them reads as in the one image.
    pub a: Target,
    /// And in the other.
    pub b: Target,
}

/// Visits the blocks in which the maps of two headers of one store differ, in order, until the
/// visitor breaks. Neighbours may go on where one another end.
///
/// # Errors
/// `Invalid` for headers of two stores; `Corrupt` and `Io` from the nodes; what `visit` gives.
pub fn compare(
    a: &Header,
    b: &Header,
    visit: &mut dyn FnMut(MapDifference) -> Result<ControlFlow<()>, StoreError>,
) -> Result<ControlFlow<()>, StoreError> {
    if !Arc::ptr_eq(a.nodes(), b.nodes()) {
        let why = "the two images are of two stores".to_owned();
        return Err(StoreError::Invalid(why));
    }
    let mut walk = Walk {
        nodes: a.nodes(),
        ends: (a.blocks().end.0, b.blocks().end.0),
        visit,
    };
    let level = a.height().max(b.height());
    walk.pair([Side::root(a), Side::root(b)], level, BlockIndex(0))
}

/// What one image has below a place in the map.
#[derive(Clone, Copy, Debug)]
struct Side {
    slot: Slot,
    /// The level that the slot is of. Lower than that of its place only for the root of a map that
    /// is less high than the other.
    level: u8,
}

impl Side {
    fn root(header: &Header) -> Self {
        Self {
            slot: header.root(),
            level: header.height(),
        }
    }

    /// What all of the span reads as, at a place of this level, where that can be said at once.
    fn flat(self, level: u8) -> Option<Target> {
        match self.slot {
            Slot::Nil => Some(Target::Zero),
            Slot::Run { layer: id, at } if self.level == level => Some(Target::Layer { id, at }),
            Slot::Run { .. } | Slot::Node(_) => None,
        }
    }

    fn is_same(self, other: Self) -> bool {
        match (self.slot, other.slot) {
            (Slot::Nil, Slot::Nil) => true,
            (Slot::Node(one), Slot::Node(two)) => one.hash == two.hash && self.level == other.level,
            (one, two) => one == two && self.level == other.level,
        }
    }

    /// What lies below it, at a place of this level.
    fn open(self, level: u8, nodes: &Nodes) -> Result<Below, StoreError> {
        Ok(match self.slot {
            _ if self.level < level => Below::Wrapped(self),
            Slot::Node(ptr) => Below::Node(nodes.get(&ptr, level)?),
            Slot::Nil | Slot::Run { .. } => Below::Parts(self.slot),
        })
    }
}

/// One side, taken apart.
enum Below {
    Node(Arc<Node>),
    /// Nil, or a run that covers all of it.
    Parts(Slot),
    /// A lower root: it is the first child, and there is nothing else.
    Wrapped(Side),
}

impl Below {
    /// The child of this number, at a place of `level`.
    fn child(&self, i: usize, level: u8) -> Side {
        let slot = match self {
            Self::Wrapped(root) if i == 0 => return *root,
            Self::Node(node) => match node.as_ref() {
                Node::Inner { slots, .. } => slots[i],
                Node::Leaf(_) => unreachable!("the level was checked, and is not 0"),
            },
            Self::Parts(Slot::Run { layer, at }) => Slot::Run {
                layer: *layer,
                at: at + i as u64 * span(level),
            },
            Self::Parts(_) | Self::Wrapped(_) => Slot::Nil,
        };
        Side { slot, level }
    }

    /// The runs of a leaf at `base`; what they leave out reads as zeros.
    fn runs(&self, base: BlockIndex) -> Vec<MapRun> {
        match self {
            Self::Node(node) => match node.as_ref() {
                Node::Leaf(runs) => runs.iter().map(|r| r.on_device(base)).collect(),
                Node::Inner { .. } => unreachable!("the level was checked, and is 0"),
            },
            Self::Parts(Slot::Run { layer, at }) => vec![MapRun {
                blocks: span_at(0, base),
                to: Target::Layer {
                    id: *layer,
                    at: *at,
                },
            }],
            Self::Parts(_) | Self::Wrapped(_) => Vec::new(),
        }
    }
}

struct Walk<'a> {
    nodes: &'a Nodes,
    /// How many blocks each image has.
    ends: (u64, u64),
    visit: &'a mut dyn FnMut(MapDifference) -> Result<ControlFlow<()>, StoreError>,
}

impl Walk<'_> {
    /// Two sides at a place of this level that begins at `base`.
    fn pair(
        &mut self,
        [a, b]: [Side; 2],
        level: u8,
        base: BlockIndex,
    ) -> Result<ControlFlow<()>, StoreError> {
        if a.is_same(b) || base.0 >= self.ends.0.max(self.ends.1) {
            return Ok(ControlFlow::Continue(()));
        }
        if let (Some(a), Some(b)) = (a.flat(level), b.flat(level)) {
            let blocks = span_at(level, base);
            return self.differs(MapDifference { blocks, a, b });
        }
        let (a, b) = (a.open(level, self.nodes)?, b.open(level, self.nodes)?);
        if level == 0 {
            return self.leaves(&a.runs(base), &b.runs(base), span_at(0, base));
        }
        for i in 0..INNER_SLOTS {
            let children = [a.child(i, level - 1), b.child(i, level - 1)];
            let base = BlockIndex(base.0 + i as u64 * span(level - 1));
            if self.pair(children, level - 1, base)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Between two cuts, where a run of either begins or ends, each side is of one piece.
    fn leaves(
        &mut self,
        a: &[MapRun],
        b: &[MapRun],
        all: BlockRange,
    ) -> Result<ControlFlow<()>, StoreError> {
        let ends = |r: &MapRun| [r.blocks.start.0, r.blocks.end.0];
        let mut cuts: Vec<u64> = a.iter().chain(b).flat_map(ends).collect();
        cuts.extend([all.start.0, all.end.0]);
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts.windows(2) {
            let blocks = BlockRange::new(cut[0], cut[1]);
            let (a, b) = (target_at(a, blocks.start), target_at(b, blocks.start));
            if a != b && self.differs(MapDifference { blocks, a, b })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells of a difference, cut where each image ends.
    fn differs(&mut self, found: MapDifference) -> Result<ControlFlow<()>, StoreError> {
        let (end_a, end_b) = self.ends;
        let (both, one) = (end_a.min(end_b), end_a.max(end_b));
        for part in [BlockRange::new(0, both), BlockRange::new(both, one)] {
            let blocks = found.blocks.intersect(part);
            let skipped = blocks.start.0.saturating_sub(found.blocks.start.0);
            let within = |to: Target, end: u64| match to {
                to if blocks.start.0 < end => to.after(skipped),
                _ => Target::Zero,
            };
            let (a, b) = (within(found.a, end_a), within(found.b, end_b));
            let tell = !blocks.is_empty() && a != b;
            if tell && (self.visit)(MapDifference { blocks, a, b })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What a block reads as by the runs of its leaf.
fn target_at(runs: &[MapRun], block: BlockIndex) -> Target {
    let run = &runs[..runs.partition_point(|r| r.blocks.start <= block)];
    match run.last() {
        Some(run) if run.blocks.contains(block) => run.to.after(block.0 - run.blocks.start.0),
        _ => Target::Zero,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{UncheckedHeader, crafted};
    use crate::ids::{HeaderId, LayerId};
    use cowslip_block::files::Dir;
    use cowslip_sim::MemoryFs;
    use uuid::Uuid;

    /// No writer makes such a map, and a reader may be given one.
    #[test]
    fn what_is_mapped_past_an_end_reads_as_zeros() {
        let headers: Arc<dyn Dir> = MemoryFs::new().root();
        let nodes = Arc::new(Nodes::new(Arc::clone(&headers), 1 << 20, Arc::default()));
        let put = |n: u128, blocks| {
            let (id, layer) = (HeaderId(Uuid::from_u128(n)), LayerId(Uuid::from_u128(n)));
            let object = crafted::object(id, blocks, &crafted::leaf(10, 4, layer));
            let file = headers.create(&id.to_string()).unwrap();
            file.write_at(&object, 0).unwrap();
            let header = UncheckedHeader::read(file.as_ref(), id, Arc::clone(&nodes));
            (header.unwrap().check().unwrap(), layer)
        };
        let ((a, layer_a), (b, layer_b)) = (put(1, 11), put(2, 13));
        let mut found = Vec::new();
        let flow = compare(&a, &b, &mut |d| {
            found.push(d);
            Ok(ControlFlow::Continue(()))
        });
        assert!(flow.unwrap().is_continue());
        let of = |id, at| Target::Layer { id, at };
        let differs = |start, end, a, b| MapDifference {
            blocks: BlockRange::new(start, end),
            a,
            b,
        };
        let want = [
            differs(10, 11, of(layer_a, 0), of(layer_b, 0)),
            differs(11, 13, Target::Zero, of(layer_b, 1)),
        ];
        assert_eq!(found, want);
    }
}
