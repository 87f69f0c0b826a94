//! [`Tally`]: what was tried, how often, and what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::table::{bytes, table};

#[derive(Default)]
struct Row {
    times: u64,
    operations: u64,
    errors: u64,
    longest: Duration,
}

/// See the module.
#[derive(Default)]
pub(super) struct Tally {
    rows: BTreeMap<String, Row>,
    pub(super) rounds: u64,
    pub(super) servers: u64,
    pub(super) snapshots: u64,
    pub(super) cold: u64,
}

/// What else the end says.
pub(super) struct Sums {
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) operations: u64,
    pub(super) compared_bytes: u64,
    /// The first that was lost, or that hung, or leaked.
    pub(super) finding: Option<String>,
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Tally {
    pub(super) fn begin(&mut self, fault: &str) {
        self.rows.entry(fault.to_owned()).or_default().times += 1;
    }

    pub(super) fn over(&mut self, fault: &str, operations: u64, errors: u64, took: Duration) {
        let row = self.rows.entry(fault.to_owned()).or_default();
        row.operations += operations;
        row.errors += errors;
        row.longest = row.longest.max(took);
    }

    pub(super) fn faults(&self) -> u64 {
        self.rows.values().map(|row| row.times).sum()
    }

    pub(super) fn text(&self, sums: &Sums) -> String {
        let lost = u64::from(sums.finding.is_some());
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(name, row)| {
                vec![
                    name.clone(),
                    row.times.to_string(),
                    row.operations.to_string(),
                    row.errors.to_string(),
                    "0".to_owned(),
                    ms(row.longest).to_string(),
                ]
            })
            .collect();
        let head = [
            "fault",
            "times",
            "operations meanwhile",
            "errors told to clients",
            "lost",
            "longest recovery ms",
        ];
        format!(
            "\n{}\ntorture: seed {}, {} s, {} rounds, {} faults, {} servers, {} operations; {} compared, {} \
             snapshots compared, {} times from cold.\nLost: {lost}.\n",
            table(&head, &rows),
            sums.seed,
            sums.took.as_secs(),
            self.rounds,
            self.faults(),
            self.servers,
            sums.operations,
            bytes(sums.compared_bytes),
            self.snapshots,
            self.cold,
        )
    }

    pub(super) fn json(&self, sums: &Sums) -> Value {
        let rows = self.rows.iter().map(|(name, row)| {
            json!({
                "fault": name,
                "times": row.times,
                "operations": row.operations,
                "errors": row.errors,
                "lost": 0,
                "longest_recovery_ms": ms(row.longest),
            })
        });
        json!({
            "seed": sums.seed,
            "took_ms": ms(sums.took),
            "rounds": self.rounds,
            "faults": rows.collect::<Vec<_>>(),
            "servers": self.servers,
            "operations": sums.operations,
            "compared_bytes": sums.compared_bytes,
            "snapshots_compared": self.snapshots,
            "cold_starts": self.cold,
            "lost": u64::from(sums.finding.is_some()),
            "finding": sums.finding,
        })
    }
}
