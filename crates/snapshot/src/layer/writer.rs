//! [`LayerWriter`]: streams blocks into a layer object.
//!
//! Frames are compressed in batches, on two threads where the batch has work for both. Memory:
//! one batch and what it compresses to, whatever the layer's size; the index grows by 8 bytes a
//! frame.

use std::io;
use std::sync::Arc;
use std::thread;

use cowslip_block::files::Dir;
use cowslip_block::planted::{Bug, planted};
use cowslip_block::{BlockCount, BlockSize};
use zstd::bulk::Compressor;

use crate::error::StoreError;
use crate::ids::LayerId;
use crate::layer::footer::{Footer, blocks_per_frame};
use crate::layer::frame;
use crate::layer::index::Entry;
use crate::limits::LAYER_FRAMES_MAX;
use crate::pending::Pending;

/// Payload that is compressed at one go.
const BATCH_BYTES: usize = 4 << 20;
/// Payload below which a second thread costs more than it brings.
const TWO_THREADS_BYTES: usize = 512 << 10;

/// What became of a finished layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Which layer.
    pub id: LayerId,
    /// How many blocks it holds.
    pub blocks: BlockCount,
    /// The size of the object.
    pub stored_bytes: u64,
}

/// Writes one layer. Dropped before it is finished, it leaves nothing behind.
pub struct LayerWriter {
    pending: Pending,
    layers: Arc<dyn Dir>,
    id: LayerId,
    block_size: BlockSize,
    blocks: u64,
    batch: Vec<u8>,
    zstd: [Compressor<'static>; 2],
    stored: [Vec<u8>; 2],
    index: Vec<u8>,
    /// A write failed, so that index and frames may disagree: it cannot be finished.
    broken: bool,
}

impl std::fmt::Debug for LayerWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "writer of {:?}, {} blocks so far", self.id, self.blocks)
    }
}

impl LayerWriter {
    pub(crate) fn new(
        pending: Pending,
        layers: Arc<dyn Dir>,
        id: LayerId,
        block_size: BlockSize,
    ) -> Result<Self, StoreError> {
        let zstd = || frame::compressor().map_err(|e| StoreError::io("starting zstd", e));
        Ok(Self {
            pending,
            layers,
            id,
            block_size,
            blocks: 0,
            batch: Vec::new(),
            zstd: [zstd()?, zstd()?],
            stored: [Vec::new(), Vec::new()],
            index: Vec::new(),
            broken: false,
        })
    }

    /// Which layer this will be.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// How many blocks have been pushed.
    pub fn blocks(&self) -> BlockCount {
        BlockCount(self.blocks)
    }

