//! Diffs: against a full read of both images, and what they cost.

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::units::BlockSize;
use cowslip_block::{BlockRange, ByteOffset, Device};
use cowslip_snapshot::diff::{DiffKind, DiffRun, DiffSummary, diff, differ};
use cowslip_snapshot::header::{MapDifference, compare};
use cowslip_snapshot::{Header, HeaderSpec, Image, MapRun, Store, StoreError, Target};
use proptest::prelude::*;

use crate::rig::{Rig, noise, run, spec, to};

/// Small blocks, so that small images have maps of several levels.
const UNIT: usize = 512;

/// Puts a header over `parent` that makes `image` of it: `changes` name the blocks that come as
/// payload, and those that come as zeros.
fn put(
    rig: &Rig,
    parent: Option<&Header>,
    image: &[u8],
    changes: &[(BlockRange, bool)],
) -> Arc<Header> {
    let size = BlockSize::new(u32::try_from(UNIT).unwrap()).unwrap();
    let lease = rig.store.lease().unwrap();
    let mut writer = rig.store.layer_writer(&lease, size).unwrap();
    let id = writer.id();
    let mut runs = Vec::new();
    for (blocks, payload) in changes {
        let to = if *payload {
            let at = |b: u64| (usize::try_from(b).unwrap() * UNIT).min(image.len());
            let mut bytes = image[at(blocks.start.0)..at(blocks.end.0)].to_vec();
            bytes.resize(usize::try_from(blocks.count().0).unwrap() * UNIT, 0);
            let at = writer.push(&bytes).unwrap();
            Target::Layer { id, at }
        } else {
            Target::Zero
        };
        runs.push(MapRun {
            blocks: *blocks,
            to,
        });
    }
    let layer = (writer.blocks().0 > 0).then(|| writer.finish().unwrap());
    let spec = HeaderSpec {
        layer,
        block_size: size,
        ..spec(parent, image.len() as u64, &runs)
    };
    rig.store.put_header(&lease, &spec).unwrap()
}

/// One image over another: which one (none for an image that is related to nothing), by how many
/// bytes it is larger, and what changes: where, how many blocks, and to what.
type Step = (Option<prop::sample::Index>, usize, Vec<(u16, u64, u8)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let parent = prop::option::weighted(0.8, any::<prop::sample::Index>());
    let growth = prop_oneof![3 => Just(0usize), 1 => 1usize..700, 1 => 1usize..300 * UNIT];
    let length = prop_oneof![1u64..4, 1u64..40, 200u64..900];
    let changes = prop::collection::vec((any::<u16>(), length, 0u8..5), 0..6);
    prop::collection::vec((parent, growth, changes), 2..6)
}

/// A store full of images, and the bytes that each must have.
fn world(rig: &Rig, first: usize, steps: &[Step]) -> Vec<(Arc<Header>, Vec<u8>)> {
    let mut images: Vec<(Arc<Header>, Vec<u8>)> = Vec::new();
    for (parent, growth, parts) in steps {
        let parent = parent.filter(|_| !images.is_empty());
        let parent = parent.map(|index| images[index.index(images.len())].clone());
        let mut image = parent.as_ref().map_or(vec![0; first], |(_, i)| i.clone());
        image.resize(image.len() + growth, 0);
        let blocks = image.len().div_ceil(UNIT) as u64;
        let mut parts = parts.clone();
        parts.sort_unstable();
        let (mut changes, mut done) = (Vec::new(), 0);
        for (share, count, value) in parts {
            let start = done.max(blocks * u64::from(share) / 65536);
            let range = BlockRange::new(start, blocks.min(start + count));
            if range.is_empty() {
                continue;
            }
            done = range.end.0;
            // Few values, so that the same bytes come again, in other layers. A block of zeros can
            // be payload as well.
            let end = image.len().min(usize::try_from(done).unwrap() * UNIT);
            image[usize::try_from(start).unwrap() * UNIT..end].fill(value / 2);
            changes.push((range, value != 0));
        }
        let header = put(
            rig,
            parent.as_ref().map(|(h, _)| h.as_ref()),
            &image,
            &changes,
        );
        images.push((header, image));
    }
    images
}

/// The stupid twin: what became of each block, by a full look at both images.
fn kinds(a: &[u8], b: &[u8]) -> Vec<Option<DiffKind>> {
    let len = a.len().max(b.len()).div_ceil(UNIT) * UNIT;
    let padded = |image: &[u8]| {
        let mut image = image.to_vec();
        image.resize(len, 0);
        image
    };
    let (a, b) = (padded(a), padded(b));
    let kind = |(a, b): (&[u8], &[u8])| match (a == b, b.iter().all(|b| *b == 0)) {
        (true, _) => None,
        (false, true) => Some(DiffKind::Zeroed),
        (false, false) => Some(DiffKind::Changed),
    };
    a.chunks(UNIT).zip(b.chunks(UNIT)).map(kind).collect()
}

