//! `cargo xtask history [SNAPSHOTS]`: a long history of one session: what each snapshot adds, whether
//! each is what was written, and what number N costs whoever reads it, beside number 1.
//!
//! The disk has 1 GiB, and data in every other run of its template (see `cowslip_sim::load`): the maps of
//! number 1 and number N are of the same height. Snapshots are taken in this process, one after the
//! other; look-ups are counted, each in a store that was just opened. Two promises are held: what a
//! snapshot adds is flat, and a look-up takes at most 1.2 times as many reads at the end.
//!
//! - `make.rs`: the history;  `measure.rs`: what it costs;  `curve.rs`: medians and bars.

mod curve;
mod make;
mod measure;

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use cowslip_sim::load::{BLOCK, Load};
use cowslip_snapshot::reads::StoreReads;
use serde_json::{Value, json};

use self::curve::{median, quantile, sparkline, tenths};
use self::make::{BLOCKS, Cost, name};
use self::measure::{LOOKED_UP, Whole};
use crate::machine;
use crate::rig::Rig;
use crate::rig::table::{bytes, table};
use crate::run::save;

const USAGE: &str =
    "usage: cargo xtask history [SNAPSHOTS] [--seed N] [--tsv FILE] [--keep] [--json] [--save]";
/// Snapshots that are compared wholly.
const SAMPLES: usize = 100;
/// The last tenth against the first, and number N against number 1.
const AT_MOST: f64 = 1.2;

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut count, mut seed, mut tsv) = (10_000, 1, None);
    let (mut keep, mut as_json, mut saving) = (false, false, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--json" => as_json = true,
            "--keep" => keep = true,
            "--save" => saving = true,
            "--tsv" => tsv = Some(*args.next().context(USAGE)?),
            "--seed" => seed = args.next().and_then(|n| n.parse().ok()).context(USAGE)?,
            number => count = number.parse().ok().filter(|n| *n >= 10).context(USAGE)?,
        }
    }
    let where_and_when = machine::describe();
    let rig = Rig::build("cowslip-history-", as_json)?;
    let history = History::measure(&rig, count, seed)?;
    if keep {
        eprintln!("kept: {}", rig.keep().display());
    }
    if let Some(path) = tsv {
        std::fs::write(path, history.tsv()).with_context(|| path.to_owned())?;
    }
    if as_json {
        println!("{:#}", history.json());
    } else {
        print!("\n{}", history.text());
    }
    if saving {
        let page = format!(
            "# A long history\n\n{where_and_when}\n\n`cargo xtask history {count} --seed {seed} --save`. {ABOUT}\n\n{}",
            history.text()
        );
        save(&format!("history-{}.md", machine::today()), &page)?;
    }
    history.check()
}

const ABOUT: &str = "One session of a disk of 1 GiB whose template has data in every other run of 1 to 16 \
    blocks (a map of one run would be shorter than any later one, and the comparison of look-ups would mean \
    nothing); 16 scattered blocks of 4 KiB between two snapshots, a quarter of them in a hot spot, now and then a \
    trim. In this process, engine lightly optimised, files on disk; commands by the release build.";

/// All that was measured.
struct History {
    costs: Vec<Cost>,
    compared: usize,
    compared_bytes: u64,
    /// Of number 1, and of number N.
    look_ups: [StoreReads; 2],
    whole: [Whole; 2],
    /// Of number N, once it was compacted.
    compacted: Option<(StoreReads, Whole)>,
    /// Command lines, and milliseconds with two names and with all of them.
    commands: Vec<(String, f64, f64)>,
}

