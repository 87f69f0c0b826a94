//! [`Survey`]: what the images of a store reach: which blocks of each layer, which nodes of each
//! header object. Each node of the maps is looked at once, however many images share it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::codec::Hash;
use crate::error::{ObjectError, StoreError};
use crate::header::{Header, Node, Slot};
use crate::ids::{HeaderId, LayerId};
use crate::layer::Layer;
use crate::limits::span;
use crate::store::{Store, layer_name};
use crate::verify::damage;

/// What is reached of one object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The size of the object.
    pub object_bytes: u64,
    /// How much of it some image needs: of a layer the reached share of each frame, of a header
    /// its nodes and its tail.
    pub live_bytes: u64,
}

impl Reach {
    /// What no image needs.
    pub fn garbage_bytes(self) -> u64 {
        self.object_bytes.saturating_sub(self.live_bytes)
    }
}

/// What the images of a store reach, each object by a number of its own.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) layers: Vec<(LayerId, Reach)>,
    pub(super) headers: Vec<(HeaderId, Reach)>,
    pub(super) layer_numbers: BTreeMap<LayerId, u32>,
    pub(super) header_numbers: BTreeMap<HeaderId, u32>,
    /// Of layers that others' deltas are made against: those others.
    pub(super) dependents: BTreeMap<u32, RoaringBitmap>,
    /// Layers that cannot be looked at, and why: they count as if they took no room.
    pub(super) damaged: BTreeMap<u32, StoreError>,
}

impl Survey {
    /// Walks the maps of these headers. `progress` is told how many are done, and ends the walk by
    /// answering false; there is no survey then.
    pub(super) fn take(
        store: &Store,
        images: &[Arc<Header>],
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Option<Self>, StoreError> {
        let mut walk = Walk::default();
        for (done, header) in (1..).zip(images) {
            // Its tail is needed, wherever its nodes lie.
            walk.headers.number(header.id());
            walk.slot(header, &header.root(), header.height())?;
            if !progress(done, images.len() as u64) {
                return Ok(None);
            }
        }
        let named: HashSet<HeaderId> = images.iter().map(|header| header.id()).collect();
        let mut survey = Self {
            dependents: walk.bases(store)?,
            ..Self::default()
        };
        for (number, (id, blocks)) in (0..).zip(&walk.layers.found) {
            let reach = store
                .open_layer(*id)
                .and_then(|layer| layer_reach(&layer, blocks));
            let reach = reach.or_else(|error| {
                survey.damaged.insert(number, damage(error)?);
                Ok::<_, StoreError>(Reach::default())
            })?;
            survey.layers.push((*id, reach));
        }
        for (id, node_bytes) in &walk.headers.found {
            let header = store.open_header(*id)?;
            let tail_bytes = header.object_bytes() - header.nodes_bytes();
            let live_bytes = node_bytes + if named.contains(id) { tail_bytes } else { 0 };
            let reach = Reach {
                object_bytes: header.object_bytes(),
                // A hostile map says of more places that nodes lie there than there are.
                live_bytes: live_bytes.min(header.object_bytes()),
            };
            survey.headers.push((*id, reach));
        }
        survey.layer_numbers = walk.layers.numbers;
        survey.header_numbers = walk.headers.numbers;
        Ok(Some(survey))
    }

    /// The numbers of a layer and of a header that some image reaches.
    pub(super) fn layer(&self, id: LayerId) -> Option<u32> {
        self.layer_numbers.get(&id).copied()
    }

    pub(super) fn header(&self, id: HeaderId) -> Option<u32> {
        self.header_numbers.get(&id).copied()
    }

    /// All of it.
    pub(super) fn total(&self) -> Reach {
        let layers = self.layers.iter().map(|(_, reach)| reach);
        let all = layers.chain(self.headers.iter().map(|(_, reach)| reach));
        all.fold(Reach::default(), |sum, one| Reach {
            object_bytes: sum.object_bytes + one.object_bytes,
            live_bytes: sum.live_bytes + one.live_bytes,
        })
    }
}

/// Each frame counts by the share of its blocks that is reached; what is left over, index and
/// footer, by the share of the frames.
fn layer_reach(layer: &Layer, blocks: &RoaringBitmap) -> Result<Reach, StoreError> {
    let past_the_end = || {
        let why = format!("a map leads past its {} blocks", layer.blocks().0);
        ObjectError::damaged("its end", why).of(layer_name(layer.id()))
    };
    if blocks
        .max()
        .is_some_and(|b| u64::from(b) >= layer.blocks().0)
    {
        return Err(past_the_end());
    }
    let per_frame = u64::from(layer.blocks_per_frame());
    let (mut live, mut stored) = (0, 0);
    for (n, len) in (0..).zip(layer.stored_lens()) {
        let start: u64 = n * per_frame;
        let end = layer.blocks().0.min(start + per_frame);
        let (Ok(from), Ok(to)) = (u32::try_from(start), u32::try_from(end)) else {
            return Err(past_the_end());
        };
        let reached = blocks.range_cardinality(from..to);
        live += u64::from(len) * reached / (end - start);
        stored += u64::from(len);
    }
    let rest = layer.object_bytes() - stored;
    let live_rest = u128::from(rest) * u128::from(live) / u128::from(stored.max(1));
    Ok(Reach {
        object_bytes: layer.object_bytes(),
        live_bytes: live + u64::try_from(live_rest).unwrap_or(rest),
    })
}

/// Objects by number, in the order in which they were found.
struct Numbered<I, T> {
    found: Vec<(I, T)>,
    numbers: BTreeMap<I, u32>,
}

impl<I, T> Default for Numbered<I, T> {
    fn default() -> Self {
        Self {
            found: Vec::new(),
            numbers: BTreeMap::new(),
        }
    }
}

impl<I: Ord + Copy, T: Default> Numbered<I, T> {
    fn number(&mut self, id: I) -> u32 {
        *self.numbers.entry(id).or_insert_with(|| {
            self.found.push((id, T::default()));
            u32::try_from(self.found.len() - 1).expect("fewer objects than files in a directory")
        })
    }

