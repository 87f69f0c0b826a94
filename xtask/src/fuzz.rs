//! `cargo xtask fuzz TARGET [SECONDS]`: one target of `fuzz/` under libFuzzer.
//!
//! It goes on from `fuzz/corpus/TARGET` (not in the repository) and begins from `fuzz/seeds/TARGET`
//! (in it), with the words of `fuzz/dictionaries/TARGET.dict`. An input that fails is left in `fuzz/artifacts/TARGET`; the same command with the
//! file's path in the place of SECONDS runs it again.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, output, program, root, step};

/// A request that takes longer is a hang.
const TIMEOUT_SECONDS: u32 = 10;
const INPUT_BYTES_MAX: u32 = 64 << 10;
const MEMORY_MIB_MAX: u32 = 2048;

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (target, rest) = match args {
        [target, rest @ ..] if rest.len() < 2 && is_target(target) => (*target, rest),
        _ => bail!(
            "usage: cargo xtask fuzz TARGET [SECONDS | INPUT]; targets: {}",
            targets()?
        ),
    };
    let seconds = rest.first().copied().unwrap_or("60");
    prepare()?;
    let mut command = cargo(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", target]);
    if seconds.parse::<u32>().is_ok() {
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(root().join(&corpus)).context(corpus.clone())?;
        command.args([corpus, format!("fuzz/seeds/{target}"), "--".into()]);
        command.arg(format!("-max_total_time={seconds}"));
    } else {
        command.args([seconds, "--"]);
    }
    // A thread of a server that is just ending looks like a leak.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    command.arg(format!("-timeout={TIMEOUT_SECONDS}"));
    command.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    let words = format!("fuzz/dictionaries/{target}.dict");
    if root().join(&words).is_file() {
        command.arg(format!("-dict={words}"));
    }
    step(&format!("fuzzing {target}"), &mut command)
}

fn is_target(name: &str) -> bool {
    root()
        .join(format!("fuzz/fuzz_targets/{name}.rs"))
        .is_file()
}

fn targets() -> Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names.join(", "))
}

/// cargo-fuzz, and a compiler for it.
fn prepare() -> Result<()> {
    let has_nightly = output(Command::new("rustup").args(["toolchain", "list"]))
        .is_ok_and(|list| list.lines().any(|line| line.starts_with("nightly")));
    if !has_nightly {
        bail!("fuzzing needs a nightly compiler: rustup toolchain install nightly");
    }
    if program("cargo-fuzz").is_none() && output(&mut cargo(["fuzz", "--version"])).is_err() {
        println!("== cargo-fuzz is not there yet");
        step(
            "installing cargo-fuzz",
            &mut cargo(["install", "cargo-fuzz", "--locked"]),
        )?;
    }
    Ok(())
}
