//! [`Content`]: the bytes of a regular file, where they lie until they are in the image.
//!
//! Either a file of its own, opened when it is its turn, or pieces of an archive. What no piece covers is a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SeekFrom, seek};
use rustix::io::Errno;

/// Copied at one go.
const CHUNK_BYTES: u64 = 1 << 20;

/// Bytes that lie in the file at `at`, and in the source at `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// In the file.
    pub at: u64,
    /// In the source.
    pub from: u64,
    /// How many.
    pub len: u64,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum Content {
    /// A file of its own, so long when it was looked at.
    Path {
        /// Where.
        path: PathBuf,
        /// How long.
        size_bytes: u64,
        /// How much room it took.
        allocated_bytes: u64,
    },
    /// In an archive; the pieces are in order and end within the size.
    Pieces {
        /// Which.
        archive: Arc<File>,
        /// How long the file is.
        size_bytes: u64,
        /// What of it is no hole.
        pieces: Vec<Piece>,
    },
}

/// A file whose content is ready to be read.
pub struct Opened {
    /// Where its bytes lie.
    pub file: Arc<File>,
    /// The file is the content, byte for byte; else the pieces say what is.
    pub is_whole: bool,
    pieces: Vec<Piece>,
    size_bytes: u64,
}

impl Content {
    /// How long it is, holes included.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Path { size_bytes, .. } | Self::Pieces { size_bytes, .. } => *size_bytes,
        }
    }

    /// How many bytes of it are not holes, most likely.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Path {
                size_bytes,
                allocated_bytes,
                ..
            } => *size_bytes.min(allocated_bytes),
            Self::Pieces { pieces, .. } => pieces.iter().map(|piece| piece.len).sum(),
        }
    }

    /// Makes it ready to be read.
    ///
    /// # Errors
    /// Where it cannot be opened, or is not what it was.
    pub fn open(&self) -> io::Result<Opened> {
        match self {
            Self::Path {
                path, size_bytes, ..
            } => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
                let meta = file.metadata()?;
                if !meta.is_file() || meta.size() != *size_bytes {
                    return Err(io::Error::other("it changed while it was read"));
                }
                Ok(Opened {
                    pieces: data_of(&file, *size_bytes)?,
                    file: Arc::new(file),
                    is_whole: true,
                    size_bytes: *size_bytes,
                })
            }
            Self::Pieces {
                archive,
                size_bytes,
                pieces,
            } => Ok(Opened {
                file: Arc::clone(archive),
                is_whole: false,
                pieces: pieces.clone(),
                size_bytes: *size_bytes,
            }),
        }
    }
}

impl Opened {
    /// Writes it to an empty file, holes as holes.
    ///
    /// # Errors
    /// The system's own, of either file.
    pub fn copy_to(&self, out: &File) -> io::Result<()> {
        let mut buf = Vec::new();
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.len {
                let len = CHUNK_BYTES.min(piece.len - done);
                buf.resize(usize::try_from(len).expect("a chunk fits in memory"), 0);
                self.file.read_exact_at(&mut buf, piece.from + done)?;
                out.write_all_at(&buf, piece.at + done)?;
                done += len;
            }
        }
        out.set_len(self.size_bytes)
    }
}

/// The parts of a file that are no holes.
fn data_of(file: &File, size: u64) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => break,
            // It cannot tell.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let end = seek(file, SeekFrom::Hole(start)).map_or(size, |end| end.min(size));
        if end <= start {
            break;
        }
        pieces.push(Piece {
            at: start,
            from: start,
            len: end - start,
        });
        at = end;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"end", (3 << 20) - 3).unwrap();
        file.write_all_at(b"middle", 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        let meta = file.metadata().unwrap();
        let mut content = Content::Path {
            path,
            size_bytes: meta.size(),
            allocated_bytes: meta.blocks() * 512,
        };
        let copy = tempfile::tempfile().unwrap();
        content.open().unwrap().copy_to(&copy).unwrap();
        let mut bytes = vec![0; 4 << 20];
        copy.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 9);
        assert_eq!(&bytes[1 << 20..][..6], b"middle");
        assert_eq!(copy.metadata().unwrap().blocks(), meta.blocks());
        assert!(content.data_bytes() < 1 << 20);
        if let Content::Path { size_bytes, .. } = &mut content {
            *size_bytes += 1;
        }
        assert!(content.open().is_err());
    }

    #[test]
    fn pieces_of_an_archive() {
        let archive = tempfile::tempfile().unwrap();
        archive.write_all_at(b"..abc..def", 0).unwrap();
        let content = Content::Pieces {
            archive: Arc::new(archive),
            size_bytes: 12,
            pieces: vec![
                Piece {
                    at: 1,
                    from: 2,
                    len: 3,
                },
                Piece {
                    at: 8,
                    from: 7,
                    len: 3,
                },
            ],
        };
        let copy = tempfile::tempfile().unwrap();
        content.open().unwrap().copy_to(&copy).unwrap();
        let mut bytes = [1; 12];
        copy.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"\0abc\0\0\0\0def\0");
        assert_eq!((content.size_bytes(), content.data_bytes()), (12, 6));
    }
}
