//! [`Objects`]: checks one object after the other, by its own checksums, whoever needs it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use cowslip_block::BlockSize;
use cowslip_block::files::{Access, File};

use super::Depth;
use super::findings::{Findings, Spot};
use crate::error::{ObjectError, StoreError};
use crate::header::{Header, Node, NodePtr, Slot, UncheckedHeader, object_name, read_node};
use crate::ids::{HeaderId, LayerId};
use crate::layer::Layer;
use crate::store::{Store, layer_name};

/// What the maps must agree with.
#[derive(Clone, Copy)]
pub(super) struct LayerFacts {
    pub(super) blocks: u64,
    pub(super) block_size: BlockSize,
    /// Some of its frames are deltas.
    pub(super) has_bases: bool,
}

impl LayerFacts {
    pub(super) fn of(layer: &Layer) -> Self {
        Self {
            blocks: layer.blocks().0,
            block_size: layer.block_size(),
            has_bases: !layer.bases().is_empty(),
        }
    }
}

pub(super) struct Objects<'a> {
    pub(super) store: &'a Store,
    pub(super) depth: Depth,
    pub(super) findings: Findings,
    pub(super) headers: u64,
    pub(super) nodes: u64,
    pub(super) frames: u64,
    pub(super) read_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) progress: &'a mut dyn FnMut(u64, u64),
    /// Of each layer that is there; nothing where it cannot be opened.
    pub(super) layers: HashMap<LayerId, Option<LayerFacts>>,
    /// Layers with deltas that a map leads to, whose bases have been looked at.
    pub(super) based: HashSet<LayerId>,
}

impl Objects<'_> {
    fn advance(&mut self, bytes: u64) {
        self.read_bytes += bytes;
        (self.progress)(self.read_bytes, self.total_bytes.max(self.read_bytes));
    }

    /// Tail and nodes; an object that is not there is no finding here.
    pub(super) fn header(&mut self, id: HeaderId) -> Result<(), StoreError> {
        let file = match self
            .store
            .dirs()
            .headers
            .open(&id.to_string(), Access::Read)
        {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(ObjectError::from),
        };
        self.headers += 1;
        let opened = file.and_then(|file| {
            let nodes = Arc::clone(self.store.nodes());
            let header = UncheckedHeader::read(&*file, id, nodes)?.check()?;
            Ok((file, header))
        });
        match opened {
            Ok((file, header)) => {
                self.own_nodes(&*file, &header)?;
                self.advance(header.object_bytes());
                Ok(())
            }
            Err(error) => self
                .findings
                .found(Spot::Header(id), error.of(object_name(id))),
        }
    }

    /// The nodes that lie in the object itself. Together they are all of what lies before the metadata.
    fn own_nodes(&mut self, file: &dyn File, header: &Header) -> Result<(), StoreError> {
        let mut places = Vec::new();
        let mut whole = true;
        own_nodes(file, header, &mut |ptr, node| {
            self.nodes += 1;
            places.push((ptr.offset, ptr.offset + u64::from(ptr.len)));
            node.or_else(|error| {
                whole = false;
                self.findings.found(Spot::Node(ptr), error)
            })
        })?;
        if !whole {
            return Ok(());
        }
        places.sort_unstable();
        let mut reached = 0;
        for (start, end) in places.into_iter().chain([(header.nodes_bytes(), u64::MAX)]) {
            if start > reached {
                let why = format!("the bytes up to {start} belong to no node");
                let gap = ObjectError::damaged(format!("byte {reached}"), why);
                let gap = gap.of(object_name(header.id()));
                return self.findings.found(Spot::Gap(header.id()), gap);
            }
            reached = reached.max(end);
        }
        Ok(())
    }

    /// Footer, index and every frame, deltas by their stored bytes alone: whether their bases are there matters where a map leads to them. An object that is not
    /// there is no finding here.
    pub(super) fn layer(&mut self, id: LayerId) -> Result<(), StoreError> {
        let file = match self.store.dirs().layers.open(&id.to_string(), Access::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(ObjectError::from),
        };
        let layer = match file.and_then(|file| Layer::open(file, id)) {
            Ok(layer) => layer,
            Err(error) => {
                self.layers.insert(id, None);
                return self
                    .findings
                    .found(Spot::Layer(id), error.of(layer_name(id)));
            }
        };
        self.layers.insert(id, Some(LayerFacts::of(&layer)));
        for n in 0..layer.frames() {
            self.frames += 1;
            if let Err(error) = layer.check_frame(n, self.depth == Depth::Decoded) {
                let error = error.of(layer_name(id));
                self.findings.found(Spot::Frame(id, n), error)?;
            }
            self.advance(layer.stored_bytes(n));
        }
        self.advance(layer.object_bytes() - layer.payload_end());
        Ok(())
    }
}

/// Visits the nodes that lie in a header's own object, each once, from its own root down, and what
/// is wrong with each.
pub(crate) fn own_nodes(
    file: &dyn File,
    header: &Header,
    visit: &mut dyn FnMut(NodePtr, Result<(), StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut todo = vec![(header.root(), header.height())];
    let mut seen: HashSet<(NodePtr, u8)> = HashSet::new();
    while let Some((slot, level)) = todo.pop() {
        let Slot::Node(ptr) = slot else { continue };
        if ptr.header != header.id() || !seen.insert((ptr, level)) {
            continue;
        }
        let node = read_node(file, &ptr, level).map(|node| {
            if let Node::Inner { slots, .. } = node {
                todo.extend(slots.iter().map(|slot| (*slot, level - 1)));
            }
        });
        visit(ptr, node)?;
    }
    Ok(())
}
