//! `cargo xtask coverage [--json] [--save]`: which lines of block, snapshot and nbd their tests run.
//!
//! The compiler counts (`-C instrument-coverage`), of the crates of this workspace alone: what they stand on is taken as
//! it is built already. LLVM's own tools, a component of the toolchain, add up; here is the table. Tests of the
//! three crates and of `sim` are run, the command's are not: what a crate promises is tested at its own level.
//!
//! Lines of tests are not counted: modules under `#[cfg(test)]`, in a file or at its end. Below [`WANTED_PERCENT`]
//! for one of the three, it fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::machine::{describe, today};
use crate::run::{cargo, output, root, save, step, target_dir};

const CRATES: [&str; 3] = ["block", "snapshot", "nbd"];
const TESTED: [&str; 4] = ["block", "snapshot", "nbd", "sim"];
const WANTED_PERCENT: f64 = 90.0;

/// How often each line was run, by file below the workspace.
type Lines = BTreeMap<String, BTreeMap<usize, u64>>;

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut as_json, mut saves) = (false, false);
    for arg in args {
        match *arg {
            "--json" => as_json = true,
            "--save" => saves = true,
            _ => bail!("usage: cargo xtask coverage [--json] [--save]"),
        }
    }
    let lines = without_tests(measure(as_json)?)?;
    let table = table(&lines);
    if saves {
        save(&format!("coverage-{}.md", today()), &page(&table))?;
    }
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(&as_value(&lines))?),
        false => println!("{table}"),
    }
    let short = CRATES.map(|name| (name, total(&lines, name).percent()));
    let short = short
        .iter()
        .filter(|(_, percent)| *percent < WANTED_PERCENT);
    let short: Vec<_> = short
        .map(|(name, percent)| format!("{name} {percent:.1} %"))
        .collect();
    match short.is_empty() {
        true => Ok(()),
        false => bail!(
            "less than {WANTED_PERCENT} % of the lines: {}",
            short.join(", ")
        ),
    }
}

/// Builds, runs the tests, and adds up; without a word on standard output if need be.
fn measure(quietly: bool) -> Result<Lines> {
    let dir = target_dir().join("coverage");
    let raw = dir.join("raw");
    if raw.exists() {
        std::fs::remove_dir_all(&raw)?;
    }
    std::fs::create_dir_all(&raw)?;
    // Cargo puts it before the compiler's path, for the workspace's own crates.
    let wrapper = dir.join("rustc");
    std::fs::write(&wrapper, "#!/bin/sh\nexec \"$@\" -C instrument-coverage\n")?;
    std::fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    let test = |more: &[&str]| {
        let mut command = cargo(["test"]);
        command.args(TESTED.iter().map(|name| format!("-pcowslip-{name}")));
        command.args(["--lib", "--tests"]).args(more);
        command.env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
        command.env("LLVM_PROFILE_FILE", raw.join("%p-%m.profraw"));
        command
    };
    match quietly {
        true => drop(output(&mut test(&["--quiet"]))?),
        false => step("tests, counted", &mut test(&["--quiet"]))?,
    }
    let built = output(&mut test(&["--no-run", "--message-format=json"]))?;
    let programs: Vec<String> = built
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| Some(message["executable"].as_str()?.to_owned()))
        .collect();
    let merged = dir.join("merged.profdata");
    let tools = tools()?;
    let mut merge = Command::new(tools.join("llvm-profdata"));
    merge.args(["merge", "-sparse", "-o"]).arg(&merged);
    for entry in std::fs::read_dir(&raw)? {
        merge.arg(entry?.path());
    }
    output(&mut merge)?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export
        .args(["export", "-format=lcov", "-instr-profile"])
        .arg(&merged);
    for program in &programs {
        export.args(["-object", program]);
    }
    Ok(parse(&output(&mut export)?, &root()))
}

