//! `cargo xtask crashes [SECONDS]`: histories that seeds decide, each crashed at every operation on a file, by a kill
//! and by power cuts; every disk that is left is opened and compared with what was promised
//! (`crates/sim/src/world`). Built for speed, which is why it is a program of its own.

use anyhow::Result;

use crate::run::{cargo, step};

pub(crate) fn run(args: &[&str]) -> Result<()> {
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
