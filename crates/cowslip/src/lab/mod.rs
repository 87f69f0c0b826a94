//! The lab: what each knob of ext4 is worth, measured. Every variant (a profile, or `plain` with one knob) by every
//! workload, on the kernel's ext4 over our device; the diff of each, stage by stage, beside what the workload really changed.
//!
//! Read in this order: `plan` (which cells there are), `workloads` and `tree` (what is done, and to what), `hand` and
//! `floor` (what was really changed), `bench` (a session on a block device), `cell` (the stages), `measure`, `crash`, `results`,
//! `report`.
//!
//! Invariants:
//! 1. A cell has a session of its own; what it does cannot be seen by another.
//! 2. A cell that fails is told, and the others go on.
//! 3. What was measured is on the disk before the next cell begins; a lab that goes on runs no cell twice.
//! 4. At the end, however it comes, no mount and no device is left.
//!
//! Not here: which knobs there are (`profile`).

mod bench;
mod cell;
mod crash;
mod floor;
mod hand;
mod measure;
mod plan;
mod programs;
mod report;
mod results;
mod templates;
mod tree;
mod workloads;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use self::bench::Place;
use self::cell::Around;
use self::plan::{Cell, Estimate, Task};
pub(crate) use self::programs::Stop;
use self::results::{Results, Row};
use self::templates::Templates;
use crate::failure::Failure;
use crate::report::{Reporter, complain};

/// After so many cells the store gives back what they needed.
const COLLECT_EVERY: usize = 12;

/// How much is done, in percent of the full measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale(pub(crate) usize);

impl Scale {
    pub(crate) const FULL: Self = Self(100);

    pub(crate) fn of(self, full: usize) -> usize {
        (full * self.0 / 100).max(1)
    }

    fn device_bytes(self) -> u64 {
        if self.0 >= 100 { 1 << 30 } else { 256 << 20 }
    }
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) dir: PathBuf,
    pub(crate) variants: Vec<String>,
    pub(crate) workloads: Vec<String>,
    pub(crate) quick: bool,
    pub(crate) scale: Scale,
    pub(crate) seed: u64,
    pub(crate) jobs: usize,
}

/// What came of it. Its field names are a contract.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    /// Where the files are, if they are kept.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) seed: u64,
    pub(crate) scale_percent: usize,
    pub(crate) kernel: String,
    pub(crate) e2fsprogs: String,
    pub(crate) cells: Vec<Row>,
    pub(crate) failed: Vec<String>,
    /// Of all cells and stages, the smallest part of changed blocks whose owner is known.
    pub(crate) named_percent_min: f64,
    pub(crate) summary: Vec<report::Summary>,
    pub(crate) seconds: f64,
}

/// Needs that are not met are told before anything is begun.
pub(crate) fn check_machine() -> Result<(), Failure> {
    cowslip_attach::Way::Fuse.check().map_err(|e| {
        Failure::failed(e.to_string())
            .hint("the lab mounts file systems: it needs root, FUSE and loop devices")
    })?;
    for (program, package) in [
        ("mkfs.ext4", "e2fsprogs"),
        ("e2fsck", "e2fsprogs"),
        ("dumpe2fs", "e2fsprogs"),
        ("sqlite3", "sqlite3"),
        ("mount", "mount"),
        ("losetup", "mount"),
        ("findmnt", "util-linux"),
        ("setpriv", "util-linux"),
    ] {
        if programs::find(program).is_none() {
            let message = format!("the program {program} is not on this machine");
            return Err(
                Failure::failed(message).hint(format!("Debian has it in the package {package}"))
            );
        }
    }
    Ok(())
}

/// Runs what was asked for and has not been run yet. Where cells failed, they are among what is found.
pub(crate) fn run(wanted: &Wanted, report: Reporter, stop: &Stop) -> Result<Found, Failure> {
    let begun = Instant::now();
    let cells = plan::cells(&wanted.variants, &wanted.workloads, wanted.quick)?;
    let dir = &wanted.dir;
    std::fs::create_dir_all(dir).map_err(|e| Failure::file(dir, &e))?;
    let dir = dir.canonicalize().map_err(|e| Failure::file(dir, &e))?;
    check_same(&dir, wanted)?;
    let path = dir.join("results.jsonl");
    let results = Results::open(&path).map_err(|e| Failure::file(&path, &e))?;
    let is_left = |cell: &Cell| !results.has(&cell.variant.name, cell.task.name());
    let left: VecDeque<Cell> = cells.iter().filter(|cell| is_left(cell)).cloned().collect();
    let lab = Lab {
        wanted,
        report,
        place: Place::new(dir.clone(), stop.clone())?,
        templates: Templates::default(),
        total: left.len(),
        state: Mutex::new(State {
            left,
            results,
            estimate: Estimate::default(),
            done: 0,
            failed: Vec::new(),
        }),
    };
    lab.say_plan(cells.len());
    std::thread::scope(|scope| {
        for _ in 0..wanted.jobs.max(1) {
            scope.spawn(|| lab.work());
        }
    });
    let state = lab
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let names: Vec<(&str, &str)> = cells
        .iter()
        .map(|c| (c.variant.name.as_str(), c.task.name()))
        .collect();
    let asked = |row: &Row| names.contains(&(row.variant.as_str(), row.workload.as_str()));
    let mut rows: Vec<Row> = state.results.rows.into_iter().filter(asked).collect();
    rows.sort_by_key(|row| {
        names
            .iter()
            .position(|name| *name == (row.variant.as_str(), row.workload.as_str()))
    });
    let found = Found {
        dir: Some(dir.clone()),
        seed: wanted.seed,
        scale_percent: wanted.scale.0,
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| String::new(), |text| text.trim().to_owned()),
        e2fsprogs: e2fsprogs(),
        named_percent_min: report::named_percent_min(&rows),
        summary: report::summaries(&rows),
        cells: rows,
        failed: state.failed,
        seconds: begun.elapsed().as_secs_f64(),
    };
    report::write(&found, &dir)?;
    stop.check()?;
    Ok(found)
}

