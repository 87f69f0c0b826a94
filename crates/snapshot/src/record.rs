//! The two small files of a store: its marker, and a snapshot's record. Fixed layouts.
//!
//! ```text
//! marker (16):  magic | version | crc32c
//! record (56):  magic | version | header id | header's length | hash of its tail | crc32c
//! ```

use cowslip_block::files::{File, read_all};

use crate::codec::{Hash, Reader};
use crate::error::ObjectError;
use crate::ids::HeaderId;

const MARKER_MAGIC: [u8; 8] = *b"cowslipS";
const RECORD_MAGIC: [u8; 8] = *b"cowslipN";
const VERSION: u32 = 1;
const MARKER_BYTES: usize = 16;
pub(crate) const RECORD_BYTES: usize = 56;

/// What a snapshot's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) header: HeaderId,
    pub(crate) object_bytes: u64,
    pub(crate) tail_hash: Hash,
}

pub(crate) fn encode_marker() -> Vec<u8> {
    let mut out = begin(MARKER_MAGIC);
    end(&mut out);
    out
}

pub(crate) fn check_marker(file: &dyn File) -> Result<(), ObjectError> {
    let bytes = read_all(file, MARKER_BYTES as u64)?;
    open(&bytes, MARKER_MAGIC, MARKER_BYTES).map(drop)
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = begin(RECORD_MAGIC);
        out.extend(self.header.0.as_bytes());
        out.extend(self.object_bytes.to_le_bytes());
        out.extend(self.tail_hash.0);
        end(&mut out);
        out
    }

    pub(crate) fn read(file: &dyn File) -> Result<Self, ObjectError> {
        let bytes = read_all(file, RECORD_BYTES as u64)?;
        let mut reader = open(&bytes, RECORD_MAGIC, RECORD_BYTES)?;
        Ok(Self {
            header: HeaderId(reader.uuid()?),
            object_bytes: reader.u64()?,
            tail_hash: reader.hash()?,
        })
    }
}

fn begin(magic: [u8; 8]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(VERSION.to_le_bytes());
    out
}

fn end(out: &mut Vec<u8>) {
    let crc = crc32c::crc32c(out);
    out.extend(crc.to_le_bytes());
}

/// Checks what both have; the reader stands at the first field of its own.
fn open(bytes: &[u8], magic: [u8; 8], len: usize) -> Result<Reader<'_>, ObjectError> {
    let mut reader = Reader::new(bytes, 0);
    if reader.take::<8>()? != magic {
        return Err(reader.refuse("it does not begin as it should"));
    }
    let found = reader.u32()?;
    if found != VERSION {
        let known = VERSION;
        return Err(ObjectError::Version { found, known });
    }
    let Some((before, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(reader.refuse("it is cut short"));
    };
    if bytes.len() != len {
        return Err(reader.refuse(format!("{} bytes instead of {len}", bytes.len())));
    }
    if crc32c::crc32c(before) != u32::from_le_bytes(*crc) {
        return Err(reader.refuse("its checksum does not match"));
    }
    Ok(reader)
}
