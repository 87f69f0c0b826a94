//! Deltas: blocks that are stored as differences against blocks of other layers. What goes in comes out, no base has a base, what is needed is kept
//! and no more, and objects that say otherwise are refused.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cowslip_block::{BlockCount, BlockRange, BlockSize, ByteOffset, Device};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::repair::{RepairOptions, repair};
use cowslip_snapshot::verify::{Depth, verify, verify_store};
use cowslip_snapshot::{Header, HeaderSpec, Image, LayerId, Store, StoreError, Target};
use proptest::prelude::*;

use crate::compact::tight;
use crate::made::{BLOCK, Maker, Place};
use crate::rig::{CountingHost, Rig, noise, run, spec};

/// A block of the new layer: of its own, or a block of a base layer with some bytes changed.
#[derive(Clone, Debug)]
enum Block {
    Own(u64),
    Edit {
        layer: prop::sample::Index,
        block: prop::sample::Index,
        at: prop::sample::Index,
        len: usize,
    },
}

fn block() -> impl Strategy<Value = Block> {
    let edit = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let edit = (edit, any::<prop::sample::Index>(), 1usize..600);
    prop_oneof![
        1 => (0u64..50).prop_map(Block::Own),
        2 => edit.prop_map(|((layer, block), at, len)| Block::Edit { layer, block, at, len }),
    ]
}

/// Half of it noise, so that a delta of it pays.
fn own(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = noise(seed + 1, len);
    bytes[..len / 2].fill(b'x');
    bytes
}

pub(crate) fn edited(base: &[u8], at: usize, len: usize) -> Vec<u8> {
    let mut bytes = base.to_vec();
    let end = bytes.len().min(at + len);
    bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x55);
    bytes
}

/// An image that is all of a layer.
fn image_of(store: &Arc<Store>, layer: LayerId, blocks: u64, size: BlockSize) -> Arc<Header> {
    let changes = [run(0, blocks, Target::Layer { id: layer, at: 0 })];
    let spec = HeaderSpec {
        block_size: size,
        ..spec(None, size.bytes_in(BlockCount(blocks)), &changes)
    };
    store.put_header(&store.lease().unwrap(), &spec).unwrap()
}

pub(crate) fn read(store: &Arc<Store>, header: &Arc<Header>) -> Result<Vec<u8>, String> {
    let image: &dyn Device = &Image::new(Arc::clone(store), Arc::clone(header));
    let mut got = vec![0; usize::try_from(header.size_bytes()).unwrap()];
    let read = image.read_at(ByteOffset(0), &mut got);
    read.map_err(|e| e.to_string()).map(|()| got)
}

