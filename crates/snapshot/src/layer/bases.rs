//! The bases of a layer: which blocks of other layers its delta frames are differences against.
//!
//! ```text
//! uuid of each base layer | for each block of each delta frame: 0, or 1 + number of the layer, and the block there
//! ```
//!
//! The table lies behind the index and is under the same checksum. So what a layer needs of others is known without a look at its payload.
//!
//! Invariants:
//! - A base is a block of a frame that stands alone. The table cannot say so: whoever reads a base checks it ([`crate::layer::Layer::prefix`]), whoever writes
//!   has it from [`crate::store::Store::base_of`].
//! - 8: at most [`LAYER_BASES_MAX`] layers and [`LAYER_DELTA_BLOCKS_MAX`] blocks. Layers are numbered in the order in which they are first used, each is used, and
//!   each delta frame has a base: a table has one encoding.
//! - Memory while it is open: 8 bytes a block of a delta frame, each of which takes at least one byte in the file.

use std::collections::HashSet;
use std::ops::Range;

use crate::codec::{Reader, put_delta, put_varint};
use crate::error::ObjectError;
use crate::ids::LayerId;
use crate::layer::footer::Footer;
use crate::layer::index::Index;
use crate::limits::{LAYER_BASES_MAX, LAYER_BLOCKS_MAX, LAYER_DELTA_BLOCKS_MAX};

/// Where the base of a block is: a layer, and a block of it.
pub(crate) type BasePlace = (LayerId, u64);

/// What one block takes in the table at most: two bytes for a number up to 256, five for a distance between two numbers below 2^31.
pub(super) const ENTRY_BYTES_MAX: u64 = 7;
const UUID_BYTES: u64 = 16;

/// The table of a layer that is open.
#[derive(Debug, Default)]
pub(super) struct Bases {
    layers: Vec<LayerId>,
    /// The numbers of the delta frames, in order.
    frames: Vec<u32>,
    /// For each of their blocks: 0 or 1 + the number of a layer, and the block there.
    places: Vec<(u32, u32)>,
}

impl Bases {
    pub(super) fn decode(
        reader: &mut Reader<'_>,
        footer: &Footer,
        index: &Index,
    ) -> Result<Self, ObjectError> {
        let mut bases = Self::default();
        for _ in 0..footer.bases {
            let id = LayerId(reader.uuid()?);
            if id.is_nil() || id == footer.id || bases.layers.contains(&id) {
                return Err(reader.refuse(format!("{id} is no base of this layer")));
            }
            bases.layers.push(id);
        }
        let per_frame = u64::from(footer.blocks_per_frame());
        let mut ends = vec![0; bases.layers.len()];
        let mut used = 0;
        for frame in index.deltas() {
            let blocks = per_frame.min(footer.blocks.0 - frame * per_frame);
            if bases.places.len() as u64 + blocks > LAYER_DELTA_BLOCKS_MAX {
                let why = format!("more than {LAYER_DELTA_BLOCKS_MAX} blocks in delta frames");
                return Err(reader.refuse(why));
            }
            bases.frames.push(u32_of(frame));
            let before = bases.places.len();
            for _ in 0..blocks {
                let next = used.min(ends.len() - 1) as u64 + 1;
                let number: u32 = reader.varint_to("the base's layer is", next)?;
                let Some(at) = (number as usize).checked_sub(1) else {
                    bases.places.push((0, 0));
                    continue;
                };
                used = used.max(at + 1);
                let block = reader.delta(ends[at])?;
                if block >= LAYER_BLOCKS_MAX {
                    return Err(reader.refuse(format!("no layer has a block {block}")));
                }
                ends[at] = block + 1;
                bases.places.push((number, u32_of(block)));
            }
            if bases.places[before..]
                .iter()
                .all(|(number, _)| *number == 0)
            {
                return Err(reader.refuse(format!("frame {frame} is a delta of nothing")));
            }
        }
        if used != bases.layers.len() {
            return Err(reader.refuse("a layer is listed as a base of nothing"));
        }
        Ok(bases)
    }

