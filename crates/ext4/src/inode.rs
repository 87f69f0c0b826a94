//! Inodes: what a file is, and where its blocks are listed.
//!
//! | at | what | at | what |
//! |---|---|---|---|
//! | 0x00 | mode | 0x64 | generation |
//! | 0x04, 0x6c | size | 0x68, 0x76 | xattr block |
//! | 0x14 | time of deletion, or the next orphan | 0x7c, 0x82 | checksum |
//! | 0x1a | links | 0x80 | bytes of this table used after 0x80 |
//! | 0x1c, 0x74 | blocks | | |
//! | 0x20 | flags | | then attributes, if they fit |
//! | 0x28 | 60 bytes: a tree's root, 15 block pointers, a link's target, or data | | |
//!
//! Left out: owners, times, and whatever else does not say whose a block is.

use crate::checksum::crc32c;
use crate::features::Feature;
use crate::fields::Fields;
use crate::superblock::Superblock;
use crate::xattr;

/// The list of bad blocks.
pub const BAD_BLOCKS: u32 = 1;
/// The root directory.
pub const ROOT: u32 = 2;
/// Reserves blocks for more group descriptors.
pub const RESIZE: u32 = 7;

/// The fixed part; what follows depends on the size of inodes.
const CORE_BYTES: usize = 128;
const LINKS_AT: usize = 0x1a;

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket or a pipe: it has no blocks.
    Device,
    /// None that there is.
    Unknown,
}

/// What an inode's flags say that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// It lists its blocks in an extent tree.
    Extents = 0x8_0000,
    /// It holds the value of another's attribute.
    EaInode = 0x20_0000,
    /// Its data is in the inode.
    InlineData = 0x1000_0000,
    /// A directory with a hash tree.
    Index = 0x1000,
}

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// Kind and permissions, as `stat` has them.
    pub mode: u16,
    /// Bytes of its data.
    pub size_bytes: u64,
    /// Names that it has.
    pub links: u16,
    /// Its flags as they are: see [`Inode::has`].
    pub flags: u32,
    /// What it takes, xattr blocks included, in units of 512 bytes, or of blocks for huge files.
    pub blocks: u64,
    /// Told apart from those that had the number before.
    pub generation: u32,
    /// When it was deleted, or the next orphan.
    pub deleted: u32,
    /// The block of its attributes, 0 for none.
    pub xattr_block: u64,
    /// Where its blocks are listed, or what it holds.
    pub(crate) root: [u8; 60],
    /// Its own attributes, from their magic number on; empty without any.
    pub(crate) attributes: Box<[u8]>,
    /// Its checksum, if it has one, matches.
    pub checksum_matches: bool,
}

/// Links of an inode that is not parsed yet: most of a table is not in use.
pub(crate) fn raw_links(raw: &[u8]) -> u16 {
    Fields(raw).le16(LINKS_AT)
}

/// What kind it is, likewise.
pub(crate) fn raw_kind(raw: &[u8]) -> Kind {
    kind(Fields(raw).le16(0))
}

impl Inode {
    /// Reads an inode from its bytes in the table.
    pub(crate) fn parse(number: u32, raw: &[u8], superblock: &Superblock) -> Self {
        let f = Fields(raw);
        let mode = f.le16(0x00);
        let kind = kind(mode);
        let large = kind == Kind::File
            || (kind == Kind::Directory && superblock.features.has(Feature::LARGEDIR));
        let size_high = if large { f.le32(0x6c) } else { 0 };
        let wide = superblock.features.has(Feature::HUGE_FILE);
        let blocks_high = if wide { f.le16(0x74) } else { 0 };
        let extra = if raw.len() > CORE_BYTES {
            usize::from(f.le16(0x80))
        } else {
            0
        };
        let rest = f.from(CORE_BYTES + extra);
        let has_attributes = raw.len() > CORE_BYTES && rest.le32(0) == xattr::MAGIC;
        Self {
            number,
            mode,
            size_bytes: u64::from(f.le32(0x04)) | u64::from(size_high) << 32,
            links: raw_links(raw),
            flags: f.le32(0x20),
            blocks: u64::from(f.le32(0x1c)) | u64::from(blocks_high) << 32,
            generation: f.le32(0x64),
            deleted: f.le32(0x14),
            xattr_block: u64::from(f.le32(0x68)) | u64::from(f.le16(0x76)) << 32,
            root: f.array(0x28),
            attributes: if has_attributes {
                rest.0.into()
            } else {
                Box::default()
            },
            checksum_matches: checksum_matches(number, raw, superblock),
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        kind(self.mode)
    }

    /// Is this flag set?
    pub fn has(&self, flag: Flag) -> bool {
        self.flags & flag as u32 != 0
    }

    /// A symbolic link whose target is in the inode itself.
    pub(crate) fn is_short_link(&self, superblock: &Superblock) -> bool {
        let xattr_units = match self.xattr_block {
            0 => 0,
            _ => u64::from(superblock.cluster_blocks) * u64::from(superblock.block_bytes / 512),
        };
        self.kind() == Kind::Symlink
            && !self.has(Flag::EaInode)
            && !self.has(Flag::InlineData)
            && self.size_bytes < 60
            && self.blocks.saturating_sub(xattr_units) == 0
    }

    /// Does it list blocks, rather than hold something itself?
    pub(crate) fn lists_blocks(&self, superblock: &Superblock) -> bool {
        let may = match self.kind() {
            Kind::File | Kind::Directory | Kind::Symlink => true,
            Kind::Device => false,
            // The list of bad blocks, and the reserved descriptors of old file systems.
            Kind::Unknown => self.number < superblock.first_inode,
        };
        may && !self.has(Flag::InlineData) && !self.is_short_link(superblock)
    }

    /// What checksums of its blocks start from.
    pub(crate) fn checksum_seed(&self, superblock: &Superblock) -> u32 {
        let seed = crc32c(superblock.checksum_seed, &self.number.to_le_bytes());
        crc32c(seed, &self.generation.to_le_bytes())
    }
}

fn kind(mode: u16) -> Kind {
    match mode >> 12 {
        0x8 => Kind::File,
        0x4 => Kind::Directory,
        0xa => Kind::Symlink,
        0x1 | 0x2 | 0x6 | 0xc => Kind::Device,
        _ => Kind::Unknown,
    }
}

fn checksum_matches(number: u32, raw: &[u8], superblock: &Superblock) -> bool {
    let is_blank = || raw.iter().take(CORE_BYTES).all(|byte| *byte == 0);
    if !superblock.features.has(Feature::METADATA_CSUM) || is_blank() {
        return true;
    }
    let f = Fields(raw);
    let has_high = raw.len() > CORE_BYTES && f.le16(0x80) >= 4;
    let mut crc = crc32c(superblock.checksum_seed, &number.to_le_bytes());
    crc = crc32c(crc, f.slice(0x64, 4));
    let holes = [0x7c..0x7e, 0x82..0x84];
    let mut at = 0;
    for hole in &holes[..if has_high { 2 } else { 1 }] {
        crc = crc32c(crc32c(crc, f.slice(at, hole.start - at)), &[0, 0]);
        at = hole.end;
    }
    crc = crc32c(crc, f.from(at).0);
    if has_high {
        crc == u32::from(f.le16(0x7c)) | u32::from(f.le16(0x82)) << 16
    } else {
        crc & 0xffff == u32::from(f.le16(0x7c))
    }
}