/// Where LLVM's tools of this toolchain are; they are fetched if need be.
fn tools() -> Result<PathBuf> {
    let ask = |args: &[&str]| output(Command::new("rustc").args(args));
    let sysroot = ask(&["--print", "sysroot"])?;
    let version = ask(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV names no host")?;
    let tools = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(host)
        .join("bin");
    if !tools.join("llvm-cov").is_file() {
        let mut add = Command::new("rustup");
        output(add.args(["component", "add", "llvm-tools"]))?;
    }
    Ok(tools)
}

/// The lines of an lcov report, of files of the three crates.
fn parse(report: &str, root: &Path) -> Lines {
    let mut lines = Lines::new();
    let mut file = None;
    for line in report.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            let path = Path::new(path)
                .strip_prefix(root)
                .unwrap_or(Path::new(path));
            let path = path.to_string_lossy().into_owned();
            let is_ours = CRATES
                .iter()
                .any(|name| path.starts_with(&format!("crates/{name}/src/")));
            file = is_ours.then_some(path);
        } else if let (Some(file), Some(count)) = (&file, line.strip_prefix("DA:")) {
            let mut fields = count.split(',').map(str::parse::<u64>);
            if let (Some(Ok(at)), Some(Ok(times))) = (fields.next(), fields.next()) {
                let at = usize::try_from(at).expect("a line's number");
                *lines
                    .entry(file.clone())
                    .or_default()
                    .entry(at)
                    .or_default() += times;
            }
        }
    }
    lines
}

/// What is left when modules for tests are taken out.
fn without_tests(mut lines: Lines) -> Result<Lines> {
    for (path, counts) in &mut lines {
        let path = root().join(path);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let from_line = tests_of(&text).from_line;
        let is_for_tests = is_for_tests(&path);
        counts.retain(|at, _| *at < from_line && !is_for_tests);
    }
    lines.retain(|_, counts| !counts.is_empty());
    Ok(lines)
}

/// Does the module that it belongs to say that this file is for tests alone?
fn is_for_tests(path: &Path) -> bool {
    let (Some(beside), Some(name)) = (path.parent(), path.file_stem()) else {
        return false;
    };
    let above = [
        beside.join("mod.rs"),
        beside.join("lib.rs"),
        beside.with_extension("rs"),
    ];
    let texts = above
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok());
    texts
        .flat_map(|text| tests_of(&text).files)
        .any(|file| *file == *name)
}

struct Tests {
    /// Where a module for tests begins; it is the last of its file.
    from_line: usize,
    /// Modules for tests in files of their own.
    files: Vec<String>,
}

fn tests_of(text: &str) -> Tests {
    let mut tests = Tests {
        from_line: usize::MAX,
        files: Vec::new(),
    };
    let all: Vec<&str> = text.lines().collect();
    for (at, pair) in all.windows(2).enumerate() {
        if pair[0] != "#[cfg(test)]" {
            continue;
        }
        let name = pair[1]
            .trim_start_matches("pub(crate) ")
            .strip_prefix("mod ");
        match name.and_then(|name| name.strip_suffix(';')) {
            Some(name) => tests.files.push(name.to_owned()),
            None if name.is_some() => tests.from_line = tests.from_line.min(at + 1),
            None => {}
        }
    }
    tests
}

#[derive(Clone, Copy, Default)]
struct Total {
    lines: usize,
    covered: usize,
}

impl Total {
    fn of(counts: &BTreeMap<usize, u64>) -> Self {
        let covered = counts.values().filter(|times| **times > 0).count();
        Self {
            lines: counts.len(),
            covered,
        }
    }

    fn percent(self) -> f64 {
        let exact = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        100.0 * exact(self.covered) / exact(self.lines.max(1))
    }
}

fn files_of<'a>(
    lines: &'a Lines,
    name: &str,
) -> impl Iterator<Item = (&'a str, &'a BTreeMap<usize, u64>)> {
    let start = format!("crates/{name}/src/");
    lines
        .iter()
        .filter_map(move |(path, counts)| Some((path.strip_prefix(&start)?, counts)))
}

fn total(lines: &Lines, name: &str) -> Total {
    files_of(lines, name).fold(Total::default(), |all, (_, counts)| {
        let one = Total::of(counts);
        Total {
            lines: all.lines + one.lines,
            covered: all.covered + one.covered,
        }
    })
}