fn is_whole(store: &Arc<Store>, header: &Arc<Header>) -> bool {
    verify(store, header, &mut |_, _| {}).unwrap().is_whole()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Two generations: what is made over a delta is made over that one's base.
    #[test]
    fn deltas_come_back_and_no_base_has_a_base(
        shift in 9u32..17,
        bases in prop::collection::vec(1usize..40, 1..4),
        blocks in prop::collection::vec(block(), 1..100),
        again in 1usize..300,
    ) {
        let size = BlockSize::new(1 << shift).unwrap();
        let unit = size.bytes_usize();
        let rig = Rig::new();
        let store = &rig.store;
        let lease = store.lease().unwrap();
        let mut layers: Vec<(LayerId, Vec<Vec<u8>>)> = Vec::new();
        for (n, count) in bases.iter().enumerate() {
            let held: Vec<_> = (0..*count).map(|i| own((n * 100 + i) as u64 + 99, unit)).collect();
            let mut writer = store.layer_writer(&lease, size).unwrap();
            writer.push(&held.concat()).unwrap();
            layers.push((writer.finish().unwrap().id, held));
        }
        let mut writer = store.layer_writer(&lease, size).unwrap();
        let mut payload: Vec<Vec<u8>> = Vec::new();
        let mut with_base = 0;
        for (n, block) in (0..).zip(&blocks) {
            let at = match block {
                Block::Own(seed) => {
                    payload.push(own(*seed, unit));
                    writer.push(&payload[n]).unwrap()
                }
                Block::Edit { layer, block, at, len } => {
                    let (id, held) = layer.get(&layers);
                    let block = block.index(held.len());
                    let base = store.base_of(*id, block as u64, size).unwrap().unwrap();
                    prop_assert!(base.bytes() == held[block] && base.layer() == *id);
                    payload.push(edited(&held[block], at.index(unit), *len));
                    with_base += 1;
                    writer.push_over(&payload[n], &base).unwrap()
                }
            };
            prop_assert_eq!(at, n as u64);
        }
        let made = writer.finish().unwrap();
        prop_assert!(made.delta_blocks.0 <= with_base && made.delta_bytes < made.stored_bytes);
        let fresh = rig.reopened();
        let layer = fresh.open_layer(made.id).unwrap();
        prop_assert_eq!((layer.object_bytes(), layer.blocks()), (made.stored_bytes, made.blocks));
        prop_assert_eq!(layer.bases().is_empty(), made.delta_blocks.0 == 0);
        let all = layer.blocks().0;
        let deltas = |from: u64, to: u64| layer.deltas_in(from, to - from);
        prop_assert_eq!(deltas(0, all), made.delta_blocks.0);
        let each: Vec<u64> = (0..all).map(|n| deltas(n, n + 1)).collect();
        for (cut, n) in (0..=all).zip(0..) {
            let before: u64 = each[..n].iter().sum();
            prop_assert_eq!((deltas(0, cut), deltas(cut, all)), (before, made.delta_blocks.0 - before));
        }
        let first = image_of(&fresh, made.id, payload.len() as u64, size);
        prop_assert!(read(&fresh, &first).unwrap() == payload.concat());
        prop_assert!(is_whole(&fresh, &first));

        let mut writer = fresh.layer_writer(&lease, size).unwrap();
        let mut second = Vec::new();
        for (n, held) in payload.iter().enumerate() {
            let bytes = edited(held, again % unit, 5);
            match fresh.base_of(made.id, n as u64, size).unwrap() {
                // It stands alone, or its base does, and is in no layer with deltas.
                Some(base) if base.layer() == made.id => {
                    prop_assert!(base.bytes() == held);
                    writer.push_over(&bytes, &base).unwrap();
                }
                Some(base) => {
                    prop_assert!(layers.iter().any(|(id, held)| *id == base.layer() && held.iter().any(|h| h == base.bytes())));
                    writer.push_over(&bytes, &base).unwrap();
                }
                None => drop(writer.push(&bytes).unwrap()),
            }
            second.push(bytes);
        }
        let made = writer.finish().unwrap();
        let fresh = rig.reopened();
        let image = image_of(&fresh, made.id, second.len() as u64, size);
        prop_assert!(read(&fresh, &image).unwrap() == second.concat());
        prop_assert!(is_whole(&fresh, &image));
    }
}

#[test]
fn a_page_with_few_bytes_changed_takes_few_bytes() {
    let rig = Rig::new();
    let (store, size) = (&rig.store, BlockSize::DISK);
    let lease = store.lease().unwrap();
    let base = noise(1, 160 * 4096);
    let mut writer = store.layer_writer(&lease, size).unwrap();
    writer.push(&base).unwrap();
    let of = writer.finish().unwrap();
    assert_eq!((of.delta_blocks.0, of.delta_bytes), (0, 0));
    let mut writer = store.layer_writer(&lease, size).unwrap();
    for (n, page) in (0..).zip(base.chunks(4096)) {
        let base = store.base_of(of.id, n, size).unwrap().unwrap();
        writer.push_over(&edited(page, 100, 16), &base).unwrap();
    }
    let made = writer.finish().unwrap();
    assert_eq!(made.delta_blocks.0, 160);
    // 16 bytes that are other, where they are, and where the base is.
    assert!(made.delta_bytes < 160 * 40, "{}", made.delta_bytes);
    assert_eq!(made.stored_bytes, made.delta_bytes + 10 * 8 + 64);
    // What compresses as well without is no delta.
    let zeros = store.layer_writer(&lease, size).unwrap();
    let text = vec![b'x'; 4096];
    let mut writer = zeros;
    writer.push(&text).unwrap();
    let flat = writer.finish().unwrap();
    let base = store.base_of(flat.id, 0, size).unwrap().unwrap();
    let mut writer = store.layer_writer(&lease, size).unwrap();
    writer.push_over(&edited(&text, 0, 1), &base).unwrap();
    assert_eq!(writer.finish().unwrap().delta_blocks.0, 0);
    // And one of another size is none.
    let small = BlockSize::new(512).unwrap();
    let mut writer = store.layer_writer(&lease, small).unwrap();
    let refused = writer.push_over(&[1; 512], &base);
    assert!(matches!(refused, Err(StoreError::Invalid(_))));
}

