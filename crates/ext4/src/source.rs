//! [`Source`]: where the bytes of a file system come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cowslip_block::{ByteOffset, Device};

/// Bytes that can be read, and do not change meanwhile.
pub trait Source: Send + Sync {
    /// How many there are.
    ///
    /// # Errors
    /// Where that cannot be found out.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Where not all of these bytes can be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl<T: Source + ?Sized> Source for &T {
    fn size_bytes(&self) -> io::Result<u64> {
        (**self).size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }
}

impl Source for [u8] {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..));
        let Some(found) = from.and_then(|rest| rest.get(..buf.len())) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        buf.copy_from_slice(found);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn size_bytes(&self) -> io::Result<u64> {
        self[..].size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self[..].read_at(offset, buf)
    }
}

impl Source for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl Source for dyn Device + '_ {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.geometry().size_bytes)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        <dyn Device>::read_at(self, ByteOffset(offset), buf).map_err(io::Error::other)
    }
}

impl Source for Arc<dyn Device> {
    fn size_bytes(&self) -> io::Result<u64> {
        Source::size_bytes(&**self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Source::read_at(&**self, offset, buf)
    }
}
