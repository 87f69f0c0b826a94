//! The header: the complete map of one image, as a tree of shared, immutable nodes.
//!
//! ```text
//! a header object:  new nodes, children first | metadata | footer
//! a node pointer:   (header object, offset, length, hash)
//! ```
//!
//! A snapshot writes the nodes that changed and points at the others where they already lie, in
//! the objects of its ancestors. Opening reads metadata and footer; nodes come when a look-up
//! needs them.
//!
//! Invariants:
//! - 7: metadata and footer are under CRC-32Cs, each node under the hash in its pointer.
//! - 8: the limits hold for writer and reader, and an object is decoded again before it is
//!   committed.
//! - 9: [`UncheckedHeader::check`] is the only way in.
//! - A walk is as deep as the map is high, whatever the pointers say.
//! - Nothing past the device's last block is mapped, so that growth reads as zeros.
//!
//! Left out: what the blocks of a layer hold.

mod build;
mod compare;
#[cfg(test)]
pub(crate) mod hostile;
mod layers;
mod map;
mod meta;
mod node;
mod nodes;
mod relocate;

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::files::File;
use cowslip_block::{BlockIndex, BlockRange, BlockSize};

pub use build::HeaderSpec;
pub(crate) use build::encode;
pub use compare::{MapDifference, compare};
pub use map::{MapRun, Merged, Target};
pub(crate) use meta::height_of;
pub use meta::{DiffFigures, HeaderMeta};
pub(crate) use node::{Node, NodePtr, Slot};
pub(crate) use nodes::{Nodes, node_bytes, object_name, read_node};
pub(crate) use relocate::{Moves, Relocation};

use crate::codec::Hash;
use crate::error::{ObjectError, StoreError};
use crate::header::map::span_at;
use crate::header::meta::{TAIL_BYTES_MAX, Tail};
use crate::ids::HeaderId;
use crate::limits::span;

/// The end of a header object, read and not yet believed.
#[derive(Debug)]
pub struct UncheckedHeader {
    last: Vec<u8>,
    object_bytes: u64,
    expected: HeaderId,
    nodes: Arc<Nodes>,
}

/// The map of one image, and what is known about it. Cheap: its nodes are read when needed.
#[derive(Debug)]
pub struct Header {
    tail: Tail,
    tail_hash: Hash,
    object_bytes: u64,
    nodes: Arc<Nodes>,
}

impl UncheckedHeader {
    /// Reads the end of the object that is expected to be the header `expected`.
    pub(crate) fn read(
        file: &dyn File,
        expected: HeaderId,
        nodes: Arc<Nodes>,
    ) -> Result<Self, ObjectError> {
        let object_bytes = file.len()?;
        let want = object_bytes.min(TAIL_BYTES_MAX as u64);
        let mut last = vec![0; usize::try_from(want).expect("a tail is less than 1 KiB")];
        file.read_at(&mut last, object_bytes - want)?;
        Ok(Self {
            last,
            object_bytes,
            expected,
            nodes,
        })
    }

    /// The header, if that is what the bytes are. Nodes are checked when each is first read.
    ///
    /// # Errors
    /// [`ObjectError`] naming the byte that is wrong, or the version.
    pub fn check(self) -> Result<Header, ObjectError> {
        let (tail, tail_bytes) = Tail::decode(&self.last, self.object_bytes)?;
        if tail.meta.id != self.expected {
            let why = format!("this is {:?}, under a wrong name", tail.meta.id);
            return Err(ObjectError::damaged("the metadata", why));
        }
        Ok(Header {
            tail_hash: Hash::of(tail_bytes),
            tail,
            object_bytes: self.object_bytes,
            nodes: self.nodes,
        })
    }
}

impl Header {
    /// What it says besides the map.
    pub fn meta(&self) -> &HeaderMeta {
        &self.tail.meta
    }

    /// Which header.
    pub fn id(&self) -> HeaderId {
        self.tail.meta.id
    }

    /// The size of a block.
    pub fn block_size(&self) -> BlockSize {
        self.tail.meta.block_size
    }

    /// The size of the image, exact.
    pub fn size_bytes(&self) -> u64 {
        self.tail.meta.size_bytes
    }

    /// All the blocks of the image.
    pub fn blocks(&self) -> BlockRange {
        BlockRange::new(0, self.tail.meta.blocks())
    }

