//! `cowslip verify`: reads and checks every stored byte of a store, or of what one snapshot needs.

use std::sync::Arc;

use cowslip_block::files::RealDir;
use cowslip_snapshot::compact::{Options, Policy, survey};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::ids::ImageName;
use cowslip_snapshot::parts::Part;
use cowslip_snapshot::store::Store;
use cowslip_snapshot::verify::{
    Damage, DamagedObject, Depth, Report, StoreReport, verify_image, verify_store,
};
use serde::Serialize;

use super::Context;
use crate::args::Verify;
use crate::failure::{Failure, Kind};
use crate::report::{Unit, advance, bytes, complain, count, plain};

/// A snapshot, or one part of it: the sums of its parts.
#[derive(Serialize)]
struct Named<'a> {
    name: &'a ImageName,
    ok: bool,
    nodes: u64,
    layers: u64,
    frames: u64,
    payload_bytes: u64,
    /// All damaged places; the list may hold fewer.
    damaged: u64,
    damage: Vec<Place<'a>>,
    parts: Vec<PartChecked>,
}

#[derive(Serialize)]
struct PartChecked {
    part: Part,
    ok: bool,
    damaged: u64,
}

#[derive(Serialize)]
struct Whole<'a> {
    ok: bool,
    names: u64,
    sessions: u64,
    headers: u64,
    nodes: u64,
    layers: u64,
    frames: u64,
    read_bytes: u64,
    /// All damaged places; the list may hold fewer.
    damaged: u64,
    damage: Vec<Place<'a>>,
    /// Who needs what is damaged.
    objects: Vec<Needed<'a>>,
    foreign: &'a [String],
    /// What the policy of `compact --auto` makes of the store; not said of a damaged one.
    compaction: Option<Compaction>,
}

/// Of all objects that some image needs.
#[derive(Clone, Copy, Serialize)]
struct Compaction {
    due: bool,
    object_bytes: u64,
    garbage_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct Place<'a> {
    object: &'a str,
    place: &'a str,
    why: &'a str,
}

impl<'a> Place<'a> {
    pub(super) fn of(damage: &'a Damage) -> Self {
        Self {
            object: &damage.object,
            place: &damage.place,
            why: &damage.why,
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { object, place, why } = self;
        format!("{object} is damaged: {place}: {why}")
    }
}

#[derive(Serialize)]
struct Needed<'a> {
    object: &'a str,
    /// The list may hold fewer.
    needed_by_count: u64,
    needed_by: &'a [String],
}

impl<'a> Needed<'a> {
    fn of(object: &'a DamagedObject) -> Self {
        Self {
            object: &object.object,
            needed_by_count: object.needed_by_count,
            needed_by: &object.needed_by,
        }
    }

    fn text(&self) -> String {
        const SHOWN: usize = 10;
        let Self { object, .. } = self;
        if self.needed_by.is_empty() {
            return format!("{object}: nothing needs what is damaged in it");
        }
        let shown = &self.needed_by[..self.needed_by.len().min(SHOWN)];
        let mut text = format!("{object} is needed by {}", shown.join(", "));
        let more = self.needed_by_count - shown.len() as u64;
        if more > 0 {
            text += &format!(" and {more} more");
        }
        text
    }
}

pub(super) fn run(context: &Context, args: &Verify) -> Result<(), Failure> {
    let depth = match args.deep {
        true => Depth::Decoded,
        false => Depth::Stored,
    };
    match &args.name {
        Some(name) => named(context, name, depth),
        None => whole(context, depth),
    }
}

fn named(context: &Context, name: &ImageName, depth: Depth) -> Result<(), Failure> {
    let store = context.store()?;
    let (snapshot, _lease) = store.resolve_snapshot_leased(&name.name)?;
    if name.part.is_some() {
        snapshot.image(name)?;
    }
    let mut reports = Vec::new();
    for (part, header) in snapshot.parts.iter() {
        if name.part.is_some_and(|wanted| wanted != part) {
            continue;
        }
        let bar = context.report.progress("verifying", Unit::Bytes);
        let report = verify_image(&store, header, depth, &mut |done, total| {
            advance(&bar, done, total)
        });
        bar.finish_and_clear();
        reports.push((part, report?));
    }
    let named = Named::of(name, &reports);
    context.report.result(&named, || named.text())?;
    for (part, report) in &reports {
        let of = match reports.len() {
            1 => String::new(),
            _ => format!("{part}: "),
        };
        let places = report.damage.iter().map(Place::of);
        places.for_each(|place| complain(&format!("{of}{}", place.text())));
    }
    verdict(&name.to_string(), named.damaged)
}

