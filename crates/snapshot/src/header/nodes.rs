//! [`Nodes`]: where nodes of maps come from: the store's header objects, through a cache.
//!
//! The cache is keyed by the node's hash, so headers that share a node share it in memory as well.
//! Invariant 7: a node's bytes are checked against the hash in its pointer before they get in.
//! Two callers that miss the same node read it once; a failure is not remembered.

use std::sync::Arc;

use cowslip_block::files::{Access, Dir, File};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::codec::Hash;
use crate::error::{ObjectError, StoreError};
use crate::header::node::{Node, NodePtr};
use crate::ids::HeaderId;
use crate::limits::NODE_BYTES_MAX;
use crate::reads::Reads;

/// Header objects that are kept open. A chain may be thousands deep: the rest is reopened.
const OPEN_HEADERS_MAX: usize = 64;

#[derive(Clone, Debug)]
struct NodeWeight;

impl Weighter<Hash, Arc<Node>> for NodeWeight {
    fn weight(&self, _: &Hash, node: &Arc<Node>) -> u64 {
        node.weight()
    }
}

/// Reads nodes. One for each store.
#[derive(Debug)]
pub(crate) struct Nodes {
    headers: Arc<dyn Dir>,
    open: Cache<HeaderId, Arc<dyn File>>,
    cache: Cache<Hash, Arc<Node>, NodeWeight>,
    /// The store's: nodes and header objects are counted here.
    reads: Arc<Reads>,
}

impl Nodes {
    /// Nodes from the directory `headers`, with a cache of so many bytes.
    pub(crate) fn new(headers: Arc<dyn Dir>, cache_bytes: u64, reads: Arc<Reads>) -> Self {
        let estimate = usize::try_from(cache_bytes / 2048).unwrap_or(usize::MAX);
        Self {
            headers,
            open: Cache::new(OPEN_HEADERS_MAX),
            cache: Cache::with_weighter(estimate.max(16), cache_bytes, NodeWeight),
            reads,
        }
    }

    /// The node, whose level must be `level`.
    pub(crate) fn get(&self, ptr: &NodePtr, level: u8) -> Result<Arc<Node>, StoreError> {
        let read = || self.read(ptr).map(Arc::new);
        let node = self.cache.get_or_insert_with(&ptr.hash, read)?;
        check_level(&node, ptr, level)?;
        Ok(node)
    }

    /// The same from the stored bytes, whatever is cached.
    pub(crate) fn get_stored(&self, ptr: &NodePtr, level: u8) -> Result<Node, StoreError> {
        self.read_in(ptr.header, |file| read_node(file, ptr, level))
    }

    /// Reads in a header object. Where that fails the file is not kept open: a repair puts another in
    /// its place.
    pub(crate) fn read_in<T>(
        &self,
        id: HeaderId,
        read: impl FnOnce(&dyn File) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let read = self.file(id).and_then(|file| read(&*file));
        read.inspect_err(|_| self.forget(id))
    }

    /// Opens a header object, or finds it open.
    fn file(&self, id: HeaderId) -> Result<Arc<dyn File>, StoreError> {
        let open = || {
            self.reads.headers.one();
            self.headers
                .open(&id.to_string(), Access::Read)
                .map_err(|e| ObjectError::from(e).of(object_name(id)))
        };
        self.open.get_or_insert_with(&id, open)
    }

    /// The object of this name was replaced, or is gone: what is open is not it.
    pub(crate) fn forget(&self, id: HeaderId) {
        self.open.remove(&id);
    }

    /// Closes the header objects of which this is not true.
    pub(crate) fn retain(&self, is: impl Fn(HeaderId) -> bool) {
        self.open.retain(|id, _| is(*id));
    }

    fn read(&self, ptr: &NodePtr) -> Result<Node, StoreError> {
        self.reads.nodes.one();
        self.read_in(ptr.header, |file| read_from(file, ptr))
    }
}

/// The bytes of a node, from the object that it lies in; they have their hash.
pub(crate) fn node_bytes(file: &dyn File, ptr: &NodePtr) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; ptr.len.min(NODE_BYTES_MAX) as usize];
    let found = file.read_at(&mut bytes, ptr.offset).map_err(Into::into);
    found
        .and_then(|()| check_hash(&bytes, ptr))
        .map_err(|e| e.of(object_name(ptr.header)))?;
    Ok(bytes)
}

/// The node.
fn read_from(file: &dyn File, ptr: &NodePtr) -> Result<Node, StoreError> {
    let bytes = node_bytes(file, ptr)?;
    Node::decode(&bytes, ptr.offset).map_err(|e| e.of(object_name(ptr.header)))
}

/// The same, and its level must be `level`.
pub(crate) fn read_node(file: &dyn File, ptr: &NodePtr, level: u8) -> Result<Node, StoreError> {
    let node = read_from(file, ptr)?;
    check_level(&node, ptr, level)?;
    Ok(node)
}

/// A node's bytes, checked against its pointer.
pub(crate) fn decode(bytes: &[u8], ptr: &NodePtr) -> Result<Node, ObjectError> {
    check_hash(bytes, ptr)?;
    Node::decode(bytes, ptr.offset)
}

fn check_hash(bytes: &[u8], ptr: &NodePtr) -> Result<(), ObjectError> {
    if Hash::of(bytes) == ptr.hash {
        return Ok(());
    }
    let why = "the node's bytes do not have the hash that its parent gives";
    Err(ObjectError::damaged(format!("byte {}", ptr.offset), why))
}

/// Levels fall by one at each step down: no pointer leads in a circle, and no walk is deeper than
/// the map is high.
pub(crate) fn check_level(node: &Node, ptr: &NodePtr, level: u8) -> Result<(), StoreError> {
    if node.level() == level {
        return Ok(());
    }
    let why = format!(
        "a node of level {} stands where {level} is due",
        node.level()
    );
    let damaged = ObjectError::damaged(format!("byte {}", ptr.offset), why);
    Err(damaged.of(object_name(ptr.header)))
}

/// A header object's path in the store.
pub(crate) fn object_name(id: HeaderId) -> String {
    format!("headers/{id}")
}
