//! What a developer repeats: `cargo xtask` lists it.
//!
//! ```text
//! test         prerequisites -> cargo fmt, clippy, doc, test       provide      the prerequisites alone
//! bench        criterion -> a summary       bench peers   fio -> a table       bench memory   guests -> a table
//! fuzz         cargo-fuzz              coverage      the tests, counted -> lines that none runs
//! soak         servers, clients, commands and kills at random -> what was lost, what is left
//! torture      servers and clients on disks that fail, are full, clocks that jump -> what was lost
//! footprint    a guest that writes for ever, gc, compact -> bytes on disk, bytes written
//! fs-aware     what a file system left behind, snapshotted as it is and as it needs it
//! history      a session -> 10,000 snapshots -> bytes, look-ups
//! guest        a real guest's phases, and the same on a loop device -> whose the blocks of each diff are
//! guest-memory a real kernel's memory, snapshotted -> what it costs, by what pages are for
//! live         guests that go on writing -> 1,000 snapshots of their memory -> what was lost
//! ```
//!
//! Each command is a file. They share how a program is run ([`run`]), which Debian packages there
//! are ([`packages`]), what a machine is called in a measurement ([`machine`]) and, the long runs, what
//! they stand on ([`rig`]).
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to a developer"
)]

mod apt;
mod bench;
mod coverage;
mod crashes;
mod footprint;
mod fs_aware;
mod fuzz;
mod guest;
mod guest_memory;
mod history;
mod kernels;
mod live;
mod machine;
mod packages;
mod rig;
mod run;
mod soak;
mod test;
mod torture;

use std::process::ExitCode;

use anyhow::{Result, bail};

const COMMANDS: &str = "\
cargo xtask test [--no-install]         all that must pass: format, lints, docs, tests; installs what they need
cargo xtask provide                     installs what tests need, and fetches the kernels that they boot, and no more
cargo xtask bench [FILTER] [--save]     the criterion benches; --quick for short ones, --save for docs/measurements
cargo xtask bench peers [--save]        cowslip beside nbdkit and qemu-nbd under fio; --rounds N, --seconds N
cargo xtask bench memory [--save]       guests' memory beside the kernel alone: faults, prefetch, harvest, forks, restore; --quick, --json
cargo xtask fuzz TARGET [SECONDS]       header, layer, journal, nbd, ext4 or tar, a minute unless told otherwise
cargo xtask coverage [--save]           lines of block, snapshot and nbd that tests run, and those that none does; --json
cargo xtask crashes [SECONDS] [--seed N] every crash of histories that seeds decide, against an oracle; a minute; --length N, --json
cargo xtask crashes --faults [SECONDS]  every fault that a store may have, at each operation on a file of such histories; --seed N, --length N, --json
cargo xtask crashes --planted           the checker is checked: each bug that is planted has to be found; --seed N, --seconds-each N, --json
cargo xtask schedules [SECONDS] [--seed N] threads that take turns as told over one device, against an oracle; a minute
cargo xtask soak [SECONDS] [--seed N]   everything at once in random order against an oracle; an hour; --json
cargo xtask torture [SECONDS]           faults in real servers, and what was lost; 15 minutes; --hours N, --quick, --seed N, --json
cargo xtask history [SNAPSHOTS] [--save]  10,000 snapshots of one session: what each adds, what the last costs; --json, --tsv FILE
cargo xtask live [SNAPSHOTS] [--save]    guests that write while their memory is snapshotted, against an oracle; 1,000; --quick, --seed N, --json
cargo xtask guest [--save]              a real guest's first boot, unpacking, deleting, idling: its diffs beside a loop device's; as root; --json
cargo xtask guest-memory [--save]       a real kernel under QEMU, disk and memory snapshotted: what each stage stores, and what pages are for; as root; --json
cargo xtask footprint [ROUNDS] [--save] a disk rewritten for ever: the store beside what is live; --size MIB, --json
cargo xtask fs-aware [--save]           deleted files and edits, no mount option: a snapshot as it is and --fs-aware; as root; --json";

fn main() -> ExitCode {
    // `live` starts this program again, as a guest.
    cowslip_vmm::run_if_asked();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &[&str]) -> Result<()> {
    match args {
        [] | ["help" | "--help" | "-h"] => println!("{COMMANDS}"),
        ["test", rest @ ..] => test::run(rest)?,
        ["provide"] => drop(packages::provide(packages::TESTS, true)?),
        ["bench", "peers", rest @ ..] => bench::peers::run(rest)?,
        ["bench", "memory", rest @ ..] => bench::memory::run(rest)?,
        ["bench", rest @ ..] => bench::run(rest)?,
        ["coverage", rest @ ..] => coverage::run(rest)?,
        ["crashes", rest @ ..] => crashes::run(rest)?,
        ["schedules", rest @ ..] => crashes::schedules(rest)?,
        ["fuzz", rest @ ..] => fuzz::run(rest)?,
        ["footprint", rest @ ..] => footprint::run(rest)?,
        ["fs-aware", rest @ ..] => fs_aware::run(rest)?,
        ["soak", rest @ ..] => soak::run(rest)?,
        ["torture", rest @ ..] => torture::run(rest)?,
        ["history", rest @ ..] => history::run(rest)?,
        ["guest", rest @ ..] => guest::run(rest)?,
        ["guest-memory", rest @ ..] => guest_memory::run(rest)?,
        ["live", rest @ ..] => live::run(rest)?,
        [other, ..] => bail!("there is no {other:?}; these there are:\n{COMMANDS}"),
    }
    Ok(())
}
