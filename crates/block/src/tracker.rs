//! [`StateTracker`]: which of a few states each block of a device is in.
//!
//! One state is the default, up to seven others are tracked beside it. A block has exactly one
//! state, by construction: the tracker is one map from blocks to states, and the sets of blocks
//! that it exports are views of that map.
//!
//! ```text
//! Tree::Node     64 subtrees, shared (Arc)                 at most 5 deep
//! Tree::Uniform  one state for the whole subtree, however large
//! Tree::Leaf     2^16 blocks, shared: a base state, and a roaring bitmap for each other
//! ```
//!
//! Why a tree over bitmaps, and not one bitmap per state:
//! - a discard of a whole disk of 2^34 blocks replaces one node; in flat bitmaps it touches
//!   2^18 containers;
//! - [`Clone`] is the export: two reference counts. A later write copies the path to what it
//!   changes, never more;
//! - after a large range was set, a single block inside it goes into a set that was empty; in a
//!   flat bitmap it would split a run container, whose cost grows with every split.
//!
//! Figures of 2026-11-22 (an AMD EPYC, 2 cores, `cargo bench --bench tracker`), flat roaring
//! bitmaps in brackets: a single block scattered over 4 GiB 59 ns (86), inside 128 MiB that were
//! set before 59 ns (211), inside 64 TiB that were set before 0.6 us; 1M blocks 2.6 us (1.1); 2^34
//! blocks 5 ns and the freeing of what was there (11 ms); a clone 8 ns, the first write after it
//! 2.6 us; `get` 8 ns (50), `runs` over 8 mixed blocks 0.23 us. The worst single block takes a set
//! of a leaf across 4096 members, back and forth between roaring's two forms: 3.6 us.
//!
//! Invariants:
//! 1. A block has one state: in a leaf the sets are disjoint, the base's own set is empty.
//! 2. A node whose subtrees are all the same state is `Tree::Uniform`; so is a full leaf.
//! 3. No set holds a run container, but for the moment of an operation on a range.
//! 4. What lies past the end of the device has any state, and no answer shows it.
//!
//! Not here: locks (a tracker stands behind its owner's), and what the states mean.

mod encoding;
mod leaf;
mod tree;
#[cfg(test)]
mod twin;

use std::fmt::Debug;
use std::iter;
use std::sync::Arc;

use roaring::RoaringTreemap;

use crate::units::{BlockCount, BlockIndex, BlockRange, BlockSize, SIZE_BYTES_MAX};
use leaf::Code;
use tree::{Span, Tree};

/// The most states of one tracker, the default among them.
pub const STATES_MAX: usize = 8;

/// The most blocks of one tracker: the largest device in the smallest blocks.
pub const BLOCKS_MAX: BlockCount = BlockCount(SIZE_BYTES_MAX / BlockSize::MIN_BYTES as u64);

/// A default state and some others, one per block. See the module's text.
#[derive(Clone, Debug)]
pub struct StateTracker<S> {
    blocks: BlockCount,
    /// The default first. A state's place is its code in the tree.
    states: Arc<[S]>,
    /// Levels of nodes above the leaves that `blocks` needs.
    height: u32,
    tree: Tree,
}

/// Why a tracker refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrackerError {
    /// Two of the states given are the same.
    #[error("state {0} is given twice")]
    StatesEqual(String),
    /// A state that this tracker was not made for.
    #[error("state {0} is not tracked")]
    NotTracked(String),
    /// More states than a tracker holds.
    #[error("{0} states, where at most {STATES_MAX} are tracked")]
    TooManyStates(usize),
    /// More blocks than a device has.
    #[error("{} blocks, where a device has at most {}", .0.0, BLOCKS_MAX.0)]
    TooManyBlocks(BlockCount),
    /// Not within the device.
    #[error("{range:?} are not within the device of {} blocks", .blocks.0)]
    OutOfRange {
        /// What was asked for.
        range: BlockRange,
        /// What there is.
        blocks: BlockCount,
    },
    /// Stored bytes that no tracker wrote.
    #[error("the stored block states are broken at byte {at}: {why}")]
    Corrupt {
        /// How far they were good.
        at: usize,
        /// What is wrong there.
        why: &'static str,
    },
}

