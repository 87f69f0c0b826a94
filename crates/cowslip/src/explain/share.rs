//! [`shares`]: from owners of bytes to owners of blocks.

use cowslip_block::{BlockIndex, BlockRange, BlockSize, ByteOffset, ByteRange};
use cowslip_ext4::{Owned, Owner};

/// Blocks, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share<'a> {
    /// Whole blocks with one owner.
    Whole(BlockRange, Owner),
    /// One block, with the bytes of each of its owners, in the order in which they come; or the last
    /// of an image, which may be a part of one.
    Split(BlockIndex, &'a [(Owner, u64)]),
}

/// Tells whose the blocks of `range` are. `range` starts at a block, and ends at one or at the end of the image;
/// `owned` covers it in order, without gaps.
pub(crate) fn shares(
    size: BlockSize,
    range: ByteRange,
    owned: impl Iterator<Item = Owned>,
    visit: &mut dyn FnMut(Share<'_>),
) {
    let unit = u64::from(size.bytes());
    // The owners of the block that is not at its end yet.
    let mut parts: Vec<(Owner, u64)> = Vec::new();
    for Owned { range: own, owner } in owned {
        let mut at = own.start.0;
        while at < own.end.0 {
            let block = size.block_floor(ByteOffset(at));
            let whole = size.blocks_inside(ByteRange::new(at, own.end.0));
            if parts.is_empty() && size.is_aligned(at) && !whole.is_empty() {
                visit(Share::Whole(whole, owner));
                at = size.offset_of(whole.end).0;
                continue;
            }
            let end = own.end.0.min((block.0 + 1) * unit);
            match parts.iter_mut().find(|(known, _)| *known == owner) {
                Some((_, bytes)) => *bytes += end - at,
                None => parts.push((owner, end - at)),
            }
            at = end;
            if size.is_aligned(at) || at == range.end.0 {
                visit(Share::Split(block, &parts));
                parts.clear();
            }
        }
    }
}
