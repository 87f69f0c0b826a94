//! Frames of layers, decoded, through the store's cache; and what of them a delta may be made against.
//!
//! A frame that stands alone waits for nobody. A delta waits for frames that stand alone, which is looked at before they are asked for: so no two readers can wait for
//! each other, whatever the objects say of each other.

use std::sync::Arc;

use cowslip_block::BlockSize;
use cowslip_block::files::Access;
use cowslip_block::planted::{Bug, planted};
use uuid::Uuid;

use super::{Store, layer_name};
use crate::error::{ObjectError, StoreError};
use crate::ids::LayerId;
use crate::layer::{Base, Layer, blocks_per_frame};

impl Store {
    /// One decoded frame, through the cache. Two callers that miss the same frame read it once.
    pub(crate) fn frame(
        &self,
        id: LayerId,
        frame: u64,
        block_size: BlockSize,
    ) -> Result<Arc<[u8]>, StoreError> {
        self.frame_by(id, frame, block_size, |layer| {
            if layer.frame_bases(frame).is_none() {
                return layer.read_frame(frame).map_err(|e| e.of(layer_name(id)));
            }
            let mut alone = |id, n| self.frame_alone(id, n, block_size);
            let prefix = layer.prefix(frame, &mut alone)?;
            let read = layer.read_delta(frame, &prefix);
            read.map_err(|e| e.of(layer_name(id)))
        })
    }

    /// One that stands alone; nothing where there is none of such blocks, or it is a delta.
    pub(crate) fn frame_alone(
        &self,
        id: LayerId,
        frame: u64,
        block_size: BlockSize,
    ) -> Result<Option<Arc<[u8]>>, StoreError> {
        let layer = self.open_layer(id)?;
        if layer.block_size() != block_size || !layer.stands_alone(frame) {
            return Ok(None);
        }
        let read = |layer: &Layer| layer.read_frame(frame).map_err(|e| e.of(layer_name(id)));
        self.frame_by(id, frame, block_size, read).map(Some)
    }

    fn frame_by(
        &self,
        id: LayerId,
        frame: u64,
        block_size: BlockSize,
        read: impl FnOnce(&Layer) -> Result<Arc<[u8]>, StoreError>,
    ) -> Result<Arc<[u8]>, StoreError> {
        let mut key = (id, frame);
        if planted(Bug::StaleFrame) {
            let (name, layers) = (id.to_string(), self.layers.list().unwrap_or_default());
            let place = layers.iter().filter(|layer| **layer < name).count();
            key.0 = LayerId(Uuid::from_u128(place as u128));
        }
        let read = self.frames.get_or_insert_with(&key, || {
            let layer = self.open_layer(id)?;
            if layer.block_size() != block_size {
                let why = "its blocks are not of the image's size";
                return Err(ObjectError::damaged("the footer", why).of(layer_name(id)));
            }
            self.reads.frames.one();
            read(&layer)
        });
        // A repair puts another file in its place: the next read looks again.
        read.inspect_err(|_| drop(self.open_layers.remove(&id)))
    }

    /// The same, if it is in the cache.
    pub(crate) fn frame_at_hand(&self, id: LayerId, frame: u64) -> Option<Arc<[u8]>> {
        self.frames.get(&(id, frame))
    }

    /// What a block that is like this one may be stored as a delta against: this one, where its frame stands alone, else its own base. Nothing where it has none.
    ///
    /// # Errors
    /// `Corrupt` where what it takes is damaged or not there, `Io`.
    pub fn base_of(
        &self,
        id: LayerId,
        block: u64,
        block_size: BlockSize,
    ) -> Result<Option<Base>, StoreError> {
        let per_frame = blocks_per_frame(block_size);
        let within = usize::try_from(block % per_frame).expect("blocks of one frame");
        let layer = self.open_layer(id)?;
        let place = match layer.frame_bases(block / per_frame) {
            None => Some((id, block)),
            Some(mut bases) => bases.nth(within).flatten(),
        };
        let Some((id, block)) = place else {
            return Ok(None);
        };
        let frame = self.frame_alone(id, block / per_frame, block_size)?;
        Ok(frame.and_then(|frame| Base::new((id, block), frame, block_size)))
    }

    /// The layers that a layer's deltas are made against, from its stored bytes; nothing where it is not there.
    ///
    /// # Errors
    /// `Corrupt`, `Version`, `Io`.
    pub(crate) fn bases_of(&self, id: LayerId) -> Result<Option<Vec<LayerId>>, StoreError> {
        let bases = match self.layers.open(&id.to_string(), Access::Read) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => Err(e.into()),
            Ok(file) => Layer::read_bases(file, id),
        };
        bases.map(Some).map_err(|e| e.of(layer_name(id)))
    }
}
