//! The engine's share of a pause: what is dirty is found, and protected again; where the kernel notes writes, it is copied as well. Of a snapshot whose guest
//! runs until it is asked to pause, that is done for what was written while the rest was copied ahead.

use std::time::Instant;

use cowslip_memory::process::Process;
use cowslip_memory::server::Options;
use cowslip_memory::snapshot::{Holder, SnapshotError, capture};

use crate::host::{Guest, Host, PAGE, shuffled};
use crate::{Size, tell};

/// Writes some more when it is to pause; how long it is paused.
struct Paused<W> {
    write: W,
    since: Instant,
    millis: f64,
}

impl<W: FnMut()> Holder for Paused<W> {
    fn is_paused(&self) -> bool {
        false
    }

    fn pause(&mut self) -> Result<(), SnapshotError> {
        (self.write)();
        self.since = Instant::now();
        Ok(())
    }

    fn goes_on(&mut self) -> bool {
        self.millis = self.since.elapsed().as_secs_f64() * 1e3;
        true
    }
}

pub(crate) fn run(size: Size) {
    for mib in size.harvested_mib {
        let pages = mib << 8;
        let host = Host::zeros(pages);
        for is_async in [true, false] {
            one(size, &host, *mib, is_async);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures of three digits")]
fn one(size: Size, host: &Host, mib: usize, is_async: bool) {
    let serving = host.serve(Options::default());
    let guest = serving.guest(is_async);
    let process = Process::open(std::process::id()).unwrap();
    let pages = host.pages;
    let all = guest.live.guest();
    // Its pages are there, and were written: what was dirtied earlier must not count.
    (0..pages).for_each(|page| guest.memory.write(page * PAGE, 1));
    let earlier = all.harvest(&process, &host.spool()).unwrap();
    all.copy(&process, &earlier).unwrap();
    let (mut finding, mut floor, mut copying) = (Vec::new(), Vec::new(), Vec::new());
    let mut pauses = Vec::new();
    let gib = mib as f64 / 1024.0;
    for round in 0..size.rounds {
        let mut dirty = shuffled(pages, round as u64 + 1);
        dirty.truncate(pages / 100);
        dirty.sort_unstable();
        let write_each = |nth, byte| {
            let some = dirty.iter().step_by(nth);
            some.for_each(|page| guest.memory.write(page * PAGE, byte));
        };
        let write = |byte| write_each(1, byte);
        write(1);
        let begun = Instant::now();
        if is_async {
            process
                .take_written(guest.memory.addresses(), &mut |_| ())
                .unwrap();
        } else {
            let start = guest.memory.addresses().start;
            for page in &dirty {
                let at = start + (page * PAGE) as u64;
                guest.uffd().protect(at..at + PAGE as u64, true).unwrap();
            }
        }
        floor.push(begun.elapsed().as_secs_f64() * 1e3 / gib);
        write(2);
        let spool = host.spool();
        let begun = Instant::now();
        let harvest = all.harvest(&process, &spool).unwrap();
        finding.push(begun.elapsed().as_secs_f64() * 1e3 / gib);
        let begun = Instant::now();
        all.copy(&process, &harvest).unwrap();
        copying.push(begun.elapsed().as_secs_f64() * 1e3 / gib);
        let found: u64 = harvest.dirty.iter().map(|run| run.count().0).sum();
        assert_eq!(found, pages as u64 / 100);
        write(3);
        pauses.push(pause(&guest, host, || write_each(100, 4)) / gib);
    }
    let how = if is_async {
        "noted by the kernel"
    } else {
        "told by faults"
    };
    let when = if is_async {
        "still paused"
    } else {
        "the guest goes on"
    };
    tell(
        &format!(
            "pause of {mib} MiB, 1 % dirty and copied ahead, 0.01 % written again meanwhile, {how}"
        ),
        "ms/GiB",
        &pauses,
        None,
        Some(("at most", 2.0)),
    );
    tell(
        &format!("harvest of {mib} MiB, 1 % dirty at random, {how}"),
        "ms/GiB",
        &finding,
        Some(&floor),
        Some(("at most", 2.0)),
    );
    tell(
        &format!("copy of {mib} MiB, 1 % dirty at random, {when}"),
        "ms/GiB",
        &copying,
        None,
        None,
    );
}

/// Of a snapshot.
fn pause(guest: &Guest<'_>, host: &Host, write: impl FnMut()) -> f64 {
    let lease = guest.live.store().lease().unwrap();
    let mut paused = Paused {
        write,
        since: Instant::now(),
        millis: 0.0,
    };
    let captured = capture(&guest.live, host.spool(), &mut paused).unwrap();
    let taken = captured.store(&lease, None, 0, &mut |_, _, _| ());
    taken.unwrap().committed(lease);
    paused.millis
}
