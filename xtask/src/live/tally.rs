//! [`Tally`]: what was snapshotted, of which guests, and what that took.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::life::{Kind, MEMORY_BYTES};
use crate::rig::table::{bytes, table};

const ABOUT: &str = "Guests are processes whose threads write seeded patterns, look at them and give memory back all the time, one or two beside \
    each other, served by `cowslip memory serve`; `cowslip memory snapshot` pauses one and lets it go. Each snapshot was exported and compared with a copy of that guest's memory \
    from the pause, and in the end each guest's own memory was compared. *given back*: snapshots that were refused, since the guest had \
    given back what was not copied yet; they were asked for again. *pause*: as the one who pauses sees it, with the start and the end of a shell.";

/// Of guests of one kind. What is counted in pages are pages of 4 KiB.
#[derive(Default)]
pub(super) struct Row {
    pub(super) guests: u64,
    pub(super) given_back: u64,
    snapshots: u64,
    sums: BTreeMap<&'static str, u64>,
    pauses: Vec<Duration>,
}

/// What a snapshot says of itself, and how a table calls it.
const COUNTED: [(&str, &str); 8] = [
    ("looked_at_pages", "looked at"),
    ("changed_pages", "changed"),
    ("zero_pages", "zero"),
    ("same_pages", "as before"),
    ("disk_pages", "on disk"),
    ("delta_pages", "deltas"),
    ("payload_pages", "stored"),
    ("stored_bytes", "bytes"),
];

/// See the module.
#[derive(Default)]
pub(super) struct Tally {
    rows: BTreeMap<Kind, Row>,
    pub(super) took: Duration,
    pub(super) compared_bytes: u64,
    pub(super) collections: u64,
    pub(super) compactions: u64,
    pub(super) store_bytes_peak: u64,
}

impl Tally {
    pub(super) fn of(&mut self, kind: Kind) -> &mut Row {
        self.rows.entry(kind).or_default()
    }

    pub(super) fn taken(&mut self, kind: Kind, taken: &Value, pause: Duration) -> Result<()> {
        let row = self.of(kind);
        row.snapshots += 1;
        row.pauses.push(pause);
        for (field, _) in COUNTED {
            *row.sums.entry(field).or_default() += taken[field].as_u64().context(field)?;
        }
        Ok(())
    }

    pub(super) fn snapshots(&self) -> usize {
        let all: u64 = self.rows.values().map(|row| row.snapshots).sum();
        usize::try_from(all).expect("some thousand")
    }

    pub(super) fn line(&self, of: usize) -> String {
        let guests: u64 = self.rows.values().map(|row| row.guests).sum();
        format!(
            "{} of {of} snapshots, {guests} guests, {} compared, store {} at most; lost: 0",
            self.snapshots(),
            bytes(self.compared_bytes),
            bytes(self.store_bytes_peak)
        )
    }

    pub(super) fn text(&self, seed: u64) -> String {
        let rows = self.rows.iter().map(|(kind, row)| {
            let mut cells = vec![kind.name.to_owned()];
            cells.extend([row.guests, row.snapshots, row.given_back].map(|n| n.to_string()));
            cells.extend(COUNTED.map(|(field, _)| {
                let sum = row.sums.get(field).copied().unwrap_or(0);
                if field.ends_with("_bytes") {
                    bytes(sum)
                } else {
                    sum.to_string()
                }
            }));
            cells.extend([row.middle(), row.longest()].map(ms));
            cells
        });
        let mut head = vec!["guests", "started", "snapshots", "given back"];
        head.extend(COUNTED.map(|(_, what)| what));
        head.extend(["pause ms", "longest"]);
        format!(
            "{}\nlive: seed {seed}, {} s, {} snapshots of {} each, pages of 4 KiB; {} compared.\n\
             Lost: 0. Left over: 0. {} collections, {} compactions meanwhile; the store took {} at most.\n",
            table(&head, &rows.collect::<Vec<_>>()),
            self.took.as_secs(),
            self.snapshots(),
            bytes(MEMORY_BYTES as u64),
            bytes(self.compared_bytes),
            self.collections,
            self.compactions,
            bytes(self.store_bytes_peak),
        )
    }

    pub(super) fn page(&self, where_and_when: &str, arguments: &str) -> String {
        let seed = arguments
            .rsplit(' ')
            .next()
            .and_then(|seed| seed.parse().ok());
        let text = self.text(seed.unwrap_or(0));
        format!(
            "# Snapshots of guests that go on\n\n{where_and_when}\n\n`cargo xtask live {arguments} --save`. {ABOUT}\n\n{text}"
        )
    }

    pub(super) fn json(&self, seed: u64) -> Value {
        let rows = self.rows.iter().map(|(kind, row)| {
            json!({
                "kvm": kind.is_virtual,
                "tracked": kind.is_tracked,
                "page_size_bytes": if kind.is_huge { 2 << 20 } else { 4096 },
                "guests": row.guests,
                "snapshots": row.snapshots,
                "given_back": row.given_back,
                "sums": row.sums,
                "pause_ms": row.middle().as_secs_f64() * 1e3,
                "longest_pause_ms": row.longest().as_secs_f64() * 1e3,
            })
        });
        json!({
            "seed": seed,
            "took_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "memory_bytes": MEMORY_BYTES,
            "kinds": rows.collect::<Vec<_>>(),
            "compared_bytes": self.compared_bytes,
            "collections": self.collections,
            "compactions": self.compactions,
            "store_peak_bytes": self.store_bytes_peak,
            "lost": 0,
            "left_over": 0,
        })
    }
}

impl Row {
    fn middle(&self) -> Duration {
        let mut all = self.pauses.clone();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    }

    fn longest(&self) -> Duration {
        self.pauses.iter().max().copied().unwrap_or_default()
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}
