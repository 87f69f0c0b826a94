//! Which cells there are: every profile, and `plain` with each knob alone, by every workload; and for whatever bears on
//! it, the crash.

use std::collections::BTreeMap;

use super::workloads::{self, Workload};
use crate::failure::Failure;
use crate::profile::{self, KNOBS, PROFILES, Settings};

/// Knobs that say what mkfs.ext4 does anyway, here: they are for other versions of it, or a part of others.
const NOT_ALONE: [&str; 2] = ["features", "no-lazy-init"];
/// Variants that are safe, and whose crash is looked at all the same: to compare with.
const CRASHED: [&str; 8] = [
    "default",
    "system",
    "system-today",
    "plain",
    "plain+fast-commit",
    "plain+data=journal",
    "plain+nodelalloc",
    "plain+inline-data",
];
/// What knobs are added to.
pub(crate) const PLAIN: &str = "plain";
pub(crate) const SYSTEM: &str = "system";

/// A way to make and to mount a file system.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) mkfs: Vec<String>,
    pub(crate) mount: String,
    pub(crate) is_profile: bool,
    pub(crate) risk: Option<&'static str>,
}

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Work(Workload),
    Crash,
}

/// One experiment.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) variant: Variant,
    pub(crate) task: Task,
}

impl Task {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Work(workload) => workload.name(),
            Self::Crash => "crash",
        }
    }

    /// Before any was measured.
    pub(crate) fn guess_seconds(self) -> u32 {
        match self {
            Self::Work(workload) => workload.guess_seconds(),
            Self::Crash => 25,
        }
    }
}

impl Cell {
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.variant.name, self.task.name())
    }
}

/// All variants, profiles first.
pub(crate) fn variants() -> Vec<Variant> {
    let profiles = PROFILES.iter().map(|profile| {
        let settings = profile.settings();
        Variant {
            name: profile.name.to_owned(),
            mkfs: settings.mkfs_args(),
            mount: settings.mount_options(),
            is_profile: true,
            risk: profile.knobs().find_map(|knob| knob.risk),
        }
    });
    let plain = profile::profile(PLAIN).map(profile::Profile::settings);
    let alone = KNOBS.iter().filter(|knob| !NOT_ALONE.contains(&knob.name));
    let knobs = alone.map(|knob| {
        let mut settings: Settings = plain.clone().unwrap_or_default();
        settings.turn(knob);
        Variant {
            name: format!("{PLAIN}+{}", knob.name),
            mkfs: settings.mkfs_args(),
            mount: settings.mount_options(),
            is_profile: false,
            risk: knob.risk,
        }
    });
    profiles.chain(knobs).collect()
}

/// The cells that were asked for: of these variants and these workloads, or of all.
pub(crate) fn cells(
    wanted: &[String],
    works: &[String],
    quick: bool,
) -> Result<Vec<Cell>, Failure> {
    let all = variants();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !all.iter().any(|v| v.name == **name))
    {
        let hint =
            "`cowslip build --list-profiles` lists profiles and knobs; a knob is plain+NAME here";
        return Err(Failure::usage(format!("there is no variant {unknown}")).hint(hint));
    }
    let tasks = tasks(works, quick)?;
    let is_wanted = |variant: &Variant| match wanted {
        [] if quick => ["default", SYSTEM, PLAIN].contains(&variant.name.as_str()),
        [] => true,
        names => names.contains(&variant.name),
    };
    let mut cells = Vec::new();
    for variant in all.into_iter().filter(is_wanted) {
        for task in &tasks {
            let bears = variant.risk.is_some()
                || CRASHED.contains(&variant.name.as_str())
                || !works.is_empty();
            if *task != Task::Crash || bears {
                let variant = variant.clone();
                cells.push(Cell {
                    variant,
                    task: *task,
                });
            }
        }
    }
    Ok(cells)
}

fn tasks(named: &[String], quick: bool) -> Result<Vec<Task>, Failure> {
    const QUICK: [Workload; 6] = [
        Workload::ReadWalk,
        Workload::Unpack,
        Workload::EditBuild,
        Workload::AppendFsync,
        Workload::CreateDelete,
        Workload::Utimes,
    ];
    if !named.is_empty() {
        let task = |name: &String| match name.as_str() {
            "crash" => Ok(Task::Crash),
            name => Workload::named(name).map(Task::Work).ok_or_else(|| {
                let all: Vec<&str> = workloads::ALL.iter().map(|(_, name, _)| *name).collect();
                let hint = format!("there are {} and crash", all.join(", "));
                Failure::usage(format!("there is no workload {name}")).hint(hint)
            }),
        };
        return named.iter().map(task).collect();
    }
    if quick {
        return Ok(QUICK.map(Task::Work).to_vec());
    }
    let works = workloads::ALL
        .iter()
        .map(|(workload, _, _)| Task::Work(*workload));
    Ok(works.chain([Task::Crash]).collect())
}

/// How long cells take: a guess, corrected by those that have ended.
#[derive(Debug, Default)]
pub(crate) struct Estimate {
    guessed: f64,
    took: f64,
    by_task: BTreeMap<&'static str, (f64, u32)>,
}

impl Estimate {
    pub(crate) fn note(&mut self, task: Task, seconds: f64) {
        self.guessed += f64::from(task.guess_seconds());
        self.took += seconds;
        let (sum, count) = self.by_task.entry(task.name()).or_default();
        *sum += seconds;
        *count += 1;
    }

    pub(crate) fn seconds<'a>(&self, left: impl Iterator<Item = &'a Cell>, jobs: usize) -> f64 {
        let factor = if self.guessed > 0.0 {
            self.took / self.guessed
        } else {
            1.0
        };
        let one = |cell: &Cell| match self.by_task.get(cell.task.name()) {
            Some((sum, count)) => sum / f64::from(*count),
            None => f64::from(cell.task.guess_seconds()) * factor,
        };
        let jobs = u32::try_from(jobs.max(1)).unwrap_or(1);
        // Of nothing the sum is -0.
        left.map(one).fold(0.0, |sum, seconds| sum + seconds) / f64::from(jobs)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        let cells = cells(&[], &[], false).unwrap();
        let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
        assert_eq!(names.len(), cells.len());
        for name in CRASHED {
            assert!(names.contains(&format!("{name}/crash")), "{name}");
        }
        for name in NOT_ALONE {
            assert!(profile::knob(name).is_some(), "{name}");
        }
    }

    #[test]
    fn cells_that_are_asked_for() {
        let some = |v: &[&str], w: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
            cells(&own(v), &own(w), false).map(|cells| cells.len())
        };
        assert_eq!(some(&["plain"], &["idle", "crash"]).unwrap(), 2);
        assert!(some(&["no-such"], &[]).is_err());
        assert!(some(&[], &["no-such"]).is_err());
    }
}
