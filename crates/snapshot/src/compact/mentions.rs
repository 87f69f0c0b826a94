//! [`Mentions`]: which layers and header objects one image depends on, kept while one goes from image to
//! image.
//!
//! Each node is counted by how often it is pointed at, and looked into when it comes and when it goes: what
//! the next image shares with this one is not gone over. So going over a chain of snapshots costs what its
//! snapshots changed, whatever number of slots lead to one node; the memory is that of one image's nodes.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use super::survey::Survey;
use crate::error::StoreError;
use crate::header::{Header, Node, NodePtr, Slot};

/// What the image at hand depends on, by number in the survey.
pub(super) struct Mentions<'a> {
    survey: &'a Survey,
    image: Option<&'a Header>,
    /// How often each is pointed at.
    nodes: HashMap<(NodePtr, u8), u64>,
    pub(super) layers: Counted,
    pub(super) headers: Counted,
}

/// How often each number is mentioned.
#[derive(Default)]
pub(super) struct Counted {
    counts: Vec<u64>,
    any: RoaringBitmap,
}

impl Counted {
    /// Those that are mentioned.
    pub(super) fn any(&self) -> &RoaringBitmap {
        &self.any
    }

    fn add(&mut self, number: u32) {
        let at = number as usize;
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        if self.counts[at] == 1 {
            self.any.insert(number);
        }
    }

    fn remove(&mut self, number: u32) {
        let count = &mut self.counts[number as usize];
        *count -= 1;
        if *count == 0 {
            self.any.remove(number);
        }
    }

    fn count(&mut self, number: Option<u32>, is_there: bool) {
        match number {
            Some(number) if is_there => self.add(number),
            Some(number) => self.remove(number),
            // The survey has seen all that there is.
            None => {}
        }
    }
}

impl<'a> Mentions<'a> {
    pub(super) fn new(survey: &'a Survey) -> Self {
        Self {
            survey,
            image: None,
            nodes: HashMap::new(),
            layers: Counted::default(),
            headers: Counted::default(),
        }
    }

    /// Goes to another image.
    pub(super) fn go_to(&mut self, image: &'a Header) -> Result<(), StoreError> {
        let before = self.image.replace(image);
        // What both have comes again before it goes: it is not looked into.
        self.image(image, true)?;
        before.map_or(Ok(()), |before| self.image(before, false))
    }

    fn image(&mut self, image: &Header, comes: bool) -> Result<(), StoreError> {
        self.headers.count(self.survey.header(image.id()), comes);
        self.slot(image, &image.root(), image.height(), comes)
    }

    fn slot(
        &mut self,
        header: &Header,
        slot: &Slot,
        level: u8,
        comes: bool,
    ) -> Result<(), StoreError> {
        let ptr = match *slot {
            Slot::Nil => return Ok(()),
            Slot::Run { layer, .. } => {
                self.layers.count(self.survey.layer(layer), comes);
                return Ok(());
            }
            Slot::Node(ptr) => ptr,
        };
        if !self.is_first_or_last(ptr, level, comes) {
            return Ok(());
        }
        self.headers.count(self.survey.header(ptr.header), comes);
        match &*header.nodes().get(&ptr, level)? {
            Node::Leaf(runs) => {
                for run in runs {
                    self.layers.count(self.survey.layer(run.layer), comes);
                }
                Ok(())
            }
            Node::Inner { slots, .. } => slots
                .iter()
                .try_for_each(|slot| self.slot(header, slot, level - 1, comes)),
        }
    }

