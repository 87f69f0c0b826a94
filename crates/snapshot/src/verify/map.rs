//! [`MapWalk`]: goes over maps, each node once for all of them; and what lies past an image's end.

use std::collections::HashSet;

use cowslip_block::BlockSize;

use crate::error::{ObjectError, StoreError};
use crate::header::{Header, Node, NodePtr, Nodes, Slot, object_name};
use crate::ids::LayerId;
use crate::limits::span;

/// What a walk comes by.
pub(super) enum Met {
    Node,
    /// Blocks of a layer that are mapped.
    Run {
        layer: LayerId,
        at: u64,
        count: u64,
    },
    /// A node that cannot be read.
    Broken(NodePtr, StoreError),
}

/// By pointer and level, not by hash: of two copies of a node each is read. A node that images of
/// two block sizes share is looked at for each.
type Key = (NodePtr, u8, BlockSize);

/// Reads nodes from the files. A hostile map that leads to one node on each of its levels many
/// times makes it look once.
pub(super) struct MapWalk<'a> {
    nodes: &'a Nodes,
    seen: HashSet<Key>,
    /// Seen since the last [`MapWalk::image`] began.
    fresh: Vec<Key>,
}

impl<'a> MapWalk<'a> {
    pub(super) fn new(nodes: &'a Nodes) -> Self {
        Self {
            nodes,
            seen: HashSet::new(),
            fresh: Vec::new(),
        }
    }

    /// What the image's map leads to and no map before it.
    pub(super) fn image(
        &mut self,
        header: &Header,
        visit: &mut dyn FnMut(Met) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.fresh.clear();
        let size = header.block_size();
        self.slot(&header.root(), header.height(), size, visit)
    }

    /// The last image was none of our business: what it led to is still to be seen.
    pub(super) fn take_back(&mut self) {
        for key in self.fresh.drain(..) {
            self.seen.remove(&key);
        }
    }

    fn slot(
        &mut self,
        slot: &Slot,
        level: u8,
        size: BlockSize,
        visit: &mut dyn FnMut(Met) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let ptr = match *slot {
            Slot::Nil => return Ok(()),
            Slot::Run { layer, at } => {
                let count = span(level);
                return visit(Met::Run { layer, at, count });
            }
            Slot::Node(ptr) => ptr,
        };
        let key = (ptr, level, size);
        if !self.seen.insert(key) {
            return Ok(());
        }
        self.fresh.push(key);
        match self.nodes.get_stored(&ptr, level) {
            Err(error) => visit(Met::Broken(ptr, error)),
            Ok(Node::Leaf(runs)) => {
                visit(Met::Node)?;
                runs.iter().try_for_each(|run| {
                    visit(Met::Run {
                        layer: run.layer,
                        at: run.at,
                        count: u64::from(run.count),
                    })
                })
            }
            Ok(Node::Inner { slots, .. }) => {
                visit(Met::Node)?;
                slots
                    .iter()
                    .try_for_each(|slot| self.slot(slot, level - 1, size, visit))
            }
        }
    }
}

/// Is something mapped past the image's end, where growth must read as zeros? One node of each
/// level lies across the end. Nodes that cannot be read are somebody else's finding.
pub(super) fn past_the_end(header: &Header) -> Result<(), StoreError> {
    let (mut slot, mut blocks) = (header.root(), header.blocks().end.0);
    for level in (0..=header.height()).rev() {
        let beyond = match slot {
            Slot::Nil => return Ok(()),
            Slot::Run { .. } => blocks < span(level),
            Slot::Node(ptr) => match header.nodes().get_stored(&ptr, level) {
                Err(_) => return Ok(()),
                Ok(Node::Leaf(runs)) => {
                    let ends = runs.iter().map(|run| u64::from(run.start + run.count));
                    ends.max().is_some_and(|end| end > blocks)
                }
                Ok(Node::Inner { slots, .. }) => {
                    let below = span(level - 1);
                    // The child that the last block is in.
                    let last = blocks.saturating_sub(1) / below;
                    let at =
                        usize::try_from(last).map_or(slots.len() - 1, |i| i.min(slots.len() - 1));
                    slot = slots[at];
                    blocks -= at as u64 * below;
                    if slots[at + 1..].iter().all(|slot| *slot == Slot::Nil) {
                        continue;
                    }
                    true
                }
            },
        };
        if !beyond {
            return Ok(());
        }
        let end = header.blocks().end.0;
        let why = format!("blocks are mapped past the image's end, which is block {end}");
        return Err(ObjectError::damaged("the map", why).of(object_name(header.id())));
    }
    Ok(())
}
