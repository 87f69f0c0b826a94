//! What a lab found, for people and for programs: sums over the workloads, one line a cell, and the files.
//!
//! | file | what |
//! |---|---|
//! | `results.tsv` | a line for each stage of each cell |
//! | `results.json` | [`Found`] |
//! | `report.md` | the tables of `tables.rs` |
//! | `report.html` | the same with charts, one page that needs nothing else (`html.rs`) |
//!
//! Sums of variants are over the workloads that both have, and say how many those are.

mod html;
mod tables;
mod tsv;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Found;
use super::cell::STAGES;
use super::results::Row;
use crate::failure::Failure;
use crate::report::table;

/// One variant, over its workloads. Its field names are a contract.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) variant: String,
    pub(crate) workloads: usize,
    pub(crate) floor_blocks: u64,
    pub(crate) stages: Vec<StageSum>,
}

/// Its field names are a contract.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageSum {
    pub(crate) stage: &'static str,
    pub(crate) blocks: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) classes: BTreeMap<String, u64>,
    /// Of the floor; nothing where that is none.
    pub(crate) of_floor: Option<f64>,
}

impl Summary {
    pub(crate) fn stage(&self, name: &str) -> Option<&StageSum> {
        self.stages.iter().find(|s| s.stage == name)
    }
}

/// Those that are summed: of work, and ended well.
fn works<'a>(rows: &'a [Row], variant: &str) -> Vec<&'a Row> {
    let is = |row: &&Row| row.variant == variant && row.crash.is_none() && row.error.is_none();
    rows.iter().filter(is).collect()
}

fn variants(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.variant.as_str()) {
            names.push(&row.variant);
        }
    }
    names
}

