//! Maps that no writer makes: whole by their checksums, and wrong, or made to keep a reader busy.

use std::sync::Arc;

use cowslip_block::BlockSize;
use cowslip_block::files::{Access, Dir, read_all};
use cowslip_sim::MemoryFs;
use uuid::Uuid;

use super::*;
use crate::header::crafted::{self, Crafted};
use crate::header::{Header, Node, Slot};
use crate::host::RealHost;
use crate::ids::{HeaderId, LayerId};
use crate::limits::{INNER_SLOTS, span};
use crate::store::{Caches, Store};

struct Rig {
    root: Arc<dyn Dir>,
    store: Store,
    /// Of four blocks.
    layer: LayerId,
}

impl Rig {
    fn new() -> Self {
        let root = MemoryFs::new().root();
        let host = Arc::new(RealHost);
        let store = Store::open_or_create(&*root, host, Caches::default()).unwrap();
        let lease = store.lease().unwrap();
        let mut writer = store.layer_writer(&lease, BlockSize::DISK).unwrap();
        writer.push(&[1; 4 * 4096]).unwrap();
        let layer = writer.finish().unwrap().id;
        Self { root, store, layer }
    }

    fn put(&self, id: HeaderId, object: &[u8]) -> Arc<Header> {
        let headers = self.root.open_dir("headers").unwrap();
        let file = headers.create(&id.to_string()).unwrap();
        file.write_at(object, 0).unwrap();
        self.store.open_header(id).unwrap()
    }

    fn name(&self, name: &str, header: &Header) {
        let lease = self.store.lease().unwrap();
        let name = name.parse().unwrap();
        self.store.commit(&lease, &name, header, false).unwrap();
    }

    fn all(&self) -> StoreReport {
        let host = Arc::new(RealHost);
        verify_store(&*self.root, host, Depth::Decoded, &mut |_, _| ()).unwrap()
    }

    /// What both ways to look at one image find.
    fn found(&self, header: &Header) -> Vec<(String, String)> {
        let of = |damage: Vec<Damage>| {
            let mut places: Vec<_> = damage.into_iter().map(|d| (d.object, d.place)).collect();
            places.sort();
            places
        };
        let one = verify(&self.store, header, &mut |_, _| ()).unwrap();
        let (one, all) = (of(one.damage), of(self.all().damage));
        assert_eq!(one, all);
        one
    }
}

fn id(n: u128) -> HeaderId {
    HeaderId(Uuid::from_u128(n << 64))
}

fn inner(level: u8, slots: impl Fn(usize) -> Slot) -> Node {
    let slots = Box::new(std::array::from_fn(slots));
    Node::Inner { level, slots }
}

#[test]
fn blocks_mapped_past_the_end_are_found() {
    // Four blocks from 10 on; the same below a second level, where a whole leaf lies past the end.
    for (blocks, whole) in [(14, true), (13, false), (300, true), (256 + 13, false)] {
        let rig = Rig::new();
        let leaf = crafted::leaf(10, 4, rig.layer);
        let mut object = Crafted::new(id(1));
        let mut root = object.put(&leaf);
        if blocks > 256 {
            let node = inner(1, |i| if i < 2 { root } else { Slot::Nil });
            root = object.put(&node);
        }
        let header = rig.put(id(1), &object.finish(blocks, root));
        rig.name("it", &header);
        let want = (format!("headers/{}", id(1)), "the map".to_owned());
        assert_eq!(rig.found(&header), Vec::from_iter((!whole).then_some(want)));
    }
}

#[test]
fn a_run_past_the_end_of_its_layer_is_found_to_the_block() {
    for (count, whole) in [(4, true), (5, false)] {
        let rig = Rig::new();
        let leaf = crafted::leaf(10, count, rig.layer);
        let header = rig.put(id(1), &crafted::object(id(1), 100, &leaf));
        rig.name("it", &header);
        let want = (format!("layers/{}", rig.layer), "its end".to_owned());
        assert_eq!(rig.found(&header), Vec::from_iter((!whole).then_some(want)));
    }
}

/// 2^30 ways lead to the one leaf.
#[test]
fn a_map_of_shared_nodes_is_walked_once() {
    let rig = Rig::new();
    let mut object = Crafted::new(id(1));
    let mut root = object.put(&crafted::leaf(10, 4, rig.layer));
    for level in 1..=6 {
        root = object.put(&inner(level, |_| root));
    }
    let header = rig.put(id(1), &object.finish(span(6), root));
    rig.name("it", &header);
    let reads = rig.store.reads().nodes;
    let ways = (INNER_SLOTS as u64).pow(6);
    assert_eq!(header.layers().unwrap(), [(rig.layer, 4 * ways)].into());
    assert_eq!(rig.store.reads().nodes - reads, 7);
    let report = verify(&rig.store, &header, &mut |_, _| ()).unwrap();
    assert_eq!((report.nodes, report.damaged), (7, 0));
    assert_eq!((rig.all().nodes, rig.all().damaged), (7, 0));
    // The leaf is damaged: whom that hits is said as soon.
    let layers = rig.root.open_dir("layers").unwrap();
    layers.remove(&rig.layer.to_string()).unwrap();
    let report = rig.all();
    assert_eq!(report.damaged, 1);
    assert_eq!(report.objects[0].needed_by, ["it"]);
}

