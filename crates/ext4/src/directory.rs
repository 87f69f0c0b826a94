//! Directories: names and inodes.
//!
//! A block is a chain of entries: inode, length of the entry, length of the name, kind, name. The blocks of a hash tree (htree)
//! look like entries without an inode, and names never depend on it: reading all blocks in order reads every directory, linear or
//! hashed. With metadata checksums, the last 12 bytes of a block look like an entry without an inode as well.
//!
//! Small directories may lie in the inode (inline data): the parent's inode, entries, and the rest as an attribute.

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::features::Feature;
use crate::fields::Fields;
use crate::file_system::FileSystem;
use crate::inode::{Flag, Inode, Kind};
use crate::limits::LINK_BYTES_MAX;
use crate::mapping::{Piece, Seen, Walk};
use crate::problems::{Problem, Problems};
use crate::xattr;

const HEAD_BYTES: usize = 8;
const TAIL_BYTES: usize = 12;
/// What stands for the kind in the entry that holds a checksum.
const TAIL_KIND: u8 = 0xde;

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'b> {
    /// The inode that it names.
    pub inode: u32,
    /// The name: any bytes but `/` and zero. Encrypted ones are not text.
    pub name: &'b [u8],
}

impl Entry<'_> {
    /// Is it the directory itself, or its parent?
    pub fn is_dots(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }
}

