//! [`DiskBlocks`]: which blocks of which layers a disk is made of, in the order of the layers; and `Wanted`: pages that are looked for
//! among them.
//!
//! ```text
//! pages that would be payload -> hashes, sorted
//! the disk's blocks, each frame once -> hash -> pages of that hash -> their bytes are compared -> the block that has them
//! ```
//!
//! Invariants:
//! - A hash is never believed: bytes are compared. It has a random key, so that a guest cannot choose pages of one hash.
//! - Each frame that the disk uses is read and decoded once, in the order of its layer. Of blocks with the same bytes the first in that order is taken.
//! - Each page is read again once, for the comparison, and so is one page more for each block of the disk that has the hash of some.
//! - Memory: 40 bytes for each page that is looked for, 24 for each stretch of the disk's blocks.
//! - What cannot be read of the disk is not pointed at.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use cowslip_block::{BlockCount, BlockRange};
use cowslip_snapshot::image::Piece;
use cowslip_snapshot::layer::blocks_per_frame;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::{Header, Image, LayerId, MapRun, StoreError, Target};

use crate::choice::Frame;
use crate::seal::PAGE;

/// See the module.
#[derive(Debug)]
pub struct DiskBlocks {
    /// Sorted.
    layers: Vec<LayerId>,
    /// In order, none touching the next.
    stretches: Vec<Stretch>,
}

/// Blocks of one layer, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stretch {
    layer: u32,
    at: u64,
    end: u64,
}

/// A block of the disk: the number of its layer among the disk's, and its own in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    layer: u32,
    at: u64,
}

impl Place {
    /// The frame that it lies in.
    pub(crate) fn frame(self) -> Frame {
        (self.layer, self.at / blocks_per_frame(PAGE))
    }
}

impl DiskBlocks {
    /// Of this image.
    ///
    /// # Errors
    /// Where its map cannot be read.
    pub fn of(disk: &Header) -> Result<Self, StoreError> {
        let layers: Vec<LayerId> = disk.layers()?.into_keys().collect();
        let mut all: Vec<Stretch> = Vec::new();
        for MapRun { blocks, to } in disk.runs(disk.blocks())? {
            let Target::Layer { id, at } = to else {
                continue;
            };
            let number = layers.binary_search(&id).unwrap_or(layers.len());
            all.push(Stretch {
                layer: u32::try_from(number).unwrap_or(u32::MAX),
                at,
                end: at.saturating_add(blocks.count().0),
            });
        }
        all.sort_unstable();
        let mut stretches: Vec<Stretch> = Vec::with_capacity(all.len());
        for next in all {
            match stretches.last_mut() {
                Some(last) if last.layer == next.layer && next.at <= last.end => {
                    last.end = last.end.max(next.end);
                }
                _ => stretches.push(next),
            }
        }
        Ok(Self { layers, stretches })
    }

    /// How many of these blocks of a layer the disk has as well.
    pub fn count_in(&self, layer: LayerId, at: u64, count: u64) -> u64 {
        let Ok(number) = self.layers.binary_search(&layer) else {
            return 0;
        };
        let layer = u32::try_from(number).unwrap_or(u32::MAX);
        let end = at + count;
        let from = self
            .stretches
            .partition_point(|s| (s.layer, s.end) <= (layer, at));
        let here = self.stretches[from..]
            .iter()
            .take_while(|s| s.layer == layer && s.at < end);
        here.map(|s| s.end.min(end) - s.at.max(at)).sum()
    }

    /// All of them.
    fn count(&self) -> u64 {
        self.stretches.iter().map(|s| s.end - s.at).sum()
    }

    /// Where a place leads to.
    pub(crate) fn target(&self, Place { layer, at }: Place) -> Target {
        let id = self.layers[layer as usize];
        Target::Layer { id, at }
    }

    /// Each block that can be read, once, with how many have been gone over.
    fn for_each(
        &self,
        image: &Image,
        mut visit: impl FnMut(Place, &[u8], u64) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut done = 0;
        for Stretch { layer, mut at, end } in self.stretches.iter().copied() {
            while at < end {
                let to = self.target(Place { layer, at });
                let blocks = BlockRange::new(0, end - at);
                let in_frame = blocks_per_frame(PAGE) - at % blocks_per_frame(PAGE);
                let count = in_frame.min(end - at);
                if let Ok(Piece::Stored(frame, range)) = image.piece(MapRun { blocks, to }) {
                    let blocks = frame[range].chunks(PAGE.bytes_usize());
                    for (place, block) in (at..).zip(blocks) {
                        visit(Place { layer, at: place }, block, done)?;
                    }
                }
                at += count;
                done += count;
            }
        }
        Ok(())
    }
}

/// A page that is looked for.
#[derive(Debug)]
struct Page {
    hash: u64,
    page: u64,
    place: Option<Place>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    hasher: RandomState,
    pages: Vec<Page>,
}

impl Wanted {
    /// This page is looked for; they come in order.
    pub(crate) fn add(&mut self, page: u64, bytes: &[u8]) {
        let hash = self.hasher.hash_one(bytes);
        self.pages.push(Page {
            hash,
            page,
            place: None,
        });
    }

    /// Looks for all of them. `progress` is told how many bytes of the disk are done, and of how many.
    pub(crate) fn find(
        &mut self,
        disk: &DiskBlocks,
        image: &Image,
        memory: &SparseFile<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        if self.pages.is_empty() {
            return Ok(());
        }
        self.pages
            .sort_unstable_by_key(|page| (page.hash, page.page));
        let total = PAGE.bytes_in(BlockCount(disk.count()));
        let mut buf = vec![0; PAGE.bytes_usize()];
        disk.for_each(image, |place, block, done| {
            progress(done * u64::from(PAGE.bytes()), total);
            let hash = self.hasher.hash_one(block);
            let from = self.pages.partition_point(|page| page.hash < hash);
            let group = self.pages[from..].iter_mut();
            for page in group.take_while(|page| page.hash == hash) {
                if page.place.is_none() {
                    memory.read(page.page * u64::from(PAGE.bytes()), &mut buf)?;
                    page.place = (buf == block).then_some(place);
                }
                // Found before, or of other bytes: then so are the others, but for one chance in 2^64.
                if page.place != Some(place) {
                    break;
                }
            }
            Ok(())
        })?;
        self.pages.sort_unstable_by_key(|page| page.page);
        Ok(())
    }

    /// How many pages each frame of the disk has.
    pub(crate) fn by_frame(&self) -> HashMap<Frame, u64> {
        let mut pages = HashMap::new();
        for place in self.pages.iter().filter_map(|page| page.place) {
            *pages.entry(place.frame()).or_default() += 1;
        }
        pages
    }

    /// Where a page's bytes lie on the disk, if they were found.
    pub(crate) fn place(&self, page: u64) -> Option<Place> {
        let at = self.pages.binary_search_by_key(&page, |page| page.page);
        self.pages[at.ok()?].place
    }
}
