//! Block-mapped inodes: 12 pointers to data, and one each to a tree of 1, 2 and 3 levels.
//!
//! A pointer is a block number in 32 bits, 0 is a hole. Pointers to neighbours are told as one run.

use crate::error::Ext4Error;
use crate::fields::Fields;
use crate::mapping::Walk;

const DIRECT: usize = 12;

/// Data that may go on.
#[derive(Default)]
struct Run {
    logical: u64,
    start: u64,
    count: u64,
}

impl Walk<'_, '_> {
    pub(crate) fn indirect(&mut self) -> Result<(), Ext4Error> {
        let root = self.inode.root;
        let (mut run, mut logical) = (Run::default(), 0);
        for number in 0..DIRECT + 3 {
            let level = u32::try_from((number + 1).saturating_sub(DIRECT)).unwrap_or(0);
            let pointer = Fields(&root).le32(number * 4).into();
            self.pointer(pointer, level, logical, &mut run)?;
            logical += self.below(level);
        }
        self.end(&mut run)
    }

    /// Blocks of data below a pointer of this level.
    fn below(&self, level: u32) -> u64 {
        u64::from(self.fs.superblock().block_bytes / 4).pow(level)
    }

    fn pointer(
        &mut self,
        block: u64,
        level: u32,
        logical: u64,
        run: &mut Run,
    ) -> Result<(), Ext4Error> {
        if block == 0 {
            return Ok(());
        }
        if level == 0 {
            if run.start + run.count != block || run.logical + run.count != logical {
                self.end(run)?;
                *run = Run {
                    logical,
                    start: block,
                    count: 0,
                };
            }
            run.count += 1;
            return Ok(());
        }
        let Some(pointers) = self.tree_block(block)? else {
            return Ok(());
        };
        let mut logical = logical;
        for pointer in pointers.chunks_exact(4) {
            self.pointer(Fields(pointer).le32(0).into(), level - 1, logical, run)?;
            logical += self.below(level - 1);
        }
        Ok(())
    }

    fn end(&mut self, run: &mut Run) -> Result<(), Ext4Error> {
        let Run {
            logical,
            start,
            count,
        } = std::mem::take(run);
        if count == 0 {
            Ok(())
        } else {
            self.data(logical, start, count, false)
        }
    }
}
