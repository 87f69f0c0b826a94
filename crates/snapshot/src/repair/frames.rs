//! Damaged frames, made once more from what other images hold.
//!
//! A frame's blocks are blocks of a device. What other images (parents, children, forks) have at the
//! same places of it may be the same bytes: two forks wrote the same, or a snapshot was taken without
//! leaving out what its parent has. Which of them is right only the frame's checksum can say, and that
//! covers all of its blocks; so whole frames are tried, and the tries are bounded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use cowslip_block::{BlockRange, BlockSize};

use crate::header::{Header, Node, Slot, Target};
use crate::ids::{HeaderId, LayerId};
use crate::layer::{Layer, Remaker, blocks_per_frame};
use crate::limits::span;
use crate::store::Store;
use crate::verify::Impact;

/// Images whose bytes are tried for one frame.
const IMAGES_MAX: usize = 300;
/// Frames that are put together from several images, for one frame.
const MIXTURES_MAX: usize = 1000;
/// Places of devices that one block of a layer is looked for at.
const PLACES_MAX: usize = 4;
/// Slots of a map that are visited to find them.
const STEPS_MAX: u32 = 1 << 20;

/// What a damaged frame that is stored as it is still holds.
const REMAINS: &str = "what is left of it";

/// An image, and what to call it.
pub(super) type Image = (String, Arc<Header>);

/// Where on devices the blocks of damaged frames of one layer are.
pub(super) struct Frames<'a> {
    store: &'a Store,
    layer: &'a Layer,
    places: BTreeMap<u64, BTreeSet<u64>>,
    /// The nearest relatives of those that use the layer first.
    images: Vec<&'a Image>,
}

/// What one frame may be made of.
pub(super) struct Candidates {
    /// For each block of it what was found, each once.
    found: Vec<Vec<Found>>,
    /// For each image which of those it has.
    images: Vec<(String, Vec<Option<usize>>)>,
    /// What the frame is decoded with, where it is a delta whose bases can be had.
    prefix: Option<Vec<u8>>,
}

struct Found {
    bytes: Vec<u8>,
    whose: String,
}

/// Stored bytes that were proven to be those of a frame, and whose blocks they were made of.
pub(super) struct Made {
    pub(super) stored: Vec<u8>,
    pub(super) of: BTreeSet<String>,
}

impl<'a> Frames<'a> {
    pub(super) fn new(
        store: &'a Store,
        layer: &'a Layer,
        frames: &BTreeSet<u64>,
        images: &'a [Image],
        impact: &mut Impact<'_>,
    ) -> Self {
        let mut places = Places {
            layer: layer.id(),
            frames,
            steps: 0,
            found: BTreeMap::new(),
        };
        let mut users = Vec::new();
        for (i, (_, header)) in images.iter().enumerate() {
            let root = (header.root(), header.height());
            if header.block_size() == layer.block_size()
                && impact.leads_to(header, &root.0, root.1, layer.id())
            {
                users.push(i);
                places.steps = 0;
                places.slot(impact, header, root, 0);
            }
        }
        Self {
            store,
            layer,
            places: places.found,
            images: relatives(images, &users, layer.block_size()),
        }
    }

    pub(super) fn candidates(&self, n: u64) -> Candidates {
        let blocks = self.layer.frame_blocks(n);
        let size = self.layer.block_size().bytes_usize();
        let count = usize::try_from(blocks.end - blocks.start).expect("blocks of one frame");
        let mut candidates = Candidates {
            found: (0..count).map(|_| Vec::new()).collect(),
            images: Vec::new(),
            prefix: self.prefix(n),
        };
        // A frame that is stored as it is may be wrong in one block only.
        if let Some(remains) = self.layer.frame_remains(n) {
            for (found, bytes) in candidates.found.iter_mut().zip(remains.chunks(size)) {
                let (whose, bytes) = (REMAINS.to_owned(), bytes.to_vec());
                found.push(Found { bytes, whose });
            }
            let all = vec![Some(0); count];
            candidates.images.push((REMAINS.to_owned(), all));
        }
        for (name, header) in &self.images {
            let of_image = (0..count).map(|i| {
                let bytes = self.block(header, blocks.start + i as u64, n)?;
                let found = &mut candidates.found[i];
                let known = found.iter().position(|f| f.bytes == bytes);
                Some(known.unwrap_or_else(|| {
                    let whose = name.clone();
                    found.push(Found { bytes, whose });
                    found.len() - 1
                }))
            });
            let of_image: Vec<_> = of_image.collect();
            if of_image.iter().any(Option::is_some) {
                candidates.images.push((name.clone(), of_image));
            }
        }
        candidates
    }

