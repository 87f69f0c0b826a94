//! Headers: against a list with one target for each block, and against damage.

use cowslip_block::{BlockIndex, BlockRange};
use cowslip_snapshot::limits::{LEAF_BLOCKS, NODE_BYTES_MAX};
use cowslip_snapshot::{Header, MapRun, StoreError, Target};
use proptest::prelude::*;

use crate::rig::{Rig, run, spec, to};

/// The stupid twin: what each block reads as.
fn spread(runs: &[MapRun], into: &mut [Target]) {
    for r in runs {
        for block in r.blocks.iter() {
            into[usize::try_from(block.0).unwrap()] = r.to.after(block.0 - r.blocks.start.0);
        }
    }
}

fn assert_maps_like(header: &Header, twin: &[Target], range: BlockRange) {
    let runs = header.runs(range).unwrap();
    let mut done = range.start;
    for (i, r) in runs.iter().enumerate() {
        assert_eq!(r.blocks.start, done, "no gap, no overlap");
        assert!(!r.blocks.is_empty());
        done = r.blocks.end;
        for block in r.blocks.iter() {
            let want = twin[usize::try_from(block.0).unwrap()];
            assert_eq!(r.to.after(block.0 - r.blocks.start.0), want, "{block:?}");
        }
        if let Some(next) = runs.get(i + 1) {
            assert_ne!(
                r.to.after(r.blocks.count().0),
                next.to,
                "not merged at {done:?}"
            );
        }
    }
    assert_eq!(done, range.end);
}

/// Where a change begins, as a share of the device, how long it is, and what it is.
type Change = (u16, u16, u8);

/// Diffs, one after the other: by how much the device grows, and what changes.
fn diffs() -> impl Strategy<Value = Vec<(u16, Vec<Change>)>> {
    let length = prop_oneof![1u16..4, 1u16..40, 200u16..2000];
    let change = (any::<u16>(), length, 0u8..4);
    let growth = prop_oneof![Just(0u16), 0u16..3000];
    prop::collection::vec((growth, prop::collection::vec(change, 0..12)), 1..5)
}

/// Sorted and disjoint changes on a device of `blocks`, in a layer of the generation's own.
fn changes_of(parts: &[Change], blocks: u64, generation: u128) -> Vec<MapRun> {
    let mut starts: Vec<_> = parts
        .iter()
        .map(|&(share, len, kind)| (blocks * u64::from(share) / 65536, u64::from(len), kind))
        .collect();
    starts.sort_unstable();
    let (mut changes, mut done, mut packed) = (Vec::new(), 0, 0);
    for (start, len, kind) in starts {
        let (start, end) = (start.max(done), (start.max(done) + len).min(blocks));
        if start >= end {
            continue;
        }
        let target = match kind {
            0 => Target::Zero,
            // A gap in the layer now and then: neighbours that must not be merged.
            kind => {
                packed += u64::from(kind == 3);
                to(generation, packed)
            }
        };
        changes.push(run(start, end, target));
        packed += end - start;
        done = end;
    }
    changes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn chains_of_diffs_map_like_a_list(first in 1u64..20_000, diffs in diffs(), probe: u16) {
        let rig = Rig::new();
        let mut twin = vec![Target::Zero; usize::try_from(first).unwrap()];
        let mut chain: Vec<(std::sync::Arc<Header>, Vec<Target>)> = Vec::new();
        for (generation, (growth, parts)) in diffs.iter().enumerate() {
            let blocks = twin.len() as u64 + u64::from(*growth);
            twin.resize(usize::try_from(blocks).unwrap(), Target::Zero);
            let changes = changes_of(parts, blocks, generation as u128 + 1);
            spread(&changes, &mut twin);
            let parent = chain.last().map(|(h, _)| h.as_ref());
            let header = rig.put(parent, blocks, &changes);
            // Each change ends in two subtrees at most that it does not cover; growth adds a path.
            let paths = 2 * changes.len() as u64 + 1;
            let most = paths * 8 * u64::from(NODE_BYTES_MAX) + 1024;
            prop_assert!(header.object_bytes() <= most);
            chain.push((header, twin.clone()));
        }
        // All of them, also the older ones, and as another process sees them.
        let fresh = rig.reopened();
        for (header, twin) in &chain {
            let blocks = twin.len() as u64;
            let from = blocks * u64::from(probe) / 65536;
            for range in [
                BlockRange::new(0, blocks),
                BlockRange::one(BlockIndex(from)),
                BlockRange::new(from, (from + LEAF_BLOCKS + 3).min(blocks)),
            ] {
                assert_maps_like(header, twin, range);
            }
            let again = fresh.open_header(header.id()).unwrap();
            prop_assert_eq!(again.meta(), header.meta());
            assert_maps_like(&again, twin, BlockRange::new(0, blocks));
        }
    }
}