    /// The size of the header object: what the map added to the store.
    pub fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// What the blocks are mapped to: runs that cover `range` wholly, in order, merged.
    ///
    /// # Errors
    /// `Invalid` for a range that is not within the image; `Corrupt` and `Io` from the nodes.
    pub fn runs(&self, range: BlockRange) -> Result<Vec<MapRun>, StoreError> {
        let mut runs = Vec::new();
        self.for_each_run(range, &mut |run| {
            runs.push(run);
            Ok::<_, StoreError>(ControlFlow::Continue(()))
        })?;
        Ok(runs)
    }

    /// The same, run by run, until `visit` breaks or fails. Reads the nodes that it comes by, and
    /// no others.
    ///
    /// # Errors
    /// As [`Header::runs`], and what `visit` gives.
    pub fn for_each_run<E: From<StoreError>>(
        &self,
        range: BlockRange,
        visit: &mut impl FnMut(MapRun) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        if range.end > self.blocks().end {
            let why = format!("{range:?} of an image of {} blocks", self.blocks().end.0);
            return Err(StoreError::Invalid(why).into());
        }
        self.walk_merged(range, visit)
    }

    pub(crate) fn root(&self) -> Slot {
        self.tail.root
    }

    /// The level of the root.
    pub(crate) fn height(&self) -> u8 {
        height_of(self.tail.meta.blocks())
    }

    /// The bytes of the nodes in its object, which come before all else.
    pub(crate) fn nodes_bytes(&self) -> u64 {
        self.tail.nodes_bytes
    }

    pub(crate) fn tail_hash(&self) -> Hash {
        self.tail_hash
    }

    pub(crate) fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// `range` may reach past the device, as far as the root does.
    pub(crate) fn walk_merged<E: From<StoreError>>(
        &self,
        range: BlockRange,
        visit: &mut impl FnMut(MapRun) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let mut held: Option<MapRun> = None;
        let at = (self.height(), BlockIndex(0));
        let flow = self.walk(&self.tail.root, at, range, &mut |run| match &mut held {
            Some(before) if before.goes_on_in(run) => {
                before.blocks.end = run.blocks.end;
                Ok(ControlFlow::Continue(()))
            }
            _ => match held.replace(run) {
                Some(whole) => visit(whole),
                None => Ok(ControlFlow::Continue(())),
            },
        })?;
        if let (ControlFlow::Continue(()), Some(last)) = (flow, held) {
            // Whether it breaks makes no difference: this was the last one.
            let _ = visit(last)?;
        }
        Ok(())
    }

    fn walk<E: From<StoreError>>(
        &self,
        slot: &Slot,
        (level, base): (u8, BlockIndex),
        range: BlockRange,
        visit: &mut impl FnMut(MapRun) -> Result<ControlFlow<()>, E>,
    ) -> Result<ControlFlow<()>, E> {
        let range = range.intersect(span_at(level, base));
        if range.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let to = match *slot {
            Slot::Nil => Target::Zero,
            Slot::Run { layer: id, at } => Target::Layer { id, at },
            Slot::Node(ptr) => {
                let node = self.nodes.get(&ptr, level)?;
                return self.walk_node(&node, base, range, visit);
            }
        };
        let blocks = range;
        let to = to.after(range.start.0 - base.0);
        visit(MapRun { blocks, to })
    }

