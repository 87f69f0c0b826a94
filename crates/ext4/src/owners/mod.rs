//! [`Owners`]: whose each block is.
//!
//! Every block has exactly one owner. Where several say that a block is theirs, the layout comes before the journal, the journal before
//! inodes, and a lower inode before a higher one. Where an inode and a bitmap disagree, the inode decides; both are
//! counted ([`Disagreements`]).
//!
//! With bigalloc, the blocks of a cluster that nothing points at belong to what is just before them in the
//! cluster, or else just after.
//!
//! Built in one pass over the inode tables (`scan.rs`), which collects claims (`claims.rs`), and one over the block
//! bitmaps, in which the claims are resolved (`resolve.rs`) and what nobody claims is told apart (`fill.rs`). Memory: 24
//! bytes for each run that an inode or the layout claims while it is built, and 16 bytes for each run afterwards.

mod claims;
mod fill;
mod resolve;
mod scan;

use cowslip_block::ByteRange;

use crate::error::Ext4Error;
use crate::file_system::FileSystem;
use crate::problems::Problems;
use claims::Code;

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A superblock or a copy of it; the boot sector before it; the block of multiple mount protection.
    Superblock,
    /// Group descriptors, copies of them, and blocks reserved for more.
    Descriptors,
    /// A block bitmap or an inode bitmap.
    Bitmap,
    /// An inode table.
    InodeTable,
    /// A block of the journal.
    Journal {
        /// The next mount would read it.
        live: bool,
    },
    /// A directory's own block.
    Directory {
        /// Its inode.
        inode: u32,
    },
    /// Data of a file, or the target of a symbolic link.
    File {
        /// Its inode.
        inode: u32,
    },
    /// Extended attributes.
    Xattr {
        /// The first inode that has them.
        inode: u32,
    },
    /// A block that lists the blocks of an inode: of its extent tree, or an indirect one.
    ExtentTree {
        /// The inode.
        inode: u32,
    },
    /// Anything of an inode without a name, which is deleted once nobody has it open.
    Orphan {
        /// The inode.
        inode: u32,
    },
    /// Anything of an inode that the file system keeps for itself: quota, reserved descriptors, orphans, bad blocks.
    Special {
        /// The inode.
        inode: u32,
    },
    /// Nobody's: the bitmap calls it free, and no inode has it.
    Free,
    /// In use, as the bitmap says, and nobody has it.
    Unknown,
    /// Past the end of the file system.
    Outside,
}

/// Owners without their inodes: what totals are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "as those of Owner")]
pub enum Class {
    Superblock,
    Descriptors,
    Bitmap,
    InodeTable,
    JournalLive,
    JournalDead,
    Directory,
    File,
    Xattr,
    ExtentTree,
    Orphan,
    Special,
    Free,
    Unknown,
    Outside,
}

impl Class {
    /// All of them, each at its own number.
    pub const ALL: [Self; 15] = [
        Self::Superblock,
        Self::Descriptors,
        Self::Bitmap,
        Self::InodeTable,
        Self::JournalLive,
        Self::JournalDead,
        Self::Directory,
        Self::File,
        Self::Xattr,
        Self::ExtentTree,
        Self::Orphan,
        Self::Special,
        Self::Free,
        Self::Unknown,
        Self::Outside,
    ];

    /// Its name, for programs and people alike.
    pub fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Descriptors => "descriptors",
            Self::Bitmap => "bitmap",
            Self::InodeTable => "inode_table",
            Self::JournalLive => "journal_live",
            Self::JournalDead => "journal_dead",
            Self::Directory => "directory",
            Self::File => "file",
            Self::Xattr => "xattr",
            Self::ExtentTree => "extent_tree",
            Self::Orphan => "orphan",
            Self::Special => "special",
            Self::Free => "free",
            Self::Unknown => "unknown",
            Self::Outside => "outside",
        }
    }
}

impl Owner {
    /// Its class.
    pub fn class(self) -> Class {
        match self {
            Self::Superblock => Class::Superblock,
            Self::Descriptors => Class::Descriptors,
            Self::Bitmap => Class::Bitmap,
            Self::InodeTable => Class::InodeTable,
            Self::Journal { live: true } => Class::JournalLive,
            Self::Journal { live: false } => Class::JournalDead,
            Self::Directory { .. } => Class::Directory,
            Self::File { .. } => Class::File,
            Self::Xattr { .. } => Class::Xattr,
            Self::ExtentTree { .. } => Class::ExtentTree,
            Self::Orphan { .. } => Class::Orphan,
            Self::Special { .. } => Class::Special,
            Self::Free => Class::Free,
            Self::Unknown => Class::Unknown,
            Self::Outside => Class::Outside,
        }
    }

