//! The two small files of a store: its marker, and a snapshot's record. Fixed layouts.
//!
//! ```text
//! marker (16):  magic | version | crc32c
//! record (72):  magic | version | header id | header's length | hash of its tail | origin | crc32c
//! ```
//!
//! A record's checksum covers the name as well, so that a record under another name is noticed.
//! Version 1 of it (56 bytes) had neither that nor the origin.

use cowslip_block::files::{File, read_all};

use crate::codec::{Hash, Reader};
use crate::error::ObjectError;
use crate::header::Header;
use crate::ids::{HeaderId, SnapshotName};

const MARKER_MAGIC: [u8; 8] = *b"cowslipS";
const RECORD_MAGIC: [u8; 8] = *b"cowslipN";
const MARKER_VERSION: u32 = 1;
const MARKER_BYTES: usize = 16;
const RECORD_VERSION: u32 = 2;
const RECORD_1_BYTES: usize = 56;
pub(crate) const RECORD_BYTES: usize = 72;

/// What a snapshot's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) header: HeaderId,
    pub(crate) object_bytes: u64,
    pub(crate) tail_hash: Hash,
    /// The snapshot, whatever header it is stored in.
    pub(crate) origin: HeaderId,
}

pub(crate) fn encode_marker() -> Vec<u8> {
    let mut out = begin(MARKER_MAGIC, MARKER_VERSION);
    let crc = crc32c::crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

pub(crate) fn check_marker(file: &dyn File) -> Result<(), ObjectError> {
    let bytes = read_all(file, MARKER_BYTES as u64)?;
    let (version, reader) = open(&bytes, MARKER_MAGIC, MARKER_VERSION)?;
    debug_assert_eq!(version, MARKER_VERSION);
    check_end(&bytes, MARKER_BYTES, "", &reader)
}

/// Is it whole, and of a version that we do not know? Then it is no damage.
pub(crate) fn is_newer_marker(file: &dyn File) -> bool {
    let Ok(bytes) = read_all(file, MARKER_BYTES as u64) else {
        return false;
    };
    let newer = matches!(
        open(&bytes, MARKER_MAGIC, MARKER_VERSION),
        Err(ObjectError::Version { .. })
    );
    newer && check_end(&bytes, MARKER_BYTES, "", &Reader::new(&bytes, 0)).is_ok()
}

impl Record {
    pub(crate) fn of(header: &Header) -> Self {
        Self {
            header: header.id(),
            object_bytes: header.object_bytes(),
            tail_hash: header.tail_hash(),
            origin: header.meta().origin,
        }
    }

    pub(crate) fn encode(&self, name: &SnapshotName) -> Vec<u8> {
        let mut out = begin(RECORD_MAGIC, RECORD_VERSION);
        out.extend(self.header.0.as_bytes());
        out.extend(self.object_bytes.to_le_bytes());
        out.extend(self.tail_hash.0);
        out.extend(self.origin.0.as_bytes());
        let crc = crc_with(&out, name.as_str());
        out.extend(crc.to_le_bytes());
        out
    }

    /// The record of this header under this name, if that is what `damaged` was: most of its bytes are
    /// the same, and its checksum is. The name is under the checksum, so that what was exchanged is not
    /// taken for what was damaged.
    pub(crate) fn was(damaged: &[u8], name: &SnapshotName, header: &Header) -> Option<Vec<u8>> {
        let bytes = Self::of(header).encode(name);
        let same = bytes.iter().zip(damaged).filter(|(a, b)| a == b).count();
        let same_end = bytes.last_chunk::<4>() == damaged.last_chunk::<4>();
        let is_it = bytes.len() == damaged.len() && same_end && same > bytes.len() / 2;
        is_it.then_some(bytes)
    }

    pub(crate) fn read(file: &dyn File, name: &SnapshotName) -> Result<Self, ObjectError> {
        let bytes = read_all(file, RECORD_BYTES as u64)?;
        let (version, mut reader) = open(&bytes, RECORD_MAGIC, RECORD_VERSION)?;
        match version {
            1 => check_end(&bytes, RECORD_1_BYTES, "", &reader)?,
            _ => check_end(&bytes, RECORD_BYTES, name.as_str(), &reader)?,
        }
        let header = HeaderId(reader.uuid()?);
        Ok(Self {
            header,
            object_bytes: reader.u64()?,
            tail_hash: reader.hash()?,
            origin: match version {
                1 => header,
                _ => HeaderId(reader.uuid()?),
            },
        })
    }
}

fn begin(magic: [u8; 8], version: u32) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(version.to_le_bytes());
    out
}

/// The version, and a reader that stands behind it.
fn open(bytes: &[u8], magic: [u8; 8], known: u32) -> Result<(u32, Reader<'_>), ObjectError> {
    let mut reader = Reader::new(bytes, 0);
    if reader.take::<8>()? != magic {
        return Err(reader.refuse("it does not begin as it should"));
    }
    let found = reader.u32()?;
    if !(1..=known).contains(&found) {
        return Err(ObjectError::Version { found, known });
    }
    Ok((found, reader))
}

/// Length and checksum; `name` is under the checksum as well.
fn check_end(bytes: &[u8], len: usize, name: &str, place: &Reader<'_>) -> Result<(), ObjectError> {
    let Some((before, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(place.refuse("it is cut short"));
    };
    if bytes.len() != len {
        return Err(place.refuse(format!("{} bytes instead of {len}", bytes.len())));
    }
    if crc_with(before, name) != u32::from_le_bytes(*crc) {
        return Err(place.refuse("its checksum does not match"));
    }
    Ok(())
}

fn crc_with(bytes: &[u8], name: &str) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(bytes), name.as_bytes())
}
