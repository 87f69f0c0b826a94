//! `cowslip log`: what a snapshot was made from, step by step, back to its template.
//!
//! Names come and go; the chain is one of headers, each of which says what it was made over. A
//! header that no name needed any more may be gone from the store: the list ends there and says so.
//! A damaged one ends it as well, and is a failure.

use std::sync::Arc;

use cowslip_snapshot::header::Header;
use cowslip_snapshot::ids::{HeaderId, ImageName};
use cowslip_snapshot::store::Store;
use serde::Serialize;

use super::Context;
use crate::args::Image;
use crate::failure::{Failure, Kind};
use crate::report::{self, Names, bytes, table};

/// Its field names are a contract, those of an entry the same as in `inspect`.
#[derive(Serialize)]
struct Log<'a> {
    name: &'a ImageName,
    /// Newest first.
    chain: Vec<Entry>,
    /// What the last of the chain was made over, where that is not in the store any more.
    missing: Option<HeaderId>,
}

#[derive(Serialize)]
struct Entry {
    id: HeaderId,
    /// All that stand for it now.
    names: Vec<ImageName>,
    parent: Option<HeaderId>,
    generation: u64,
    created_unix_ms: u64,
    made_by: String,
    size_bytes: u64,
    dirty_blocks: u64,
    zero_blocks: u64,
    same_blocks: u64,
    payload_bytes: u64,
    header_bytes: u64,
    stored_bytes: u64,
}

pub(super) fn run(context: &Context, args: &Image) -> Result<(), Failure> {
    let store = context.store()?;
    let newest = store.resolve_image(&args.name)?;
    let mut names = Names::read(&store)?;
    let mut log = Log {
        name: &args.name,
        chain: Vec::new(),
        missing: None,
    };
    let mut broken = None;
    let mut next = Some(newest);
    while let Some(header) = next {
        let mut found = parent(&store, &header, &names);
        if matches!(found, Ok(None)) && header.meta().parent.is_some() {
            // A compaction may have stored it otherwise since the names were read.
            names = Names::read(&store)?;
            found = parent(&store, &header, &names);
        }
        log.chain.push(Entry::new(&store, &header, &names));
        next = found.unwrap_or_else(|failure| {
            broken = Some(failure);
            None
        });
        if next.is_none() && broken.is_none() {
            log.missing = header.meta().parent;
        }
    }
    context.report.result(&log, || text(&log))?;
    broken.map_or(Ok(()), Err)
}

/// What a snapshot was made over; nothing for a template, or where it is gone.
pub(super) fn parent(
    store: &Store,
    header: &Header,
    names: &Names,
) -> Result<Option<Arc<Header>>, Failure> {
    let Some(id) = header.meta().parent else {
        return Ok(None);
    };
    // Without a name it lies where it was first stored, or nowhere.
    let parent = store.find_header(names.header(id).unwrap_or(id))?;
    // Generations fall, so that a chain has an end.
    if let Some(parent) = &parent
        && parent.meta().generation >= header.meta().generation
    {
        let (one, other) = (header.meta().generation, parent.meta().generation);
        let why = format!(
            "headers/{} is of generation {other}, and what was made over it of {one}",
            parent.id()
        );
        return Err(Failure::new(Kind::Corrupt, why));
    }
    Ok(parent)
}

impl Entry {
    fn new(store: &Store, header: &Header, names: &Names) -> Self {
        let meta = header.meta();
        let stored = store.stored_bytes(header);
        Self {
            id: meta.origin,
            names: names.of(meta.origin).to_vec(),
            parent: meta.parent,
            generation: meta.generation,
            created_unix_ms: meta.created_unix_ms,
            made_by: meta.made_by.clone(),
            size_bytes: meta.size_bytes,
            dirty_blocks: meta.figures.dirty_blocks,
            zero_blocks: meta.figures.zero_blocks,
            same_blocks: meta.figures.same_blocks,
            payload_bytes: stored.payload,
            header_bytes: stored.header,
            stored_bytes: stored.total(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        vec![
            self.generation.to_string(),
            report::time(self.created_unix_ms),
            bytes(self.size_bytes),
            self.dirty_blocks.to_string(),
            self.zero_blocks.to_string(),
            self.same_blocks.to_string(),
            bytes(self.stored_bytes),
            self.id.to_string(),
            if names.is_empty() {
                "-".into()
            } else {
                names.join(", ")
            },
        ]
    }
}

fn text(log: &Log<'_>) -> String {
    let head = [
        "GENERATION",
        "CREATED",
        "SIZE",
        "DIRTY",
        "ZERO",
        "SAME",
        "STORED",
        "ID",
        "NAMES",
    ];
    let rows = log.chain.iter().map(Entry::cells).collect();
    let mut text = table(&head, &[0, 2, 3, 4, 5, 6], rows) + "\n";
    if let Some(id) = log.missing {
        text += &format!("what came before is not known: {id} is not in the store any more\n");
    }
    text
}
