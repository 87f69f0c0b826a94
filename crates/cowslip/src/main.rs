//! `cowslip`: the command. It knows all the other crates; none of them knows it.
//!
//! ```text
//! args -> command::run -> the engine -> report, failure
//! ```

mod accept;
mod args;
mod build;
mod command;
mod control;
mod explain;
mod failure;
mod fs_aware;
mod lab;
mod pause;
mod profile;
mod random;
mod report;
mod run;
mod sys;

use std::process::ExitCode;

use clap::Parser;

/// A server lives for months, and its threads come and go. With glibc's allocator, which keeps what each
/// thread freed apart, its memory grew fivefold in half an hour of snapshots, with nothing leaked.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const _: () = assert!(
    !cowslip_block::planted::IS_POSSIBLE,
    "bugs can be planted in what this would be built from: build it without the feature `planted`"
);

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
