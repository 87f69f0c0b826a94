//! Diff: what is different in one image from another of the same store, related or not.
//!
//! By map first: what both images have from the same place is not looked at
//! ([`crate::header::compare`]). Where the maps differ the bytes decide, block by block:
//!
//! | A has       | B has            | the block is |
//! |-------------|------------------|--------------|
//! | some bytes  | the same         | equal, whatever layers they lie in |
//! | anything    | others, not all zero | changed  |
//! | not all zero | zeros           | zeroed       |
//!
//! The last block of an image may be a part of one, and images may be of two sizes: what is past
//! an image's end reads as zeros.
//!
//! Memory: one frame of each image, beside the caches of the store. Damage where the maps differ is
//! an error that names it; elsewhere nothing is read.

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::zero::is_zero;
use cowslip_block::{BlockCount, BlockIndex, BlockRange, BlockSize, ByteRange};

use crate::error::{ObjectError, StoreError};
use crate::header::{Header, MapDifference, Target, compare};
use crate::layer::blocks_per_frame;
use crate::store::{Store, layer_name};

/// In what way a block of B is another than the same block of A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffKind {
    /// It has other bytes, and not only zeros.
    Changed,
    /// It reads as zeros, and did not.
    Zeroed,
}

/// Blocks that differ in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffRun {
    /// Which blocks.
    pub blocks: BlockRange,
    /// In what way.
    pub kind: DiffKind,
}

/// All differences, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffSummary {
    /// Blocks with other bytes, not only zeros.
    pub changed: BlockCount,
    /// Blocks that read as zeros, and did not.
    pub zeroed: BlockCount,
    /// Runs of blocks that differ in the same way.
    pub runs: u64,
    /// The size of a block.
    pub block_size: BlockSize,
    /// The sizes of A and of B.
    pub size_bytes: [u64; 2],
}

impl DiffSummary {
    /// The same bytes, and as many of them?
    pub fn is_equal(&self) -> bool {
        self.runs == 0 && self.size_bytes[0] == self.size_bytes[1]
    }
}