    /// The layers, in the order of their numbers.
    pub(super) fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// The base of each block of a delta frame; nothing where the frame is none.
    pub(super) fn of_frame(
        &self,
        frame: u64,
        per_frame: usize,
    ) -> Option<impl Iterator<Item = Option<BasePlace>> + '_> {
        let number = u32::try_from(frame).ok()?;
        let at = self.frames.binary_search(&number).ok()? * per_frame;
        let end = self.places.len().min(at + per_frame);
        Some(self.places[at..end].iter().map(|(number, block)| {
            let layer = self.layers[(*number as usize).checked_sub(1)?];
            Some((layer, u64::from(*block)))
        }))
    }

    /// How many of these blocks have a base.
    pub(super) fn count_in(&self, blocks: &Range<u64>, per_frame: usize) -> u64 {
        let starts = |frame: u32| u64::from(frame) * per_frame as u64;
        let ends_before = |frame: &u32| starts(*frame) + per_frame as u64 <= blocks.start;
        let first = self.frames.partition_point(ends_before) * per_frame;
        let places = self.places.iter().enumerate().skip(first);
        let numbers = places.map(|(n, (layer, _))| {
            let block = starts(self.frames[n / per_frame]) + (n % per_frame) as u64;
            (block, *layer)
        });
        let within = numbers.take_while(|(block, _)| *block < blocks.end);
        let has_base = |(block, layer): &(u64, u32)| *block >= blocks.start && *layer > 0;
        within.filter(has_base).count() as u64
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames.iter().map(|frame| u64::from(*frame))
    }

    /// The memory that it takes.
    pub(super) fn weight(&self) -> u64 {
        let (layers, frames) = (self.layers.len() as u64, self.frames.len() as u64);
        layers * UUID_BYTES + frames * 4 + self.places.len() as u64 * 8
    }
}

/// Frames and blocks of a layer are fewer than 2^32.
fn u32_of(number: u64) -> u32 {
    u32::try_from(number).expect("below the limits of a layer")
}

/// A table on its way into a layer.
#[derive(Debug, Default)]
pub(super) struct BasesWriter {
    layers: Vec<LayerId>,
    ends: Vec<u64>,
    table: Vec<u8>,
    /// Those that may come to be used, and the frames that they may be used in.
    offered: HashSet<LayerId>,
    offered_frames: u64,
    last_frame: Option<u64>,
}

impl BasesWriter {
    /// May a block of this frame, of so many blocks, have a base in the layer? The limits hold whatever becomes of those that were offered.
    pub(super) fn offer(&mut self, layer: LayerId, frame: u64, per_frame: u64) -> bool {
        let is_new = !self.offered.contains(&layer);
        if is_new && self.offered.len() >= LAYER_BASES_MAX as usize {
            return false;
        }
        if self.last_frame != Some(frame) {
            if (self.offered_frames + 1) * per_frame > LAYER_DELTA_BLOCKS_MAX {
                return false;
            }
            self.offered_frames += 1;
            self.last_frame = Some(frame);
        }
        self.offered.insert(layer);
        true
    }

    /// A delta frame, with the bases of its blocks.
    pub(super) fn add(&mut self, frame: &[Option<BasePlace>]) {
        for base in frame {
            let Some((layer, block)) = base else {
                self.table.push(0);
                continue;
            };
            let known = self.layers.iter().position(|id| id == layer);
            let at = known.unwrap_or_else(|| {
                self.layers.push(*layer);
                self.ends.push(0);
                self.layers.len() - 1
            });
            put_varint(&mut self.table, at as u64 + 1);
            put_delta(&mut self.table, *block, self.ends[at]);
            self.ends[at] = block + 1;
        }
    }

    /// How many layers are bases.
    pub(super) fn count(&self) -> u32 {
        u32_of(self.layers.len() as u64)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let ids = self.layers.iter().flat_map(|id| id.0.into_bytes());
        out.extend(ids);
        out.extend(&self.table);
    }

    /// What it takes in the object.
    pub(super) fn bytes(&self) -> u64 {
        self.layers.len() as u64 * UUID_BYTES + self.table.len() as u64
    }
}
