//! One node of the map, and its bytes.
//!
//! A leaf covers 256 blocks with runs; an inner node has 32 slots, each for a child one level
//! below. A node knows its level and nothing of its position, so it can be shared by any number of
//! headers, and stays where it is when a device grows and the root is wrapped.
//!
//! Invariants:
//! - A node is never all zeros, and never one run over its whole span: its parent's slot says that.
//! - A slot's run covers the whole span below it. What lies past the device's end reads as zeros.
//! - Decoding allocates a node's worth at most, whatever the bytes.

use cowslip_block::{BlockIndex, BlockRange};

use crate::codec::{Hash, Reader, put_delta, put_varint};
use crate::error::ObjectError;
use crate::header::map::{MapRun, Target};
use crate::ids::{HeaderId, LayerId};
use crate::limits::{
    HEADER_NODES_BYTES_MAX, HEIGHT_MAX, INNER_SLOTS, LAYER_BLOCKS_MAX, LEAF_BLOCKS, NODE_BYTES_MAX,
    span,
};

/// Where a node lies, and the hash that its bytes must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodePtr {
    pub(crate) header: HeaderId,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: Hash,
}

/// What is known of a whole subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    /// All zeros.
    Nil,
    /// One contiguous run of one layer.
    Run { layer: LayerId, at: u64 },
    /// See there.
    Node(NodePtr),
}

pub(crate) type Slots = [Slot; INNER_SLOTS];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Leaf(Vec<LeafRun>),
    Inner { level: u8, slots: Box<Slots> },
}

/// Blocks of a leaf that are mapped together. What no run covers reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafRun {
    pub(crate) start: u16,
    pub(crate) count: u16,
    pub(crate) layer: LayerId,
    pub(crate) at: u64,
}

impl LeafRun {
    /// The same, said of the device.
    pub(crate) fn on_device(self, base: BlockIndex) -> MapRun {
        let start = base.0 + u64::from(self.start);
        MapRun {
            blocks: BlockRange::new(start, start + u64::from(self.count)),
            to: Target::Layer {
                id: self.layer,
                at: self.at,
            },
        }
    }

    /// A run within the leaf at `base`; nothing for zeros.
    pub(crate) fn in_leaf(run: MapRun, base: BlockIndex) -> Option<Self> {
        let Target::Layer { id: layer, at } = run.to else {
            return None;
        };
        Some(Self {
            start: u16::try_from(run.blocks.start.0.checked_sub(base.0)?).ok()?,
            count: u16::try_from(run.blocks.count().0).ok()?,
            layer,
            at,
        })
    }
}

/// A small table of the ids that one node mentions, in the order in which they come.
#[derive(Default)]
struct Ids(Vec<uuid::Uuid>);

impl Ids {
    fn number_of(&mut self, id: uuid::Uuid) -> usize {
        // Runs of one layer tend to come together: look at the latest first.
        match self.0.iter().rposition(|known| *known == id) {
            Some(at) => at,
            None => {
                self.0.push(id);
                self.0.len() - 1
            }
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        self.0.iter().for_each(|id| out.extend(id.as_bytes()));
    }

    fn decode(reader: &mut Reader<'_>, most: u64) -> Result<Self, ObjectError> {
        let count = reader.varint_to::<usize>("the number of ids is", most)?;
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            let id = reader.uuid()?;
            if id.is_nil() || ids.contains(&id) {
                return Err(reader.refuse("an id is nil or comes twice"));
            }
            ids.push(id);
        }
        Ok(Self(ids))
    }

    /// Reads a number in the table, which takes no byte where the table has one entry.
    fn pick(&self, reader: &mut Reader<'_>) -> Result<usize, ObjectError> {
        match self.0.len() {
            0 => Err(reader.refuse("an id is wanted, and the table is empty")),
            1 => Ok(0),
            len => reader.varint_to("an id's number is", len as u64 - 1),
        }
    }

    fn put_pick(&self, out: &mut Vec<u8>, number: usize) {
        if self.0.len() > 1 {
            put_varint(out, number as u64);
        }
    }
}

/// Reads the place in a layer of `count` blocks, as a distance from where it was expected.
fn layer_blocks(reader: &mut Reader<'_>, expected: u64, count: u64) -> Result<u64, ObjectError> {
    let at = reader.delta(expected)?;
    match at.checked_add(count) {
        Some(end) if end <= LAYER_BLOCKS_MAX => Ok(at),
        _ => Err(reader.refuse("a run ends past the largest layer")),
    }
}

impl Node {
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner { level, .. } => *level,
        }
    }

    /// The memory that it takes.
    pub(crate) fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Leaf(runs) => runs.capacity() * size_of::<LeafRun>(),
            Self::Inner { .. } => size_of::<Slots>(),
        };
        (bytes + 64) as u64
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.level()];
        match self {
            Self::Leaf(runs) => encode_leaf(runs, &mut out),
            Self::Inner { level, slots } => encode_inner(*level, slots, &mut out),
        }
        out
    }

    /// `bytes` begin at `base` of their object.
    pub(crate) fn decode(bytes: &[u8], base: u64) -> Result<Self, ObjectError> {
        let mut reader = Reader::new(bytes, base);
        let level = reader.u8()?;
        let node = match level {
            0 => Self::Leaf(decode_leaf(&mut reader)?),
            1..=HEIGHT_MAX => {
                let slots = decode_inner(&mut reader, level)?;
                Self::Inner { level, slots }
            }
            _ => return Err(reader.refuse(format!("a node of level {level}"))),
        };
        reader.finish()?;
        Ok(node)
    }
}

