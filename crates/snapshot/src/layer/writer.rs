//! [`LayerWriter`]: streams blocks into a layer object.
//!
//! Frames are compressed in batches, on two threads where the batch has work for both. Memory:
//! one batch, its bases and what it compresses to, whatever the layer's size; the index grows by 8 bytes a
//! frame, and the table of bases by 2 or 3 bytes a block that has one.

use std::io;
use std::sync::Arc;
use std::thread;

use cowslip_block::files::Dir;
use cowslip_block::planted::{Bug, planted};
use cowslip_block::{BlockCount, BlockSize};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CCtx;

use crate::error::StoreError;
use crate::ids::LayerId;
use crate::layer::bases::BasesWriter;
use crate::layer::footer::{Footer, blocks_per_frame};
use crate::layer::frame::{self, Kind};
use crate::layer::index::Entry;
use crate::layer::over::{Base, Over, OverFrame};
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
    /// Those of its blocks that have bases.
    pub delta_blocks: BlockCount,
    /// What delta frames take, with what says of which bases.
    pub delta_bytes: u64,
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
    /// What the blocks of the batch are made over.
    over: Over,
    bases: BasesWriter,
    delta_blocks: u64,
    delta_bytes: u64,
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
            over: Over::default(),
            bases: BasesWriter::default(),
            delta_blocks: 0,
            delta_bytes: 0,
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
        let buffers: u64 = buffers.iter().map(|b| b.capacity() as u64).sum();
        buffers + self.over.memory_bytes() + self.bases.bytes()
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

    /// Appends one block that may be stored as a delta against a base; says where it lies. Blocks are stored so, a frame at a time, where that pays: a
    /// frame that has some with a base, and others, is one or the other.
    ///
    /// # Errors
    /// As [`LayerWriter::push`]; `Invalid` also for more than one block, and for a base of another size.
    pub fn push_over(&mut self, block: &[u8], base: &Base) -> Result<u64, StoreError> {
        let unit = self.block_size.bytes_usize();
        if block.len() != unit || base.bytes().len() != unit {
            let why = "a delta is of one block, and against one of its size".to_owned();
            return Err(StoreError::Invalid(why));
        }
        let per_frame = u64::from(blocks_per_frame(self.block_size));
        let (layer, _) = base.place();
        let frame = self.blocks / per_frame;
        if layer != self.id && self.bases.offer(layer, frame, per_frame) {
            self.over.put(self.batch.len() / unit, base);
        }
        self.push(block)
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
            index_crc: 0,
            bases: self.bases.count(),
        };
        self.bases.put(&mut self.index);
        let footer = Footer {
            index_crc: crc32c::crc32c(&self.index),
            ..footer
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
            delta_blocks: BlockCount(self.delta_blocks),
            delta_bytes: self.delta_bytes + self.bases.bytes(),
        })
    }

    fn write_batch(&mut self) -> Result<(), StoreError> {
        let was_broken = std::mem::replace(&mut self.broken, true);
        self.compress_batch()?;
        self.batch.clear();
        self.over.clear();
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
        let unit = self.block_size.bytes_usize();
        self.over.fill(self.batch.len() / unit, unit);
        let over = self.over.by_frame(frames, frame_bytes / unit, unit);
        let (over_left, over_right) = over.split_at(cut.div_ceil(frame_bytes));
        let (left, right) = self.batch.split_at(cut);
        let [zstd_left, zstd_right] = &mut self.zstd;
        let [out_left, out_right] = &mut self.stored;
        let (left, right) = if both {
            thread::scope(|scope| {
                let right = Payload {
                    frames: right.chunks(frame_bytes),
                    over: over_right,
                };
                let left = Payload {
                    frames: left.chunks(frame_bytes),
                    over: over_left,
                };
                let other = scope.spawn(|| compress(zstd_right, right, out_right));
                let left = compress(zstd_left, left, out_left);
                let right = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (left, right)
            })
        } else {
            out_right.clear();
            let left = Payload {
                frames: left.chunks(frame_bytes),
                over: over_left,
            };
            (compress(zstd_left, left, out_left), Ok(Vec::new()))
        };
        let failed = |e| StoreError::io("compressing a frame", e);
        let entries = left.map_err(failed)?.into_iter();
        for (entry, over) in entries.chain(right.map_err(failed)?).zip(&over) {
            entry.put(&mut self.index);
            if let Some(over) = over.as_ref().filter(|_| entry.kind == Kind::Delta) {
                self.bases.add(over.bases);
                self.delta_blocks += over.count() as u64;
                self.delta_bytes += u64::from(entry.len);
            }
        }
        Ok(())
    }
}

/// Frames that one thread compresses, and what each is made over.
struct Payload<'a> {
    frames: std::slice::Chunks<'a, u8>,
    over: &'a [Option<OverFrame<'a>>],
}

/// Replaces `out` by what they are stored as.
fn compress(
    zstd: &mut Compressor<'_>,
    payload: Payload<'_>,
    out: &mut Vec<u8>,
) -> io::Result<Vec<Entry>> {
    out.clear();
    let mut deltas: Option<CCtx<'_>> = None;
    let each = payload.frames.zip(payload.over);
    each.map(|(frame, over)| match over {
        None => frame::store(zstd, frame, out),
        Some(over) => {
            let deltas = match &mut deltas {
                Some(deltas) => deltas,
                none => none.insert(frame::delta_compressor()?),
            };
            frame::store_over(zstd, deltas, frame, (over.prefix, over.count()), out)
        }
    })
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
