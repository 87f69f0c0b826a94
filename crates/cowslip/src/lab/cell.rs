//! One cell: a session of a template, the work, and a snapshot at each stage.
//!
//! | stage | what is done before the snapshot |
//! |---|---|
//! | `no-sync` | nothing |
//! | `sync` | syncfs(2) |
//! | `freeze` | FIFREEZE; thawed after the snapshot |
//! | `trim` | sync and FITRIM |
//! | `quiesce` | sync, FITRIM, checkpoint of the journal with its blocks discarded |
//! | `quiesce-freeze` | the same, and frozen |
//!
//! The stages of a session come one after the other, in this order, each compared with the template. Each contains what those
//! before it did; none of them undoes anything of it. The chain is another matter: its stages are sessions of their own.

use super::bench::{Bench, Place};
use super::floor::Contents;
use super::hand::Hand;
use super::measure::{Measured, measure};
use super::results::{Row, StageRow};
use super::templates::{Template, Templates};
use super::workloads::{self, CHAIN, Workload};
use super::{Scale, plan::Variant};
use crate::failure::Failure;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    NoSync,
    Sync,
    Freeze,
    Trim,
    Quiesce,
    QuiesceFreeze,
}

/// In the order of the module.
pub(crate) const STAGES: [(Stage, &str); 6] = [
    (Stage::NoSync, "no-sync"),
    (Stage::Sync, "sync"),
    (Stage::Freeze, "freeze"),
    (Stage::Trim, "trim"),
    (Stage::Quiesce, "quiesce"),
    (Stage::QuiesceFreeze, "quiesce-freeze"),
];

impl Stage {
    /// Of knobs, only what tells most.
    fn is_taken(self, variant: &Variant) -> bool {
        variant.is_profile || !matches!(self, Self::Trim | Self::QuiesceFreeze)
    }

    fn take(self, bench: &Bench<'_>, name: &str) -> Result<(), Failure> {
        const NOT: [&str; 3] = ["--no-sync", "--no-trim", "--no-checkpoint"];
        match self {
            Self::NoSync => {}
            Self::Sync => bench.quiesce(&["--no-trim", "--no-checkpoint"], None)?,
            Self::Freeze => return bench.quiesce(&NOT, Some(name)),
            Self::Trim => bench.quiesce(&["--no-checkpoint"], None)?,
            Self::Quiesce => bench.quiesce(&[], None)?,
            Self::QuiesceFreeze => return bench.quiesce(&[], Some(name)),
        }
        bench.snapshot(name)
    }
}

/// What a cell needs to know.
pub(crate) struct Around<'a> {
    pub(crate) place: &'a Place,
    pub(crate) templates: &'a Templates,
    pub(crate) scale: Scale,
    pub(crate) seed: u64,
    /// Of this cell alone: names of its directory and its snapshots begin with it.
    pub(crate) id: String,
}

/// Does the work, and measures it. The seed is the workload's, and the same for every variant.
pub(crate) fn run(
    around: &Around<'_>,
    variant: &Variant,
    workload: Workload,
) -> Result<Row, Failure> {
    let Around {
        place,
        templates,
        scale,
        seed,
        ..
    } = around;
    let template = templates.get(place, &variant.mkfs, workload.base(), (*scale, *seed))?;
    let mut row = Row::new(variant, workload.name());
    for (stage, name) in STAGES.iter().filter(|(stage, _)| stage.is_taken(variant)) {
        if workload == Workload::Chain {
            let (floor, measured) = chain(around, variant, *stage, &template)?;
            row.floor_blocks = floor;
            row.stages.push(StageRow {
                stage: (*name).to_owned(),
                measured,
            });
        }
    }
    if workload != Workload::Chain {
        stages(around, variant, workload, &template, &mut row)?;
    }
    Ok(row)
}

fn stages(
    around: &Around<'_>,
    variant: &Variant,
    workload: Workload,
    template: &Template,
    row: &mut Row,
) -> Result<(), Failure> {
    let Around {
        place,
        scale,
        seed,
        id,
        ..
    } = around;
    let mut bench = Bench::attach(place, &template.name, id)?;
    let root = bench.mount(&variant.mount)?;
    let mut hand = Hand::new(&root, seed + workload as u64);
    workloads::run(workload, &mut hand, *scale, &bench.device, &place.stop)?;
    let mut names = Vec::new();
    let mut taken = Ok(());
    for (stage, name) in STAGES.iter().filter(|(stage, _)| stage.is_taken(variant)) {
        let snapshot = format!("{id}.{name}");
        taken = taken
            .and_then(|()| place.stop.check())
            .and_then(|()| stage.take(&bench, &snapshot));
        names.push((snapshot, *name));
    }
    // Only now may anybody read.
    let mut contents = template.contents.clone();
    if *scale != Scale::FULL {
        let unsaid = contents.unsaid(&root, hand.touched());
        let unsaid =
            unsaid.map_err(|e| Failure::failed(format!("looking for what was changed: {e}")))?;
        if let Some(path) = unsaid.first() {
            return Err(Failure::failed(format!(
                "the workload changed {path}, and did not say so"
            )));
        }
    }
    let floor = floor(&mut contents, &hand)?;
    bench.end()?;
    row.floor_blocks = floor;
    let measured = taken.and_then(|()| {
        names.iter().try_for_each(|(snapshot, stage)| {
            let measured = measure(place, snapshot, &template.name)?;
            row.stages.push(StageRow {
                stage: (*stage).to_owned(),
                measured,
            });
            Ok(())
        })
    });
    place.forget(&names.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    measured
}

/// Five snapshots with a little work between, each compared with the one before.
fn chain(
    around: &Around<'_>,
    variant: &Variant,
    stage: Stage,
    template: &Template,
) -> Result<(u64, Measured), Failure> {
    let Around {
        place,
        scale,
        seed,
        id,
        ..
    } = around;
    let mut bench = Bench::attach(place, &template.name, id)?;
    let root = bench.mount(&variant.mount)?;
    let mut contents = template.contents.clone();
    let (mut names, mut blocks) = (vec![template.name.clone()], 0);
    for link in 0..CHAIN {
        let mut hand = Hand::new(&root, seed + 1000 + link);
        workloads::run(
            Workload::Chain,
            &mut hand,
            *scale,
            &bench.device,
            &place.stop,
        )?;
        let snapshot = format!("{id}.{link}");
        stage.take(&bench, &snapshot)?;
        blocks += floor(&mut contents, &hand)?;
        names.push(snapshot);
    }
    bench.end()?;
    let mut sum = Measured::default();
    for pair in names.windows(2) {
        if let [before, after] = pair {
            sum.add(&measure(place, after, before)?);
        }
    }
    place.forget(&names[1..]);
    Ok((blocks, sum))
}

fn floor(contents: &mut Contents, hand: &Hand) -> Result<u64, Failure> {
    let changed = contents.update(&hand.at(""), hand.touched());
    changed.map_err(|e| Failure::failed(format!("looking at what the workload changed: {e}")))
}