fn encode_leaf(runs: &[LeafRun], out: &mut Vec<u8>) {
    let mut ids = Ids::default();
    let numbers: Vec<usize> = runs.iter().map(|r| ids.number_of(r.layer.0)).collect();
    ids.put(out);
    put_varint(out, runs.len() as u64);
    let mut end = 0;
    for run in runs {
        put_varint(out, u64::from(run.start - end));
        put_varint(out, u64::from(run.count - 1));
        end = run.start + run.count;
    }
    for number in &numbers {
        ids.put_pick(out, *number);
    }
    let mut expected = vec![0; ids.0.len()];
    for (run, number) in runs.iter().zip(numbers) {
        put_delta(out, run.at, expected[number]);
        expected[number] = run.at + u64::from(run.count);
    }
}

fn decode_leaf(reader: &mut Reader<'_>) -> Result<Vec<LeafRun>, ObjectError> {
    let ids = Ids::decode(reader, LEAF_BLOCKS)?;
    let count = reader.varint_to::<usize>("the number of runs is", LEAF_BLOCKS)?;
    if count == 0 {
        return Err(reader.refuse("a leaf without runs"));
    }
    let mut runs = Vec::with_capacity(count);
    let mut end = 0u16;
    for _ in 0..count {
        let left = LEAF_BLOCKS - u64::from(end);
        let gap = reader.varint_to::<u16>("a gap is", left)?;
        let after = left - u64::from(gap);
        let Some(most) = after.checked_sub(1) else {
            return Err(reader.refuse("a run begins at the leaf's end"));
        };
        let (start, count) = (
            end + gap,
            1 + reader.varint_to::<u16>("a run goes on for", most)?,
        );
        end = start + count;
        let (layer, at) = (LayerId::NIL, 0);
        runs.push(LeafRun {
            start,
            count,
            layer,
            at,
        });
    }
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        numbers.push(ids.pick(reader)?);
    }
    let mut expected = vec![0; ids.0.len()];
    for (run, number) in runs.iter_mut().zip(numbers) {
        run.layer = LayerId(ids.0[number]);
        run.at = layer_blocks(reader, expected[number], u64::from(run.count))?;
        expected[number] = run.at + u64::from(run.count);
    }
    Ok(runs)
}

/// The two bits of a slot in a node's column of slots.
const NIL: u64 = 0;
const RUN: u64 = 1;
const NODE: u64 = 2;

fn encode_inner(level: u8, slots: &Slots, out: &mut Vec<u8>) {
    let (mut layers, mut headers) = (Ids::default(), Ids::default());
    let mut kinds = 0u64;
    let mut numbers = [0; INNER_SLOTS];
    for (i, slot) in slots.iter().enumerate() {
        let (kind, number) = match slot {
            Slot::Nil => (NIL, 0),
            Slot::Run { layer, .. } => (RUN, layers.number_of(layer.0)),
            Slot::Node(ptr) => (NODE, headers.number_of(ptr.header.0)),
        };
        kinds |= kind << (2 * i);
        numbers[i] = number;
    }
    layers.put(out);
    headers.put(out);
    out.extend(kinds.to_le_bytes());
    let below = span(level - 1);
    let mut run_expected = vec![0; layers.0.len()];
    let mut node_expected = vec![0; headers.0.len()];
    for (slot, number) in slots.iter().zip(numbers) {
        match slot {
            Slot::Nil => {}
            Slot::Run { at, .. } => {
                layers.put_pick(out, number);
                put_delta(out, *at, run_expected[number]);
                run_expected[number] = at + below;
            }
            Slot::Node(ptr) => {
                headers.put_pick(out, number);
                put_delta(out, ptr.offset, node_expected[number]);
                node_expected[number] = ptr.offset + u64::from(ptr.len);
                put_varint(out, u64::from(ptr.len));
                out.extend(ptr.hash.0);
            }
        }
    }
}

