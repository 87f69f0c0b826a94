//! The open directories, files and locks of a [`MemoryFs`]: each call checks what the kernel would
//! check, with its error, and passes the work on.

use std::any::Any;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, File, Identity, Lock};

use super::content;
use super::disk::{Disk, Open, ROOT};
use super::names::{Change, Inode};
use super::{MemoryFs, PAGE_BYTES};
use crate::faulty::ENOSPC;

const EBADF: i32 = 9;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const NAME_BYTES_MAX: usize = 255;
/// What a file offset can be: `off_t`.
const OFFSET_MAX: u64 = i64::MAX as u64;

pub(super) fn root(fs: MemoryFs) -> Arc<dyn Dir> {
    Arc::new(MemoryDir { fs, inode: ROOT })
}

#[derive(Debug)]
struct MemoryDir {
    fs: MemoryFs,
    inode: Inode,
}

#[derive(Debug)]
struct MemoryFile {
    fs: MemoryFs,
    inode: Inode,
    access: Access,
    _open: Open,
}

#[derive(Debug)]
struct MemoryLock {
    fs: MemoryFs,
    inode: Inode,
}

impl MemoryDir {
    fn open_file(&self, disk: &Disk, inode: Inode, access: Access) -> io::Result<Arc<dyn File>> {
        let (_, open) = disk.files.get(&inode).ok_or(ErrorKind::IsADirectory)?;
        Ok(Arc::new(MemoryFile {
            fs: self.fs.clone(),
            inode,
            access,
            _open: Arc::clone(open),
        }))
    }

    /// What the name stands for.
    fn find(&self, disk: &Disk, name: &str) -> io::Result<Inode> {
        check_name(name)?;
        Ok(disk
            .names
            .get(self.inode, name)
            .ok_or(ErrorKind::NotFound)?)
    }

    fn find_none(&self, disk: &Disk, name: &str) -> io::Result<()> {
        check_name(name)?;
        match disk.names.get(self.inode, name) {
            Some(_) => Err(ErrorKind::AlreadyExists.into()),
            None => Ok(()),
        }
    }

    fn name(&self, disk: &mut Disk, name: &str, inode: Inode) {
        let place = (self.inode, name.to_owned());
        disk.names.change(Change(vec![(place, Some(inode))]));
    }

    fn rename_to(&self, from: &str, into: &Self, to: &str, replace: bool) -> io::Result<()> {
        let mut disk = self.fs.operate()?;
        let moved = self.find(&disk, from)?;
        check_name(to)?;
        match disk.names.get(into.inode, to) {
            Some(_) if !replace => return Err(ErrorKind::AlreadyExists.into()),
            Some(there) if there == moved => return Ok(()),
            Some(there) => check_replace(&disk, moved, there)?,
            None => {}
        }
        disk.names.change(Change(vec![
            ((self.inode, from.to_owned()), None),
            ((into.inode, to.to_owned()), Some(moved)),
        ]));
        Ok(())
    }

    fn other<'a>(&self, dir: &'a dyn Dir) -> io::Result<&'a Self> {
        let other = dir.as_any().downcast_ref::<Self>();
        let here = other.filter(|other| Arc::ptr_eq(&self.fs.0, &other.fs.0));
        here.ok_or_else(|| ErrorKind::CrossesDevices.into())
    }
}