    fn get(&mut self, number: u32) -> &mut T {
        &mut self.found[number as usize].1
    }
}

#[derive(Default)]
struct Walk {
    layers: Numbered<LayerId, RoaringBitmap>,
    headers: Numbered<HeaderId, u64>,
    /// Where nodes lie: each of two copies takes room.
    places: HashSet<(HeaderId, u64)>,
    nodes: HashSet<(Hash, u8)>,
}

impl Walk {
    fn slot(&mut self, header: &Header, slot: &Slot, level: u8) -> Result<(), StoreError> {
        let ptr = match *slot {
            Slot::Nil => return Ok(()),
            Slot::Run { layer, at } => return self.run(layer, at, span(level)),
            Slot::Node(ptr) => ptr,
        };
        let number = self.headers.number(ptr.header);
        if self.places.insert((ptr.header, ptr.offset)) {
            *self.headers.get(number) += u64::from(ptr.len);
        }
        if !self.nodes.insert((ptr.hash, level)) {
            return Ok(());
        }
        match &*header.nodes().get(&ptr, level)? {
            Node::Leaf(runs) => runs
                .iter()
                .try_for_each(|run| self.run(run.layer, run.at, u64::from(run.count))),
            Node::Inner { slots, .. } => slots
                .iter()
                .try_for_each(|slot| self.slot(header, slot, level - 1)),
        }
    }

    /// What the deltas that are reached are made against is needed as well: a base as such needs nothing more. Says which layers each of those is for.
    fn bases(&mut self, store: &Store) -> Result<BTreeMap<u32, RoaringBitmap>, StoreError> {
        let mut dependents: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
        let reached = self.layers.found.clone();
        for (number, (id, blocks)) in (0..).zip(reached) {
            let layer = match store.open_layer(id).map_err(damage) {
                Ok(layer) => layer,
                // It is said with all that are damaged.
                Err(Ok(_)) => continue,
                Err(Err(other)) => return Err(other),
            };
            for base in layer.bases() {
                let base = self.layers.number(*base);
                dependents.entry(base).or_default().insert(number);
            }
            let per_frame = u64::from(layer.blocks_per_frame());
            let is_reached = |n: &u64| {
                let (from, to) = (
                    u32::try_from(n * per_frame),
                    u32::try_from((n + 1) * per_frame),
                );
                from.is_ok_and(|from| blocks.range_cardinality(from..to.unwrap_or(u32::MAX)) > 0)
            };
            for n in layer.deltas().filter(is_reached) {
                for (base, block) in layer.frame_bases(n).into_iter().flatten().flatten() {
                    self.run(base, block, 1)?;
                }
            }
        }
        Ok(dependents)
    }

    fn run(&mut self, layer: LayerId, at: u64, count: u64) -> Result<(), StoreError> {
        let number = self.layers.number(layer);
        let (Ok(from), Ok(to)) = (u32::try_from(at), u32::try_from(at + count)) else {
            let why = format!("a map leads to {count} blocks from {at} of it");
            return Err(ObjectError::damaged("its end", why).of(layer_name(layer)));
        };
        self.layers.get(number).insert_range(from..to);
        Ok(())
    }
}
