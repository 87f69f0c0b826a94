//! [`Base`]: a block that another may be stored as a difference against; and [`Over`]: those of one batch of a writer.

use std::ops::Range;
use std::sync::Arc;

use cowslip_block::BlockSize;

use crate::error::{ObjectError, StoreError};
use crate::ids::LayerId;
use crate::layer::bases::BasePlace;
use crate::layer::reader::{Layer, blocks_per_frame};
use crate::store::layer_name;

/// A block, with its bytes. Only [`Store::base_of`](crate::store::Store::base_of) makes one, so that what a writer is given lies in a frame that
/// stands alone.
#[derive(Clone, Debug)]
pub struct Base {
    place: BasePlace,
    frame: Arc<[u8]>,
    within: Range<usize>,
}

impl Base {
    /// Nothing where the frame, which stands alone, ends before.
    pub(crate) fn new(place: BasePlace, frame: Arc<[u8]>, size: BlockSize) -> Option<Self> {
        let within = within_frame(place.1, size, frame.len())?;
        Some(Self {
            place,
            frame,
            within,
        })
    }

    pub(crate) fn place(&self) -> BasePlace {
        self.place
    }

    /// Which layer it is in.
    pub fn layer(&self) -> LayerId {
        self.place.0
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.frame[self.within.clone()]
    }
}

/// Where a block lies in its frame, if that is as long.
fn within_frame(block: u64, size: BlockSize, frame_bytes: usize) -> Option<Range<usize>> {
    let unit = size.bytes_usize();
    let at = usize::try_from(block % blocks_per_frame(size)).ok()? * unit;
    (at + unit <= frame_bytes).then_some(at..at + unit)
}

impl Layer {
    /// What a delta frame is decoded with: the base of each of its blocks in its place, zeros where it has none. `alone` reads a frame of another layer;
    /// nothing where that has no such frame, or it does not stand alone. One such frame is held at a time.
    ///
    /// # Errors
    /// What `alone` says; `Corrupt` where a base is none.
    pub(crate) fn prefix(
        &self,
        n: u64,
        alone: &mut dyn FnMut(LayerId, u64) -> Result<Option<Arc<[u8]>>, StoreError>,
    ) -> Result<Vec<u8>, StoreError> {
        let size = self.block_size();
        let wrong = |why: String| {
            let error = ObjectError::damaged(format!("frame {n}"), why);
            error.of(layer_name(self.id()))
        };
        let bases = self.frame_bases(n);
        let bases = bases.ok_or_else(|| wrong("it is no delta".to_owned()))?;
        let mut prefix = Vec::new();
        let mut last: Option<(BasePlace, Arc<[u8]>)> = None;
        for base in bases {
            let start = prefix.len();
            prefix.resize(start + size.bytes_usize(), 0);
            let Some((layer, block)) = base else {
                continue;
            };
            let at = (layer, block / blocks_per_frame(size));
            let frame = match last.take() {
                Some((before, frame)) if before == at => Some(frame),
                _ => alone(layer, at.1)?,
            };
            let found = frame.and_then(|frame| {
                let within = within_frame(block, size, frame.len())?;
                prefix[start..].copy_from_slice(&frame[within]);
                Some(frame)
            });
            let Some(frame) = found else {
                let of = layer_name(layer);
                return Err(wrong(format!(
                    "its base, block {block} of {of}, is none that stands alone"
                )));
            };
            last = Some((at, frame));
        }
        Ok(prefix)
    }
}

/// The bases of the blocks of one batch.
#[derive(Debug, Default)]
pub(super) struct Over {
    /// Up to the last block that has one.
    places: Vec<Option<BasePlace>>,
    /// Of each block its base, or zeros; as long as the batch where any has one.
    prefix: Vec<u8>,
}

/// The bases of a frame that has some.
pub(super) struct OverFrame<'a> {
    pub(super) bases: &'a [Option<BasePlace>],
    /// As long as the frame.
    pub(super) prefix: &'a [u8],
}

impl OverFrame<'_> {
    /// How many blocks have one.
    pub(super) fn count(&self) -> usize {
        self.bases.iter().flatten().count()
    }
}

impl Over {
    /// This block of the batch has a base. They come in order.
    pub(super) fn put(&mut self, block: usize, base: &Base) {
        self.places.resize(block, None);
        self.places.push(Some(base.place()));
        self.prefix.resize(block * base.bytes().len(), 0);
        self.prefix.extend(base.bytes());
    }

    /// The batch is complete, and has so many blocks of so many bytes.
    pub(super) fn fill(&mut self, blocks: usize, unit: usize) {
        if !self.places.is_empty() {
            self.places.resize(blocks, None);
            self.prefix.resize(blocks * unit, 0);
        }
    }

    /// What each frame of the batch has, once that is complete.
    pub(super) fn by_frame(
        &self,
        frames: usize,
        per_frame: usize,
        unit: usize,
    ) -> Vec<Option<OverFrame<'_>>> {
        let places = self.places.chunks(per_frame);
        let each = places.zip(self.prefix.chunks(per_frame * unit));
        let some = each.map(|(bases, prefix)| {
            let has_some = bases.iter().any(Option::is_some);
            has_some.then_some(OverFrame { bases, prefix })
        });
        some.chain(std::iter::repeat_with(|| None))
            .take(frames)
            .collect()
    }

    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.prefix.clear();
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let places = self.places.capacity() * size_of::<Option<BasePlace>>();
        (self.prefix.capacity() + places) as u64
    }
}
