//! [`Leaf`]: the states of 2^16 blocks.
//!
//! A base state, and one roaring set for each other; a block that is in no set is in the base. The
//! base is what the blocks were in when the leaf was split off, whichever state that is: one block
//! that changes in a region of any state costs one entry in an empty set.
//!
//! Each set has at most one container, whose key is the leaf's place among the 2^16 leaves under
//! one upper half of 64-bit block numbers. So a set holds the lower halves of block numbers as
//! they are, and an export joins containers without rewriting them.
//!
//! Invariants:
//! 1. The sets are disjoint; the base's own is empty.
//! 2. Every member lies within the leaf's blocks.
//! 3. No set holds a run container (`flatten` after whatever can make one): one block more in a
//!    flat container costs the same whatever is there already, at most a move of 8 KiB.

use std::ops::RangeInclusive;

use roaring::RoaringBitmap;

use super::STATES_MAX;

/// A state, as its place in the tracker's list of states.
pub(super) type Code = u8;

/// Blocks in one leaf: what one roaring container covers.
pub(super) const LEAF_BLOCKS: u64 = 1 << 16;

/// Blocks by the lower halves of their numbers, all of one leaf.
pub(super) type Members = RangeInclusive<u32>;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf {
    pub(super) base: Code,
    /// By code.
    pub(super) sets: [RoaringBitmap; STATES_MAX],
}

impl Leaf {
    pub(super) fn new(base: Code) -> Self {
        Self {
            base,
            sets: Default::default(),
        }
    }

    /// The sets' containers, as roaring counts them, and what holds them.
    pub(super) fn memory_bytes(&self) -> u64 {
        let sets = self.sets.iter().map(|set| {
            let of = set.statistics();
            of.n_bytes_array_containers + of.n_bytes_bitset_containers + of.n_bytes_run_containers
        });
        size_of::<Self>() as u64 + sets.sum::<u64>()
    }

    pub(super) fn get(&self, block: u32) -> Code {
        self.sets()
            .find(|(_, set)| set.contains(block))
            .map_or(self.base, |(code, _)| code)
    }

    /// The one state that all blocks are in, if it is one.
    pub(super) fn uniform(&self) -> Option<Code> {
        let Some((code, set)) = self.sets().find(|(_, set)| !set.is_empty()) else {
            return Some(self.base);
        };
        // The sets are disjoint: if one is full, it is the first that is not empty.
        (set.len() == LEAF_BLOCKS).then_some(code)
    }

    pub(super) fn set(&mut self, blocks: &Members, to: Code) {
        let single = blocks.start() == blocks.end();
        for (code, set) in (0..).zip(&mut self.sets) {
            let joins = code == to && to != self.base;
            match (joins, single) {
                (true, true) => {
                    set.insert(*blocks.start());
                }
                (true, false) => {
                    set.insert_range(blocks.clone());
                    set.remove_run_compression();
                }
                (false, true) => {
                    set.remove(*blocks.start());
                }
                (false, false) => {
                    set.remove_range(blocks.clone());
                }
            }
        }
    }

    /// Moves every block from one state to another.
    pub(super) fn replace_all(&mut self, from: Code, to: Code) {
        let moved = std::mem::take(self.of_mut(from));
        if from == self.base {
            // Those in `to` and those in no set are now in one state: the new base.
            self.base = to;
            self.of_mut(to).clear();
        } else if to != self.base {
            *self.of_mut(to) |= moved;
            self.flatten(to);
        }
    }

    pub(super) fn replace(&mut self, blocks: &Members, from: Code, to: Code) {
        let moved = self.members(blocks, from);
        if from != self.base {
            *self.of_mut(from) -= &moved;
            self.flatten(from);
        }
        if to != self.base {
            *self.of_mut(to) |= moved;
            self.flatten(to);
        }
    }

    /// The blocks of the range that are in a state.
    pub(super) fn members(&self, blocks: &Members, code: Code) -> RoaringBitmap {
        let mut members = RoaringBitmap::new();
        members.insert_range(blocks.clone());
        if code != self.base {
            return members & &self.sets[usize::from(code)];
        }
        for (_, set) in self.sets() {
            members -= set;
        }
        members
    }

    pub(super) fn count(&self, blocks: &Members, code: Code) -> u64 {
        let count_of = |set: &RoaringBitmap| set.range_cardinality(blocks.clone());
        if code != self.base {
            return count_of(&self.sets[usize::from(code)]);
        }
        let others: u64 = self.sets().map(|(_, set)| count_of(set)).sum();
        count(blocks) - others
    }

    /// The longest run of one state from the start of `blocks`, cut at their end: the state, and
    /// the last block of the run.
    pub(super) fn piece_at(&self, blocks: &Members) -> (Code, u32) {
        let mut last_of_base = *blocks.end();
        for (code, set) in self.sets() {
            let mut rest = set.iter();
            rest.advance_to(*blocks.start());
            let Some(run) = rest.next_range() else {
                continue;
            };
            if run.start() == blocks.start() {
                return (code, *run.end().min(blocks.end()));
            }
            last_of_base = last_of_base.min(run.start() - 1);
        }
        (self.base, last_of_base)
    }

    /// The codes that have a set, with it.
    fn sets(&self) -> impl Iterator<Item = (Code, &RoaringBitmap)> {
        (0..).zip(&self.sets)
    }

    fn of_mut(&mut self, code: Code) -> &mut RoaringBitmap {
        &mut self.sets[usize::from(code)]
    }

    /// Invariant 3.
    fn flatten(&mut self, code: Code) {
        self.of_mut(code).remove_run_compression();
    }
}

/// How many blocks these are.
pub(super) fn count(blocks: &Members) -> u64 {
    u64::from(blocks.end() - blocks.start()) + 1
}