/// Visits the entries of a block; the place where the chain breaks, if it does.
fn entries(block: &[u8], each: &mut dyn FnMut(Entry<'_>)) -> Option<usize> {
    let mut at = 0;
    while at < block.len() {
        let f = Fields(block).from(at);
        let (inode, len) = (f.le32(0), entry_bytes(f.le16(4), block.len()));
        let name_bytes = usize::from(f.u8(6));
        let fits = len >= HEAD_BYTES && len.is_multiple_of(4) && len <= block.len() - at;
        if !fits || (inode != 0 && HEAD_BYTES + name_bytes > len) {
            return Some(at);
        }
        if inode != 0 && name_bytes > 0 {
            let name = f.slice(HEAD_BYTES, name_bytes);
            each(Entry { inode, name });
        }
        at += len;
    }
    None
}

/// The length of an entry. Where blocks have 64 KiB, a length of a whole block does not fit in 16 bits.
fn entry_bytes(stored: u16, block_bytes: usize) -> usize {
    let len = usize::from(stored);
    match stored {
        _ if block_bytes < 65536 => len,
        0 | 65535 => block_bytes,
        _ => (len & 65532) | (len & 3) << 16,
    }
}

/// Does the checksum of a block match: that of entries at its end, or that of a hash tree after the room for its entries?
fn checksum_matches(block: &[u8], seed: u32) -> bool {
    let f = Fields(block);
    let end = block.len() - TAIL_BYTES;
    let tail = f.from(end);
    if tail.le32(0) == 0 && tail.le16(4) == 12 && tail.u8(7) == TAIL_KIND {
        return tail.le32(8) == crc32c(seed, &block[..end]);
    }
    let first = entry_bytes(f.le16(4), block.len());
    // A node is one empty entry; the root has `.` and `..` and says how it hashes.
    let at = if first == block.len() { HEAD_BYTES } else { 32 };
    let (room, used) = (usize::from(f.le16(at)), usize::from(f.le16(at + 2)));
    let (tail, end) = (f.from(at + room * 8), at + used * 8);
    let fits = used <= room && at + room * 8 + 8 <= block.len();
    let parts = [f.slice(0, end), tail.slice(0, 4), &[0; 4]];
    fits && tail.le32(4) == parts.iter().fold(seed, |crc, part| crc32c(crc, part))
}

impl FileSystem<'_> {
    /// The entries of a directory, `.` and `..` included where they are stored, and what is wrong with it.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read_directory(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(Entry<'_>),
    ) -> Result<Problems, Ext4Error> {
        let mut problems = Problems::default();
        self.directory_entries(inode, &mut Seen::default(), &mut problems, each)?;
        Ok(problems)
    }

    /// The same, as a part of a pass over many.
    pub(crate) fn directory_entries(
        &self,
        inode: &Inode,
        seen: &mut Seen,
        problems: &mut Problems,
        each: &mut dyn FnMut(Entry<'_>),
    ) -> Result<(), Ext4Error> {
        let number = inode.number;
        if inode.has(Flag::InlineData) {
            // The inode of the parent takes the place of the first two entries.
            let rest = inline_rest(inode);
            let broken = entries(&inode.root[4..], each).or(entries(rest, each));
            if let Some(at) = broken {
                problems.note(Problem::Directory, || {
                    format!("directory {number}: no entry at byte {at} of its inline data")
                });
            }
            return Ok(());
        }
        let mut runs = Vec::new();
        let visit = &mut |piece| {
            if let Piece::Data {
                logical,
                start,
                count,
                ..
            } = piece
            {
                runs.push((logical, start, count));
            }
            Ok(())
        };
        Walk {
            fs: self,
            inode,
            seen,
            problems,
            visit,
        }
        .run()?;
        let end = inode
            .size_bytes
            .div_ceil(self.superblock().block_bytes.into());
        for (logical, start, count) in runs {
            for block in start..start + count.min(end.saturating_sub(logical)) {
                // A hostile directory may list a block ever again: that ends it.
                if !seen.first_time(block) {
                    problems.note(Problem::Directory, || {
                        format!("directory {number} has block {block}, which was read already")
                    });
                    return Ok(());
                }
                let bytes = self.view().block(block)?;
                self.directory_block(inode, block, &bytes, problems, each);
            }
        }
        Ok(())
    }

    fn directory_block(
        &self,
        inode: &Inode,
        at: u64,
        block: &[u8],
        problems: &mut Problems,
        each: &mut dyn FnMut(Entry<'_>),
    ) {
        let sb = self.superblock();
        let mut tell = |what: &str| {
            problems.note(Problem::Directory, || {
                format!("directory {}: block {at}: {what}", inode.number)
            });
        };
        let has_checksums = sb.features.has(Feature::METADATA_CSUM);
        if has_checksums && !checksum_matches(block, inode.checksum_seed(sb)) {
            tell("its checksum does not match");
        }
        if let Some(at) = entries(block, each) {
            tell(&format!("no entry at byte {at}"));
        }
    }

    /// Where a symbolic link leads; nothing if the inode is none.
    ///
    /// # Errors
    /// Where its block cannot be read.
    pub fn link_target(&self, inode: &Inode) -> Result<Option<Vec<u8>>, Ext4Error> {
        let size = usize::try_from(inode.size_bytes.min(LINK_BYTES_MAX)).unwrap_or(0);
        if inode.kind() != Kind::Symlink {
            return Ok(None);
        }
        if inode.has(Flag::InlineData) {
            return Ok(Some(inline_data(inode, size)));
        }
        if inode.is_short_link(self.superblock()) {
            return Ok(Some(Fields(&inode.root).slice(0, size).to_vec()));
        }
        let mut first = None;
        self.pieces(inode, &mut |piece| {
            if let Piece::Data {
                logical: 0, start, ..
            } = piece
            {
                first = Some(start);
            }
            Ok(())
        })?;
        let Some(block) = first else {
            let place = format!("inode {}", inode.number);
            return Err(Ext4Error::damaged(
                place,
                "a symbolic link without its target",
            ));
        };
        let mut target = self.view().block(block)?;
        target.truncate(size);
        Ok(Some(target))
    }
}

/// What an inode holds itself, so much of it.
pub(crate) fn inline_data(inode: &Inode, bytes: usize) -> Vec<u8> {
    let mut data = [&inode.root[..], inline_rest(inode)].concat();
    data.truncate(bytes);
    data
}

/// Inline data that did not fit into the first 60 bytes.
fn inline_rest(inode: &Inode) -> &[u8] {
    let is_rest = |entry: &xattr::Entry<'_>| entry.space == xattr::SYSTEM && entry.name == b"data";
    xattr::in_inode(inode)
        .find(is_rest)
        .map_or(&[], |entry| entry.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(inode: u32, len: u16, name: &[u8]) -> Vec<u8> {
        let mut bytes = inode.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend([u8::try_from(name.len()).unwrap(), 1]);
        bytes.extend(name);
        bytes.resize(usize::from(len).max(8), 0);
        bytes
    }

    fn names(block: &[u8]) -> (Vec<(u32, Vec<u8>)>, Option<usize>) {
        let mut found = Vec::new();
        let broken = entries(block, &mut |e| found.push((e.inode, e.name.to_vec())));
        (found, broken)
    }

    #[test]
    fn a_chain_is_read_until_it_breaks() {
        let whole = [
            entry(2, 12, b"a"),
            entry(0, 16, b"gone"),
            entry(9, 12, b"bcd"),
        ]
        .concat();
        let all = vec![(2, b"a".to_vec()), (9, b"bcd".to_vec())];
        assert_eq!(names(&whole), (all.clone(), None));
        for (len, place) in [(0, 28), (7, 28), (10, 28), (8, 28), (16, 28)] {
            let mut block = whole.clone();
            block[32] = len;
            assert_eq!(names(&block), (all[..1].to_vec(), Some(place)), "{len}");
        }
    }

    #[test]
    fn an_entry_of_64_kib_has_its_length_stored_in_16_bits() {
        assert_eq!(
            (entry_bytes(0, 65536), entry_bytes(65535, 65536)),
            (65536, 65536)
        );
        assert_eq!((entry_bytes(12, 65536), entry_bytes(12, 4096)), (12, 12));
        assert_eq!((entry_bytes(0, 4096), entry_bytes(65535, 4096)), (0, 65535));
    }
}
