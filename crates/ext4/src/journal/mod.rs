//! The journal (jbd2): what the next mount would replay.
//!
//! A file of blocks, numbered from 0, all in big-endian:
//!
//! ```text
//! 0 superblock | first .. ring of the log .. | fast commits, if there is room kept for them
//! log:   (descriptor, its blocks)* revoke* commit     a transaction; the next one has the next sequence number
//! ```
//!
//! The log starts where the superblock says and ends before the first block that is not the next one
//! (`scan.rs`). A block of it is **live** if the next mount reads it: the superblock, and the log up to the last
//! commit. All others are dead: free room for later transactions, or one that was being committed when somebody
//! looked. *That* one is not part of the file system's state; the kernel that was writing it still needs it.
//!
//! Where the file system does not say that it needs recovery, nothing is replayed and nothing but the
//! superblock is live. Where a copy of the superblock is used, which never says so, the journal decides.

mod fast_commit;
mod record;
mod scan;

use std::ops::Range;

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::features::Feature;
use crate::fields::Fields;
use crate::file_system::FileSystem;
use crate::mapping::Piece;
use crate::problems::{Problem, Problems};
use crate::view::Overlay;

const MAGIC: u32 = 0xc03b_3998;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const CHECKSUM_AT: usize = 0xfc;
const SUPERBLOCK_BYTES: usize = 1024;
/// Room for fast commits, where the superblock does not say how much.
const FAST_COMMIT_BLOCKS: u32 = 256;

const COMPAT_CHECKSUM: u32 = 1;
const BITS64: u32 = 2;
const ASYNC_COMMIT: u32 = 4;
const CSUM_V2: u32 = 8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = 0x3f;

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Its inode.
    pub inode: u32,
    /// Its blocks, all of them.
    pub blocks: u32,
    /// Where its log starts, as its superblock says: 0 where it is empty.
    pub start: u32,
    /// What its superblock says went wrong with it, 0 for nothing.
    pub error: i32,
    /// The transactions that would be replayed, oldest first.
    pub commits: Vec<Commit>,
    /// Blocks of the file system that would be written.
    pub replayed_blocks: u64,
    /// Copies in the log that would not be: a later one, or a revoke, makes them void.
    pub void_copies: u64,
    /// Fast commits that would be applied after that. No view shows what they change.
    pub fast_commits: u64,
    /// The blocks of the journal that the next mount would read, in order.
    pub live: Vec<Range<u64>>,
}

/// One transaction in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub sequence: u32,
    /// Blocks of the log that it takes.
    pub blocks: u32,
    /// When it was committed: seconds since 1970.
    pub time_secs: u64,
}

impl Journal {
    /// Is this block of the journal read by the next mount?
    pub fn is_live(&self, block: u64) -> bool {
        self.live.iter().any(|range| range.contains(&block))
    }

    /// How many are.
    pub fn live_blocks(&self) -> u64 {
        self.live.iter().map(|range| range.end - range.start).sum()
    }
}

/// What the journal's superblock says, checked, and where its blocks lie.
struct Layout {
    /// Runs by their place in the file: there, in the file system, length.
    runs: Vec<(u64, u64, u64)>,
    blocks: u32,
    first: u32,
    /// The block after the ring.
    end: u32,
    start: u32,
    sequence: u32,
    error: i32,
    incompat: u32,
    has_v1_checksums: bool,
    checksum_seed: u32,
}