impl Dir for MemoryDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut disk = self.fs.operate()?;
        self.find_none(&disk, name)?;
        let inode = disk.new_file();
        self.name(&mut disk, name, inode);
        self.open_file(&disk, inode, Access::ReadWrite)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let disk = self.fs.disk();
        disk.look()?;
        self.open_file(&disk, self.find(&disk, name)?, access)
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        let mut disk = self.fs.operate()?;
        self.find_none(&disk, name)?;
        let inode = disk.new_inode();
        disk.dirs.insert(inode);
        self.name(&mut disk, name, inode);
        Ok(())
    }

    fn open_dir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        let disk = self.fs.disk();
        disk.look()?;
        let inode = self.find(&disk, name)?;
        if !disk.dirs.contains(&inode) {
            return Err(ErrorKind::NotADirectory.into());
        }
        let fs = self.fs.clone();
        Ok(Arc::new(Self { fs, inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_to(from, self, to, true)
    }

    fn rename_new(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        self.rename_to(from, self.other(into)?, to, false)
    }

    fn rename_into(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        self.rename_to(from, self.other(into)?, to, true)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.fs.operate()?;
        let inode = self.find(&disk, name)?;
        if disk.dirs.contains(&inode) {
            return Err(ErrorKind::IsADirectory.into());
        }
        let place = (self.inode, name.to_owned());
        disk.names.change(Change(vec![(place, None)]));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let disk = self.fs.disk();
        disk.look()?;
        Ok(disk.names.list(self.inode))
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.fs.operate()?;
        disk.names.sync(self.inode);
        disk.collect();
        Ok(())
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn Lock>>> {
        let mut disk = self.fs.operate()?;
        let inode = match self.find(&disk, name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let inode = disk.new_file();
                self.name(&mut disk, name, inode);
                inode
            }
            other => other?,
        };
        let free = disk.locked.insert(inode);
        let fs = self.fs.clone();
        Ok(free.then(|| Box::new(MemoryLock { fs, inode }) as Box<dyn Lock>))
    }

    fn identity(&self) -> io::Result<Identity> {
        self.fs.disk().look()?;
        Ok(Identity {
            inode: self.inode.0,
            born_unix_ns: 0,
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Lock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.fs.disk().locked.remove(&self.inode);
    }
}

impl MemoryFile {
    fn see<T>(&self, see: impl FnOnce(&content::File) -> io::Result<T>) -> io::Result<T> {
        self.fs.take_time();
        let disk = self.fs.disk();
        disk.look()?;
        see(&disk.files[&self.inode].0)
    }

    fn check_writable(&self, errno: i32) -> io::Result<()> {
        match self.access {
            Access::Read => Err(io::Error::from_raw_os_error(errno)),
            Access::ReadWrite => Ok(()),
        }
    }

    /// Changes the file; `change` gets the free room, in pages.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut content::File, u64) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut disk = self.fs.operate()?;
        self.check_writable(EBADF)?;
        let room = disk.free_pages();
        let file = disk.files.get_mut(&self.inode);
        let (file, _) = file.expect("an open file stays");
        change(file, room)
    }
}

impl File for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = check_range(offset, buf.len() as u64)?;
        self.see(|file| {
            if end > file.len() && !buf.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            file.read(buf, offset);
            Ok(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_range(offset, buf.len() as u64)?;
        self.change(|file, room| match file.write(buf, offset, room) {
            written if written == buf.len() => Ok(()),
            _ => Err(no_space()),
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.see(|file| Ok(file.len()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_range(len, 0)?;
        // ftruncate(2) has its own word for it.
        self.check_writable(EINVAL)?;
        self.change(|file, _| {
            file.set_len(len);
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        check_some(offset, len)?;
        self.change(|file, room| match file.reserve(offset, len, room) {
            true => Ok(()),
            false => Err(no_space()),
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        check_some(offset, len)?;
        self.change(|file, _| {
            file.punch(offset, len);
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.see(|file| Ok(file.next_data(offset)))
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.fs.operate()?;
        let file = disk.files.get_mut(&self.inode);
        file.expect("an open file stays").0.sync();
        Ok(())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.see(|file| Ok(file.pages() * PAGE_BYTES as u64))
    }
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        let why = format!("{name:?} is not a single path component");
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    match name.len() > NAME_BYTES_MAX {
        true => Err(io::Error::from_raw_os_error(ENAMETOOLONG)),
        false => Ok(()),
    }
}

/// May a rename put `moved` where `there` is?
fn check_replace(disk: &Disk, moved: Inode, there: Inode) -> io::Result<()> {
    match (disk.dirs.contains(&moved), disk.dirs.contains(&there)) {
        (false, false) => Ok(()),
        (false, true) => Err(ErrorKind::IsADirectory.into()),
        (true, false) => Err(ErrorKind::NotADirectory.into()),
        (true, true) if disk.names.list(there).is_empty() => Ok(()),
        (true, true) => Err(ErrorKind::DirectoryNotEmpty.into()),
    }
}

/// The end of the range, where a file can have one there.
fn check_range(offset: u64, len: u64) -> io::Result<u64> {
    let end = offset.checked_add(len).filter(|end| *end <= OFFSET_MAX);
    end.ok_or_else(|| ErrorKind::InvalidInput.into())
}

/// fallocate(2) refuses an empty range.
fn check_some(offset: u64, len: u64) -> io::Result<()> {
    check_range(offset, len)?;
    match len {
        0 => Err(ErrorKind::InvalidInput.into()),
        _ => Ok(()),
    }
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(ENOSPC)
}
