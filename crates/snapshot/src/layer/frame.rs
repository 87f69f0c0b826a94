//! One frame: up to 64 KiB of payload (or one larger block), stored with zstd or as it is.
//!
//! Contexts of zstd cost some 100 KiB and microseconds to make, so each thread keeps its own.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CCtx, CParameter, DCtx, ErrorCode};

use crate::error::ObjectError;
use crate::layer::index::Entry;

/// Frames of 64 KiB of programs and text, one core: level 1 gives x3.22 at 290 MB/s, level 2 x3.31
/// at 259, level 3 x3.37 at 161. Level 2 takes most of the bytes for little of the time.
const ZSTD_LEVEL: i32 = 2;

/// How a frame is stored. Code 3 is kept for a reference to a block of another image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Zstd,
    /// With its blocks' bases as the prefix: it needs them to be read.
    Delta,
}

impl Kind {
    pub(super) fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Delta),
            _ => None,
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::Delta => 2,
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

/// What bases cost besides: about so many bytes of the table for each.
const BASE_BYTES: usize = 3;

/// Is a delta worth that it cannot be read alone? Where it takes at most half of what the frame takes otherwise.
fn pays(delta_bytes: usize, bases: usize, whole_bytes: usize) -> bool {
    (delta_bytes + bases * BASE_BYTES) * 2 <= whole_bytes
}

/// The same of a frame some of whose blocks have bases: as a delta, where that pays. `prefix` is as long as the payload: the base of
/// each block in its place, zeros where it has none.
pub(super) fn store_over<'p>(
    zstd: &mut Compressor<'_>,
    over: &mut CCtx<'p>,
    payload: &[u8],
    (prefix, bases): (&'p [u8], usize),
    out: &mut Vec<u8>,
) -> io::Result<Entry> {
    let start = out.len();
    let whole = store(zstd, payload, out)?;
    let made = compress_over(over, payload, prefix)?;
    if !pays(made.len(), bases, out.len() - start) {
        return Ok(whole);
    }
    out.truncate(start);
    out.extend(&made);
    entry_of_delta(&made)
}

fn entry_of_delta(stored: &[u8]) -> io::Result<Entry> {
    Ok(Entry {
        kind: Kind::Delta,
        len: u32::try_from(stored.len()).map_err(io::Error::other)?,
        crc: crc32c::crc32c(stored),
    })
}

fn compress_over<'p>(over: &mut CCtx<'p>, payload: &[u8], prefix: &'p [u8]) -> io::Result<Vec<u8>> {
    let mut out = vec![0; zstd::zstd_safe::compress_bound(payload.len())];
    over.ref_prefix(prefix).map_err(zstd_error)?;
    let len = over.compress2(&mut out[..], payload).map_err(zstd_error)?;
    out.truncate(len);
    Ok(out)
}

/// The stored bytes of a delta, made once more.
pub(super) fn delta_again(payload: &[u8], prefix: &[u8]) -> io::Result<(Entry, Vec<u8>)> {
    let made = compress_over(&mut delta_compressor()?, payload, prefix)?;
    Ok((entry_of_delta(&made)?, made))
}

/// It borrows the prefixes that it is given, so it cannot be kept for longer than these.
pub(super) fn delta_compressor<'p>() -> io::Result<CCtx<'p>> {
    let mut zstd = CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
    let level = CParameter::CompressionLevel(ZSTD_LEVEL);
    zstd.set_parameter(level).map_err(zstd_error)?;
    Ok(zstd)
}

fn zstd_error(code: ErrorCode) -> io::Error {
    io::Error::other(zstd::zstd_safe::get_error_name(code))
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

/// Decodes stored bytes into `frame`, which they must fill exactly. Only a delta has a prefix.
pub(super) fn load(
    entry: Entry,
    stored: &[u8],
    prefix: Option<&[u8]>,
    frame: &mut [u8],
) -> Result<(), ObjectError> {
    check(entry, stored)?;
    let refuse = |why: String| ObjectError::damaged("the frame", why);
    match entry.kind {
        Kind::Raw if stored.len() == frame.len() => frame.copy_from_slice(stored),
        Kind::Raw => return Err(refuse("it is not as long as its payload".to_owned())),
        Kind::Zstd | Kind::Delta => {
            let wanted = frame.len();
            let got = match (entry.kind, prefix) {
                (Kind::Delta, Some(prefix)) => decompress_over(stored, prefix, frame),
                (Kind::Delta, None) => Err(io::Error::other("a delta cannot be read alone")),
                _ => decompress(stored, frame),
            };
            let got = got.map_err(|e| refuse(format!("zstd: {e}")))?;
            if got != wanted {
                return Err(refuse(format!(
                    "it decodes to {got} bytes instead of {wanted}"
                )));
            }
        }
    }
    Ok(())
}

fn decompress(stored: &[u8], frame: &mut [u8]) -> io::Result<usize> {
    DECOMPRESSOR.with_borrow_mut(|zstd| match zstd {
        Ok(zstd) => zstd.decompress_to_buffer(stored, frame),
        Err(error) => Err(io::Error::other(error.to_string())),
    })
}

/// A prefix is raw bytes, whatever they look like: what a guest wrote is never taken for a dictionary.
fn decompress_over(stored: &[u8], prefix: &[u8], frame: &mut [u8]) -> io::Result<usize> {
    let mut zstd = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
    zstd.ref_prefix(prefix).map_err(zstd_error)?;
    zstd.decompress(frame, stored).map_err(zstd_error)
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
                load(entry_of(Kind::Zstd, &stored), &stored, None, &mut frame).is_err(),
                "{len}"
            );
        }
        let stored = zstd::bulk::compress(&[5; 65_536], 1).unwrap();
        let mut frame = vec![0; 65_536];
        load(entry_of(Kind::Zstd, &stored), &stored, None, &mut frame).unwrap();
        assert!(frame.iter().all(|b| *b == 5));
        let cut = &stored[..stored.len() - 1];
        assert!(load(entry_of(Kind::Zstd, cut), cut, None, &mut frame).is_err());
        assert!(load(entry_of(Kind::Raw, &[1; 9]), &[1; 9], None, &mut frame).is_err());
        // The next one is not disturbed by the failures before it.
        load(entry_of(Kind::Zstd, &stored), &stored, None, &mut frame).unwrap();
    }
}
