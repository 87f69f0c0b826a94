//! Units: block numbers, block counts, byte offsets and the block size, each a type of its own.
//!
//! Every conversion between blocks and bytes stands in this file, and its name says whether it is
//! exact, rounds down (floor) or rounds up (ceil). Nothing here can overflow as long as sizes stay
//! within [`SIZE_BYTES_MAX`], which every constructor of a device checks.

use std::fmt;

/// The largest device: 1 PiB. Twice any offset still fits in an `i64`, as `lseek(2)` wants it.
pub const SIZE_BYTES_MAX: u64 = 1 << 50;

/// The number of one block of a device, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockIndex(pub u64);

/// A number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockCount(pub u64);

/// A position in a device, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteOffset(pub u64);

/// The blocks `start..end`, `end` not included. Never backwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockRange {
    /// First block.
    pub start: BlockIndex,
    /// The block after the last.
    pub end: BlockIndex,
}

/// The bytes `start..end`, `end` not included. Never backwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: ByteOffset,
    /// The byte after the last.
    pub end: ByteOffset,
}

impl BlockRange {
    /// `start..end`; empty where `end` lies before `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            start: BlockIndex(start),
            end: BlockIndex(end.max(start)),
        }
    }

    /// One block.
    pub fn one(block: BlockIndex) -> Self {
        Self::new(block.0, block.0 + 1)
    }

    /// How many blocks.
    pub fn count(self) -> BlockCount {
        BlockCount(self.end.0 - self.start.0)
    }

    /// No block at all?
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// What both hold; empty where they do not meet.
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.0.max(other.start.0), self.end.0.min(other.end.0))
    }

    /// Is the block one of these?
    pub fn contains(self, block: BlockIndex) -> bool {
        self.start <= block && block < self.end
    }

    /// Every block number, in order.
    pub fn iter(self) -> impl Iterator<Item = BlockIndex> {
        (self.start.0..self.end.0).map(BlockIndex)
    }
}

impl ByteRange {
    /// `start..end`; empty where `end` lies before `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            start: ByteOffset(start),
            end: ByteOffset(end.max(start)),
        }
    }

    /// `len` bytes from `offset`, or nothing where the end does not fit in 64 bits.
    pub fn at(offset: u64, len: u64) -> Option<Self> {
        Some(Self::new(offset, offset.checked_add(len)?))
    }

    /// How many bytes.
    pub fn len(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// No byte at all?
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// What both hold; empty where they do not meet.
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.0.max(other.start.0), self.end.0.min(other.end.0))
    }
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start.0, self.end.0)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start.0, self.end.0)
    }
}

/// The unit of tracking: a power of two from 512 bytes to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// What disks use.
    pub const DISK: Self = Self(4096);
    /// The smallest allowed, in bytes.
    pub const MIN_BYTES: u32 = 512;
    /// The largest allowed, in bytes.
    pub const MAX_BYTES: u32 = 2 << 20;

    /// A block size of so many bytes, if that is one.
    pub fn new(bytes: u32) -> Option<Self> {
        let fits = (Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes);
        (fits && bytes.is_power_of_two()).then_some(Self(bytes))
    }

    /// Bytes in one block.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// Bytes in one block, to index memory with.
    pub fn bytes_usize(self) -> usize {
        self.0 as usize
    }

    /// Exact: the bytes in so many blocks.
    pub fn bytes_in(self, count: BlockCount) -> u64 {
        count.0 * u64::from(self.0)
    }

    /// Exact: where a block starts.
    pub fn offset_of(self, block: BlockIndex) -> ByteOffset {
        ByteOffset(block.0 * u64::from(self.0))
    }

    /// Exact: the bytes of these blocks.
    pub fn bytes_of(self, blocks: BlockRange) -> ByteRange {
        ByteRange {
            start: self.offset_of(blocks.start),
            end: self.offset_of(blocks.end),
        }
    }

    /// Floor: the block that holds this byte.
    pub fn block_floor(self, offset: ByteOffset) -> BlockIndex {
        BlockIndex(offset.0 / u64::from(self.0))
    }

    /// Ceil: the blocks that so many bytes need.
    pub fn count_ceil(self, bytes: u64) -> BlockCount {
        BlockCount(bytes.div_ceil(u64::from(self.0)))
    }

    /// Floor at the start, ceil at the end: every block that has a byte in the range.
    pub fn blocks_touched(self, bytes: ByteRange) -> BlockRange {
        if bytes.is_empty() {
            let at = self.block_floor(bytes.start).0;
            return BlockRange::new(at, at);
        }
        BlockRange::new(
            self.block_floor(bytes.start).0,
            self.count_ceil(bytes.end.0).0,
        )
    }

    /// Ceil at the start, floor at the end: every block that lies wholly in the range.
    pub fn blocks_inside(self, bytes: ByteRange) -> BlockRange {
        BlockRange::new(
            self.count_ceil(bytes.start.0).0,
            self.block_floor(bytes.end).0,
        )
    }

    /// Is this a block boundary?
    pub fn is_aligned(self, bytes: u64) -> bool {
        bytes.is_multiple_of(u64::from(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_powers_of_two_in_bounds() {
        for good in [512, 4096, 2 << 20] {
            assert_eq!(BlockSize::new(good).unwrap().bytes(), good);
        }
        for bad in [0, 1, 256, 4095, 4097, 3 << 12, 4 << 20] {
            assert_eq!(BlockSize::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn touched_and_inside_agree_with_a_walk_over_bytes() {
        let size = BlockSize::new(512).unwrap();
        for start in 0..1100u64 {
            for len in [0, 1, 511, 512, 513, 1024, 1500] {
                let range = ByteRange::at(start, len).unwrap();
                let touched = size.blocks_touched(range);
                let inside = size.blocks_inside(range);
                for block in 0..8 {
                    let bytes = size.bytes_of(BlockRange::one(BlockIndex(block)));
                    let common = bytes.intersect(range).len();
                    assert_eq!(touched.contains(BlockIndex(block)), common > 0, "{range}");
                    assert_eq!(inside.contains(BlockIndex(block)), common == 512, "{range}");
                }
            }
        }
    }

    #[test]
    fn a_range_past_the_last_byte_number_is_none() {
        assert_eq!(ByteRange::at(u64::MAX, 1), None);
        assert!(ByteRange::at(u64::MAX, 0).is_some());
    }
}
