//! `cowslip`: the command. It knows all the other crates; none of them knows it.
//!
//! ```text
//! args -> command::run -> the engine -> report, failure
//! ```

mod args;
mod build;
mod command;
mod control;
mod explain;
mod failure;
mod fs_aware;
mod lab;
mod profile;
mod random;
mod report;
mod sys;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match command::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            report::failure(&failure);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
