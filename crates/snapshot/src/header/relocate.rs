//! Relocating: the same image, its blocks and its nodes in other places.
//!
//! A compaction copies blocks of some layers into new ones ([`Moves`] says where to), and leaves
//! some header objects. The map is rebuilt from the leaves up; a subtree that mentions neither stays
//! where it lies. What became of a node, and of a span of a layer that comes apart, is remembered, so that headers
//! which shared it go on sharing what it became: the cost is that of the distinct nodes, not of the headers.
//!
//! Left out: which layers and headers are left, and the copying (`compact/`).

use std::collections::{BTreeMap, HashMap, HashSet};

use cowslip_block::planted::{Bug, planted};
use cowslip_block::{BlockIndex, BlockRange};

use crate::codec::Hash;
use crate::error::StoreError;
use crate::header::Header;
use crate::header::build::{Builder, check_again};
use crate::header::map::{MapRun, Merged, Target, span_at};
use crate::header::meta::{HeaderMeta, Tail};
use crate::header::node::{LeafRun, Node, Slot};
use crate::header::nodes::object_name;
use crate::ids::{HeaderId, LayerId};
use crate::limits::{INNER_SLOTS, span};

/// Where the blocks of some layers went.
#[derive(Debug, Default)]
pub(crate) struct Moves(HashMap<LayerId, BTreeMap<u64, Moved>>);

/// Blocks that lie together in both places.
#[derive(Clone, Copy, Debug)]
struct Moved {
    count: u64,
    to: Target,
}

impl Moves {
    /// Blocks leave these layers; none has yet.
    pub(crate) fn from(layers: impl IntoIterator<Item = LayerId>) -> Self {
        Self(layers.into_iter().map(|id| (id, BTreeMap::new())).collect())
    }

    /// Do blocks leave this layer?
    pub(crate) fn leaves(&self, layer: LayerId) -> bool {
        self.0.contains_key(&layer)
    }

    /// `count` blocks from `at` on lie at `to` now. None of them has been moved before.
    pub(crate) fn add(&mut self, layer: LayerId, at: u64, count: u64, to: Target) {
        let moved = self.0.entry(layer).or_default();
        if let Some((before, last)) = moved.range_mut(..at).next_back()
            && before + last.count == at
            && last.to.after(last.count) == to
        {
            last.count += count;
        } else {
            moved.insert(at, Moved { count, to });
        }
    }

    /// The parts of `blocks` of a layer, in order: as (first block, how many, where they are now).
    pub(crate) fn parts(
        &self,
        layer: LayerId,
        blocks: BlockRange,
    ) -> Vec<(u64, u64, Option<Target>)> {
        let mut parts = Vec::new();
        let mut at = blocks.start.0;
        let moved = self.0.get(&layer);
        while at < blocks.end.0 {
            let left = blocks.end.0 - at;
            let covering = moved.and_then(|m| m.range(..=at).next_back());
            let (count, to) = match covering {
                Some((start, m)) if start + m.count > at => {
                    (start + m.count - at, Some(m.to.after(at - start)))
                }
                _ => {
                    let next = moved.and_then(|m| m.range(at..).next());
                    (next.map_or(left, |(start, _)| start - at), None)
                }
            };
            parts.push((at, count.min(left), to));
            at += count.min(left);
        }
        parts
    }

    /// Where they are now, as runs that begin at block 0.
    fn of(&self, layer: LayerId, at: u64, count: u64) -> Result<Vec<MapRun>, StoreError> {
        let mut runs = Merged::default();
        for (start, count, to) in self.parts(layer, BlockRange::new(at, at + count)) {
            let Some(to) = to else {
                let why = format!("{count} blocks from {start} of {layer:?} were not moved");
                return Err(StoreError::Invalid(why));
            };
            let blocks = BlockRange::new(start - at, start - at + count);
            runs.push(MapRun { blocks, to });
        }
        Ok(runs.0)
    }
}

/// Rewrites maps, one header after the other.
#[derive(Debug)]
pub(crate) struct Relocation<'a> {
    moves: &'a Moves,
    /// Header objects whose nodes are written again.
    leave: &'a HashSet<HeaderId>,
    /// What became of each node.
    done: HashMap<(Hash, u8), Slot>,
    /// What became of each whole span of a layer that is a node now.
    spans: HashMap<(LayerId, u64, u8), Slot>,
}

