//! [`Header::layers`]: which layers an image uses, and how much of each.
//!
//! Level by level, each node once with the number of times that the map comes by it: a map that leads
//! to one node from many places takes no longer than it takes bytes.

use std::collections::{BTreeMap, HashMap};

use crate::error::StoreError;
use crate::header::{Header, Node, Slot};
use crate::ids::LayerId;
use crate::limits::span;

impl Header {
    /// The layers that the image uses, and how many of its blocks are in each. Walks the map.
    ///
    /// # Errors
    /// As [`Header::runs`].
    pub fn layers(&self) -> Result<BTreeMap<LayerId, u64>, StoreError> {
        let mut layers = BTreeMap::new();
        let mut uses = |layer: LayerId, blocks: u64| *layers.entry(layer).or_insert(0) += blocks;
        // Slots of one level, with the blocks below each that the image has: all, but for one.
        let mut here = HashMap::from([((self.root(), self.blocks().end.0), 1)]);
        for level in (0..=self.height()).rev() {
            let mut below: HashMap<(Slot, u64), u64> = HashMap::new();
            for ((slot, blocks), times) in here {
                let ptr = match slot {
                    Slot::Nil => continue,
                    Slot::Run { layer, .. } => {
                        uses(layer, times * blocks);
                        continue;
                    }
                    Slot::Node(ptr) => ptr,
                };
                match self.nodes().get(&ptr, level)?.as_ref() {
                    Node::Leaf(runs) => {
                        for run in runs {
                            let left = blocks.saturating_sub(u64::from(run.start));
                            uses(run.layer, times * left.min(u64::from(run.count)));
                        }
                    }
                    Node::Inner { slots, .. } => {
                        let child = span(level - 1);
                        for (i, slot) in slots.iter().enumerate() {
                            let left = blocks.saturating_sub(i as u64 * child).min(child);
                            if left > 0 && *slot != Slot::Nil {
                                *below.entry((*slot, left)).or_insert(0) += times;
                            }
                        }
                    }
                }
            }
            here = below;
        }
        layers.retain(|_, blocks| *blocks > 0);
        Ok(layers)
    }
}
