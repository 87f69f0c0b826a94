//! Import: a raw image becomes a layer and a header. Holes are skipped, zero blocks dropped.

use std::sync::Arc;

use cowslip_block::files::File;
use cowslip_block::units::SIZE_BYTES_MAX;
use cowslip_block::{BlockRange, BlockSize};

use crate::error::StoreError;
use crate::header::{DiffFigures, Header, HeaderSpec, MapRun, Target};
use crate::layer::LayerWriter;
use crate::roots::Lease;
use crate::sparse::SparseFile;
use crate::store::Store;

/// Read at one go.
const CHUNK_BYTES: u64 = 4 << 20;

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The size of a block.
    pub block_size: BlockSize,
    /// A program and its version, for the header.
    pub made_by: String,
}

/// Stores the first `size` bytes of `source`, as a template without a name: what the source has
/// less than that reads as zeros. `progress` is told how many bytes are done, and of how many.
///
/// # Errors
/// `Invalid` for an empty image, `Limit` for one that is too large, `NoSpace`, `Io`.
pub fn import(
    store: &Store,
    lease: &Lease,
    source: &dyn File,
    size: u64,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Arc<Header>, StoreError> {
    if size == 0 {
        return Err(StoreError::Invalid(
            "the image to import is empty".to_owned(),
        ));
    }
    if size > SIZE_BYTES_MAX {
        return Err(StoreError::limit(
            "the image's size in bytes",
            SIZE_BYTES_MAX,
        ));
    }
    let mut packer = Packer {
        writer: store.layer_writer(lease, options.block_size)?,
        block_size: options.block_size,
        runs: Vec::new(),
    };
    packer.pack(&SparseFile::new(source, size)?, size, progress)?;
    progress(size, size);
    let dirty_blocks = packer.writer.blocks().0;
    let layer = (dirty_blocks > 0)
        .then(|| packer.writer.finish())
        .transpose()?;
    store.put_header(
        lease,
        &HeaderSpec {
            parent: None,
            size_bytes: size,
            block_size: options.block_size,
            changes: &packer.runs,
            layer,
            figures: DiffFigures {
                dirty_blocks,
                ..DiffFigures::default()
            },
            made_by: &options.made_by,
        },
    )
}

struct Packer {
    writer: LayerWriter,
    block_size: BlockSize,
    runs: Vec<MapRun>,
}

impl Packer {
    fn pack(
        &mut self,
        source: &SparseFile<'_>,
        size: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let mut buf = Vec::new();
        let mut done = 0;
        while let Some(data) = source.next_data(done)? {
            // Whole blocks: two pieces of data in one block are one piece.
            let touched = self
                .block_size
                .bytes_of(self.block_size.blocks_touched(data));
            done = done.max(touched.start.0);
            while done < touched.end.0 {
                let end = touched.end.0.min(done + CHUNK_BYTES);
                let chunk = usize::try_from(end - done).expect("a chunk fits in memory");
                buf.resize(chunk, 0);
                source.read(done, &mut buf)?;
                self.pack_chunk(&buf, done / u64::from(self.block_size.bytes()))?;
                done = end;
                progress(done.min(size), size);
            }
        }
        Ok(())
    }

    /// Whole blocks, the first of them the image's block `first`.
    fn pack_chunk(&mut self, chunk: &[u8], first: u64) -> Result<(), StoreError> {
        let bytes = self.block_size.bytes_usize();
        let count = chunk.len() / bytes;
        let block_at = |i: usize| &chunk[i * bytes..(i + 1) * bytes];
        let mut i = 0;
        while i < count {
            if cowslip_block::zero::is_zero(block_at(i)) {
                i += 1;
                continue;
            }
            let start = i;
            while i < count && !cowslip_block::zero::is_zero(block_at(i)) {
                i += 1;
            }
            let at = self.writer.push(&chunk[start * bytes..i * bytes])?;
            self.add_run(first + start as u64, first + i as u64, at);
        }
        Ok(())
    }

    fn add_run(&mut self, start: u64, end: u64, at: u64) {
        let id = self.writer.id();
        let run = MapRun {
            blocks: BlockRange::new(start, end),
            to: Target::Layer { id, at },
        };
        // Blocks are packed in order: what is side by side on the device is so in the layer.
        match self.runs.last_mut() {
            Some(last) if last.blocks.end == run.blocks.start => last.blocks.end = run.blocks.end,
            _ => self.runs.push(run),
        }
    }
}
