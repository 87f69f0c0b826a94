//! Building a header from its parent and what changed: O(changes), not O(image).
//!
//! From the root down, a subtree without changes is left where it lies; one that a single change
//! covers becomes one slot; the others are rebuilt, children first, and appended to the object.
//! A node that comes out as it was is not written again.

use std::collections::HashMap;

use cowslip_block::units::SIZE_BYTES_MAX;
use cowslip_block::{BlockIndex, BlockSize};

use crate::codec::Hash;
use crate::error::{ObjectError, StoreError};
use crate::header::Header;
use crate::header::map::{MapRun, Target, overlay, span_at, within};
use crate::header::meta::{DiffFigures, HeaderMeta, TAIL_BYTES_MAX, Tail, height_of, made_by_ok};
use crate::header::node::{LeafRun, Node, NodePtr, Slot, Slots};
use crate::header::nodes::{self, Nodes, object_name};
use crate::ids::HeaderId;
use crate::layer::LayerSummary;
use crate::limits::{
    GENERATION_MAX, HEADER_NODES_BYTES_MAX, INNER_SLOTS, LAYER_BLOCKS_MAX, LEAF_BLOCKS,
    MADE_BY_BYTES_MAX, span,
};

/// What a new header is made of. Its id and its time come from the store's host.
#[derive(Clone, Copy, Debug)]
pub struct HeaderSpec<'a> {
    /// What the changes are laid over; all zeros where there is none.
    pub parent: Option<&'a Header>,
    /// The size of the image: the parent's, or more, and what is more reads as zeros.
    pub size_bytes: u64,
    /// The size of a block: the parent's.
    pub block_size: BlockSize,
    /// What changed: sorted, disjoint, none empty.
    pub changes: &'a [MapRun],
    /// The layer with the payload of the changes.
    pub layer: Option<LayerSummary>,
    /// What the diff held.
    pub figures: DiffFigures,
    /// What makes it: a program and its version.
    pub made_by: &'a str,
}

/// The header object: its bytes. They have been decoded again, every node of them.
pub(crate) fn encode(
    spec: &HeaderSpec<'_>,
    id: HeaderId,
    created_unix_ms: u64,
    nodes: &Nodes,
) -> Result<Vec<u8>, StoreError> {
    check_spec(spec)?;
    let blocks = spec.block_size.count_ceil(spec.size_bytes).0;
    let (old_root, old_height) = spec
        .parent
        .map_or((Slot::Nil, 0), |p| (p.root(), p.height()));
    let mut builder = Builder::new(nodes, id);
    let root = builder.root(&old_root, old_height, height_of(blocks), spec.changes)?;
    let generation = spec.parent.map_or(0, |p| p.meta().generation + 1);
    if generation > GENERATION_MAX {
        return Err(StoreError::limit(
            "snapshots since the template",
            GENERATION_MAX,
        ));
    }
    let meta = HeaderMeta {
        id,
        origin: id,
        parent: spec.parent.map(|p| p.meta().origin),
        generation,
        created_unix_ms,
        block_size: spec.block_size,
        size_bytes: spec.size_bytes,
        made_by: spec.made_by.to_owned(),
        own_layer: spec.layer.map(|l| l.id),
        figures: spec.figures,
        payload_bytes: spec.layer.map_or(0, |l| l.stored_bytes),
    };
    let mut out = builder.into_bytes();
    let tail = Tail {
        meta,
        root,
        nodes_bytes: out.len() as u64,
    };
    out.extend(tail.encode());
    check_again(&out, &tail).map_err(|e| e.of(format!("the new {}", object_name(id))))?;
    Ok(out)
}

fn check_spec(spec: &HeaderSpec<'_>) -> Result<(), StoreError> {
    let invalid = |why: String| Err(StoreError::Invalid(why));
    if spec.size_bytes == 0 {
        return invalid("an image of no bytes".to_owned());
    }
    if spec.size_bytes > SIZE_BYTES_MAX {
        return Err(StoreError::limit(
            "the image's size in bytes",
            SIZE_BYTES_MAX,
        ));
    }
    if !made_by_ok(spec.made_by) {
        let what = format!("the plain text {:?} in bytes", spec.made_by);
        return Err(StoreError::limit(what, MADE_BY_BYTES_MAX as u64));
    }
    if let Some(parent) = spec.parent {
        let (old, new) = (parent.size_bytes(), spec.size_bytes);
        if new < old {
            return invalid(format!("an image of {old} bytes cannot shrink to {new}"));
        }
        if parent.block_size() != spec.block_size {
            return invalid("an image has the block size of its parent".to_owned());
        }
    }
    let mut done = BlockIndex(0);
    for change in spec.changes {
        if change.blocks.is_empty() || change.blocks.start < done {
            return invalid(format!("changes out of order at {:?}", change.blocks));
        }
        done = change.blocks.end;
        let Target::Layer { id, at } = change.to else {
            continue;
        };
        let most = match spec.layer {
            Some(own) if own.id == id => own.blocks.0,
            _ => LAYER_BLOCKS_MAX,
        };
        let end = at.saturating_add(change.blocks.count().0);
        if end > LAYER_BLOCKS_MAX {
            return Err(StoreError::limit(
                "the place in a layer, in blocks",
                LAYER_BLOCKS_MAX,
            ));
        }
        if id.is_nil() || end > most {
            let blocks = change.blocks;
            return invalid(format!("{blocks:?} are mapped past the end of {id:?}"));
        }
    }
    if done.0 > spec.block_size.count_ceil(spec.size_bytes).0 {
        return invalid(format!(
            "changes past the image's end, up to block {}",
            done.0
        ));
    }
    Ok(())
}