    /// The inode that it belongs to, if it is one's.
    pub fn inode(self) -> Option<u32> {
        match self {
            Self::Directory { inode }
            | Self::File { inode }
            | Self::Xattr { inode }
            | Self::ExtentTree { inode }
            | Self::Orphan { inode }
            | Self::Special { inode } => Some(inode),
            _ => None,
        }
    }
}

/// A run of bytes with one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Which bytes.
    pub range: ByteRange,
    /// Whose.
    pub owner: Owner,
}

/// Where the parts of a file system contradict each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disagreements {
    /// Blocks that something has, and that the bitmap calls free.
    pub owned_but_free_blocks: u64,
    /// Blocks that the bitmap calls used, and that nothing has.
    pub used_but_unowned_blocks: u64,
    /// Blocks that two inodes have, or one twice.
    pub owned_twice_blocks: u64,
    /// Inodes in use that the bitmap calls free.
    pub live_but_free_inodes: u64,
    /// Inodes not in use that the bitmap calls used.
    pub dead_but_used_inodes: u64,
}

/// From this block to where the next run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    owner: Code,
}

/// Whose each block of a file system is.
#[derive(Clone, Debug)]
pub struct Owners {
    block_bytes: u32,
    blocks: u64,
    /// Without gaps, from block 0; neighbours differ.
    runs: Vec<Run>,
    disagreements: Disagreements,
    problems: Problems,
}

impl Owners {
    /// Finds out. `progress` hears how many groups are done, of [`crate::Superblock::groups`].
    ///
    /// # Errors
    /// Where the file system cannot be read, or [`crate::limits::CLAIMS_MAX`] is not enough.
    pub fn read(fs: &FileSystem<'_>, progress: &mut dyn FnMut(u32)) -> Result<Self, Ext4Error> {
        let mut scan = scan::Scan::new(fs)?;
        scan.all(progress)?;
        let scan::Scan {
            claims,
            mut disagreements,
            mut problems,
            ..
        } = scan;
        let claims = claims.sorted();
        let mut fill = fill::Fill::new(fs, &mut disagreements, &mut problems);
        let sb = fs.superblock();
        let twice = resolve::resolve(&claims, sb.blocks, sb.cluster_blocks.into(), &mut |span| {
            fill.take(span)
        })?;
        let runs = fill.finish();
        disagreements.owned_twice_blocks = twice;
        Ok(Self {
            block_bytes: sb.block_bytes,
            blocks: sb.blocks,
            runs,
            disagreements,
            problems,
        })
    }

    /// The owners of a range of bytes of the device, in order, without gaps; neighbours differ.
    pub fn runs(&self, range: ByteRange) -> impl Iterator<Item = Owned> + '_ {
        let first = range.start.0 / u64::from(self.block_bytes);
        let after = self.runs.partition_point(|run| run.start <= first);
        let mut next = if first < self.blocks {
            after.saturating_sub(1)
        } else {
            self.runs.len()
        };
        std::iter::from_fn(move || {
            let (owned, owner) = match self.runs.get(next) {
                Some(run) => (self.bytes_of(next), run.owner.owner()),
                None if next == self.runs.len() => {
                    (ByteRange::new(self.size_bytes(), u64::MAX), Owner::Outside)
                }
                None => return None,
            };
            next += 1;
            let range = owned.intersect(range);
            (!range.is_empty()).then_some(Owned { range, owner })
        })
    }

    /// The owner of one block of the file system.
    pub fn of_block(&self, block: u64) -> Owner {
        let after = self.runs.partition_point(|run| run.start <= block);
        let run = after.checked_sub(1).filter(|_| block < self.blocks);
        run.map_or(Owner::Outside, |run| self.runs[run].owner.owner())
    }

    /// Bytes of the file system; the device may be larger.
    pub fn size_bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }

    /// Bytes in a block of the file system.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Where inodes and bitmaps contradict each other.
    pub fn disagreements(&self) -> Disagreements {
        self.disagreements
    }

    /// What else is wrong.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// What this takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
    }

    fn bytes_of(&self, run: usize) -> ByteRange {
        let end = self
            .runs
            .get(run + 1)
            .map_or(self.blocks, |next| next.start);
        let unit = u64::from(self.block_bytes);
        ByteRange::new(self.runs[run].start * unit, end * unit)
    }
}
