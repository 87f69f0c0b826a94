//! What the rounds show, as text, JSON and a page.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::round::{Round, ratio};
use super::{Footprint, Options, STORE_AT_MOST, WRITTEN_AT_MOST};
use crate::rig::table::{bytes, table};

/// So many rounds are shown, evenly spread.
const ROWS: usize = 12;

const ABOUT: &str = "A real server, one connection over NBD, files on disk. After each round: a snapshot, the older \
    name removed, `gc`, `compact --auto`. *live* is what the one image that is left holds, in blocks that are not \
    zero; *store* is what the store takes on disk (du), with removed files that the server still has open; *peak* is the \
    most within the round, in which two images are needed for a while; *stored* is what the snapshot stored, payload and \
    header; *compacted* what compaction wrote.";

pub(super) fn page(where_and_when: &str, options: &Options, all: &[Footprint]) -> String {
    let (rounds, size) = (options.rounds, options.size_mib);
    let mut page = format!(
        "# The footprint of a disk that is rewritten for ever\n\n{where_and_when}\n\n\
         `cargo xtask footprint {rounds} --size {size} --seed {} --save`. {ABOUT}\n",
        options.seed
    );
    for one in all {
        let _ = write!(page, "\n{}", one.text());
    }
    page
}

pub(super) fn json(all: &[Footprint]) -> Value {
    all.iter().map(Footprint::json).collect()
}

impl Footprint {
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "## {}\n\n{} rounds of {}, {:.0} s.\n\n",
            self.pattern.name(),
            self.rounds.len(),
            bytes(self.size_bytes),
            self.seconds
        );
        let step = self.rounds.len().div_ceil(ROWS).max(1);
        let last = self.rounds.len();
        let shown = (1..).zip(&self.rounds);
        let shown =
            shown.filter(|(number, _)| number % step == 0 || *number == 1 || *number == last);
        let rows: Vec<_> = shown.map(|(number, round)| row(number, round)).collect();
        let head = [
            "round",
            "live",
            "store",
            "store / live",
            "peak",
            "stored",
            "compacted",
            "guest s",
            "snapshot s",
            "gc s",
            "compact s",
        ];
        text += &table(&head, &rows);
        let mut ratios: Vec<f64> = self.rounds.iter().map(Round::ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (middle, most) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        let payload = self.total(|r| r.payload_bytes);
        let written = self.total(Round::written_bytes);
        let peak = self
            .rounds
            .iter()
            .map(|r| ratio(r.peak_bytes, r.live_bytes))
            .fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "\nStore / live after a round: median {middle:.2}, most {most:.2} (at most {STORE_AT_MOST}); within a round \
             {peak:.2} at the most, with two images for a while.\n\
             Written to the store: {} for {} stored as payload: {:.2} (at most {WRITTEN_AT_MOST}); the guest wrote {}: {:.2}.",
            bytes(written),
            bytes(payload),
            self.written_ratio(),
            bytes(self.total(|r| r.guest_bytes)),
            ratio(written, self.total(|r| r.guest_bytes)),
        );
        text
    }

    fn json(&self) -> Value {
        let rounds = self.rounds.iter().map(|r| {
            json!({
                "guest_bytes": r.guest_bytes,
                "payload_bytes": r.payload_bytes,
                "header_bytes": r.header_bytes,
                "compacted_bytes": r.compacted_bytes,
                "live_bytes": r.live_bytes,
                "store_bytes": r.store_bytes,
                "removed_open_bytes": r.held_bytes,
                "peak_bytes": r.peak_bytes,
                "guest_ms": r.guest_ms,
                "snapshot_ms": r.snapshot_ms,
                "gc_ms": r.gc_ms,
                "compact_ms": r.compact_ms,
            })
        });
        json!({
            "pattern": self.pattern.name(),
            "size_bytes": self.size_bytes,
            "rounds": rounds.collect::<Vec<_>>(),
            "written_bytes": self.total(Round::written_bytes),
            "payload_bytes": self.total(|r| r.payload_bytes),
            "guest_bytes": self.total(|r| r.guest_bytes),
            "took_ms": self.seconds * 1e3,
        })
    }
}

fn row(number: usize, round: &Round) -> Vec<String> {
    let seconds = |ms: f64| format!("{:.1}", ms / 1e3);
    vec![
        number.to_string(),
        bytes(round.live_bytes),
        bytes(round.store_bytes + round.held_bytes),
        format!("{:.2}", round.ratio()),
        bytes(round.peak_bytes),
        bytes(round.payload_bytes + round.header_bytes),
        bytes(round.compacted_bytes),
        seconds(round.guest_ms),
        seconds(round.snapshot_ms),
        seconds(round.gc_ms),
        seconds(round.compact_ms),
    ]
}