/// `noisy`: a frame that stands alone; `noisier` over it, all of it deltas.
pub(crate) fn noisy() -> (Place, Maker) {
    let place = Place::of(&BTreeMap::new());
    let mut maker = Maker::new(&place);
    let writes = [(2, Some(noise(8, 8 * BLOCK)))];
    maker.take(None, "noisy", 20, &writes);
    maker.take_deltas("noisy", "noisier", &[2, 3, 4, 5, 6, 7, 8, 9]);
    (place, maker)
}

pub(crate) fn layer(maker: &Maker, name: &str) -> LayerId {
    let header = maker.store.resolve(&name.parse().unwrap()).unwrap();
    header.meta().own_layer.unwrap()
}

fn removed(store: &Store) -> HashSet<String> {
    let collected = collect(store, false, &mut |_, _| {}).unwrap();
    assert_eq!(collected.damaged, [""; 0]);
    let layers = collected.removed.into_iter().map(|(path, _)| path);
    layers.filter(|path| path.starts_with("layers/")).collect()
}

fn paths(layers: &[LayerId]) -> HashSet<String> {
    layers.iter().map(|id| format!("layers/{id}")).collect()
}

fn check(place: &Place, maker: &Maker) {
    let store = place.open().unwrap();
    for (name, want) in maker.images() {
        let header = store.resolve(&name.parse().unwrap()).unwrap();
        assert!(read(&store, &header).unwrap() == *want, "{name}");
        assert!(is_whole(&store, &header), "{name}");
    }
    let host = CountingHost::from(1 << 40);
    let report = verify_store(&*place.root, host, Depth::Decoded, &mut |_, _| {}).unwrap();
    assert!(report.is_whole(), "{:?}", report.damage);
}

#[test]
fn a_layer_that_only_deltas_need_is_kept_as_long_as_they_are() {
    let (place, mut maker) = noisy();
    let base = layer(&maker, "noisy");
    let first = layer(&maker, "noisier");
    assert_eq!(maker.store.open_layer(first).unwrap().bases(), [base]);
    maker.remove("noisy");
    assert_eq!(removed(&maker.store), paths(&[]));
    check(&place, &maker);
    // Over a delta: over its base.
    maker.take_deltas("noisier", "noisiest", &[2, 3, 4, 5, 6, 7, 8, 9]);
    let second = layer(&maker, "noisiest");
    assert_eq!(maker.store.open_layer(second).unwrap().bases(), [base]);
    maker.remove("noisier");
    assert_eq!(removed(&maker.store), paths(&[first]));
    check(&place, &maker);
    maker.remove("noisiest");
    assert_eq!(removed(&maker.store), paths(&[second, base]));
}

/// A layer that was begun, or finished and never mentioned, keeps nothing once its writer is gone.
#[test]
fn a_writer_that_dies_before_its_header_leaves_an_orphan_and_takes_nothing() {
    let (place, mut maker) = noisy();
    let (base, first) = (layer(&maker, "noisy"), layer(&maker, "noisier"));
    let lease = maker.store.lease().unwrap();
    let size = BlockSize::new(512).unwrap();
    let mut writer = maker.store.layer_writer(&lease, size).unwrap();
    for block in 0..8 {
        let over = maker.store.base_of(first, block, size).unwrap().unwrap();
        let bytes = edited(over.bytes(), 7, 3);
        writer.push_over(&bytes, &over).unwrap();
    }
    let orphan = writer.finish().unwrap();
    assert_eq!(orphan.delta_blocks.0, 8);
    // As long as its writer lives, it is kept, and what it needs.
    maker.remove("noisy");
    maker.remove("noisier");
    assert_eq!(removed(&maker.store), paths(&[first]));
    check(&place, &maker);
    drop(lease);
    assert_eq!(removed(&maker.store), paths(&[orphan.id, base]));
}