/// Only some of the blocks below a node are on the device, and the node is also elsewhere.
#[test]
fn layers_are_counted_as_far_as_the_device_goes() {
    let rig = Rig::new();
    let mut object = Crafted::new(id(1));
    let leaf = object.put(&crafted::leaf(10, 4, rig.layer));
    let root = object.put(&inner(1, |i| if i < 3 { leaf } else { Slot::Nil }));
    let header = rig.put(id(1), &object.finish(512 + 12, root));
    assert_eq!(header.layers().unwrap(), [(rig.layer, 4 + 4 + 2)].into());
}

/// Readers share the copies of a node in memory: verify does not, as each may be damaged.
#[test]
fn of_two_copies_of_a_node_both_are_read() {
    for (damaged, other) in [(id(1), id(2)), (id(2), id(1))] {
        let rig = Rig::new();
        let leaf = crafted::leaf(10, 4, rig.layer);
        let mut first = Crafted::new(id(1));
        let copy = first.put(&leaf);
        let header = rig.put(id(1), &first.finish(256, copy));
        rig.name("first", &header);
        let mut second = Crafted::new(id(2));
        let own = second.put(&leaf);
        let root = second.put(&inner(1, |i| match i {
            0 => copy,
            1 => own,
            _ => Slot::Nil,
        }));
        let header = rig.put(id(2), &second.finish(512, root));
        rig.name("second", &header);
        assert_eq!(rig.found(&header), []);
        // The reader has the other one, and reads on.
        header.layers().unwrap();
        let headers = rig.root.open_dir("headers").unwrap();
        let file = headers
            .open(&damaged.to_string(), Access::ReadWrite)
            .unwrap();
        file.write_at(&[9], 3).unwrap();
        let want = (format!("headers/{damaged}"), "byte 0".to_owned());
        assert_eq!(rig.found(&header), [want], "the copy in {other} is whole");
    }
}

#[test]
fn bytes_of_a_header_that_belong_to_no_node_are_found() {
    let rig = Rig::new();
    let mut object = Crafted::new(id(1));
    let leaf = object.put(&crafted::leaf(10, 4, rig.layer));
    object.put(&crafted::leaf(11, 4, rig.layer));
    let header = rig.put(id(1), &object.finish(256, leaf));
    rig.name("it", &header);
    let report = rig.all();
    assert_eq!(report.damaged, 1);
    assert!(
        report.damage[0].why.contains("no node"),
        "{:?}",
        report.damage
    );
    // Nobody is hit by it.
    assert_eq!(report.objects[0].needed_by, [""; 0]);
}

/// Its checksums are right, and what it decodes to is not as long as it should be.
#[test]
fn a_frame_that_decodes_to_something_else_is_found_by_decoding() {
    const FOOTER: usize = 64;
    let rig = Rig::new();
    let header = rig.put(
        id(1),
        &crafted::object(id(1), 100, &crafted::leaf(10, 4, rig.layer)),
    );
    rig.name("it", &header);
    let layers = rig.root.open_dir("layers").unwrap();
    let name = rig.layer.to_string();
    let old = layers.open(&name, Access::Read).unwrap();
    let old = read_all(&*old, 1 << 20).unwrap();
    let mut object = zstd::bulk::compress(&[1; 100], 1).unwrap();
    let crc = crc32c::crc32c(&object);
    let (len, index_at) = (u32::try_from(object.len()).unwrap(), object.len() as u64);
    let index = [(1 << 24 | len).to_le_bytes(), crc.to_le_bytes()].concat();
    let mut footer = old[old.len() - FOOTER..].to_vec();
    footer[32..40].copy_from_slice(&index_at.to_le_bytes());
    footer[40..44].copy_from_slice(&crc32c::crc32c(&index).to_le_bytes());
    let crc = crc32c::crc32c(&footer[..52]);
    footer[52..56].copy_from_slice(&crc.to_le_bytes());
    object.extend([index, footer].concat());
    layers.remove(&name).unwrap();
    layers.create(&name).unwrap().write_at(&object, 0).unwrap();
    let want = (format!("layers/{name}"), "frame 0 at byte 0".to_owned());
    assert_eq!(rig.found(&header), [want]);
    let host = Arc::new(RealHost);
    let stored = verify_store(&*rig.root, host, Depth::Stored, &mut |_, _| ()).unwrap();
    assert!(stored.is_whole());
    let stored = verify_image(&rig.store, &header, Depth::Stored, &mut |_, _| ()).unwrap();
    assert!(stored.is_whole());
}