impl<'a> Relocation<'a> {
    pub(crate) fn new(moves: &'a Moves, leave: &'a HashSet<HeaderId>) -> Self {
        Self {
            moves,
            leave,
            done: HashMap::new(),
            spans: HashMap::new(),
        }
    }

    /// The same image as the object of the header `id`; nothing where its map stays as it is. It has
    /// been decoded again. Later headers point into it, so it has to be stored before the next.
    pub(crate) fn encode(
        &mut self,
        old: &Header,
        id: HeaderId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut builder = Builder::new(old.nodes(), id);
        let root = self.slot(&mut builder, &old.root(), old.height())?;
        if root == old.root() {
            return Ok(None);
        }
        let mut out = builder.into_bytes();
        let tail = Tail {
            meta: HeaderMeta {
                id,
                ..old.meta().clone()
            },
            root,
            nodes_bytes: out.len() as u64,
        };
        out.extend(tail.encode());
        check_again(&out, &tail).map_err(|e| e.of(format!("the new {}", object_name(id))))?;
        Ok(Some(out))
    }

    fn slot(
        &mut self,
        builder: &mut Builder<'_>,
        old: &Slot,
        level: u8,
    ) -> Result<Slot, StoreError> {
        let ptr = match *old {
            Slot::Run { layer, at } if self.moves.leaves(layer) => {
                return self.run(builder, (layer, at), level);
            }
            Slot::Nil | Slot::Run { .. } => return Ok(*old),
            Slot::Node(ptr) => ptr,
        };
        if let Some(done) = self.done.get(&(ptr.hash, level)) {
            return Ok(*done);
        }
        let stays = !self.leave.contains(&ptr.header);
        let new = match &*builder.nodes.get(&ptr, level)? {
            Node::Leaf(runs) => {
                if stays && !runs.iter().any(|run| self.moves.leaves(run.layer)) {
                    *old
                } else {
                    builder.put_leaf(&self.leaf(runs)?, BlockIndex(0), &Slot::Nil)?
                }
            }
            Node::Inner { slots, .. } => {
                let mut new = slots.clone();
                for slot in new.iter_mut() {
                    *slot = self.slot(builder, slot, level - 1)?;
                }
                if stays && new == *slots {
                    *old
                } else {
                    builder.put_inner(level, new, &Slot::Nil)?
                }
            }
        };
        self.done.insert((ptr.hash, level), new);
        Ok(new)
    }

    /// A leaf's runs, as if it began at block 0.
    fn leaf(&self, runs: &[LeafRun]) -> Result<Vec<MapRun>, StoreError> {
        let mut merged = Merged::default();
        for run in runs {
            let old = run.on_device(BlockIndex(0));
            if !self.moves.leaves(run.layer) {
                merged.push(old);
                continue;
            }
            let start = old.blocks.start.0;
            if planted(Bug::RunDropped) && merged.0.is_empty() && runs.len() > 1 {
                continue;
            }
            for part in self.moves.of(run.layer, run.at, u64::from(run.count))? {
                let (from, to) = (part.blocks.start.0, part.blocks.end.0);
                let blocks = BlockRange::new(start + from, start + to);
                merged.push(MapRun { blocks, ..part });
            }
        }
        Ok(merged.0)
    }

    /// A whole span of one layer: as deep as it has come apart.
    fn run(
        &mut self,
        builder: &mut Builder<'_>,
        (layer, at): (LayerId, u64),
        level: u8,
    ) -> Result<Slot, StoreError> {
        if let Some(done) = self.spans.get(&(layer, at, level)) {
            return Ok(*done);
        }
        let runs = self.moves.of(layer, at, span(level))?;
        let new = if level == 0 || runs.len() == 1 {
            builder.put_span(&runs, level)?
        } else {
            let mut slots = Box::new([Slot::Nil; INNER_SLOTS]);
            for (i, slot) in slots.iter_mut().enumerate() {
                let at = at + i as u64 * span(level - 1);
                *slot = self.run(builder, (layer, at), level - 1)?;
            }
            builder.put_inner(level, slots, &Slot::Nil)?
        };
        if let Slot::Node(_) = new {
            self.spans.insert((layer, at, level), new);
        }
        Ok(new)
    }
}

