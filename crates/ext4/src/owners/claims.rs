//! Claims: who says that which blocks are whose.
//!
//! A [`Code`] is an owner in one number: rank, inode, kind. The lower one of two wins a block, so the order of the kinds
//! and ranks is the order of precedence.

use std::ops::Range;

use crate::error::Ext4Error;
use crate::limits::CLAIMS_MAX;
use crate::owners::Owner;

/// An owner as a number: bits 40 and above the rank, 8 to 39 the inode, 0 to 7 the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Code(u64);

/// Ranks.
const LAYOUT: u64 = 0;
const JOURNAL: u64 = 1;
const INODE: u64 = 2;
const NOBODY: u64 = 3;

impl Code {
    pub(super) fn of(owner: Owner) -> Self {
        let (rank, kind) = match owner {
            Owner::Superblock => (LAYOUT, 0),
            Owner::Descriptors => (LAYOUT, 1),
            Owner::Bitmap => (LAYOUT, 2),
            Owner::InodeTable => (LAYOUT, 3),
            Owner::Journal { live: true } => (JOURNAL, 4),
            Owner::Journal { live: false } => (JOURNAL, 5),
            Owner::ExtentTree { .. } => (INODE, 6),
            Owner::Directory { .. } => (INODE, 7),
            Owner::Xattr { .. } => (INODE, 8),
            Owner::Special { .. } => (INODE, 9),
            Owner::Orphan { .. } => (INODE, 10),
            Owner::File { .. } => (INODE, 11),
            Owner::Free => (NOBODY, 12),
            Owner::Unknown => (NOBODY, 13),
            Owner::Outside => (NOBODY, 14),
        };
        Self(rank << 40 | u64::from(owner.inode().unwrap_or(0)) << 8 | kind)
    }

    pub(super) fn owner(self) -> Owner {
        let inode = u32::try_from(self.0 >> 8 & u64::from(u32::MAX)).expect("32 bits");
        match self.0 & 0xff {
            0 => Owner::Superblock,
            1 => Owner::Descriptors,
            2 => Owner::Bitmap,
            3 => Owner::InodeTable,
            4 => Owner::Journal { live: true },
            5 => Owner::Journal { live: false },
            6 => Owner::ExtentTree { inode },
            7 => Owner::Directory { inode },
            8 => Owner::Xattr { inode },
            9 => Owner::Special { inode },
            10 => Owner::Orphan { inode },
            11 => Owner::File { inode },
            12 => Owner::Free,
            13 => Owner::Unknown,
            _ => Owner::Outside,
        }
    }

    /// A part of the layout, which is there whether bitmaps say so or not?
    pub(super) fn is_layout(self) -> bool {
        self.0 >> 40 == LAYOUT
    }
}

/// One claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) start: u64,
    pub(super) owner: Code,
    pub(super) end: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Claims(Vec<Claim>);

impl Claims {
    pub(super) fn push(&mut self, blocks: Range<u64>, owner: Owner) -> Result<(), Ext4Error> {
        if blocks.is_empty() {
            return Ok(());
        }
        let owner = Code::of(owner);
        if let Some(last) = self.0.last_mut()
            && last.owner == owner
            && last.end == blocks.start
        {
            last.end = blocks.end;
            return Ok(());
        }
        if self.0.len() == CLAIMS_MAX {
            let what = "runs of blocks that inodes have".into();
            return Err(Ext4Error::Limit {
                what,
                max: CLAIMS_MAX as u64,
            });
        }
        self.0.push(Claim {
            start: blocks.start,
            end: blocks.end,
            owner,
        });
        Ok(())
    }

    /// Gives what one owner claims to another.
    pub(super) fn hand_over(&mut self, heir: &dyn Fn(Owner) -> Option<Owner>) {
        for claim in &mut self.0 {
            if let Some(owner) = heir(claim.owner.owner()) {
                claim.owner = Code::of(owner);
            }
        }
    }

    /// By where they start, and of those at one place the one that wins first.
    pub(super) fn sorted(mut self) -> Vec<Claim> {
        self.0.sort_unstable();
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_number_and_back() {
        let inode = u32::MAX - 3;
        let in_order = [
            Owner::Superblock,
            Owner::Descriptors,
            Owner::Bitmap,
            Owner::InodeTable,
            Owner::Journal { live: true },
            Owner::Journal { live: false },
            Owner::File { inode: 7 },
            Owner::ExtentTree { inode },
            Owner::Directory { inode },
            Owner::Xattr { inode },
            Owner::Special { inode },
            Owner::Orphan { inode },
            Owner::File { inode },
            Owner::Free,
            Owner::Unknown,
            Owner::Outside,
        ];
        for owner in in_order {
            assert_eq!(Code::of(owner).owner(), owner);
        }
        assert!(in_order.map(Code::of).is_sorted());
    }
}
