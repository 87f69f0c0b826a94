//! `cargo xtask footprint [ROUNDS]`: a guest that rewrites its disk for ever, snapshotted after each round,
//! the older name removed, `gc` and `compact --auto` run: what the store takes beside what is needed, and
//! what was written to it beside what came in.
//!
//! Two patterns, each with data that does not compress: the whole disk in order, and as many bytes at
//! random, half of them in writes of 64 KiB and half of 4 KiB, so that older layers stay partly used.
//!
//! Held are: after each round the store takes at most 1.3 times the bytes of the one image that is left;
//! in the end at most 1.5 times what the snapshots stored as payload was written to it.
//!
//! - `guest.rs`: what is written;  `round.rs`: one round, and what is measured;  `report.rs`.

mod guest;
mod report;
mod round;

use anyhow::{Context, Result, bail};

use self::guest::{Guest, Pattern};
use self::round::{Round, Stage};
use crate::machine;
use crate::rig::Rig;
use crate::rig::table::bytes;
use crate::run::save;

const USAGE: &str = "usage: cargo xtask footprint [ROUNDS] [--size MIB] [--pattern whole|random] [--seed N] \
    [--json] [--save]";
/// Store against live bytes, after each round.
const STORE_AT_MOST: f64 = 1.3;
/// Written against stored as payload by the snapshots.
const WRITTEN_AT_MOST: f64 = 1.5;

struct Options {
    rounds: usize,
    size_mib: usize,
    patterns: Vec<Pattern>,
    seed: u64,
    json: bool,
    save: bool,
}

fn options(args: &[&str]) -> Option<Options> {
    let mut options = Options {
        rounds: 50,
        size_mib: 1024,
        patterns: vec![Pattern::Whole, Pattern::Random],
        seed: 1,
        json: false,
        save: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--json" => options.json = true,
            "--save" => options.save = true,
            "--seed" => options.seed = args.next()?.parse().ok()?,
            "--size" => options.size_mib = args.next()?.parse().ok().filter(|n| *n > 0)?,
            "--pattern" => options.patterns = vec![Pattern::named(args.next()?)?],
            "--rounds" => options.rounds = args.next()?.parse().ok().filter(|n| *n > 0)?,
            rounds => options.rounds = rounds.parse().ok().filter(|n| *n > 0)?,
        }
    }
    Some(options)
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let options = options(args).context(USAGE)?;
    let where_and_when = machine::describe();
    let mut all = Vec::new();
    for pattern in &options.patterns {
        all.push(Footprint::measure(&options, *pattern)?);
    }
    match options.json {
        true => println!("{:#}", report::json(&all)),
        false => all.iter().for_each(|one| print!("\n{}", one.text())),
    }
    if options.save {
        let page = report::page(&where_and_when, &options, &all);
        save(&format!("footprint-{}.md", machine::today()), &page)?;
    }
    all.iter().try_for_each(Footprint::check)
}

/// All rounds of one pattern.
struct Footprint {
    pattern: Pattern,
    size_bytes: u64,
    rounds: Vec<Round>,
    seconds: f64,
}

impl Footprint {
    fn measure(options: &Options, pattern: Pattern) -> Result<Self> {
        let begun = std::time::Instant::now();
        let rig = Rig::build("cowslip-footprint-", options.json)?;
        let size_bytes = (options.size_mib << 20) as u64;
        let mut guest = Guest::new(pattern, options.size_mib, options.seed);
        let mut stage = Stage::set(&rig, size_bytes)?;
        let mut rounds: Vec<Round> = Vec::new();
        for number in 1..=options.rounds {
            let round = stage.round(&mut guest, number)?;
            eprintln!(
                "{} {number:3} of {}: {}",
                pattern.name(),
                options.rounds,
                round.line()
            );
            rounds.push(round);
        }
        stage.compare(&guest)?;
        eprintln!(
            "the image that is left is what was written, every byte ({})",
            bytes(size_bytes)
        );
        stage.end()?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Self {
            pattern,
            size_bytes,
            rounds,
            seconds,
        })
    }

    fn check(&self) -> Result<()> {
        let most = self.rounds.iter().map(Round::ratio).fold(0.0, f64::max);
        if most > STORE_AT_MOST {
            bail!(
                "{}: the store takes {most:.2} times the live bytes",
                self.pattern.name()
            );
        }
        let written = self.written_ratio();
        if written > WRITTEN_AT_MOST {
            bail!(
                "{}: {written:.2} times the stored bytes were written",
                self.pattern.name()
            );
        }
        Ok(())
    }

    fn total(&self, of: impl Fn(&Round) -> u64) -> u64 {
        self.rounds.iter().map(of).sum()
    }

    /// Bytes written to the store for each byte that a snapshot stored as payload.
    fn written_ratio(&self) -> f64 {
        round::ratio(
            self.total(Round::written_bytes),
            self.total(|r| r.payload_bytes),
        )
    }
}
