//! Extent trees.
//!
//! A node: a header of 12 bytes (magic, entries, room for entries, depth), entries of 12 bytes, and in a node of its own block
//! a checksum after the room for entries. At depth 0 an entry is a run of blocks, above it points at a node one lower.
//! The root is in the inode.

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::features::Feature;
use crate::fields::Fields;
use crate::limits::EXTENT_DEPTH_MAX;
use crate::mapping::Walk;
use crate::problems::Problem;

const MAGIC: u16 = 0xf30a;
const ENTRY_BYTES: usize = 12;
/// Longer ones are unwritten, and so much shorter than they say.
const WRITTEN_MAX: u16 = 0x8000;

impl Walk<'_, '_> {
    pub(crate) fn extents(&mut self) -> Result<(), Ext4Error> {
        let root = self.inode.root;
        let depth = Fields(&root).le16(6);
        if depth > EXTENT_DEPTH_MAX {
            self.note(Problem::Tree, || format!("an extent tree of depth {depth}"));
            return Ok(());
        }
        self.node(&root, depth)
    }

    /// Visits what lies below a node that should be of this depth.
    fn node(&mut self, node: &[u8], depth: u16) -> Result<(), Ext4Error> {
        let f = Fields(node);
        let (magic, entries, room, says) = (f.le16(0), f.le16(2), f.le16(4), f.le16(6));
        let fits = (usize::from(room) + 1) * ENTRY_BYTES <= node.len();
        if magic != MAGIC || entries > room || !fits || says != depth {
            let found = format!("magic {magic:#x}, {entries} of {room} entries, depth {says}");
            self.note(Problem::Tree, || {
                format!("no node of depth {depth}: {found}")
            });
            return Ok(());
        }
        for number in 1..=usize::from(entries) {
            self.entry(f.from(number * ENTRY_BYTES), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Fields<'_>, depth: u16) -> Result<(), Ext4Error> {
        if depth == 0 {
            let (logical, len) = (entry.le32(0).into(), entry.le16(4));
            let start = u64::from(entry.le32(8)) | u64::from(entry.le16(6)) << 32;
            let unwritten = len > WRITTEN_MAX;
            let count = if unwritten { len - WRITTEN_MAX } else { len };
            return self.data(logical, start, count.into(), unwritten);
        }
        let block = u64::from(entry.le32(4)) | u64::from(entry.le16(8)) << 32;
        let Some(node) = self.tree_block(block)? else {
            return Ok(());
        };
        if !self.node_checksum_matches(&node) {
            self.note(Problem::ExtentChecksum, || {
                format!("the checksum of block {block} of its extent tree does not match")
            });
        }
        self.node(&node, depth - 1)
    }

    fn node_checksum_matches(&self, node: &[u8]) -> bool {
        let sb = self.fs.superblock();
        let end = (usize::from(Fields(node).le16(4)) + 1) * ENTRY_BYTES;
        if !sb.features.has(Feature::METADATA_CSUM) || end + 4 > node.len() {
            return true;
        }
        Fields(node).le32(end) == crc32c(self.inode.checksum_seed(sb), &node[..end])
    }
}
