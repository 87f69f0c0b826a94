//! [`Picture`]: a device in cells, each with what is there and what changed; and the pieces that changed, with their owners.
//!
//! The cells are as many as a power of four has, so that they fill a square along a Hilbert curve; cell i has the blocks
//! from `i * blocks / cells` on. Memory: 16 counts for each of at most 65,536 cells, and 24 bytes for each of at most
//! [`PIECES_MAX`] pieces.

use std::collections::HashMap;

use cowslip_block::{BlockRange, BlockSize};
use cowslip_ext4::{Class, Owned, Owner};
use serde::Serialize;

use super::share::Share;
use super::tally::winner;

/// The most cells, as a power of four.
const ORDER_MAX: u32 = 8;
/// Pieces that are kept; of others only the cells tell.
const PIECES_MAX: usize = 40_000;
/// What became zero, beside the classes.
const ZEROED: usize = Class::ALL.len();
const KINDS: usize = ZEROED + 1;

/// Blocks that changed, with one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) blocks: BlockRange,
    /// In [`Picture::owners`].
    pub(crate) owner: usize,
    pub(crate) zeroed: bool,
}

/// See the module.
pub(crate) struct Picture {
    size: BlockSize,
    blocks: u64,
    order: u32,
    /// Of each cell, blocks by class: what is there.
    ground: Vec<[u64; KINDS]>,
    /// Of each cell, blocks by class: what changed; and what became zero.
    changed: Vec<[u64; KINDS]>,
    pieces: Vec<Piece>,
    owners: Vec<Owner>,
    numbers: HashMap<Owner, usize>,
    /// There were more pieces than are kept.
    is_cut: bool,
}

/// The cells as a page reads them: a letter each, from `a` on, for the class of the most, `.` for none; of what changed
/// also its share of the cell, from 1 to 9.
#[derive(Serialize)]
pub(crate) struct Cells {
    pub(crate) order: u32,
    pub(crate) blocks: u64,
    pub(crate) ground: String,
    pub(crate) changed: String,
    pub(crate) shares: String,
}

impl Picture {
    /// Of a device of so many blocks.
    pub(crate) fn new(size: BlockSize, blocks: u64) -> Self {
        // A power of four has no more cells than there are blocks.
        let order = (blocks.max(1).ilog2() / 2).min(ORDER_MAX);
        let cells = 1 << (2 * order);
        Self {
            size,
            blocks: blocks.max(1),
            order,
            ground: vec![[0; KINDS]; cells],
            changed: vec![[0; KINDS]; cells],
            pieces: Vec::new(),
            owners: Vec::new(),
            numbers: HashMap::new(),
            is_cut: false,
        }
    }

    /// What is there.
    pub(crate) fn ground(&mut self, owned: impl Iterator<Item = Owned>) {
        for Owned { range, owner } in owned {
            let (blocks, kind) = (self.size.blocks_touched(range), owner.class() as usize);
            self.each_cell(blocks, &mut |picture, cell, count| {
                picture.ground[cell][kind] += count;
            });
        }
    }

    /// What changed, or became zero.
    pub(crate) fn add(&mut self, share: Share<'_>, zeroed: bool) {
        let (blocks, owner) = match share {
            Share::Whole(blocks, owner) => (blocks, owner),
            Share::Split(block, parts) => (BlockRange::one(block), winner(parts)),
        };
        let kind = if zeroed {
            ZEROED
        } else {
            owner.class() as usize
        };
        self.each_cell(blocks, &mut |picture, cell, count| {
            picture.changed[cell][kind] += count;
        });
        let next = self.owners.len();
        let number = *self.numbers.entry(owner).or_insert(next);
        if number == next {
            self.owners.push(owner);
        }
        let is_full = self.pieces.len() == PIECES_MAX;
        match self.pieces.last_mut() {
            Some(last)
                if (last.owner, last.zeroed, last.blocks.end) == (number, zeroed, blocks.start) =>
            {
                last.blocks.end = blocks.end;
            }
            _ if is_full => self.is_cut = true,
            _ => self.pieces.push(Piece {
                blocks,
                owner: number,
                zeroed,
            }),
        }
    }