pub(crate) fn summaries(rows: &[Row]) -> Vec<Summary> {
    let one = |variant: &str| {
        let works = works(rows, variant);
        let floor_blocks = works.iter().map(|row| row.floor_blocks).sum();
        let stages = STAGES.iter().filter_map(|(_, stage)| {
            let all: Option<Vec<_>> = works.iter().map(|row| row.stage(stage)).collect();
            let all = all.filter(|all| !all.is_empty())?;
            let blocks = all.iter().map(|m| m.blocks).sum();
            let mut classes = BTreeMap::new();
            for (class, blocks) in all.iter().flat_map(|m| &m.classes) {
                *classes.entry(class.clone()).or_default() += blocks;
            }
            Some(StageSum {
                stage,
                blocks,
                payload_bytes: all.iter().map(|m| m.payload_bytes).sum(),
                classes,
                of_floor: (floor_blocks > 0).then(|| ratio(blocks, floor_blocks)),
            })
        });
        Summary {
            variant: variant.to_owned(),
            workloads: works.len(),
            floor_blocks,
            stages: stages.collect(),
        }
    };
    variants(rows)
        .into_iter()
        .map(one)
        .filter(|s| s.workloads > 0)
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 blocks")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

/// Of all stages of all cells; 100 where there is nothing.
pub(crate) fn named_percent_min(rows: &[Row]) -> f64 {
    rows.iter().map(named_percent).fold(100.0, f64::min)
}

fn named_percent(row: &Row) -> f64 {
    let stages = row.stages.iter().filter(|s| s.measured.blocks > 0);
    let named = stages.map(|s| 100.0 - ratio(s.measured.unknown_blocks, s.measured.blocks) * 100.0);
    named.fold(100.0, f64::min)
}

/// One cell, for the progress.
pub(crate) fn line(row: &Row) -> String {
    if let Some(crash) = &row.crash {
        return format!(
            "synced: {} of {} lost; not synced: {} of {} lost; {} torn, {} foreign; {} of {} copies damaged",
            crash.synced_lost,
            crash.synced_files,
            crash.unsynced_lost,
            crash.unsynced_files,
            crash.torn,
            crash.foreign,
            crash.damaged,
            crash.moments
        );
    }
    let stages: Vec<String> = row
        .stages
        .iter()
        .map(|s| format!("{} {}", s.stage, s.measured.blocks))
        .collect();
    format!("{}; floor {}", stages.join(", "), row.floor_blocks)
}

impl Found {
    pub(crate) fn text(&self) -> String {
        let head: Vec<&str> = ["VARIANT", "CELLS", "FLOOR"]
            .into_iter()
            .chain(STAGES.map(|(_, s)| s))
            .collect();
        let rows = self.summary.iter().map(|summary| {
            let figures = [
                summary.variant.clone(),
                summary.workloads.to_string(),
                summary.floor_blocks.to_string(),
            ];
            let stage = |name: &str| {
                summary
                    .stage(name)
                    .map_or("-".into(), |s| match s.of_floor {
                        Some(of) => format!("{} ({of:.2})", s.blocks),
                        None => s.blocks.to_string(),
                    })
            };
            figures
                .into_iter()
                .chain(STAGES.map(|(_, name)| stage(name)))
                .collect()
        });
        let right: Vec<usize> = (1..head.len()).collect();
        let sums = table(&head, &right, rows.collect());
        let report = self.dir.as_ref().map_or_else(String::new, |dir| {
            format!(" The report: {}", dir.join("report.html").display())
        });
        format!(
            "{sums}\n\nBlocks of 4 KiB that a snapshot holds, and how many times the floor, which is what the workloads really changed.\n\
             Of each cell at least {:.2} % of the blocks have a known owner.{report}\n",
            self.named_percent_min,
        )
    }
}

/// All files, each put in its place whole.
pub(crate) fn write(found: &Found, dir: &Path) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(found)
        .map_err(|e| Failure::failed(format!("writing JSON: {e}")))?;
    let files = [
        ("results.tsv", tsv::text(&found.cells)),
        ("results.json", json),
        ("report.md", tables::markdown(found)),
        ("report.html", html::page(found)),
    ];
    for (name, text) in files {
        let (path, beside) = (dir.join(name), dir.join(format!("{name}.new")));
        let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &path));
        written.map_err(|e| Failure::file(&path, &e))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::measure::Measured;
    use super::super::results::StageRow;
    use super::*;

    pub(super) fn found() -> Found {
        let row = |variant: &str, workload: &str, blocks: u64| Row {
            variant: variant.into(),
            workload: workload.into(),
            mkfs_args: Vec::new(),
            mount_options: "discard".into(),
            floor_blocks: 100,
            stages: STAGES
                .iter()
                .map(|(_, stage)| StageRow {
                    stage: (*stage).to_owned(),
                    measured: Measured {
                        blocks,
                        classes: [("file".to_owned(), blocks - 1), ("<b>".to_owned(), 1)].into(),
                        unknown_blocks: 1,
                        ..Measured::default()
                    },
                })
                .collect(),
            crash: None,
            seconds: 1.0,
            error: None,
        };
        let cells = vec![
            row("default", "unpack", 110),
            row("default", "idle", 130),
            row("plain", "unpack", 200),
            row("plain", "idle", 400),
            row("plain+<script>", "idle", 120),
        ];
        Found {
            dir: Some("d".into()),
            seed: 1,
            scale_percent: 100,
            kernel: "k".into(),
            e2fsprogs: "e".into(),
            failed: Vec::new(),
            named_percent_min: named_percent_min(&cells),
            summary: summaries(&cells),
            cells,
            seconds: 1.0,
        }
    }

    #[test]
    fn sums_are_over_the_workloads() {
        let found = found();
        let default = &found.summary[0];
        assert_eq!((default.workloads, default.floor_blocks), (2, 200));
        let quiesce = default.stage("quiesce").unwrap();
        assert_eq!((quiesce.blocks, quiesce.of_floor), (240, Some(1.2)));
        assert_eq!(quiesce.classes["file"], 238);
        assert!((found.named_percent_min - (100.0 - 100.0 / 110.0)).abs() < 1e-9);
    }
}
