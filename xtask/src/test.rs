//! `cargo xtask test`: all that must pass before a change is handed in. CI runs this and no more.
//!
//! 1. what tests need of other people's programs is installed, or said to be missing;
//! 2. format, lints, docs, tests, in this order; the first that fails ends it;
//! 3. crashes and faults of histories that nobody has seen: their seed is the time, and is told;
//! 4. threads that take turns as told, and the checker is checked: every planted bug is found;
//! 5. a quarter of a minute of faults in real servers;
//! 6. some snapshots of guests that go on writing.
//!
//! With everything there, `COWSLIP_REQUIRE_TOOLS=1` makes a test fail that would be left out for
//! want of a program. With `CI=true`, a package that cannot be had is a failure.

use anyhow::{Result, bail};

use crate::packages::{TESTS, provide};
use crate::run::{cargo, step};

/// With what no release has: see `crates/block/src/planted.rs`.
const PLANTED: [&str; 3] = [
    "clippy -p cowslip-sim --features planted,shuttle --all-targets -- -D warnings",
    "test -p cowslip-sim --features planted --test it planted",
    "test -p cowslip-sim --features planted,shuttle schedules",
];

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let install = match args {
        [] => true,
        ["--no-install"] => false,
        _ => bail!("usage: cargo xtask test [--no-install]"),
    };
    let missing = provide(TESTS, install)?;
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    if in_ci && missing.iter().any(|need| need.is_a_package()) {
        bail!("CI runs every test, and what is missing above could not be installed");
    }
    step("format", &mut cargo(["fmt", "--all", "--check"]))?;
    let clippy = "clippy --workspace --all-targets -- -D warnings";
    step("lints", &mut cargo(clippy.split(' ')))?;
    let docs = "doc --workspace --no-deps --document-private-items";
    step(
        "docs",
        cargo(docs.split(' ')).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    let mut tests = cargo(["test", "--workspace"]);
    if missing.is_empty() {
        tests.env("COWSLIP_REQUIRE_TOOLS", "1");
    }
    step("tests", &mut tests)?;
    // A workspace of its own; the long runs of its targets want another compiler, and are `cargo xtask fuzz`.
    let doors = "test --manifest-path fuzz/Cargo.toml --no-default-features --locked";
    step("fuzz targets, briefly", &mut cargo(doors.split(' ')))?;
    let fresh = "run --quiet -p cowslip-sim --bin crashes -- 20 --length 12";
    step("crashes of fresh seeds", &mut cargo(fresh.split(' ')))?;
    let fresh = "run --quiet -p cowslip-sim --bin crashes -- 10 --faults --length 10";
    step("faults of fresh seeds", &mut cargo(fresh.split(' ')))?;
    for told in PLANTED {
        step("schedules and planted bugs", &mut cargo(told.split(' ')))?;
    }
    // By way of cargo: what was built meanwhile may have replaced this very program.
    step("torture", &mut cargo(["xtask", "torture", "--quick"]))?;
    let live = ["xtask", "live", "--quick"];
    step("snapshots of guests that go on", &mut cargo(live))?;
    match missing.as_slice() {
        [] => println!("== all passed, nothing was skipped"),
        some => {
            let names: Vec<_> = some.iter().map(|need| need.what).collect();
            println!("== all passed, but for what needs {}", names.join("; "));
        }
    }
    Ok(())
}
