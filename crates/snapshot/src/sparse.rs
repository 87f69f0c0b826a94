//! [`SparseFile`]: a file that is read from end to end, without its holes.

use std::io;

use cowslip_block::ByteRange;
use cowslip_block::files::File;

use crate::error::StoreError;

/// A file, and how much of it there is: what it has less than it is to have reads as zeros.
#[derive(Debug)]
pub struct SparseFile<'a> {
    file: &'a dyn File,
    end: u64,
}

impl<'a> SparseFile<'a> {
    /// The first `size` bytes of a file.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(file: &'a dyn File, size: u64) -> Result<Self, StoreError> {
        let len = file.len().map_err(reading)?;
        // A block device says 0.
        let end = if len == 0 { size } else { len.min(size) };
        Ok(Self { file, end })
    }

    /// The next bytes at or after `offset` that may be other than zero.
    ///
    /// # Errors
    /// `Io`.
    pub fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, StoreError> {
        match self.next_written(offset) {
            // It cannot tell, as a block device cannot: all of it may be data.
            Err(e) if cannot_tell(&e) => {
                let all = ByteRange::new(offset, self.end.max(offset));
                Ok(Some(all).filter(|all| !all.is_empty()))
            }
            found => found.map_err(reading),
        }
    }

    /// The ranges that are no holes, in order: what a hole means is not that it is zeros.
    ///
    /// # Errors
    /// `Invalid` where the file cannot tell, `Io`.
    pub fn written(&self) -> Result<Vec<ByteRange>, StoreError> {
        let mut all = Vec::new();
        let mut at = 0;
        loop {
            match self.next_written(at) {
                Ok(Some(data)) => {
                    at = data.end.0;
                    all.push(data);
                }
                Ok(None) => return Ok(all),
                Err(e) if cannot_tell(&e) => {
                    let why = "what it lies on cannot tell its holes from zeros";
                    return Err(StoreError::Invalid(why.to_owned()));
                }
                Err(e) => return Err(reading(e)),
            }
        }
    }

    fn next_written(&self, offset: u64) -> io::Result<Option<ByteRange>> {
        if offset >= self.end {
            return Ok(None);
        }
        let all = ByteRange::new(offset, self.end);
        let found = self.file.next_data(offset)?;
        let data = found.map(|(start, end)| ByteRange::new(start, end).intersect(all));
        Ok(data.filter(|d| !d.is_empty()))
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `Io`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let there = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (data, past) = buf.split_at_mut(there.min(buf.len()));
        past.fill(0);
        self.file.read_at(data, offset).map_err(reading)
    }
}

fn cannot_tell(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
    )
}

fn reading(error: io::Error) -> StoreError {
    StoreError::io("reading the image", error)
}