impl<S: Copy + Eq + Debug> StateTracker<S> {
    /// Every block in `default`; blocks can go to any of `others`, and back.
    ///
    /// # Errors
    /// Two equal states, too many states, too many blocks.
    pub fn new(blocks: BlockCount, default: S, others: &[S]) -> Result<Self, TrackerError> {
        let states: Arc<[S]> = iter::once(default).chain(others.iter().copied()).collect();
        if states.len() > STATES_MAX {
            return Err(TrackerError::TooManyStates(states.len()));
        }
        if blocks > BLOCKS_MAX {
            return Err(TrackerError::TooManyBlocks(blocks));
        }
        for (at, state) in states.iter().enumerate() {
            if states[..at].contains(state) {
                return Err(TrackerError::StatesEqual(format!("{state:?}")));
            }
        }
        Ok(Self {
            blocks,
            states,
            height: tree::height_for(blocks.0),
            tree: Tree::Uniform(0),
        })
    }

    /// How many blocks the device has.
    pub fn count_blocks(&self) -> BlockCount {
        self.blocks
    }

    /// The memory that it takes, near enough; what it shares with a clone counts in both.
    pub fn memory_bytes(&self) -> u64 {
        self.tree.memory_bytes()
    }

    /// Puts every block of the range in a state.
    ///
    /// # Errors
    /// A state that is not tracked, a range that is not within the device.
    pub fn set_range(&mut self, range: BlockRange, state: S) -> Result<(), TrackerError> {
        let code = self.code(state)?;
        if let Some(span) = self.span_to_change(range)? {
            self.tree.set(self.height, span, code);
        }
        Ok(())
    }

    /// Puts those blocks of the range that are in state `from` in state `to`.
    ///
    /// # Errors
    /// `from` and `to` the same, or not tracked; a range that is not within the device.
    pub fn replace(&mut self, range: BlockRange, from: S, to: S) -> Result<(), TrackerError> {
        let (from_code, to_code) = (self.code(from)?, self.code(to)?);
        if from_code == to_code {
            return Err(TrackerError::StatesEqual(format!("{from:?}")));
        }
        if let Some(span) = self.span_to_change(range)? {
            self.tree.replace(self.height, span, from_code, to_code);
        }
        Ok(())
    }

    /// The state of one block.
    ///
    /// # Errors
    /// A block that is not within the device.
    pub fn get(&self, block: BlockIndex) -> Result<S, TrackerError> {
        if block.0 >= self.blocks.0 {
            let range = BlockRange::new(block.0, block.0.saturating_add(1));
            return Err(self.out_of_range(range));
        }
        Ok(self.state(self.tree.get(self.height, block.0)))
    }

    /// The longest run of one state that starts at `block`, cut at `limit` and at the end of the
    /// device: the state, and the block after the run.
    ///
    /// # Panics
    /// Where `block` does not lie before `limit` and before the end of the device.
    pub fn run_at(&self, block: BlockIndex, limit: BlockIndex) -> (S, BlockIndex) {
        let limit = limit.0.min(self.blocks.0);
        assert!(
            block.0 < limit,
            "a run starts within the device and before its limit"
        );
        let (code, mut end) = self.tree.piece_at(self.height, block.0);
        // Within a leaf a piece is a whole run; only at its border the next may go on with it.
        while end < limit && end.is_multiple_of(leaf::LEAF_BLOCKS) {
            let (next, next_end) = self.tree.piece_at(self.height, end);
            if next != code {
                break;
            }
            end = next_end;
        }
        (self.state(code), BlockIndex(end.min(limit)))
    }

