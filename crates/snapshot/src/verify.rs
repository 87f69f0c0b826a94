//! Verify: reads all that one image is made of, from the store and not from the caches, and lists
//! what is damaged.
//!
//! Each node and each frame is read once, however often the map comes by: the work is bounded by
//! what is stored, also where a hostile map leads everywhere many times.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use cowslip_block::{BlockIndex, BlockRange};

use crate::error::{ObjectError, StoreError};
use crate::header::{Header, MapRun, Node, NodePtr, Slot, Target};
use crate::ids::LayerId;
use crate::layer::blocks_per_frame;
use crate::limits::span;
use crate::store::{Store, layer_name};

/// Damaged places that are listed; more are only counted.
pub const DAMAGE_LISTED_MAX: usize = 10_000;

/// What was looked at, and what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    /// Nodes of the map.
    pub nodes: u64,
    /// Layers that the image uses.
    pub layers: u64,
    /// Frames of those layers with blocks of the image in them.
    pub frames: u64,
    /// What those frames hold, decoded.
    pub payload_bytes: u64,
    /// Damaged places: at most [`DAMAGE_LISTED_MAX`] of them.
    pub damage: Vec<Damage>,
    /// All damaged places.
    pub damaged: u64,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which object: its path in the store.
    pub object: String,
    /// Where in it.
    pub place: String,
    /// What is wrong there.
    pub why: String,
}

impl Report {
    /// Is all as it was stored?
    pub fn is_whole(&self) -> bool {
        self.damaged == 0
    }

    /// Keeps damage as a finding; the file layer's failures end the walk.
    fn found(&mut self, error: StoreError) -> Result<(), StoreError> {
        let damage = match error {
            StoreError::Corrupt { object, place, why } => Damage { object, place, why },
            StoreError::Version { ref object, .. } => Damage {
                object: object.clone(),
                place: "its version".to_owned(),
                why: error.to_string(),
            },
            other => return Err(other),
        };
        self.damaged += 1;
        if self.damage.len() < DAMAGE_LISTED_MAX {
            self.damage.push(damage);
        }
        Ok(())
    }
}

/// Checks every node and every frame that the image uses. `progress` is told how many frames are
/// done, and of how many.
///
/// # Errors
/// `Io` where the store cannot be read; damage is no error, it is in the report.
pub fn verify(
    store: &Store,
    header: &Header,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, StoreError> {
    let mut walk = Walk {
        header,
        report: Report::default(),
        seen: HashSet::new(),
        used: BTreeMap::new(),
    };
    walk.slot(&header.root(), header.height(), header.blocks().end.0)?;
    if walk.report.is_whole() {
        walk.nothing_past_the_end()?;
    }
    let (used, mut report) = (walk.used, walk.report);
    let used: Vec<(LayerId, Vec<(u64, u64)>)> = used
        .into_iter()
        .map(|(id, runs)| (id, joined(runs)))
        .collect();
    let all = used.iter().flat_map(|(_, f)| f).map(|(a, b)| b - a).sum();
    for (id, frames) in &used {
        report.layers += 1;
        verify_layer(store, header, *id, frames, &mut report, &mut |done| {
            progress(done, all);
        })?;
    }
    Ok(report)
}

struct Walk<'a> {
    header: &'a Header,
    report: Report,
    /// By pointer and level, not by hash: of two copies of a node each is read.
    seen: HashSet<(NodePtr, u8)>,
    /// Frames in use, as ranges in no order.
    used: BTreeMap<LayerId, Vec<(u64, u64)>>,
}