/// The nodes of a header object, while they are being written.
pub(super) struct Builder<'a> {
    pub(super) nodes: &'a Nodes,
    own: HeaderId,
    out: Vec<u8>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(nodes: &'a Nodes, own: HeaderId) -> Self {
        let out = Vec::new();
        Self { nodes, own, out }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// The root at `level` of what had its root at `old_level` before the device grew.
    fn root(
        &mut self,
        old: &Slot,
        old_level: u8,
        level: u8,
        changes: &[MapRun],
    ) -> Result<Slot, StoreError> {
        if level <= old_level {
            return self.slot(old, level, BlockIndex(0), changes);
        }
        let mut slots = Box::new([Slot::Nil; INNER_SLOTS]);
        let child = span_at(level - 1, BlockIndex(0));
        let first = self.root(old, old_level, level - 1, within(changes, child))?;
        self.rebuild(&mut slots, 1, level, BlockIndex(0), changes)?;
        slots[0] = first;
        self.put_inner(level, slots, &Slot::Nil)
    }

    /// What becomes of a slot whose child is at `level` and begins at `base`.
    fn slot(
        &mut self,
        old: &Slot,
        level: u8,
        base: BlockIndex,
        changes: &[MapRun],
    ) -> Result<Slot, StoreError> {
        let span = span_at(level, base);
        match changes {
            [] => Ok(*old),
            [only] if only.blocks.intersect(span) == span => Ok(match only.to {
                Target::Zero => Slot::Nil,
                to @ Target::Layer { .. } => slot_of(to.after(base.0 - only.blocks.start.0)),
            }),
            _ if level == 0 => self.leaf(old, base, changes),
            _ => {
                let mut slots = self.old_slots(old, level)?;
                self.rebuild(&mut slots, 0, level, base, changes)?;
                self.put_inner(level, slots, old)
            }
        }
    }

    /// Applies the changes to the slots from `first` on.
    fn rebuild(
        &mut self,
        slots: &mut Slots,
        first: usize,
        level: u8,
        base: BlockIndex,
        changes: &[MapRun],
    ) -> Result<(), StoreError> {
        for (i, slot) in slots.iter_mut().enumerate().skip(first) {
            let base = BlockIndex(base.0 + i as u64 * span(level - 1));
            let here = within(changes, span_at(level - 1, base));
            *slot = self.slot(slot, level - 1, base, here)?;
        }
        Ok(())
    }

    fn old_slots(&self, old: &Slot, level: u8) -> Result<Box<Slots>, StoreError> {
        Ok(match *old {
            Slot::Nil => Box::new([Slot::Nil; INNER_SLOTS]),
            Slot::Run { layer, at } => Box::new(std::array::from_fn(|i| Slot::Run {
                layer,
                at: at + i as u64 * span(level - 1),
            })),
            Slot::Node(ptr) => match self.nodes.get(&ptr, level)?.as_ref() {
                Node::Inner { slots, .. } => slots.clone(),
                Node::Leaf(_) => unreachable!("the level was checked, and is not 0"),
            },
        })
    }

    fn leaf(
        &mut self,
        old: &Slot,
        base: BlockIndex,
        changes: &[MapRun],
    ) -> Result<Slot, StoreError> {
        let span = span_at(0, base);
        let before: Vec<MapRun> = match *old {
            Slot::Nil => Vec::new(),
            Slot::Run { layer: id, at } => vec![MapRun {
                blocks: span,
                to: Target::Layer { id, at },
            }],
            Slot::Node(ptr) => match self.nodes.get(&ptr, 0)?.as_ref() {
                Node::Leaf(runs) => runs.iter().map(|r| r.on_device(base)).collect(),
                Node::Inner { .. } => unreachable!("the level was checked, and is 0"),
            },
        };
        self.put_leaf(&overlay(&before, changes, span), base, old)
    }

    /// A leaf of these runs, which have no zeros among them, or the slot that says the same.
    pub(super) fn put_leaf(
        &mut self,
        runs: &[MapRun],
        base: BlockIndex,
        old: &Slot,
    ) -> Result<Slot, StoreError> {
        match runs {
            [] => Ok(Slot::Nil),
            [only] if only.blocks == span_at(0, base) => Ok(slot_of(only.to)),
            runs => {
                let runs = runs.iter().filter_map(|r| LeafRun::in_leaf(*r, base));
                self.put(&Node::Leaf(runs.collect()), old)
            }
        }
    }

    /// An inner node, or the slot that says the same without one.
    pub(super) fn put_inner(
        &mut self,
        level: u8,
        slots: Box<Slots>,
        old: &Slot,
    ) -> Result<Slot, StoreError> {
        if let first @ (Slot::Nil | Slot::Run { .. }) = slots[0] {
            let goes_on = |(i, slot): (usize, &Slot)| match (first, *slot) {
                (Slot::Nil, Slot::Nil) => true,
                (Slot::Run { layer, at }, Slot::Run { layer: l, at: a }) => {
                    l == layer && a == at + i as u64 * span(level - 1)
                }
                _ => false,
            };
            if slots.iter().enumerate().all(goes_on) {
                return Ok(first);
            }
        }
        self.put(&Node::Inner { level, slots }, old)
    }

    /// Appends the node, unless it is what `old` points at.
    fn put(&mut self, node: &Node, old: &Slot) -> Result<Slot, StoreError> {
        let bytes = node.encode();
        let hash = Hash::of(&bytes);
        if let Slot::Node(ptr) = old
            && ptr.hash == hash
        {
            return Ok(*old);
        }
        let offset = self.out.len() as u64;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Some(ptr) = NodePtr::checked(self.own, offset, len, hash) else {
            let what = "the nodes of one header in bytes";
            return Err(StoreError::limit(what, HEADER_NODES_BYTES_MAX));
        };
        self.out.extend(bytes);
        Ok(Slot::Node(ptr))
    }
}

