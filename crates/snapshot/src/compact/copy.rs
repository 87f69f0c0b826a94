//! Copying: the blocks of some layers that images need, into new layers, in the order in which the
//! images have them.
//!
//! A delta stays one where the layer that it is made against stays, and is stored whole where that is left as well. Deltas and blocks that stand alone go into layers
//! apart, so that frames do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cowslip_block::{BlockCount, BlockRange, BlockSize};

use crate::codec::Hash;
use crate::error::{ObjectError, StoreError};
use crate::header::{Header, Moves, Node, Slot, Target};
use crate::ids::LayerId;
use crate::layer::{LayerSummary, LayerWriter, blocks_per_frame};
use crate::limits::span;
use crate::roots::Lease;
use crate::store::{Store, layer_name};
use crate::verify::damage;

/// The payload of one new layer at most: one that is partly used later is not too much to copy.
const LAYER_PAYLOAD_BYTES: u64 = 1 << 30;

/// Why the blocks of a layer could not be copied.
#[derive(Debug)]
pub(super) enum CopyError {
    /// What is to be copied is damaged.
    Damaged(LayerId, StoreError),
    Store(StoreError),
    Interrupted,
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(super) struct Copier<'a> {
    store: &'a Store,
    lease: &'a Lease,
    moves: Moves,
    /// Those of deltas apart.
    writers: HashMap<(BlockSize, bool), LayerWriter>,
    finished: Vec<LayerSummary>,
    /// Nodes whose blocks have been copied.
    seen: HashSet<(Hash, u8)>,
    copied_bytes: u64,
    progress: &'a mut dyn FnMut(u64) -> bool,
}

impl<'a> Copier<'a> {
    /// `progress` is told how many bytes of payload have been copied, and ends it by answering false.
    pub(super) fn new(
        store: &'a Store,
        lease: &'a Lease,
        leave: &HashSet<LayerId>,
        progress: &'a mut dyn FnMut(u64) -> bool,
    ) -> Self {
        Self {
            store,
            lease,
            moves: Moves::from(leave.iter().copied()),
            writers: HashMap::new(),
            finished: Vec::new(),
            seen: HashSet::new(),
            copied_bytes: 0,
            progress,
        }
    }

    /// What of this image has not been copied for another.
    pub(super) fn image(&mut self, header: &Header) -> Result<(), CopyError> {
        self.slot(header, &header.root(), header.height())
    }

    /// Where the blocks went, and the layers that they are in.
    pub(super) fn finish(mut self) -> Result<(Moves, Vec<LayerSummary>), StoreError> {
        for (_, writer) in self.writers {
            self.finished.push(writer.finish()?);
        }
        Ok((self.moves, self.finished))
    }

    fn slot(&mut self, header: &Header, slot: &Slot, level: u8) -> Result<(), CopyError> {
        let ptr = match *slot {
            Slot::Nil => return Ok(()),
            Slot::Run { layer, at } => return self.run(header, layer, at, span(level)),
            Slot::Node(ptr) => ptr,
        };
        if !self.seen.insert((ptr.hash, level)) {
            return Ok(());
        }
        let node: Arc<Node> = header.nodes().get(&ptr, level)?;
        match &*node {
            Node::Leaf(runs) => runs
                .iter()
                .try_for_each(|run| self.run(header, run.layer, run.at, u64::from(run.count))),
            Node::Inner { slots, .. } => slots
                .iter()
                .try_for_each(|slot| self.slot(header, slot, level - 1)),
        }
    }

    fn run(
        &mut self,
        header: &Header,
        layer: LayerId,
        at: u64,
        count: u64,
    ) -> Result<(), CopyError> {
        if !self.moves.leaves(layer) {
            return Ok(());
        }
        let parts = self.moves.parts(layer, BlockRange::new(at, at + count));
        for (at, count, moved) in parts {
            if moved.is_none() {
                self.blocks(layer, at, count, header.block_size())?;
            }
        }
        Ok(())
    }

    /// Copies blocks of a layer, frame by frame.
    fn blocks(
        &mut self,
        layer: LayerId,
        at: u64,
        count: u64,
        size: BlockSize,
    ) -> Result<(), CopyError> {
        let per_frame = blocks_per_frame(size);
        let (mut at, end) = (at, at + count);
        while at < end {
            let (n, skip) = (at / per_frame, at % per_frame);
            let here = (per_frame - skip).min(end - at);
            let frame = self.store.frame(layer, n, size);
            let frame = frame.map_err(|e| failed(layer, e))?;
            let bytes = |blocks| usize::try_from(size.bytes_in(BlockCount(blocks))).ok();
            let payload = bytes(skip)
                .zip(bytes(skip + here))
                .and_then(|(from, to)| frame.get(from..to));
            let Some(payload) = payload else {
                let why = format!("it ends before block {}", at + here);
                let error = ObjectError::damaged("its end", why).of(layer_name(layer));
                return Err(CopyError::Damaged(layer, error));
            };
            self.append((layer, at, here), payload, size)?;
            at += here;
            self.copied_bytes += payload.len() as u64;
            if !(self.progress)(self.copied_bytes) {
                return Err(CopyError::Interrupted);
            }
        }
        Ok(())
    }

    /// Blocks of one frame.
    fn append(
        &mut self,
        (layer, at, count): (LayerId, u64, u64),
        payload: &[u8],
        size: BlockSize,
    ) -> Result<(), CopyError> {
        let n = at / blocks_per_frame(size);
        let opened = self.store.open_layer(layer);
        let opened = opened.map_err(|e| failed(layer, e))?;
        if opened.frame_bases(n).is_none() {
            let writer = self.writer(size, false, count)?;
            let (id, to) = (writer.id(), writer.push(payload)?);
            self.moves
                .add(layer, at, count, Target::Layer { id, at: to });
            return Ok(());
        }
        for (at, block) in (at..).zip(payload.chunks(size.bytes_usize())) {
            let base = self.store.base_of(layer, at, size);
            let base = base.map_err(|e| failed(layer, e))?;
            let base = base.filter(|base| !self.moves.leaves(base.layer()));
            let writer = self.writer(size, base.is_some(), 1)?;
            let to = match &base {
                Some(base) => writer.push_over(block, base)?,
                None => writer.push(block)?,
            };
            let id = writer.id();
            self.moves.add(layer, at, 1, Target::Layer { id, at: to });
        }
        Ok(())
    }

    /// One that has room for so many blocks.
    fn writer(
        &mut self,
        size: BlockSize,
        deltas: bool,
        count: u64,
    ) -> Result<&mut LayerWriter, StoreError> {
        let full = LAYER_PAYLOAD_BYTES / u64::from(size.bytes());
        let key = (size, deltas);
        if let Some(writer) = self.writers.remove(&key) {
            if writer.blocks().0 + count > full {
                self.finished.push(writer.finish()?);
            } else {
                self.writers.insert(key, writer);
            }
        }
        if !self.writers.contains_key(&key) {
            let writer = self.store.layer_writer(self.lease, size)?;
            self.writers.insert(key, writer);
        }
        Ok(self.writers.get_mut(&key).expect("made above"))
    }
}

/// Reading a layer failed: is that damaged?
fn failed(layer: LayerId, error: StoreError) -> CopyError {
    match damage(error) {
        Ok(damage) => CopyError::Damaged(layer, damage),
        Err(other) => CopyError::Store(other),
    }
}
