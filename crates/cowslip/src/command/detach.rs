//! `cowslip detach --stale`: the end of what commands left that were killed.

use std::path::PathBuf;

use cowslip_attach::stale::{self, Leftover};
use serde::Serialize;

use super::Context;
use crate::args::Detach;
use crate::failure::Failure;
use crate::report::complain;

/// Its field names are a contract.
#[derive(Debug, Serialize)]
struct Left {
    name: Option<String>,
    session: Option<PathBuf>,
    pid: Option<u32>,
    devices: Vec<PathBuf>,
    mounts: Vec<PathBuf>,
    is_gone: bool,
}

pub(super) fn run(context: &Context, args: &Detach) -> Result<(), Failure> {
    let found = stale::find(&args.run.path, !args.dry_run, &complain)?;
    let left: Vec<Left> = found.into_iter().map(Left::from).collect();
    context
        .report
        .result(&serde_json::json!({ "stale": left }), || {
            let lines: Vec<String> = left.iter().map(|l| l.line(args.dry_run)).collect();
            match lines.as_slice() {
                [] => "nothing is left of commands that were killed".into(),
                lines => lines.join("\n"),
            }
        })?;
    match left.iter().find(|left| !left.is_gone && !args.dry_run) {
        Some(left) => {
            let message = format!("{} is still in use", left.what());
            Err(Failure::failed(message)
                .hint("fuser -vm DEVICE shows by whom; it goes when they do"))
        }
        None => Ok(()),
    }
}

impl Left {
    fn what(&self) -> String {
        let name = self
            .name
            .as_deref()
            .unwrap_or("a device that was being attached");
        let paths: Vec<String> = self
            .devices
            .iter()
            .chain(&self.mounts)
            .map(|path| path.display().to_string())
            .collect();
        match paths.as_slice() {
            [] => name.to_owned(),
            paths => format!("{name} ({})", paths.join(", ")),
        }
    }

    fn line(&self, dry_run: bool) -> String {
        let end = match (self.is_gone, dry_run) {
            (true, _) => "ended",
            (false, true) => "left behind",
            (false, false) => "still in use",
        };
        format!("{end}: {}", self.what())
    }
}

impl From<Leftover> for Left {
    fn from(leftover: Leftover) -> Self {
        let about = leftover.about;
        let session = about.as_ref().and_then(|about| about.session.clone());
        Self {
            pid: about.as_ref().map(|about| about.pid),
            name: about.map(|about| about.name),
            session,
            devices: leftover.devices,
            mounts: leftover.mounts,
            is_gone: leftover.is_gone,
        }
    }
}
