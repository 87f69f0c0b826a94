//! The tables, as Markdown: what docs/measurements holds is this file, as it was written, between words of ours.

use std::fmt::Write as _;

use super::super::cell::STAGES;
use super::super::plan::PLAIN;
use super::super::results::Row;
use super::super::{Found, workloads};
use super::{Summary, named_percent, variants, works};

/// A head and rows, of which the first column is words.
pub(super) struct Grid {
    pub(super) title: String,
    pub(super) about: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// All of them, in the order of the report.
pub(super) fn grids(found: &Found) -> Vec<Grid> {
    let mut grids = vec![sums(found)];
    let profiles = variants(&found.cells)
        .into_iter()
        .filter(|name| !name.contains('+'));
    grids.extend(profiles.filter_map(|name| one_variant(found, name)));
    grids.push(knobs(found, "quiesce"));
    grids.push(knobs(found, "sync"));
    grids.extend(classes(found));
    grids.extend(crash(found));
    grids
}

pub(super) fn markdown(found: &Found) -> String {
    let mut text = format!(
        "Linux {}, {}, seed {}, {} % of the full size, {} cells. Blocks are of 4 KiB, not compressed. In each cell and stage `explain` names the owner of at least {:.2} % of the blocks.\n",
        found.kernel,
        found.e2fsprogs,
        found.seed,
        found.scale_percent,
        found.cells.len(),
        found.named_percent_min
    );
    for grid in grids(found) {
        let _ = write!(text, "\n### {}\n\n{}\n\n", grid.title, grid.about);
        let line = |cells: &[String]| {
            format!(
                "| {} |\n",
                cells
                    .iter()
                    .map(|c| c.replace('|', "\\|"))
                    .collect::<Vec<_>>()
                    .join(" | ")
            )
        };
        text += &line(&grid.head);
        let rule: Vec<String> = grid
            .head
            .iter()
            .enumerate()
            .map(|(i, _)| if i == 0 { "---" } else { "--:" }.into())
            .collect();
        text += &line(&rule);
        grid.rows.iter().for_each(|row| text += &line(row));
    }
    if !found.failed.is_empty() {
        let _ = write!(text, "\nCells that failed: {}\n", found.failed.join("; "));
    }
    text
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn sums(found: &Found) -> Grid {
    let mut head = words(&["variant", "workloads", "floor"]);
    head.extend(STAGES.map(|(_, name)| name.to_owned()));
    head.extend(words(&[
        "quiesce / floor",
        "sync, stored MiB",
        "quiesce, stored MiB",
    ]));
    let row = |summary: &Summary| {
        let mut row = vec![
            summary.variant.clone(),
            summary.workloads.to_string(),
            summary.floor_blocks.to_string(),
        ];
        row.extend(STAGES.map(|(_, name)| {
            summary
                .stage(name)
                .map_or("".into(), |s| s.blocks.to_string())
        }));
        let of_floor = summary.stage("quiesce").and_then(|s| s.of_floor);
        row.push(of_floor.map_or("".into(), |of| format!("{of:.3}")));
        for stage in ["sync", "quiesce"] {
            row.push(
                summary
                    .stage(stage)
                    .map_or("".into(), |s| mib(s.payload_bytes)),
            );
        }
        row
    };
    Grid {
        title: "Sums over the workloads".into(),
        about: "Blocks that a snapshot holds, by what is done just before it; the floor is what the workloads really changed.".into(),
        head,
        rows: found.summary.iter().map(row).collect(),
    }
}

fn one_variant(found: &Found, variant: &str) -> Option<Grid> {
    let rows = works(&found.cells, variant);
    let about = rows.first()?;
    let mut head = words(&["workload", "floor"]);
    head.extend(STAGES.map(|(_, name)| name.to_owned()));
    head.extend(words(&["quiesce, stored MiB", "named %"]));
    let row = |row: &&Row| {
        let mut cells = vec![row.workload.clone(), row.floor_blocks.to_string()];
        cells.extend(
            STAGES.map(|(_, name)| row.stage(name).map_or("".into(), |m| m.blocks.to_string())),
        );
        cells.push(
            row.stage("quiesce")
                .map_or("".into(), |m| mib(m.payload_bytes)),
        );
        cells.push(format!("{:.2}", named_percent(row)));
        cells
    };
    Some(Grid {
        title: format!("Profile {variant}"),
        about: format!(
            "mkfs.ext4 `{}`, mounted with {}.",
            about.mkfs_args.join(" "),
            match about.mount_options.as_str() {
                "" => "no options".to_owned(),
                options => format!("`{options}`"),
            }
        ),
        head,
        rows: rows.iter().map(row).collect(),
    })
}

/// Blocks more or less than `plain` at the same stage.
fn knobs(found: &Found, stage: &str) -> Grid {
    let works: Vec<&str> = workloads::ALL.iter().map(|(_, name, _)| *name).collect();
    let works: Vec<&str> = works
        .into_iter()
        .filter(|w| found.cells.iter().any(|r| r.workload == *w))
        .collect();
    let at = |variant: &str, workload: &str| {
        let row = found
            .cells
            .iter()
            .find(|r| r.variant == variant && r.workload == workload);
        row.and_then(|r| r.stage(stage))
            .and_then(|m| i64::try_from(m.blocks).ok())
    };
    let mut rows = Vec::new();
    let base = works
        .iter()
        .map(|w| at(PLAIN, w).map_or("".into(), |n| n.to_string()));
    rows.push(
        [PLAIN.to_owned()]
            .into_iter()
            .chain(base)
            .chain([String::new()])
            .collect(),
    );
    for variant in variants(&found.cells).into_iter().filter(|v| *v != PLAIN) {
        let more: Vec<Option<i64>> = works
            .iter()
            .map(|w| Some(at(variant, w)? - at(PLAIN, w)?))
            .collect();
        if more.iter().all(Option::is_none) {
            continue;
        }
        let sum: i64 = more.iter().flatten().sum();
        let cells = more
            .into_iter()
            .map(|n| n.map_or("".into(), |n| format!("{n:+}")));
        rows.push(
            [variant.to_owned()]
                .into_iter()
                .chain(cells)
                .chain([format!("{sum:+}")])
                .collect(),
        );
    }
    Grid {
        title: format!("Each variant against plain, at {stage}"),
        about: "Blocks more or fewer than `plain` after the same work; its own line is blocks."
            .into(),
        head: [String::new()]
            .into_iter()
            .chain(works.into_iter().map(str::to_owned))
            .chain(["sum".into()])
            .collect(),
        rows,
    }
}

fn classes(found: &Found) -> Vec<Grid> {
    let one = |stage: &str| {
        let sums: Vec<_> = found
            .summary
            .iter()
            .filter_map(|s| Some((s, s.stage(stage)?)))
            .collect();
        let mut names: Vec<&String> = sums.iter().flat_map(|(_, s)| s.classes.keys()).collect();
        names.sort();
        names.dedup();
        let row = |(summary, sum): &(&Summary, &super::StageSum)| {
            let of = names
                .iter()
                .map(|class| sum.classes.get(*class).copied().unwrap_or(0).to_string());
            [summary.variant.clone()]
                .into_iter()
                .chain(of)
                .chain([sum.blocks.to_string()])
                .collect()
        };
        let rows = sums.iter().map(row).collect();
        let head = ["variant".to_owned()]
            .into_iter()
            .chain(names.iter().map(|n| (*n).clone()))
            .chain(["sum".into()]);
        Grid {
            title: format!("Whose the blocks are, at {stage}"),
            about: "By class of owner, over all workloads.".into(),
            head: head.collect(),
            rows,
        }
    };
    vec![one("no-sync"), one("quiesce")]
}

fn crash(found: &Found) -> Option<Grid> {
    let rows: Vec<Vec<String>> = found
        .cells
        .iter()
        .filter_map(|row| {
            let c = row.crash.as_ref()?;
            Some(vec![
                row.variant.clone(),
                c.moments.to_string(),
                c.mounts_failed.to_string(),
                c.damaged.to_string(),
                c.synced_files.to_string(),
                c.synced_lost.to_string(),
                c.unsynced_files.to_string(),
                c.unsynced_lost.to_string(),
                c.replaced_files.to_string(),
                c.replaced_lost.to_string(),
                c.torn.to_string(),
                c.foreign.to_string(),
            ])
        })
        .collect();
    let head = [
        "variant",
        "copies",
        "not mountable",
        "damaged",
        "synced files",
        "lost",
        "unsynced files",
        "lost",
        "replaced unsynced",
        "both lost",
        "torn",
        "foreign bytes",
    ];
    (!rows.is_empty()).then(|| Grid {
        title: "What a crash costs".into(),
        about: "A device copied at several moments while a program writes, nothing synced for the copy; mounted, checked by e2fsck, compared. Files are counted once for each copy. \
            Lost: as before, or not there; both lost: of a synced file that was replaced by one that was not, neither is there; torn: neither the old nor the new content; foreign: with bytes that were never written to it.".into(),
        head: words(&head),
        rows,
    })
}