/// Every third block of a device in a layer: as many runs as can be.
fn scattered(blocks: u64) -> Vec<MapRun> {
    (0..blocks / 3)
        .map(|i| run(3 * i, 3 * i + 1, to(9, i)))
        .collect()
}

#[test]
fn one_changed_block_of_a_large_map_costs_one_path() {
    let rig = Rig::new();
    let blocks = 1 << 20;
    let parent = rig.put(None, blocks, &scattered(blocks));
    assert!(parent.object_bytes() > 300_000, "{}", parent.object_bytes());
    let child = rig.put(Some(&parent), blocks, &[run(500_000, 500_001, to(10, 0))]);
    assert!(child.object_bytes() < 6000, "{}", child.object_bytes());
    assert_eq!(child.meta().generation, 1);
    assert_eq!(child.meta().parent, Some(parent.id()));
}

#[test]
fn opening_reads_no_node_and_a_look_up_reads_one_path() {
    let rig = Rig::new();
    let blocks = 1 << 20;
    let parent = rig.put(None, blocks, &scattered(blocks));
    let a = rig.put(Some(&parent), blocks, &[run(7, 8, to(10, 0))]);
    let b = rig.put(Some(&parent), blocks, &[run(900_000, 900_001, to(11, 0))]);
    let store = rig.reopened();
    let (a, b) = (
        store.open_header(a.id()).unwrap(),
        store.open_header(b.id()).unwrap(),
    );
    assert_eq!(store.reads().nodes, 0);
    // 2^20 blocks: leaves of 2^8, two levels of 2^5 and a root.
    a.runs(BlockRange::new(100, 101)).unwrap();
    assert_eq!(store.reads().nodes, 4);
    a.runs(BlockRange::new(101, 102)).unwrap();
    assert_eq!(store.reads().nodes, 4, "the path is cached");
    // The siblings share all that neither changed: of b, only its own path is new.
    let before = store.reads().nodes;
    b.runs(BlockRange::new(900_000, 900_001)).unwrap();
    assert_eq!(store.reads().nodes, before + 4);
    a.runs(BlockRange::new(400_000, 400_001)).unwrap();
    let shared = store.reads().nodes;
    b.runs(BlockRange::new(400_000, 400_001)).unwrap();
    assert_eq!(store.reads().nodes, shared, "read once, for both");
}

#[test]
fn what_covers_everything_needs_no_node() {
    let rig = Rig::new();
    let blocks = 1 << 34;
    let layers = [
        run(0, 1 << 23, to(3, 5)),
        run(1 << 33, 1 << 34, Target::Zero),
    ];
    let header = rig.put(None, blocks, &layers);
    assert!(header.object_bytes() < 1000, "{}", header.object_bytes());
    let runs = header.runs(header.blocks()).unwrap();
    assert_eq!(runs, [layers[0], run(1 << 23, 1 << 34, Target::Zero)]);
    // A discard of all 64 TiB in one change.
    let empty = rig.put(Some(&header), blocks, &[run(0, blocks, Target::Zero)]);
    assert_eq!(
        empty.runs(empty.blocks()).unwrap(),
        [run(0, blocks, Target::Zero)]
    );
    assert!(empty.object_bytes() < 300);
}

#[test]
fn a_change_inside_one_long_run_splits_it() {
    let rig = Rig::new();
    // One run over a span of two levels; then leaves of it in another order.
    let blocks = 32 * 32 * LEAF_BLOCKS;
    let parent = rig.put(None, blocks, &[run(0, blocks, to(3, 100))]);
    assert!(
        parent.object_bytes() < 300,
        "no node: {}",
        parent.object_bytes()
    );
    let middle = 500 * LEAF_BLOCKS + 7;
    let child = rig.put(Some(&parent), blocks, &[run(middle, middle + 2, to(4, 0))]);
    let want = [
        run(0, middle, to(3, 100)),
        run(middle, middle + 2, to(4, 0)),
        run(middle + 2, blocks, to(3, 102 + middle)),
    ];
    assert_eq!(child.runs(child.blocks()).unwrap(), want);
    let leaf_run = |i| {
        run(
            i * LEAF_BLOCKS,
            (i + 1) * LEAF_BLOCKS,
            to(5, (31 - i) * LEAF_BLOCKS),
        )
    };
    let turned: Vec<_> = (0..32).map(leaf_run).collect();
    let child = rig.put(None, 32 * LEAF_BLOCKS, &turned);
    assert_eq!(child.runs(child.blocks()).unwrap(), turned);
}

