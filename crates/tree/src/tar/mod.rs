//! A [`Tree`] from an archive of tar: v7, POSIX with its extended records, GNU with its long names, and sparse files of
//! all kinds.
//!
//! An archive is untrusted. Only headers are read here: contents stay where they are, as pieces of the archive, which is
//! a file that can be read at any place. Invariants: 1. every piece lies within the archive and within its
//! file's size. 2. What is held in memory for a file is bounded: its records by `RECORDS_BYTES_MAX`, its pieces by what
//! the archive has of them. 3. An archive ends with a block of zeros: one that does not was cut off.
//!
//! Not here: compression (`spool`), and what names mean (`model`).

mod acl;
mod extended;
mod header;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use self::extended::{Extended, decimal};
use self::header::{BLOCK_BYTES, Header, Span, more_sparse};
use crate::content::{Content, Piece};
use crate::model::{Attributes, Kind, Time, Tree};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Of one header of extended records, or one long name.
const RECORDS_BYTES_MAX: u64 = 1 << 20;

/// Why an archive was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system's own.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What it says cannot be. The name is what the archive has, any bytes.
    #[error("{}{why} (at byte {at})", shown(name))]
    Refused {
        /// Of the file that was being read, if there was one.
        name: Vec<u8>,
        /// Why.
        why: String,
        /// Where in the archive the header began.
        at: u64,
    },
}

/// A name without what a terminal would act on, before a message.
fn shown(name: &[u8]) -> String {
    match name {
        [] => String::new(),
        name => format!("{}: ", String::from_utf8_lossy(name).escape_debug()),
    }
}

/// Reads the whole archive. A file that is longer than `size_max` is refused. `progress` is told how many bytes
/// of the archive are done.
///
/// # Errors
/// [`ArchiveError`], with the place; what was read until then is in the tree.
pub fn read(
    archive: &Arc<File>,
    tree: &mut Tree,
    size_max: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ArchiveError> {
    let end = archive.metadata()?.len();
    let mut reader = Reader {
        archive,
        at: 0,
        end,
        size_max,
        global: Extended::default(),
        local: Extended::default(),
        name: Vec::new(),
    };
    loop {
        let at = reader.at;
        match reader.next(tree) {
            Ok(true) => progress(reader.at),
            Ok(false) => return Ok(()),
            Err(why) => {
                let name = reader.name;
                return Err(ArchiveError::Refused { name, why, at });
            }
        }
    }
}

struct Reader<'a> {
    archive: &'a Arc<File>,
    /// The next header.
    at: u64,
    end: u64,
    size_max: u64,
    /// For all files that follow, and for the next one.
    global: Extended,
    local: Extended,
    /// Of the file that is being read, for messages.
    name: Vec<u8>,
}

