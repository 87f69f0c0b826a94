//! What a store keeps in memory: open layers and decoded frames, shared by all its images.
//!
//! Failures are not kept. Nodes of maps have a cache of their own (`header/nodes.rs`).

use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};

use crate::ids::LayerId;
use crate::layer::Layer;

/// Open layers, by the memory of their indexes: each counts for its index and this much, so that
/// at most 256 are open. One with the largest index fits.
const OPEN_LAYERS_BYTES: u64 = 512 << 20;
const OPEN_LAYER_BYTES: u64 = 2 << 20;

/// How much memory the caches of a store may take.
#[derive(Clone, Copy, Debug)]
pub struct Caches {
    /// Decoded frames of layers, shared by all images.
    pub frame_bytes: u64,
    /// Decoded nodes of maps, shared by all headers.
    pub node_bytes: u64,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            frame_bytes: 256 << 20,
            node_bytes: 64 << 20,
        }
    }
}

/// Layers that are open.
pub(crate) type OpenLayers = Cache<LayerId, Arc<Layer>, LayerWeight>;

/// Frames, by layer and number.
pub(crate) type Frames = Cache<(LayerId, u64), Arc<[u8]>, FrameWeight>;

#[derive(Clone)]
pub(crate) struct LayerWeight;

impl Weighter<LayerId, Arc<Layer>> for LayerWeight {
    fn weight(&self, _: &LayerId, layer: &Arc<Layer>) -> u64 {
        layer.weight() + OPEN_LAYER_BYTES
    }
}

#[derive(Clone)]
pub(crate) struct FrameWeight;

impl Weighter<(LayerId, u64), Arc<[u8]>> for FrameWeight {
    fn weight(&self, _: &(LayerId, u64), frame: &Arc<[u8]>) -> u64 {
        frame.len() as u64 + 128
    }
}

/// One shard: a layer with the largest index must fit, and opening is rare.
pub(crate) fn open_layers() -> OpenLayers {
    let options = OptionsBuilder::new()
        .shards(1)
        .estimated_items_capacity(256)
        .weight_capacity(OPEN_LAYERS_BYTES)
        .build()
        .expect("all that is needed is given");
    Cache::with_options(
        options,
        LayerWeight,
        quick_cache::DefaultHashBuilder::default(),
        quick_cache::sync::DefaultLifecycle::default(),
    )
}

pub(crate) fn frames(bytes: u64) -> Frames {
    let frames = bytes / u64::from(crate::limits::FRAME_BYTES);
    let estimate = usize::try_from(frames).unwrap_or(usize::MAX).max(1);
    Cache::with_weighter(estimate, bytes, FrameWeight)
}
