//! `cowslip compact`: rewrites what is partly used, so that images depend on few layers and the store
//! holds little that nobody needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cowslip_block::files::RealDir;
use cowslip_snapshot::compact::{
    Around, Compacted, Options, Policy, Progress, Reach, compact, survey,
};
use cowslip_snapshot::roots::SessionRecord;
use cowslip_snapshot::session::{Over, go_over};
use cowslip_snapshot::store::Store;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::Context;
use crate::args;
use crate::failure::{Failure, Kind};
use crate::report::{Unit, advance, bytes, complain};

/// Served sessions go over to compacted bases by themselves, within a second or so. What they have
/// not let go of by then is removed by a later `gc`.
const GOING_OVER: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Something was, or is, to be done.
    due: bool,
    before: Figures,
    after: Figures,
    copied_bytes: u64,
    written_bytes: u64,
    left_objects: u64,
    swapped: u64,
    removed_objects: u64,
    removed_bytes: u64,
    /// Layers that are damaged and were left as they are.
    damaged: Vec<String>,
    interrupted: bool,
}

/// Of all objects that some image needs.
#[derive(Clone, Copy, Serialize)]
struct Figures {
    object_bytes: u64,
    live_bytes: u64,
    garbage_bytes: u64,
}

impl From<Reach> for Figures {
    fn from(reach: Reach) -> Self {
        Self {
            object_bytes: reach.object_bytes,
            live_bytes: reach.live_bytes,
            garbage_bytes: reach.garbage_bytes(),
        }
    }
}

impl Report {
    fn new(done: Compacted, dry_run: bool) -> Self {
        Self {
            dry_run,
            due: done.left_objects > 0,
            before: done.before.into(),
            after: done.after.into(),
            copied_bytes: done.copied_bytes,
            written_bytes: done.written_bytes,
            left_objects: done.left_objects,
            swapped: done.swapped,
            removed_objects: done.removed_objects,
            removed_bytes: done.removed_bytes,
            damaged: done.damaged,
            interrupted: done.interrupted,
        }
    }
}

pub(super) fn run(context: &Context, args: &args::Compact) -> Result<(), Failure> {
    let store = context.store()?;
    let options = Options {
        policy: if args.auto {
            Policy::AUTO
        } else {
            Policy::FULL
        },
        names: args.names.clone(),
        step_bytes: args.step.0,
    };
    let stop = interrupt()?;
    let bars = [
        context.report.progress("looking", Unit::Snapshots),
        context.report.progress("copying", Unit::Bytes),
        context.report.progress("rewriting", Unit::Snapshots),
    ];
    let progress = |progress| {
        let (bar, done, total) = match progress {
            Progress::Surveyed(done, total) => (&bars[0], done, total),
            Progress::Copied(done, total) => (&bars[1], done, total),
            Progress::Rewritten(done, total) => (&bars[2], done, total),
        };
        advance(bar, done, total);
        !stop.load(Ordering::Relaxed)
    };
    let done = if args.dry_run {
        survey(&store, &options, &progress)
    } else {
        let around = Around {
            moved: &|moved| go_over_all(&store, moved, &stop),
            progress: &progress,
        };
        compact(&store, &options, &around)
    };
    bars.iter()
        .for_each(indicatif::ProgressBar::finish_and_clear);
    let report = Report::new(done?, args.dry_run);
    context.report.result(&report, || text(&report))?;
    for damage in &report.damaged {
        complain(&format!("left as it is: {damage}"));
    }
    if report.interrupted {
        let why = "interrupted: what was done so far stands, and another run goes on";
        return Err(Failure::failed(why));
    }
    if !report.damaged.is_empty() {
        let what = format!("{} layers are damaged", report.damaged.len());
        return Err(Failure::new(Kind::Corrupt, what).hint("`cowslip verify` says all of it"));
    }
    Ok(())
}

/// Set by a signal that would end the program.
fn interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|e| Failure::failed(format!("waiting for signals: {e}")))?;
    }
    Ok(stop)
}

/// Sessions at rest are made to go over, those that are served are waited for.
fn go_over_all(store: &Store, moved: &[SessionRecord], stop: &AtomicBool) {
    let give_up = Instant::now() + GOING_OVER;
    let still = |record: &&SessionRecord| {
        let now = store.sessions().unwrap_or_default();
        now.iter().any(|r| r.id == record.id && r.moved.is_some())
    };
    let is_served = |record: &&SessionRecord| {
        let dir = RealDir::open(&record.path);
        match dir.map(|dir| go_over(&dir, store, record)) {
            Ok(Ok(over)) => over == Over::InUse,
            Ok(Err(error)) => {
                complain(&format!("{}: {error}", record.path.display()));
                false
            }
            // It may have been moved, and goes over when it is opened.
            Err(_) => false,
        }
    };
    let served: Vec<_> = moved.iter().filter(is_served).collect();
    while served.iter().any(&still) {
        if Instant::now() > give_up || stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn text(report: &Report) -> String {
    let Report { before, after, .. } = report;
    let state = |figures: &Figures| {
        format!(
            "{} stored, of which {} nobody needs",
            bytes(figures.object_bytes),
            bytes(figures.garbage_bytes)
        )
    };
    if report.dry_run {
        let due = match report.due {
            true => format!(
                "a first step would leave {} objects and copy {}",
                report.left_objects,
                bytes(report.copied_bytes)
            ),
            false => "nothing to do".into(),
        };
        return format!("{}: {due}", state(before));
    }
    format!(
        "copied {} ({} written), left {} objects, swapped {} names and sessions, removed {} objects ({}); before: {}; now: {}",
        bytes(report.copied_bytes),
        bytes(report.written_bytes),
        report.left_objects,
        report.swapped,
        report.removed_objects,
        bytes(report.removed_bytes),
        state(before),
        state(after),
    )
}