#[test]
fn what_a_base_is_made_over_is_not_kept_for_it() {
    let (place, mut maker) = noisy();
    // A frame that stands alone, and one of deltas behind it.
    let noisy = layer(&maker, "noisy");
    let both = [(20, Some(noise(9, 128 * BLOCK)))];
    maker.take_over("noisy", "both", 200, &both, &[2, 3, 4, 5]);
    let middle = layer(&maker, "both");
    assert_eq!(maker.store.open_layer(middle).unwrap().bases(), [noisy]);
    maker.take_deltas("both", "last", &[20, 21, 22, 23]);
    let last = layer(&maker, "last");
    assert_eq!(maker.store.open_layer(last).unwrap().bases(), [middle]);
    // Nothing else of it.
    maker.take_part("last", "alone", BlockRange::new(20, 24));
    for name in ["noisy", "noisier", "both", "last"] {
        maker.remove(name);
    }
    let gone = removed(&maker.store);
    assert!(gone.contains(&format!("layers/{noisy}")), "{gone:?}");
    assert!(!gone.contains(&format!("layers/{middle}")), "{gone:?}");
    check(&place, &maker);
}

/// Which was over the same base, and whose name is younger than the collection's roots.
#[test]
fn what_another_collection_was_faster_to_remove_does_not_take_its_base_along() {
    let (place, mut maker) = noisy();
    let first = layer(&maker, "noisier");
    maker.remove("noisy");
    let other = place.open().unwrap();
    let mut begun = false;
    let mut meanwhile = |_, _| {
        if !std::mem::replace(&mut begun, true) {
            maker.take_deltas("noisier", "noisiest", &[2, 3, 4, 5, 6, 7, 8, 9]);
            maker.remove("noisier");
            assert_eq!(removed(&maker.store), paths(&[first]));
        }
    };
    collect(&other, false, &mut meanwhile).unwrap();
    assert!(begun);
    check(&place, &maker);
}

/// A layer that cannot tell what it needs takes nothing from anybody.
#[test]
fn nothing_is_collected_that_a_damaged_layer_may_need() {
    let (place, mut maker) = noisy();
    let (base, first) = (layer(&maker, "noisy"), layer(&maker, "noisier"));
    maker.remove("noisy");
    let path = format!("layers/{first}");
    let whole = place.read(&path).unwrap();
    for at in [whole.len() - 10, whole.len() - 70] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        place.write(&path, Some(&bytes));
        let collected = collect(&place.open().unwrap(), false, &mut |_, _| {}).unwrap();
        assert!(collected.damaged[0].contains(&first.to_string()));
        let layers = collected
            .removed
            .iter()
            .filter(|(p, _)| p.starts_with("layers/"));
        assert_eq!(layers.count(), 0);
    }
    place.write(&path, Some(&whole));
    assert_eq!(removed(&place.open().unwrap()), paths(&[]));
    assert!(place.read(&format!("layers/{base}")).is_some());
    check(&place, &maker);
}

#[test]
fn a_lost_base_is_said_with_what_it_costs_and_comes_back_from_a_copy() {
    let (place, maker) = noisy();
    let base = format!("layers/{}", layer(&maker, "noisy"));
    maker.store.remove(&"noisy".parse().unwrap()).unwrap();
    let whole = place.files();
    let mend = |from: Option<&Store>| {
        let host: Arc<dyn cowslip_snapshot::host::Host> = CountingHost::from(1 << 50);
        let options = RepairOptions {
            from,
            ..RepairOptions::default()
        };
        repair(&*place.root, &host, options, &mut |_, _| {}).unwrap()
    };
    let mut flipped = whole[&base].clone();
    flipped[5] ^= 1;
    for harm in [Some(&flipped[..]), Some(&whole[&base][..100]), None] {
        place.write(&base, harm);
        let report = place.verify();
        assert_eq!((report.damaged, report.objects.len()), (1, 1));
        assert_eq!(report.objects[0].object, base);
        assert_eq!(report.objects[0].needed_by, ["noisier"]);
        let store = place.open().unwrap();
        let header = store.resolve(&"noisier".parse().unwrap()).unwrap();
        let said = read(&store, &header).unwrap_err();
        assert!(said.contains(&base), "{said}");
        let alone = verify(&store, &header, &mut |_, _| {}).unwrap();
        assert_eq!(alone.damaged, 1, "{:?}", alone.damage);
        assert_eq!(alone.damage[0].object, base);
        let left = mend(None);
        assert_eq!(left.left_count, 1);
        let lost: Vec<_> = left.lost.iter().map(|l| l.image.as_str()).collect();
        assert_eq!(lost, ["noisier"]);
        let unit = BLOCK as u64;
        let range = left.lost[0].ranges[0];
        assert_eq!((range.start.0, range.end.0), (2 * unit, 10 * unit));
        let other = Place::of(&whole).open().unwrap();
        let mended = mend(Some(&other));
        assert!(mended.is_whole() && mended.lost.is_empty(), "{mended:?}");
        assert!(place.files() == whole);
    }
}

