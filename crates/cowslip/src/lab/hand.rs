//! [`Hand`]: the only way in which a workload changes files. It notes each path, so that what really changed can be
//! found afterwards ([`super::floor`]) without a walk, which would itself write times of access.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, utimensat};

use crate::random::Random;

/// A file system that is mounted, and who changes it.
pub(crate) struct Hand {
    root: PathBuf,
    touched: BTreeSet<String>,
    pub(crate) random: Random,
}

impl Hand {
    pub(crate) fn new(root: &Path, seed: u64) -> Self {
        Self {
            root: root.to_owned(),
            touched: BTreeSet::new(),
            random: Random(seed),
        }
    }

    /// What was changed so far, by path below the root.
    pub(crate) fn touched(&self) -> &BTreeSet<String> {
        &self.touched
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Something else is about to change this file.
    pub(crate) fn touch(&mut self, path: &str) -> PathBuf {
        self.touched.insert(path.to_owned());
        self.at(path)
    }

    pub(crate) fn mkdir(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.at(path))
    }

    /// Made, or cut to nothing and written again.
    pub(crate) fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<File> {
        let mut file = File::create(self.touch(path))?;
        file.write_all(bytes)?;
        Ok(file)
    }

    pub(crate) fn write_synced(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.write(path, bytes)?.sync_all()
    }

    /// As editors and package managers do it: another file, synced, takes the name.
    pub(crate) fn replace(&mut self, path: &str, bytes: &[u8], synced: bool) -> io::Result<()> {
        let beside = format!("{path}.new");
        let file = self.write(&beside, bytes)?;
        if synced {
            file.sync_all()?;
        }
        let to = self.touch(path);
        fs::rename(self.at(&beside), to)
    }

    pub(crate) fn append(&mut self, path: &str, bytes: &[u8]) -> io::Result<File> {
        let to = self.touch(path);
        let mut file = OpenOptions::new().append(true).create(true).open(to)?;
        file.write_all(bytes)?;
        Ok(file)
    }

    pub(crate) fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.touch(path))?;
        file.write_all_at(bytes, at)
    }

    pub(crate) fn remove(&mut self, path: &str) -> io::Result<()> {
        fs::remove_file(self.touch(path))
    }

    pub(crate) fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        for (file, _) in self.walk(path)? {
            self.touch(&file);
        }
        fs::remove_dir_all(self.at(path))
    }

    /// Everything is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.root)?)?)
    }

    /// Times alone.
    pub(crate) fn set_time(&self, path: &str, seconds: i64) -> io::Result<()> {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(utimensat(CWD, self.at(path), &times, AtFlags::empty())?)
    }

    /// Reads as programs do, which may write a time of access.
    pub(crate) fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.at(path))
    }

    /// All regular files below a directory with their sizes, in order of names.
    pub(crate) fn walk(&self, path: &str) -> io::Result<Vec<(String, u64)>> {
        walk(&self.root, path)
    }
}

/// All regular files below a directory, by path below the root, with their sizes, in order of names.
pub(crate) fn walk(root: &Path, path: &str) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = match dir.as_str() {
                "" => name,
                dir => format!("{dir}/{name}"),
            };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() {
                found.push((path, entry.metadata()?.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// All of a file, without leaving a time of access.
pub(crate) fn read_unseen(path: &Path) -> io::Result<Vec<u8>> {
    let flags = i32::try_from(OFlags::NOATIME.bits()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    file?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
