//! A [`Tree`] from a directory of this machine, as it is: owners, modes, times, hard links, attributes.
//!
//! It stays on one file system: what is mounted in the directory is an empty directory in the tree, as `/proc` of
//! a tree that was just made should be. Sockets, which mean nothing without who listens, are left out. Both are said.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use rustix::io::Errno;

use crate::failure::Failure;
use cowslip_tree::{Attributes, Content, Kind, Time, Tree, xattrs};

/// What was left out, to be said.
pub(crate) type Remarks = Vec<String>;

/// Reads the whole directory; `progress` is told of each file.
pub(crate) fn read(
    root: &Path,
    tree: &mut Tree,
    progress: &mut dyn FnMut(),
) -> Result<Remarks, Failure> {
    let meta = fs::metadata(root).map_err(|e| Failure::file(root, &e))?;
    let mut walk = Walk {
        tree,
        device: meta.dev(),
        linked: HashMap::new(),
        remarks: Vec::new(),
        progress,
    };
    // The directory itself may be reached through a link; nothing below it is.
    let root = root.canonicalize().map_err(|e| Failure::file(root, &e))?;
    walk.put(&root, b"", &meta)?;
    walk.directory(&root, b"")?;
    Ok(walk.remarks)
}

struct Walk<'a> {
    tree: &'a mut Tree,
    device: u64,
    /// The first name of each file that has several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    remarks: Remarks,
    progress: &'a mut dyn FnMut(),
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, name: &[u8]) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::file(path, &e);
        let entries = fs::read_dir(path).map_err(failed)?;
        let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        // The order of names, not the order that the file system has them in.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = [name, b"/", entry.file_name().as_bytes()].concat();
            let meta = fs::symlink_metadata(&path).map_err(|e| Failure::file(&path, &e))?;
            if meta.file_type().is_socket() {
                self.remarks
                    .push(format!("{} is a socket: left out", path.display()));
                continue;
            }
            if name == b"/lost+found" && meta.is_dir() {
                continue;
            }
            self.put(&path, &name, &meta)?;
            (self.progress)();
            if meta.is_dir() && meta.dev() != self.device {
                let remark = "is mounted there: an empty directory";
                self.remarks.push(format!("{} {remark}", path.display()));
            } else if meta.is_dir() {
                self.directory(&path, &name)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, name: &[u8], meta: &Metadata) -> Result<(), Failure> {
        let refuse = |why: String| Failure::failed(format!("{}: {why}", path.display()));
        let inode = (meta.dev(), meta.ino());
        if meta.nlink() > 1 && !meta.is_dir() {
            if let Some(first) = self.linked.get(&inode) {
                return self.tree.link(name, first).map_err(refuse);
            }
            self.linked.insert(inode, name.to_vec());
        }
        let kind = kind(path, meta).map_err(|e| Failure::file(path, &e))?;
        let attributes = Attributes {
            uid: meta.uid(),
            gid: meta.gid(),
            mode: u16::try_from(meta.mode() & 0o7777).expect("twelve bits"),
            modified: Time {
                seconds: meta.mtime(),
                nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
            },
            xattrs: xattrs_of(path).map_err(|e| Failure::file(path, &e.into()))?,
        };
        self.tree
            .insert(name, attributes, kind)
            .map(drop)
            .map_err(refuse)
    }
}

fn kind(path: &Path, meta: &Metadata) -> io::Result<Kind> {
    let is = meta.file_type();
    let device = |block| Kind::Device {
        block,
        major: major(meta.rdev()),
        minor: minor(meta.rdev()),
    };
    Ok(if is.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if is.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.as_os_str().as_bytes().to_vec())
    } else if is.is_char_device() {
        device(false)
    } else if is.is_block_device() {
        device(true)
    } else if is.is_fifo() {
        Kind::Fifo
    } else {
        Kind::File(Content::Path {
            path: path.to_owned(),
            size_bytes: meta.size(),
            allocated_bytes: meta.blocks() * 512,
        })
    })
}

/// Those that ext4 can have; others belong to the file system that the directory is on.
fn xattrs_of(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let mut names = vec![0; xattrs::LIST_BYTES_MAX];
    let len = match llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut found = BTreeMap::new();
    let names = names[..len].split(|b| *b == 0);
    for name in names.filter(|name| xattrs::is_known(name)) {
        let mut value = vec![0; xattrs::VALUE_BYTES_MAX];
        match lgetxattr(path, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                found.insert(name.to_vec(), value);
            }
            // It went, or is not for us to see.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}
