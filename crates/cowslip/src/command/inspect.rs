//! `cowslip inspect`: what a snapshot is made of, and what it added to the store.

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
    /// All parts of the snapshot, this one among them.
    parts: Vec<PartInfo>,
}

pub(super) fn run(context: &Context, args: &Image) -> Result<(), Failure> {
    let store = context.store()?;
    let (snapshot, _lease) = store.resolve_snapshot_leased(&args.name.name)?;
    let header = snapshot.image(&args.name)?;
    let info = Info::new(&store, &args.name, header, &Names::read(&store)?);
    let uses = header.layers()?.into_iter();
    let mut layers: Vec<_> = uses.map(|(id, blocks)| LayerUse { id, blocks }).collect();
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.blocks));
    let parts = PartInfo::all(&store, &snapshot);
    let inspected = Inspected {
        info,
        layers,
        parts,
    };
    context.report.result(&inspected, || text(&inspected))
}

fn text(
    Inspected {
        info,
        layers,
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
