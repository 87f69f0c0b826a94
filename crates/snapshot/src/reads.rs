//! [`StoreReads`]: how often a store went to its files for what it did not have in memory.
//!
//! Counts say what timings on a busy machine cannot: that a look-up in a long history costs what it
//! costs in a short one. What `verify` reads is not in them: it reads everything, whatever is cached.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreReads {
    /// Header objects opened.
    pub headers: u64,
    /// Nodes of maps read.
    pub nodes: u64,
    /// Layer objects opened.
    pub layers: u64,
    /// Frames of layers read.
    pub frames: u64,
}

impl StoreReads {
    /// All of them.
    pub fn total(self) -> u64 {
        self.headers + self.nodes + self.layers + self.frames
    }
}

impl AddAssign for StoreReads {
    fn add_assign(&mut self, other: Self) {
        self.headers += other.headers;
        self.nodes += other.nodes;
        self.layers += other.layers;
        self.frames += other.frames;
    }
}

/// The counters. One of these for each store.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub(crate) headers: Counter,
    pub(crate) nodes: Counter,
    pub(crate) layers: Counter,
    pub(crate) frames: Counter,
}

impl Reads {
    pub(crate) fn so_far(&self) -> StoreReads {
        StoreReads {
            headers: self.headers.get(),
            nodes: self.nodes.get(),
            layers: self.layers.get(),
            frames: self.frames.get(),
        }
    }
}

/// Something that is only counted.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