    /// The memory of its buffers and of the index so far.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let [left, right] = &self.stored;
        let buffers = [&self.batch, left, right, &self.index];
        buffers.iter().map(|b| b.capacity() as u64).sum()
    }

    /// Appends whole blocks; says at which block of the layer the first of them lies.
    ///
    /// # Errors
    /// `Invalid` for a part of a block, `Limit` for more than a layer holds, `NoSpace` and `Io`
    /// from the file layer.
    pub fn push(&mut self, blocks: &[u8]) -> Result<u64, StoreError> {
        if !self.block_size.is_aligned(blocks.len() as u64) {
            let why = format!("a layer takes whole blocks, not {} bytes", blocks.len());
            return Err(StoreError::Invalid(why));
        }
        let first = self.blocks;
        let count = self.block_size.count_ceil(blocks.len() as u64).0;
        let most = LAYER_FRAMES_MAX * u64::from(blocks_per_frame(self.block_size));
        if count > most - first {
            return Err(StoreError::limit("blocks in one layer", most));
        }
        let mut rest = blocks;
        while !rest.is_empty() {
            let room = BATCH_BYTES - self.batch.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.batch.extend_from_slice(now);
            rest = later;
            if self.batch.len() == BATCH_BYTES {
                self.write_batch()?;
            }
        }
        self.blocks += count;
        Ok(first)
    }

    /// Completes the object, syncs it, and puts it in its place in the store.
    ///
    /// # Errors
    /// `Invalid` where no block was pushed: a layer holds at least one. `NoSpace` and `Io` from
    /// the file layer.
    pub fn finish(mut self) -> Result<LayerSummary, StoreError> {
        if self.blocks == 0 {
            return Err(StoreError::Invalid("a layer without blocks".to_owned()));
        }
        self.write_batch()?;
        if self.broken {
            return Err(StoreError::Invalid(
                "a layer whose writing failed".to_owned(),
            ));
        }
        let footer = Footer {
            id: self.id,
            blocks: BlockCount(self.blocks),
            block_size: self.block_size,
            index_at: self.pending.len(),
            index_crc: crc32c::crc32c(&self.index),
        };
        self.index.extend(footer.encode());
        self.pending.append(&self.index)?;
        let stored_bytes = self.pending.len();
        let (layers, name) = (self.layers.as_ref(), self.id.to_string());
        if planted(Bug::HeaderBeforeData) {
            self.pending.commit_unsynced(layers, &name)?;
        } else {
            self.pending.commit_new(layers, &name)?;
        }
        Ok(LayerSummary {
            id: self.id,
            blocks: footer.blocks,
            stored_bytes,
        })
    }

    fn write_batch(&mut self) -> Result<(), StoreError> {
        let was_broken = std::mem::replace(&mut self.broken, true);
        self.compress_batch()?;
        self.batch.clear();
        self.pending.append(&self.stored[0])?;
        self.pending.append(&self.stored[1])?;
        self.broken = was_broken;
        Ok(())
    }

    /// Leaves the stored frames in `stored`, first half and second.
    fn compress_batch(&mut self) -> Result<(), StoreError> {
        let frame_bytes =
            blocks_per_frame(self.block_size) as usize * self.block_size.bytes_usize();
        let frames = self.batch.len().div_ceil(frame_bytes);
        let both = self.batch.len() >= TWO_THREADS_BYTES && frames >= 2;
        let cut = if both {
            frames / 2 * frame_bytes
        } else {
            self.batch.len()
        };
        let (left, right) = self.batch.split_at(cut);
        let [zstd_left, zstd_right] = &mut self.zstd;
        let [out_left, out_right] = &mut self.stored;
        let (left, right) = if both {
            thread::scope(|scope| {
                let other = scope.spawn(|| compress(zstd_right, frame_bytes, right, out_right));
                let left = compress(zstd_left, frame_bytes, left, out_left);
                let right = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (left, right)
            })
        } else {
            out_right.clear();
            (
                compress(zstd_left, frame_bytes, left, out_left),
                Ok(Vec::new()),
            )
        };
        for entries in [left, right] {
            let entries = entries.map_err(|e| StoreError::io("compressing a frame", e))?;
            entries.into_iter().for_each(|e| e.put(&mut self.index));
        }
        Ok(())
    }
}

/// Replaces `out` by the frames of `payload`.
fn compress(
    zstd: &mut Compressor<'_>,
    frame_bytes: usize,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<Vec<Entry>> {
    out.clear();
    payload
        .chunks(frame_bytes)
        .map(|frame| frame::store(zstd, frame, out))
        .collect()
}

const _: () = assert!(BATCH_BYTES.is_multiple_of(crate::limits::FRAME_BYTES_MAX as usize));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roots::Lease;
    use cowslip_sim::MemoryFs;
    use uuid::Uuid;

    #[test]
    fn the_last_block_of_the_largest_layer_is_taken_and_no_other() {
        let root: Arc<dyn Dir> = MemoryFs::new().root();
        let lease = Lease::take(&root, Uuid::from_u128(1)).unwrap();
        let pending = Pending::create(&root, &lease).unwrap();
        let id = LayerId(Uuid::from_u128(2));
        let mut writer = LayerWriter::new(pending, root, id, BlockSize::DISK).unwrap();
        // Crafted: 1 TiB of blocks that nobody pushed.
        let most = LAYER_FRAMES_MAX * 16;
        writer.blocks = most - 1;
        assert_eq!(writer.push(&[1; 4096]).unwrap(), most - 1);
        let error = writer.push(&[1; 4096]).unwrap_err();
        assert!(
            matches!(&error, StoreError::Limit { what, max } if what.contains("blocks in one layer") && *max == most),
            "{error}"
        );
    }
}