impl Reader<'_> {
    /// One header, with all that belongs to it. False at the end.
    fn next(&mut self, tree: &mut Tree) -> Result<bool, String> {
        let block = self.block()?;
        if block.iter().all(|b| *b == 0) {
            return Ok(false);
        }
        let header = Header::check(&block)?;
        match header.kind() {
            b'x' | b'X' => {
                let records = self.records(header.size()?)?;
                self.local.add(&records)?;
            }
            b'g' => {
                let records = self.records(header.size()?)?;
                self.global.add(&records)?;
                self.global.check_for_all()?;
                self.local = self.global.clone();
            }
            b'L' => self.local.name = Some(self.long_name(header.size()?)?),
            b'K' => self.local.link = Some(self.long_name(header.size()?)?),
            // A volume's name.
            b'V' => self.skip(header.size()?)?,
            _ => {
                let said = std::mem::replace(&mut self.local, self.global.clone());
                self.name = said
                    .sparse
                    .name
                    .clone()
                    .or_else(|| said.name.clone())
                    .unwrap_or_else(|| header.name());
                self.file(&header, said, tree)?;
                self.name.clear();
            }
        }
        Ok(true)
    }

    fn file(&mut self, header: &Header<'_>, said: Extended, tree: &mut Tree) -> Result<(), String> {
        let name = self.name.clone();
        let link = || said.link.clone().unwrap_or_else(|| header.link());
        let kind = match header.kind() {
            b'1' => return tree.link(&name, &link()),
            b'2' => Kind::Symlink(target(link())?),
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                let block = header.kind() == b'4';
                Kind::Device {
                    block,
                    major,
                    minor,
                }
            }
            b'5' => Kind::Directory(BTreeMap::new()),
            b'6' => Kind::Fifo,
            // Before there was a type for directories.
            0 if name.ends_with(b"/") => Kind::Directory(BTreeMap::new()),
            0 | b'0' | b'7' | b'S' => Kind::File(self.content(header, &said)?),
            b'D' => {
                self.skip(header.size()?)?;
                Kind::Directory(BTreeMap::new())
            }
            b'M' => return Err("it goes on from another volume, which is not supported".into()),
            other => {
                return Err(format!(
                    "a file of type {}, which is not known",
                    other.escape_ascii()
                ));
            }
        };
        let modified = match said.modified {
            Some(time) => time,
            None => Time {
                seconds: header.modified()?,
                nanoseconds: 0,
            },
        };
        let attributes = Attributes {
            uid: said.uid.map_or_else(|| header.uid(), Ok)?,
            gid: said.gid.map_or_else(|| header.gid(), Ok)?,
            mode: header.mode()?,
            modified,
            xattrs: said.xattrs,
        };
        tree.insert(&name, attributes, kind).map(drop)
    }

    /// The content of a regular file, which follows its header.
    fn content(&mut self, header: &Header<'_>, said: &Extended) -> Result<Content, String> {
        let stored = said.size.map_or_else(|| header.size(), Ok)?;
        let (spans, size, data) = if header.kind() == b'S' {
            let (mut spans, mut more, real) = header.sparse()?;
            while more {
                let (found, another) = more_sparse(&self.block()?)?;
                spans.extend(found);
                more = another;
            }
            (spans, real, self.data(stored)?)
        } else if said.sparse.in_data {
            let real = said.sparse.size.ok_or("a sparse file without its size")?;
            let mut data = self.data(stored)?;
            (self.spans_in(&mut data)?, real, data)
        } else if let Some(spans) = &said.sparse.spans {
            let real = said.sparse.size.ok_or("a sparse file without its size")?;
            (spans.clone(), real, self.data(stored)?)
        } else {
            (vec![(0, stored)], stored, self.data(stored)?)
        };
        if size > self.size_max {
            let max = self.size_max;
            return Err(format!(
                "it is {size} bytes long, more than the image, {max}"
            ));
        }
        Ok(Content::Pieces {
            archive: Arc::clone(self.archive),
            size_bytes: size,
            pieces: pieces(&spans, size, data)?,
        })
    }

    /// Passes over so many bytes; where they begin, and how many they are.
    fn data(&mut self, len: u64) -> Result<Span, String> {
        let start = self.at;
        self.skip(len)?;
        Ok((start, len))
    }

    /// The list of pieces that stands before the data, numbers on a line each, up to a whole block.
    fn spans_in(&self, data: &mut Span) -> Result<Vec<Span>, String> {
        let mut lines = Lines {
            reader: self,
            at: data.0,
            end: data.0 + data.1,
            block: Vec::new(),
            used: 0,
        };
        let count = lines.number()?;
        let mut spans = Vec::new();
        for _ in 0..count {
            spans.push((lines.number()?, lines.number()?));
        }
        *data = (lines.at, lines.end - lines.at);
        Ok(spans)
    }

    fn records(&mut self, len: u64) -> Result<Vec<u8>, String> {
        if len > RECORDS_BYTES_MAX {
            return Err(format!("a header of {len} bytes"));
        }
        let start = self.at;
        self.skip(len)?;
        let mut records = vec![0; usize::try_from(len).expect("at most a MiB")];
        self.read_at(&mut records, start)?;
        Ok(records)
    }

    fn long_name(&mut self, len: u64) -> Result<Vec<u8>, String> {
        let mut name = self.records(len)?;
        let end = name.iter().position(|b| *b == 0);
        name.truncate(end.unwrap_or(name.len()));
        Ok(name)
    }

    fn block(&mut self) -> Result<[u8; BLOCK_BYTES], String> {
        let start = self.at;
        self.skip(BLOCK)?;
        let mut block = [0; BLOCK_BYTES];
        self.read_at(&mut block, start)?;
        Ok(block)
    }

    /// Over so many bytes, up to a whole block.
    fn skip(&mut self, len: u64) -> Result<(), String> {
        let after = self.at.checked_add(len);
        let after = after.filter(|after| *after <= self.end);
        let after = after.ok_or("the archive ends amidst it: it was cut off")?;
        self.at = after.next_multiple_of(BLOCK);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), String> {
        let read = self.archive.read_exact_at(buf, at);
        read.map_err(|e: io::Error| format!("reading it: {e}"))
    }
}

/// Numbers on lines, read block by block.
struct Lines<'a> {
    reader: &'a Reader<'a>,
    /// The next block.
    at: u64,
    end: u64,
    block: Vec<u8>,
    used: usize,
}

impl Lines<'_> {
    fn number(&mut self) -> Result<u64, String> {
        let mut digits = Vec::new();
        loop {
            if self.used == self.block.len() {
                if self.end - self.at < BLOCK {
                    return Err("its list of pieces does not end".into());
                }
                self.block.resize(BLOCK_BYTES, 0);
                self.reader.read_at(&mut self.block, self.at)?;
                self.at += BLOCK;
                self.used = 0;
            }
            let byte = self.block[self.used];
            self.used += 1;
            match byte {
                b'\n' => return decimal(&digits),
                _ if digits.len() > 20 => return Err("its list of pieces is none".into()),
                _ => digits.push(byte),
            }
        }
    }
}

