//! Each limit from both sides, where the real thing would be terabytes: objects that are crafted, whole
//! by their checksums. Those that can be made are in `tests/it/limits.rs`; the footer of a layer and its
//! writer have theirs beside them.

use std::sync::Arc;

use cowslip_block::BlockRange;
use cowslip_block::files::{Access, Dir};
use cowslip_sim::MemoryFs;
use uuid::Uuid;

use super::*;
use crate::codec::Hash;
use crate::error::StoreError;
use crate::header::{Node, NodePtr, Slot, crafted};
use crate::host::RealHost;
use crate::ids::LayerId;
use crate::roots::lease::{LeaseMark, Protected};
use crate::roots::{Lease, SessionRecord};
use crate::store::Caches;
use crate::{DiffFigures, HeaderId, HeaderMeta, HeaderSpec, MapRun, Store, Target};

fn id(n: u128) -> HeaderId {
    HeaderId(Uuid::from_u128(n))
}

fn layer(n: u128) -> LayerId {
    LayerId(Uuid::from_u128(n))
}

fn store() -> (Arc<dyn Dir>, Store) {
    let root: Arc<dyn Dir> = MemoryFs::new().root();
    let store = Store::open_or_create(&*root, Arc::new(RealHost), Caches::default()).unwrap();
    (root, store)
}

#[track_caller]
fn is_limit(error: &StoreError, name: &str, value: u64) {
    match error {
        StoreError::Limit { what, max } if what.contains(name) && *max == value => {
            assert!(error.to_string().contains(&value.to_string()));
        }
        other => panic!("not the limit of {name}: {other}"),
    }
}

/// What a reader makes of a header that says this of itself.
fn read(meta: HeaderMeta, nodes_bytes: u64) -> Result<HeaderMeta, String> {
    let tail = crafted::tail(meta, nodes_bytes);
    crafted::read_tail(&tail, nodes_bytes).map_err(|e| e.to_string())
}

#[test]
fn the_largest_image_is_read_and_one_byte_more_is_refused() {
    let of = |size_bytes| HeaderMeta {
        size_bytes,
        ..crafted::meta(id(1), 1)
    };
    assert_eq!(
        read(of(SIZE_BYTES_MAX), 0).unwrap().size_bytes,
        SIZE_BYTES_MAX
    );
    let why = read(of(SIZE_BYTES_MAX + 1), 0).unwrap_err();
    assert!(
        why.contains(&format!("{} bytes", SIZE_BYTES_MAX + 1)),
        "{why}"
    );
    assert!(read(of(0), 0).is_err());
}

#[test]
fn the_last_generation_is_written_and_read_and_no_other() {
    let of = |generation| HeaderMeta {
        parent: Some(id(7)),
        generation,
        ..crafted::meta(id(1), 4)
    };
    assert!(read(of(GENERATION_MAX), 0).is_ok());
    let why = read(of(GENERATION_MAX + 1), 0).unwrap_err();
    assert!(why.contains("generation 4294967296"), "{why}");
    // The writer, over a parent that nobody has the time to make.
    let (root, store) = store();
    let file = root
        .open_dir("headers")
        .unwrap()
        .create(&id(1).to_string())
        .unwrap();
    let crafted = crafted::tail(of(GENERATION_MAX - 1), 0);
    file.write_at(&crafted, 0).unwrap();
    let parent = store.open_header(id(1)).unwrap();
    let lease = store.lease().unwrap();
    let last = store.put_header(&lease, &spec(Some(&parent), 4 * 4096, &[]));
    let last = last.unwrap();
    assert_eq!(last.meta().generation, GENERATION_MAX);
    let error = store
        .put_header(&lease, &spec(Some(&last), 4 * 4096, &[]))
        .unwrap_err();
    is_limit(&error, "snapshots since the template", GENERATION_MAX);
}

fn spec<'a>(
    parent: Option<&'a crate::Header>,
    size_bytes: u64,
    changes: &'a [MapRun],
) -> HeaderSpec<'a> {
    HeaderSpec {
        parent,
        size_bytes,
        block_size: BlockSize::DISK,
        changes,
        layer: None,
        figures: DiffFigures::default(),
        made_by: "test",
    }
}

#[test]
fn a_longer_text_of_what_made_it_is_refused_by_the_reader() {
    let of = |made_by: String| HeaderMeta {
        made_by,
        ..crafted::meta(id(1), 1)
    };
    assert!(read(of("x".repeat(MADE_BY_BYTES_MAX)), 0).is_ok());
    assert!(read(of("x".repeat(MADE_BY_BYTES_MAX + 1)), 0).is_err());
    assert!(read(of("a\nb".into()), 0).is_err());
}

#[test]
fn the_nodes_of_one_header_end_at_their_limit() {
    let of = |nodes_bytes| read(crafted::meta(id(1), 1), nodes_bytes);
    assert!(of(HEADER_NODES_BYTES_MAX).is_ok());
    let why = of(HEADER_NODES_BYTES_MAX + 1).unwrap_err();
    assert!(why.contains("4294967297 bytes of nodes"), "{why}");
    // The one way to make a pointer, for the writer and for the reader.
    let pointer = |offset, len| NodePtr::checked(id(1), offset, len, Hash::of(b"a node"));
    let last = HEADER_NODES_BYTES_MAX - u64::from(NODE_BYTES_MAX);
    assert!(pointer(last, NODE_BYTES_MAX).is_some());
    assert!(pointer(last + 1, NODE_BYTES_MAX).is_none());
    assert!(pointer(0, NODE_BYTES_MAX + 1).is_none());
    assert!(pointer(u64::MAX, 1).is_none());
}

