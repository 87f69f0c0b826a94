//! `cargo xtask crashes [SECONDS]`: histories that seeds decide, each crashed at every operation on a file, by a kill
//! and by power cuts; every disk that is left is opened and compared with what was promised
//! (`crates/sim/src/world`). Built for speed, which is why it is a program of its own.
//!
//! `cargo xtask crashes --faults [SECONDS]`: each operation on a file of such histories meets a fault once: it is refused, late,
//! done twice, interrupted by another process, or forgotten (`crates/sim/src/world/faults.rs`).
//!
//! `cargo xtask crashes --planted [--seed N] [--seconds-each N]`: the checker is checked. Bugs are planted in the engine
//! one after the other (`crates/block/src/planted.rs`), and hunted; one that is not found is an error.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::rig::table::table;
use crate::run::{cargo, step};

const USAGE: &str = "usage: cargo xtask crashes [SECONDS] [--faults] [--seed N] [--length N] [--json] | --planted [--seed N] [--seconds-each N] [--json]";

/// A program whose lines of JSON are rows.
struct Hunter {
    bin: &'static str,
    features: &'static str,
    told: &'static [&'static str],
    /// What it counts.
    counts: &'static str,
}

const HUNTERS: [Hunter; 2] = [
    Hunter {
        bin: "planted",
        features: "planted",
        told: &[],
        counts: "crash_states",
    },
    Hunter {
        bin: "schedules",
        features: "planted,shuttle",
        told: &["--planted"],
        counts: "schedules",
    },
];

pub(crate) fn run(args: &[&str]) -> Result<()> {
    if args.contains(&"--planted") {
        return planted(args);
    }
    let build = [
        "run",
        "--quiet",
        "--release",
        "-p",
        "cowslip-sim",
        "--bin",
        "crashes",
        "--",
    ];
    let args = build.iter().chain(args).copied();
    step("crashes", &mut cargo(args))
}

/// `cargo xtask schedules [SECONDS] [--seed N]`: threads over one device, which take turns as a scheduler says, until the
/// time is up or something is found (`crates/sim/src/schedules`).
pub(crate) fn schedules(args: &[&str]) -> Result<()> {
    let (mut seed, mut seconds) = ("1", "60");
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--seed" => seed = args.next().context("--seed wants a number")?,
            other => seconds = other,
        }
    }
    let mut command = cargo(["run", "--quiet", "--release", "-p", "cowslip-sim"]);
    command.args([
        "--features",
        "shuttle",
        "--bin",
        "schedules",
        "--",
        seed,
        seconds,
    ]);
    step("schedules", &mut command)
}

fn planted(args: &[&str]) -> Result<()> {
    let (mut seed, mut seconds_each, mut is_json) = ("1", "300", false);
    let mut args = args.iter().filter(|arg| **arg != "--planted");
    while let Some(arg) = args.next() {
        match *arg {
            "--json" => is_json = true,
            "--seed" => seed = args.next().context(USAGE)?,
            "--seconds-each" => seconds_each = args.next().context(USAGE)?,
            _ => bail!(USAGE),
        }
    }
    let mut rows = Vec::new();
    for hunter in &HUNTERS {
        rows.extend(hunt(hunter, [seed, seconds_each])?);
    }
    match is_json {
        true => println!("{}", json!({ "seed": seed, "planted": rows })),
        false => print!("{}", page(&rows)),
    }
    let missed = rows.iter().filter(|row| row["found"].is_null());
    let missed: Vec<_> = missed.filter_map(|row| row["bug"].as_str()).collect();
    if !missed.is_empty() {
        bail!("not found: {}", missed.join(", "));
    }
    Ok(())
}

/// The rows of one program, told on the way.
fn hunt(hunter: &Hunter, args: [&str; 2]) -> Result<Vec<Value>> {
    let Hunter {
        bin,
        features,
        told,
        counts,
    } = *hunter;
    let mut command = cargo(["run", "--quiet", "--release", "-p", "cowslip-sim"]);
    command.args(["--features", features, "--bin", bin, "--"]);
    command.args(told).args(args);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("it was piped")?).lines();
    let mut rows = Vec::new();
    for line in lines {
        let mut row: Value = serde_json::from_str(&line?).context(bin.to_owned())?;
        let how = match row["found"].is_null() {
            true => "NOT found",
            false => "found",
        };
        let (bug, tried, seconds) = (&row["bug"], &row[counts], &row["seconds"]);
        eprintln!("{bug} {how} after {tried} {counts}, {seconds} s");
        row["found_by"] = json!(bin);
        rows.push(row);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{bin} ended with {status}");
    }
    Ok(rows)
}

/// The table, in Markdown.
fn page(rows: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let cells = |row: &Value| {
        let hunter = HUNTERS.iter().find(|hunter| row["found_by"] == hunter.bin);
        let counts = hunter.expect("it told the row").counts;
        let found_by = match row["found"].is_null() {
            true => "NOT FOUND".into(),
            false => format!("{} {}", row[counts], counts.replace('_', " ")),
        };
        vec![
            text(&row["bug"]),
            text(&row["what"]),
            found_by,
            row["seconds"].to_string(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["bug", "what is wrong", "found after", "seconds"], &rows)
}
