//! `cargo xtask bench [FILTER] [--quick] [--save]`: every criterion bench of the workspace, one after
//! the other, in release.
//!
//! `--save` writes the median of each that ran as `docs/measurements/bench-YYYY-MM-DD.md`; with a
//! filter too, so that a page may hold a part only, and says which.

pub(crate) mod memory;
pub(crate) mod peers;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine;
use crate::run::{cargo, root, save, step, target_dir};

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut filter, mut quick, mut saving) = (None, false, false);
    for arg in args {
        match *arg {
            "--quick" => quick = true,
            "--save" => saving = true,
            text if !text.starts_with('-') && filter.is_none() => filter = Some(text),
            _ => bail!("usage: cargo xtask bench [FILTER] [--quick] [--save]"),
        }
    }
    let where_and_when = machine::describe();
    let results = target_dir().join("criterion");
    let begun = SystemTime::now();
    for (package, bench) in benches()? {
        let mut command = cargo(["bench", "-p", &package, "--bench", &bench, "--"]);
        command.args(filter).env("CRITERION_HOME", &results);
        if quick {
            command.args([
                "--warm-up-time",
                "0.3",
                "--measurement-time",
                "1",
                "--sample-size",
                "10",
            ]);
        }
        step(&format!("{package}, {bench}"), &mut command)?;
    }
    println!("results: {}", results.display());
    if saving {
        let mut figures = Vec::new();
        collect(&results, begun, &mut figures)?;
        figures.sort();
        let page = page(&where_and_when, filter, quick, &figures);
        save(&format!("bench-{}.md", machine::today()), &page)?;
    }
    Ok(())
}

/// Package and name of every bench, in order.
fn benches() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for dir in std::fs::read_dir(root().join("crates"))? {
        let dir = dir?.path();
        let Ok(entries) = std::fs::read_dir(dir.join("benches")) else {
            continue;
        };
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml"))?;
        let package = manifest
            .lines()
            .find_map(|line| line.strip_prefix("name = "));
        let package = package
            .context("a package has a name")?
            .trim_matches('"')
            .to_owned();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "rs") {
                let name = path.file_stem().context("a file has a name")?;
                found.push((package.clone(), name.to_string_lossy().into_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// One line of the page: name, median, spread, throughput.
type Figure = (String, String);

/// What criterion wrote below `dir` since `begun`.
fn collect(dir: &Path, begun: SystemTime, into: &mut Vec<Figure>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    for path in entries.map(|e| e.map(|e| e.path())) {
        let path: PathBuf = path?;
        let estimates = path.join("new/estimates.json");
        let fresh = |path: &Path| {
            path.metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|t| t >= begun)
        };
        if fresh(&estimates) {
            let read = |path: PathBuf| -> Result<Value> {
                Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
            };
            let bench = read(path.join("new/benchmark.json"))?;
            into.extend(figure(&bench, &read(estimates)?));
        }
        if path.is_dir() && path.file_name().is_some_and(|n| n != "new" && n != "base") {
            collect(&path, begun, into)?;
        }
    }
    Ok(())
}

fn figure(bench: &Value, estimates: &Value) -> Option<Figure> {
    let name = bench["full_id"].as_str()?.to_owned();
    let median = estimates["median"]["point_estimate"].as_f64()?;
    let deviation = estimates["median_abs_dev"]["point_estimate"].as_f64()?;
    let amount = |kind: &str| bench["throughput"][kind].as_f64();
    let rate = match (amount("Bytes"), amount("Elements")) {
        // Of less than a microsecond it would say nothing.
        (Some(bytes), _) if median >= 1e3 => format!("{:.0} MB/s", bytes / median * 1e3),
        (_, Some(elements)) => format!("{} each", time(median / elements)),
        _ => String::new(),
    };
    let spread = format!("{:.0} %", deviation / median * 100.0);
    let line = format!("| {name} | {} | {spread} | {rate} |", time(median));
    Some((name, line))
}

/// Three digits and a unit.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

fn page(where_and_when: &str, filter: Option<&str>, quick: bool, figures: &[Figure]) -> String {
    let mut page = format!("# Benches\n\n{where_and_when}\n\n");
    let filter = filter.map_or(String::new(), |f| format!(" {f}"));
    let quick = if quick { " --quick" } else { "" };
    let _ = writeln!(
        page,
        "`cargo xtask bench{filter}{quick} --save`. Times are medians; the"
    );
    let _ = writeln!(
        page,
        "spread is the median absolute deviation of the samples.\n"
    );
    let _ = writeln!(
        page,
        "| bench | median | spread | rate |\n|---|---|---|---|"
    );
    figures
        .iter()
        .for_each(|(_, line)| page.push_str(&format!("{line}\n")));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (ns, text) in [
            (1.234, "1.23 ns"),
            (59.04, "59.0 ns"),
            (8_600.0, "8.60 us"),
            (11.4e6, "11.4 ms"),
            (2.5e9, "2.50 s"),
        ] {
            assert_eq!(time(ns), text);
        }
    }

    #[test]
    fn a_line_of_what_criterion_writes() {
        let bench =
            serde_json::json!({"full_id": "seal/random", "throughput": {"Bytes": 64_000_000}});
        let estimates = serde_json::json!({
            "median": {"point_estimate": 2e8}, "median_abs_dev": {"point_estimate": 1e7},
        });
        let (_, line) = figure(&bench, &estimates).unwrap();
        assert_eq!(line, "| seal/random | 200 ms | 5 % | 320 MB/s |");
        let bench = serde_json::json!({"full_id": "set", "throughput": {"Elements": 8000}});
        let (_, line) = figure(&bench, &estimates).unwrap();
        assert_eq!(line, "| set | 200 ms | 5 % | 25.0 us each |");
        assert!(figure(&Value::Null, &estimates).is_none());
    }

    #[test]
    fn the_benches_of_this_workspace_are_found() {
        let found = benches().unwrap();
        assert!(
            found.contains(&("cowslip-block".into(), "tracker".into())),
            "{found:?}"
        );
    }
}
