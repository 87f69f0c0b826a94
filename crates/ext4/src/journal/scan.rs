//! The log, walked from its start to the last commit, and what it would write.
//!
//! A transaction counts once its commit block is found. What comes after is either left from an earlier round of the ring
//! or of a commit that was not finished; the two look alike, and neither counts. A block whose checksum does not match ends the
//! log; where the commit that follows it is *younger* than the last one, that is damage, and told.
//!
//! The walk visits each block of the ring once at most: a log that goes on longer leads in a circle.

use std::collections::HashMap;

use crate::error::Ext4Error;
use crate::fields::Fields;
use crate::file_system::FileSystem;
use crate::journal::record::{self, Tag};
use crate::journal::{ASYNC_COMMIT, Commit, Layout, MAGIC};
use crate::problems::{Problem, Problems};
use crate::view::{Copy, Overlay};

/// A block that the log has a copy of.
struct Logged {
    tag: Tag,
    sequence: u32,
    /// The block of the journal that holds it.
    at: u32,
}

/// What was found.
pub(super) struct Log {
    pub(super) commits: Vec<Commit>,
    /// What the next transaction would be called.
    pub(super) next_sequence: u32,
    copies: Vec<Logged>,
    /// Blocks that lose what older transactions have of them: the last one that says so.
    revoked: HashMap<u64, u32>,
}

/// One transaction, as far as it has been read.
struct Pending {
    blocks: u32,
    copies: Vec<Logged>,
    revoked: Vec<u64>,
    /// A block of it does not match its checksum.
    is_suspect: bool,
    v1_checksum: u32,
}

impl Pending {
    fn new() -> Self {
        Self {
            blocks: 0,
            copies: Vec::new(),
            revoked: Vec::new(),
            is_suspect: false,
            v1_checksum: !0,
        }
    }
}

/// Walks the log.
pub(super) fn scan(
    fs: &FileSystem<'_>,
    layout: &Layout,
    problems: &mut Problems,
) -> Result<Log, Ext4Error> {
    let mut log = Log {
        commits: Vec::new(),
        next_sequence: layout.sequence,
        copies: Vec::new(),
        revoked: HashMap::new(),
    };
    let (mut at, mut left) = (layout.start, layout.end - layout.first);
    let mut pending = Pending::new();
    while left > 0 {
        let block = layout.read(fs, at)?;
        let f = Fields(&block);
        if f.be32(0) != MAGIC || f.be32(8) != log.next_sequence {
            return Ok(log);
        }
        let mut taken = 1;
        match f.be32(4) {
            record::DESCRIPTOR => {
                taken += log.descriptor(fs, layout, &mut pending, at, &block)?;
            }
            record::REVOKE => {
                pending.is_suspect |= !layout.block_is_whole(&block);
                pending
                    .revoked
                    .extend(layout.revoked(&block).unwrap_or_default());
            }
            record::COMMIT => {
                pending.blocks += 1;
                let transaction = std::mem::replace(&mut pending, Pending::new());
                if !log.commit(layout, transaction, &block, problems) {
                    return Ok(log);
                }
                pending.blocks = 0;
                at = layout.further(at, 1);
                left -= 1;
                continue;
            }
            _ => return Ok(log),
        }
        pending.blocks += taken;
        at = layout.further(at, taken);
        left = left.saturating_sub(taken);
    }
    problems.note(Problem::Journal, || {
        "its log is longer than the journal".into()
    });
    Ok(log)
}

impl Log {
    /// Takes a descriptor; how many blocks follow it.
    fn descriptor(
        &mut self,
        fs: &FileSystem<'_>,
        layout: &Layout,
        pending: &mut Pending,
        at: u32,
        block: &[u8],
    ) -> Result<u32, Ext4Error> {
        pending.is_suspect |= !layout.block_is_whole(block);
        let tags = layout.tags(block);
        if layout.has_v1_checksums {
            pending.v1_checksum = record::crc32_be(pending.v1_checksum, block);
        }
        let mut count = 0;
        for tag in tags {
            count += 1;
            let at = layout.further(at, count);
            if layout.has_v1_checksums {
                let copy = layout.read(fs, at)?;
                pending.v1_checksum = record::crc32_be(pending.v1_checksum, &copy);
            }
            pending.copies.push(Logged {
                tag,
                sequence: self.next_sequence,
                at,
            });
        }
        Ok(count)
    }

    /// Takes a whole transaction, unless it is none. Does the log go on?
    fn commit(
        &mut self,
        layout: &Layout,
        transaction: Pending,
        block: &[u8],
        problems: &mut Problems,
    ) -> bool {
        let (sequence, time_secs) = (self.next_sequence, record::commit_time(block));
        let v1_matches =
            !layout.has_v1_checksums || record::v1_matches(block, transaction.v1_checksum);
        let commit_matches = layout.commit_is_whole(block) && v1_matches;
        if transaction.is_suspect || !commit_matches {
            let last = self.commits.last().map_or(0, |commit| commit.time_secs);
            // A commit that is written together with what it commits may be there alone.
            let may_be_torn = layout.has(ASYNC_COMMIT) && !transaction.is_suspect;
            if time_secs >= last && !may_be_torn {
                problems.note(Problem::Journal, || {
                    format!("the checksums of transaction {sequence} do not match")
                });
            }
            return false;
        }
        self.commits.push(Commit {
            sequence,
            blocks: transaction.blocks,
            time_secs,
        });
        self.copies.extend(transaction.copies);
        // Sequence numbers go up, so that the last one stays.
        self.revoked.extend(
            transaction
                .revoked
                .into_iter()
                .map(|block| (block, sequence)),
        );
        self.next_sequence = sequence.wrapping_add(1);
        true
    }

    /// Blocks that the log takes.
    pub(super) fn blocks(&self) -> u32 {
        self.commits.iter().map(|commit| commit.blocks).sum()
    }

    /// Copies of blocks that it has.
    pub(super) fn copies(&self) -> u64 {
        self.copies.len() as u64
    }

    /// What would be written: of each block the last copy, unless it was revoked as late or later.
    pub(super) fn overlay(
        &self,
        fs: &FileSystem<'_>,
        layout: &Layout,
        problems: &mut Problems,
    ) -> Result<Overlay, Ext4Error> {
        let mut overlay = Overlay::new();
        for Logged { tag, sequence, at } in &self.copies {
            let revoked = self.revoked.get(&tag.block);
            if revoked.is_some_and(|last| sequence.wrapping_sub(*last).cast_signed() <= 0) {
                continue;
            }
            let block = tag.block;
            let place = layout.place(*at).filter(|_| block < fs.superblock().blocks);
            let Some(place) = place else {
                problems.note(Problem::Journal, || format!("it would write block {block}"));
                continue;
            };
            if layout.has_checksums()
                && !layout.copy_is_whole(*tag, *sequence, &layout.read(fs, *at)?)
            {
                problems.note(Problem::Journal, || {
                    format!("the checksum of its copy of block {block} does not match")
                });
                continue;
            }
            overlay.insert(
                block,
                Copy {
                    at: place,
                    escaped: tag.escaped,
                },
            );
        }
        Ok(overlay)
    }
}