/// The runs of a diff, and what it says of them.
fn found(store: &Store, a: &Header, b: &Header) -> Result<(Vec<DiffRun>, DiffSummary), StoreError> {
    let mut runs = Vec::new();
    let mut last = (0, 0);
    let mut progress = |done, all| {
        assert!(last.0 <= done && done <= all);
        last = (done, all);
    };
    let summary = diff(store, a, b, &mut |run| runs.push(run), &mut progress)?;
    assert_eq!(last.0, last.1);
    Ok((runs, summary))
}

/// What each block of an image is mapped to, and zeros behind it.
fn targets(header: &Header, blocks: u64) -> Vec<Target> {
    let mut all = vec![Target::Zero; usize::try_from(blocks).unwrap()];
    for run in header.runs(header.blocks()).unwrap() {
        for block in run.blocks.iter() {
            let to = run.to.after(block.0 - run.blocks.start.0);
            all[usize::try_from(block.0).unwrap()] = to;
        }
    }
    all
}

fn map_differences(a: &Header, b: &Header) -> Vec<MapDifference> {
    let mut all = Vec::new();
    let flow = compare(a, b, &mut |d| {
        all.push(d);
        Ok(ControlFlow::Continue(()))
    });
    assert!(flow.unwrap().is_continue());
    all
}

fn check_maps(a: &Header, b: &Header) {
    let blocks = a.blocks().end.max(b.blocks().end).0;
    let want = (targets(a, blocks), targets(b, blocks));
    let mut done = 0;
    let same = |from: u64, to: u64| {
        let between = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
        assert_eq!(want.0[between.clone()], want.1[between]);
    };
    for found in map_differences(a, b) {
        assert!(!found.blocks.is_empty());
        same(done, found.blocks.start.0);
        for (i, block) in (0..).zip(found.blocks.iter()) {
            let at = usize::try_from(block.0).unwrap();
            let both = (found.a.after(i), found.b.after(i));
            assert_eq!(both, (want.0[at], want.1[at]), "{block:?}");
            assert_ne!(both.0, both.1, "{block:?}");
        }
        done = found.blocks.end.0;
    }
    same(done, blocks);
}

fn check_bytes(store: &Store, (a, b): (&Header, &Header), images: (&[u8], &[u8])) {
    let want = kinds(images.0, images.1);
    let (runs, summary) = found(store, a, b).unwrap();
    let mut got = vec![None; want.len()];
    for run in &runs {
        assert!(!run.blocks.is_empty());
        for block in run.blocks.iter() {
            got[usize::try_from(block.0).unwrap()] = Some(run.kind);
        }
    }
    assert_eq!(got, want);
    for pair in runs.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        assert!(before.blocks.end <= after.blocks.start, "in order");
        assert!(
            before.kind != after.kind || before.blocks.end < after.blocks.start,
            "not merged at {:?}",
            after.blocks
        );
    }
    let count = |kind| want.iter().filter(|k| **k == Some(kind)).count() as u64;
    assert_eq!(summary.changed.0, count(DiffKind::Changed));
    assert_eq!(summary.zeroed.0, count(DiffKind::Zeroed));
    assert_eq!(summary.runs, runs.len() as u64);
    let sizes = [images.0, images.1].map(|i| i.len() as u64);
    assert_eq!(summary.size_bytes, sizes);
    assert_eq!(summary.is_equal(), images.0 == images.1);
    let differ = differ(store, a, b, &mut |_, _| ()).unwrap();
    assert_eq!(differ, images.0 != images.1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_diff_is_a_full_read_of_both(
        // One leaf, two levels, and on either side of three.
        first in prop_oneof![1usize..256 * UNIT, 1usize..2000 * UNIT, 8100 * UNIT..8200 * UNIT],
        steps in steps(),
    ) {
        let rig = Rig::new();
        let images = world(&rig, first, &steps);
        let store = rig.reopened();
        let open = |h: &Arc<Header>| store.open_header(h.id()).unwrap();
        for (a, bytes_a) in &images {
            for (b, bytes_b) in &images {
                let (a, b) = (open(a), open(b));
                check_maps(&a, &b);
                check_bytes(&store, (&a, &b), (bytes_a, bytes_b));
            }
        }
    }
}

