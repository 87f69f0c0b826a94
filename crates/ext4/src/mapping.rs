//! Where the blocks of an inode lie: runs of data, and the blocks of the tree that lists them.
//!
//! An inode lists its blocks in an extent tree (`extents.rs`) or in indirect blocks (`indirect.rs`). Both are walked
//! here in order of their place in the file, down to the depth that the format allows, and no tree block is followed twice
//! in a pass (`Seen`): a tree that leads in a circle, or that many inodes share, costs one visit and a problem.

use roaring::RoaringTreemap;

use crate::error::Ext4Error;
use crate::file_system::FileSystem;
use crate::inode::{Flag, Inode};
use crate::problems::{Problem, Problems};

/// A part of what an inode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A run of data.
    Data {
        /// Its first block in the file.
        logical: u64,
        /// Its first block in the file system.
        start: u64,
        /// How many blocks.
        count: u64,
        /// Allocated, and never written: reads as zeros.
        unwritten: bool,
    },
    /// A block of the tree itself.
    Tree {
        /// Which.
        block: u64,
    },
}

/// Blocks of metadata that a pass has been at.
#[derive(Debug, Default)]
pub(crate) struct Seen(RoaringTreemap);

impl Seen {
    /// Is it the first time?
    pub(crate) fn first_time(&mut self, block: u64) -> bool {
        self.0.insert(block)
    }
}

/// One walk over one inode's blocks.
pub(crate) struct Walk<'w, 'a> {
    pub(crate) fs: &'w FileSystem<'a>,
    pub(crate) inode: &'w Inode,
    pub(crate) seen: &'w mut Seen,
    pub(crate) problems: &'w mut Problems,
    pub(crate) visit: &'w mut dyn FnMut(Piece) -> Result<(), Ext4Error>,
}

impl Walk<'_, '_> {
    /// Visits all pieces of the inode.
    pub(crate) fn run(mut self) -> Result<(), Ext4Error> {
        if !self.inode.lists_blocks(self.fs.superblock()) {
            Ok(())
        } else if self.inode.has(Flag::Extents) {
            self.extents()
        } else {
            self.indirect()
        }
    }

    /// A run of data, if it lies in the file system.
    pub(crate) fn data(
        &mut self,
        logical: u64,
        start: u64,
        count: u64,
        unwritten: bool,
    ) -> Result<(), Ext4Error> {
        if self.fs.superblock().has_blocks(start, count) {
            return (self.visit)(Piece::Data {
                logical,
                start,
                count,
                unwritten,
            });
        }
        self.note(Problem::Inode, || {
            format!("{count} blocks at {start} lie outside the file system")
        });
        Ok(())
    }

    /// The contents of a tree block, if it can be followed.
    pub(crate) fn tree_block(&mut self, block: u64) -> Result<Option<Vec<u8>>, Ext4Error> {
        if !self.fs.superblock().has_block(block) {
            self.note(Problem::Tree, || {
                format!("its tree leads to block {block}, which is outside")
            });
            return Ok(None);
        }
        if !self.seen.first_time(block) {
            self.note(Problem::Tree, || {
                format!("its tree leads to block {block} a second time")
            });
            return Ok(None);
        }
        (self.visit)(Piece::Tree { block })?;
        self.fs.view().block(block).map(Some)
    }

    pub(crate) fn note(&mut self, problem: Problem, what: impl FnOnce() -> String) {
        let number = self.inode.number;
        self.problems
            .note(problem, || format!("inode {number}: {}", what()));
    }
}

impl FileSystem<'_> {
    /// Where the blocks of an inode lie, in order, and what is wrong with its list of them.
    ///
    /// # Errors
    /// Where they cannot be read, and where `visit` says so.
    pub fn pieces(
        &self,
        inode: &Inode,
        visit: &mut dyn FnMut(Piece) -> Result<(), Ext4Error>,
    ) -> Result<Problems, Ext4Error> {
        let (mut seen, mut problems) = (Seen::default(), Problems::default());
        let (seen, all) = (&mut seen, &mut problems);
        Walk {
            fs: self,
            inode,
            seen,
            problems: all,
            visit,
        }
        .run()?;
        Ok(problems)
    }
}
