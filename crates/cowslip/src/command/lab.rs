//! `cowslip lab`: runs the measurements of `crate::lab`, and tells what came of them.

use std::path::PathBuf;
use std::sync::mpsc;

use super::Context;
use super::target::{on_signal, signals};
use crate::args::Lab;
use crate::failure::Failure;
use crate::lab::{self, Scale, Stop, Wanted};

/// Where results are kept unless somebody says.
const DIR: &str = "cowslip-lab";
/// What `--quick` does, in percent of the whole.
const QUICK: Scale = Scale(15);

pub(super) fn run(context: &Context, args: &Lab) -> Result<(), Failure> {
    let signals = signals()?;
    lab::check_machine()?;
    let failed = |e: std::io::Error| Failure::failed(format!("a directory for the lab: {e}"));
    let temporary = match (&args.out, args.quick) {
        (None, true) => Some(
            tempfile::Builder::new()
                .prefix("cowslip-lab-")
                .tempdir()
                .map_err(failed)?,
        ),
        _ => None,
    };
    let dir = match (&args.out, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => PathBuf::from(DIR),
    };
    let wanted = Wanted {
        dir,
        variants: args.variants.clone(),
        workloads: args.workloads.clone(),
        quick: args.quick,
        scale: if args.quick { QUICK } else { Scale::FULL },
        seed: args.seed,
        jobs: args.jobs.into(),
    };
    let stop = Stop::default();
    let (end, ended) = mpsc::channel();
    on_signal(signals, end);
    let asked = stop.clone();
    std::thread::spawn(move || {
        if ended.recv().is_ok() {
            asked.ask();
        }
    });
    let mut found = lab::run(&wanted, context.report, &stop)?;
    if temporary.is_some() {
        found.dir = None;
    }
    context.report.result(&found, || found.text())?;
    match found.failed.as_slice() {
        [] => Ok(()),
        failed => Err(Failure::failed(format!(
            "{} cells failed: {}",
            failed.len(),
            failed.join("; ")
        ))),
    }
}
