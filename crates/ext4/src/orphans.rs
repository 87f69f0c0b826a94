//! Orphans: inodes that lost their last name while somebody had them open, or were being cut short.
//!
//! They are found in a list that the superblock starts and each inode's time of deletion goes on with, and
//! in the orphan file: blocks of inode numbers, with a magic number and a checksum in the last 8 bytes.

use roaring::RoaringBitmap;

use crate::error::Ext4Error;
use crate::fields::Fields;
use crate::file_system::FileSystem;
use crate::mapping::{Piece, Seen, Walk};
use crate::problems::{Problem, Problems};

const FILE_MAGIC: u32 = 0x0b10_ca04;

impl FileSystem<'_> {
    /// The orphans; those that still have names are only to be cut short.
    pub(crate) fn orphans(&self, problems: &mut Problems) -> Result<RoaringBitmap, Ext4Error> {
        let mut orphans = RoaringBitmap::new();
        self.orphan_list(&mut orphans, problems)?;
        self.orphan_file(&mut orphans, problems)?;
        Ok(orphans)
    }

    fn orphan_list(
        &self,
        orphans: &mut RoaringBitmap,
        problems: &mut Problems,
    ) -> Result<(), Ext4Error> {
        let mut next = self.superblock().last_orphan;
        while next != 0 {
            if next > self.superblock().inodes || !orphans.insert(next) {
                problems.note(Problem::Orphans, || {
                    format!("the list leads to inode {next}")
                });
                break;
            }
            match self.inode(next) {
                Ok(inode) => next = inode.deleted,
                Err(error @ Ext4Error::Damaged { .. }) => {
                    problems.note(Problem::Orphans, || error.to_string());
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn orphan_file(
        &self,
        orphans: &mut RoaringBitmap,
        problems: &mut Problems,
    ) -> Result<(), Ext4Error> {
        let number = self.superblock().orphan_file_inode;
        if number == 0 {
            return Ok(());
        }
        let inode = match self.inode(number) {
            Ok(inode) => inode,
            Err(error @ Ext4Error::Damaged { .. }) => {
                problems.note(Problem::Orphans, || error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut runs = Vec::new();
        let visit = &mut |piece| {
            if let Piece::Data {
                start,
                count,
                unwritten: false,
                ..
            } = piece
            {
                runs.push(start..start + count);
            }
            Ok(())
        };
        let mut seen = Seen::default();
        Walk {
            fs: self,
            inode: &inode,
            seen: &mut seen,
            problems,
            visit,
        }
        .run()?;
        for at in runs.into_iter().flatten() {
            if !seen.first_time(at) {
                problems.note(Problem::Orphans, || {
                    format!("the orphan file has block {at} twice")
                });
                break;
            }
            self.orphan_block(at, orphans, problems)?;
        }
        Ok(())
    }

    fn orphan_block(
        &self,
        at: u64,
        orphans: &mut RoaringBitmap,
        problems: &mut Problems,
    ) -> Result<(), Ext4Error> {
        let block = self.view().block(at)?;
        let (numbers, tail) = block.split_at(block.len() - 8);
        if Fields(tail).le32(0) != FILE_MAGIC {
            problems.note(Problem::Orphans, || {
                format!("block {at} is none of the orphan file")
            });
            return Ok(());
        }
        for number in numbers.chunks_exact(4).map(|number| Fields(number).le32(0)) {
            if number > self.superblock().inodes {
                problems.note(Problem::Orphans, || {
                    format!("the orphan file has inode {number}")
                });
            } else if number != 0 {
                orphans.insert(number);
            }
        }
        Ok(())
    }
}
