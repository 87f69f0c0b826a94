//! `cowslip inspect`: what a snapshot is made of, and what it added to the store.

use std::collections::BTreeSet;

use cowslip_memory::seal::{MemoryClasses, classes};
use cowslip_snapshot::header::Header;
use cowslip_snapshot::ids::LayerId;
use cowslip_snapshot::parts::Part;
use cowslip_snapshot::store::{Snapshot, Store};
use serde::Serialize;

use super::Context;
use crate::args::Image;
use crate::failure::Failure;
use crate::report::{self, Info, LayerUse, Names, PartInfo, bytes};

#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    info: Info,
    /// The layers that the image depends on, those with most blocks first.
    layers: Vec<LayerUse>,
    /// Those that it depends on only because deltas are made against blocks of theirs.
    base_layers: Vec<LayerId>,
    /// Of a memory: where its pages are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Pages>,
    /// All parts of the snapshot, this one among them.
    parts: Vec<PartInfo>,
}

#[derive(Serialize)]
struct Pages {
    zero_pages: u64,
    /// Stored with it.
    own_pages: u64,
    /// Where the disk of the same snapshot has the same bytes.
    disk_pages: u64,
    /// Stored with memories that it was made over.
    older_pages: u64,
}

impl Pages {
    /// Of an image that is its snapshot's memory.
    fn of(snapshot: &Snapshot, header: &Header) -> Result<Option<Self>, Failure> {
        let memory = snapshot.parts.get(Part::Memory);
        if memory.is_none_or(|memory| memory.id() != header.id()) {
            return Ok(None);
        }
        let disk = snapshot.parts.get(Part::Disk);
        let MemoryClasses {
            zero,
            own,
            disk,
            older,
        } = classes(header, disk.map(|disk| &**disk))?;
        Ok(Some(Self {
            zero_pages: zero,
            own_pages: own,
            disk_pages: disk,
            older_pages: older,
        }))
    }

    fn text(&self) -> String {
        format!(
            "{} stored with it, {} on the disk, {} of older memories, {} zero",
            self.own_pages, self.disk_pages, self.older_pages, self.zero_pages
        )
    }
}

pub(super) fn run(context: &Context, args: &Image) -> Result<(), Failure> {
    let store = context.store()?;
    let (snapshot, _lease) = store.resolve_snapshot_leased(&args.name.name)?;
    let header = snapshot.image(&args.name)?;
    let info = Info::new(&store, &args.name, header, &Names::read(&store)?);
    let uses = header.layers()?.into_iter();
    let mut layers: Vec<_> = uses.map(|(id, blocks)| LayerUse { id, blocks }).collect();
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.blocks));
    let base_layers = base_layers(&store, &layers);
    let parts = PartInfo::all(&store, &snapshot);
    let inspected = Inspected {
        info,
        layers,
        base_layers,
        pages: Pages::of(&snapshot, header)?,
        parts,
    };
    context.report.result(&inspected, || text(&inspected))
}

/// What the deltas in these are made against, and the image does not lead to.
fn base_layers(store: &Store, layers: &[LayerUse]) -> Vec<LayerId> {
    let mut bases = BTreeSet::new();
    for layer in layers {
        // What cannot be opened is for `verify` to say.
        if let Ok(layer) = store.open_layer(layer.id) {
            bases.extend(layer.bases().iter().copied());
        }
    }
    bases.retain(|id| !layers.iter().any(|layer| layer.id == *id));
    bases.into_iter().collect()
}

fn text(
    Inspected {
        info,
        layers,
        base_layers,
        pages,
        parts,
    }: &Inspected,
) -> String {
    let parent = match (&info.parent_name, info.parent) {
        (Some(name), Some(id)) => format!("{name} ({id})"),
        (None, Some(id)) => id.to_string(),
        (_, None) => "none: a template".into(),
    };
    let block = u64::from(info.block_size_bytes);
    let mut lines = vec![
        ("name", info.name.to_string()),
        ("id", info.id.to_string()),
        ("parent", parent),
        ("generation", info.generation.to_string()),
        (
            "created",
            format!("{} by {}", report::time(info.created_unix_ms), info.made_by),
        ),
        (
            "size",
            format!("{} in blocks of {}", bytes(info.size_bytes), bytes(block)),
        ),
        ("diff", info.diff()),
    ];
    for layer in layers {
        let held = format!(
            "{}  {} blocks ({})",
            layer.id,
            layer.blocks,
            bytes(layer.blocks * block)
        );
        lines.push(("layer", held));
    }
    let only_bases = base_layers.iter();
    lines.extend(only_bases.map(|id| ("layer", format!("{id}  for deltas only"))));
    lines.extend(pages.iter().map(|pages| ("pages", pages.text())));
    // A disk alone says nothing more.
    if parts.len() > 1 {
        for part in parts {
            let stored = format!(
                "{}: {}, stored {}",
                part.part,
                bytes(part.size_bytes),
                bytes(part.stored_bytes)
            );
            lines.push(("part", stored));
        }
    }
    lines
        .iter()
        .map(|(what, value)| format!("{what:12}{value}\n"))
        .collect()
}
