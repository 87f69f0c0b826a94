//! One frame: up to 64 KiB of payload (or one larger block), stored with zstd or as it is.
//!
//! Contexts of zstd cost some 100 KiB and microseconds to make, so each thread keeps its own.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

use crate::error::ObjectError;
use crate::layer::index::Entry;

/// Frames of 64 KiB of programs and text, one core: level 1 gives x3.22 at 290 MB/s, level 2 x3.31
/// at 259, level 3 x3.37 at 161. Level 2 takes most of the bytes for little of the time.
const ZSTD_LEVEL: i32 = 2;

/// How a frame is stored. Codes 2 and 3 are kept for a difference against the parent's block and
/// for a reference to a block of another image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Zstd,
}

impl Kind {
    pub(super) fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }
}

thread_local! {
    static DECOMPRESSOR: RefCell<io::Result<Decompressor<'static>>> = RefCell::new(Decompressor::new());
}

/// Appends the frame's stored bytes, and says what they are.
pub(super) fn store(
    zstd: &mut Compressor<'_>,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<Entry> {
    let start = out.len();
    let bound = zstd::zstd_safe::compress_bound(payload.len());
    out.resize(start + bound, 0);
    let mut len = zstd.compress_to_buffer(payload, &mut out[start..])?;
    let mut kind = Kind::Zstd;
    if len >= payload.len() {
        kind = Kind::Raw;
        len = payload.len();
        out[start..start + len].copy_from_slice(payload);
    }
    out.truncate(start + len);
    let crc = crc32c::crc32c(&out[start..]);
    let len = u32::try_from(len).map_err(io::Error::other)?;
    Ok(Entry { kind, len, crc })
}

pub(super) fn compressor() -> io::Result<Compressor<'static>> {
    Compressor::new(ZSTD_LEVEL)
}

/// Are the stored bytes those that were written?
pub(super) fn check(entry: Entry, stored: &[u8]) -> Result<(), ObjectError> {
    match crc32c::crc32c(stored) == entry.crc {
        true => Ok(()),
        false => Err(ObjectError::damaged(
            "the frame",
            "its checksum does not match",
        )),
    }
}

/// Decodes stored bytes into `frame`, which they must fill exactly.
pub(super) fn load(entry: Entry, stored: &[u8], frame: &mut [u8]) -> Result<(), ObjectError> {
    check(entry, stored)?;
    let refuse = |why: String| ObjectError::damaged("the frame", why);
    match entry.kind {
        Kind::Raw if stored.len() == frame.len() => frame.copy_from_slice(stored),
        Kind::Raw => return Err(refuse("it is not as long as its payload".to_owned())),
        Kind::Zstd => {
            let wanted = frame.len();
            let got = DECOMPRESSOR
                .with_borrow_mut(|zstd| match zstd {
                    Ok(zstd) => zstd.decompress_to_buffer(stored, frame),
                    Err(error) => Err(io::Error::other(error.to_string())),
                })
                .map_err(|e| refuse(format!("zstd: {e}")))?;
            if got != wanted {
                return Err(refuse(format!(
                    "it decodes to {got} bytes instead of {wanted}"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_of(kind: Kind, stored: &[u8]) -> Entry {
        Entry {
            kind,
            len: u32::try_from(stored.len()).unwrap(),
            crc: crc32c::crc32c(stored),
        }
    }

    /// Whole by its checksum, and still not what the footer says: a bomb, or a short one.
    #[test]
    fn a_frame_decodes_to_its_own_length_or_not_at_all() {
        for len in [0, 1, 65_535, 65_537, 1 << 20] {
            let stored = zstd::bulk::compress(&vec![0; len], 1).unwrap();
            let mut frame = vec![0; 65_536];
            assert!(
                load(entry_of(Kind::Zstd, &stored), &stored, &mut frame).is_err(),
                "{len}"
            );
        }
        let stored = zstd::bulk::compress(&[5; 65_536], 1).unwrap();
        let mut frame = vec![0; 65_536];
        load(entry_of(Kind::Zstd, &stored), &stored, &mut frame).unwrap();
        assert!(frame.iter().all(|b| *b == 5));
        let cut = &stored[..stored.len() - 1];
        assert!(load(entry_of(Kind::Zstd, cut), cut, &mut frame).is_err());
        assert!(load(entry_of(Kind::Raw, &[1; 9]), &[1; 9], &mut frame).is_err());
        // The next one is not disturbed by the failures before it.
        load(entry_of(Kind::Zstd, &stored), &stored, &mut frame).unwrap();
    }
}
