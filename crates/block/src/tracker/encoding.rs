//! A tracker as bytes, for a journal's checkpoint: [`StateTracker::encode`] and
//! [`StateTracker::decode`].
//!
//! ```text
//! tree     tag u8, then
//!   0..8   uniform: the tag is the state's code
//!   0x10   leaf: base u8, sets u8, then each set, codes rising:
//!            code u8, len u32, a roaring bitmap in its portable form
//!   0x20   node: runs of equal subtrees until there are 64: how many u8, tree once
//!            (more than one only of uniform subtrees)
//! ```
//!
//! Little-endian. The root's height follows from the device's size, codes from the order in which
//! the states are given; both are the caller's to store, and so is a checksum.
//!
//! Decoding trusts nothing: depth and leaves are bounded by the device's size, a set by
//! [`SET_BYTES_MAX`], what one set allocates meanwhile by 4 MiB, and the invariants are checked.

use std::fmt::Debug;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::leaf::{Code, LEAF_BLOCKS, Leaf};
use super::tree::{self, FANOUT, Tree};
use super::{StateTracker, TrackerError};
use crate::units::BlockCount;

const TAG_LEAF: u8 = 0x10;
const TAG_NODE: u8 = 0x20;

/// One container as plain bits, and roaring's header in front.
const SET_BYTES_MAX: usize = 8192 + 16;

impl<S: Copy + Eq + Debug> StateTracker<S> {
    /// The states of all blocks, as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_tree(&self.tree, &mut bytes);
        bytes
    }

    /// The tracker that these bytes describe, for a device and states as given to
    /// [`StateTracker::new`].
    ///
    /// # Errors
    /// As [`StateTracker::new`]; [`TrackerError::Corrupt`] for bytes that no tracker wrote.
    pub fn decode(
        bytes: &[u8],
        blocks: BlockCount,
        default: S,
        others: &[S],
    ) -> Result<Self, TrackerError> {
        let mut tracker = Self::new(blocks, default, others)?;
        let mut decoder = Decoder {
            bytes,
            at: 0,
            states: tracker.states.len(),
        };
        tracker.tree = decoder.tree(tracker.height, 0)?;
        if decoder.at != bytes.len() {
            return Err(decoder.broken("bytes after the end"));
        }
        Ok(tracker)
    }
}

fn encode_tree(tree: &Tree, bytes: &mut Vec<u8>) {
    match tree {
        Tree::Uniform(code) => bytes.push(*code),
        Tree::Leaf(leaf) => encode_leaf(leaf, bytes),
        Tree::Node(children) => {
            bytes.push(TAG_NODE);
            for run in children.chunk_by(|a, b| matches!(a, Tree::Uniform(_)) && a == b) {
                bytes.push(u8::try_from(run.len()).expect("a node has 64 subtrees"));
                encode_tree(&run[0], bytes);
            }
        }
    }
}

fn encode_leaf(leaf: &Leaf, bytes: &mut Vec<u8>) {
    let count = leaf.sets.iter().filter(|set| !set.is_empty()).count();
    bytes.extend([
        TAG_LEAF,
        leaf.base,
        u8::try_from(count).expect("at most 8 states"),
    ]);
    for (code, set) in (0u8..).zip(&leaf.sets) {
        if set.is_empty() {
            continue;
        }
        // Run containers are fine at rest: the smallest form there is.
        let mut set = set.clone();
        set.optimize();
        let len = set.serialized_size();
        bytes.push(code);
        bytes.extend(u32::try_from(len).expect("8 KiB at most").to_le_bytes());
        set.serialize_into(&mut *bytes)
            .expect("memory takes all bytes");
    }
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    states: usize,
}

impl<'a> Decoder<'a> {
    /// The subtree of this height whose first block is `start`.
    fn tree(&mut self, height: u32, start: u64) -> Result<Tree, TrackerError> {
        match self.byte()? {
            TAG_LEAF if height == 0 => self.leaf(start),
            TAG_NODE if height > 0 => self.node(height, start),
            tag => Ok(Tree::Uniform(self.code(tag)?)),
        }
    }

    fn node(&mut self, height: u32, start: u64) -> Result<Tree, TrackerError> {
        let mut children = Vec::with_capacity(FANOUT);
        while children.len() < FANOUT {
            let count = usize::from(self.byte()?);
            let from = start + children.len() as u64 * tree::blocks_under(height - 1);
            let child = self.tree(height - 1, from)?;
            let fits = (1..=FANOUT - children.len()).contains(&count);
            if !fits || (count > 1 && !matches!(child, Tree::Uniform(_))) {
                return Err(self.broken("a run of subtrees that cannot be"));
            }
            children.extend(std::iter::repeat_n(child, count));
        }
        let children = <[Tree; FANOUT]>::try_from(children).expect("filled to 64 above");
        let mut tree = Tree::Node(Arc::new(children));
        tree.collapse();
        Ok(tree)
    }

    fn leaf(&mut self, start: u64) -> Result<Tree, TrackerError> {
        let base = self.byte()?;
        let mut leaf = Leaf::new(self.code(base)?);
        for _ in 0..self.byte()? {
            let code = self.byte()?;
            let code = self.code(code)?;
            let set = self.set(start)?;
            if code == leaf.base || leaf.sets.iter().any(|other| !other.is_disjoint(&set)) {
                return Err(self.broken("a block in two states"));
            }
            let place = &mut leaf.sets[usize::from(code)];
            if !place.is_empty() {
                return Err(self.broken("a state given twice"));
            }
            *place = set;
        }
        Ok(match leaf.uniform() {
            Some(code) => Tree::Uniform(code),
            None => Tree::Leaf(Arc::new(leaf)),
        })
    }

    fn set(&mut self, start: u64) -> Result<RoaringBitmap, TrackerError> {
        let len = self.take(4)?.try_into().expect("4 bytes were taken");
        let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > SET_BYTES_MAX {
            return Err(self.broken("a set that is longer than any"));
        }
        let mut bytes = self.take(len)?;
        let mut set = RoaringBitmap::deserialize_from(&mut bytes)
            .map_err(|_| self.broken("a set that is none"))?;
        let (first, last) = (tree::low(start), tree::low(start + LEAF_BLOCKS - 1));
        let within = set.min() >= Some(first) && set.max().is_some_and(|max| max <= last);
        if !bytes.is_empty() || !within {
            return Err(self.broken("a set that is empty, or not of these blocks"));
        }
        set.remove_run_compression();
        Ok(set)
    }

    fn code(&self, byte: u8) -> Result<Code, TrackerError> {
        match usize::from(byte) < self.states {
            true => Ok(byte),
            false => Err(self.broken("a state that is not tracked")),
        }
    }

    fn byte(&mut self) -> Result<u8, TrackerError> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], TrackerError> {
        let Some(bytes) = self.bytes[self.at..].get(..len) else {
            return Err(self.broken("it ends too soon"));
        };
        self.at += len;
        Ok(bytes)
    }

    fn broken(&self, why: &'static str) -> TrackerError {
        TrackerError::Corrupt { at: self.at, why }
    }
}
