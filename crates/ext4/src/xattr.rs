//! Extended attributes: in an inode, in a block of their own, or in an inode that holds one large value.
//!
//! Entries lie in a row, from the start; their values from the end. An entry: name length, name space, place of the value (from
//! the first entry in an inode, from the block's start in a block), inode of the value, its length, hash, name, padding to 4
//! bytes. Four zero bytes end the row.

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::features::Feature;
use crate::fields::Fields;
use crate::file_system::FileSystem;
use crate::inode::Inode;
use crate::problems::{Problem, Problems};

pub(crate) const MAGIC: u32 = 0xea02_0000;
const ENTRY_BYTES: usize = 16;
/// Bytes before the first entry, of a block and of an inode's own.
const BLOCK_HEAD: usize = 32;
const INODE_HEAD: usize = 4;
/// The name space of what the system keeps for itself; `data` in it is the rest of inline data.
pub(crate) const SYSTEM: u8 = 7;

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// The number of its name space: 1 is `user`, 6 `security`, 7 `system`.
    pub space: u8,
    /// Its name, without the name space.
    pub name: Vec<u8>,
    /// Its value, if that lies beside it.
    pub value: Vec<u8>,
    /// The inode that holds the value, 0 where it lies beside the name.
    pub value_inode: u32,
    /// How long the value is.
    pub value_bytes: u32,
}

/// One entry, where it lies.
pub(crate) struct Entry<'b> {
    pub(crate) space: u8,
    pub(crate) name: &'b [u8],
    pub(crate) value: &'b [u8],
    pub(crate) value_inode: u32,
    value_bytes: u32,
}

/// Entries in an inode's own bytes.
pub(crate) fn in_inode(inode: &Inode) -> impl Iterator<Item = Entry<'_>> {
    let from = Fields(&inode.attributes).from(INODE_HEAD).0;
    entries(from, from)
}

/// Entries in a block.
pub(crate) fn in_block(block: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    entries(Fields(block).from(BLOCK_HEAD).0, block)
}

/// `values` is what the places of values count from.
fn entries<'b>(row: &'b [u8], values: &'b [u8]) -> impl Iterator<Item = Entry<'b>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let f = Fields(row).from(at);
        if f.0.len() < ENTRY_BYTES || f.le32(0) == 0 {
            return None;
        }
        let name_bytes = usize::from(f.u8(0));
        at += (ENTRY_BYTES + name_bytes).next_multiple_of(4);
        let (place, len, value_inode) = (f.le16(2), f.le32(8), f.le32(4));
        let in_place = if value_inode == 0 { len as usize } else { 0 };
        Some(Entry {
            space: f.u8(1),
            name: f.slice(ENTRY_BYTES, name_bytes),
            value: Fields(values).slice(place.into(), in_place),
            value_inode,
            value_bytes: len,
        })
    })
}

impl FileSystem<'_> {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// Where their block cannot be read.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, Ext4Error> {
        let block = self
            .xattr_block(inode, &mut Problems::default())?
            .unwrap_or_default();
        let all = in_inode(inode).chain(in_block(&block));
        let owned = all.map(|entry| Xattr {
            space: entry.space,
            name: entry.name.to_vec(),
            value: entry.value.to_vec(),
            value_inode: entry.value_inode,
            value_bytes: entry.value_bytes,
        });
        Ok(owned.collect())
    }

    /// The contents of an inode's attribute block, if it has one.
    pub(crate) fn xattr_block(
        &self,
        inode: &Inode,
        problems: &mut Problems,
    ) -> Result<Option<Vec<u8>>, Ext4Error> {
        let (at, number) = (inode.xattr_block, inode.number);
        if at == 0 {
            return Ok(None);
        }
        let mut refuse = |why: &str| {
            problems.note(Problem::Xattr, || {
                format!("inode {number}: attribute block {at}: {why}")
            });
        };
        if !self.superblock().has_block(at) {
            refuse("it lies outside the file system");
            return Ok(None);
        }
        let block = self.view().block(at)?;
        if Fields(&block).le32(0) != MAGIC {
            refuse("it is none");
            return Ok(None);
        }
        if self.superblock().features.has(Feature::METADATA_CSUM) {
            let seed = crc32c(self.superblock().checksum_seed, &at.to_le_bytes());
            let parts = [&block[..16], &[0; 4], &block[20..]];
            let wanted = parts.iter().fold(seed, |crc, part| crc32c(crc, part));
            if wanted != Fields(&block).le32(16) {
                refuse("its checksum does not match");
            }
        }
        Ok(Some(block))
    }
}
