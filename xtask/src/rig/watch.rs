//! [`Watch`]: what a server holds at quiet moments, when nothing is on its way to it; and what is left
//! of a store.
//!
//! | what                               | bound                                            |
//! |------------------------------------|--------------------------------------------------|
//! | descriptors but for objects        | as many as at the first quiet moment             |
//! | threads but for those that flush   | as many as at the first quiet moment             |
//! | threads that flush                 | [`FLUSH_THREADS_MAX`]                            |
//! | descriptors of objects             | [`OBJECT_FDS`]: the store's caches of open files |
//! | memory                             | [`RSS_BYTES`], with a frame cache of 32 MiB      |

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use cowslip_nbd::limits::FLUSH_THREADS_MAX;

use super::usage::{Process, du};

/// 256 layers and 64 headers are kept open, and one is being read.
const OBJECT_FDS: usize = 256 + 64 + 1;
const RSS_BYTES: u64 = 256 << 20;
/// For threads to end and descriptors to be closed.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    first: Option<Process>,
    pub(crate) last: Process,
    pub(crate) peak: Process,
    pub(crate) samples: u64,
}

impl Watch {
    /// One more quiet moment.
    pub(crate) fn sample(&mut self, pid: u32) -> Result<()> {
        let give_up = Instant::now() + SETTLES_WITHIN;
        loop {
            let now = Process::of(pid)?;
            let first = self.first.get_or_insert_with(|| now.clone());
            let is_back = now.fds <= first.fds && now.threads <= first.threads;
            let is_bounded = now.flush_threads <= FLUSH_THREADS_MAX
                && now.object_fds <= OBJECT_FDS
                && now.rss_bytes <= RSS_BYTES;
            if is_back && is_bounded {
                self.peak = most(&self.peak, &now);
                self.last = now;
                self.samples += 1;
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("server {pid} leaks: it holds {now:?}, and in the beginning {first:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Another server, with its own beginning.
    pub(crate) fn begin_again(&mut self) {
        self.first = None;
    }
}

/// The more of each.
pub(crate) fn most(a: &Process, b: &Process) -> Process {
    Process {
        fds: a.fds.max(b.fds),
        object_fds: a.object_fds.max(b.object_fds),
        removed_fds: a.removed_fds.max(b.removed_fds),
        threads: a.threads.max(b.threads),
        flush_threads: a.flush_threads.max(b.flush_threads),
        rss_bytes: a.rss_bytes.max(b.rss_bytes),
    }
}

/// What a directory holds beside what is expected there, by path.
pub(crate) fn others_in(dir: &Path, expected: &[&str]) -> Result<Vec<String>> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !expected.iter().any(|expected| name == *expected) {
            let path = entry.path();
            let room = du(&path);
            others.push(format!(
                "{} ({} files, {} bytes)",
                path.display(),
                room.files,
                room.len_bytes
            ));
        }
    }
    Ok(others)
}

/// What is left of a store from which everything was removed, beside its marker and its locks.
pub(crate) fn left_in_store(store: &Path) -> Result<Vec<String>> {
    let directories = [
        "headers",
        "layers",
        "leases",
        "sessions",
        "snapshots",
        "tmp",
    ];
    let mut left = others_in(store, &[&directories[..], &["store"]].concat())?;
    // docs/format.md names them all: they stay.
    let locks = [
        "roots",
        "compact",
        "collect-0",
        "collect-1",
        "collect-2",
        "collect-3",
    ];
    let locks = locks.map(|name| format!("{name}.lock"));
    let locks: Vec<&str> = locks.iter().map(String::as_str).collect();
    for name in directories {
        let expected = if name == "leases" { &locks[..] } else { &[] };
        left.extend(others_in(&store.join(name), expected)?);
    }
    Ok(left)
}