/// What a symbolic link says. Linux takes no empty one and none of more than a page.
fn target(target: Vec<u8>) -> Result<Vec<u8>, String> {
    if target.is_empty() || target.len() > 4095 || target.contains(&0) {
        return Err("a symbolic link to what Linux takes for no name".into());
    }
    Ok(target)
}

/// Invariant 1: in order, side by side in the data, within the file.
fn pieces(spans: &[Span], size: u64, data: Span) -> Result<Vec<Piece>, String> {
    let (start, len) = data;
    let mut pieces = Vec::new();
    let (mut done, mut used) = (0u64, 0u64);
    for (at, bytes) in spans.iter().copied() {
        let end = at
            .checked_add(bytes)
            .filter(|end| *end <= size && at >= done);
        done = end.ok_or("its pieces are not in order, or not within it")?;
        if used + bytes > len {
            return Err("its pieces are more than the archive has of it".into());
        }
        if bytes > 0 {
            pieces.push(Piece {
                at,
                from: start + used,
                len: bytes,
            });
        }
        used += bytes;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::model::ROOT;

    /// A header and its data, filled up; `real` makes it sparse in the old way.
    fn entry(name: &[u8], kind: u8, data: &[u8], real: Option<u64>) -> Vec<u8> {
        let mut header = [0; BLOCK_BYTES];
        header[..name.len()].copy_from_slice(name);
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[156] = kind;
        if let Some(real) = real {
            header[386..410].copy_from_slice(b"00000000144 00000000003 ");
            header[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut out = header.to_vec();
        out.extend(data);
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
        out
    }

    fn whole() -> Vec<u8> {
        let in_data = b"25 GNU.sparse.realsize=9\n22 GNU.sparse.major=1\n";
        let mut spans = b"1\n5\n3\n".to_vec();
        spans.resize(BLOCK_BYTES, 0);
        spans.extend(b"abc");
        let all = [
            entry(b"file", b'0', b"abc", None),
            entry(b"old", b'S', b"abc", Some(200)),
            entry(b"x", b'x', in_data, None),
            entry(b"new", b'0', &spans, None),
            entry(b"l", b'L', b"long/name\0", None),
            entry(b"short", b'5', b"", None),
            vec![0; 2 * BLOCK_BYTES],
        ];
        all.concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Tree, String> {
        let mut archive = tempfile::tempfile().unwrap();
        archive.write_all(bytes).unwrap();
        let mut tree = Tree::new(100);
        let read = read(&Arc::new(archive), &mut tree, 1 << 20, &mut |_| {});
        read.map(|()| tree).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_sparse_file() {
        let tree = read_bytes(&whole()).unwrap();
        let pieces: Vec<_> = tree
            .entries(ROOT)
            .filter_map(|(name, id)| match &tree.node(id).kind {
                Kind::File(Content::Pieces {
                    size_bytes, pieces, ..
                }) => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    let pieces: Vec<Span> = pieces.iter().map(|p| (p.at, p.len)).collect();
                    Some((name, *size_bytes, pieces))
                }
                _ => None,
            })
            .collect();
        let wanted = [
            ("file".to_owned(), 3, vec![(0, 3)]),
            ("new".to_owned(), 9, vec![(5, 3)]),
            ("old".to_owned(), 200, vec![(100, 3)]),
        ];
        assert_eq!(pieces, wanted);
        assert_eq!(tree.counts().directories, 3);
    }

    /// A list of a megabyte for each of a million files that take 512 bytes each: what is said for all of them is not kept
    /// for each.
    #[test]
    fn what_only_one_file_can_have_is_not_said_for_all() {
        let record = |text: &str| {
            let len = (1..)
                .find(|n| text.len() + n.to_string().len() == *n)
                .unwrap();
            format!("{len}{text}").into_bytes()
        };
        for (text, bad) in [
            (" comment=fine\n", false),
            (" uid=7\n", false),
            (" SCHILY.xattr.user.x=large\n", true),
            (
                " SCHILY.acl.access=user::rw-,user:7:rwx,group::r--,mask::rwx,other::r--\n",
                true,
            ),
            (" GNU.sparse.map=0,1\n", true),
            (" GNU.sparse.name=x\n", true),
        ] {
            let all = [
                entry(b"g", b'g', &record(text), None),
                entry(b"file", b'0', b"abc", None),
                vec![0; 2 * BLOCK_BYTES],
            ];
            let read = read_bytes(&all.concat());
            assert_eq!(read.is_err(), bad, "{text:?}: {read:?}");
        }
    }

    #[test]
    fn cut_or_flipped_it_is_an_error_or_an_answer() {
        let whole = whole();
        for len in 0..whole.len() - 2 * BLOCK_BYTES {
            let why = read_bytes(&whole[..len]).unwrap_err();
            assert!(why.contains("cut off"), "{len}: {why}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            for mask in [1, 0x80, 0xff] {
                bytes[at] = whole[at] ^ mask;
                let _ = read_bytes(&bytes);
            }
        }
    }
}
