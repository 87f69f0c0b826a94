//! Every maximum, in one place, with what it costs in memory.

/// Groups of one file system: 1 PiB in groups of 128 MiB. A decoded descriptor takes 48 bytes.
pub const GROUPS_MAX: u64 = 1 << 23;

/// Claims of inodes and of metadata on runs of blocks, before they are sorted: 24 bytes each.
pub const CLAIMS_MAX: usize = 1 << 25;

/// Levels of an extent tree below the inode; the format's own bound.
pub const EXTENT_DEPTH_MAX: u16 = 5;

/// Names on the way from the root to a file. Deeper ones get a path that starts at an inode number.
pub const PATH_DEPTH_MAX: usize = 4096;

/// Messages that [`crate::Problems`] keeps; the others are only counted.
pub const EXAMPLES_MAX: usize = 32;

/// Bytes of an inode table that are read at a time.
pub(crate) const TABLE_CHUNK_BYTES: u32 = 1 << 20;

/// Bytes of a symbolic link's target; the format's own bound is a block.
pub const LINK_BYTES_MAX: u64 = 64 << 10;

/// Symbolic links on one path, as many as Linux follows.
pub const LINKS_MAX: u32 = 40;