impl Layout {
    fn has(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    fn has_checksums(&self) -> bool {
        self.has(CSUM_V2) || self.has(CSUM_V3)
    }

    /// Where a block of the journal lies in the file system.
    fn place(&self, block: u32) -> Option<u64> {
        let block = u64::from(block);
        let after = self
            .runs
            .partition_point(|(logical, _, _)| *logical <= block);
        let (logical, start, count) = self.runs[after.checked_sub(1)?];
        (block - logical < count).then_some(start + (block - logical))
    }

    fn read(&self, fs: &FileSystem<'_>, block: u32) -> Result<Vec<u8>, Ext4Error> {
        let place = self.place(block).ok_or_else(|| {
            Ext4Error::damaged("the journal", format!("its block {block} is not there"))
        })?;
        let mut buf = vec![0; fs.superblock().block_bytes as usize];
        fs.view().read_disk(place, &mut buf)?;
        Ok(buf)
    }

    /// The block of the ring that is so many further on.
    fn further(&self, block: u32, count: u32) -> u32 {
        let ring = u64::from(self.end - self.first);
        let at = u64::from(block - self.first) + u64::from(count);
        self.first + u32::try_from(at % ring).expect("less than the ring's length")
    }

    /// Of a block that is in the ring, and one that is so many blocks further: what lies between.
    fn ring_ranges(&self, from: u32, count: u32) -> Vec<Range<u64>> {
        let (from, count) = (u64::from(from), u64::from(count));
        let to_end = (u64::from(self.end) - from).min(count);
        let first = u64::from(self.first);
        let parts = [first..first + (count - to_end), from..from + to_end];
        parts.into_iter().filter(|part| !part.is_empty()).collect()
    }
}

/// The journal, and what it would write over the file system. `fs` is seen as it is on disk.
pub(crate) fn read(
    fs: &FileSystem<'_>,
    is_copy: bool,
    problems: &mut Problems,
) -> Result<Option<(Journal, Overlay)>, Ext4Error> {
    let number = fs.superblock().journal_inode;
    if number == 0 {
        return Ok(None);
    }
    let inode = fs.inode(number)?;
    let mut runs = Vec::new();
    let damage = fs.pieces(&inode, &mut |piece| {
        if let Piece::Data {
            logical,
            start,
            count,
            ..
        } = piece
        {
            runs.push((logical, start, count));
        }
        Ok(())
    })?;
    problems.merge(damage);
    runs.sort_unstable();
    let layout = layout(fs, runs)?;
    let mut journal = Journal {
        inode: number,
        blocks: layout.blocks,
        start: layout.start,
        error: layout.error,
        commits: Vec::new(),
        replayed_blocks: 0,
        void_copies: 0,
        fast_commits: 0,
        live: Vec::new(),
    };
    journal.live.push(0..1);
    let to_recover = fs.superblock().features.has(Feature::RECOVER) || is_copy;
    if layout.start == 0 || !to_recover {
        return Ok(Some((journal, Overlay::new())));
    }
    let log = scan::scan(fs, &layout, problems)?;
    let overlay = log.overlay(fs, &layout, problems)?;
    journal.void_copies = log.copies() - overlay.len() as u64;
    journal.replayed_blocks = overlay.len() as u64;
    journal
        .live
        .extend(layout.ring_ranges(layout.start, log.blocks()));
    if layout.has(FAST_COMMIT) {
        let found = fast_commit::scan(fs, &layout, log.next_sequence)?;
        journal.fast_commits = found.commits;
        if found.commits > 0 {
            journal.live.push(found.live);
            problems.note(Problem::FastCommit, || {
                format!(
                    "the journal holds {} fast commits, which no view shows",
                    found.commits
                )
            });
        }
    }
    journal.commits = log.commits;
    Ok(Some((journal, overlay)))
}

fn layout(fs: &FileSystem<'_>, runs: Vec<(u64, u64, u64)>) -> Result<Layout, Ext4Error> {
    let refuse = |why: String| Ext4Error::damaged("the journal's superblock", why);
    let mut layout = Layout {
        runs,
        blocks: 0,
        first: 0,
        end: 0,
        start: 0,
        sequence: 0,
        error: 0,
        incompat: 0,
        has_v1_checksums: false,
        checksum_seed: 0,
    };
    let raw = layout.read(fs, 0)?;
    let f = Fields(&raw);
    let kind = f.be32(4);
    if f.be32(0) != MAGIC || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return Err(refuse("it is none".into()));
    }
    if f.be32(0x0c) != fs.superblock().block_bytes {
        return Err(refuse(format!("it has blocks of {} bytes", f.be32(0x0c))));
    }
    (layout.blocks, layout.first) = (f.be32(0x10), f.be32(0x14));
    (layout.sequence, layout.start) = (f.be32(0x18), f.be32(0x1c));
    layout.error = f.be32(0x20).cast_signed();
    if kind == SUPERBLOCK_V2 {
        layout.has_v1_checksums = f.be32(0x24) & COMPAT_CHECKSUM != 0;
        layout.incompat = f.be32(0x28);
        layout.checksum_seed = crc32c(!0, f.slice(0x30, 16));
    }
    if layout.incompat & !KNOWN != 0 {
        let what = format!("a journal with features {:#x}", layout.incompat);
        return Err(Ext4Error::unsupported(what));
    }
    if layout.has_checksums() {
        let parts = [
            f.slice(0, CHECKSUM_AT),
            &[0; 4],
            f.slice(CHECKSUM_AT + 4, SUPERBLOCK_BYTES - CHECKSUM_AT - 4),
        ];
        if parts.iter().fold(!0, |crc, part| crc32c(crc, part)) != f.be32(CHECKSUM_AT) {
            return Err(refuse("its checksum does not match".into()));
        }
    }
    let kept = match (layout.has(FAST_COMMIT), f.be32(0x54)) {
        (false, _) => 0,
        (true, 0) => FAST_COMMIT_BLOCKS,
        (true, blocks) => blocks,
    };
    layout.end = layout.blocks.saturating_sub(kept);
    let ring = layout.first..layout.end;
    let in_ring = layout.start == 0 || ring.contains(&layout.start);
    if layout.first == 0
        || ring.is_empty()
        || !in_ring
        || u64::from(layout.blocks) > fs.superblock().blocks
    {
        let found = format!(
            "{} blocks, the log {ring:?} from {} on",
            layout.blocks, layout.start
        );
        return Err(refuse(found));
    }
    Ok(layout)
}
