//! `cargo xtask history [SNAPSHOTS]`: a long history of one session: what each snapshot adds, whether
//! each is what was written, and what number N costs whoever reads it, beside number 1.
//!
//! The disk has 1 GiB, and data in every other run of its template (see `cowslip_sim::load`): the maps of
//! number 1 and number N are of the same height. Snapshots are taken in this process, one after the
//! other; look-ups are counted, each in a store that was just opened.
//!
//! Held are: each that is compared is what was written; what a snapshot adds does not grow with how
//! many there are; a look-up takes at most 1.2 times as many reads at the end.
//!
//! - `make.rs`: the history;  `measure.rs`: what it costs;  `curve.rs`: medians and bars;  `report.rs`.

mod curve;
mod make;
mod measure;
mod report;

use anyhow::{Context, Result, bail};
use cowslip_sim::load::Load;

use self::curve::{median, tenths};
use self::make::{BLOCKS, Compaction, Cost, name};
use self::measure::Read;
use crate::machine;
use crate::rig::Rig;
use crate::run::save;

const USAGE: &str = "usage: cargo xtask history [SNAPSHOTS] [--compact-every N | --never-compact] [--seed N] [--tsv FILE] \
    [--keep] [--json] [--save]";
/// Snapshots that are compared wholly.
const SAMPLES: usize = 100;
/// The end against the beginning: what a look-up reads, and what a snapshot adds, payload and header
/// together. Of that the header alone grows for a while: a leaf of the map names each layer that it
/// points to, 16 bytes each, and scattered writes lead to ever more of them, until every block of a leaf
/// is another layer's, or a compaction makes few of many.
const AT_MOST: f64 = 1.2;

struct Options {
    count: usize,
    compact_every: Option<usize>,
    seed: u64,
    tsv: Option<String>,
    keep: bool,
    json: bool,
    save: bool,
}

fn options(args: &[&str]) -> Option<Options> {
    let mut options = Options {
        count: 10_000,
        compact_every: Some(500),
        seed: 1,
        tsv: None,
        keep: false,
        json: false,
        save: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--json" => options.json = true,
            "--keep" => options.keep = true,
            "--save" => options.save = true,
            "--tsv" => options.tsv = Some((*args.next()?).to_owned()),
            "--seed" => options.seed = args.next()?.parse().ok()?,
            "--never-compact" => options.compact_every = None,
            "--compact-every" => {
                let every = args.next()?.parse().ok().filter(|n| *n > 0);
                options.compact_every = Some(every?);
            }
            count => options.count = count.parse().ok().filter(|n| *n >= 10)?,
        }
    }
    Some(options)
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let options = options(args).context(USAGE)?;
    let where_and_when = machine::describe();
    let rig = Rig::build("cowslip-history-", options.json)?;
    let history = History::measure(&rig, &options)?;
    if options.keep {
        eprintln!("kept: {}", rig.keep().display());
    }
    if let Some(path) = &options.tsv {
        std::fs::write(path, history.tsv()).with_context(|| path.clone())?;
    }
    match options.json {
        true => println!("{:#}", history.json()),
        false => print!("\n{}", history.text()),
    }
    if options.save {
        let (suffix, arguments) = match options.compact_every {
            Some(every) => ("", format!(" --compact-every {every}")),
            None => ("-never-compacted", " --never-compact".to_owned()),
        };
        let page = history.page(&where_and_when, &format!("{}{arguments}", options.count));
        save(&format!("history{suffix}-{}.md", machine::today()), &page)?;
    }
    history.check()
}

/// All that was measured.
struct History {
    costs: Vec<Cost>,
    compactions: Vec<Compaction>,
    compared: usize,
    compared_bytes: u64,
    /// Of number 1, of number N, and of number N once it was compacted.
    reads: [Read; 3],
    /// Command lines, and milliseconds with one name and with all of them.
    commands: Vec<(&'static str, f64, f64)>,
}

impl History {
    fn measure(rig: &Rig, options: &Options) -> Result<Self> {
        let count = options.count;
        let mut load = Load::new(options.seed, BLOCKS);
        make::import(rig, &load)?;
        let before = measure::commands(rig, 0, "first")?;
        let (costs, compactions) = make::snapshots(rig, &mut load, count, options.compact_every)?;
        eprintln!("comparing {SAMPLES} snapshots");
        let step = (count / SAMPLES).max(1);
        let mut numbers: Vec<usize> = (1..=count).step_by(step).chain([count]).collect();
        numbers.dedup();
        let mut compared_bytes = 0;
        for number in &numbers {
            compared_bytes += measure::compare(rig, &load, *number)?;
        }
        eprintln!("looking up, reading, running commands, compacting");
        let first = Read::measure(rig, &load, 1, "number 1".into())?;
        let last = Read::measure(rig, &load, count, format!("number {count}"))?;
        let after = measure::commands(rig, count, "last")?;
        let both = before.into_iter().zip(after);
        let commands = both.map(|((line, before), (_, after))| (line, before, after));
        let commands = commands.collect();
        rig.ok(&format!("compact {} --quiet", name(count)))?;
        compared_bytes += measure::compare(rig, &load, count)?;
        let compacted = Read::measure(rig, &load, count, "the same, compacted".into())?;
        Ok(Self {
            costs,
            compactions,
            compared: numbers.len(),
            compared_bytes,
            reads: [first, last, compacted],
            commands,
        })
    }

    fn column(&self, of: impl Fn(&Cost) -> f64) -> Vec<f64> {
        self.costs.iter().map(of).collect()
    }

    /// How many times the reads of a look-up in number 1 one in number N takes.
    fn ratio(&self) -> f64 {
        let [first, last, _] = &self.reads;
        last.look_up() / first.look_up()
    }

    fn check(&self) -> Result<()> {
        let [_, _, (_, sum), _] = self.columns();
        let [first, _, last] = tenths(&sum).map(median);
        if last > first * AT_MOST {
            bail!("{first:.0} bytes a snapshot in the beginning, {last:.0} at the end: not flat");
        }
        if self.ratio() > AT_MOST {
            bail!(
                "a look-up at the end takes {:.2} times the reads",
                self.ratio()
            );
        }
        Ok(())
    }
}
