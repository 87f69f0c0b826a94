//! What it costs to serve guests, beside what the kernel alone costs in the same run: `cargo xtask bench memory`.
//!
//! | section | floor |
//! |---|---|
//! | faults whose page is decoded | a loop of poll, read and UFFDIO_COPY from one buffer |
//! | faults that read and decode a frame; a walk that finds the rest of the frame in place | none |
//! | prefetch | UFFDIO_COPY of all, 1 MiB at a time |
//! | pause: the engine's share of it, when most was copied ahead | none |
//! | harvest: its share when nothing was | the kernel's requests alone: PAGEMAP_SCAN of all, or UFFDIO_WRITEPROTECT of each run that is dirty |
//! | forks that nobody uses | none |
//! | a restore with and without the trace | none |
//!
//! The guest is this process: a thread of it touches memory that a server of the library serves. The image lies in `/dev/shm` where there is one. Each figure
//! is the median of rounds, floor and engine in turns within a round. With `--quick` all of it is small, to see that it runs; names of sections
//! (faults, prefetch, harvest, forks, restore) leave out the others.
//! Output: a line of JSON for each figure.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, and prints"
)]

mod faults;
mod floor;
mod forks;
mod harvest;
mod host;
mod prefetch;
mod restore;

use std::time::Duration;

/// How large all of it is.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// Of the image whose pages are faulted.
    pub(crate) pages: usize,
    /// Of the memories that are harvested, and of the one that is restored.
    pub(crate) harvested_mib: &'static [usize],
    pub(crate) restored_mib: usize,
    pub(crate) forks: usize,
}

const FULL: Size = Size {
    rounds: 7,
    pages: 64 << 8,
    harvested_mib: &[256, 1024, 4096],
    restored_mib: 1024,
    forks: 1000,
};
const QUICK: Size = Size {
    rounds: 1,
    pages: 4 << 8,
    harvested_mib: &[16],
    restored_mib: 16,
    forks: 20,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let size = match args.iter().any(|arg| arg == "--quick") {
        true => QUICK,
        false => FULL,
    };
    if !cowslip_vmm::can("guests", false) {
        return;
    }
    type Section = (&'static str, fn(Size));
    let sections: [Section; 5] = [
        ("faults", faults::run),
        ("prefetch", prefetch::run),
        ("harvest", harvest::run),
        ("forks", forks::run),
        ("restore", restore::run),
    ];
    // Whatever else cargo says.
    let wanted: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    for (name, run) in sections {
        if wanted.is_empty() || wanted.iter().any(|arg| *arg == name) {
            run(size);
        }
    }
}

/// One figure of the table, with what it is measured against.
pub(crate) fn tell(
    what: &str,
    unit: &str,
    samples: &[f64],
    floor: Option<&[f64]>,
    target: Option<(&str, f64)>,
) {
    let ratios = floor.map(|floor| {
        let ratios: Vec<f64> = samples.iter().zip(floor).map(|(s, f)| s / f).collect();
        median(&ratios)
    });
    println!(
        "{}",
        serde_json::json!({
            "what": what,
            "unit": unit,
            "median": median(samples),
            "least": quantile(samples, 0.0),
            "most": quantile(samples, 1.0),
            "floor": floor.map(median),
            "ratio": ratios,
            "target": target.map(|(kind, most)| format!("{kind} {most}")),
        })
    );
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Of at least one.
pub(crate) fn quantile(samples: &[f64], at: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() - 1) as f64 * at) as usize;
    sorted[index]
}

pub(crate) fn us(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
}

/// GiB a second.
#[expect(clippy::cast_precision_loss, reason = "a figure of three digits")]
pub(crate) fn gib_per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / f64::from(1 << 30)
}
