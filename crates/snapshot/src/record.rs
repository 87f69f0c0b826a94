//! The two small files of a store: its marker, and a snapshot's record. Fixed layouts.
//!
//! ```text
//! marker (16):        magic | version | crc32c
//! record, version 2:  magic | version | header id | header's length | hash of its tail | origin | crc32c          (72)
//! record, version 3:  magic | version | origin | how many | of each part: kind | header id | length | hash | crc32c   (33 + 41 for each)
//! ```
//!
//! A disk alone is written as version 2, which older releases read; anything else as version 3. A record's
//! checksum covers the name as well, so that a record under another name is noticed. Version 1 of it
//! (56 bytes) had neither that nor the origin.
//!
//! Invariants:
//! - The origin is that of the last part's header, a trace left out: of the parts, that is the one which no other snapshot has. (Disks are shared
//!   by those whose memory was taken with the same one; a trace comes when the snapshot is there.)
//! - Kinds ascend, so that none is there twice; there is at least one part that is no trace, and nothing behind the last.

use std::sync::Arc;

use cowslip_block::files::{File, read_all};

use crate::codec::{Hash, Reader};
use crate::error::ObjectError;
use crate::header::Header;
use crate::ids::{HeaderId, SnapshotName};
use crate::limits::SNAPSHOT_PARTS_MAX;
use crate::parts::{Part, Parts};

const MARKER_MAGIC: [u8; 8] = *b"cowslipS";
const RECORD_MAGIC: [u8; 8] = *b"cowslipN";
const MARKER_VERSION: u32 = 1;
const MARKER_BYTES: usize = 16;
const RECORD_VERSION: u32 = 3;
const RECORD_1_BYTES: usize = 56;
/// A record of a disk alone.
pub(crate) const RECORD_BYTES: usize = 72;
const STORED_BYTES: usize = 16 + 8 + Hash::LEN;
/// Magic, version, origin and how many there are; then kind and header of each; then the checksum.
const PARTS_AT: usize = 8 + 4 + 16 + 1;
pub(crate) const RECORD_BYTES_MAX: usize = parts_bytes(SNAPSHOT_PARTS_MAX);

const fn parts_bytes(parts: usize) -> usize {
    PARTS_AT + parts * (1 + STORED_BYTES) + 4
}

/// One image as a record names it: the header object, bound by the hash of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) header: HeaderId,
    pub(crate) object_bytes: u64,
    pub(crate) tail_hash: Hash,
}

/// What a snapshot's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The snapshot, whatever headers it is stored in.
    pub(crate) origin: HeaderId,
    pub(crate) parts: Parts<Stored>,
}

