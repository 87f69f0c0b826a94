//! [`Findings`]: what a verification found, each place once.
//!
//! The list is bounded, the count is not; and [`Findings::has`] knows all of them, at no more memory
//! than what is stored takes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use uuid::Uuid;

use crate::error::StoreError;
use crate::header::{NodePtr, object_name};
use crate::ids::{HeaderId, LayerId, SnapshotName};
use crate::store::{MARKER, layer_name, record_name, session_name};

/// Damaged places that are listed; more are only counted.
pub const DAMAGE_LISTED_MAX: usize = 10_000;

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which object: its path in the store.
    pub object: String,
    /// Where in it.
    pub place: String,
    /// What is wrong there.
    pub why: String,
    pub(crate) spot: Spot,
}

/// The same place, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Spot {
    Marker,
    Record(SnapshotName),
    Session(Uuid),
    /// Its tail, or all of it.
    Header(HeaderId),
    Node(NodePtr),
    /// Bytes of a header that are no node of it.
    Gap(HeaderId),
    /// Footer and index, or all of it.
    Layer(LayerId),
    Frame(LayerId, u64),
    /// What a map says, though its bytes are what was written.
    Map(HeaderId),
}

impl Spot {
    /// Object and place, where the error does not say.
    fn name(&self) -> (String, String) {
        let all = || "all of it".to_owned();
        match self {
            Self::Marker => (MARKER.to_owned(), all()),
            Self::Record(name) => (record_name(name), all()),
            Self::Session(id) => (session_name(*id), all()),
            Self::Header(id) | Self::Gap(id) => (object_name(*id), all()),
            Self::Node(ptr) => (object_name(ptr.header), format!("byte {}", ptr.offset)),
            Self::Layer(id) => (layer_name(*id), all()),
            Self::Frame(id, n) => (layer_name(*id), format!("frame {n}")),
            Self::Map(id) => (object_name(*id), "the map".to_owned()),
        }
    }
}

/// Every damaged place so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The first [`DAMAGE_LISTED_MAX`].
    pub(super) listed: Vec<Damage>,
    pub(super) count: u64,
    /// Object and place of all but frames.
    places: HashSet<(String, String)>,
    spots: HashSet<Spot>,
    frames: HashMap<LayerId, BTreeSet<u64>>,
    /// Delta frames that are whole, and the layers with damage without which they cannot be read.
    lacking: HashMap<LayerId, BTreeMap<u64, BTreeSet<LayerId>>>,
}

impl Findings {
    /// Keeps damage as a finding; other failures come back.
    pub(super) fn found(&mut self, spot: Spot, error: StoreError) -> Result<(), StoreError> {
        let (object, place, why) = match error {
            StoreError::Corrupt { object, place, why } => (object, place, why),
            StoreError::Version { ref object, .. } => {
                (object.clone(), "its version".to_owned(), error.to_string())
            }
            StoreError::Io { source, .. } if is_bad_disk(&source) => {
                let (object, place) = spot.name();
                (
                    object,
                    place,
                    format!("the disk does not give it: {source}"),
                )
            }
            other => return Err(other),
        };
        let new = match spot {
            Spot::Frame(layer, n) => self.frames.entry(layer).or_default().insert(n),
            _ => self.places.insert((object.clone(), place.clone())),
        };
        if !matches!(spot, Spot::Frame(..)) {
            self.spots.insert(spot.clone());
        }
        if new {
            self.count += 1;
            if self.listed.len() < DAMAGE_LISTED_MAX {
                self.listed.push(Damage {
                    object,
                    place,
                    why,
                    spot,
                });
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What is so no more.
    pub(crate) fn mended(&mut self, spot: &Spot) {
        self.spots.remove(spot);
        if let Spot::Frame(layer, n) = spot
            && let Some(frames) = self.frames.get_mut(layer)
        {
            frames.remove(n);
        }
    }

    pub(super) fn has(&self, spot: &Spot) -> bool {
        self.spots.contains(spot)
    }

    /// The damaged ones among these frames of a layer.
    pub(super) fn frames_in(
        &self,
        layer: LayerId,
        frames: std::ops::Range<u64>,
    ) -> impl Iterator<Item = u64> {
        let damaged = self.frames.get(&layer).into_iter();
        damaged.flat_map(move |all| all.range(frames.clone()).copied())
    }

    /// This delta frame is made against what is damaged in layer `base`, or all of that.
    pub(super) fn lacks(&mut self, layer: LayerId, frame: u64, base: LayerId) {
        let frames = self.lacking.entry(layer).or_default();
        frames.entry(frame).or_default().insert(base);
    }

    /// The delta frames among these that are whole and cannot be read, and the layers that they lack.
    pub(super) fn lacking(
        &self,
        layer: LayerId,
        frames: std::ops::Range<u64>,
    ) -> impl Iterator<Item = (u64, &BTreeSet<LayerId>)> {
        let lacking = self.lacking.get(&layer).into_iter();
        lacking.flat_map(move |all| all.range(frames.clone()).map(|(n, bases)| (*n, bases)))
    }

    pub(super) fn has_frames(&self, layer: LayerId, frames: std::ops::Range<u64>) -> bool {
        self.frames_in(layer, frames).next().is_some()
    }
}

/// Is this what a disk says whose sectors, or whose file system, are damaged?
pub(crate) fn is_bad_disk(error: &io::Error) -> bool {
    // EIO, EISDIR (no file where an object is due), EUCLEAN.
    matches!(error.raw_os_error(), Some(5 | 21 | 117))
}

/// The error, if it says that what is read is damaged: other things are not.
pub(crate) fn damage(error: StoreError) -> Result<StoreError, StoreError> {
    match &error {
        StoreError::Corrupt { .. } | StoreError::Version { .. } => Ok(error),
        StoreError::Io { source, .. } if is_bad_disk(source) => Ok(error),
        _ => Err(error),
    }
}