/// Finds how `b` is different from `a`. `visit` gets the runs in order, neighbours of a kind merged.
/// `progress` is told up to which block the images are compared, and how many there are.
///
/// # Errors
/// `Invalid` where the block sizes are not the same or the headers are of two stores; `Corrupt`
/// naming object and place; `Version`, `Io`.
pub fn diff(
    store: &Store,
    a: &Header,
    b: &Header,
    visit: &mut dyn FnMut(DiffRun),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<DiffSummary, StoreError> {
    let mut summary = DiffSummary {
        changed: BlockCount(0),
        zeroed: BlockCount(0),
        runs: 0,
        block_size: a.block_size(),
        size_bytes: [a.size_bytes(), b.size_bytes()],
    };
    let mut held: Option<DiffRun> = None;
    let mut found = |block: BlockIndex, kind| {
        match kind {
            DiffKind::Changed => summary.changed.0 += 1,
            DiffKind::Zeroed => summary.zeroed.0 += 1,
        }
        match &mut held {
            Some(run) if run.kind == kind && run.blocks.end == block => run.blocks.end.0 += 1,
            _ => {
                summary.runs += 1;
                let blocks = BlockRange::one(block);
                if let Some(whole) = held.replace(DiffRun { blocks, kind }) {
                    visit(whole);
                }
            }
        }
        ControlFlow::Continue(())
    };
    each_block(store, [a, b], &mut found, progress)?;
    if let Some(last) = held {
        visit(last);
    }
    Ok(summary)
}

/// Is there any difference, in bytes or in size? Reads no further than the first.
///
/// # Errors
/// As [`diff`], of what was read.
pub fn differ(
    store: &Store,
    a: &Header,
    b: &Header,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<bool, StoreError> {
    let mut any = a.size_bytes() != b.size_bytes();
    if !any {
        let mut found = |_, _| {
            any = true;
            ControlFlow::Break(())
        };
        each_block(store, [a, b], &mut found, progress)?;
    }
    Ok(any)
}

/// Is told of each block that differs.
type Found<'a> = dyn FnMut(BlockIndex, DiffKind) -> ControlFlow<()> + 'a;

fn each_block(
    store: &Store,
    [a, b]: [&Header; 2],
    found: &mut Found<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), StoreError> {
    let block_size = a.block_size();
    if b.block_size() != block_size {
        let (one, two) = (block_size.bytes(), b.block_size().bytes());
        let why = format!("images in blocks of {one} and of {two} bytes cannot be compared");
        return Err(StoreError::Invalid(why));
    }
    let mut contents = Contents {
        store,
        block_size,
        size_bytes: [a.size_bytes(), b.size_bytes()],
        found,
    };
    let all = a.blocks().end.max(b.blocks().end).0;
    // Whether it broke off makes no difference here.
    let _ = compare(a, b, &mut |differing| {
        contents.compare(differing, &mut |done| progress(done, all))
    })?;
    progress(all, all);
    Ok(())
}

/// The bytes of two images.
struct Contents<'a> {
    store: &'a Store,
    block_size: BlockSize,
    size_bytes: [u64; 2],
    found: &'a mut Found<'a>,
}

/// Blocks of one image that lie together: zeros, or in one frame from `at` on.
struct Piece {
    frame: Option<Arc<[u8]>>,
    at: usize,
    blocks: u64,
}

impl Contents<'_> {
    /// Goes over blocks by pieces that lie in one frame on either side.
    fn compare(
        &mut self,
        MapDifference { blocks, a, b }: MapDifference,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut rest = blocks;
        while !rest.is_empty() {
            let skipped = rest.start.0 - blocks.start.0;
            let (a, b) = (self.piece(a.after(skipped))?, self.piece(b.after(skipped))?);
            let count = rest.count().0.min(a.blocks).min(b.blocks);
            let here = BlockRange::new(rest.start.0, rest.start.0 + count);
            for (i, block) in here.iter().enumerate() {
                let (before, now) = (self.bytes(0, &a, i, block), self.bytes(1, &b, i, block));
                let Some(kind) = difference(before, now) else {
                    continue;
                };
                if (self.found)(block, kind).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            rest.start = here.end;
            progress(rest.start.0);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn piece(&self, to: Target) -> Result<Piece, StoreError> {
        let Target::Layer { id, at } = to else {
            return Ok(Piece {
                frame: None,
                at: 0,
                blocks: u64::MAX,
            });
        };
        let per_frame = blocks_per_frame(self.block_size);
        let (n, skip) = (at / per_frame, at % per_frame);
        let frame = self.store.frame(id, n, self.block_size)?;
        let has = frame.len() as u64 / u64::from(self.block_size.bytes());
        if has <= skip {
            let why = format!("the layer ends before block {skip} of it");
            return Err(ObjectError::damaged(format!("frame {n}"), why).of(layer_name(id)));
        }
        let at = self.block_size.bytes_in(BlockCount(skip));
        Ok(Piece {
            frame: Some(frame),
            at: usize::try_from(at).expect("a frame fits in memory"),
            blocks: has - skip,
        })
    }

    /// The bytes that the image has of the block; what is missing of it reads as zeros.
    fn bytes<'p>(&self, image: usize, piece: &'p Piece, i: usize, block: BlockIndex) -> &'p [u8] {
        let Some(frame) = &piece.frame else {
            return &[];
        };
        let all = ByteRange::new(0, self.size_bytes[image]);
        let held = self.block_size.bytes_of(BlockRange::one(block));
        let len = usize::try_from(held.intersect(all).len()).expect("a block fits in memory");
        let at = piece.at + i * self.block_size.bytes_usize();
        &frame[at..at + len]
    }
}

/// What became of a block. The shorter side goes on in zeros.
fn difference(before: &[u8], now: &[u8]) -> Option<DiffKind> {
    let both = before.len().min(now.len());
    let is_same =
        before[..both] == now[..both] && is_zero(&before[both..]) && is_zero(&now[both..]);
    match () {
        () if is_same => None,
        () if is_zero(now) => Some(DiffKind::Zeroed),
        () => Some(DiffKind::Changed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_difference_is_one_of_padded_blocks(
            before in prop::collection::vec(0u8..2, 0..6),
            now in prop::collection::vec(0u8..2, 0..6),
        ) {
            let padded = |bytes: &[u8]| {
                let mut block = bytes.to_vec();
                block.resize(6, 0);
                block
            };
            let (a, b) = (padded(&before), padded(&now));
            let want = match (a == b, b == [0; 6]) {
                (true, _) => None,
                (false, true) => Some(DiffKind::Zeroed),
                (false, false) => Some(DiffKind::Changed),
            };
            prop_assert_eq!(difference(&before, &now), want);
        }
    }
}
