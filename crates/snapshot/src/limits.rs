//! Every maximum of the stored formats, and how they hang together.
//!
//! Invariant 8: each is enforced by the writer and by the reader. `docs/format.md` repeats them.

use cowslip_block::BlockSize;
use cowslip_block::units::SIZE_BYTES_MAX;

/// The longest name of a snapshot, in bytes.
pub(crate) const SNAPSHOT_NAME_BYTES_MAX: usize = 128;

/// Parts of one snapshot: disk, memory, state.
pub(crate) const SNAPSHOT_PARTS_MAX: usize = crate::parts::Part::ALL.len();

/// The payload of one frame, where a block is not larger than that.
pub(crate) const FRAME_BYTES: u32 = 64 << 10;

/// The payload of one frame at most: one block of the largest size.
pub(crate) const FRAME_BYTES_MAX: u32 = BlockSize::MAX_BYTES;

/// Frames in one layer: 1 TiB of payload in frames of 64 KiB, and 128 MiB of index.
pub(crate) const LAYER_FRAMES_MAX: u64 = 1 << 24;

/// Blocks in one layer, whatever their size.
pub const LAYER_BLOCKS_MAX: u64 = LAYER_FRAMES_MAX * (FRAME_BYTES / BlockSize::MIN_BYTES) as u64;

/// Layers that the delta frames of one layer are made over.
pub(crate) const LAYER_BASES_MAX: u32 = 256;

/// Blocks in the delta frames of one layer: 16 GiB of pages, and 32 MiB of memory while it is open.
pub(crate) const LAYER_DELTA_BLOCKS_MAX: u64 = 1 << 22;

/// Blocks that one leaf of the map covers.
pub const LEAF_BLOCKS: u64 = 256;

/// Slots of an inner node of the map.
pub(crate) const INNER_SLOTS: usize = 32;

/// The highest level of the map; leaves are level 0.
pub(crate) const HEIGHT_MAX: u8 = 7;

/// One encoded node of the map.
pub const NODE_BYTES_MAX: u32 = 16 << 10;

/// All the nodes in one header object.
pub(crate) const HEADER_NODES_BYTES_MAX: u64 = 4 << 30;

/// What made a header, in bytes.
pub const MADE_BY_BYTES_MAX: usize = 64;

/// Snapshots since the template.
pub(crate) const GENERATION_MAX: u64 = u32::MAX as u64;

/// One lease: what one operation writes or reads.
pub(crate) const LEASE_BYTES_MAX: u64 = 64 << 20;

/// What a store notes of one session.
pub(crate) const SESSION_RECORD_BYTES_MAX: u64 = 64 << 10;

/// A session's list of what it is made of.
pub(crate) const SESSION_MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Frozen caches of one session while a snapshot waits to be stored. Twice as many may be left where
/// none does, of snapshots that were given up.
pub const FROZEN_CACHES_MAX: usize = 64;

/// The blocks below a slot that points at a node of this level.
pub const fn span(level: u8) -> u64 {
    LEAF_BLOCKS << (level as u32 * INNER_SLOTS.ilog2())
}

// The longest varint of a number below each bound: seven bits a byte.
const VARINT_MAX: u64 = 10;
const VARINT_SLOT: u64 = 2;

const _: () = {
    assert!(INNER_SLOTS.is_power_of_two() && LEAF_BLOCKS.is_power_of_two());
    // The largest device of the smallest blocks fits under the highest root, and needs it.
    assert!(span(HEIGHT_MAX) >= SIZE_BYTES_MAX / BlockSize::MIN_BYTES as u64);
    assert!(span(HEIGHT_MAX - 1) < SIZE_BYTES_MAX / BlockSize::MIN_BYTES as u64);
    // Every leaf and every inner node that is allowed can be written.
    let leaf = 1 + 2 * VARINT_SLOT + LEAF_BLOCKS * (16 + 3 * VARINT_SLOT + VARINT_MAX);
    assert!(leaf <= NODE_BYTES_MAX as u64);
    let pointer = VARINT_SLOT + 2 * VARINT_MAX + 16;
    let inner = 1 + 2 * VARINT_SLOT + 8 + INNER_SLOTS as u64 * (2 * 16 + pointer);
    assert!(inner <= NODE_BYTES_MAX as u64);
    // A frame's stored length has 24 bits in the index, its kind the other 8.
    assert!(FRAME_BYTES_MAX < 1 << 24 && FRAME_BYTES <= FRAME_BYTES_MAX);
    assert!(MADE_BY_BYTES_MAX <= u8::MAX as usize);
    // The longest list of caches leaves room for the paths beside it.
    let entry = SNAPSHOT_NAME_BYTES_MAX as u64 + 200;
    assert!(2 * FROZEN_CACHES_MAX as u64 * entry < SESSION_MANIFEST_BYTES_MAX / 4);
};

#[cfg(test)]
mod tests;
