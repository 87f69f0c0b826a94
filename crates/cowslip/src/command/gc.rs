//! `cowslip gc`: removes what no name, no session and no running operation needs.

use cowslip_snapshot::gc::collect;
use serde::Serialize;

use super::Context;
use crate::args::Gc;
use crate::failure::{Failure, Kind};
use crate::report::{Unit, advance, bytes, complain};

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    removed_bytes: u64,
    removed: Vec<Object<'a>>,
    kept_layers: u64,
    kept_headers: u64,
    /// Layers that are needed, and cannot tell which others they need: no layer was removed.
    damaged: &'a [String],
}

#[derive(Serialize)]
struct Object<'a> {
    object: &'a str,
    bytes: u64,
}

impl<'a> Object<'a> {
    fn of((object, bytes): &'a (String, u64)) -> Self {
        let bytes = *bytes;
        Self { object, bytes }
    }
}

pub(super) fn run(context: &Context, args: &Gc) -> Result<(), Failure> {
    let store = context.store()?;
    let bar = context.report.progress("marking", Unit::Snapshots);
    let collected = collect(&store, args.dry_run, &mut |done, total| {
        advance(&bar, done, total);
    });
    bar.finish_and_clear();
    let collected = collected.map_err(|e| {
        let failure = Failure::from(e);
        match failure.hint {
            Some(_) => failure,
            None => failure.hint("nothing was removed: what a damaged snapshot needs is not known"),
        }
    })?;
    let report = Report {
        dry_run: args.dry_run,
        removed_bytes: collected.removed_bytes(),
        removed: collected.removed.iter().map(Object::of).collect(),
        kept_layers: collected.kept_layers,
        kept_headers: collected.kept_headers,
        damaged: &collected.damaged,
    };
    context.report.result(&report, || text(&report))?;
    for damage in report.damaged {
        complain(damage);
    }
    if !report.damaged.is_empty() {
        let what = "no layer was removed: what damaged ones need is not known";
        return Err(
            Failure::new(Kind::Corrupt, what).hint("`cowslip repair`, or `rm` what needs them")
        );
    }
    Ok(())
}

fn text(report: &Report<'_>) -> String {
    let what = if report.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let mut text = String::new();
    if report.dry_run {
        for Object { object, bytes: n } in &report.removed {
            text += &format!("{object}  {}\n", bytes(*n));
        }
    }
    text + &format!(
        "{what} {} objects ({}); {} layers and {} headers are needed",
        report.removed.len(),
        bytes(report.removed_bytes),
        report.kept_layers,
        report.kept_headers,
    )
}