    fn prefix(&self, n: u64) -> Option<Vec<u8>> {
        let size = self.layer.block_size();
        let mut alone = |id, frame| self.store.frame_alone(id, frame, size);
        self.layer.prefix(n, &mut alone).ok()
    }

    /// What an image has where the block of the layer is on a device.
    fn block(&self, header: &Header, block: u64, frame: u64) -> Option<Vec<u8>> {
        let size = self.layer.block_size();
        let per_frame = blocks_per_frame(size);
        self.places.get(&block)?.iter().find_map(|place| {
            let runs = header.runs(BlockRange::new(*place, place + 1)).ok()?;
            let Target::Layer { id, at } = runs.first()?.to else {
                return None;
            };
            if (id, at / per_frame) == (self.layer.id(), frame) {
                return None;
            }
            let payload = self.store.frame(id, at / per_frame, size).ok()?;
            let at = usize::try_from(at % per_frame).ok()?;
            payload
                .chunks(size.bytes_usize())
                .nth(at)
                .map(<[u8]>::to_vec)
        })
    }
}

impl Candidates {
    /// All blocks from one image.
    pub(super) fn of_one(&self, layer: &Layer, n: u64, zstd: &mut Remaker) -> Option<Made> {
        let mut tried = HashSet::new();
        self.images.iter().find_map(|(name, image)| {
            let picked: Option<Vec<usize>> = image.iter().copied().collect();
            let picked = picked?;
            let new = tried.insert(picked.clone());
            let made = new.then(|| self.make(layer, n, zstd, &picked)).flatten()?;
            let of = BTreeSet::from([name.clone()]);
            Some(Made { of, ..made })
        })
    }

    /// Blocks from several images: first one image's, and the others where that has none or where
    /// one block differs, then all ways to put them together.
    pub(super) fn of_many(&self, layer: &Layer, n: u64, zstd: &mut Remaker) -> Option<Made> {
        if self.found.iter().any(Vec::is_empty) {
            return None;
        }
        let mut left = MIXTURES_MAX;
        let mut tried = HashSet::new();
        let mut try_one = |picked: &[usize]| {
            if left == 0 || !tried.insert(picked.to_vec()) {
                return None;
            }
            left -= 1;
            self.make(layer, n, zstd, picked)
        };
        for (_, image) in &self.images {
            let picked: Vec<usize> = image.iter().map(|pick| pick.unwrap_or(0)).collect();
            for block in 0..picked.len() {
                for other in 0..self.found[block].len() {
                    let mut picked = picked.clone();
                    picked[block] = other;
                    if let Some(made) = try_one(&picked) {
                        return Some(made);
                    }
                }
            }
        }
        let mut picked = vec![0; self.found.len()];
        for _ in 0..MIXTURES_MAX {
            if let Some(made) = try_one(&picked) {
                return Some(made);
            }
            // The next number, each digit of a base of its own.
            let digit = (0..picked.len()).find(|i| picked[*i] + 1 < self.found[*i].len())?;
            picked[..digit].fill(0);
            picked[digit] += 1;
        }
        None
    }