    /// The longest runs of one state, in order. They cover the range, as far as it lies within the
    /// device.
    pub fn runs(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, S)> {
        let mut rest = range.intersect(self.device());
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (state, end) = self.run_at(rest.start, rest.end);
            let start = std::mem::replace(&mut rest.start, end);
            Some((BlockRange { start, end }, state))
        })
    }

    /// How many blocks are in a state.
    ///
    /// # Errors
    /// A state that is not tracked.
    pub fn count(&self, state: S) -> Result<BlockCount, TrackerError> {
        self.count_in(self.device(), state)
    }

    /// How many blocks of the range are in a state.
    ///
    /// # Errors
    /// A state that is not tracked, a range that is not within the device.
    pub fn count_in(&self, range: BlockRange, state: S) -> Result<BlockCount, TrackerError> {
        let code = self.code(state)?;
        let span = self.span(range)?;
        Ok(BlockCount(span.map_or(0, |span| {
            self.tree.count(self.height, span, code)
        })))
    }

    /// Is every block of the range in one of these states? Yes for an empty range.
    ///
    /// # Errors
    /// A state that is not tracked, a range that is not within the device.
    pub fn has_range(&self, range: BlockRange, states: &[S]) -> Result<bool, TrackerError> {
        let mut wanted = [false; STATES_MAX];
        for state in states {
            wanted[usize::from(self.code(*state)?)] = true;
        }
        let span = self.span(range)?;
        Ok(span.is_none_or(|span| self.tree.has_only(self.height, span, &wanted)))
    }

    /// The runs of blocks in one state, in order. A region of another state is one step, however
    /// large.
    ///
    /// # Errors
    /// A state that is not tracked.
    pub fn blocks_in(&self, state: S) -> Result<impl Iterator<Item = BlockRange>, TrackerError> {
        self.code(state)?;
        let runs = self.runs(self.device());
        Ok(runs.filter_map(move |(range, s)| (s == state).then_some(range)))
    }

    /// The blocks in one state, as a roaring set of its own: for storing, and for set algebra. To
    /// keep a state of the whole tracker, [`Clone`] it: that costs nothing.
    ///
    /// # Errors
    /// A state that is not tracked.
    pub fn export(&self, state: S) -> Result<RoaringTreemap, TrackerError> {
        let code = self.code(state)?;
        let mut set = RoaringTreemap::new();
        if let Some(span) = Span::new(0, self.blocks.0) {
            self.tree.export(self.height, span, code, &mut set);
        }
        Ok(set)
    }

    fn state(&self, code: Code) -> S {
        self.states[usize::from(code)]
    }

    fn code(&self, state: S) -> Result<Code, TrackerError> {
        let at = self.states.iter().position(|s| *s == state);
        let code = at.and_then(|at| Code::try_from(at).ok());
        code.ok_or_else(|| TrackerError::NotTracked(format!("{state:?}")))
    }

    fn device(&self) -> BlockRange {
        BlockRange::new(0, self.blocks.0)
    }

    /// The range, checked; nothing for an empty one.
    fn span(&self, range: BlockRange) -> Result<Option<Span>, TrackerError> {
        if range.end > self.device().end {
            return Err(self.out_of_range(range));
        }
        Ok(Span::new(range.start.0, range.end.0))
    }

    /// As [`Self::span`], for changes: one that reaches the end of the device goes on to the end of
    /// the tree (invariant 4), so that it replaces whole subtrees instead of cutting the last.
    fn span_to_change(&self, range: BlockRange) -> Result<Option<Span>, TrackerError> {
        let mut span = self.span(range)?;
        if let Some(span) = &mut span
            && span.end == self.blocks.0
        {
            span.end = tree::blocks_under(self.height);
        }
        Ok(span)
    }

    fn out_of_range(&self, range: BlockRange) -> TrackerError {
        TrackerError::OutOfRange {
            range,
            blocks: self.blocks,
        }
    }
}