#[test]
fn a_node_above_the_highest_level_is_refused() {
    let of = |level| {
        let mut slots = Box::new([Slot::Nil; INNER_SLOTS]);
        let len = 100;
        slots[3] = Slot::Node(NodePtr::checked(id(1), 0, len, Hash::of(b"a node")).unwrap());
        Node::Inner { level, slots }
    };
    let highest = of(HEIGHT_MAX);
    assert_eq!(Node::decode(&highest.encode(), 0).unwrap(), highest);
    let mut bytes = highest.encode();
    bytes[0] = HEIGHT_MAX + 1;
    let why = Node::decode(&bytes, 0).unwrap_err().to_string();
    assert!(why.contains("level 8"), "{why}");
}

#[test]
fn a_run_may_end_where_the_largest_layer_does() {
    let leaf = |at| crafted::leaf_at(0, 4, layer(1), at);
    let last = leaf(LAYER_BLOCKS_MAX - 4);
    assert_eq!(Node::decode(&last.encode(), 0).unwrap(), last);
    let why = Node::decode(&leaf(LAYER_BLOCKS_MAX - 3).encode(), 0).unwrap_err();
    assert!(why.to_string().contains("past the largest layer"), "{why}");
    // The writer: a map may point at a layer that is not its own.
    let (_root, store) = store();
    let lease = store.lease().unwrap();
    let put = |at| {
        let (blocks, to) = (BlockRange::new(0, 4), Target::Layer { id: layer(1), at });
        store.put_header(&lease, &spec(None, 8 * 4096, &[MapRun { blocks, to }]))
    };
    let header = put(LAYER_BLOCKS_MAX - 4).unwrap();
    assert_eq!(header.layers().unwrap()[&layer(1)], 4);
    let error = put(LAYER_BLOCKS_MAX - 3).unwrap_err();
    is_limit(&error, "the place in a layer", LAYER_BLOCKS_MAX);
    is_limit(
        &put(u64::MAX - 1).unwrap_err(),
        "the place in a layer",
        LAYER_BLOCKS_MAX,
    );
}

#[test]
fn a_leaf_ends_with_its_last_block() {
    let whole = crafted::leaf_at(255, 1, layer(1), 0);
    assert_eq!(Node::decode(&whole.encode(), 0).unwrap(), whole);
    for (start, count) in [(255, 2), (256, 1), (0, 257)] {
        let bytes = crafted::leaf_at(start, count, layer(1), 0).encode();
        assert!(Node::decode(&bytes, 0).is_err(), "{start} + {count}");
    }
}

#[test]
fn a_full_lease_is_read_and_takes_no_more() {
    let root: Arc<dyn Dir> = MemoryFs::new().root();
    let lease = Lease::take(&root, Uuid::from_u128(1)).unwrap();
    lease.protect(Protected::Layer(layer(1))).unwrap();
    let line = lease.mark().len;
    // Crafted: as if it had listed all but two, and a bit.
    lease.rewind(LeaseMark {
        len: LEASE_BYTES_MAX - 2 * line,
        markers: 0,
    });
    lease.protect(Protected::Layer(layer(2))).unwrap();
    lease.protect(Protected::Layer(layer(3))).unwrap();
    assert_eq!(lease.mark().len, LEASE_BYTES_MAX);
    let error = lease.protect(Protected::Layer(layer(4))).unwrap_err();
    is_limit(&error, "one lease", LEASE_BYTES_MAX);
    let name = Uuid::from_u128(1).to_string();
    let read = Lease::read(&*root, &name).unwrap();
    assert_eq!(read.last(), Some(&Protected::Layer(layer(3))));
    // A byte more than a lease can have.
    let file = root.open(&name, Access::ReadWrite).unwrap();
    file.set_len(LEASE_BYTES_MAX + 1).unwrap();
    let why = Lease::read(&*root, &name).unwrap_err().to_string();
    assert!(
        why.contains(&format!("at most {LEASE_BYTES_MAX} are read")),
        "{why}"
    );
}

#[test]
fn the_longest_session_record_is_read_and_a_longer_one_not_written() {
    let (root, store) = store();
    let of = |len: usize| SessionRecord {
        version: SessionRecord::VERSION,
        id: Uuid::from_u128(5),
        path: "p".repeat(len).into(),
        directory: None,
        temporary: false,
        headers: vec![id(1)],
        moved: None,
    };
    store.put_session(&of(0)).unwrap();
    let sessions = root.open_dir("sessions").unwrap();
    let name = Uuid::from_u128(5).to_string();
    let empty = sessions.open(&name, Access::Read).unwrap().len().unwrap();
    let most = usize::try_from(SESSION_RECORD_BYTES_MAX - empty).unwrap();
    store.put_session(&of(most)).unwrap();
    assert_eq!(store.sessions().unwrap(), [of(most)]);
    let error = store.put_session(&of(most + 1)).unwrap_err();
    is_limit(&error, "sessions/", SESSION_RECORD_BYTES_MAX);
    assert_eq!(store.sessions().unwrap(), [of(most)], "as it was");
    let file = sessions.open(&name, Access::ReadWrite).unwrap();
    file.write_at(b"\n", SESSION_RECORD_BYTES_MAX).unwrap();
    let why = store.sessions().unwrap_err().to_string();
    assert!(why.contains("at most 65536 are read"), "{why}");
}