#[test]
fn images_that_share_nothing_are_compared_by_their_bytes() {
    let rig = Rig::new();
    let image = noise(1, 1000 * UNIT);
    let all = [(BlockRange::new(0, 1000), true)];
    let a = put(&rig, None, &image, &all);
    // The same bytes, packed the other way round.
    let halves = [(BlockRange::new(500, 1000), true)];
    let b = put(&rig, None, &image, &halves);
    let b = put(&rig, Some(&b), &image, &[(BlockRange::new(0, 500), true)]);
    let (runs, summary) = found(&rig.store, &a, &b).unwrap();
    assert!(runs.is_empty() && summary.is_equal());
    let mut other = image.clone();
    other[700 * UNIT + 511] ^= 1;
    other[999 * UNIT..].fill(0);
    let c = put(&rig, None, &other, &all);
    let (runs, summary) = found(&rig.store, &a, &c).unwrap();
    let run = |start, end, kind| DiffRun {
        blocks: BlockRange::new(start, end),
        kind,
    };
    let want = [
        run(700, 701, DiffKind::Changed),
        run(999, 1000, DiffKind::Zeroed),
    ];
    assert_eq!(runs, want);
    assert!(!summary.is_equal());
}

#[test]
fn an_image_that_only_grew_is_different_and_has_no_runs() {
    let rig = Rig::new();
    let small = noise(1, 200 * UNIT + 7);
    let a = put(&rig, None, &small, &[(BlockRange::new(0, 201), true)]);
    let mut large = small;
    large.resize(100_000 * UNIT, 0);
    let b = put(&rig, Some(&a), &large, &[]);
    for (one, two) in [(&a, &b), (&b, &a)] {
        let (runs, summary) = found(&rig.store, one, two).unwrap();
        assert!(runs.is_empty() && !summary.is_equal());
        assert!(differ(&rig.store, one, two, &mut |_, _| ()).unwrap());
    }
}

/// Every third block of a device in a layer: a map with as many runs as can be.
fn scattered(blocks: u64) -> Vec<MapRun> {
    let one = |i| run(3 * i, 3 * i + 1, to(9, i));
    (0..blocks / 3).map(one).collect()
}

#[test]
fn what_both_have_is_not_read() {
    let rig = Rig::new();
    // Leaves of 2^8, two levels of 2^5, and a root.
    let blocks = 1 << 20;
    let parent = rig.put(None, blocks, &scattered(blocks));
    let same = rig.put(Some(&parent), blocks, &[]);
    let a = rig.put(Some(&parent), blocks, &[run(7, 8, to(10, 0))]);
    let changes = [
        run(500_000, 500_001, to(11, 0)),
        run(900_000, 900_001, Target::Zero),
    ];
    let b = rig.put(Some(&a), blocks, &changes);
    let grown = rig.put(Some(&a), 1 << 32, &[run(1 << 31, (1 << 31) + 1, to(12, 0))]);
    let reads = |a: &Header, b: &Header| {
        let store = rig.reopened();
        let (a, b) = (store.open_header(a.id()), store.open_header(b.id()));
        let differing = map_differences(&a.unwrap(), &b.unwrap());
        let blocks: u64 = differing.iter().map(|d| d.blocks.count().0).sum();
        (blocks, store.reads().nodes)
    };
    assert_eq!(reads(&parent, &parent), (0, 0));
    assert_eq!(
        reads(&parent, &same),
        (0, 0),
        "another header, the same root"
    );
    // Made twice, a leaf lies in two places and has one hash; what points at it has two.
    let twin = rig.put(Some(&parent), blocks, &[run(7, 8, to(10, 0))]);
    assert_eq!(reads(&a, &twin), (0, 2 * 3));
    // One path on either side.
    assert_eq!(reads(&parent, &a), (1, 2 * 4));
    // Two paths that part at the root.
    assert_eq!(reads(&a, &b), (2, 2 * (1 + 2 * 3)));
    assert_eq!(reads(&parent, &b), (3, 2 * (1 + 3 * 3)));
    // The larger map is two levels higher: those, and below the root one path to what is new.
    assert_eq!(reads(&a, &grown), (1, 2 + 5));
    assert_eq!(reads(&grown, &parent), (2, 2 + 5 + 2 * 4));
}

#[test]
fn equal_roots_of_maps_of_two_heights_are_not_the_same() {
    let rig = Rig::new();
    // Each map is one run of one layer, from its first block on, and no node.
    let [low, high] = [256, 8192].map(|end| rig.put(None, end, &[run(0, end, to(3, 0))]));
    check_maps(&low, &high);
    check_maps(&high, &low);
}

