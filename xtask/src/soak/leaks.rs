//! [`Leaks`]: what the servers that live from the beginning to the end hold at quiet moments, when
//! nothing is on its way to them.
//!
//! | what                               | bound                                            |
//! |------------------------------------|--------------------------------------------------|
//! | descriptors but for objects        | as many as at the first quiet moment             |
//! | threads but for those that flush   | as many as at the first quiet moment             |
//! | threads that flush                 | [`FLUSH_THREADS`]                                |
//! | descriptors of objects             | [`OBJECT_FDS`]: the store's caches of open files |
//! | memory                             | [`RSS_BYTES`], with a frame cache of 32 MiB      |

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use cowslip_nbd::limits::FLUSH_THREADS_MAX;

use super::world::World;
use crate::rig::usage::{Process, du, processes_of};

const FLUSH_THREADS: usize = FLUSH_THREADS_MAX;
/// 256 layers and 64 headers are kept open, and one is being read.
const OBJECT_FDS: usize = 256 + 64 + 1;
const RSS_BYTES: u64 = 256 << 20;
/// For threads to end and descriptors to be closed.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Leaks {
    /// Of the steady session's server, and of the template's.
    first: [Option<Process>; 2],
    pub(super) last: [Process; 2],
    pub(super) peak: Process,
    pub(super) samples: u64,
}

impl World {
    /// Looks at the long-lived servers, if nothing is on its way to them.
    pub(super) fn look_for_leaks(&mut self) -> Result<bool> {
        let Some(at) = self.sessions_that(|s| s.steady).pop() else {
            return Ok(false);
        };
        let number = self.sessions[at].number;
        // The first look comes after two snapshots: what is opened once is open by then.
        let manifest = self.sessions[at].manifest()?;
        let snapshots = manifest["next_cache"].as_u64().unwrap_or(0);
        // A snapshot that was cancelled leaves a frozen cache, and its files, for the next.
        let caches = manifest["caches"].as_array().map_or(0, Vec::len);
        if snapshots < 4
            || caches != 1
            || self.asked.iter().any(|asked| asked.session == number)
            || !self.sessions[at].sealing()?.is_empty()
        {
            return Ok(false);
        }
        self.sessions[at].device.drain(&self.clock)?;
        let server = self.sessions[at]
            .server
            .as_ref()
            .context("it is always served")?;
        let template = self.template.as_ref().context("it is always served")?;
        for (which, pid) in [server.pid(), template.pid()].into_iter().enumerate() {
            self.leaks.sample(which, pid)?;
        }
        self.note("look for leaks", "");
        Ok(true)
    }
}

impl Leaks {
    fn sample(&mut self, which: usize, pid: u32) -> Result<()> {
        let give_up = Instant::now() + SETTLES_WITHIN;
        loop {
            let now = Process::of(pid)?;
            let first = self.first[which].get_or_insert_with(|| now.clone());
            let is_back = now.fds <= first.fds && now.threads <= first.threads;
            let is_bounded = now.flush_threads <= FLUSH_THREADS
                && now.object_fds <= OBJECT_FDS
                && now.rss_bytes <= RSS_BYTES;
            if is_back && is_bounded {
                self.peak.fds = self.peak.fds.max(now.fds);
                self.peak.object_fds = self.peak.object_fds.max(now.object_fds);
                self.peak.removed_fds = self.peak.removed_fds.max(now.removed_fds);
                self.peak.threads = self.peak.threads.max(now.threads);
                self.peak.flush_threads = self.peak.flush_threads.max(now.flush_threads);
                self.peak.rss_bytes = self.peak.rss_bytes.max(now.rss_bytes);
                self.last[which] = now;
                self.samples += 1;
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("server {pid} leaks: it holds {now:?}, and in the beginning {first:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What is left of a store from which everything was removed: nothing but its marker and its
/// locks; and nothing beside it.
pub(super) fn left_over(world: &World) -> Result<Vec<String>> {
    let (store, dir) = (world.rig.store(), world.rig.dir());
    let mut left = processes_of(dir)?;
    let mut look = |below: &std::path::Path, expected: &[&str]| -> Result<()> {
        for entry in std::fs::read_dir(below)? {
            let path = entry?.path();
            let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
            if !expected.contains(&name.as_str()) {
                let room = du(&path);
                left.push(format!(
                    "{name} ({} files, {} bytes)",
                    room.files, room.len_bytes
                ));
            }
        }
        Ok(())
    };
    look(dir, &["cowslip", "log", "store", "tmp"])?;
    look(&dir.join("tmp"), &[])?;
    let directories = [
        "headers",
        "layers",
        "leases",
        "sessions",
        "snapshots",
        "tmp",
    ];
    let expected = directories.map(|name| format!("store/{name}"));
    let expected: Vec<&str> = expected
        .iter()
        .map(String::as_str)
        .chain(["store/store"])
        .collect();
    look(&store, &expected)?;
    // docs/format.md names them all: they stay.
    let locks = [
        "roots",
        "compact",
        "collect-0",
        "collect-1",
        "collect-2",
        "collect-3",
    ];
    let locks = locks.map(|name| format!("store/leases/{name}.lock"));
    let locks: Vec<&str> = locks.iter().map(String::as_str).collect();
    for name in directories {
        look(&store.join(name), &locks)?;
    }
    Ok(left)
}
