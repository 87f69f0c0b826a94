//! What the deltas of a layer are made against, looked at once a map leads to the layer.
//!
//! A layer says of its own bytes whether they are whole; that a base is not there, is damaged, or does not stand alone, only a look at both layers says. A delta whose base
//! is damaged is whole, and cannot be read: it *lacks* the base's layer ([`Findings::lacks`](super::findings::Findings::lacks)), which is what is damaged.
//!
//! Bounded: each delta frame of a layer is looked at once, and each names at most as many bases as it has blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::Depth;
use super::findings::Spot;
use super::objects::Objects;
use crate::error::{ObjectError, StoreError};
use crate::ids::LayerId;
use crate::layer::{Layer, blocks_per_frame};
use crate::store::{Store, layer_name};

/// What was found below one root, which may have gone meanwhile.
#[derive(Default)]
pub(super) struct Found {
    pub(super) damage: Vec<(Spot, StoreError)>,
    /// A layer, a delta frame of it, and the layer of a base that is damaged.
    pub(super) lacking: Vec<(LayerId, u64, LayerId)>,
    /// Layers whose bases were looked at for it.
    pub(super) based: Vec<LayerId>,
}

/// Of a layer whose footer and index are whole, in a store whose objects have been checked.
pub(super) fn look_at_bases(
    store: &Store,
    objects: &Objects<'_>,
    id: LayerId,
    found: &mut Found,
) -> Result<(), StoreError> {
    let layer = store.open_layer(id)?;
    let mut gone = BTreeSet::new();
    for n in layer.deltas() {
        if objects.findings.has_frames(id, n..n + 1) {
            continue;
        }
        let mut is_whole = true;
        for (base, frames) in base_frames(&layer, n) {
            let is_there = match (objects.layers.get(&base), store.open_layer(base)) {
                (Some(None), _) => false,
                (_, Err(error)) => {
                    if gone.insert(base) {
                        found.damage.push((Spot::Layer(base), error));
                    }
                    false
                }
                (_, Ok(opened)) => {
                    if let Err(error) = check_bases(&layer, n, &opened) {
                        found.damage.push((Spot::Frame(id, n), error));
                        is_whole = false;
                    }
                    let mut frames = frames.into_iter();
                    frames.all(|m| !objects.findings.has_frames(base, m..m + 1))
                }
            };
            if !is_there {
                found.lacking.push((id, n, base));
                is_whole = false;
            }
        }
        if is_whole
            && objects.depth == Depth::Decoded
            && let Err(error) = store.frame(id, n, layer.block_size())
        {
            found.damage.push((Spot::Frame(id, n), error));
        }
    }
    Ok(())
}

/// The frames that the bases of a delta frame lie in, by layer.
pub(super) fn base_frames(layer: &Layer, n: u64) -> BTreeMap<LayerId, BTreeSet<u64>> {
    let per_frame = blocks_per_frame(layer.block_size());
    let mut frames: BTreeMap<LayerId, BTreeSet<u64>> = BTreeMap::new();
    for (base, block) in layer.frame_bases(n).into_iter().flatten().flatten() {
        frames.entry(base).or_default().insert(block / per_frame);
    }
    frames
}

/// Can the blocks of `base` that a delta frame names be the bases of anything?
pub(super) fn check_bases(layer: &Layer, n: u64, base: &Layer) -> Result<(), StoreError> {
    let size = layer.block_size();
    let bases = layer.frame_bases(n).into_iter().flatten().flatten();
    for (_, block) in bases.filter(|(id, _)| *id == base.id()) {
        let why = match () {
            () if base.block_size() != size => "has blocks of another size",
            () if block >= base.blocks().0 => "ends before",
            () if !base.stands_alone(block / blocks_per_frame(size)) => "has a delta there",
            () => continue,
        };
        let of = layer_name(base.id());
        let why = format!("its base is block {block} of {of}, which {why}");
        let place = format!("frame {n}");
        return Err(ObjectError::damaged(place, why).of(layer_name(layer.id())));
    }
    Ok(())
}