#[test]
fn what_a_layer_holds_past_the_end_of_an_image_is_no_difference() {
    let rig = Rig::new();
    let put_with = |tail: u8| {
        let mut block = vec![tail; UNIT];
        block[..100].fill(7);
        let lease = rig.store.lease().unwrap();
        let size = BlockSize::new(512).unwrap();
        let mut writer = rig.store.layer_writer(&lease, size).unwrap();
        let at = writer.push(&block).unwrap();
        let layer = writer.finish().unwrap();
        let changes = [run(0, 1, Target::Layer { id: layer.id, at })];
        let spec = HeaderSpec {
            layer: Some(layer),
            block_size: size,
            ..spec(None, 100, &changes)
        };
        rig.store.put_header(&lease, &spec).unwrap()
    };
    let (a, b) = (put_with(0), put_with(1));
    assert_eq!(found(&rig.store, &a, &b).unwrap().0, []);
}

#[test]
fn the_first_difference_is_enough_to_differ() {
    let rig = Rig::new();
    let all = [(BlockRange::new(0, 4000), true)];
    let a = put(&rig, None, &noise(1, 4000 * UNIT), &all);
    let b = put(&rig, None, &noise(2, 4000 * UNIT), &all);
    let mut steps = 0;
    assert!(differ(&rig.store, &a, &b, &mut |_, _| steps += 1).unwrap());
    assert_eq!(steps, 1, "only that it is done");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let rig = Rig::new();
    let small = put(&rig, None, &[1; UNIT], &[(BlockRange::new(0, 1), true)]);
    let large = rig.put(None, 1, &[]);
    let refused = |a: &Header, b: &Header| match found(&rig.store, a, b) {
        Err(StoreError::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    let why = refused(&small, &large);
    assert!(why.contains("512") && why.contains("4096"), "{why}");
    let elsewhere = rig.reopened().open_header(small.id()).unwrap();
    assert!(refused(&small, &elsewhere).contains("two stores"));
}

fn flip(rig: &Rig, object: &str, at: usize) {
    let path = rig.path(object);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_is_named_where_it_is_in_the_way_and_nowhere_else() {
    let rig = Rig::new();
    let mut image = noise(1, 4000 * UNIT);
    let a = put(&rig, None, &image, &[(BlockRange::new(0, 4000), true)]);
    image[1000 * UNIT..1001 * UNIT].fill(7);
    let b = put(
        &rig,
        Some(&a),
        &image,
        &[(BlockRange::new(1000, 1001), true)],
    );
    let look = |a: &Header, b: &Header| {
        let store = rig.reopened();
        let (a, b) = (store.open_header(a.id())?, store.open_header(b.id())?);
        found(&store, &a, &b).map(|(runs, _)| runs.len())
    };
    let named = |object: &str, at: usize| {
        flip(&rig, object, at);
        for (one, two) in [(&a, &b), (&b, &a)] {
            match look(one, two) {
                Err(StoreError::Corrupt {
                    object: o, place, ..
                }) => {
                    assert_eq!(o, object);
                    assert!(!place.is_empty());
                }
                other => panic!("{object}: {other:?}"),
            }
        }
        flip(&rig, object, at);
    };
    let layer = |h: &Header| format!("layers/{}", h.meta().own_layer.unwrap());
    // Noise is stored as it is, 128 blocks a frame: block 1000 of the layer is in frame 7.
    named(&layer(&a), 1000 * UNIT);
    named(&layer(&a), 7 * 128 * UNIT);
    named(&layer(&b), 3);
    // The one node of the map that only b has; a's root is a run of a layer, or its nodes.
    named(&format!("headers/{}", b.id()), 20);
    // A frame that both have is in nobody's way.
    flip(&rig, &layer(&a), 3 * 128 * UNIT);
    assert_eq!(look(&a, &b).unwrap(), 1);
    let store = rig.reopened();
    let header = store.open_header(b.id()).unwrap();
    let device: &dyn Device = &Image::new(Arc::clone(&store), header);
    let read = device.read_at(ByteOffset(3 * 128 * UNIT as u64), &mut [0; UNIT]);
    assert!(read.is_err(), "it is damaged indeed");
}

#[test]
fn a_map_past_the_end_of_its_layer_is_damage() {
    let rig = Rig::new();
    let image = noise(1, 10 * UNIT);
    let a = put(&rig, None, &image, &[(BlockRange::new(0, 10), true)]);
    let id = a.meta().own_layer.unwrap();
    let changes = [run(0, 4, Target::Layer { id, at: 8 })];
    let spec = HeaderSpec {
        block_size: a.block_size(),
        ..spec(None, a.size_bytes(), &changes)
    };
    let lease = rig.store.lease().unwrap();
    let b = rig.store.put_header(&lease, &spec).unwrap();
    match found(&rig.store, &a, &b) {
        Err(StoreError::Corrupt { object, place, .. }) => {
            assert_eq!(object, format!("layers/{id}"));
            assert_eq!(place, "frame 0");
        }
        other => panic!("{other:?}"),
    }
}