/// A directory is of one measurement: other sizes or another seed are not comparable.
fn check_same(dir: &Path, wanted: &Wanted) -> Result<(), Failure> {
    let path = dir.join("lab.json");
    let mine = serde_json::json!({ "seed": wanted.seed, "scale_percent": wanted.scale.0 });
    match std::fs::read_to_string(&path) {
        Ok(text)
            if serde_json::from_str::<serde_json::Value>(&text)
                .is_ok_and(|there| there == mine) =>
        {
            Ok(())
        }
        Ok(_) => {
            let message = format!(
                "{} holds a measurement of another size or seed",
                dir.display()
            );
            Err(Failure::usage(message).hint("take another directory"))
        }
        Err(_) => std::fs::write(&path, mine.to_string()).map_err(|e| Failure::file(&path, &e)),
    }
}

fn e2fsprogs() -> String {
    // It says its version on standard error.
    let said = std::process::Command::new(programs::find("mkfs.ext4").unwrap_or_default())
        .arg("-V")
        .output();
    said.map_or_else(
        |_| String::new(),
        |o| {
            String::from_utf8_lossy(&o.stderr)
                .lines()
                .next()
                .unwrap_or("")
                .to_owned()
        },
    )
}

struct Lab<'a> {
    wanted: &'a Wanted,
    report: Reporter,
    place: Place,
    templates: Templates,
    total: usize,
    state: Mutex<State>,
}

struct State {
    left: VecDeque<Cell>,
    results: Results,
    estimate: Estimate,
    done: usize,
    failed: Vec<String>,
}

impl Lab<'_> {
    fn say_plan(&self, all: usize) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (there, jobs) = (all - self.total, self.wanted.jobs);
        let minutes = minutes(state.estimate.seconds(state.left.iter(), jobs));
        let dir = self.place.dir.display();
        self.report.remark(&format!(
            "{} cells, {there} of them measured before; about {minutes}; in {dir}",
            all
        ));
    }

    /// One of the workers.
    fn work(&self) {
        loop {
            let next = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let number = self.total - state.left.len();
                state.left.pop_front().map(|cell| (number, cell))
            };
            let Some((number, cell)) = next else { return };
            if self.place.stop.is_asked() {
                return;
            }
            let begun = Instant::now();
            let ended = self.run(number, &cell);
            self.note(&cell, ended, begun.elapsed().as_secs_f64());
            if number % COLLECT_EVERY == COLLECT_EVERY - 1
                && let Err(failure) = self.place.words(&["gc", "--quiet"])
            {
                complain(&failure.message);
            }
        }
    }

    fn run(&self, number: usize, cell: &Cell) -> Result<Row, Failure> {
        let around = Around {
            place: &self.place,
            templates: &self.templates,
            scale: self.wanted.scale,
            seed: self.wanted.seed,
            id: format!("c{number}"),
        };
        match cell.task {
            Task::Work(workload) => cell::run(&around, &cell.variant, workload),
            Task::Crash => crash::run(&around, &cell.variant),
        }
    }

    fn note(&self, cell: &Cell, ended: Result<Row, Failure>, seconds: f64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A cell that was interrupted is neither well nor ill.
        if ended.is_err() && self.place.stop.is_asked() {
            return;
        }
        let (row, told) = match ended {
            Ok(row) => {
                let row = Row { seconds, ..row };
                let told = report::line(&row);
                (row, told)
            }
            Err(failure) => {
                let told = format!("FAILED: {}", failure.message);
                state
                    .failed
                    .push(format!("{}: {}", cell.name(), failure.message));
                let row = Row::new(&cell.variant, cell.task.name());
                (
                    Row {
                        seconds,
                        error: Some(failure.message),
                        ..row
                    },
                    told,
                )
            }
        };
        state.done += 1;
        state.estimate.note(cell.task, seconds);
        let left = minutes(state.estimate.seconds(state.left.iter(), self.wanted.jobs));
        self.report.remark(&format!(
            "[{}/{}] {}: {told}; {left} left",
            state.done,
            self.total,
            cell.name()
        ));
        if let Err(error) = state.results.add(row) {
            complain(&format!("results.jsonl: {error}"));
            self.place.stop.ask();
        }
    }
}

fn minutes(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}