/// Lines that were never run; those between which no other line counts are one range.
fn missed(counts: &BTreeMap<usize, u64>) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    let mut open = false;
    for (at, times) in counts {
        match ranges.last_mut() {
            _ if *times > 0 => open = false,
            Some(last) if open => last.1 = *at,
            _ => {
                ranges.push((*at, *at));
                open = true;
            }
        }
    }
    ranges
}

fn table(lines: &Lines) -> String {
    let mut out = "| crate | lines | covered | |\n|---|---|---|---|\n".to_owned();
    for name in CRATES {
        let all = total(lines, name);
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {:.1} % |",
            all.lines,
            all.covered,
            all.percent()
        );
    }
    for name in CRATES {
        let _ = writeln!(
            out,
            "\n## {name}\n\n| file | lines | covered | never run |\n|---|---|---|---|"
        );
        for (path, counts) in files_of(lines, name) {
            let ranges = missed(counts)
                .into_iter()
                .map(|(from, to)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                });
            let ranges = ranges.collect::<Vec<_>>().join(", ");
            let one = Total::of(counts);
            let _ = writeln!(
                out,
                "| {path} | {} | {:.1} % | {ranges} |",
                one.lines,
                one.percent()
            );
        }
    }
    out
}

fn page(table: &str) -> String {
    format!(
        "# Lines that the tests run\n\n{}\n\n`cargo xtask coverage --save`: the tests of block, snapshot, nbd and sim, the lines of the first three without \
         their modules for tests. At least {WANTED_PERCENT} % of each must be run, or the command fails.\n\n{table}",
        describe()
    )
}

fn as_value(lines: &Lines) -> Value {
    let crates = CRATES.map(|name| {
        let files: Vec<Value> = files_of(lines, name)
            .map(|(path, counts)| {
                let one = Total::of(counts);
                let missed: Vec<Value> = missed(counts)
                    .into_iter()
                    .map(|(from, to)| json!({ "from_line": from, "to_line": to }))
                    .collect();
                json!({ "path": path, "lines": one.lines, "covered_lines": one.covered, "missed": missed })
            })
            .collect();
        let all = total(lines, name);
        json!({ "name": name, "lines": all.lines, "covered_lines": all.covered, "covered_percent": all.percent(), "files": files })
    });
    json!({ "wanted_percent": WANTED_PERCENT, "crates": crates })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_added_up() {
        let report = "SF:/w/crates/nbd/src/a.rs\nFN:1,f\nDA:1,5\nDA:2,0\nDA:4,0\nDA:5,1\nDA:9,0\nend_of_record\n\
                      SF:/w/crates/cowslip/src/b.rs\nDA:1,0\nend_of_record\n\
                      SF:/w/crates/nbd/src/a.rs\nDA:9,0\nDA:1,1\nend_of_record\n";
        let lines = parse(report, Path::new("/w"));
        assert_eq!(lines.len(), 1);
        let counts = &lines["crates/nbd/src/a.rs"];
        assert_eq!((counts[&1], missed(counts)), (6, vec![(2, 4), (9, 9)]));
        let all = total(&lines, "nbd");
        assert_eq!((all.lines, all.covered), (5, 2));
        assert!((all.percent() - 40.0).abs() < 0.01);
        assert!(table(&lines).contains("| a.rs | 5 | 40.0 % | 2-4, 9 |"));
    }

    #[test]
    fn modules_for_tests_are_told_apart() {
        let text = "fn a() {}\n#[cfg(test)]\nfn only_here() {}\n#[cfg(test)]\nmod twin;\n#[cfg(test)]\nmod tests {\n}\n";
        let tests = tests_of(text);
        assert_eq!((tests.from_line, tests.files), (6, vec!["twin".to_owned()]));
        assert_eq!(tests_of("fn a() {}\n").from_line, usize::MAX);
        let ours = |path: &str| is_for_tests(&root().join("crates").join(path));
        assert!(ours("snapshot/src/verify/tests.rs") && ours("snapshot/src/limits/tests.rs"));
        assert!(!ours("snapshot/src/verify/store.rs") && !ours("nbd/src/lib.rs"));
    }
}