/// A sibling that wrote the same heals a delta, whose bases are in its index.
#[test]
fn a_damaged_delta_is_made_once_more_from_what_a_fork_has() {
    let (place, mut maker) = noisy();
    let mut same = maker.images()["noisier"][2 * BLOCK..10 * BLOCK].to_vec();
    same.extend(noise(70, BLOCK));
    maker.take(Some("noisy"), "fork", 20, &[(2, Some(same))]);
    let path = format!("layers/{}", layer(&maker, "noisier"));
    let whole = place.read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[3] ^= 1;
    place.write(&path, Some(&bytes));
    let host: Arc<dyn cowslip_snapshot::host::Host> = CountingHost::from(1 << 50);
    let report = repair(
        &*place.root,
        &host,
        RepairOptions::default(),
        &mut |_, _| {},
    )
    .unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.mended[0].source, "fork");
    assert!(place.read(&path).unwrap() == whole);
}

#[test]
fn compaction_keeps_deltas_as_deltas() {
    let place = Place::of(&BTreeMap::new());
    let mut maker = Maker::new(&place);
    maker.take(None, "s0", 300, &[(0, Some(noise(1, 300 * BLOCK)))]);
    for n in 1..12u64 {
        let blocks: Vec<u64> = (0..40).map(|i| (n * 17 + i * 7) % 300).collect();
        maker.take_deltas(&format!("s{}", n - 1), &format!("s{n}"), &blocks);
    }
    for n in [2, 3, 5, 8] {
        maker.remove(&format!("s{n}"));
    }
    collect(&maker.store, false, &mut |_, _| {}).unwrap();
    let bytes = |place: &Place| -> usize {
        let files = place.files().into_iter();
        files
            .filter(|(path, _)| path.starts_with("layers/"))
            .map(|(_, bytes)| bytes.len())
            .sum()
    };
    let (base, before) = (layer(&maker, "s0"), bytes(&place));
    let done = tight(&maker.store).unwrap();
    assert!(done.left_objects > 0 && done.damaged.is_empty(), "{done:?}");
    check(&place, &maker);
    assert!(bytes(&place) < before, "{} of {before}", bytes(&place));
    let last = place
        .open()
        .unwrap()
        .resolve(&"s11".parse().unwrap())
        .unwrap();
    // What is left: the base, and one layer with the deltas of all.
    let mut layers: Vec<LayerId> = last.layers().unwrap().into_keys().collect();
    layers.retain(|id| *id != base);
    assert_eq!(layers.len(), 1);
    let deltas = maker.store.open_layer(layers[0]).unwrap();
    assert_eq!(deltas.bases(), [base]);
    assert!(deltas.object_bytes() < 20_000, "{deltas:?}");
    // And it is content with that.
    assert_eq!(tight(&maker.store).unwrap().left_objects, 0);
}

#[test]
fn a_base_that_is_mostly_garbage_is_left_with_the_deltas_made_over_it() {
    let place = Place::of(&BTreeMap::new());
    let mut maker = Maker::new(&place);
    maker.take(None, "old", 300, &[(0, Some(noise(1, 300 * BLOCK)))]);
    let most = [(44, Some(noise(2, 256 * BLOCK)))];
    maker.take_over("old", "new", 300, &most, &[0, 1, 2, 3, 4, 5]);
    let old = layer(&maker, "old");
    maker.remove("old");
    // 6 to 43 are still the old layer's own.
    assert_eq!(removed(&maker.store), paths(&[]));
    tight(&maker.store).unwrap();
    check(&place, &maker);
    assert!(place.read(&format!("layers/{old}")).is_none());
}
