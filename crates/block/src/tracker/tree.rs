//! [`Tree`]: the radix tree over leaves, and each operation's walk down it.
//!
//! A subtree does not know where it lies. Every walk carries the height (0 is a leaf) and block
//! numbers of the whole device; the bits of a block number choose the subtree:
//!
//! ```text
//! bits   ...  28..34  22..28  16..22   0..16
//!             slot    slot    slot     place in the leaf
//! height 3    2       1       0
//! ```
//!
//! Invariants: those of the tracker. A change copies what is shared with a clone, from the root
//! down to what it changes (`Arc::make_mut`), and nothing else.

use std::array;
use std::sync::Arc;

use roaring::RoaringTreemap;

use super::STATES_MAX;
use super::leaf::{self, Code, LEAF_BLOCKS, Leaf, Members};

/// Subtrees of a node.
pub(super) const FANOUT: usize = 1 << FANOUT_BITS;
const FANOUT_BITS: u32 = 6;

/// Up to here `has_only` looks at runs; above, it counts.
const LOOK_BLOCKS_MAX: u64 = 64;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    Uniform(Code),
    Leaf(Arc<Leaf>),
    Node(Arc<[Tree; FANOUT]>),
}

/// The blocks `start..end`, at least one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    pub(super) fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    fn count(self) -> u64 {
        self.end - self.start
    }

    /// Everything that one subtree of this height holds?
    fn is_whole(self, height: u32) -> bool {
        self.count() == blocks_under(height)
    }

    /// What of it lies in each subtree of a node of this height.
    fn parts(self, height: u32) -> impl Iterator<Item = (usize, Self)> {
        let blocks = blocks_under(height - 1);
        (self.start / blocks..=(self.end - 1) / blocks).map(move |at| {
            let part = Self {
                start: self.start.max(at * blocks),
                end: self.end.min((at + 1) * blocks),
            };
            (slot(part.start, height), part)
        })
    }

    /// As blocks of one leaf.
    fn members(self) -> Members {
        low(self.start)..=low(self.end - 1)
    }
}

/// Blocks under a subtree of this height.
pub(super) fn blocks_under(height: u32) -> u64 {
    LEAF_BLOCKS << (FANOUT_BITS * height)
}

/// The height of the smallest tree that holds so many blocks.
pub(super) fn height_for(blocks: u64) -> u32 {
    let mut height = 0;
    while blocks_under(height) < blocks {
        height += 1;
    }
    height
}

/// Which subtree of a node of this height holds the block.
fn slot(block: u64, height: u32) -> usize {
    ((block / blocks_under(height - 1)) & 0x3f) as usize
}

/// The lower half of a block number.
pub(super) fn low(block: u64) -> u32 {
    (block & 0xffff_ffff) as u32
}