impl Stored {
    pub(crate) fn of(header: &Header) -> Self {
        Self {
            header: header.id(),
            object_bytes: header.object_bytes(),
            tail_hash: header.tail_hash(),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.header.0.as_bytes());
        out.extend(self.object_bytes.to_le_bytes());
        out.extend(self.tail_hash.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, ObjectError> {
        Ok(Self {
            header: HeaderId(reader.uuid()?),
            object_bytes: reader.u64()?,
            tail_hash: reader.hash()?,
        })
    }
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
    /// Nothing for a trace alone.
    pub(crate) fn of(parts: &Parts<&Header>) -> Option<Self> {
        Some(Self {
            origin: parts.own()?.1.meta().origin,
            parts: parts.map(|_, header| Stored::of(header)),
        })
    }

    /// Is this the header that was committed as this part?
    pub(crate) fn is_of(&self, part: Part, header: &Header) -> bool {
        let same = self.parts.get(part) == Some(&Stored::of(header));
        let own = self.parts.own().map(|(own, _)| own);
        same && (own != Some(part) || header.meta().origin == self.origin)
    }

    /// How long one of these parts is, encoded.
    pub(crate) fn bytes_of<T>(parts: &Parts<T>) -> u64 {
        let bytes = match (parts.get(Part::Disk), parts.count()) {
            (Some(_), 1) => RECORD_BYTES,
            (_, count) => parts_bytes(count),
        };
        bytes as u64
    }

    pub(crate) fn encode(&self, name: &SnapshotName) -> Vec<u8> {
        let mut out = match (self.parts.get(Part::Disk), self.parts.count()) {
            (Some(disk), 1) => {
                let mut out = begin(RECORD_MAGIC, 2);
                disk.encode(&mut out);
                out.extend(self.origin.0.as_bytes());
                out
            }
            (_, count) => {
                let mut out = begin(RECORD_MAGIC, RECORD_VERSION);
                out.extend(self.origin.0.as_bytes());
                out.push(u8::try_from(count).expect("there are three kinds"));
                for (part, stored) in self.parts.iter() {
                    out.push(part.code());
                    stored.encode(&mut out);
                }
                out
            }
        };
        let crc = crc_with(&out, name.as_str());
        out.extend(crc.to_le_bytes());
        out
    }

    /// What `damaged` was, if that can be told from the headers that there are: most of its bytes are
    /// the same, and its checksum is. The name is under the checksum, so that what was exchanged is not
    /// taken for what was damaged.
    pub(crate) fn was(
        damaged: &[u8],
        name: &SnapshotName,
        headers: &[Arc<Header>],
    ) -> Option<(Self, Vec<u8>)> {
        let most_like = |at: usize| {
            let there = damaged.get(at..at + STORED_BYTES)?;
            let like = |header: &&Arc<Header>| {
                let mut bytes = Vec::with_capacity(STORED_BYTES);
                Stored::of(header).encode(&mut bytes);
                same_bytes(&bytes, there)
            };
            headers.iter().max_by_key(like)
        };
        let as_it_was = |record: &Self| {
            let bytes = record.encode(name);
            let same_end = bytes.last_chunk::<4>() == damaged.last_chunk::<4>();
            let is_it = bytes.len() == damaged.len()
                && same_end
                && same_bytes(&bytes, damaged) > bytes.len() / 2;
            is_it.then_some(bytes)
        };
        // The length says how many parts there were; which they were, the checksum.
        let mut kinds = (1..1u8 << SNAPSHOT_PARTS_MAX).filter_map(|kinds| {
            let of = Part::ALL
                .into_iter()
                .filter(|p| kinds & (1 << (p.code() - 1)) != 0);
            let mut at = if damaged.len() == RECORD_BYTES {
                12
            } else {
                PARTS_AT + 1
            };
            let mut parts: Option<Parts<&Header>> = None;
            for part in of {
                let header: &Header = most_like(at)?;
                at += 1 + STORED_BYTES;
                parts = Some(match parts {
                    None => Parts::one(part, header),
                    Some(parts) => parts.with(part, header),
                });
            }
            let record = Self::of(&parts?)?;
            let bytes = as_it_was(&record)?;
            Some((record, bytes))
        });
        kinds.next()
    }

    pub(crate) fn read(file: &dyn File, name: &SnapshotName) -> Result<Self, ObjectError> {
        let bytes = read_all(file, RECORD_BYTES_MAX as u64)?;
        let (version, mut reader) = open(&bytes, RECORD_MAGIC, RECORD_VERSION)?;
        match version {
            1 => {
                check_end(&bytes, RECORD_1_BYTES, "", &reader)?;
                let disk = Stored::decode(&mut reader)?;
                Ok(Self {
                    origin: disk.header,
                    parts: Parts::one(Part::Disk, disk),
                })
            }
            2 => {
                check_end(&bytes, RECORD_BYTES, name.as_str(), &reader)?;
                let disk = Stored::decode(&mut reader)?;
                Ok(Self {
                    origin: HeaderId(reader.uuid()?),
                    parts: Parts::one(Part::Disk, disk),
                })
            }
            _ => Self::read_parts(&bytes, name, reader),
        }
    }

    fn read_parts(
        bytes: &[u8],
        name: &SnapshotName,
        mut reader: Reader<'_>,
    ) -> Result<Self, ObjectError> {
        let origin = HeaderId(reader.uuid()?);
        let count = usize::from(reader.u8()?);
        if !(1..=SNAPSHOT_PARTS_MAX).contains(&count) {
            return Err(reader.refuse(format!(
                "{count} parts, where a snapshot has 1 to {SNAPSHOT_PARTS_MAX}"
            )));
        }
        check_end(bytes, parts_bytes(count), name.as_str(), &reader)?;
        let mut parts: Option<Parts<Stored>> = None;
        for _ in 0..count {
            let code = reader.u8()?;
            let Some(part) = Part::of_code(code) else {
                return Err(reader.refuse(format!("a part of kind {code}")));
            };
            let stored = Stored::decode(&mut reader)?;
            parts = Some(match parts {
                None => Parts::one(part, stored),
                Some(parts) if parts.iter().all(|(before, _)| before < part) => {
                    parts.with(part, stored)
                }
                Some(_) => return Err(reader.refuse(format!("the part {part} is out of order"))),
            });
        }
        match parts.filter(|parts| parts.own().is_some()) {
            Some(parts) => Ok(Self { origin, parts }),
            None => Err(reader.refuse("a trace, and nothing that it is of")),
        }
    }
}

/// How many bytes are the same, place by place.
fn same_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cowslip_block::files::Dir;
    use cowslip_sim::MemoryFs;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn stored(n: u8) -> Stored {
        Stored {
            header: HeaderId(Uuid::from_u128(u128::from(n) << 64 | 7)),
            object_bytes: 1000 + u64::from(n),
            tail_hash: Hash([n; Hash::LEN]),
        }
    }

    fn record(kinds: &[Part]) -> Record {
        let parts = kinds
            .iter()
            .fold(None, |parts: Option<Parts<Stored>>, part| {
                let of = stored(part.code());
                Some(parts.map_or(Parts::one(*part, of), |parts| parts.with(*part, of)))
            });
        Record {
            origin: HeaderId(Uuid::from_u128(99)),
            parts: parts.unwrap(),
        }
    }

    fn name() -> SnapshotName {
        "vm".parse().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Record, ObjectError> {
        let root: Arc<dyn Dir> = MemoryFs::new().root();
        let file = root.create("record").unwrap();
        file.write_at(bytes, 0).unwrap();
        Record::read(&*file, &name())
    }

    /// The bytes with another checksum, as somebody makes them who wants to be believed.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - 4);
        let crc = crc_with(&bytes, "vm");
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    #[test]
    fn each_set_of_parts_is_read_as_it_was_written() {
        use Part::{Disk, Memory, State, Trace};
        let sets: [(&[Part], u8, usize); 10] = [
            (&[Disk], 2, 72),
            (&[Memory], 3, 74),
            (&[State], 3, 74),
            (&[Disk, Memory], 3, 115),
            (&[Disk, State], 3, 115),
            (&[Memory, State], 3, 115),
            (&[Disk, Memory, State], 3, 156),
            (&[Disk, Trace], 3, 115),
            (&[Memory, Trace], 3, 115),
            (&[Disk, Memory, State, Trace], 3, RECORD_BYTES_MAX),
        ];
        for (parts, version, len) in sets {
            let bytes = record(parts).encode(&name());
            assert_eq!((bytes[8], bytes.len()), (version, len), "{parts:?}");
            assert_eq!(Record::bytes_of(&record(parts).parts), len as u64);
            assert_eq!(read(&bytes).unwrap(), record(parts));
        }
    }

    #[test]
    fn what_no_writer_makes_is_refused_though_its_checksum_holds() {
        let all = record(&Part::ALL).encode(&name());
        let part = |n: usize| PARTS_AT + n * (1 + STORED_BYTES);
        let put = |at: usize, byte: u8| {
            let mut bytes = all.clone();
            bytes[at] = byte;
            sealed(bytes)
        };
        read(&sealed(all.clone())).unwrap();
        let refused = [
            (put(PARTS_AT - 1, 0), "0 parts"),
            (put(PARTS_AT - 1, 5), "5 parts"),
            (put(PARTS_AT - 1, 2), "197 bytes instead of 115"),
            (put(part(0), 0), "kind 0"),
            (put(part(2), 5), "kind 5"),
            (put(part(1), 1), "disk is out of order"),
            (put(part(0), 2), "memory is out of order"),
            (put(part(2), 2), "memory is out of order"),
            (put(8, 4), "version 4"),
            (
                record(&[Part::Trace]).encode(&name()),
                "a trace, and nothing",
            ),
        ];
        for (bytes, why) in refused {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
        let more = sealed([&all[..], &[0]].concat());
        assert!(read(&more).is_err());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_refused() {
        for parts in [&Part::ALL[..], &[Part::Memory]] {
            let whole = record(parts).encode(&name());
            for at in 0..whole.len() {
                for mask in [1, 2, 3, 0x80, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= mask;
                    assert!(read(&bytes).is_err(), "byte {at} ^ {mask}");
                }
                assert!(read(&whole[..at]).is_err(), "cut to {at}");
            }
        }
    }

    proptest! {
        /// Also where magic, version and checksum are right: what is read is what would be written.
        #[test]
        fn of_any_bytes_only_what_a_writer_makes_is_read(version in 1u32..5, mut rest in prop::collection::vec(any::<u8>(), 0..200), count in 0u8..6, kinds in [0u8..6, 0u8..6, 0u8..6, 0u8..6]) {
            if let Some(byte) = rest.get_mut(16) {
                *byte = count;
            }
            for (n, kind) in kinds.into_iter().enumerate() {
                if let Some(byte) = rest.get_mut(17 + n * (1 + STORED_BYTES)) {
                    *byte = kind;
                }
            }
            if version == 3 && (1..=4).contains(&count) {
                rest.resize(parts_bytes(usize::from(count)) - 12, 5);
            }
            let mut bytes = begin(RECORD_MAGIC, version);
            bytes.extend(rest);
            let bytes = sealed([bytes, vec![0; 4]].concat()[..].to_vec());
            if let Ok(record) = read(&bytes) && version != 1 {
                // A disk alone may be of version 3 as well: nobody writes it so, and it means the same.
                let again = record.encode(&name());
                prop_assert!(again == bytes || version == 3 && record.parts.count() == 1);
            }
        }
    }
}
