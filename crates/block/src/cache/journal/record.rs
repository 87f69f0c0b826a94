//! One record of the journal: its bytes, and what it says. The layout stands in `mod.rs`.

use crate::units::BlockRange;

const RECORD_HEAD: usize = 32;
/// The most blocks that one `dirty` record speaks of.
pub(in crate::cache) const RECORD_BLOCKS_MAX: u64 = 64;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Mark {
    /// These blocks hold bytes; the crc32c of each.
    Dirty(BlockRange, Vec<u32>),
    /// These blocks read as zeros.
    Zero(BlockRange),
    /// As zero, with the room kept.
    Provisioned(BlockRange),
    /// All records before this number have their bytes on disk.
    Flushed(u64),
    /// Nothing follows.
    Closed,
}

pub(super) fn encode(mark: &Mark, sequence: u64) -> Vec<u8> {
    let (kind, start, count, crcs): (u8, u64, u64, &[u32]) = match mark {
        Mark::Dirty(r, crcs) => (1, r.start.0, r.count().0, crcs),
        Mark::Zero(r) => (2, r.start.0, r.count().0, &[]),
        Mark::Flushed(upto) => (3, *upto, 0, &[]),
        Mark::Closed => (4, 0, 0, &[]),
        Mark::Provisioned(r) => (5, r.start.0, r.count().0, &[]),
    };
    let mut record = Vec::with_capacity(RECORD_HEAD + crcs.len() * 4);
    record.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0]);
    record.extend_from_slice(&sequence.to_le_bytes());
    record.extend_from_slice(&start.to_le_bytes());
    record.extend_from_slice(&count.to_le_bytes());
    for crc in crcs {
        record.extend_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c::crc32c(&record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    record
}

/// The record at the start of `bytes`, if it is whole and has this number; and its length.
pub(super) fn decode(bytes: &[u8], sequence: u64) -> Option<(Mark, usize)> {
    let head = bytes.get(..RECORD_HEAD)?;
    let (start, count) = (u64_at(head, 16), u64_at(head, 24));
    let range = BlockRange::new(start, start.checked_add(count)?);
    let crcs = match head[4] {
        1 if count <= RECORD_BLOCKS_MAX => usize::try_from(count).ok()?,
        1 => return None,
        _ => 0,
    };
    let len = RECORD_HEAD + crcs * 4;
    let record = bytes.get(..len)?;
    if u32_at(head, 0) != crc32c::crc32c(&record[4..]) || u64_at(head, 8) != sequence {
        return None;
    }
    let mark = match head[4] {
        1 => Mark::Dirty(
            range,
            (0..crcs)
                .map(|i| u32_at(record, RECORD_HEAD + i * 4))
                .collect(),
        ),
        2 => Mark::Zero(range),
        3 => Mark::Flushed(start),
        4 => Mark::Closed,
        5 => Mark::Provisioned(range),
        _ => return None,
    };
    Some((mark, len))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