impl Walk<'_> {
    /// A subtree; `blocks` of it, from its start, are on the device.
    fn slot(&mut self, slot: &Slot, level: u8, blocks: u64) -> Result<(), StoreError> {
        let ptr = match *slot {
            Slot::Nil => return Ok(()),
            Slot::Run { layer, at } => {
                self.uses(layer, at, span(level).min(blocks));
                return Ok(());
            }
            Slot::Node(ptr) => ptr,
        };
        if !self.seen.insert((ptr, level)) {
            return Ok(());
        }
        self.report.nodes += 1;
        match self.header.nodes().get_stored(&ptr, level) {
            Err(error) => self.report.found(error),
            Ok(Node::Leaf(runs)) => {
                for run in runs {
                    self.uses(run.layer, run.at, u64::from(run.count));
                }
                Ok(())
            }
            Ok(Node::Inner { slots, .. }) => {
                let below = span(level - 1);
                for (i, slot) in slots.iter().enumerate() {
                    self.slot(slot, level - 1, blocks.saturating_sub(i as u64 * below))?;
                }
                Ok(())
            }
        }
    }

    fn uses(&mut self, layer: LayerId, at: u64, blocks: u64) {
        if blocks == 0 {
            return;
        }
        let per_frame = blocks_per_frame(self.header.block_size());
        let frames = (at / per_frame, (at + blocks).div_ceil(per_frame));
        let used = self.used.entry(layer).or_default();
        match used.last_mut() {
            Some(last) if last.0 <= frames.0 && frames.0 <= last.1 => last.1 = last.1.max(frames.1),
            _ => used.push(frames),
        }
    }

    /// Growth must read as zeros.
    fn nothing_past_the_end(&mut self) -> Result<(), StoreError> {
        let past = BlockRange {
            start: self.header.blocks().end,
            end: BlockIndex(span(self.header.height())),
        };
        let mut mapped = None;
        self.header.walk_merged(past, &mut |run: MapRun| {
            if run.to == Target::Zero {
                return Ok::<_, StoreError>(ControlFlow::Continue(()));
            }
            mapped = Some(run.blocks);
            Ok(ControlFlow::Break(()))
        })?;
        let Some(blocks) = mapped else {
            return Ok(());
        };
        let why = format!("{blocks:?} are mapped, past the device's end");
        let object = crate::header::object_name(self.header.id());
        let damage = ObjectError::damaged("the map", why).of(object);
        self.report.found(damage)
    }
}

/// Sorted, and the overlapping ones made one.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

fn verify_layer(
    store: &Store,
    header: &Header,
    id: LayerId,
    frames: &[(u64, u64)],
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    let damaged = |place: &str, why: String| ObjectError::damaged(place, why).of(layer_name(id));
    let layer = match store.open_layer_stored(id) {
        Ok(layer) => layer,
        Err(error) => return report.found(error),
    };
    if layer.block_size() != header.block_size() {
        let why = "its blocks are not of the image's size".to_owned();
        return report.found(damaged("the footer", why));
    }
    for &(start, end) in frames {
        // A run past the layer's end is one finding, not one for each frame that is not there.
        for n in start..end.min(layer.frames()) {
            report.frames += 1;
            progress(report.frames);
            match layer.read_frame(n) {
                Ok(payload) => report.payload_bytes += payload.len() as u64,
                Err(error) => report.found(error.of(layer_name(id)))?,
            }
        }
        if end > layer.frames() {
            let why = format!(
                "the map uses frame {}, and there are {}",
                end - 1,
                layer.frames()
            );
            report.found(damaged("its end", why))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::crafted;
    use crate::host::RealHost;
    use crate::ids::HeaderId;
    use crate::store::Caches;
    use cowslip_block::BlockSize;
    use cowslip_sim::MemoryFs;
    use std::sync::Arc;
    use uuid::Uuid;

    #[test]
    fn blocks_mapped_past_the_end_are_found() {
        let root = MemoryFs::new().root();
        let host = Arc::new(RealHost);
        let store = Store::open_or_create(root.as_ref(), host, Caches::default()).unwrap();
        let mut writer = store
            .layer_writer(&store.lease().unwrap(), BlockSize::DISK)
            .unwrap();
        writer.push(&[1; 4 * 4096]).unwrap();
        let layer = writer.finish().unwrap().id;
        for (blocks, damaged) in [(14, 0), (13, 1)] {
            let id = HeaderId(Uuid::from_u128(u128::from(blocks)));
            let object = crafted::object(id, blocks, &crafted::leaf(10, 4, layer));
            let headers = root.open_dir("headers").unwrap();
            let file = headers.create(&id.to_string()).unwrap();
            file.write_at(&object, 0).unwrap();
            let header = store.open_header(id).unwrap();
            let report = verify(&store, &header, &mut |_, _| ()).unwrap();
            assert_eq!(report.damaged, damaged, "{:?}", report.damage);
        }
    }
}
