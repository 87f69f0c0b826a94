//! One round, and what is measured in it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cowslip_block::files::RealDir;
use cowslip_nbd::Client;
use cowslip_sim::load::compare;
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::{Caches, Image, Store};
use serde_json::Value;

use super::guest::Guest;
use crate::rig::Rig;
use crate::rig::server::Server;
use crate::rig::table::bytes;
use crate::rig::usage::{du, removed_bytes};

/// The store is looked at so often for its peak.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A server closes what is removed within so long.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// What one round came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    /// By the guest, to the device.
    pub(super) guest_bytes: u64,
    /// What the snapshot stored: payload, and the rest of it.
    pub(super) payload_bytes: u64,
    pub(super) header_bytes: u64,
    /// New objects of the compaction.
    pub(super) compacted_bytes: u64,
    /// Blocks of the image that is left, not zero.
    pub(super) live_bytes: u64,
    /// On disk, after the round.
    pub(super) store_bytes: u64,
    /// Of files that are removed, and that the server has open still.
    pub(super) held_bytes: u64,
    /// At most, in the round: two images were needed for a while.
    pub(super) peak_bytes: u64,
    pub(super) guest_ms: f64,
    pub(super) snapshot_ms: f64,
    pub(super) gc_ms: f64,
    pub(super) compact_ms: f64,
}

pub(super) fn ratio(of: u64, to: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let ratio = of as f64 / to as f64;
    ratio
}

impl Round {
    /// The store against the live bytes.
    pub(super) fn ratio(&self) -> f64 {
        ratio(self.store_bytes + self.held_bytes, self.live_bytes)
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.payload_bytes + self.header_bytes + self.compacted_bytes
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{} live, store {} and {} removed but open ({:.2}), peak {}, stored {}, compaction wrote {}; \
             {:.1} s",
            bytes(self.live_bytes),
            bytes(self.store_bytes),
            bytes(self.held_bytes),
            self.ratio(),
            bytes(self.peak_bytes),
            bytes(self.payload_bytes + self.header_bytes),
            bytes(self.compacted_bytes),
            (self.guest_ms + self.snapshot_ms + self.gc_ms + self.compact_ms) / 1e3,
        )
    }
}

/// A served session, and its client.
pub(super) struct Stage<'a> {
    rig: &'a Rig,
    server: Server,
    client: Client,
    last: String,
}

impl<'a> Stage<'a> {
    /// A session of an empty disk.
    pub(super) fn set(rig: &'a Rig, size_bytes: u64) -> Result<Self> {
        let file = std::fs::File::create(rig.path("empty.raw"))?;
        file.set_len(size_bytes)?;
        rig.ok("import empty.raw empty --format raw --quiet")?;
        let dir = rig.path("session");
        let mut serve = rig.command(["serve", "empty", "--session"]);
        serve.arg(&dir);
        let server = Server::start(serve, dir.join("nbd.sock"))?;
        let client = server.client()?;
        Ok(Self {
            rig,
            server,
            client,
            last: "empty".into(),
        })
    }

    pub(super) fn round(&mut self, guest: &mut Guest, number: usize) -> Result<Round> {
        let done = AtomicBool::new(false);
        let (store, pid) = (self.rig.store(), self.server.pid());
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&store, pid, &done));
            let round = self.round_unwatched(guest, number);
            let held = wait_for_room(pid, &store);
            done.store(true, Ordering::Relaxed);
            let peak = watching.join().expect("it only looks at files");
            let mut round = round?;
            round.live_bytes = guest.live_bytes();
            round.store_bytes = du(&store).disk_bytes;
            round.held_bytes = held?;
            round.peak_bytes = peak.max(round.store_bytes + round.held_bytes);
            Ok(round)
        })
    }

    fn round_unwatched(&mut self, guest: &mut Guest, number: usize) -> Result<Round> {
        let mut round = Round::default();
        let name = format!("round-{number}");
        round.guest_ms = timed(|| {
            round.guest_bytes = guest.write(&mut self.client)?;
            Ok(())
        })?;
        round.snapshot_ms = timed(|| {
            let taken = self.rig.json(&format!("snapshot session {name}"))?;
            round.payload_bytes = number_in(&taken, "payload_bytes")?;
            round.header_bytes = number_in(&taken, "header_bytes")?;
            Ok(())
        })?;
        self.rig.ok(&format!("rm {}", self.last))?;
        self.last = name;
        round.gc_ms = timed(|| self.rig.ok("gc").map(drop))?;
        round.compact_ms = timed(|| {
            let compacted = self.rig.json("compact --auto")?;
            round.compacted_bytes = number_in(&compacted, "written_bytes")?;
            Ok(())
        })?;
        Ok(round)
    }

    /// What is left is what was written.
    pub(super) fn compare(&self, guest: &Guest) -> Result<()> {
        let dir = RealDir::open(&self.rig.store())?;
        let store = Arc::new(Store::open(&dir, Arc::new(RealHost), Caches::default())?);
        let image = Image::new(Arc::clone(&store), store.resolve(&self.last.parse()?)?);
        compare(&image, guest.versions()).map_err(anyhow::Error::msg)?;
        Ok(())
    }

    pub(super) fn end(self) -> Result<()> {
        drop(self.client);
        self.server.end()
    }
}

/// What is removed and still open, once a server has had the time to close it.
fn wait_for_room(pid: u32, store: &Path) -> Result<u64> {
    let give_up = Instant::now() + ROOM_WITHIN;
    loop {
        let held = removed_bytes(pid, store)?;
        if held == 0 || Instant::now() > give_up {
            return Ok(held);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The most that the store takes until it is done, with what is removed and still open.
fn watch(store: &Path, pid: u32, done: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !done.load(Ordering::Relaxed) {
        let held = removed_bytes(pid, store).unwrap_or(0);
        peak = peak.max(du(store).disk_bytes + held);
        std::thread::sleep(LOOK_EVERY);
    }
    peak
}

/// Milliseconds.
fn timed(what: impl FnOnce() -> Result<()>) -> Result<f64> {
    let from = Instant::now();
    what()?;
    Ok(from.elapsed().as_secs_f64() * 1e3)
}

fn number_in(of: &Value, field: &'static str) -> Result<u64> {
    of[field].as_u64().context(field)
}
