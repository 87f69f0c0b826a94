//! `cargo xtask soak [SECONDS] [--seed N] [--json]`: everything at once, in random order, against an
//! oracle: writes, zeroes, trims and flushes through NBD to several live sessions, snapshots that
//! overlap, forks, resumed sessions, removed names, gc, compact, verify, diff, export, and kill -9 of
//! all of them.
//!
//! - `device.rs`: a session as its clients know it;  `names.rs`: names;
//! - `world.rs`: what there is;  `operations.rs`: what is done next;  `jobs.rs`: commands beside it;
//! - `leaks.rs`: what must not grow, and what must be gone at the end.
//!
//! The order of operations comes from the seed; what overlaps how, from the machine. A failure keeps
//! the directory, and prints the seed and the last operations.

mod device;
mod ending;
mod jobs;
mod leaks;
mod names;
mod operations;
mod world;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use self::ending::Report;
use self::world::World;
use crate::rig::Rig;
use crate::rig::table::bytes;

const USAGE: &str = "usage: cargo xtask soak [SECONDS] [--seed N] [--json]";
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut seconds, mut seed, mut json) = (3600, None, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--json" => json = true,
            "--seed" => seed = Some(args.next().and_then(|n| n.parse().ok()).context(USAGE)?),
            number => seconds = number.parse().ok().context(USAGE)?,
        }
    }
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_millis();
    let seed = seed.map_or_else(|| u64::try_from(now), Ok)?;
    let rig = Rig::build("cowslip-soak-", json)?;
    // Others may want the machine meanwhile. What is started from here inherits it.
    rustix::process::nice(10)?;
    eprintln!("soak: {seconds} s, seed {seed}, in {}", rig.dir().display());
    let mut world = World::begin(rig, seed)?;
    match soak(&mut world, seed, Duration::from_secs(seconds)) {
        Ok(report) if json => println!("{:#}", report.json()),
        Ok(report) => print!("{}", report.text()),
        Err(error) => {
            eprintln!("{}", world.last_operations());
            let World { rig, .. } = world;
            let dir = rig.keep();
            eprintln!(
                "soak: failed, seed {seed}; all is kept in {}",
                dir.display()
            );
            return Err(error);
        }
    }
    Ok(())
}

fn soak(world: &mut World, seed: u64, time: Duration) -> Result<Report> {
    let begun = Instant::now();
    let mut told = begun;
    let mut operations: u64 = 0;
    while begun.elapsed() < time {
        operations += u64::from(world.step()?);
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            world.measure_store();
            eprintln!("{}", progress(world, begun.elapsed(), operations));
        }
    }
    if operations == 0 {
        bail!("nothing was done in {time:?}");
    }
    eprintln!("soak: all is compared, and removed");
    let took = begun.elapsed();
    world.finish()?;
    Ok(Report::new(world, seed, took, operations))
}

fn progress(world: &World, elapsed: Duration, operations: u64) -> String {
    let count = |what: &str| world.counts.get(what).copied().unwrap_or(0);
    let kills = world
        .counts
        .iter()
        .filter(|(what, _)| what.starts_with("kill"));
    let served = world.sessions.iter().filter(|s| s.server.is_some()).count();
    format!(
        "{:5} s  {operations} operations, {} snapshots, {} forks, {} gc, {} kills, {} compared; now {} of {} \
         sessions served, {} names, {} asked for, {} commands, store {}",
        elapsed.as_secs(),
        count("snapshot"),
        count("fork"),
        count("gc"),
        kills.map(|(_, n)| n).sum::<u64>(),
        bytes(world.compared_bytes),
        served,
        world.sessions.len(),
        world.names.len(),
        world.asked.len(),
        world.jobs.len(),
        bytes(world.store_bytes_now),
    )
}
