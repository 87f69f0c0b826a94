//! `cargo xtask live [SNAPSHOTS] [--seed N] [--quick] [--json] [--save]`: snapshots of guests that go on writing; each must hold what
//! their memory was when they were paused.
//!
//! A guest is a process of its own (`crates/vmm`), served by `cowslip memory serve`: its threads write, look and give memory back all
//! the time, and keep a shadow of each byte in a file, which is copied at the freeze. Lives follow each other: a server of some snapshot that is left,
//! one or two guests of it, some snapshots of them over one another; then the guests' own memory is compared with its shadow, and they end, with their server
//! or by it. Each snapshot is exported and compared. Meanwhile names are removed, the store is collected and compacted; in the end nothing may be left.
//!
//! - `world.rs`: what there is, and what is done;  `life.rs`: a server and its guests;  `freeze.rs`: one snapshot;  `tally.rs`: what came of it.
//!
//! A finding keeps the directory.

mod freeze;
mod life;
mod tally;
mod world;

use std::time::SystemTime;

use anyhow::{Context, Result};
use cowslip_vmm::HugePages;

use self::life::{HUGE_PAGES, KINDS, Kind};
use self::world::World;
use crate::machine;
use crate::rig::Rig;
use crate::run::save;

const USAGE: &str = "usage: cargo xtask live [SNAPSHOTS] [--seed N] [--quick] [--json] [--save]";
/// What `--quick` takes.
const QUICK: usize = 12;

struct Options {
    snapshots: usize,
    seed: u64,
    json: bool,
    save: bool,
}

fn options(args: &[&str]) -> Option<Options> {
    let now = SystemTime::UNIX_EPOCH.elapsed().ok()?.as_secs();
    let mut options = Options {
        snapshots: 1000,
        seed: now,
        json: false,
        save: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--json" => options.json = true,
            "--save" => options.save = true,
            "--seed" => options.seed = args.next()?.parse().ok()?,
            "--quick" => options.snapshots = QUICK,
            count => options.snapshots = count.parse().ok().filter(|n| *n > 0)?,
        }
    }
    Some(options)
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let options = options(args).context(USAGE)?;
    let where_and_when = machine::describe();
    let lent = HugePages::lent(HUGE_PAGES);
    let kinds: Vec<Kind> = KINDS.into_iter().filter(Kind::is_possible).collect();
    if kinds.is_empty() {
        return Ok(());
    }
    // The command that tests have built: it asserts more.
    let rig = Rig::build_as("cowslip-live-", options.json, false)?;
    // Others may want the machine meanwhile. What is started from here inherits it.
    rustix::process::nice(10)?;
    let seed = options.seed;
    eprintln!(
        "live: {} snapshots, seed {seed}, in {}",
        options.snapshots,
        rig.dir().display()
    );
    let mut world = World::begin(rig, seed)?;
    let ended = world.live(&kinds, options.snapshots);
    drop(lent);
    if let Err(error) = ended {
        eprintln!("{}", world.story.last());
        let dir = world.rig.keep();
        eprintln!(
            "live: failed, seed {seed}; all is kept in {}",
            dir.display()
        );
        return Err(error);
    }
    match options.json {
        true => println!("{:#}", world.tally.json(seed)),
        false => print!("\n{}", world.tally.text(seed)),
    }
    if options.save {
        let page = world.tally.page(
            &where_and_when,
            &format!("{} --seed {seed}", options.snapshots),
        );
        save(&format!("live-{}.md", machine::today()), &page)?;
    }
    Ok(())
}
