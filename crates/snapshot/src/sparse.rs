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

    /// The ranges that are no holes, in order, for whom a hole is something else than zeros.
    ///
    /// # Errors
    /// `Invalid` where the file cannot tell, `Io`.
    pub fn written(&self) -> Result<Vec<ByteRange>, StoreError> {
        let why = "what the file lies on cannot tell its holes from zeros";
        let cannot = || StoreError::Invalid(why.to_owned());
        let room = self.file.allocated_bytes().map_err(reading)?;
        let mut all = Vec::new();
        let mut at = 0;
        loop {
            match self.next_written(at) {
                Ok(Some(data)) => {
                    at = data.end.0;
                    all.push(data);
                }
                // Some say that all is data, and have no room for so much: it has holes.
                Ok(None) if room < self.end && all == [ByteRange::new(0, self.end)] => {
                    return Err(cannot());
                }
                Ok(None) => return Ok(all),
                Err(e) if cannot_tell(&e) => return Err(cannot()),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 8 KiB on something that knows no holes.
    #[derive(Debug)]
    struct Blind {
        allocated_bytes: u64,
        refuses: bool,
    }

    impl File for Blind {
        fn read_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
            buf.fill(5);
            Ok(())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }

        fn len(&self) -> io::Result<u64> {
            Ok(8192)
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }

        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }

        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
            match self.refuses {
                true => Err(io::ErrorKind::InvalidInput.into()),
                false => Ok((offset < 8192).then_some((offset, 8192))),
            }
        }

        fn sync(&self) -> io::Result<()> {
            unreachable!("it is only read")
        }

        fn allocated_bytes(&self) -> io::Result<u64> {
            Ok(self.allocated_bytes)
        }
    }

    #[test]
    fn what_cannot_tell_its_holes_is_all_data_and_no_diff() {
        for (allocated_bytes, refuses, can) in [
            (8192, false, true),
            (4096, false, false),
            (8192, true, false),
        ] {
            let file = Blind {
                allocated_bytes,
                refuses,
            };
            let sparse = SparseFile::new(&file, 8192).unwrap();
            let all = ByteRange::new(4096, 8192);
            assert_eq!(sparse.next_data(4096).unwrap(), Some(all));
            assert_eq!(sparse.written().is_ok(), can, "{file:?}");
        }
    }

    #[test]
    fn what_it_has_less_reads_as_zeros() {
        let file = Blind {
            allocated_bytes: 8192,
            refuses: true,
        };
        let sparse = SparseFile::new(&file, 100_000).unwrap();
        let mut buf = [1; 8];
        sparse.read(8188, &mut buf).unwrap();
        assert_eq!(buf, [5, 5, 5, 5, 0, 0, 0, 0]);
        sparse.read(9000, &mut buf).unwrap();
        assert_eq!(buf, [0; 8]);
        assert_eq!(sparse.next_data(8192).unwrap(), None);
    }
}
