//! `cowslip verify`: reads every byte that a snapshot depends on.

use cowslip_snapshot::verify::{Damage, verify};
use serde::Serialize;

use super::Context;
use crate::args::Name;
use crate::failure::{Failure, Kind};
use crate::report::{Unit, advance, bytes, complain};

#[derive(Serialize)]
struct Verified<'a> {
    name: &'a str,
    ok: bool,
    nodes: u64,
    layers: u64,
    frames: u64,
    payload_bytes: u64,
    /// All damaged places; the list may hold fewer.
    damaged: u64,
    damage: Vec<Place<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    object: &'a str,
    place: &'a str,
    why: &'a str,
}

impl<'a> Place<'a> {
    fn of(Damage { object, place, why }: &'a Damage) -> Self {
        Self { object, place, why }
    }
}

pub(super) fn run(context: &Context, args: &Name) -> Result<(), Failure> {
    let store = context.store()?;
    let (header, _lease) = store.resolve_leased(&args.name)?;
    let bar = context.report.progress("verifying", Unit::Frames);
    let report = verify(&store, &header, &mut |done, total| {
        advance(&bar, done, total)
    });
    bar.finish_and_clear();
    let report = report?;
    let verified = Verified {
        name: args.name.as_str(),
        ok: report.is_whole(),
        nodes: report.nodes,
        layers: report.layers,
        frames: report.frames,
        payload_bytes: report.payload_bytes,
        damaged: report.damaged,
        damage: report.damage.iter().map(Place::of).collect(),
    };
    context.report.result(&verified, || {
        let state = if verified.ok {
            "is whole"
        } else {
            "is damaged"
        };
        format!(
            "{} {state}: {} nodes, {} layers, {} frames with {} read and checked",
            verified.name,
            verified.nodes,
            verified.layers,
            verified.frames,
            bytes(verified.payload_bytes),
        )
    })?;
    if verified.ok {
        return Ok(());
    }
    for Place { object, place, why } in &verified.damage {
        complain(&format!("{object} is damaged: {place}: {why}"));
    }
    let message = format!("{}: {} damaged places", verified.name, verified.damaged);
    Err(Failure::new(Kind::Corrupt, message))
}