    fn make(&self, layer: &Layer, n: u64, zstd: &mut Remaker, picked: &[usize]) -> Option<Made> {
        let parts = || self.found.iter().zip(picked).map(|(found, i)| &found[*i]);
        let payload: Vec<u8> = parts()
            .flat_map(|part| part.bytes.iter().copied())
            .collect();
        let stored = zstd.remake(layer, n, &payload, self.prefix.as_deref())?;
        let of = parts().map(|part| part.whose.clone()).collect();
        Some(Made { stored, of })
    }
}

/// A walk over maps for the places of blocks in damaged frames.
struct Places<'a> {
    layer: LayerId,
    frames: &'a BTreeSet<u64>,
    steps: u32,
    found: BTreeMap<u64, BTreeSet<u64>>,
}

impl Places<'_> {
    fn slot(
        &mut self,
        impact: &mut Impact<'_>,
        header: &Header,
        (slot, level): (Slot, u8),
        base: u64,
    ) {
        self.steps += 1;
        let end = header.blocks().end.0;
        if self.steps > STEPS_MAX
            || base >= end
            || !impact.leads_to(header, &slot, level, self.layer)
        {
            return;
        }
        let size = header.block_size();
        match slot {
            Slot::Nil => {}
            Slot::Run { layer, at } => self.run(size, (layer, at), base, span(level)),
            Slot::Node(ptr) => match header.nodes().get(&ptr, level).as_deref() {
                Err(_) => {}
                Ok(Node::Leaf(runs)) => {
                    for run in runs {
                        let start = base + u64::from(run.start);
                        self.run(size, (run.layer, run.at), start, u64::from(run.count));
                    }
                }
                Ok(Node::Inner { slots, .. }) => {
                    for (i, slot) in slots.iter().enumerate() {
                        let base = base + i as u64 * span(level - 1);
                        self.slot(impact, header, (*slot, level - 1), base);
                    }
                }
            },
        }
    }

    fn run(&mut self, size: BlockSize, (layer, at): (LayerId, u64), start: u64, count: u64) {
        if layer != self.layer {
            return;
        }
        let per_frame = blocks_per_frame(size);
        let frames = at / per_frame..(at + count).div_ceil(per_frame);
        for frame in self.frames.range(frames) {
            let first = (frame * per_frame).max(at);
            let past = ((frame + 1) * per_frame).min(at + count);
            for block in first..past {
                let places = self.found.entry(block).or_default();
                if places.len() < PLACES_MAX {
                    places.insert(start + (block - at));
                }
            }
        }
    }
}

/// The images in whose bytes there may be those of the users' blocks: themselves, their parents and
/// children, the children of those, and so on; then all others.
fn relatives<'a>(images: &'a [Image], users: &[usize], size: BlockSize) -> Vec<&'a Image> {
    let mut by_origin: HashMap<HeaderId, Vec<usize>> = HashMap::new();
    let mut by_parent: HashMap<HeaderId, Vec<usize>> = HashMap::new();
    for (i, (_, header)) in images.iter().enumerate() {
        by_origin.entry(header.meta().origin).or_default().push(i);
        if let Some(parent) = header.meta().parent {
            by_parent.entry(parent).or_default().push(i);
        }
    }
    let mut order = Vec::new();
    let mut seen = vec![false; images.len()];
    let mut todo: VecDeque<usize> = users.iter().copied().collect();
    let mut others = 0..images.len();
    while order.len() < IMAGES_MAX {
        let Some(i) = todo.pop_front().or_else(|| others.next()) else {
            break;
        };
        if std::mem::replace(&mut seen[i], true) {
            continue;
        }
        let meta = images[i].1.meta();
        if meta.block_size == size {
            order.push(&images[i]);
        }
        let parents = meta.parent.and_then(|parent| by_origin.get(&parent));
        let near = [
            parents,
            by_parent.get(&meta.origin),
            by_origin.get(&meta.origin),
        ];
        todo.extend(near.into_iter().flatten().flatten());
    }
    order
}
