//! [`Trace`]: in which order a guest first touched the pages of its image, so that the next one finds them there.
//!
//! As bytes, numbers little-endian:
//!
//! | at | size | what |
//! |---|---|---|
//! | 0 | 8 | `cowslipT` |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | bytes in a page |
//! | 16 + 8 n | 4 | the first page of run n |
//! | 20 + 8 n | 4 | its pages, at least 1 |
//!
//! There is no checksum: the image that the bytes lie in has them. It is a part of the snapshot whose memory it is of. A trace is a hint: where it is
//! wrong, pages are put in place that nobody needs. Pages that the memory does not have are refused; nothing else can be wrong with it.

use std::sync::Arc;

use cowslip_block::{
    BlockCount, BlockIndex, BlockRange, BlockSize, ByteOffset, Device, DeviceError,
};
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::{
    DiffFigures, Header, HeaderSpec, Image, MADE_BY, MapRun, Store, StoreError, Target,
};

use crate::limits::{TRACE_PAGES_MAX, TRACE_RUNS_MAX};

const MAGIC: &[u8; 8] = b"cowslipT";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const RUN_BYTES: usize = 8;
/// Of the image that it is stored as.
const UNIT: BlockSize = BlockSize::DISK;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    page: BlockSize,
    /// In the order in which they were touched.
    runs: Vec<BlockRange>,
    pages: u64,
}

/// Why bytes are no trace for this memory.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Too short, not in whole runs, or of something else.
    #[error("no trace")]
    NotATrace,
    /// A later release's.
    #[error("a trace of version {0}, where this release reads {VERSION}")]
    Version(u32),
    /// No guest has such pages.
    #[error("a trace of pages of {0} bytes")]
    PageSize(u32),
    /// It speaks of pages that are not there.
    #[error("a trace with {0} pages from page {1} on, where the memory has {2}")]
    Outside(u32, u32, u64),
    /// More than a trace may have.
    #[error("a trace of {0} runs, where {TRACE_RUNS_MAX} are the most")]
    TooLong(u64),
    /// More than a trace may have.
    #[error("a trace of more than {TRACE_PAGES_MAX} pages")]
    TooManyPages,
    /// Its bytes cannot be had.
    #[error(transparent)]
    Bytes(#[from] DeviceError),
}

impl Trace {
    /// Nothing was touched yet.
    pub fn new(page: BlockSize) -> Self {
        Self {
            page,
            runs: Vec::new(),
            pages: 0,
        }
    }

    /// The next page that was touched. What goes beyond [`TRACE_PAGES_MAX`] or [`TRACE_RUNS_MAX`] is left out.
    pub fn touched(&mut self, page: BlockIndex) {
        if self.pages >= TRACE_PAGES_MAX {
            return;
        }
        let has_room = self.runs.len() < TRACE_RUNS_MAX;
        match self.runs.last_mut() {
            Some(last) if last.end == page => last.end.0 += 1,
            // Put off, and asked for again.
            Some(last) if (last.start..last.end).contains(&page) => return,
            _ if has_room => self.runs.push(BlockRange::one(page)),
            _ => return,
        }
        self.pages += 1;
    }

    /// The unit of its pages.
    pub fn page(&self) -> BlockSize {
        self.page
    }

    /// In the order in which they were touched.
    pub fn runs(&self) -> &[BlockRange] {
        &self.runs
    }