#[test]
fn what_comes_out_as_it_was_is_not_written_again() {
    let rig = Rig::new();
    let changes = scattered(100_000);
    let parent = rig.put(None, 100_000, &changes);
    let child = rig.put(Some(&parent), 100_000, &changes);
    assert!(child.object_bytes() < 300, "{}", child.object_bytes());
    assert_eq!(
        child.runs(child.blocks()).unwrap(),
        parent.runs(parent.blocks()).unwrap()
    );
}

#[test]
fn specs_that_make_no_sense_are_refused() {
    let rig = Rig::new();
    let parent = rig.put(None, 1000, &[run(0, 10, to(1, 0))]);
    let refused = |parent, bytes, changes: &[MapRun]| {
        let error = rig
            .store
            .put_header(&rig.store.lease().unwrap(), &spec(parent, bytes, changes))
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Invalid(_) | StoreError::Limit { .. }),
            "{error}"
        );
        error.to_string()
    };
    assert!(refused(Some(&*parent), 999 * 4096, &[]).contains("shrink"));
    refused(None, 0, &[]);
    refused(None, (1 << 50) + 1, &[]);
    refused(None, 4096, &[run(0, 2, Target::Zero)]);
    refused(None, 40960, &[run(1, 1, Target::Zero)]);
    refused(None, 40960, &[run(3, 5, to(1, 0)), run(4, 6, to(1, 2))]);
    refused(None, 40960, &[run(3, 5, to(1, 0)), run(1, 2, to(1, 2))]);
    refused(None, 40960, &[run(3, 5, to(0, 0))]);
    refused(None, 40960, &[run(3, 5, to(1, u64::MAX))]);
    let mut named = spec(None, 4096, &[]);
    named.made_by = "a\nline";
    assert!(
        rig.store
            .put_header(&rig.store.lease().unwrap(), &named)
            .is_err()
    );
    let elsewhere = Rig::new();
    let foreign = elsewhere.store.put_header(
        &elsewhere.store.lease().unwrap(),
        &spec(Some(&parent), 1000 * 4096, &[]),
    );
    assert!(foreign.is_err());
}

#[test]
fn runs_outside_the_image_are_refused() {
    let rig = Rig::new();
    let header = rig.put(None, 10, &[]);
    assert!(header.runs(BlockRange::new(5, 11)).is_err());
    assert_eq!(header.runs(BlockRange::new(5, 5)).unwrap(), []);
}

#[test]
fn any_damage_is_an_error_or_changes_nothing() {
    let rig = Rig::new();
    let parent = rig.put(None, 600, &[run(3, 9, to(1, 0)), run(300, 320, to(1, 6))]);
    let changes = [run(5, 7, Target::Zero), run(400, 401, to(2, 0))];
    let header = rig.put(Some(&parent), 9000, &changes);
    let want = header.runs(header.blocks()).unwrap();
    for object in [parent.id(), header.id()] {
        rig.for_each_damage(&format!("headers/{object}"), |store, what| {
            let read = |h: std::sync::Arc<Header>| {
                let runs = h.runs(h.blocks())?;
                Ok((h.meta().clone(), runs))
            };
            match store.open_header(header.id()).and_then(read) {
                Ok((meta, runs)) => {
                    assert_eq!((&meta, &runs), (header.meta(), &want), "{what}");
                }
                Err(StoreError::Corrupt {
                    object: named,
                    place,
                    ..
                }) => {
                    assert_eq!(named, format!("headers/{object}"), "{what}");
                    assert!(!place.is_empty());
                }
                Err(StoreError::Version { .. }) => {}
                Err(other) => panic!("{what}: {other}"),
            }
        });
    }
}

#[test]
fn an_unknown_version_says_so() {
    let rig = Rig::new();
    let header = rig.put(None, 10, &[]);
    let path = rig.path(&format!("headers/{}", header.id()));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 16;
    bytes[at] = 3;
    std::fs::write(&path, bytes).unwrap();
    let error = rig.reopened().open_header(header.id()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Version {
                found: 3,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_header_under_another_name_is_noticed() {
    let rig = Rig::new();
    let (a, b) = (rig.put(None, 10, &[]), rig.put(None, 20, &[]));
    let path = |h: &Header| rig.path(&format!("headers/{}", h.id()));
    std::fs::copy(path(&a), path(&b)).unwrap();
    let error = rig.reopened().open_header(b.id()).unwrap_err();
    assert!(error.to_string().contains("wrong name"), "{error}");
}
