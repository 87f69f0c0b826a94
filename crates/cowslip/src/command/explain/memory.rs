//! A guest's memory, explained: page by page, by where each page's bytes are had from. No file system owns a page, and so no names are told.

use std::sync::Arc;

use cowslip_memory::disk::DiskBlocks;
use cowslip_snapshot::diff::{DiffKind, DiffRun};
use cowslip_snapshot::{Header, MapRun, Part, Store, Target};
use serde::Serialize;

use super::Pair;
use super::report::percent;
use crate::args::Explain;
use crate::command::Context;
use crate::failure::Failure;
use crate::report::{bytes, table};

/// The answer. Its field names are a contract.
#[derive(Serialize)]
struct Explained {
    name: String,
    /// A name or an id; nothing for a memory that was made over none.
    against: Option<String>,
    size_bytes: u64,
    page_size_bytes: u32,
    /// Each page is one of the next six.
    pages: u64,
    zero_pages: u64,
    /// As in the one that it is compared with, and no zeros.
    same_pages: u64,
    /// Where the disk of the same snapshot has the same bytes.
    disk_pages: u64,
    /// Stored with it, as differences against others.
    delta_pages: u64,
    /// Stored with it, whole.
    new_pages: u64,
    /// In layers of memories that it was made over.
    older_pages: u64,
    /// Zeros, and other bytes in the one that it is compared with.
    zeroed_pages: u64,
    /// What the snapshot added to the store when it was taken.
    payload_bytes: u64,
    header_bytes: u64,
    stored_bytes: u64,
}

/// Is this the memory of the snapshot that is meant? Then its disk, if there is one.
pub(super) fn disk_of(
    store: &Store,
    args: &Explain,
    now: &Header,
) -> Result<Option<Option<Arc<Header>>>, Failure> {
    let snapshot = match store.resolve_snapshot(&args.name.name) {
        // Another part of it is damaged, or the name has gone since: a disk needs neither.
        Err(_) if args.name.part != Some(Part::Memory) => return Ok(None),
        other => other?,
    };
    let memory = snapshot.parts.get(Part::Memory);
    let is_it = memory.is_some_and(|memory| memory.id() == now.id());
    Ok(is_it.then(|| snapshot.parts.get(Part::Disk).cloned()))
}

pub(super) fn run(
    context: &Context,
    args: &Explain,
    pair: &Pair,
    disk: Option<&Header>,
) -> Result<(), Failure> {
    if args.html.is_some() {
        let why = "a picture is drawn of disks, and this is a guest's memory";
        return Err(Failure::usage(why).hint("leave out --html"));
    }
    let mut changed = Vec::new();
    let mut zeroed_pages = 0;
    pair.runs(context, &mut |DiffRun { blocks, kind }| match kind {
        DiffKind::Changed => changed.push(blocks),
        DiffKind::Zeroed => zeroed_pages += blocks.count().0,
    })?;
    let stored = pair.store.stored_bytes(&pair.now);
    let pages = pair.now.blocks();
    let mut found = Explained {
        name: args.name.to_string(),
        against: pair.against.clone(),
        size_bytes: pair.now.size_bytes(),
        page_size_bytes: pair.now.block_size().bytes(),
        pages: pages.count().0,
        zero_pages: 0,
        same_pages: 0,
        disk_pages: 0,
        delta_pages: 0,
        new_pages: 0,
        older_pages: 0,
        zeroed_pages,
        payload_bytes: stored.payload,
        header_bytes: stored.header,
        stored_bytes: stored.total(),
    };
    let disk = disk.map(DiskBlocks::of).transpose()?;
    for run in changed {
        for MapRun { blocks, to } in pair.now.runs(run)? {
            // A block that changed is not all zeros.
            let Target::Layer { id, at } = to else {
                continue;
            };
            let count = blocks.count().0;
            let shared = disk.as_ref().map_or(0, |disk| disk.count_in(id, at, count));
            found.disk_pages += shared;
            if pair.now.meta().own_layer == Some(id) {
                // What the disk has as well is in another layer, in a store that nobody else has written.
                let deltas = pair.store.open_layer(id)?.deltas_in(at, count);
                let deltas = deltas.min(count - shared);
                found.delta_pages += deltas;
                found.new_pages += count - shared - deltas;
            } else {
                found.older_pages += count - shared;
            }
        }
    }
    let zeros = pair.now.runs(pages)?.into_iter();
    let zeros = zeros.filter(|run| run.to == Target::Zero);
    found.zero_pages = zeros.map(|run| run.blocks.count().0).sum();
    let stored = found.delta_pages + found.new_pages;
    let other = found.disk_pages + stored + found.older_pages;
    found.same_pages = found.pages.saturating_sub(found.zero_pages + other);
    context.report.result(&found, || text(&found))
}

fn text(found: &Explained) -> String {
    let over = found.against.as_deref().unwrap_or("nothing");
    let unit = u64::from(found.page_size_bytes);
    let head = format!(
        "{over} -> {}: {} pages, {} became zero; stored {} (payload {}, header {})",
        found.name,
        found.pages,
        found.zeroed_pages,
        bytes(found.stored_bytes),
        bytes(found.payload_bytes),
        bytes(found.header_bytes),
    );
    let classes = [
        ("zero", found.zero_pages),
        ("equal to the parent", found.same_pages),
        ("equal to the disk", found.disk_pages),
        ("deltas", found.delta_pages),
        ("new", found.new_pages),
        ("of older memories", found.older_pages),
    ];
    let row = |(class, pages): (&str, u64)| {
        let share = format!("{:.1} %", percent(pages, found.pages));
        vec![class.into(), pages.to_string(), bytes(pages * unit), share]
    };
    let rows = classes.into_iter().filter(|(_, pages)| *pages > 0);
    let rows = rows.map(row).collect();
    let columns = ["CLASS", "PAGES", "BYTES", "SHARE"];
    format!("{head}\n\n{}", table(&columns, &[1, 2, 3], rows))
}
