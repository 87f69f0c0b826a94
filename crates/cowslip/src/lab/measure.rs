//! What a snapshot holds that another does not: counted, attributed, and stored for trial.

use std::collections::BTreeMap;

use cowslip_block::{ByteRange, Device, FillBuf};
use cowslip_snapshot::diff::{DiffKind, diff};
use cowslip_snapshot::ids::SnapshotName;
use cowslip_snapshot::image::Image;
use serde::{Deserialize, Serialize};

use super::bench::Place;
use crate::failure::Failure;

/// A diff. Its field names are a contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Blocks that have other content, and not only zeros.
    pub(crate) blocks: u64,
    /// Blocks that read as zeros and did not.
    pub(crate) zeroed_blocks: u64,
    /// The layer that a seal would store for it: compressed, without the map.
    pub(crate) payload_bytes: u64,
    /// Blocks by class of their owner.
    pub(crate) classes: BTreeMap<String, u64>,
    pub(crate) unknown_blocks: u64,
}

impl Measured {
    /// Of several diffs, the sum.
    pub(crate) fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.zeroed_blocks += other.zeroed_blocks;
        self.payload_bytes += other.payload_bytes;
        self.unknown_blocks += other.unknown_blocks;
        for (class, blocks) in &other.classes {
            *self.classes.entry(class.clone()).or_default() += blocks;
        }
    }
}

/// The part of `explain --json` that is needed.
#[derive(Deserialize)]
struct Explained {
    total_blocks: u64,
    zeroed_blocks: u64,
    unknown_blocks: u64,
    classes: Vec<Class>,
}

#[derive(Deserialize)]
struct Class {
    class: String,
    blocks: u64,
}

pub(crate) fn measure(place: &Place, name: &str, against: &str) -> Result<Measured, Failure> {
    let explained: Explained = place.json(&["explain", name, "--against", against])?;
    let classes = explained.classes.into_iter().map(|c| (c.class, c.blocks));
    Ok(Measured {
        blocks: explained.total_blocks,
        zeroed_blocks: explained.zeroed_blocks,
        payload_bytes: payload(place, name, against)?,
        classes: classes.filter(|(_, blocks)| *blocks > 0).collect(),
        unknown_blocks: explained.unknown_blocks,
    })
}

/// Stages come one after the other in a session, so what each of them added says little: the difference is stored
/// once more, as one layer, which nobody needs and the next collection removes.
fn payload(place: &Place, name: &str, against: &str) -> Result<u64, Failure> {
    let store = place.store()?;
    let named = |name: &str| -> Result<SnapshotName, Failure> {
        name.parse()
            .map_err(|_| Failure::failed(format!("{name} is no name of a snapshot")))
    };
    let (a, _keep_a) = store.resolve_leased(&named(against)?)?;
    let (b, _keep_b) = store.resolve_leased(&named(name)?)?;
    let mut runs = Vec::new();
    let mut keep = |run: cowslip_snapshot::diff::DiffRun| {
        if run.kind == DiffKind::Changed {
            runs.push(run.blocks);
        }
    };
    diff(&store, &a, &b, &mut keep, &mut |_, _| ())?;
    if runs.is_empty() {
        return Ok(0);
    }
    let lease = store.lease()?;
    let unit = u64::from(b.block_size().bytes());
    let mut writer = store.layer_writer(&lease, b.block_size())?;
    let image = Image::new(store.clone(), b);
    for run in runs {
        for block in run.start.0..run.end.0 {
            let mut bytes = vec![0; usize::try_from(unit).expect("a block's size")];
            let range = ByteRange::new(block * unit, (block + 1) * unit);
            image.read(range, &mut FillBuf::new(&mut bytes))?;
            writer.push(&bytes)?;
        }
    }
    Ok(writer.finish()?.stored_bytes)
}
