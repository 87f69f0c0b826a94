//! The journal of one cache: which block changed its state, in order, on disk before the reply.
//!
//! A cache's states live in memory; this file lets a killed server find them again. It is a list
//! of *segments*, `NAME.journal-K`, preallocated and only ever appended to, and at most one
//! *checkpoint*, `NAME.state-K`, which holds all states as they were before segment K. All
//! numbers are little-endian.
//!
//! ```text
//! segment  0 magic "CSLPJRNL"  8 version u32  12 block size u32  16 boot id 16 B
//!         32 segment u64      40 first sequence number u64  48 zero  60 crc32c(0..60)
//!         64 records
//! record   0 crc32c(4..end)    4 kind u8, 3 zero bytes  8 sequence u64  16 start u64  24 count u64
//!         32 for kind 1 only: crc32c of each block as it was written, count x u32
//! kinds    1 dirty   blocks start.. hold written bytes
//!          2 zero    blocks start.. read as zeros; the file may hold their old bytes
//!          3 flushed all records before sequence `start` have their bytes on disk
//!          4 closed  the cache is frozen, drained and on disk: nothing follows
//!          5 provisioned  as zero, and the room in the file is to be kept
//! checkpoint  0 magic "CSLPSTAT"  8 version u32  12 block size u32  16 segment u64
//!         24 next sequence number u64  32 states: length u64  40 crc32c(0..40), crc32c(states)
//!         48 states (StateTracker::encode)
//! ```
//!
//! Invariants (numbers of ARCHITECTURE.md):
//! - 1: a record is appended after its bytes are in the cache file, and before the reply.
//! - 2: after a kill, all of it counts (the page cache survives). After a change of boot id a
//!   record that no `flushed` covers counts only if the bytes in the cache file match its crc.
//! - 10: room for `zero` records is always allocated ahead ([`RESERVE_BYTES`]), so that a full disk
//!   can still be trimmed; `dirty` records leave that reserve alone.
//!
//! Replay stops at the first record that is not the next one: a torn or lost tail was never flushed.

mod record;

use std::io;
use std::sync::Arc;

pub(super) use self::record::{Mark, RECORD_BLOCKS_MAX};
use self::record::{decode, encode, u32_at, u64_at};
use crate::files::{Access, Dir, File, read_all, replace_file};
use crate::units::BlockSize;

const SEGMENT_MAGIC: &[u8; 8] = b"CSLPJRNL";
const STATE_MAGIC: &[u8; 8] = b"CSLPSTAT";
const VERSION: u32 = 1;
const SEGMENT_HEAD: usize = 64;
const STATE_HEAD: usize = 48;
/// Room that is allocated at a time.
const STEP_BYTES: u64 = 256 << 10;
/// Room that only `zero`, `flushed` and `closed` records may use: 2,048 of them.
const RESERVE_BYTES: u64 = 64 << 10;
/// A segment is never longer; a cache starts a new one long before.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Segments and records are numbered below this: a million records a second get there in 146,000
/// years, and no sum of one such number and another overflows.
const NUMBER_MAX: u64 = 1 << 62;
/// A checkpoint is never longer: 2^34 blocks of four states, all scattered, take 6 GiB of roaring;
/// this is what a machine may reasonably hold.
const STATE_BYTES_MAX: u64 = 8 << 30;

/// The open end of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<dyn File>,
    segment: u64,
    position: u64,
    allocated: u64,
    next_sequence: u64,
}

/// A segment that has not begun.
pub(super) struct Prepared {
    file: Arc<dyn File>,
    segment: u64,
}

/// All that a journal on disk says.
pub(super) struct Replay {
    /// The states before the first mark, as `StateTracker::encode` made them.
    pub(super) states: Option<Vec<u8>>,
    /// What changed since, in order, each with whether a flush covers it.
    pub(super) marks: Vec<(Mark, bool)>,
    /// Written by this boot of the machine.
    pub(super) same_boot: bool,
    /// The segments before the last: a process that was killed may not have synced them.
    pub(super) older: Vec<Arc<dyn File>>,
    /// The end, to go on from.
    pub(super) journal: Journal,
}

/// What all parts of one journal share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) dir: &'a dyn Dir,
    pub(super) cache: &'a str,
    pub(super) block_size: BlockSize,
    pub(super) boot_id: [u8; 16],
}

