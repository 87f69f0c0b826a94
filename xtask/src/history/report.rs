//! What a long history shows, as text, JSON and TSV.

use std::fmt::Write as _;

use cowslip_sim::load::BLOCK;
use cowslip_snapshot::reads::StoreReads;
use serde_json::{Value, json};

use super::History;
use super::curve::{median, quantile, sparkline, tenths};
use super::make::{BLOCKS, Cost};
use super::measure::{LOOKED_UP, Read};
use crate::rig::table::{bytes, table};

const ABOUT: &str = "One session of a disk of 1 GiB whose template has data in every other run of 1 to 16 \
    blocks (a map of one run would be shorter than any later one, and the comparison of look-ups would mean \
    nothing). Between two snapshots 16 scattered blocks of 4 KiB are written, a quarter of them in a hot spot, and \
    now and then some are trimmed. Snapshots and reads in one process, the engine lightly optimised; commands are \
    those of the release build.";

impl History {
    /// A page for docs/measurements.
    pub(super) fn page(&self, where_and_when: &str, arguments: &str) -> String {
        let text = self.text();
        format!(
            "# A long history\n\n{where_and_when}\n\n`cargo xtask history {arguments} --save`. {ABOUT}\n\n{text}"
        )
    }

    /// What each snapshot cost, by what.
    pub(super) fn columns(&self) -> [(&'static str, Vec<f64>); 4] {
        #[expect(clippy::cast_precision_loss, reason = "some thousand bytes")]
        let float = |n: u64| n as f64;
        let both = |c: &Cost| float(c.payload_bytes + c.header_bytes);
        [
            ("payload bytes", self.column(|c| float(c.payload_bytes))),
            ("header bytes", self.column(|c| float(c.header_bytes))),
            ("bytes", self.column(both)),
            ("ms", self.column(|c| c.ms)),
        ]
    }

    pub(super) fn text(&self) -> String {
        let count = self.costs.len();
        let mut text = format!("Added by each of {count} snapshots, medians:\n\n");
        text += &self.added();
        text += "\nOver time, each bar from zero, the median of a fiftieth:\n\n```\n";
        for (what, all) in self.columns() {
            let _ = writeln!(text, "{what:14} {}", sparkline(&all));
        }
        text += "```\n\n";
        if !self.compactions.is_empty() {
            let written = self.compactions.iter().map(|c| c.written_bytes).sum();
            let times: Vec<f64> = self.compactions.iter().map(|c| c.ms).collect();
            let _ = writeln!(
                text,
                "Meanwhile the store was compacted {} times: {} written, {:.0} ms each (median).\n",
                times.len(),
                bytes(written),
                median(&times)
            );
        }
        let _ = writeln!(
            text,
            "{} of them were compared with what was written, every byte ({}).\n\n\
             Reads for one block of 4 KiB, nothing cached, from opening the store on; means of {LOOKED_UP} blocks \
             with data. Then all 1 GiB in order, in a store just opened; ms is the median of 3:\n",
            self.compared,
            bytes(self.compared_bytes)
        );
        let head = [
            "",
            "headers",
            "nodes",
            "layers",
            "frames",
            "sum",
            "all: headers",
            "nodes",
            "layers",
            "frames",
            "ms",
        ];
        text += &table(&head, &self.reads.each_ref().map(Read::row));
        let _ = writeln!(
            text,
            "\nA look-up in number {count} takes {:.2} times the reads of one in number 1.\n\n\
             Commands, in ms with their start; medians of 3, of `snapshot` 5:\n",
            self.ratio()
        );
        let rows = self.commands.iter().map(|(line, before, after)| {
            vec![
                format!("`{line}`"),
                format!("{before:.0}"),
                format!("{after:.0}"),
            ]
        });
        text + &table(
            &["", "1 name", &format!("{count} names")],
            &rows.collect::<Vec<_>>(),
        )
    }

    fn added(&self) -> String {
        let rows = self.columns().map(|(what, all)| {
            let [first, middle, last] = tenths(&all).map(median);
            let digits = usize::from(what == "ms");
            let cell = |n: f64| format!("{n:.digits$}");
            let (low, high) = (cell(quantile(&all, 0.05)), cell(quantile(&all, 0.95)));
            let spread = format!("{low} to {high}");
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
        table(&head, &rows)
    }

    pub(super) fn json(&self) -> Value {
        let medians = self.columns().map(|(what, all)| {
            let [first, middle, last] = tenths(&all).map(median);
            let what = what.replace(' ', "_");
            json!({"what": what, "first_tenth": first, "middle_tenth": middle, "last_tenth": last})
        });
        let compactions = self.compactions.iter();
        let compactions =
            compactions.map(|c| json!({"written_bytes": c.written_bytes, "ms": c.ms}));
        let commands = self.commands.iter().map(|(line, before, after)| {
            json!({"command": line, "one_name_ms": before, "all_names_ms": after})
        });
        json!({
            "snapshots": self.costs.len(),
            "image_bytes": BLOCKS * BLOCK,
            "medians": medians,
            "compactions": compactions.collect::<Vec<_>>(),
            "compared_snapshots": self.compared,
            "compared_bytes": self.compared_bytes,
            "looked_up_blocks": LOOKED_UP,
            "reads": self.reads.each_ref().map(Read::json),
            "look_up_ratio": self.ratio(),
            "commands": commands.collect::<Vec<_>>(),
        })
    }

    pub(super) fn tsv(&self) -> String {
        let mut text = "number\tpayload_bytes\theader_bytes\tms\n".to_owned();
        for (number, cost) in (1..).zip(&self.costs) {
            let (payload, header) = (cost.payload_bytes, cost.header_bytes);
            let _ = writeln!(text, "{number}\t{payload}\t{header}\t{:.2}", cost.ms);
        }
        text
    }
}

fn fields(reads: StoreReads) -> [u64; 4] {
    [reads.headers, reads.nodes, reads.layers, reads.frames]
}

impl Read {
    fn row(&self) -> Vec<String> {
        #[expect(clippy::cast_precision_loss, reason = "some thousand reads")]
        let mean = |n: u64| format!("{:.2}", n as f64 / LOOKED_UP as f64);
        let one = fields(self.look_ups).map(mean);
        let whole = fields(self.whole).map(|n| n.to_string());
        let mut row = vec![self.label.clone()];
        row.extend(one);
        row.push(format!("{:.2}", self.look_up()));
        row.extend(whole);
        row.push(format!("{:.0}", self.whole_ms));
        row
    }

    fn json(&self) -> Value {
        let named = |reads| {
            let [headers, nodes, layers, frames] = fields(reads);
            json!({"headers": headers, "nodes": nodes, "layers": layers, "frames": frames})
        };
        json!({
            "of": self.label,
            "look_ups": named(self.look_ups),
            "whole": named(self.whole),
            "whole_ms": self.whole_ms,
        })
    }
}