pub(super) fn slot_of(to: Target) -> Slot {
    match to {
        Target::Zero => Slot::Nil,
        Target::Layer { id: layer, at } => Slot::Run { layer, at },
    }
}

/// Invariant 8: reads the object as a reader will: its tail, and each of its nodes from the root
/// down. Every byte must belong to one of them.
pub(super) fn check_again(object: &[u8], written: &Tail) -> Result<(), ObjectError> {
    let last = &object[object.len().saturating_sub(TAIL_BYTES_MAX)..];
    let (tail, _) = Tail::decode(last, object.len() as u64)?;
    if tail != *written {
        return Err(ObjectError::damaged("the metadata", "it reads as another"));
    }
    let mut seen = HashMap::new();
    let height = height_of(tail.meta.blocks());
    check_nodes(object, tail.meta.id, &tail.root, height, &mut seen)?;
    let seen: u64 = seen.values().map(|len| u64::from(*len)).sum();
    if seen != tail.nodes_bytes {
        let why = format!("{seen} of {} bytes are reached", tail.nodes_bytes);
        return Err(ObjectError::damaged("the nodes", why));
    }
    Ok(())
}

fn check_nodes(
    object: &[u8],
    own: HeaderId,
    slot: &Slot,
    level: u8,
    seen: &mut HashMap<u64, u32>,
) -> Result<(), ObjectError> {
    let Slot::Node(ptr) = slot else {
        return Ok(());
    };
    // Two slots may share a node.
    if ptr.header != own || seen.insert(ptr.offset, ptr.len).is_some() {
        return Ok(());
    }
    let start = usize::try_from(ptr.offset).unwrap_or(usize::MAX);
    let bytes = object.get(start..).and_then(|b| b.get(..ptr.len as usize));
    let place = || format!("byte {}", ptr.offset);
    let bytes = bytes.ok_or_else(|| ObjectError::damaged(place(), "a node lies past the end"))?;
    let node = nodes::decode(bytes, ptr)?;
    match node {
        Node::Leaf(_) if level == 0 => Ok(()),
        Node::Inner { level: l, slots } if l == level && level > 0 => slots
            .iter()
            .try_for_each(|slot| check_nodes(object, own, slot, level - 1, seen)),
        _ => Err(ObjectError::damaged(place(), "a node of another level")),
    }
}

const _: () = assert!(LEAF_BLOCKS <= u16::MAX as u64);