impl History {
    fn measure(rig: &Rig, count: usize, seed: u64) -> Result<Self> {
        let mut load = Load::new(seed, BLOCKS);
        make::import(rig, &load)?;
        let before = commands(rig, 0, "first")?;
        let costs = make::snapshots(rig, &mut load, count)?;
        eprintln!("comparing {SAMPLES} snapshots");
        let step = (count / SAMPLES).max(1);
        let mut numbers: Vec<usize> = (1..=count).step_by(step).chain([count]).collect();
        numbers.dedup();
        let mut compared_bytes = 0;
        for number in &numbers {
            compared_bytes += measure::compare(rig, &load, *number)?;
        }
        eprintln!("looking up, reading, running commands");
        let of = |number| measure::look_ups(rig, &load, number);
        let look_ups = [of(1)?, of(count)?];
        let whole = [
            measure::read_whole(rig, 1)?,
            measure::read_whole(rig, count)?,
        ];
        let after = commands(rig, count, "last")?;
        let both = before.into_iter().zip(after);
        let commands = both.map(|((line, before), (_, after))| (line, before, after));
        let commands = commands.collect();
        let compacted = match rig.ok("compact --help") {
            Err(_) => None,
            Ok(_) => {
                rig.ok(&format!("compact {} --quiet", name(count)))?;
                compared_bytes += measure::compare(rig, &load, count)?;
                Some((of(count)?, measure::read_whole(rig, count)?))
            }
        };
        Ok(Self {
            costs,
            compared: numbers.len(),
            compared_bytes,
            look_ups,
            whole,
            compacted,
            commands,
        })
    }

    fn column(&self, of: impl Fn(&Cost) -> f64) -> Vec<f64> {
        self.costs.iter().map(of).collect()
    }