impl Tree {
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Uniform(_) => 0,
            Self::Leaf(leaf) => leaf.memory_bytes(),
            Self::Node(children) => {
                let below = children.iter().map(Self::memory_bytes).sum::<u64>();
                size_of::<[Self; FANOUT]>() as u64 + below
            }
        }
    }

    pub(super) fn get(&self, height: u32, block: u64) -> Code {
        match self {
            Self::Uniform(code) => *code,
            Self::Leaf(leaf) => leaf.get(low(block)),
            Self::Node(children) => children[slot(block, height)].get(height - 1, block),
        }
    }

    /// The state of a block, and the end of the piece of that state from there: a run within a
    /// leaf, or the rest of a uniform subtree.
    pub(super) fn piece_at(&self, height: u32, block: u64) -> (Code, u64) {
        let end = (block / blocks_under(height) + 1) * blocks_under(height);
        match self {
            Self::Uniform(code) => (*code, end),
            Self::Leaf(leaf) => {
                let (code, last) = leaf.piece_at(&(low(block)..=low(end - 1)));
                (code, block + u64::from(last - low(block)) + 1)
            }
            Self::Node(children) => children[slot(block, height)].piece_at(height - 1, block),
        }
    }

    pub(super) fn set(&mut self, height: u32, span: Span, to: Code) {
        match self {
            Self::Uniform(code) if *code == to => {}
            _ if span.is_whole(height) => *self = Self::Uniform(to),
            _ if height == 0 => self.change_leaf(|leaf| leaf.set(&span.members(), to)),
            _ => self.change_children(height, span, |child, height, part| {
                child.set(height, part, to);
            }),
        }
    }

    pub(super) fn replace(&mut self, height: u32, span: Span, from: Code, to: Code) {
        match self {
            Self::Uniform(code) if *code != from => {}
            Self::Uniform(_) => self.set(height, span, to),
            Self::Leaf(_) if span.is_whole(height) => {
                self.change_leaf(|leaf| leaf.replace_all(from, to));
            }
            Self::Leaf(_) => self.change_leaf(|leaf| leaf.replace(&span.members(), from, to)),
            Self::Node(_) => self.change_children(height, span, |child, height, part| {
                child.replace(height, part, from, to);
            }),
        }
    }

    pub(super) fn count(&self, height: u32, span: Span, code: Code) -> u64 {
        match self {
            Self::Uniform(c) if *c == code => span.count(),
            Self::Uniform(_) => 0,
            Self::Leaf(leaf) => leaf.count(&span.members(), code),
            Self::Node(children) => span
                .parts(height)
                .map(|(at, part)| children[at].count(height - 1, part, code))
                .sum(),
        }
    }

    /// Are all blocks of the span in states that are wanted?
    pub(super) fn has_only(&self, height: u32, span: Span, wanted: &[bool; STATES_MAX]) -> bool {
        match self {
            Self::Uniform(code) => wanted[usize::from(*code)],
            Self::Leaf(leaf) if span.count() <= LOOK_BLOCKS_MAX => {
                let mut rest = span.members();
                loop {
                    let (code, last) = leaf.piece_at(&rest);
                    if !wanted[usize::from(code)] || last == *rest.end() {
                        return wanted[usize::from(code)];
                    }
                    rest = last + 1..=*rest.end();
                }
            }
            Self::Leaf(leaf) => {
                let members = span.members();
                let codes = (0..).zip(wanted).filter(|(_, wanted)| **wanted);
                let count: u64 = codes.map(|(code, _)| leaf.count(&members, code)).sum();
                count == leaf::count(&members)
            }
            Self::Node(children) => span
                .parts(height)
                .all(|(at, part)| children[at].has_only(height - 1, part, wanted)),
        }
    }

    /// Adds the blocks of the span that are in a state.
    pub(super) fn export(&self, height: u32, span: Span, code: Code, set: &mut RoaringTreemap) {
        match self {
            Self::Uniform(c) if *c == code => {
                set.insert_range(span.start..span.end);
            }
            Self::Uniform(_) => {}
            Self::Leaf(leaf) => {
                let members = leaf.members(&span.members(), code);
                let upper = low(span.start >> 32);
                *set |= RoaringTreemap::from_bitmaps([(upper, members)]);
            }
            Self::Node(children) => {
                for (at, part) in span.parts(height) {
                    children[at].export(height - 1, part, code, set);
                }
            }
        }
    }

    /// Becomes uniform where all subtrees are uniform and in one state.
    pub(super) fn collapse(&mut self) {
        if let Self::Node(children) = self
            && let Self::Uniform(code) = children[0]
            && children.iter().all(|child| *child == Self::Uniform(code))
        {
            *self = Self::Uniform(code);
        }
    }

    fn change_leaf(&mut self, change: impl FnOnce(&mut Leaf)) {
        if let Self::Uniform(code) = self {
            *self = Self::Leaf(Arc::new(Leaf::new(*code)));
        }
        let Self::Leaf(leaf) = self else {
            unreachable!("height 0 is a leaf");
        };
        let leaf = Arc::make_mut(leaf);
        change(leaf);
        if let Some(code) = leaf.uniform() {
            *self = Self::Uniform(code);
        }
    }

    fn change_children(
        &mut self,
        height: u32,
        span: Span,
        mut change: impl FnMut(&mut Self, u32, Span),
    ) {
        if let Self::Uniform(code) = self {
            let child = Self::Uniform(*code);
            *self = Self::Node(Arc::new(array::from_fn(|_| child.clone())));
        }
        let Self::Node(children) = self else {
            unreachable!("above height 0 is a node");
        };
        let children = Arc::make_mut(children);
        let mut may_collapse = false;
        for (at, part) in span.parts(height) {
            change(&mut children[at], height - 1, part);
            may_collapse |= matches!(children[at], Self::Uniform(_));
        }
        if may_collapse {
            self.collapse();
        }
    }
}
