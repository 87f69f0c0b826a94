//! Group descriptors: where a group's bitmaps and its inode table lie.
//!
//! Bytes (the second half only where descriptors have 64):
//!
//! | at | what | at | the high half |
//! |---|---|---|---|
//! | 0x00 | block bitmap | 0x20 | |
//! | 0x04 | inode bitmap | 0x24 | |
//! | 0x08 | inode table | 0x28 | |
//! | 0x12 | flags | | |
//! | 0x18, 0x1a | checksums of the bitmaps | 0x38, 0x3a | |
//! | 0x1c | inodes at the end of the table that were never used | 0x32 | |
//! | 0x1e | checksum of the descriptor | | |
//!
//! What a descriptor says is not initialised counts only where descriptors have checksums, and this one's matches.

use crate::checksum::{crc16, crc32c};
use crate::error::Ext4Error;
use crate::features::Feature;
use crate::fields::Fields;
use crate::problems::{Problem, Problems};
use crate::superblock::Superblock;
use crate::view::View;

const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const CHECKSUM_AT: usize = 0x1e;

/// One group's descriptor. Its places are not checked: see [`Superblock::has_blocks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescriptor {
    /// The block bitmap's block.
    pub block_bitmap: u64,
    /// The inode bitmap's block.
    pub inode_bitmap: u64,
    /// The inode table's first block.
    pub inode_table: u64,
    /// Inodes of the table that may be in use: those after them were never written.
    pub inodes_written: u32,
    /// There is a block bitmap on disk. Else only the group's own metadata is in use.
    pub has_block_bitmap: bool,
    /// There is an inode bitmap on disk. Else no inode is in use.
    pub has_inode_bitmap: bool,
    /// The block bitmap's checksum.
    pub block_bitmap_checksum: u32,
    /// The inode bitmap's checksum.
    pub inode_bitmap_checksum: u32,
}

impl GroupDescriptor {
    fn parse(raw: &[u8], superblock: &Superblock, counts: bool) -> Self {
        // Descriptors of 32 bytes end before the high halves, which then read as zeros.
        let f = Fields(raw);
        let flags = if counts { f.le16(0x12) } else { 0 };
        let unused = u32::from(f.le16(0x1c)) | u32::from(f.le16(0x32)) << 16;
        let written = superblock.inodes_per_group.saturating_sub(unused);
        Self {
            block_bitmap: f.le64_split(0x00, 0x20),
            inode_bitmap: f.le64_split(0x04, 0x24),
            inode_table: f.le64_split(0x08, 0x28),
            inodes_written: match (counts, flags & INODE_UNINIT != 0) {
                (false, _) => superblock.inodes_per_group,
                (true, true) => 0,
                (true, false) => written,
            },
            has_block_bitmap: flags & BLOCK_UNINIT == 0,
            has_inode_bitmap: flags & INODE_UNINIT == 0,
            block_bitmap_checksum: u32::from(f.le16(0x18)) | u32::from(f.le16(0x38)) << 16,
            inode_bitmap_checksum: u32::from(f.le16(0x1a)) | u32::from(f.le16(0x3a)) << 16,
        }
    }
}

/// The descriptors of all groups; from the copies that go with the superblock of group `copy`.
pub(crate) fn read_all(
    view: &View<'_>,
    superblock: &Superblock,
    copy: u32,
    problems: &mut Problems,
) -> Result<Vec<GroupDescriptor>, Ext4Error> {
    let groups = superblock.groups();
    let mut all = Vec::with_capacity(groups as usize);
    let mut block = vec![0; superblock.block_bytes as usize];
    for number in 0..superblock.descriptor_blocks() {
        let at = superblock.descriptor_block(number, copy);
        if !superblock.has_block(at) {
            let place = format!("block {number} of the group descriptors");
            return Err(Ext4Error::damaged(place, "it lies outside the file system"));
        }
        view.read(at, &mut block)?;
        for raw in block.chunks_exact(superblock.descriptor_bytes as usize) {
            let group = u32::try_from(all.len()).expect("groups are numbered in 32 bits");
            if group == groups {
                break;
            }
            let matches = checksum_matches(raw, group, superblock);
            if !matches {
                problems.note(Problem::DescriptorChecksum, || {
                    format!("the checksum of the descriptor of group {group} does not match")
                });
            }
            let counts = matches && superblock.features.has_descriptor_checksums();
            all.push(GroupDescriptor::parse(raw, superblock, counts));
        }
    }
    Ok(all)
}

fn checksum_matches(raw: &[u8], group: u32, superblock: &Superblock) -> bool {
    let number = group.to_le_bytes();
    let (before, after) = (&raw[..CHECKSUM_AT], &raw[CHECKSUM_AT + 2..]);
    let wanted = if superblock.features.has(Feature::METADATA_CSUM) {
        let parts = [&number[..], before, &[0, 0], after];
        let crc = parts
            .iter()
            .fold(superblock.checksum_seed, |crc, part| crc32c(crc, part));
        crc.to_le_bytes()[..2]
            .try_into()
            .map_or(0, u16::from_le_bytes)
    } else if superblock.features.has(Feature::GDT_CSUM) {
        let after = if superblock.features.has(Feature::BITS64) {
            after
        } else {
            &[]
        };
        let parts = [&superblock.uuid[..], &number, before, after];
        parts.iter().fold(!0, |crc, part| crc16(crc, part))
    } else {
        return true;
    };
    wanted == Fields(raw).le16(CHECKSUM_AT)
}