    /// `range` lies within the node's span, and is not empty.
    fn walk_node<E: From<StoreError>>(
        &self,
        node: &Node,
        base: BlockIndex,
        range: BlockRange,
        visit: &mut impl FnMut(MapRun) -> Result<ControlFlow<()>, E>,
    ) -> Result<ControlFlow<()>, E> {
        match node {
            Node::Inner { level, slots } => {
                let below = level - 1;
                let first = (range.start.0 - base.0) / span(below);
                let last = (range.end.0 - 1 - base.0) / span(below);
                for i in first..=last {
                    let at = (below, BlockIndex(base.0 + i * span(below)));
                    let slot = &slots[usize::try_from(i).expect("one of 32")];
                    if self.walk(slot, at, range, visit)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            }
            Node::Leaf(runs) => {
                let mut done = range.start;
                let first = runs.partition_point(|r| r.on_device(base).blocks.end <= done);
                let mapped = runs[first..]
                    .iter()
                    .map_while(|r| r.on_device(base).clip(range));
                for run in mapped {
                    if done < run.blocks.start && visit(zeros(done, run.blocks.start))?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    done = run.blocks.end;
                    if visit(run)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                if done < range.end {
                    return visit(zeros(done, range.end));
                }
                Ok(ControlFlow::Continue(()))
            }
        }
    }
}

fn zeros(start: BlockIndex, end: BlockIndex) -> MapRun {
    MapRun {
        blocks: BlockRange { start, end },
        to: Target::Zero,
    }
}

/// Objects that are whole by their checksums, and that no writer would make.
#[cfg(test)]
pub(crate) mod crafted {
    use super::*;
    use crate::header::node::NodePtr;
    use crate::ids::LayerId;

    /// A header object while it is being made.
    pub(crate) struct Crafted {
        id: HeaderId,
        out: Vec<u8>,
    }

    impl Crafted {
        pub(crate) fn new(id: HeaderId) -> Self {
            let out = Vec::new();
            Self { id, out }
        }

        pub(crate) fn put(&mut self, node: &Node) -> Slot {
            let bytes = node.encode();
            let (offset, len) = (self.out.len() as u64, u32::try_from(bytes.len()).unwrap());
            let ptr = NodePtr::checked(self.id, offset, len, Hash::of(&bytes)).unwrap();
            self.out.extend(bytes);
            Slot::Node(ptr)
        }

        /// The header of an image of so many blocks.
        pub(crate) fn finish(mut self, blocks: u64, root: Slot) -> Vec<u8> {
            let tail = Tail {
                meta: meta(self.id, blocks),
                root,
                nodes_bytes: self.out.len() as u64,
            };
            self.out.extend(tail.encode());
            self.out
        }
    }

    /// The header of an image of so many blocks whose root is this node.
    pub(crate) fn object(id: HeaderId, blocks: u64, root: &Node) -> Vec<u8> {
        let mut crafted = Crafted::new(id);
        let root = crafted.put(root);
        crafted.finish(blocks, root)
    }

    pub(crate) fn meta(id: HeaderId, blocks: u64) -> HeaderMeta {
        HeaderMeta {
            id,
            origin: id,
            parent: None,
            generation: 0,
            created_unix_ms: 0,
            block_size: BlockSize::DISK,
            size_bytes: blocks * 4096,
            made_by: "nobody".to_owned(),
            own_layer: None,
            figures: DiffFigures::default(),
            payload_bytes: 0,
        }
    }

    /// The end of an object whose nodes are so long; its map is all zeros.
    pub(crate) fn tail(meta: HeaderMeta, nodes_bytes: u64) -> Vec<u8> {
        let root = Slot::Nil;
        Tail {
            meta,
            root,
            nodes_bytes,
        }
        .encode()
    }

    /// What a reader makes of such an end.
    pub(crate) fn read_tail(bytes: &[u8], nodes_bytes: u64) -> Result<HeaderMeta, ObjectError> {
        let (tail, _) = Tail::decode(bytes, nodes_bytes + bytes.len() as u64)?;
        Ok(tail.meta)
    }

    /// A leaf with one run.
    pub(crate) fn leaf(start: u16, count: u16, layer: LayerId) -> Node {
        leaf_at(start, count, layer, 0)
    }

    pub(crate) fn leaf_at(start: u16, count: u16, layer: LayerId, at: u64) -> Node {
        Node::Leaf(vec![node::LeafRun {
            start,
            count,
            layer,
            at,
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LayerId;
    use cowslip_block::files::Dir;
    use cowslip_sim::MemoryFs;
    use uuid::Uuid;

    #[test]
    fn a_node_of_another_level_is_refused() {
        let fs = MemoryFs::new();
        let headers: Arc<dyn Dir> = fs.root();
        let id = HeaderId(Uuid::from_u128(1));
        // 300 blocks want a root of level 1, and this is a leaf.
        let leaf = crafted::leaf(0, 4, LayerId(Uuid::from_u128(2)));
        let object = crafted::object(id, 300, &leaf);
        let file = headers.create(&id.to_string()).unwrap();
        file.write_at(&object, 0).unwrap();
        let nodes = Arc::new(Nodes::new(headers, 1 << 20, Arc::default()));
        let header = UncheckedHeader::read(file.as_ref(), id, nodes).unwrap();
        let header = header.check().unwrap();
        let error = header.runs(BlockRange::new(0, 1)).unwrap_err();
        assert!(error.to_string().contains("level 0"), "{error}");
    }
}
