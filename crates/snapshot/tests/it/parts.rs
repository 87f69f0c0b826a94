//! Snapshots of several parts: one name, several images, all or nothing; and each part is kept, checked,
//! moved and mended as any image is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowslip_block::files::RealDir;
use cowslip_block::{BlockSize, ByteOffset, Device};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::verify::{Depth, verify, verify_store};
use cowslip_snapshot::{
    Header, HeaderSpec, Image, ImageName, MapRun, Part, Parts, SnapshotName, Store, StoreError,
    Target,
};
use proptest::prelude::*;

use crate::compact::tight;
use crate::rig::{CountingHost, Rig, noise, run, spec};

const BLOCK: usize = 4096;
const BLOCKS: usize = 24;

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn image(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn gc(store: &Store) -> usize {
    collect(store, false, &mut |_, _| {}).unwrap().removed.len()
}

/// An image, and what it reads as.
type Made = (Arc<Header>, Vec<u8>);

/// New blocks from each of these seeds, over a parent; and blocks that lie in another image, at (place, place there).
fn put(
    store: &Store,
    lease: &Lease,
    parent: Option<&Made>,
    new: &[(u64, u64)],
    borrowed: Option<(&Made, u64, u64)>,
) -> Made {
    let mut bytes = parent.map_or(vec![0; BLOCKS * BLOCK], |(_, bytes)| bytes.clone());
    let mut changes: BTreeMap<u64, Target> = BTreeMap::new();
    let mut writer = store.layer_writer(lease, BlockSize::DISK).unwrap();
    let at = |block: u64| usize::try_from(block).unwrap() * BLOCK;
    for (block, seed) in new {
        let one = noise(*seed, BLOCK);
        bytes[at(*block)..][..BLOCK].copy_from_slice(&one);
        let to = Target::Layer {
            id: writer.id(),
            at: writer.push(&one).unwrap(),
        };
        changes.insert(*block, to);
    }
    if let Some(((header, other), block, there)) = borrowed {
        bytes[at(block)..][..BLOCK].copy_from_slice(&other[at(there)..][..BLOCK]);
        let runs = header.runs(header.blocks()).unwrap();
        let found = runs
            .iter()
            .find(|r| r.blocks.start.0 <= there && there < r.blocks.end.0);
        let run = found.unwrap();
        changes.insert(block, run.to.after(there - run.blocks.start.0));
    }
    let changes: Vec<MapRun> = changes
        .into_iter()
        .map(|(b, to)| run(b, b + 1, to))
        .collect();
    let layer = (!new.is_empty()).then(|| writer.finish().unwrap());
    let spec = HeaderSpec {
        layer,
        ..spec(parent.map(|(h, _)| &**h), bytes.len() as u64, &changes)
    };
    (store.put_header(lease, &spec).unwrap(), bytes)
}

#[track_caller]
fn reads_as(store: &Arc<Store>, header: &Arc<Header>, want: &[u8]) {
    assert!(verify(store, header, &mut |_, _| {}).unwrap().is_whole());
    let device: &dyn Device = &Image::new(Arc::clone(store), Arc::clone(header));
    let mut got = vec![1; want.len()];
    device.read_at(ByteOffset(0), &mut got).unwrap();
    assert!(got == want);
}

/// A snapshot `vm` of three parts, the memory with a block of the disk's; the disk has a name of its own.
fn vm() -> (Rig, BTreeMap<Part, Made>) {
    let rig = Rig::new();
    let lease = rig.store.lease().unwrap();
    let disk = put(&rig.store, &lease, None, &[(1, 1), (7, 2)], None);
    let disk_name = name("disk");
    rig.store
        .commit(&lease, &disk_name, &disk.0, false)
        .unwrap();
    let memory = put(&rig.store, &lease, None, &[(3, 3)], Some((&disk, 5, 7)));
    let state = put(&rig.store, &lease, None, &[(0, 4)], None);
    let parts = Parts::one(Part::State, &*state.0)
        .with(Part::Disk, &*disk.0)
        .with(Part::Memory, &*memory.0);
    rig.store
        .commit_parts(&lease, &name("vm"), &parts, false)
        .unwrap();
    let made = [
        (Part::Disk, disk),
        (Part::Memory, memory),
        (Part::State, state),
    ];
    (rig, made.into())
}

#[test]
fn a_name_stands_for_all_its_parts_and_means_the_first() {
    let (rig, made) = vm();
    let store = rig.reopened();
    for (part, (header, bytes)) in &made {
        let found = store
            .resolve_image(&ImageName::part(&name("vm"), *part))
            .unwrap();
        assert_eq!(found.id(), header.id());
        reads_as(&store, &found, bytes);
    }
    assert_eq!(
        store.resolve(&name("vm")).unwrap().id(),
        made[&Part::Disk].0.id()
    );
    let listed = &store.list().unwrap()[1];
    let stands_for = listed.stands_for.as_ref().unwrap();
    assert_eq!(listed.name, name("vm"));
    let ids = made.iter().map(|(part, (header, _))| (*part, header.id()));
    assert!(stands_for.parts.iter().map(|(p, h)| (p, *h)).eq(ids));
    // The disk is another snapshot's as well; the state is this one's alone.
    assert_eq!(stands_for.origin, made[&Part::State].0.meta().origin);
    // Without a disk, the memory is meant.
    let lease = store.lease().unwrap();
    let memory = Parts::one(Part::Memory, &*made[&Part::Memory].0);
    store
        .commit_parts(&lease, &name("m"), &memory, false)
        .unwrap();
    assert_eq!(
        store.resolve(&name("m")).unwrap().id(),
        made[&Part::Memory].0.id()
    );
    for (text, has) in [("m:disk", "memory"), ("disk:state", "disk")] {
        let error = store.resolve_image_leased(&image(text)).unwrap_err();
        assert!(matches!(error, StoreError::NoPart { .. }), "{error}");
        assert!(
            error.to_string().ends_with(&format!("it has {has}")),
            "{error}"
        );
    }
}

#[test]
fn all_parts_are_kept_by_the_name_and_one_by_who_reads_it() {
    let (rig, made) = vm();
    let store = &rig.store;
    store.remove(&name("disk")).unwrap();
    assert_eq!(gc(store), 0, "the disk is a part of the other");
    let (memory, lease) = store.resolve_image_leased(&image("vm:memory")).unwrap();
    store.remove(&name("vm")).unwrap();
    // The state goes, with its layer, and the disk's header. The disk's layer has a block of the memory.
    assert_eq!(gc(store), 3);
    reads_as(&rig.reopened(), &memory, &made[&Part::Memory].1);
    drop(lease);
    assert_eq!(gc(store), 3);
}

#[test]
fn who_reads_all_parts_keeps_all() {
    let (rig, made) = vm();
    let (snapshot, lease) = rig.store.resolve_snapshot_leased(&name("vm")).unwrap();
    for text in ["vm", "disk"] {
        rig.store.remove(&name(text)).unwrap();
    }
    assert_eq!(gc(&rig.store), 0);
    for (part, header) in snapshot.parts.iter() {
        reads_as(&rig.reopened(), header, &made[&part].1);
    }
    drop(lease);
    assert_eq!(gc(&rig.store), 6);
}

#[test]
fn what_is_damaged_is_said_of_its_part() {
    let (rig, made) = vm();
    let needed = |part: Part| {
        let path = rig.path(&format!("headers/{}", made[&part].0.id()));
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let dir = RealDir::open(rig.temp.path()).unwrap();
        let host = CountingHost::from(1 << 33);
        let report = verify_store(&dir, host, Depth::Decoded, &mut |_, _| {}).unwrap();
        std::fs::write(&path, whole).unwrap();
        report.objects[0].needed_by.clone()
    };
    assert_eq!(needed(Part::Disk), ["disk", "vm:disk"]);
    assert_eq!(needed(Part::Memory), ["vm:memory"]);
    assert_eq!(needed(Part::State), ["vm:state"]);
}

#[test]
fn a_compaction_moves_a_part_and_keeps_the_others() {
    let (rig, made) = vm();
    let store = &rig.store;
    // A younger memory hides a block of the older one: its layer is left.
    let lease = store.lease().unwrap();
    let younger = put(store, &lease, Some(&made[&Part::Memory]), &[(3, 9)], None);
    let before = store.resolve_snapshot(&name("vm")).unwrap();
    let parts = Parts::one(Part::Disk, &*made[&Part::Disk].0)
        .with(Part::Memory, &*younger.0)
        .with(Part::State, &*made[&Part::State].0);
    store
        .commit_parts(&lease, &name("vm"), &parts, true)
        .unwrap();
    drop(lease);
    store.remove(&name("disk")).unwrap();
    tight(store).unwrap();
    let store = rig.reopened();
    let after = store.resolve_snapshot(&name("vm")).unwrap();
    assert_eq!(after.origin, before.origin, "the state's, which stays");
    let moved = |part| after.parts.get(part).unwrap().id() != parts.get(part).unwrap().id();
    assert!(moved(Part::Memory) && !moved(Part::State));
    let memory = after.parts.get(Part::Memory).unwrap();
    assert_eq!(memory.meta().origin, younger.0.meta().origin);
    reads_as(&store, memory, &younger.1);
    reads_as(
        &store,
        after.parts.get(Part::Disk).unwrap(),
        &made[&Part::Disk].1,
    );
    reads_as(
        &store,
        after.parts.get(Part::State).unwrap(),
        &made[&Part::State].1,
    );
}

#[derive(Clone, Debug)]
enum Act {
    /// A snapshot of this name: with a disk, with a memory, with a state; over those of another.
    Take(usize, u8, usize),
    Remove(usize),
    Collect,
    Compact,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..5usize, 1..8u8, 0..5usize).prop_map(|(n, kinds, over)| Act::Take(n, kinds, over)),
        2 => (0..5usize).prop_map(Act::Remove),
        2 => Just(Act::Collect),
        2 => Just(Act::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever the history: each part of each name has its bytes, and nothing is left that no name needs.
    #[test]
    fn names_keep_all_their_parts(acts in prop::collection::vec(act(), 1..25)) {
        let rig = Rig::new();
        let store = &rig.store;
        let mut all: BTreeMap<usize, BTreeMap<Part, Made>> = BTreeMap::new();
        let mut seed = 0;
        for act in acts {
            match act {
                Act::Take(n, kinds, over) => {
                    let lease = store.lease().unwrap();
                    let parent = all.get(&over);
                    // By its name: a compaction may have stored it otherwise, and what it was over is gone.
                    let parent: Option<BTreeMap<Part, Made>> = parent.map(|made| {
                        let snapshot = store.resolve_snapshot(&name(&format!("n{over}"))).unwrap();
                        let of = |(part, header): (Part, &Arc<Header>)| (part, (Arc::clone(header), made[&part].1.clone()));
                        snapshot.parts.iter().map(of).collect()
                    });
                    let mut made: BTreeMap<Part, Made> = BTreeMap::new();
                    for (i, part) in Part::ALL.into_iter().enumerate() {
                        if kinds & 1 << i == 0 {
                            continue;
                        }
                        seed += 1;
                        let parent = parent.as_ref().and_then(|p| p.get(&part));
                        let disk = made.get(&Part::Disk).filter(|_| part == Part::Memory);
                        let borrowed = disk.map(|disk| (disk, (seed + 1) % 8 + 8, seed_of(disk)));
                        let image = put(store, &lease, parent, &[(seed % 8, seed)], borrowed);
                        made.insert(part, image);
                    }
                    let mut parts: Option<Parts<&Header>> = None;
                    for (part, (header, _)) in &made {
                        parts = Some(match parts {
                            None => Parts::one(*part, &**header),
                            Some(parts) => parts.with(*part, &**header),
                        });
                    }
                    store.commit_parts(&lease, &name(&format!("n{n}")), &parts.unwrap(), true).unwrap();
                    all.insert(n, made);
                }
                Act::Remove(n) => {
                    let there = all.remove(&n).is_some();
                    assert_eq!(store.remove(&name(&format!("n{n}"))).is_ok(), there);
                }
                Act::Collect => drop(gc(store)),
                Act::Compact => drop(tight(store).unwrap()),
            }
        }
        gc(store);
        prop_assert_eq!(gc(store), 0);
        let fresh = rig.reopened();
        for (n, made) in &all {
            let snapshot = fresh.resolve_snapshot(&name(&format!("n{n}"))).unwrap();
            prop_assert_eq!(snapshot.parts.count(), made.len());
            for (part, (_, bytes)) in made {
                reads_as(&fresh, snapshot.parts.get(*part).unwrap(), bytes);
            }
        }
        for n in all.keys() {
            store.remove(&name(&format!("n{n}"))).unwrap();
        }
        gc(store);
        for dir in ["layers", "headers", "tmp"] {
            prop_assert_eq!(std::fs::read_dir(rig.path(dir)).unwrap().count(), 0);
        }
    }
}

/// A block of it that has bytes.
fn seed_of((_, bytes): &Made) -> u64 {
    let mut blocks = bytes.chunks(BLOCK);
    blocks.position(|b| b.iter().any(|b| *b != 0)).unwrap() as u64
}

/// Ends those who run beside, also where the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Snapshots of all parts are taken and replaced beside collections: each is whole at any moment.
#[test]
fn parts_are_committed_beside_collections() {
    const ROUNDS: u64 = 100;
    let (rig, _) = vm();
    let store = &rig.store;
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                gc(store);
            }
        });
        let reader = rig.reopened();
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let (snapshot, _lease) = reader.resolve_snapshot_leased(&name("vm")).unwrap();
                for (_, header) in snapshot.parts.iter() {
                    let report = verify(&reader, header, &mut |_, _| {}).unwrap();
                    assert!(report.is_whole(), "{:?}", report.damage);
                }
            }
        });
        for seed in 100..100 + ROUNDS {
            let lease = store.lease().unwrap();
            let (old, _old_lease) = store.resolve_snapshot_leased(&name("vm")).unwrap();
            let disk = put(store, &lease, None, &[(seed % 8, seed)], None);
            let borrowed = Some((&disk, 20, seed % 8));
            let memory = old.parts.get(Part::Memory).unwrap();
            // Its bytes do not matter here.
            let parent = (Arc::clone(memory), vec![0; BLOCKS * BLOCK]);
            let memory = put(store, &lease, Some(&parent), &[(seed % 5, seed)], borrowed);
            let state = put(store, &lease, None, &[(0, seed)], None);
            let parts = Parts::one(Part::Disk, &*disk.0)
                .with(Part::Memory, &*memory.0)
                .with(Part::State, &*state.0);
            store
                .commit_parts(&lease, &name("vm"), &parts, true)
                .unwrap();
        }
    });
}
