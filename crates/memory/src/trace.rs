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
//! There is no checksum: the image that the bytes lie in has them. A trace is a hint: where it is wrong, pages are put in place that nobody needs.
//! Pages that the memory does not have are refused, and so is another size of pages; nothing else can be wrong with it.

use cowslip_block::{BlockIndex, BlockRange, BlockSize};

use crate::limits::{TRACE_PAGES_MAX, TRACE_RUNS_MAX};

const MAGIC: &[u8; 8] = b"cowslipT";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const RUN_BYTES: usize = 8;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    page: BlockSize,
    /// In the order in which they were touched.
    runs: Vec<BlockRange>,
    pages: u64,
}

/// Why bytes are no trace for this memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Too short, not in whole runs, or of something else.
    #[error("no trace")]
    NotATrace,
    /// A later release's.
    #[error("a trace of version {0}, where this release reads {VERSION}")]
    Version(u32),
    /// It was recorded with pages of another size.
    #[error("a trace of pages of {0} bytes, where the guest has pages of {1}")]
    PageSize(u32, u32),
    /// It speaks of pages that are not there.
    #[error("a trace with {0} pages from page {1} on, where the guest has {2}")]
    Outside(u32, u32, u64),
    /// More than a trace may have.
    #[error("a trace of {0} runs, where {TRACE_RUNS_MAX} are the most")]
    TooLong(usize),
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
            _ if has_room => self.runs.push(BlockRange::one(page)),
            _ => return,
        }
        self.pages += 1;
    }

    /// In the order in which they were touched.
    pub fn runs(&self) -> &[BlockRange] {
        &self.runs
    }

    /// How many pages were touched.
    pub fn pages(&self) -> u64 {
        self.pages
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

    /// From bytes, for a memory of so many pages of this size.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn from_bytes(bytes: &[u8], page: BlockSize, pages: u64) -> Result<Self, TraceError> {
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
        if size != page.bytes() {
            return Err(TraceError::PageSize(size, page.bytes()));
        }
        let (runs, rest) = runs.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(TraceError::NotATrace);
        }
        if runs.len() > TRACE_RUNS_MAX {
            return Err(TraceError::TooLong(runs.len()));
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
            let read = Trace::from_bytes(&trace.to_bytes(), BlockSize::DISK, 50).unwrap();
            prop_assert_eq!(&read, &trace);
            let order: Vec<_> = read.runs().iter().flat_map(|run| run.iter().map(|page| page.0)).collect();
            prop_assert_eq!(order, pages);
        }

        #[test]
        fn hostile_bytes_are_refused_or_a_trace(mut bytes in prop::collection::vec(any::<u8>(), 0..80), is_headed in any::<bool>()) {
            if is_headed {
                let head = trace(&[]).to_bytes();
                bytes.splice(..0, head);
            }
            if let Ok(trace) = Trace::from_bytes(&bytes, BlockSize::DISK, 1000) {
                prop_assert!(trace.runs().iter().all(|run| run.end.0 <= 1000 && !run.is_empty()));
                prop_assert_eq!(trace.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn what_is_no_trace_of_this_memory_is_refused() {
        let bytes = trace(&[7, 8, 3]).to_bytes();
        let read = |bytes: &[u8], pages| Trace::from_bytes(bytes, BlockSize::DISK, pages);
        assert_eq!(read(&bytes, 8), Err(TraceError::Outside(2, 7, 8)));
        assert_eq!(read(&bytes[..20], 9), Err(TraceError::NotATrace));
        assert_eq!(read(&bytes[..8], 9), Err(TraceError::NotATrace));
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            read(&bytes, 9)
        };
        assert_eq!(changed(0, b'x'), Err(TraceError::NotATrace));
        assert_eq!(changed(8, 2), Err(TraceError::Version(2)));
        assert_eq!(changed(13, 1), Err(TraceError::PageSize(256, 4096)));
        assert_eq!(changed(20, 0), Err(TraceError::Outside(0, 7, 9)));
    }
}