    /// What each snapshot cost, by what.
    fn columns(&self) -> [(&'static str, Vec<f64>); 4] {
        #[expect(clippy::cast_precision_loss, reason = "some thousand bytes")]
        let float = |n: u64| n as f64;
        [
            ("payload bytes", self.column(|c| float(c.payload_bytes))),
            ("header bytes", self.column(|c| float(c.header_bytes))),
            (
                "bytes",
                self.column(|c| float(c.payload_bytes + c.header_bytes)),
            ),
            ("ms", self.column(|c| c.ms)),
        ]
    }

    fn text(&self) -> String {
        let count = self.costs.len();
        let mut text = format!("Added by each of {count} snapshots, medians:\n\n");
        let rows = self.columns().map(|(what, all)| {
            let [first, middle, last] = tenths(&all).map(median);
            let digits = usize::from(what == "ms");
            let cell = |n: f64| format!("{n:.digits$}");
            let spread = format!(
                "{} to {}",
                cell(quantile(&all, 0.05)),
                cell(quantile(&all, 0.95))
            );
            vec![
                what.to_owned(),
                cell(first),
                cell(middle),
                cell(last),
                spread,
            ]
        });
        let head = [
            "",
            "first tenth",
            "middle tenth",
            "last tenth",
            "5 to 95 % of all",
        ];
        text += &table(&head, &rows);
        text += "\nOver time, each bar from zero, the median of a fiftieth:\n\n```\n";
        for (what, all) in self.columns() {
            let _ = writeln!(text, "{what:14} {}", sparkline(&all));
        }
        let _ = write!(
            text,
            "```\n\n{} of them were compared with what was written, every byte ({}).\n\n",
            self.compared,
            bytes(self.compared_bytes)
        );
        let _ = writeln!(
            text,
            "Reads for one block of 4 KiB, nothing cached, from opening the store on; means of {LOOKED_UP} blocks \
             with data. Then reading all 1 GiB in order, in a store just opened:\n"
        );
        text += &table(
            &[
                "",
                "headers",
                "nodes",
                "layers",
                "frames",
                "sum",
                "whole: headers",
                "nodes",
                "layers",
                "frames",
                "ms",
            ],
            &self.read_rows(),
        );
        let _ = write!(
            text,
            "\nA look-up in number {count} takes {:.2} times the reads of one in number 1.\n\n\
             Commands, in ms with their start, medians of 3 (of `snapshot` 5):\n\n",
            self.ratio()
        );
        let rows = self.commands.iter().map(|(line, before, after)| {
            vec![
                format!("`{line}`"),
                format!("{before:.0}"),
                format!("{after:.0}"),
            ]
        });
        text += &table(
            &["", "1 name", &format!("{count} names")],
            &rows.collect::<Vec<_>>(),
        );
        text
    }

    fn read_rows(&self) -> Vec<Vec<String>> {
        let count = self.costs.len();
        let compacted = self
            .compacted
            .iter()
            .map(|(reads, whole)| (format!("{count}, compacted"), reads, whole));
        let plain = ["1".to_owned(), count.to_string()]
            .into_iter()
            .zip(&self.look_ups)
            .zip(&self.whole);
        let rows = plain
            .map(|((number, reads), whole)| (number, reads, whole))
            .chain(compacted);
        let row = |(number, reads, whole): (String, &StoreReads, &Whole)| {
            #[expect(clippy::cast_precision_loss, reason = "some thousand reads")]
            let mean = |n: u64| format!("{:.2}", n as f64 / LOOKED_UP as f64);
            let one = [
                reads.headers,
                reads.nodes,
                reads.layers,
                reads.frames,
                reads.total(),
            ]
            .map(mean);
            let all = [
                whole.reads.headers,
                whole.reads.nodes,
                whole.reads.layers,
                whole.reads.frames,
            ];
            let all = all
                .iter()
                .map(u64::to_string)
                .chain([format!("{:.0}", whole.ms)]);
            [format!("number {number}")]
                .into_iter()
                .chain(one)
                .chain(all)
                .collect()
        };
        rows.map(row).collect()
    }

    fn ratio(&self) -> f64 {
        let [first, last] = self.look_ups.map(StoreReads::total);
        #[expect(clippy::cast_precision_loss, reason = "some thousand reads")]
        let ratio = last as f64 / first as f64;
        ratio
    }

    fn json(&self) -> Value {
        let reads = |r: &StoreReads| json!({"headers": r.headers, "nodes": r.nodes, "layers": r.layers, "frames": r.frames});
        let whole = |w: &Whole| json!({"reads": reads(&w.reads), "ms": w.ms});
        let medians = self.columns().map(|(what, all)| {
            let [first, middle, last] = tenths(&all).map(median);
            let what = what.replace(' ', "_");
            json!({"what": what, "first_tenth": first, "middle_tenth": middle, "last_tenth": last})
        });
        json!({
            "snapshots": self.costs.len(),
            "image_bytes": BLOCKS * BLOCK,
            "medians": medians,
            "compared_snapshots": self.compared,
            "compared_bytes": self.compared_bytes,
            "looked_up_blocks": LOOKED_UP,
            "look_ups_first": reads(&self.look_ups[0]),
            "look_ups_last": reads(&self.look_ups[1]),
            "look_ups_ratio": self.ratio(),
            "whole_first": whole(&self.whole[0]),
            "whole_last": whole(&self.whole[1]),
            "look_ups_compacted": self.compacted.as_ref().map(|(r, _)| reads(r)),
            "whole_compacted": self.compacted.as_ref().map(|(_, w)| whole(w)),
            "commands_ms": self.commands.iter()
                .map(|(line, before, after)| json!({"command": line, "one_name": before, "all_names": after}))
                .collect::<Vec<_>>(),
        })
    }

    fn tsv(&self) -> String {
        let mut text = "number\tpayload_bytes\theader_bytes\tms\n".to_owned();
        for (number, cost) in (1..).zip(&self.costs) {
            let Cost {
                payload_bytes,
                header_bytes,
                ms,
            } = cost;
            let _ = writeln!(text, "{number}\t{payload_bytes}\t{header_bytes}\t{ms:.2}");
        }
        text
    }

    /// The two promises.
    fn check(&self) -> Result<()> {
        for (what, all) in &self.columns()[..3] {
            let [first, _, last] = tenths(all).map(median);
            if last > first * AT_MOST {
                bail!("{what}: {first:.0} in the beginning, {last:.0} at the end: not flat");
            }
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

/// What commands take on the store as it is; the snapshots that this takes are removed again.
fn commands(rig: &Rig, number: usize, label: &str) -> Result<Vec<(String, f64)>> {
    let mut all = Vec::new();
    let name = name(number);
    let lines = ["ls", "log NAME", "inspect NAME", "gc", "verify NAME"];
    for line in lines {
        let typed = line.replace("NAME", name.as_str());
        all.push((line.to_owned(), measure::command(rig, &typed)?));
    }
    all.push((
        "snapshot".to_owned(),
        measure::snapshot_command(rig, number, label)?,
    ));
    Ok(all)
}