    fn each_cell(&mut self, blocks: BlockRange, visit: &mut dyn FnMut(&mut Self, usize, u64)) {
        let cells = self.ground.len() as u64;
        let blocks = blocks.intersect(BlockRange::new(0, self.blocks));
        let mut at = blocks.start.0;
        while at < blocks.end.0 {
            let cell = ((at + 1) * cells - 1) / self.blocks;
            let end = ((cell + 1) * self.blocks / cells).min(blocks.end.0);
            visit(
                self,
                usize::try_from(cell).expect("one of the cells"),
                end - at,
            );
            at = end;
        }
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub(crate) fn owners(&self) -> &[Owner] {
        &self.owners
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(crate) fn cells(&self) -> Cells {
        let most = |counts: &[u64; KINDS]| {
            let (kind, count) = counts.iter().enumerate().rev().max_by_key(|(_, n)| **n)?;
            let letter = u8::try_from(kind).ok().map(|kind| char::from(b'a' + kind));
            letter.filter(|_| *count > 0)
        };
        let letter = |counts: &[u64; KINDS]| most(counts).unwrap_or('.');
        let cells = self.ground.len() as u64;
        let share = |(cell, counts): (u64, &[u64; KINDS])| {
            let all = (cell + 1) * self.blocks / cells - cell * self.blocks / cells;
            let ninths = (counts.iter().sum::<u64>() * 9).div_ceil(all.max(1)).min(9);
            char::from_digit(u32::try_from(ninths).expect("at most 9"), 10).expect("a digit")
        };
        Cells {
            order: self.order,
            blocks: self.blocks,
            ground: self.ground.iter().map(letter).collect(),
            changed: self.changed.iter().map(letter).collect(),
            shares: (0..).zip(&self.changed).map(share).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cowslip_block::{BlockIndex, ByteRange};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_block_is_in_the_cell_that_has_it(
            blocks in 1u64..3000,
            runs in prop::collection::vec((0u64..3000, 1u64..200, 0usize..3), 0..20),
        ) {
            let owners = [Owner::Free, Owner::Bitmap, Owner::File { inode: 12 }];
            let mut picture = Picture::new(BlockSize::DISK, blocks);
            let cells = picture.ground.len() as u64;
            prop_assert!(cells <= blocks && (cells * 4 > blocks || picture.order == ORDER_MAX));
            // The twin: which cell a block is in is found by looking at all.
            let mut wanted = vec![[0; KINDS]; picture.ground.len()];
            for (start, len, owner) in runs {
                let range = BlockRange::new(start, start + len).intersect(BlockRange::new(0, blocks));
                for block in range.iter() {
                    let cell = (0..cells).rev().find(|i| i * blocks / cells <= block.0).unwrap();
                    wanted[usize::try_from(cell).unwrap()][owners[owner].class() as usize] += 1;
                }
                picture.add(Share::Whole(range, owners[owner]), false);
            }
            prop_assert_eq!(&picture.changed, &wanted);
        }
    }

    #[test]
    fn letters_say_what_most_of_a_cell_is() {
        let mut picture = Picture::new(BlockSize::DISK, 8);
        let owner = Owner::File { inode: 12 };
        let range = ByteRange::new(0, 8 * 4096);
        picture.ground(std::iter::once(Owned { range, owner }));
        let parts = [(Owner::Free, 100), (Owner::Bitmap, 3996)];
        picture.add(Share::Split(BlockIndex(2), &parts), false);
        picture.add(Share::Whole(BlockRange::new(3, 5), Owner::Bitmap), false);
        picture.add(Share::Whole(BlockRange::new(5, 6), Owner::Free), true);
        let cells = picture.cells();
        let letter = |class: usize| char::from(b'a' + u8::try_from(class).unwrap());
        let (file, bitmap) = (letter(Class::File as usize), letter(Class::Bitmap as usize));
        assert_eq!(
            (cells.order, cells.ground),
            (1, String::from_iter([file; 4]))
        );
        assert_eq!(cells.changed, String::from_iter(['.', bitmap, bitmap, '.']));
        assert_eq!(cells.shares, "0990");
        let pieces: Vec<_> = picture
            .pieces()
            .iter()
            .map(|p| (p.blocks.count().0, p.owner, p.zeroed))
            .collect();
        assert_eq!(pieces, [(3, 0, false), (1, 1, true)]);
        assert_eq!(picture.owners(), [Owner::Bitmap, Owner::Free]);
    }
}
