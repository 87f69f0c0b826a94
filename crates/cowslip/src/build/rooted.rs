//! Filling a mounted file system as root, the system's way: the kernel makes every file.
//!
//! The tree was resolved in memory and is made in a file system that nobody else can reach, but nothing relies on it: each
//! call is relative to the handle of the directory that was just made, names have one part, and no symbolic link is
//! followed. Attributes come after what they would hinder: a directory's after its entries, permissions after the
//! owner (a change of which clears set-id bits), times last.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};

use crate::failure::Failure;
use crate::report::plain;
use cowslip_tree::{Content, Kind, Node, NodeId, ROOT, Tree};

/// Makes the tree in an empty directory; `progress` is told how many bytes of contents are done.
pub(crate) fn fill(root: &File, tree: &Tree, progress: &mut dyn FnMut(u64)) -> Result<(), Failure> {
    let mut filler = Filler {
        root: root.as_fd(),
        tree,
        first: vec![None; tree.node_count()],
        at: PathBuf::new(),
        done: 0,
        progress,
    };
    filler.entries(root.as_fd(), ROOT)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd()));
    let dressed = dress(root.as_fd(), b".", &path, tree.node(ROOT));
    dressed.map_err(|e| Failure::failed(format!("the root directory: {e}")))
}

struct Filler<'a> {
    root: BorrowedFd<'a>,
    tree: &'a Tree,
    /// Where each file was first made, from the root.
    first: Vec<Option<PathBuf>>,
    /// The directory that is being filled.
    at: PathBuf,
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Filler<'_> {
    fn entries(&mut self, dir: BorrowedFd<'_>, id: NodeId) -> Result<(), Failure> {
        let tree = self.tree;
        for (name, id) in tree.entries(id) {
            self.at.push(os(name));
            self.entry(dir, name, id)?;
            self.at.pop();
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &[u8], id: NodeId) -> Result<(), Failure> {
        let node = self.tree.node(id);
        let failed = |at: &PathBuf, e: io::Error| {
            let failure = Failure::failed(format!("{}: {e}", plain(&at.to_string_lossy())));
            match e.kind() {
                io::ErrorKind::StorageFull => failure.hint("the image is too small: --size"),
                _ => failure,
            }
        };
        if let Some(first) = &self.first[id.0] {
            let linked = linkat(self.root, first, dir, name, AtFlags::empty());
            return linked.map_err(|e| failed(&self.at, e.into()));
        }
        if let Kind::Directory(_) = &node.kind {
            let made = self.directory(dir, name).map_err(|e| failed(&self.at, e))?;
            self.entries(made.as_fd(), id)?;
        } else {
            self.make(dir, name, node)
                .map_err(|e| failed(&self.at, e))?;
        }
        if node.links > 1 {
            self.first[id.0] = Some(self.at.clone());
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(os(name));
        dress(dir, name, &path, node).map_err(|e| failed(&self.at, e))
    }

    fn directory(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
        match mkdirat(dir, name, Mode::RWXU) {
            // mkfs.ext4 made it.
            Err(rustix::io::Errno::EXIST) if self.at == os(b"lost+found") => {}
            made => made?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(dir, name, flags, Mode::empty())?))
    }

    fn make(&mut self, dir: BorrowedFd<'_>, name: &[u8], node: &Node) -> io::Result<()> {
        match &node.kind {
            Kind::Directory(_) => Ok(()),
            Kind::Symlink(target) => Ok(symlinkat(target.as_slice(), dir, name)?),
            Kind::Fifo => Ok(mknodat(dir, name, FileType::Fifo, Mode::RUSR, 0)?),
            Kind::Device {
                block,
                major,
                minor,
            } => {
                let kind = match block {
                    true => FileType::BlockDevice,
                    false => FileType::CharacterDevice,
                };
                Ok(mknodat(
                    dir,
                    name,
                    kind,
                    Mode::RUSR,
                    makedev(*major, *minor),
                )?)
            }
            Kind::File(content) => self.file(dir, name, content),
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8], content: &Content) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let out = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        content.open()?.copy_to(&out)?;
        self.done += content.size_bytes();
        (self.progress)(self.done);
        Ok(())
    }
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

/// Owner, attributes, permissions, times. An owner's change clears capabilities and set-id bits, and a list of access
/// rules sets permissions. A symbolic link has none.
fn dress(dir: BorrowedFd<'_>, name: &[u8], path: &Path, node: &Node) -> io::Result<()> {
    let own = &node.attributes;
    let (uid, gid) = (Uid::from_raw(own.uid), Gid::from_raw(own.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    for (name, value) in &own.xattrs {
        lsetxattr(path, name.as_slice(), value, XattrFlags::empty())?;
    }
    if !matches!(node.kind, Kind::Symlink(_)) {
        let mode = Mode::from_raw_mode(own.mode.into());
        chmodat(dir, name, mode, AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: own.modified.seconds,
            tv_nsec: own.modified.nanoseconds.into(),
        },
    };
    Ok(utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
