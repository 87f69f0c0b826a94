//! The inode tables: one inode by its number, or all in order.
//!
//! Tables that overlap another's are not read: so all of them together are no longer than the file system.

use crate::error::Ext4Error;
use crate::file_system::FileSystem;
use crate::inode::Inode;
use crate::limits::TABLE_CHUNK_BYTES;
use crate::problems::{Problem, Problems};

/// Inodes as they lie in a table.
pub(crate) struct Raw<'a> {
    pub(crate) number: u32,
    pub(crate) bytes: &'a [u8],
}

impl FileSystem<'_> {
    /// The inode of this number, in use or not.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn inode(&self, number: u32) -> Result<Inode, Ext4Error> {
        let sb = self.superblock();
        let refuse = |why: &str| Ext4Error::damaged(format!("inode {number}"), why);
        let index = number.checked_sub(1).filter(|index| *index < sb.inodes);
        let index = index.ok_or_else(|| refuse("there is no inode of this number"))?;
        let (group, within) = (index / sb.inodes_per_group, index % sb.inodes_per_group);
        let table = self.descriptor(group).inode_table;
        if !sb.has_blocks(table, sb.inode_table_blocks()) {
            return Err(refuse("its table lies outside the file system"));
        }
        let per_block = sb.block_bytes / sb.inode_bytes;
        let block = self.view().block(table + u64::from(within / per_block))?;
        let at = ((within % per_block) * sb.inode_bytes) as usize;
        let raw = &block[at..at + sb.inode_bytes as usize];
        Ok(Inode::parse(number, raw, sb))
    }

    /// Groups whose inode table lies where it can, and on no other's.
    pub(crate) fn sound_tables(&self, problems: &mut Problems) -> Vec<bool> {
        let (sb, blocks) = (self.superblock(), self.superblock().inode_table_blocks());
        let table = |group: u32| self.descriptor(group).inode_table;
        let mut sound: Vec<bool> = (0..sb.groups())
            .map(|g| sb.has_blocks(table(g), blocks))
            .collect();
        let mut order: Vec<u32> = (0..sb.groups()).filter(|g| sound[*g as usize]).collect();
        order.sort_by_key(|group| table(*group));
        let mut free_from = 0;
        for group in order {
            if table(group) < free_from {
                sound[group as usize] = false;
            } else {
                free_from = table(group) + blocks;
            }
        }
        for group in (0..sb.groups()).filter(|group| !sound[*group as usize]) {
            problems.note(Problem::Descriptor, || {
                format!(
                    "the inode table of group {group} lies where it cannot, at block {}",
                    table(group)
                )
            });
        }
        sound
    }

    /// Visits the inodes of a group that may be in use, in order.
    pub(crate) fn scan_table(
        &self,
        group: u32,
        each: &mut dyn FnMut(Raw<'_>) -> Result<(), Ext4Error>,
    ) -> Result<(), Ext4Error> {
        let sb = self.superblock();
        let descriptor = self.descriptor(group);
        let per_block = sb.block_bytes / sb.inode_bytes;
        let blocks_at_once = (TABLE_CHUNK_BYTES / sb.block_bytes).max(1);
        let mut left = descriptor.inodes_written;
        let mut number = group * sb.inodes_per_group + 1;
        let mut block = descriptor.inode_table;
        let mut chunk = Vec::new();
        while left > 0 {
            let blocks = left.div_ceil(per_block).min(blocks_at_once);
            chunk.resize((blocks * sb.block_bytes) as usize, 0);
            self.view().read(block, &mut chunk)?;
            for bytes in chunk
                .chunks_exact(sb.inode_bytes as usize)
                .take(left as usize)
            {
                each(Raw { number, bytes })?;
                number += 1;
                left -= 1;
            }
            block += u64::from(blocks);
        }
        Ok(())
    }
}
