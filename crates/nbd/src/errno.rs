//! [`Errno`]: the protocol's error numbers, and the one place that chooses them.
//!
//! | refusal                                        | errno     |
//! |------------------------------------------------|-----------|
//! | unknown command, unknown flag, empty or contextless BLOCK_STATUS, FLUSH with a range | EINVAL |
//! | a modifying command on a read-only device      | EPERM     |
//! | WRITE or WRITE_ZEROES past the end             | ENOSPC    |
//! | anything else past the end                     | EINVAL    |
//! | READ or WRITE over the maximum payload         | EINVAL    |
//! | the same for a READ with DF                    | EOVERFLOW |
//! | FAST_ZERO where zeroing is not fast            | ENOTSUP   |

use std::fmt;

use cowslip_block::DeviceError;

use crate::check::Refusal;

/// An error number of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// EPERM: the device is read-only.
    Perm,
    /// EIO: the device failed.
    Io,
    /// ENOMEM: the server is out of memory.
    NoMem,
    /// EINVAL: the request is none.
    Inval,
    /// ENOSPC: past the end, or the disk below is full.
    NoSpc,
    /// EOVERFLOW: too large for one chunk.
    Overflow,
    /// ENOTSUP: not in this way.
    NotSup,
    /// ESHUTDOWN: the server is going.
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// What a number on the wire means. An unexpected one is EINVAL, as the protocol asks of clients.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        }
    }

    /// For a request that was refused at the door.
    pub(crate) fn of_refusal(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownCommand(_)
            | Refusal::UnknownFlags { .. }
            | Refusal::TooLong { .. }
            | Refusal::FlushWithRange
            | Refusal::NoContext
            | Refusal::EmptyStatus => Self::Inval,
            Refusal::ReadOnly => Self::Perm,
            Refusal::PastTheEnd { writes: true, .. } => Self::NoSpc,
            Refusal::PastTheEnd { writes: false, .. } => Self::Inval,
            Refusal::TooLongForOneChunk { .. } => Self::Overflow,
            Refusal::NotFast => Self::NotSup,
        }
    }

    /// For a request that the device failed: the protocol's numbers are Linux's.
    pub(crate) fn of_device(error: &DeviceError) -> Self {
        u32::try_from(error.errno()).map_or(Self::Io, Self::from_code)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Perm => "operation not permitted (EPERM)",
            Self::Io => "input/output error (EIO)",
            Self::NoMem => "out of memory (ENOMEM)",
            Self::Inval => "invalid request (EINVAL)",
            Self::NoSpc => "no space left (ENOSPC)",
            Self::Overflow => "too large for one reply (EOVERFLOW)",
            Self::NotSup => "not supported (ENOTSUP)",
            Self::Shutdown => "the server is shutting down (ESHUTDOWN)",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn codes_go_both_ways_and_strangers_are_einval() {
        for code in 0..200 {
            let errno = Errno::from_code(code);
            assert!(errno.code() == code || errno == Errno::Inval, "{code}");
        }
        assert_eq!(Errno::from_code(u32::MAX), Errno::Inval);
    }

    #[test]
    fn a_device_that_fails_is_told_apart() {
        let of = |error| Errno::of_device(&error);
        assert_eq!(of(DeviceError::ReadOnly), Errno::Perm);
        assert_eq!(of(DeviceError::NoSpace), Errno::NoSpc);
        assert_eq!(of(DeviceError::Poisoned("x".into())), Errno::Io);
        assert_eq!(of(DeviceError::Corrupt("x".into())), Errno::Io);
        assert_eq!(of(DeviceError::Unsupported("x")), Errno::NotSup);
        let io = |kind: io::ErrorKind| of(DeviceError::from(io::Error::from(kind)));
        assert_eq!(io(io::ErrorKind::StorageFull), Errno::NoSpc);
        assert_eq!(io(io::ErrorKind::OutOfMemory), Errno::NoMem);
        assert_eq!(io(io::ErrorKind::Other), Errno::Io);
    }
}
