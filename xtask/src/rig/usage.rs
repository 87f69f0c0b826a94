//! What the kernel says of a process ([`Process`]) and of the files below a directory ([`du`]).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// What a server holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Descriptors, but for those of objects.
    pub(crate) fds: usize,
    /// Descriptors of the store's layers and headers: a cache of them, with a bound.
    pub(crate) object_fds: usize,
    /// Of those, objects that have been removed: their room is not free yet.
    pub(crate) removed_fds: usize,
    /// Threads, but for those that flush: they come when they are needed, up to a bound, and stay.
    pub(crate) threads: usize,
    pub(crate) flush_threads: usize,
    pub(crate) rss_bytes: u64,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut found = Self::default();
        for fd in list(&format!("/proc/{pid}/fd"))? {
            // One that has been closed since the directory was read.
            let Ok(target) = std::fs::read_link(fd) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            if target.contains("/store/layers/") || target.contains("/store/headers/") {
                found.object_fds += 1;
                found.removed_fds += usize::from(target.ends_with(" (deleted)"));
            } else {
                found.fds += 1;
            }
        }
        for task in list(&format!("/proc/{pid}/task"))? {
            match std::fs::read_to_string(task.join("comm")) {
                Ok(name) if name.trim() == "nbd-flush" => found.flush_threads += 1,
                Ok(_) => found.threads += 1,
                Err(_) => {}
            }
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = rss.and_then(|rss| rss.split_whitespace().next()?.parse::<u64>().ok());
        found.rss_bytes = kib.context("VmRSS in /proc")? << 10;
        Ok(found)
    }
}

/// How many threads of a process have this name.
pub(crate) fn threads_named(pid: u32, name: &str) -> Result<usize> {
    let tasks = list(&format!("/proc/{pid}/task"))?.into_iter();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.join("comm")).ok());
    Ok(names.filter(|found| found.trim() == name).count())
}

/// How many connections a server has a thread for.
pub(crate) fn connections(pid: u32) -> Result<usize> {
    let tasks = list(&format!("/proc/{pid}/task"))?.into_iter();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.join("comm")).ok());
    let is_one = |name: &String| {
        let number = name.trim().strip_prefix("nbd-");
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    Ok(names.filter(is_one).count())
}

/// What the files take on disk that a process has open, and that are removed from below a directory.
pub(crate) fn removed_bytes(pid: u32, below: &Path) -> Result<u64> {
    let mut held = std::collections::BTreeMap::new();
    for fd in list(&format!("/proc/{pid}/fd"))? {
        let Ok(target) = std::fs::read_link(&fd) else {
            continue;
        };
        let is_removed = target.to_string_lossy().ends_with(" (deleted)");
        if is_removed && target.starts_with(below) {
            // Through the link, also where it leads nowhere.
            held.extend(fd.metadata().map(|m| (m.ino(), m.blocks() * 512)));
        }
    }
    Ok(held.into_values().sum())
}

fn list(dir: &str) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.to_owned())?;
    Ok(entries.filter_map(|e| Some(e.ok()?.path())).collect())
}

/// The processes that were started with something in this directory, by id and command line.
pub(crate) fn processes_of(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.to_string_lossy();
    let mut found = Vec::new();
    for process in list("/proc")? {
        let read = |name: &str| std::fs::read(process.join(name)).unwrap_or_default();
        let id = process
            .file_name()
            .and_then(|n| n.to_str()?.parse::<u32>().ok());
        let Some(id) = id.filter(|id| *id != std::process::id()) else {
            continue;
        };
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let around = String::from_utf8_lossy(&read("environ")).into_owned();
        if line.contains(&*dir) || around.contains(&*dir) {
            found.push(format!("{id}: {line}"));
        }
    }
    Ok(found)
}

/// What the files below a directory take on disk, and how long they are, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) disk_bytes: u64,
    pub(crate) len_bytes: u64,
    pub(crate) files: u64,
}

/// See [`Room`]. A file that goes while it is looked at counts for nothing.
pub(crate) fn du(dir: &Path) -> Room {
    let mut room = Room::default();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(m) = entry.metadata() else { continue };
        let below = match m.is_dir() {
            true => du(&entry.path()),
            false => Room {
                disk_bytes: m.blocks() * 512,
                len_bytes: m.len(),
                files: 1,
            },
        };
        room.disk_bytes += below.disk_bytes;
        room.len_bytes += below.len_bytes;
        room.files += below.files;
    }
    room
}

#[test]
fn this_process_has_threads_and_descriptors() {
    let here = Process::of(std::process::id()).unwrap();
    assert!(
        here.fds > 2 && here.threads > 0 && here.rss_bytes > 1 << 20,
        "{here:?}"
    );
}