impl Builder<'_> {
    /// Runs that cover the span of a leaf, or one run that covers the span of any slot.
    fn put_span(&mut self, runs: &[MapRun], level: u8) -> Result<Slot, StoreError> {
        match runs {
            [only] if only.blocks == span_at(level, BlockIndex(0)) => {
                Ok(super::build::slot_of(only.to))
            }
            runs => self.put_leaf(runs, BlockIndex(0), &Slot::Nil),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{DiffFigures, HeaderSpec};
    use crate::host::RealHost;
    use crate::store::{Caches, Store};
    use cowslip_block::BlockSize;
    use cowslip_sim::MemoryFs;
    use proptest::prelude::*;
    use std::sync::Arc;
    use uuid::Uuid;

    fn layer(n: u128) -> LayerId {
        LayerId(Uuid::from_u128(n))
    }

    /// 32 places of one image hold the same blocks, which lie scattered now; another image holds them too.
    #[test]
    fn a_span_that_many_places_hold_is_rewritten_once() {
        let root = MemoryFs::new().root();
        let store = Store::open_or_create(root.as_ref(), Arc::new(RealHost), Caches::default());
        let store = store.unwrap();
        let lease = store.lease().unwrap();
        let blocks = span(1);
        let target = |n| Target::Layer {
            id: layer(n),
            at: 0,
        };
        let held = |n: u64| MapRun {
            blocks: BlockRange::new(n * blocks, (n + 1) * blocks),
            to: target(1),
        };
        let image = |changes: &[MapRun]| {
            let spec = HeaderSpec {
                parent: None,
                size_bytes: 32 * blocks * 4096,
                block_size: BlockSize::DISK,
                changes,
                layer: None,
                figures: DiffFigures::default(),
                made_by: "a test",
            };
            store.put_header(&lease, &spec).unwrap()
        };
        let mut moves = Moves::from([layer(1)]);
        for at in 0..blocks {
            // Odd, so that each block has a place of its own.
            let to = at * 4099 % blocks;
            moves.add(layer(1), at, 1, target(2).after(to));
        }
        let leave = HashSet::new();
        let mut relocation = Relocation::new(&moves, &leave);
        let many: Vec<MapRun> = (0..32).map(held).collect();
        let once = relocation
            .encode(&image(&many[..1]), HeaderId(Uuid::from_u128(101)))
            .unwrap();
        let again = relocation
            .encode(&image(&many), HeaderId(Uuid::from_u128(102)))
            .unwrap();
        let (once, again) = (once.unwrap().len(), again.unwrap().len());
        assert!(once > 10_000, "{once}");
        assert!(again < 2000, "{again}");
    }

    proptest! {
        /// The stupid twin: one target a block.
        #[test]
        fn moves_are_a_table_of_blocks(
            adds in prop::collection::vec((0u64..40, 1u64..8, 0u64..50), 0..20),
            ask in (0u64..40, 1u64..40),
        ) {
            let mut moves = Moves::from([layer(1)]);
            let mut table = vec![None; 128];
            for (at, count, to) in adds {
                // Only what has not been moved is.
                for (at, count, known) in moves.parts(layer(1), BlockRange::new(at, at + count)) {
                    if known.is_none() {
                        let to = Target::Layer { id: layer(2), at: to + at };
                        moves.add(layer(1), at, count, to);
                        for i in 0..count {
                            table[usize::try_from(at + i).unwrap()] = Some(to.after(i));
                        }
                    }
                }
            }
            let (start, count) = ask;
            let mut at = start;
            for (first, count, to) in moves.parts(layer(1), BlockRange::new(start, start + count)) {
                prop_assert_eq!(first, at);
                for i in 0..count {
                    let want = table[usize::try_from(at + i).unwrap()];
                    prop_assert_eq!(to.map(|t| t.after(i)), want);
                }
                at += count;
            }
            prop_assert_eq!(at, start + count);
        }
    }
}