    /// One more slot leads to the node, or one less: is it the only one?
    fn is_first_or_last(&mut self, ptr: NodePtr, level: u8, comes: bool) -> bool {
        let count = self.nodes.entry((ptr, level)).or_insert(0);
        if comes {
            *count += 1;
            return *count == 1;
        }
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.nodes.remove(&(ptr, level));
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::compact;
    use crate::header::{DiffFigures, HeaderSpec, MapRun, Target, hostile};
    use crate::host::RealHost;
    use crate::ids::{HeaderId, LayerId};
    use crate::store::{Caches, Store};
    use cowslip_block::{BlockRange, BlockSize};
    use cowslip_sim::MemoryFs;
    use proptest::prelude::*;
    use uuid::Uuid;

    const LAYERS: u128 = 12;

    fn layer(n: u128) -> LayerId {
        LayerId(Uuid::from_u128(n + 1))
    }

    /// Images of two heights: some over others, some on their own.
    fn images(store: &Store, steps: Vec<(usize, bool, u64, u64, u128)>) -> Vec<Arc<Header>> {
        let mut images: Vec<Arc<Header>> = Vec::new();
        for (parent, large, start, count, number) in steps {
            let parent = images.get(parent).cloned();
            let blocks: u64 = if large { 20_000 } else { 8000 };
            let blocks = blocks.max(parent.as_ref().map_or(0, |p| p.blocks().end.0));
            let to = match number {
                0 => Target::Zero,
                n => Target::Layer {
                    id: layer(n),
                    at: start,
                },
            };
            let change = MapRun {
                blocks: BlockRange::new(start, start + count),
                to,
            };
            let spec = HeaderSpec {
                parent: parent.as_deref(),
                size_bytes: blocks * 4096,
                block_size: BlockSize::DISK,
                changes: &[change],
                layer: None,
                figures: DiffFigures::default(),
                made_by: "a test",
            };
            let lease = store.lease().unwrap();
            images.push(store.put_header(&lease, &spec).unwrap());
        }
        images
    }

    /// Each node of the map has 32 equal children: 2^30 ways lead to its one leaf.
    #[test]
    fn a_map_that_leads_everywhere_is_gone_over_once() {
        let root = MemoryFs::new().root();
        let store = Store::open_or_create(root.as_ref(), Arc::new(RealHost), Caches::default());
        let store = store.unwrap();
        let lease = store.lease().unwrap();
        let mut writer = store.layer_writer(&lease, BlockSize::DISK).unwrap();
        writer.push(&[7; 4096]).unwrap();
        let layer = writer.finish().unwrap().id;
        let id = HeaderId(Uuid::from_u128(77));
        let object = hostile::leads_everywhere(id, store.nodes(), layer, 6).unwrap();
        let headers = store.dirs().headers;
        let file = headers.create(&id.to_string()).unwrap();
        file.write_at(&object, 0).unwrap();
        let header = store.open_header(id).unwrap();
        store
            .commit(&lease, &"evil".parse().unwrap(), &header, false)
            .unwrap();
        // No layer at all is too many.
        let options = compact::Options {
            policy: compact::Policy {
                layers_max: 0,
                layers_after: 0,
                ..compact::Policy::FULL
            },
            names: Vec::new(),
            step_bytes: u64::MAX,
        };
        let looked = compact::survey(&store, &options, &|_| true).unwrap();
        assert_eq!(looked.left_objects, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// However one came to an image: the same as if one began there, and the layers are those
        /// that its map mentions, run by run.
        #[test]
        fn an_image_mentions_the_same_wherever_one_comes_from(
            steps in prop::collection::vec(
                (0usize..8, any::<bool>(), 0u64..6000, 1u64..2000, 0..LAYERS), 1..8),
            order in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
        ) {
            let root = MemoryFs::new().root();
            let store = Store::open_or_create(root.as_ref(), Arc::new(RealHost), Caches::default());
            let images = images(&store.unwrap(), steps);
            let mut survey = Survey::default();
            for (number, n) in (0..).zip(0..LAYERS) {
                survey.layer_numbers.insert(layer(n), number);
            }
            for (number, image) in (0..).zip(&images) {
                survey.header_numbers.insert(image.id(), number);
            }
            let mut going = Mentions::new(&survey);
            for at in order {
                let image = at.get(&images);
                going.go_to(image).unwrap();
                let mut fresh = Mentions::new(&survey);
                fresh.go_to(image).unwrap();
                prop_assert_eq!(going.layers.any(), fresh.layers.any());
                prop_assert_eq!(going.headers.any(), fresh.headers.any());
                let mentioned: BTreeSet<u32> = going.layers.any().iter().collect();
                let used = image.layers().unwrap().into_keys();
                let used: BTreeSet<u32> = used.map(|id| survey.layer(id).unwrap()).collect();
                prop_assert_eq!(mentioned, used);
            }
        }
    }
}
