//! Files and directories, as cowslip uses them: the narrow traits that the real file system, a
//! simulated one that forgets, and one that fails stand behind.
//!
//! Rules that callers rely on, and that an implementation keeps:
//! - a [`Dir`] is a handle: it goes on working when the directory is renamed;
//! - reads and writes are whole or an error, whatever the kernel's limit per call;
//! - nothing is durable before the file's [`File::sync`]; a name, before its directory's
//!   [`Dir::sync`] (POSIX promises no more, see fsync(2));
//! - names are single path components.

mod real;
mod sys;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use crate::planted::{Bug, planted};

pub use self::real::{RealDir, RealFile};

/// Which directory it is, whatever it is called: a rename keeps it, a copy has another. Two file systems
/// may have the same in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its inode number.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970; 0 where the file system does not say. Numbers of
    /// inodes are given out again.
    pub born_unix_ns: i128,
}

/// One open directory.
pub trait Dir: Send + Sync + Debug {
    /// Creates a file that must not be there yet, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`, or the file system's own.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// `NotFound`, or the file system's own.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;

    /// Makes a directory that must not be there yet.
    ///
    /// # Errors
    /// `AlreadyExists`, or the file system's own.
    fn create_dir(&self, name: &str) -> io::Result<()>;

    /// Opens a directory that is there.
    ///
    /// # Errors
    /// `NotFound`, or the file system's own.
    fn open_dir(&self, name: &str) -> io::Result<Arc<dyn Dir>>;

    /// Renames within this directory; what `to` named is replaced in one step.
    ///
    /// # Errors
    /// `NotFound`, or the file system's own.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Moves `from` here to `to` in another directory of the same file system, where `to` must
    /// not be there yet: of two callers at once, one wins.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, or the file system's own.
    fn rename_new(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()>;

    /// As [`Dir::rename`], into another directory of the same file system.
    ///
    /// # Errors
    /// `NotFound`, or the file system's own.
    fn rename_into(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()>;

    /// Removes a file's name. What has it open keeps it.
    ///
    /// # Errors
    /// `NotFound`, or the file system's own.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names in it, in no order.
    ///
    /// # Errors
    /// The file system's own.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes the names as they are now survive a power cut.
    ///
    /// # Errors
    /// The file system's own.
    fn sync(&self) -> io::Result<()>;

    /// Takes the lock that a file of this name stands for; nothing where somebody holds it. It is
    /// given back when dropped, and when the process ends, however it ends.
    ///
    /// # Errors
    /// The file system's own.
    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn Lock>>>;

    /// Which directory this is.
    ///
    /// # Errors
    /// The file system's own.
    fn identity(&self) -> io::Result<Identity>;

    /// For implementations of [`Dir::rename_new`] and [`Dir::rename_into`]: who the other is.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A held lock.
pub trait Lock: Send + Sync + Debug {}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// One open file.
#[expect(
    clippy::len_without_is_empty,
    reason = "a length that may fail; nobody asks if it is 0"
)]
pub trait File: Send + Sync + Debug {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before, or the file system's own.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// The file system's own; a part may have been written.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// The file system's own.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or grows the file; what grows reads as zeros and takes no room.
    ///
    /// # Errors
    /// The file system's own.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room, so that writes there do not fail for want of it. Grows the file if need be.
    ///
    /// # Errors
    /// `StorageFull`, or the file system's own.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives the room back; the range reads as zeros. The length stays.
    ///
    /// # Errors
    /// The file system's own.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The next `start..end` at or after `offset` that is not a hole.
    ///
    /// # Errors
    /// The file system's own.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;

    /// The same without room that was reserved, and never written: also where the kernel remembers that it was read, or that it could not be written.
    /// As many of the next ones as one look tells, in order; none where there are no more.
    ///
    /// # Errors
    /// The file system's own.
    fn next_written(&self, offset: u64) -> io::Result<Vec<(u64, u64)>> {
        Ok(self.next_data(offset)?.into_iter().collect())
    }

    /// Makes the bytes as they are now survive a power cut (fdatasync).
    ///
    /// # Errors
    /// The file system's own. What was not synced may be lost, and a later sync does not tell.
    fn sync(&self) -> io::Result<()>;

    /// After a failure: from here on it reads as it is on the disk, not as the kernel remembers it. What
    /// could not be written is gone.
    ///
    /// # Errors
    /// The file system's own: it fails still.
    fn reread(&self) -> io::Result<()> {
        // An error is told once, whoever asks first; what it was about is gone either way.
        self.sync().or_else(|_| self.sync())
    }

    /// What the kernel remembers of these ranges, `start..end`, is written once more by the next sync. An attempt may have failed, and been told to a process that is gone: an error is told once, and
    /// then what is remembered counts as written (fsync(2)). What was written since is synced before.
    ///
    /// # Errors
    /// The file system's own.
    fn write_again(&self, _ranges: &mut dyn Iterator<Item = (u64, u64)>) -> io::Result<()> {
        Ok(())
    }

    /// The room it takes, in bytes (st_blocks x 512).
    ///
    /// # Errors
    /// The file system's own.
    fn allocated_bytes(&self) -> io::Result<u64>;
}

/// Reads a whole file, refusing one that is longer than `len_max`.
///
/// # Errors
/// `FileTooLarge`, or as [`File::read_at`].
pub fn read_all(file: &dyn File, len_max: u64) -> io::Result<Vec<u8>> {
    let len = file.len()?;
    if len > len_max {
        let why = format!("{len} bytes, where at most {len_max} are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What the name of a file ends in that is to take another's place. A crash may leave one; it means nothing.
pub const REPLACING: &str = ".new";

/// Puts a small file in place in one step: a temporary one, synced, renamed, the directory synced.
///
/// # Errors
/// As the steps. One of the two files is there then, whole: the old one, or, where only the directory could
/// not be synced, perhaps the new one.
pub fn replace_file(dir: &dyn Dir, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}{REPLACING}");
    match dir.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let put = || {
        let file = dir.create(&temporary)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        dir.rename(&temporary, name)?;
        if planted(Bug::ReplaceUnsynced) {
            return Ok(());
        }
        dir.sync()
    };
    put().inspect_err(|_| drop(dir.remove(&temporary)))
}