impl<'a> Named<'a> {
    fn of(name: &'a ImageName, reports: &'a [(Part, Report)]) -> Self {
        let sum = |of: fn(&Report) -> u64| reports.iter().map(|(_, report)| of(report)).sum();
        let part = |(part, report): &(Part, Report)| PartChecked {
            part: *part,
            ok: report.is_whole(),
            damaged: report.damaged,
        };
        let damage = reports.iter().flat_map(|(_, report)| &report.damage);
        Self {
            name,
            ok: reports.iter().all(|(_, report)| report.is_whole()),
            nodes: sum(|report| report.nodes),
            layers: sum(|report| report.layers),
            frames: sum(|report| report.frames),
            payload_bytes: sum(|report| report.payload_bytes),
            damaged: sum(|report| report.damaged),
            damage: damage.map(Place::of).collect(),
            parts: reports.iter().map(part).collect(),
        }
    }

    fn text(&self) -> String {
        let parts: Vec<_> = self.parts.iter().map(|p| p.part.as_str()).collect();
        let parts = match parts.len() {
            1 => String::new(),
            _ => format!(" ({})", parts.join(", ")),
        };
        format!(
            "{}{parts} {}: {}, {}, {} with {} read and checked",
            self.name,
            state(self.ok),
            count(self.nodes, "node"),
            count(self.layers, "layer"),
            count(self.frames, "frame"),
            bytes(self.payload_bytes),
        )
    }
}

fn whole(context: &Context, depth: Depth) -> Result<(), Failure> {
    let path = context.store_path()?;
    let dir = RealDir::open(&path).map_err(|e| super::no_dir(&path, &e))?;
    let bar = context.report.progress("verifying", Unit::Bytes);
    let report = verify_store(&dir, Arc::new(RealHost), depth, &mut |done, total| {
        advance(&bar, done, total);
    });
    bar.finish_and_clear();
    let report = report.map_err(|e| Failure::from(e).about(path.display()))?;
    // What was found is said, whatever becomes of this.
    let due = report.is_whole().then(|| compaction(&*context.store()?));
    let compaction = due.and_then(|due| {
        due.inspect_err(|e| complain(&format!("is a compaction due? {}", e.message)))
            .ok()
    });
    context.report.result(&Whole::of(&report, compaction), || {
        text(&report, compaction)
    })?;
    for damage in &report.damage {
        complain(&Place::of(damage).text());
    }
    for object in &report.objects {
        complain(&Needed::of(object).text());
    }
    verdict("the store", report.damaged)
}

/// Is a compaction due?
fn compaction(store: &Store) -> Result<Compaction, Failure> {
    let options = Options {
        policy: Policy::AUTO,
        names: Vec::new(),
        step_bytes: u64::MAX,
    };
    let found = survey(store, &options, &|_| true)?;
    Ok(Compaction {
        due: found.left_objects > 0,
        object_bytes: found.before.object_bytes,
        garbage_bytes: found.before.garbage_bytes(),
    })
}

impl<'a> Whole<'a> {
    fn of(report: &'a StoreReport, compaction: Option<Compaction>) -> Self {
        Self {
            ok: report.is_whole(),
            names: report.names,
            sessions: report.sessions,
            headers: report.headers,
            nodes: report.nodes,
            layers: report.layers,
            frames: report.frames,
            read_bytes: report.read_bytes,
            damaged: report.damaged,
            damage: report.damage.iter().map(Place::of).collect(),
            objects: report.objects.iter().map(Needed::of).collect(),
            foreign: &report.foreign,
            compaction,
        }
    }
}

fn text(report: &StoreReport, compaction: Option<Compaction>) -> String {
    let mut text = format!(
        "the store {}: {}, {}, {} with {}, {} with {}; {} read and checked",
        state(report.is_whole()),
        count(report.names, "name"),
        count(report.sessions, "session"),
        count(report.headers, "header"),
        count(report.nodes, "node"),
        count(report.layers, "layer"),
        count(report.frames, "frame"),
        bytes(report.read_bytes),
    );
    if let Some(Compaction {
        due,
        object_bytes,
        garbage_bytes,
    }) = compaction
    {
        text += &format!(
            "\nof {} that snapshots and sessions depend on, nobody needs {}: compaction is {}",
            bytes(object_bytes),
            bytes(garbage_bytes),
            if due { "due" } else { "not due" },
        );
    }
    for path in &report.foreign {
        text += &format!("\nnot cowslip's: {}", plain(path));
    }
    text
}

fn state(ok: bool) -> &'static str {
    match ok {
        true => "is whole",
        false => "is damaged",
    }
}

fn verdict(what: &str, damaged: u64) -> Result<(), Failure> {
    if damaged == 0 {
        return Ok(());
    }
    let message = format!("{what}: {}", count(damaged, "damaged place"));
    let failure = Failure::new(Kind::Corrupt, message);
    Err(failure.hint("`cowslip repair` mends what can be had again, and says what the rest costs"))
}
