//! What the demo tells at its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::workload::{Carried, Kind};
use crate::report::{Taken, bytes, duration, table};

/// The result of a demo.
#[derive(Serialize)]
pub(super) struct Story {
    /// Bytes that the client wrote, zeroed or trimmed, by kind.
    pub(super) written: BTreeMap<Kind, u64>,
    pub(super) snapshots: Vec<SnapshotLine>,
    /// Bytes that were read back and compared with the oracle. All were equal.
    pub(super) compared_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<PathBuf>,
    pub(super) seconds: f64,
}

/// One snapshot: from what was written to what was stored.
#[derive(Serialize)]
pub(super) struct SnapshotLine {
    #[serde(flatten)]
    taken: Taken,
    #[serde(flatten)]
    carried: Carried,
}

impl SnapshotLine {
    pub(super) fn new(taken: Taken, carried: Carried) -> Self {
        Self { taken, carried }
    }

    fn in_bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.taken.info.block_size_bytes)
    }

    /// What became of the bytes, from the first to the last.
    fn rows(&self) -> Vec<(&'static str, u64)> {
        let info = &self.taken.info;
        let (dirty, same) = (
            self.in_bytes(info.dirty_blocks),
            self.in_bytes(info.same_blocks),
        );
        // What the session still held as bytes when it was frozen.
        let kept = dirty + same;
        let Carried {
            written_bytes,
            zeroed_bytes,
            trimmed_bytes,
        } = self.carried;
        let rewritten = written_bytes.saturating_sub(zeroed_bytes + trimmed_bytes + kept);
        vec![
            ("written by the client", written_bytes),
            ("- zeros, or zeroed by then", zeroed_bytes),
            ("- trimmed by then", trimmed_bytes),
            ("- written over by then", rewritten),
            ("- identical to what the parent has", same),
            ("= bytes in the diff", dirty),
            (
                "- compressed away",
                dirty.saturating_sub(info.payload_bytes),
            ),
            ("+ header", info.header_bytes),
            ("= stored", info.stored_bytes),
        ]
    }
}

impl Story {
    pub(super) fn tell(&self) -> String {
        let mut text = String::from("\nThe client sent\n");
        let sent = self
            .written
            .iter()
            .map(|(kind, n)| vec![format!("  {}", name(*kind)), bytes(*n)]);
        text += &table(&[], &[1], sent.collect());
        text += "\n\nWhat became of it\n";
        let names = self
            .snapshots
            .iter()
            .map(|s| format!("`{}`", s.taken.info.name));
        let head: Vec<String> = std::iter::once(String::new()).chain(names).collect();
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        let columns: Vec<_> = self.snapshots.iter().map(SnapshotLine::rows).collect();
        let labels = columns.first().map_or(&[][..], |c| &c[..]);
        let mut rows: Vec<Vec<String>> = labels
            .iter()
            .enumerate()
            .map(|(i, (label, _))| {
                let cells = columns.iter().map(|c| bytes(c[i].1));
                std::iter::once(format!("  {label}")).chain(cells).collect()
            })
            .collect();
        let timed = |label: &str, of: &dyn Fn(&Taken) -> f64| {
            let cells = self
                .snapshots
                .iter()
                .map(|s| duration(Duration::from_secs_f64(of(&s.taken))));
            std::iter::once(format!("  {label}")).chain(cells).collect()
        };
        rows.push(timed("device held for", &|t| t.held_us / 1e6));
        rows.push(timed("committed after", &|t| t.seconds));
        let right: Vec<usize> = (1..=self.snapshots.len()).collect();
        text += &table(&head, &right, rows);
        text += &format!(
            "\n\n{} read back through NBD and compared, from the session after its server was killed\n\
             and from both snapshots: every byte is what was written. {:.1} s in all.\n",
            bytes(self.compared_bytes),
            self.seconds,
        );
        if let Some(kept) = &self.kept {
            text += &format!(
                "Kept in {}; `cowslip --store {0}/store ls` lists it.\n",
                kept.display()
            );
        }
        text
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Random => "random bytes",
        Kind::Text => "text",
        Kind::Zeros => "zeros, by plain writes",
        Kind::WriteZeroes => "WRITE_ZEROES",
        Kind::Trim => "TRIM",
        Kind::Identical => "what was there already",
        Kind::Stamps => "rising numbers, meanwhile",
    }
}
