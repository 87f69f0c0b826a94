//! The real file system, by handles: openat(2) and its kin through rustix.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    self as sys, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags,
};
use rustix::io::{Errno, ReadWriteFlags};

use super::sys::next_extents;
use super::{Access, Dir, File, Identity, Lock};

/// What the kernel remembers, it remembers in pages of at least so many bytes.
const PAGE_BYTES: u64 = 4096;
/// Read, and written once more, at a time.
const AGAIN_BYTES: usize = 256 << 10;

/// A directory of the real file system.
#[derive(Debug)]
pub struct RealDir(OwnedFd);

/// A file of the real file system.
#[derive(Debug)]
pub struct RealFile(OwnedFd);

#[derive(Debug)]
struct RealLock(#[expect(dead_code, reason = "held until dropped")] OwnedFd);

impl Lock for RealLock {}

impl RealDir {
    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or the file system's own.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(sys::open(path, flags, Mode::empty())?))
    }

    /// Opens the directory at `path`, and makes it first, with its parents, if it is not there.
    /// It is its owner's alone.
    ///
    /// # Errors
    /// The file system's own.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        if !path.is_dir() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            Self::open(parent.unwrap_or(Path::new(".")))?.sync()?;
        }
        Self::open(path)
    }

    /// The handle, for what needs a path that stays short: `/proc/self/fd/N/name`.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(sys::openat(
            &self.0,
            name,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            mode,
        )?)
    }

    fn of(dir: &dyn Dir) -> io::Result<&Self> {
        dir.as_any()
            .downcast_ref()
            .ok_or_else(|| io::Error::from(io::ErrorKind::CrossesDevices))
    }
}

impl Dir for RealDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(Arc::new(RealFile(self.open_at(name, flags)?)))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        Ok(Arc::new(RealFile(self.open_at(name, flags)?)))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        Ok(sys::mkdirat(&self.0, name, Mode::RWXU)?)
    }

    fn open_dir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(Self(
            self.open_at(name, OFlags::RDONLY | OFlags::DIRECTORY)?,
        )))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(sys::renameat(&self.0, from, &self.0, to)?)
    }

    fn rename_new(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        let into = &Self::of(into)?.0;
        match sys::renameat_with(&self.0, from, into, to, RenameFlags::NOREPLACE) {
            // A file system without RENAME_NOREPLACE: a hard link refuses as well.
            Err(Errno::INVAL | Errno::NOSYS) => {
                sys::linkat(&self.0, from, into, to, AtFlags::empty())?;
                // It is there, and that is what is told; the other name, if it stays, is one too many.
                let _ = sys::unlinkat(&self.0, from, AtFlags::empty());
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn rename_into(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        Ok(sys::renameat(&self.0, from, &Self::of(into)?.0, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(sys::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(sys::fsync(&self.0)?)
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn Lock>>> {
        let fd = self.open_at(name, OFlags::RDWR | OFlags::CREATE)?;
        match sys::flock(&fd, sys::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(RealLock(fd)))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn identity(&self) -> io::Result<Identity> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = match sys::statx(&self.0, "", AtFlags::EMPTY_PATH, wanted) {
            Ok(stat) => stat,
            // A kernel, or a sandbox, without it.
            Err(Errno::NOSYS | Errno::PERM) => {
                let inode = sys::fstat(&self.0)?.st_ino;
                let born_unix_ns = 0;
                return Ok(Identity {
                    inode,
                    born_unix_ns,
                });
            }
            Err(error) => return Err(error.into()),
        };
        let said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let born =
            i128::from(stat.stx_btime.tv_sec) * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec);
        Ok(Identity {
            inode: stat.stx_ino,
            born_unix_ns: if said { born } else { 0 },
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl RealFile {
    /// Opens a file at a path, for reading.
    ///
    /// # Errors
    /// `NotFound`, or the file system's own.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(std::fs::File::open(path)?.into()))
    }

    fn write_range_again(&self, start: u64, end: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(AGAIN_BYTES);
            let wanted = &mut buf[..most.min(AGAIN_BYTES)];
            let into = &mut [IoSliceMut::new(wanted)];
            let n = match rustix::io::preadv2(&self.0, into, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                // Not remembered: it reads as it is on the disk.
                Err(Errno::AGAIN) => {
                    at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
                    continue;
                }
                Err(Errno::INTR) => continue,
                // A file system that cannot tell.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.read_at(wanted, at)?;
                    wanted.len()
                }
                Err(error) => return Err(error.into()),
            };
            let next = at + n as u64;
            // ext4 remembers with it where it lies, and writes there, but not again that it was written: only of what it looks up anew.
            let whole = (next.div_ceil(PAGE_BYTES) * PAGE_BYTES - at).try_into();
            sys::fadvise(&self.0, at, whole.ok(), sys::Advice::DontNeed)?;
            self.write_at(&buf[..n], at)?;
            at = next;
        }
        Ok(())
    }
}

impl From<OwnedFd> for RealFile {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl File for RealFile {
    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pread(&self.0, &mut *buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pwrite(&self.0, buf, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buf = &buf[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let stat = sys::fstat(&self.0)?;
        u64::try_from(stat.st_size).map_err(io::Error::other)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(sys::ftruncate(&self.0, len)?)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        match retried(|| sys::fallocate(&self.0, FallocateFlags::empty(), offset, len)) {
            // No fallocate on this file system: writes take their chances, as they always did.
            Err(Errno::OPNOTSUPP) => {
                let end = offset + len;
                if self.len()? < end {
                    self.set_len(end)
                } else {
                    Ok(())
                }
            }
            other => Ok(other?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(retried(|| sys::fallocate(&self.0, mode, offset, len))?)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match sys::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some((start, sys::seek(&self.0, SeekFrom::Hole(start))?)))
    }

    fn next_written(&self, offset: u64) -> io::Result<Vec<(u64, u64)>> {
        match next_extents(&self.0, offset) {
            // A file system without extents: what it reserves it writes.
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::BADR) => {
                Ok(self.next_data(offset)?.into_iter().collect())
            }
            other => Ok(other?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(sys::fdatasync(&self.0)?)
    }

    fn reread(&self) -> io::Result<()> {
        self.sync().or_else(|_| self.sync())?;
        Ok(sys::fadvise(&self.0, 0, None, sys::Advice::DontNeed)?)
    }

    fn write_again(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>) -> io::Result<()> {
        // Should it fail, and tell us: that is what the rest is for.
        let _ = self.sync();
        let mut buf = vec![0; AGAIN_BYTES];
        for (start, end) in ranges {
            self.write_range_again(start, end, &mut buf)?;
        }
        Ok(())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let stat = sys::fstat(&self.0)?;
        Ok(u64::try_from(stat.st_blocks).map_err(io::Error::other)? * 512)
    }
}

/// fallocate(2) may be interrupted, and has no partial result.
fn retried(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