    /// How many pages were touched.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How much memory that is.
    pub fn bytes(&self) -> u64 {
        self.page.bytes_in(BlockCount(self.pages))
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + RUN_BYTES * self.runs.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.page.bytes().to_le_bytes());
        for run in &self.runs {
            // A page that no number of 32 bits has is one of 16 TiB of memory.
            let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
            bytes.extend_from_slice(&number(run.start.0));
            bytes.extend_from_slice(&number(run.count().0));
        }
        bytes
    }

    /// For a guest that has the same memory in pages of another size.
    #[must_use]
    pub fn in_pages_of(&self, page: BlockSize) -> Self {
        let mut trace = Self::new(page);
        for run in &self.runs {
            let pages = page.blocks_touched(self.page.bytes_of(*run));
            // A large page was touched with its first part.
            if trace.runs.last() != Some(&pages) {
                trace.pages += pages.count().0;
                trace.runs.push(pages);
            }
        }
        trace
    }

    /// Stores it: a header, which is nothing to anybody yet ([`Store::add_trace`]).
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn store(&self, store: &Arc<Store>, lease: &Lease) -> Result<Arc<Header>, StoreError> {
        let mut bytes = self.to_bytes();
        let size_bytes = bytes.len() as u64;
        bytes.resize(bytes.len().next_multiple_of(UNIT.bytes_usize()), 0);
        let mut layer = store.layer_writer(lease, UNIT)?;
        let BlockCount(blocks) = UNIT.count_ceil(size_bytes);
        let at = layer.push(&bytes)?;
        let changes = [MapRun {
            blocks: BlockRange::new(0, blocks),
            to: Target::Layer { id: layer.id(), at },
        }];
        let header = HeaderSpec {
            parent: None,
            size_bytes,
            block_size: UNIT,
            changes: &changes,
            layer: Some(layer.finish()?),
            figures: DiffFigures {
                dirty_blocks: blocks,
                ..DiffFigures::default()
            },
            made_by: MADE_BY,
        };
        store.put_header(lease, &header)
    }

    /// The one that an image is, of a memory of so many bytes.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn load(image: &Image, memory_bytes: u64) -> Result<Self, TraceError> {
        let len = image.header().size_bytes();
        let runs = len.saturating_sub(HEAD_BYTES as u64) / RUN_BYTES as u64;
        if runs > TRACE_RUNS_MAX as u64 {
            return Err(TraceError::TooLong(runs));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| TraceError::NotATrace)?];
        let image: &dyn Device = image;
        image.read_at(ByteOffset(0), &mut bytes)?;
        Self::from_bytes(&bytes, memory_bytes)
    }

    /// From bytes, for a memory of so many bytes.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn from_bytes(bytes: &[u8], memory_bytes: u64) -> Result<Self, TraceError> {
        let (head, runs) = bytes
            .split_at_checked(HEAD_BYTES)
            .ok_or(TraceError::NotATrace)?;
        let (words, _) = head.as_chunks::<4>();
        if !head.starts_with(MAGIC) {
            return Err(TraceError::NotATrace);
        }
        let [version, size] = [2, 3].map(|i| u32::from_le_bytes(words[i]));
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        let page = BlockSize::new(size).ok_or(TraceError::PageSize(size))?;
        let pages = memory_bytes / u64::from(page.bytes());
        let (runs, rest) = runs.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(TraceError::NotATrace);
        }
        if runs.len() > TRACE_RUNS_MAX {
            return Err(TraceError::TooLong(runs.len() as u64));
        }
        let mut trace = Self::new(page);
        for run in runs {
            let (numbers, _) = run.as_chunks::<4>();
            let [start, count] = [0, 1].map(|i| u32::from_le_bytes(numbers[i]));
            let run = BlockRange::new(u64::from(start), u64::from(start) + u64::from(count));
            if count == 0 || run.end.0 > pages {
                return Err(TraceError::Outside(count, start, pages));
            }
            trace.pages += u64::from(count);
            if trace.pages > TRACE_PAGES_MAX {
                return Err(TraceError::TooManyPages);
            }
            trace.runs.push(run);
        }
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(pages: &[u64]) -> Trace {
        let mut trace = Trace::new(BlockSize::DISK);
        pages
            .iter()
            .for_each(|page| trace.touched(BlockIndex(*page)));
        trace
    }

    proptest! {
        #[test]
        fn what_was_touched_comes_back_in_order(pages in prop::collection::vec(0u64..50, 0..60)) {
            let trace = trace(&pages);
            let read = Trace::from_bytes(&trace.to_bytes(), 50 * 4096).unwrap();
            prop_assert_eq!(&read, &trace);
            let order: Vec<_> = read.runs().iter().flat_map(|run| run.iter().map(|page| page.0)).collect();
            // But for what is asked for again while it lies in the run that grows.
            let (mut wanted, mut run): (Vec<u64>, Vec<u64>) = Default::default();
            for page in pages {
                if run.contains(&page) {
                    continue;
                }
                if run.last() != Some(&page.wrapping_sub(1)) {
                    run.clear();
                }
                run.push(page);
                wanted.push(page);
            }
            prop_assert_eq!(order, wanted);
        }

        #[test]
        fn hostile_bytes_are_refused_or_a_trace(mut bytes in prop::collection::vec(any::<u8>(), 0..80), is_headed in any::<bool>()) {
            if is_headed {
                let head = trace(&[]).to_bytes();
                bytes.splice(..0, head);
            }
            if let Ok(trace) = Trace::from_bytes(&bytes, 1000 * 4096) {
                let fits = |run: &BlockRange| trace.page.bytes_of(*run).end.0 <= 1000 * 4096;
                prop_assert!(trace.runs().iter().all(|run| fits(run) && !run.is_empty()));
                prop_assert_eq!(trace.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn what_is_no_trace_of_this_memory_is_refused() {
        let bytes = trace(&[7, 8, 3]).to_bytes();
        let read = |bytes: &[u8], pages: u64| {
            let error = Trace::from_bytes(bytes, pages * 4096).unwrap_err();
            error.to_string()
        };
        let outside = "a trace with 2 pages from page 7 on, where the memory has 8";
        assert_eq!(read(&bytes, 8), outside);
        assert_eq!(read(&bytes[..20], 9), "no trace");
        assert_eq!(read(&bytes[..8], 9), "no trace");
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            read(&bytes, 9)
        };
        assert_eq!(changed(0, b'x'), "no trace");
        assert!(changed(8, 2).contains("version 2"));
        assert_eq!(changed(13, 1), "a trace of pages of 256 bytes");
        assert!(changed(20, 0).contains("0 pages from page 7"));
        let most = BlockRange::new(0, TRACE_PAGES_MAX);
        let twice = Trace {
            runs: vec![most, BlockRange::new(0, 1)],
            ..Trace::new(BlockSize::DISK)
        };
        let read = Trace::from_bytes(&twice.to_bytes(), TRACE_PAGES_MAX * 4096);
        assert!(matches!(read, Err(TraceError::TooManyPages)));
    }

    #[test]
    fn large_pages_are_touched_with_their_parts() {
        let large = BlockSize::new(2 << 20).unwrap();
        let trace = trace(&[5, 6, 1030, 1029, 511]);
        let runs = |trace: &Trace| -> Vec<_> {
            let runs = trace.runs().iter();
            runs.map(|run| (run.start.0, run.end.0)).collect()
        };
        let converted = trace.in_pages_of(large);
        assert_eq!(runs(&converted), [(0, 1), (2, 3), (0, 1)]);
        assert_eq!(converted.pages(), 3);
        let back = converted.in_pages_of(BlockSize::DISK);
        assert_eq!(runs(&back), [(0, 512), (1024, 1536), (0, 512)]);
        assert_eq!(trace.in_pages_of(BlockSize::DISK), trace);
    }
}
