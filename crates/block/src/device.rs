//! [`Device`]: the one trait that every front end (NBD today) knows.
//!
//! All ranges are in bytes and may start and end anywhere, down to one byte. A device checks
//! every range against its size; a front end checks again at its own door, because its protocol has
//! its own errno for it. Calls may come from any number of threads at once.
//!
//! What a return means, the two grades of durability:
//! - `write`, `write_zeroes`, `trim`: the bytes and their mark survive the end of this process;
//! - `flush`: all that was acknowledged before it was called survives a power cut as well.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::io::Errno;

use crate::units::{BlockSize, ByteOffset, ByteRange};

/// What a device is, fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes; need not be a multiple of the block size.
    pub size_bytes: u64,
    /// The unit of tracking, and the preferred size of a request.
    pub block_size: BlockSize,
    /// Writes are refused.
    pub read_only: bool,
}

/// A device that reads and writes bytes.
pub trait Device: Send + Sync {
    /// What this device is.
    fn geometry(&self) -> Geometry;

    /// Hands the bytes of `range` to `sink`, in order, from first to last.
    ///
    /// # Errors
    /// [`DeviceError`]; the sink may have got a part by then.
    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError>;

    /// Writes `data` at `offset`. A device that does not say otherwise is read-only.
    ///
    /// # Errors
    /// [`DeviceError`]; any part of the range may hold the new bytes by then.
    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        let _ = (offset, data);
        Err(DeviceError::ReadOnly)
    }

    /// Makes every byte of `range` read zero, exactly.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn write_zeroes(&self, range: ByteRange, room: Room) -> Result<(), DeviceError> {
        let _ = (range, room);
        Err(DeviceError::ReadOnly)
    }

    /// Drops the whole blocks inside `range`: they read zero afterwards. A part of a block at
    /// either end is left as it is.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn trim(&self, range: ByteRange) -> Result<(), DeviceError> {
        let _ = range;
        Err(DeviceError::ReadOnly)
    }

    /// Makes all that was acknowledged before this call survive a power cut.
    ///
    /// # Errors
    /// [`DeviceError`]; the device refuses writes from then on.
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Visits the extents of `range` in order until the visitor breaks. Neighbours may be equal. A device that does
    /// not know its holes says that there are none.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        let _ = visit(Extent {
            len: range.len(),
            hole: false,
            dirty: false,
        });
        Ok(())
    }
}

impl dyn Device + '_ {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<(), DeviceError> {
        let range = ByteRange::at(offset.0, buf.len() as u64).ok_or_else(|| {
            self.geometry()
                .out_of_range(ByteRange::new(offset.0, u64::MAX))
        })?;
        self.read(range, &mut FillBuf { buf, filled: 0 })
    }
}

impl Geometry {
    /// # Errors
    /// [`DeviceError::OutOfRange`] where the range ends past the device.
    pub fn check_range(&self, range: ByteRange) -> Result<(), DeviceError> {
        if range.end.0 > self.size_bytes {
            return Err(self.out_of_range(range));
        }
        Ok(())
    }

    fn out_of_range(&self, range: ByteRange) -> DeviceError {
        DeviceError::OutOfRange {
            range,
            size_bytes: self.size_bytes,
        }
    }
}

/// Where a read puts what it finds: bytes in a buffer that the sink hands out, or a note that so
/// many are zero, which costs neither side a copy.
pub trait ReadSink {
    /// The place for the next `len` bytes. The reader fills all of it, or fails the read.
    fn data(&mut self, len: usize) -> &mut [u8];
    /// The next `len` bytes are zero.
    fn zeroes(&mut self, len: u64);
}

/// A sink over a plain buffer.
pub struct FillBuf<'a> {
    /// Exactly as long as the range that is read.
    pub buf: &'a mut [u8],
    /// How much of it has been handed out.
    pub filled: usize,
}

impl<'a> FillBuf<'a> {
    /// A sink that fills all of `buf`.
    pub fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, filled: 0 }
    }
}

impl ReadSink for FillBuf<'_> {
    fn data(&mut self, len: usize) -> &mut [u8] {
        let at = self.filled;
        self.filled += len;
        &mut self.buf[at..at + len]
    }

    fn zeroes(&mut self, len: u64) {
        let len = usize::try_from(len).expect("a buffer in memory has a length in usize");
        self.data(len).fill(0);
    }
}

/// What `write_zeroes` does with the room that the range takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Give it back.
    Free,
    /// Provision it: later writes there find room (NBD's `NO_HOLE`).
    Provision,
}

/// A run of bytes with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never 0.
    pub len: u64,
    /// Reads as zeros, and takes no room.
    pub hole: bool,
    /// Changed since the session's last snapshot.
    pub dirty: bool,
}

/// Why a device refused.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The request is not within the device.
    #[error("{range} is not within the device of {size_bytes} bytes")]
    OutOfRange {
        /// What was asked for.
        range: ByteRange,
        /// What there is.
        size_bytes: u64,
    },
    /// A write to a read-only device.
    #[error("the device is read-only")]
    ReadOnly,
    /// The disk below is full. The request failed; the device goes on.
    #[error("no space left for the write")]
    NoSpace,
    /// An earlier write or sync failed, so no write can be trusted any more. Reads go on.
    #[error("the session refuses writes since: {0}")]
    Poisoned(Arc<str>),
    /// Stored bytes are not what was stored.
    #[error("{0}")]
    Corrupt(String),
    /// The device cannot do this.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The file layer failed.
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl DeviceError {
    /// Linux's error number for it, which every front end that answers with numbers tells its client. A front end
    /// checks ranges at its own door, so a device that still objects has its own idea of its size: EINVAL. ENOTSUP is
    /// what makes clients fall back by themselves (to plain writes of zeros, say).
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::OutOfRange { .. } => Errno::INVAL,
            Self::ReadOnly => Errno::PERM,
            Self::NoSpace => Errno::NOSPC,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => Errno::NOMEM,
            Self::Poisoned(_) | Self::Corrupt(_) | Self::Io(_) => Errno::IO,
        };
        errno.raw_os_error()
    }
}

impl From<io::Error> for DeviceError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(error),
        }
    }
}
