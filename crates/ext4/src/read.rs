//! Files by their paths, and what is in them.
//!
//! An image is untrusted: a path follows at most [`LINKS_MAX`] symbolic links, and a file is read only up to the length that the caller allows.

use std::collections::VecDeque;

use crate::directory::inline_data;
use crate::error::Ext4Error;
use crate::file_system::FileSystem;
use crate::inode::{Flag, Inode, Kind, ROOT};
use crate::limits::LINKS_MAX;
use crate::mapping::Piece;

impl FileSystem<'_> {
    /// What a path leads to, symbolic links followed as a program in there would; nothing where there is no such name.
    ///
    /// # Errors
    /// Where a directory on the way cannot be read, or there are too many links.
    pub fn look_up(&self, path: &str) -> Result<Option<Inode>, Ext4Error> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            let parts = path.split(|byte| *byte == b'/');
            parts
                .filter(|part| !part.is_empty())
                .map(<[u8]>::to_vec)
                .collect()
        };
        let mut left = VecDeque::from(parts(path.as_bytes()));
        // From the root to where we are.
        let mut way = vec![self.inode(ROOT)?];
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            let here = way.last().expect("the root stays");
            match &part[..] {
                b"." => continue,
                b".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let Some(next) = self.entry(here, &part)? else {
                return Ok(None);
            };
            let Some(target) = self.link_target(&next)? else {
                way.push(next);
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(Ext4Error::damaged(path, "too many symbolic links"));
            }
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            for part in parts(&target).into_iter().rev() {
                left.push_front(part);
            }
        }
        Ok(way.pop())
    }

    /// The names in a directory, without `.` and `..`; none in what is no directory.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>, Ext4Error> {
        let mut names = Vec::new();
        if inode.kind() == Kind::Directory {
            self.read_directory(inode, &mut |entry| {
                if !entry.is_dots() {
                    names.push(entry.name.to_vec());
                }
            })?;
        }
        Ok(names)
    }

    /// All of a regular file. One of more than `max` bytes is refused.
    ///
    /// # Errors
    /// What is no regular file, is too long, or cannot be read.
    pub fn read_file(&self, inode: &Inode, max: u64) -> Result<Vec<u8>, Ext4Error> {
        let place = || format!("inode {}", inode.number);
        let size = inode.size_bytes;
        if inode.kind() != Kind::File {
            return Err(Ext4Error::damaged(place(), "it is no regular file"));
        }
        let length = usize::try_from(size).ok().filter(|_| size <= max);
        let length = length.ok_or_else(|| Ext4Error::Limit {
            what: format!("{}, with {size} bytes", place()),
            max,
        })?;
        if inode.has(Flag::InlineData) {
            let mut bytes = inline_data(inode, length);
            // One that was made longer has a hole there, as the kernel reads it (ext4_readpage_inline).
            bytes.resize(length, 0);
            return Ok(bytes);
        }
        let unit = u64::from(self.superblock().block_bytes);
        let unit_bytes = self.superblock().block_bytes as usize;
        let mut bytes = vec![0; length];
        let mut next = 0;
        self.pieces(inode, &mut |piece| {
            // Runs come in order: one that does not would have the same bytes read ever again.
            if let Piece::Data {
                logical,
                start,
                count,
                unwritten: false,
            } = piece
                && logical >= next
            {
                next = logical.saturating_add(count);
                let at = usize::try_from(logical.saturating_mul(unit)).unwrap_or(length);
                let rest = &mut bytes[at.min(length)..];
                for (block, part) in (start..start + count).zip(rest.chunks_mut(unit_bytes)) {
                    part.copy_from_slice(&self.view().block(block)?[..part.len()]);
                }
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn entry(&self, directory: &Inode, name: &[u8]) -> Result<Option<Inode>, Ext4Error> {
        let mut found = None;
        if directory.kind() == Kind::Directory {
            self.read_directory(directory, &mut |entry| {
                if entry.name == name {
                    found = Some(entry.inode);
                }
            })?;
        }
        found.map(|number| self.inode(number)).transpose()
    }
}
