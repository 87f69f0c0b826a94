//! What `cowslip explain` says: as JSON, whose field names are a contract, and as a table.

use cowslip_ext4::Class;
use serde::Serialize;

use super::whose::Wrong;
use crate::explain::tally::Shadow;
use crate::explain::{Advice, Counted};
use crate::report::{bytes, plain, table};

/// The answer.
#[derive(Serialize)]
pub(super) struct Explained {
    pub(super) name: String,
    /// A name or an id; nothing for a template.
    pub(super) against: Option<String>,
    /// `ext4`, or nothing where none can be read; `remark` says more about either.
    pub(super) file_system: Option<&'static str>,
    pub(super) remark: String,
    pub(super) size_bytes: u64,
    pub(super) block_size_bytes: u32,
    /// Blocks that have other content now, and not only zeros.
    pub(super) total_blocks: u64,
    /// Blocks that read as zeros now, and did not. They cost no payload.
    pub(super) zeroed_blocks: u64,
    /// What the snapshot added to the store when it was taken, whatever it is compared with here.
    pub(super) stored_bytes: u64,
    pub(super) classes: Vec<ClassRow>,
    /// Those with most blocks first; no more than was asked for, of `files_total`.
    pub(super) files: Vec<FileRow>,
    pub(super) files_total: u64,
    pub(super) unknown_blocks: u64,
    /// Of `total_blocks`, those whose owner is known.
    pub(super) named_percent: f64,
    pub(super) advice: Vec<Advice>,
    pub(super) shadow: Shadow,
    pub(super) problems: Vec<Wrong>,
    /// The first few, in words.
    pub(super) examples: Vec<String>,
}

/// One class of owners.
#[derive(Serialize)]
pub(super) struct ClassRow {
    pub(super) class: &'static str,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

/// One file: its data, without what lists it.
#[derive(Serialize)]
pub(super) struct FileRow {
    pub(super) path: String,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) inode: u32,
}

impl ClassRow {
    pub(super) fn of((class, Counted { blocks, bytes }): (Class, Counted)) -> Self {
        let class = class.name();
        Self {
            class,
            blocks,
            bytes,
        }
    }
}

pub(super) fn percent(part: u64, all: u64) -> f64 {
    // Exact as long as there are fewer than 2^53 blocks, which no image has.
    #[expect(clippy::cast_precision_loss, reason = "said above")]
    match all {
        0 => 100.0,
        all => part as f64 * 100.0 / all as f64,
    }
}

pub(super) fn text(found: &Explained) -> String {
    let unit = u64::from(found.block_size_bytes);
    let over = found.against.as_deref().unwrap_or("nothing");
    let mut text = format!(
        "{over} -> {}: {} blocks changed ({}), {} zeroed; stored {}\n{}\n",
        found.name,
        found.total_blocks,
        bytes(found.total_blocks * unit),
        found.zeroed_blocks,
        bytes(found.stored_bytes),
        plain(&found.remark),
    );
    if found.total_blocks > 0 {
        let row = |row: &ClassRow| {
            let share = format!("{:.1} %", percent(row.blocks, found.total_blocks));
            vec![
                row.class.into(),
                row.blocks.to_string(),
                bytes(row.bytes),
                share,
            ]
        };
        let rows = found.classes.iter().map(row).collect();
        text += &format!(
            "\n{}\n",
            table(&["CLASS", "BLOCKS", "BYTES", "SHARE"], &[1, 2, 3], rows)
        );
    }
    if !found.files.is_empty() {
        let row = |row: &FileRow| {
            let numbers = [
                row.blocks.to_string(),
                bytes(row.bytes),
                row.inode.to_string(),
            ];
            numbers.into_iter().chain([plain(&row.path)]).collect()
        };
        let rows = found.files.iter().map(row).collect();
        let head = ["BLOCKS", "BYTES", "INODE", "FILE"];
        text += &format!("\n{}\n", table(&head, &[0, 1, 2], rows));
        let more = found.files_total - found.files.len() as u64;
        if more > 0 {
            text += &format!("and {more} more (--top)\n");
        }
    }
    for Wrong { what, count } in &found.problems {
        text += &format!("\nwrong in the file system: {what}: {count}");
    }
    if !found.problems.is_empty() {
        text += "\n";
    }
    if !found.advice.is_empty() {
        text += "\nWhat would have made it smaller:\n";
    }
    for advice in &found.advice {
        text += &format!("  {} blocks: {}\n", advice.blocks, advice.how);
    }
    text
}