fn decode_inner(reader: &mut Reader<'_>, level: u8) -> Result<Box<Slots>, ObjectError> {
    let layers = Ids::decode(reader, INNER_SLOTS as u64)?;
    let headers = Ids::decode(reader, INNER_SLOTS as u64)?;
    let kinds = reader.u64()?;
    if kinds == 0 {
        return Err(reader.refuse("an inner node with nothing in it"));
    }
    let mut run_expected = vec![0; layers.0.len()];
    let mut node_expected = vec![0; headers.0.len()];
    let mut slots = Box::new([Slot::Nil; INNER_SLOTS]);
    for (i, slot) in slots.iter_mut().enumerate() {
        *slot = match kinds >> (2 * i) & 3 {
            NIL => Slot::Nil,
            RUN => {
                let number = layers.pick(reader)?;
                let below = span(level - 1);
                let at = layer_blocks(reader, run_expected[number], below)?;
                run_expected[number] = at + below;
                let layer = LayerId(layers.0[number]);
                Slot::Run { layer, at }
            }
            NODE => {
                let number = headers.pick(reader)?;
                let header = HeaderId(headers.0[number]);
                let offset = reader.delta(node_expected[number])?;
                let len = reader.varint_to("a node's length is", u64::from(NODE_BYTES_MAX))?;
                let hash = reader.hash()?;
                let ptr = NodePtr::checked(header, offset, len, hash)
                    .ok_or_else(|| reader.refuse("a node lies past the largest header"))?;
                node_expected[number] = offset + u64::from(len);
                Slot::Node(ptr)
            }
            _ => return Err(reader.refuse(format!("slot {i} is of an unknown kind"))),
        };
    }
    Ok(slots)
}

impl NodePtr {
    /// A pointer to where a node can be, or nothing.
    pub(crate) fn checked(header: HeaderId, offset: u64, len: u32, hash: Hash) -> Option<Self> {
        let end = offset.checked_add(u64::from(len))?;
        let fits = len > 0 && len <= NODE_BYTES_MAX && end <= HEADER_NODES_BYTES_MAX;
        (fits && !header.0.is_nil()).then_some(Self {
            header,
            offset,
            len,
            hash,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn leaf() -> impl Strategy<Value = Node> {
        let part = (0u16..20, 1u16..60, 1u128..5, 0u64..LAYER_BLOCKS_MAX - 64);
        prop::collection::vec(part, 1..60).prop_map(|parts| {
            let (mut end, mut runs) = (0, Vec::new());
            for (gap, count, id, at) in parts {
                let start = end + gap;
                if u64::from(start + count) > LEAF_BLOCKS {
                    break;
                }
                end = start + count;
                let layer = LayerId(Uuid::from_u128(id));
                runs.push(LeafRun {
                    start,
                    count,
                    layer,
                    at,
                });
            }
            Node::Leaf(runs)
        })
    }

    fn slot(level: u8) -> impl Strategy<Value = Slot> {
        let at_most = LAYER_BLOCKS_MAX.saturating_sub(span(level - 1));
        let run = (1u128..5, 0..at_most.max(1)).prop_map(|(id, at)| Slot::Run {
            layer: LayerId(Uuid::from_u128(id)),
            at,
        });
        let node = (
            1u128..5,
            0..1u64 << 31,
            1..NODE_BYTES_MAX,
            any::<[u8; 16]>(),
        );
        let node = node.prop_map(|(id, offset, len, hash)| {
            let header = HeaderId(Uuid::from_u128(id));
            Slot::Node(NodePtr::checked(header, offset, len, Hash(hash)).unwrap())
        });
        prop_oneof![Just(Slot::Nil), run, node]
    }

    fn inner() -> impl Strategy<Value = Node> {
        // Up to the level whose children can still be one run of a layer.
        (1u8..5).prop_flat_map(|level| {
            let slots = prop::collection::vec(slot(level), INNER_SLOTS);
            slots.prop_filter_map("all nil", move |slots| {
                let some = slots.iter().any(|s| *s != Slot::Nil);
                let slots = Box::new(Slots::try_from(slots).unwrap());
                some.then_some(Node::Inner { level, slots })
            })
        })
    }

    proptest! {
        #[test]
        fn nodes_come_back(node in prop_oneof![leaf(), inner()]) {
            let bytes = node.encode();
            prop_assert!(bytes.len() <= NODE_BYTES_MAX as usize);
            prop_assert_eq!(Node::decode(&bytes, 0).unwrap(), node);
        }

        /// Bytes that nobody checked: what is accepted keeps every bound, and nothing panics.
        #[test]
        fn wild_bytes_are_refused_or_in_bounds(
            node in prop_oneof![leaf(), inner()],
            wild in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = node.encode();
            for (at, byte) in &wild {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                match Node::decode(bytes, 0) {
                    Ok(Node::Leaf(runs)) => {
                        let mut end = 0;
                        for run in runs {
                            prop_assert!(run.start >= end && run.count > 0);
                            end = run.start + run.count;
                            prop_assert!(u64::from(end) <= LEAF_BLOCKS);
                            prop_assert!(run.at + u64::from(run.count) <= LAYER_BLOCKS_MAX);
                        }
                    }
                    Ok(Node::Inner { level, slots }) => {
                        prop_assert!((1..=HEIGHT_MAX).contains(&level));
                        for slot in slots.iter() {
                            match *slot {
                                Slot::Nil => {}
                                Slot::Run { at, .. } => {
                                    prop_assert!(at + span(level - 1) <= LAYER_BLOCKS_MAX);
                                }
                                Slot::Node(ptr) => {
                                    let end = ptr.offset + u64::from(ptr.len);
                                    prop_assert!(end <= HEADER_NODES_BYTES_MAX);
                                }
                            }
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }
}
