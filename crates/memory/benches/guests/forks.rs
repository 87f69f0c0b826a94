//! Guests that are there and do nothing: time and memory of each.

use std::time::Instant;

use cowslip_memory::server::Options;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::host::Host;
use crate::{Size, tell};

fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "figures of three digits")]
pub(crate) fn run(size: Size) {
    // Both ends of each guest are in this process: some 8 descriptors.
    let most = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let host = Host::new(256 << 8);
    let serving = host.serve(Options::default());
    // What the first one needs, all share.
    let first = serving.guest(false);
    first.touch_all([7]);
    let before = resident_bytes();
    let begun = Instant::now();
    let guests: Vec<_> = (0..size.forks).map(|_| serving.guest(false)).collect();
    let each = begun.elapsed().as_secs_f64() * 1e6 / guests.len() as f64;
    let bytes = (resident_bytes() - before) / guests.len() as f64;
    tell(
        "a fork of 256 MiB, from its hand-over to being served",
        "us",
        &[each],
        None,
        None,
    );
    tell(
        "a fork that nobody uses, resident memory of server and guest",
        "bytes",
        &[bytes],
        None,
        Some(("at most", 16384.0)),
    );
}