impl Place<'_> {
    fn segment_name(&self, segment: u64) -> String {
        format!("{}.journal-{segment}", self.cache)
    }

    fn state_name(&self, segment: u64) -> String {
        format!("{}.state-{segment}", self.cache)
    }

    /// Creates the first segment; durable when this returns, its name included.
    pub(super) fn create(&self) -> io::Result<Journal> {
        let journal = self.prepare(0)?.start(self, 0)?;
        journal.file.sync()?;
        Ok(journal)
    }

    /// Makes the file of a segment, allocated and its name durable, but without a head: it
    /// counts for nothing yet. A file that has the name already is what a crash left behind; no
    /// record in it was acknowledged.
    pub(super) fn prepare(&self, segment: u64) -> io::Result<Prepared> {
        let name = self.segment_name(segment);
        match self.dir.remove(&name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = self.dir.create(&name)?;
        let fill = || {
            file.allocate(0, STEP_BYTES)?;
            file.sync()?;
            self.dir.sync()
        };
        fill().inspect_err(|_| drop(self.dir.remove(&name)))?;
        Ok(Prepared { file, segment })
    }

    fn segment_head(&self, segment: u64, first_sequence: u64) -> [u8; SEGMENT_HEAD] {
        let mut head = [0; SEGMENT_HEAD];
        head[0..8].copy_from_slice(SEGMENT_MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..16].copy_from_slice(&self.block_size.bytes().to_le_bytes());
        head[16..32].copy_from_slice(&self.boot_id);
        head[32..40].copy_from_slice(&segment.to_le_bytes());
        head[40..48].copy_from_slice(&first_sequence.to_le_bytes());
        let crc = crc32c::crc32c(&head[..60]);
        head[60..64].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// Writes the checkpoint that stands for all before `segment`; durable when this returns.
    pub(super) fn write_state(&self, segment: u64, next: u64, states: &[u8]) -> io::Result<()> {
        let mut bytes = vec![0; STATE_HEAD];
        bytes[0..8].copy_from_slice(STATE_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.block_size.bytes().to_le_bytes());
        bytes[16..24].copy_from_slice(&segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&next.to_le_bytes());
        bytes[32..40].copy_from_slice(&(states.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes[44..48].copy_from_slice(&crc32c::crc32c(states).to_le_bytes());
        bytes.extend_from_slice(states);
        replace_file(self.dir, &self.state_name(segment), &bytes)
    }

    /// Removes what the checkpoint before `segment` made superfluous.
    pub(super) fn remove_before(&self, segment: u64) -> io::Result<()> {
        for name in self.dir.list()? {
            let old = self
                .number_in(&name, "journal")
                .or_else(|| self.number_in(&name, "state"));
            if old.is_some_and(|old| old < segment) {
                self.dir.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes all files of this journal.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        self.remove_before(u64::MAX)
    }

    fn number_in(&self, name: &str, kind: &str) -> Option<u64> {
        name.strip_prefix(self.cache)?
            .strip_prefix(&format!(".{kind}-"))?
            .parse()
            .ok()
    }

    /// Reads the journal, and opens its end.
    pub(super) fn replay(&self) -> io::Result<Replay> {
        let names = self.dir.list()?;
        let newest = names
            .iter()
            .filter_map(|n| self.number_in(n, "state"))
            .max();
        let (mut segment, mut next, states) = match newest {
            Some(segment) => self.read_state(segment)?,
            None => (0, 0, None),
        };
        let mut found = Vec::new();
        let mut same_boot = true;
        let (mut older, mut end) = (Vec::new(), None::<Journal>);
        while names.contains(&self.segment_name(segment)) {
            let file = self
                .dir
                .open(&self.segment_name(segment), Access::ReadWrite)?;
            let bytes = read_all(&*file, SEGMENT_BYTES_MAX)?;
            // A gap: the tail of the segment before was lost, so nothing here was ever flushed.
            let Some((boot_id, first)) = self.check_head(&bytes, segment)? else {
                break;
            };
            if first != next {
                break;
            }
            same_boot &= boot_id == self.boot_id;
            let mut at = SEGMENT_HEAD;
            while let Some((mark, len)) = decode(&bytes[at..], next) {
                found.push((next, mark));
                next += 1;
                at += len;
            }
            let (position, allocated) = (at as u64, bytes.len() as u64);
            let before = end.replace(Journal {
                file,
                segment,
                position,
                allocated,
                next_sequence: next,
            });
            older.extend(before.map(|journal| journal.file));
            segment += 1;
        }
        let Some(journal) = end else {
            return Err(corrupt(
                &self.segment_name(segment),
                "is missing or cut short",
            ));
        };
        let flushed = found.iter().filter_map(|(_, m)| match m {
            Mark::Flushed(upto) => Some(*upto),
            _ => None,
        });
        let flushed = flushed.max().unwrap_or(0);
        let marks = found
            .into_iter()
            .map(|(n, mark)| (mark, n < flushed))
            .collect();
        Ok(Replay {
            states,
            marks,
            same_boot,
            older,
            journal,
        })
    }

    /// The boot id and the first sequence number; nothing where the head never reached the disk.
    fn check_head(&self, bytes: &[u8], segment: u64) -> io::Result<Option<([u8; 16], u64)>> {
        let Some(head) = bytes.get(..SEGMENT_HEAD) else {
            return Ok(None);
        };
        if head.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let name = self.segment_name(segment);
        if u32_at(head, 60) != crc32c::crc32c(&head[..60]) || &head[..8] != SEGMENT_MAGIC {
            return Err(corrupt(&name, "has a damaged head"));
        }
        check_version(&name, u32_at(head, 8))?;
        if u32_at(head, 12) != self.block_size.bytes() || u64_at(head, 32) != segment {
            return Err(corrupt(&name, "belongs to another cache"));
        }
        Ok(Some((
            head[16..32].try_into().expect("16 bytes"),
            u64_at(head, 40),
        )))
    }

    /// The segment that follows the checkpoint, its first sequence number, and the states.
    fn read_state(&self, segment: u64) -> io::Result<(u64, u64, Option<Vec<u8>>)> {
        let name = self.state_name(segment);
        let mut bytes = read_all(&*self.dir.open(&name, Access::Read)?, STATE_BYTES_MAX)?;
        if bytes.len() < STATE_HEAD || &bytes[..8] != STATE_MAGIC {
            return Err(corrupt(&name, "is no checkpoint"));
        }
        let states = bytes.split_off(STATE_HEAD);
        if u32_at(&bytes, 40) != crc32c::crc32c(&bytes[..40])
            || u32_at(&bytes, 44) != crc32c::crc32c(&states)
            || u64_at(&bytes, 32) != states.len() as u64
        {
            return Err(corrupt(&name, "does not match its checksum"));
        }
        check_version(&name, u32_at(&bytes, 8))?;
        if u32_at(&bytes, 12) != self.block_size.bytes() || u64_at(&bytes, 16) != segment {
            return Err(corrupt(&name, "belongs to another cache"));
        }
        let next = u64_at(&bytes, 24);
        if segment >= NUMBER_MAX || next >= NUMBER_MAX {
            return Err(corrupt(&name, "has numbers that nobody gets to"));
        }
        Ok((segment, next, Some(states)))
    }
}

impl Prepared {
    /// Writes the head: the next record goes here. The head is durable with the first sync.
    pub(super) fn start(self, place: &Place<'_>, next_sequence: u64) -> io::Result<Journal> {
        let Self { file, segment } = self;
        file.write_at(&place.segment_head(segment, next_sequence), 0)?;
        let position = SEGMENT_HEAD as u64;
        Ok(Journal {
            file,
            segment,
            position,
            allocated: STEP_BYTES,
            next_sequence,
        })
    }
}

impl Journal {
    /// Appends one record. A failed append leaves the journal as it was.
    pub(super) fn append(&mut self, mark: &Mark) -> io::Result<()> {
        let record = encode(mark, self.next_sequence);
        let len = record.len() as u64;
        let reserve = if matches!(mark, Mark::Dirty(..)) {
            RESERVE_BYTES
        } else {
            0
        };
        let wants_room = self.position + len + RESERVE_BYTES > self.allocated;
        if wants_room && self.allocated + STEP_BYTES <= SEGMENT_BYTES_MAX {
            match self.file.allocate(self.allocated, STEP_BYTES) {
                Ok(()) => self.allocated += STEP_BYTES,
                Err(e) if e.kind() == io::ErrorKind::StorageFull => {}
                Err(e) => return Err(e),
            }
        }
        if self.position + len + reserve > self.allocated {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Err(error) = self.file.write_at(&record, self.position) {
            // It may be there all the same, and must not be found: a cache that goes on writes in place, without a
            // record, what this one says is zero. Where there is no room for four bytes, there was none for it.
            return Err(match self.file.write_at(&[0; 4], self.position) {
                Err(worse) if worse.kind() != io::ErrorKind::StorageFull => worse,
                _ => error,
            });
        }
        self.position += len;
        self.next_sequence += 1;
        Ok(())
    }

    pub(super) fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    pub(super) fn segment(&self) -> u64 {
        self.segment
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Bytes of records in the open segment.
    pub(super) fn len(&self) -> u64 {
        self.position
    }
}

fn check_version(name: &str, version: u32) -> io::Result<()> {
    if version == VERSION {
        return Ok(());
    }
    let why = format!("{name} has version {version}; this release reads {VERSION}");
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

fn corrupt(name: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealDir;
    use crate::units::BlockRange;

    fn place(dir: &dyn Dir) -> Place<'_> {
        Place {
            dir,
            cache: "cache-1",
            block_size: BlockSize::DISK,
            boot_id: [7; 16],
        }
    }

    fn begin(dir: &dyn Dir, segment: u64, next: u64) -> Journal {
        place(dir)
            .prepare(segment)
            .unwrap()
            .start(&place(dir), next)
            .unwrap()
    }

    fn marks() -> Vec<Mark> {
        vec![
            Mark::Dirty(BlockRange::new(3, 5), vec![1, 2]),
            Mark::Zero(BlockRange::new(0, 1 << 34)),
            Mark::Flushed(2),
            Mark::Provisioned(BlockRange::new(9, 10)),
            Mark::Closed,
        ]
    }

    #[test]
    fn what_was_appended_is_replayed_with_the_flushed_part_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let mut journal = place(&dir).create().unwrap();
        for mark in marks() {
            journal.append(&mark).unwrap();
        }
        let replay = place(&dir).replay().unwrap();
        let flushed: Vec<bool> = replay.marks.iter().map(|(_, f)| *f).collect();
        assert_eq!(
            replay.marks.into_iter().map(|(m, _)| m).collect::<Vec<_>>(),
            marks()
        );
        assert_eq!(flushed, [true, true, false, false, false]);
        assert!(replay.same_boot);
        assert_eq!(replay.journal.next_sequence(), 5);
        let other = Place {
            boot_id: [8; 16],
            ..place(&dir)
        };
        assert!(!other.replay().unwrap().same_boot);
    }

    #[test]
    fn replay_stops_at_every_torn_tail_and_goes_on_from_there() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let mut journal = place(&dir).create().unwrap();
        let mut ends = vec![journal.len()];
        for mark in marks() {
            journal.append(&mark).unwrap();
            ends.push(journal.len());
        }
        let last = *ends.last().unwrap();
        for cut in ends[0]..last {
            journal.file.write_at(&[0xff], cut).unwrap();
            let replay = place(&dir).replay().unwrap();
            let whole = ends.iter().filter(|e| **e <= cut).count() - 1;
            assert_eq!(replay.marks.len(), whole, "damage at {cut}");
            assert_eq!(replay.journal.len(), ends[whole]);
            // Put it right again.
            for (i, mark) in marks().iter().enumerate() {
                journal
                    .file
                    .write_at(&encode(mark, i as u64), ends[i])
                    .unwrap();
            }
        }
    }

    #[test]
    fn a_segment_whose_predecessor_lost_its_tail_does_not_count() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let mut first = place(&dir).create().unwrap();
        first.append(&Mark::Zero(BlockRange::new(0, 1))).unwrap();
        let second_at = first.position;
        first.append(&Mark::Zero(BlockRange::new(1, 2))).unwrap();
        let mut second = begin(&dir, 1, first.next_sequence());
        second.append(&Mark::Zero(BlockRange::new(2, 3))).unwrap();
        assert_eq!(place(&dir).replay().unwrap().marks.len(), 3);
        first.file.write_at(&[0; 40], second_at).unwrap();
        assert_eq!(place(&dir).replay().unwrap().marks.len(), 1);
    }

    #[test]
    fn numbers_that_nobody_gets_to_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        for (segment, next) in [
            (0, u64::MAX),
            (u64::MAX, 0),
            (NUMBER_MAX, 0),
            (0, NUMBER_MAX),
        ] {
            place(&dir).write_state(segment, next, b"states").unwrap();
            assert!(
                place(&dir).replay().is_err(),
                "segment {segment}, record {next}"
            );
            place(&dir).remove_all().unwrap();
        }
    }

    #[test]
    fn a_checkpoint_stands_for_what_was_before_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        let mut first = place(&dir).create().unwrap();
        first.append(&Mark::Zero(BlockRange::new(0, 1))).unwrap();
        begin(&dir, 1, 1);
        place(&dir).write_state(1, 1, b"states").unwrap();
        place(&dir).remove_before(1).unwrap();
        let replay = place(&dir).replay().unwrap();
        assert_eq!(replay.states.as_deref(), Some(&b"states"[..]));
        assert_eq!((replay.marks.len(), replay.journal.segment()), (0, 1));
        let file = dir.open("cache-1.state-1", Access::ReadWrite).unwrap();
        for at in 0..file.len().unwrap() {
            let mut byte = [0];
            file.read_at(&mut byte, at).unwrap();
            file.write_at(&[!byte[0]], at).unwrap();
            assert!(
                place(&dir).replay().is_err(),
                "flipped byte {at} of the checkpoint"
            );
            file.write_at(&byte, at).unwrap();
        }
    }
}
