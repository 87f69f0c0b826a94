//! A guest that begins from a cold snapshot and touches what it needs, with and without the trace of an earlier one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_memory::server::Options;

use crate::host::{Host, PAGE, shuffled};
use crate::{Size, tell};

/// Pages that a guest uses one after the other, before it goes on somewhere else.
const STRETCH: usize = 8;

pub(crate) fn run(size: Size) {
    let pages = size.restored_mib << 8;
    let host = Host::new(pages);
    // A tenth of all.
    let stretches = shuffled(pages / STRETCH, 5);
    let needed = stretches.iter().take(pages / STRETCH / 10);
    let needed: Vec<_> = needed
        .flat_map(|s| s * STRETCH..(s + 1) * STRETCH)
        .collect();
    let touch = |options: Options| -> (f64, Option<_>) {
        let recorded = options.record;
        let serving = host.serve(options);
        let guest = serving.guest(false);
        let begun = Instant::now();
        guest.touch_all(needed.iter().copied());
        let took = begun.elapsed().as_secs_f64() * 1e3;
        let trace = recorded.then(|| serving.server.await_trace(Duration::ZERO));
        (took, trace.flatten())
    };
    let (_, trace) = touch(Options {
        trace: None,
        record: true,
    });
    let trace = trace.map(Arc::new);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        without.push(touch(Options::default()).0);
        let trace = trace.clone();
        with.push(
            touch(Options {
                trace,
                record: false,
            })
            .0,
        );
    }
    let (mib, kib) = (size.restored_mib, STRETCH * PAGE / 1024);
    let what = format!("a tenth of {mib} MiB touched, {kib} KiB at a time");
    tell(&format!("{what}, no trace"), "ms", &without, None, None);
    tell(
        &format!("{what}, with the trace"),
        "ms",
        &with,
        Some(&without),
        None,
    );
}
