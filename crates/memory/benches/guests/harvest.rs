//! The engine's share of a pause: what is dirty is found, and protected again; where the kernel notes writes, it is copied as well.

use std::time::Instant;

use cowslip_memory::process::Process;
use cowslip_memory::server::Options;

use crate::host::{Host, PAGE, shuffled};
use crate::{Size, tell};

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
    let gib = mib as f64 / 1024.0;
    for round in 0..size.rounds {
        let mut dirty = shuffled(pages, round as u64 + 1);
        dirty.truncate(pages / 100);
        dirty.sort_unstable();
        let write = |byte| {
            dirty
                .iter()
                .for_each(|page| guest.memory.write(page * PAGE, byte));
        };
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
        let dirty: u64 = harvest.dirty.iter().map(|run| run.count().0).sum();
        assert_eq!(dirty, pages as u64 / 100);
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
