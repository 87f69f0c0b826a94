//! Garbage collection: what is needed stays, what is not goes, beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowslip_block::files::{Access, Dir, RealDir};
use cowslip_block::{BlockSize, ByteOffset, ByteRange, Device};
use cowslip_sim::{Call, EIO, Faults, FaultyDir, MemoryFs, Rule};
use cowslip_snapshot::compact::{Around, Options, Policy, compact};
use cowslip_snapshot::gc::{Collected, collect};
use cowslip_snapshot::session::{Session, SnapshotOptions, Surroundings, Workers};
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{Caches, Store, StoreError};
use proptest::prelude::*;

use crate::rig::temp_dir;
use crate::session_world::{BLOCK, BootHost, Oracle, SIZE_BYTES, Step, World, fresh, name};

pub(crate) fn gc(store: &Store) -> Collected {
    collect(store, false, &mut |_, _| {}).unwrap()
}

/// Leaves every layer that can be left.
fn tighten(store: &Store) {
    let policy = Policy {
        garbage_percent: 0,
        garbage_bytes_min: 0,
        layers_max: 1,
        layers_after: 1,
    };
    let options = Options {
        policy,
        names: Vec::new(),
        step_bytes: 20_000,
    };
    let around = Around {
        moved: &|_| {},
        progress: &|_| true,
    };
    compact(store, &options, &around).unwrap();
}

/// All objects of a store, by path.
pub(crate) fn objects(root: &dyn Dir) -> Vec<String> {
    let store = root.open_dir("store").unwrap();
    let mut all = Vec::new();
    for dir in ["layers", "headers", "tmp"] {
        let names = store.open_dir(dir).unwrap().list().unwrap();
        all.extend(names.into_iter().map(|name| format!("{dir}/{name}")));
    }
    all.sort();
    all
}

fn step(world: &mut World, oracle: &mut Oracle, steps: &[Step]) {
    for step in steps {
        assert!(world.step(step, oracle), "{step:?}");
    }
}

fn write(at: usize, len: usize) -> Step {
    let fua = false;
    Step::Write { at, len, fua }
}

#[test]
fn a_store_without_names_and_sessions_is_empty() {
    let (disk, mut world) = fresh();
    let mut oracle = Oracle::new();
    let take = [
        write(0, 9000),
        Step::Freeze("one"),
        Step::Seal,
        write(7, 3 * BLOCK),
    ];
    step(&mut world, &mut oracle, &take);
    step(&mut world, &mut oracle, &[Step::Freeze("two"), Step::Seal]);
    let before = objects(&*disk.root());
    assert_eq!(gc(&world.store).removed, [], "all of it is needed");
    // Names go; the session still reads what is under it.
    for text in ["base", "one", "two"] {
        world.store.remove(&name(text)).unwrap();
    }
    let image = world.read();
    gc(&world.store);
    drop(world);
    let world = World::open(&*disk.root(), 1).unwrap();
    assert!(world.read() == image);
    let dry = collect(&world.store, true, &mut |_, _| {}).unwrap();
    assert_eq!(dry.removed, []);
    // The session is forgotten: nothing is left.
    world.session.forget().unwrap();
    let dry = collect(&world.store, true, &mut |_, _| {}).unwrap();
    assert!(!dry.removed.is_empty());
    assert!(
        !objects(&*disk.root()).is_empty(),
        "a dry run removes nothing"
    );
    assert_eq!(gc(&world.store), dry);
    assert_eq!(objects(&*disk.root()), [""; 0], "of {before:?}");
}

#[test]
fn what_an_operation_writes_or_reads_is_kept_as_long_as_it_runs() {
    let (disk, world) = fresh();
    let store = &world.store;
    world.session.forget().unwrap();
    // Reading: the name goes, the lease stays.
    let (header, lease) = store.resolve_leased(&name("base")).unwrap();
    store.remove(&name("base")).unwrap();
    assert_eq!(gc(store).removed, []);
    assert!(verify(store, &header, &mut |_, _| {}).unwrap().is_whole());
    drop(lease);
    assert_eq!(gc(store).removed.len(), 2);
    // Writing: the file in tmp/, then the layer that nothing points at yet.
    let lease = store.lease().unwrap();
    let mut writer = store.layer_writer(&lease, BlockSize::DISK).unwrap();
    writer.push(&[7; BLOCK]).unwrap();
    assert_eq!(gc(store).removed, []);
    let layer = writer.finish().unwrap();
    assert_eq!(gc(store).removed, []);
    drop(lease);
    assert_eq!(
        gc(store).removed,
        [(format!("layers/{}", layer.id), layer.stored_bytes)]
    );
    // What a crashed writer left: the lease has nobody who holds it.
    let tmp = disk
        .root()
        .open_dir("store")
        .unwrap()
        .open_dir("tmp")
        .unwrap();
    let file = tmp
        .create("00000000-0000-4000-8000-000000000001.0")
        .unwrap();
    file.write_at(b"half", 0).unwrap();
    assert_eq!(gc(store).removed.len(), 1);
    assert_eq!(objects(&*disk.root()), [""; 0]);
}

#[test]
fn a_damaged_root_stops_the_collection_before_anything_is_removed() {
    let (disk, mut world) = fresh();
    let mut oracle = Oracle::new();
    let take = [write(0, 9000), Step::Freeze("one"), Step::Seal];
    step(&mut world, &mut oracle, &take);
    world.store.remove(&name("base")).unwrap();
    world.store.remove(&name("one")).unwrap();
    world.session.forget().unwrap();
    step(&mut world, &mut oracle, &[Step::Freeze("two"), Step::Seal]);
    let header = world.store.resolve(&name("two")).unwrap().id();
    let before = objects(&*disk.root());
    let headers = disk
        .root()
        .open_dir("store")
        .unwrap()
        .open_dir("headers")
        .unwrap();
    let file = headers
        .open(&header.to_string(), Access::ReadWrite)
        .unwrap();
    let len = file.len().unwrap();
    for at in [0, len / 2, len - 1] {
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[!byte[0]], at).unwrap();
        // A store that has cached nothing.
        let dir = disk.root().open_dir("store").unwrap();
        let store = Store::open(&*dir, BootHost::new(1), Caches::default()).unwrap();
        let error = collect(&store, false, &mut |_, _| {});
        assert!(
            matches!(error, Err(StoreError::Corrupt { .. })),
            "byte {at}: {error:?}"
        );
        assert_eq!(objects(&*disk.root()), before);
        file.write_at(&byte, at).unwrap();
    }
}

/// What this process has open of a store, by its path; removed or not.
pub(crate) fn open_objects(store: &str) -> Vec<String> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let links = links.map(|link| link.to_string_lossy().into_owned());
    let kinds = ["layers", "headers"].map(|kind| format!("{store}/{kind}/"));
    links
        .filter(|link| kinds.iter().any(|kind| link.starts_with(kind)))
        .collect()
}

#[test]
fn what_was_removed_does_not_stay_open() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let mut world = World::create(&root, 1);
    let mut oracle = Oracle::new();
    for text in ["one", "two"] {
        step(&mut world, &mut oracle, &[write(0, SIZE_BYTES)]);
        step(&mut world, &mut oracle, &[Step::Freeze(text), Step::Seal]);
        // Opens what it reads from.
        world.read();
    }
    let removed = || {
        let open = open_objects(temp.path().join("store").to_str().unwrap());
        assert!(!open.is_empty(), "what is needed stays open");
        open.iter().filter(|o| o.ends_with(" (deleted)")).count()
    };
    world.store.remove(&name("base")).unwrap();
    world.store.remove(&name("one")).unwrap();
    // By another process, say.
    let dir = root.open_dir("store").unwrap();
    let other = Store::open(&*dir, BootHost::new(1), Caches::default()).unwrap();
    gc(&other);
    assert!(removed() > 0, "the first snapshot was open");
    world.session.let_go_of_removed();
    assert_eq!(removed(), 0);
    assert!(world.read() == oracle.image());
}

#[test]
fn a_root_that_another_collection_was_faster_to_remove_is_no_damage() {
    let (disk, mut world) = fresh();
    let mut oracle = Oracle::new();
    for text in ["one", "two", "three"] {
        step(
            &mut world,
            &mut oracle,
            &[write(0, 9000), Step::Freeze(text), Step::Seal],
        );
    }
    // While the first of the roots is being marked, the names go, and another collects them.
    let store = Arc::clone(&world.store);
    let dir = disk.root().open_dir("store").unwrap();
    let other = Store::open(&*dir, BootHost::new(1), Caches::default()).unwrap();
    let mut removed = None;
    let mut meanwhile = |_, _| {
        if removed.is_none() {
            for text in ["base", "one", "two"] {
                store.remove(&name(text)).unwrap();
            }
            removed = Some(gc(&store).removed.len());
        }
    };
    collect(&other, false, &mut meanwhile).unwrap();
    assert!(removed > Some(0), "{removed:?}");
    assert_eq!(
        gc(&store).removed,
        [],
        "between them they removed all of it"
    );
}

#[test]
fn a_temporary_session_ends_with_its_server() {
    let (disk, world) = fresh();
    let root = disk.root();
    root.create_dir("temporary").unwrap();
    let around = Surroundings {
        dir: root.open_dir("temporary").unwrap(),
        path: "temporary".into(),
        temporary: true,
        store: Arc::clone(&world.store),
        store_path: "store".into(),
        host: BootHost::new(1),
        unneeded: None,
        say: Box::new(|_| {}),
    };
    let session = Session::create(around, &name("base"), None).unwrap();
    world.session.forget().unwrap();
    world.store.remove(&name("base")).unwrap();
    assert_eq!(gc(&world.store).removed, []);
    drop(session);
    assert_eq!(gc(&world.store).removed.len(), 2);
    assert!(world.store.sessions().unwrap().is_empty());
}

/// From its very beginning, whatever a collection beside it sees of its directory.
#[test]
fn a_temporary_session_is_kept_as_long_as_it_lives() {
    let temp = tempfile::tempdir().unwrap();
    let root = RealDir::open(temp.path()).unwrap();
    let world = World::create(&root, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                gc(&world.store);
            }
        });
        for n in 0..50 {
            let mine = format!("temporary-{n}");
            root.create_dir(&mine).unwrap();
            let around = Surroundings {
                dir: root.open_dir(&mine).unwrap(),
                path: "nowhere".into(),
                temporary: true,
                store: Arc::clone(&world.store),
                store_path: "store".into(),
                host: BootHost::new(1),
                unneeded: None,
                say: Box::new(|_| {}),
            };
            let _session = Session::create(around, &name("base"), None).unwrap();
            gc(&world.store);
            let known = world.store.sessions().unwrap();
            assert_eq!(known.iter().filter(|r| r.temporary).count(), 1, "{n}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// The collector fails, or is killed, at every call: nothing that is needed is gone, and the next
/// one finishes.
#[test]
fn a_collection_that_is_cut_short_harms_nothing() {
    for call in [
        Call::Remove,
        Call::SyncDir,
        Call::List,
        Call::Open,
        Call::Read,
        Call::Lock,
    ] {
        for after in 0..12 {
            let disk = MemoryFs::new();
            let faults = Faults::new();
            let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
            let mut world = World::create(&*root, 1);
            let mut oracle = Oracle::new();
            let take = [
                write(0, 9000),
                Step::Freeze("one"),
                Step::Seal,
                write(7, 3 * BLOCK),
            ];
            step(&mut world, &mut oracle, &take);
            step(&mut world, &mut oracle, &[Step::Freeze("two"), Step::Seal]);
            world.store.remove(&name("one")).unwrap();
            faults.add(Rule::every(call, EIO).after(after));
            drop(collect(&world.store, false, &mut |_, _| {}));
            faults.clear();
            assert!(world.read() == oracle.image());
            gc(&world.store);
            assert_eq!(gc(&world.store).removed, []);
            let store = root.open_dir("store").unwrap();
            let store = Store::open(&*store, BootHost::new(1), Caches::default()).unwrap();
            for text in ["base", "two"] {
                let header = store.resolve(&name(text)).unwrap();
                assert!(verify(&store, &header, &mut |_, _| {}).unwrap().is_whole());
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write(usize, usize),
    Snapshot(usize),
    Remove(usize),
    Collect,
    Compact,
    GoOver,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..13usize, 1..3 * BLOCK).prop_map(|(block, len)| Act::Write(block * BLOCK, len.min(BLOCK))),
        3 => (0..6usize).prop_map(Act::Snapshot),
        2 => (0..6usize).prop_map(Act::Remove),
        2 => Just(Act::Collect),
        2 => Just(Act::Compact),
        1 => Just(Act::GoOver),
        1 => Just(Act::Reopen),
    ]
}

const NAMES: [&str; 6] = ["n0", "n1", "n2", "n3", "n4", "n5"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever the history: every name verifies and has its bytes, the session reads right, and
    /// a second collection finds nothing.
    #[test]
    fn names_and_sessions_keep_what_they_need(acts in prop::collection::vec(act(), 1..40)) {
        let (disk, mut world) = fresh();
        let mut oracle = Oracle::new();
        let mut snapshots = std::collections::BTreeMap::new();
        for act in acts {
            match act {
                Act::Write(at, len) => step(&mut world, &mut oracle, &[write(at, len)]),
                Act::Snapshot(n) => {
                    let options = SnapshotOptions { replace: true, ..SnapshotOptions::default() };
                    world.session.freeze(&name(NAMES[n]), &options).unwrap();
                    while world.session.seal_next() {}
                    snapshots.insert(n, oracle.image());
                }
                Act::Remove(n) => {
                    let there = snapshots.remove(&n).is_some();
                    assert_eq!(world.store.remove(&name(NAMES[n])).is_ok(), there);
                }
                Act::Collect => drop(gc(&world.store)),
                Act::Compact => tighten(&world.store),
                Act::GoOver => drop(world.session.go_over().unwrap()),
                Act::Reopen => {
                    drop(world);
                    world = World::open(&*disk.root(), 1).unwrap();
                }
            }
        }
        gc(&world.store);
        assert_eq!(gc(&world.store).removed, []);
        assert!(world.read() == oracle.image());
        drop(world);
        let world = World::open(&*disk.root(), 1).unwrap();
        assert!(world.read() == oracle.image());
        for (n, bytes) in snapshots {
            let header = world.store.resolve(&name(NAMES[n])).unwrap();
            assert!(verify(&world.store, &header, &mut |_, _| {}).unwrap().is_whole());
            let image: &dyn Device = &cowslip_snapshot::Image::new(Arc::clone(&world.store), header);
            let mut got = vec![0; bytes.len()];
            image.read_at(ByteOffset(0), &mut got).unwrap();
            assert!(got == bytes, "{}", NAMES[n]);
        }
    }
}

/// Collections and compactions one after the other beside two sessions that write, snapshot, remove and begin again:
/// no object that is needed is ever removed.
#[test]
fn collections_beside_writers_and_seals() {
    const ROUNDS: u64 = 40;
    let temp = tempfile::tempdir().unwrap();
    let root = RealDir::open(temp.path()).unwrap();
    let world = World::create(&root, 1);
    world.session.forget().unwrap();
    let store = &world.store;
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let root = RealDir::open(temp.path()).unwrap();
                scope.spawn(move || one_writer(&root, temp_name(writer), store, ROUNDS))
            })
            .collect();
        let collector = scope.spawn(move || {
            let mut runs = 0;
            while !done.load(Ordering::Relaxed) {
                gc(store);
                tighten(store);
                runs += 1;
            }
            runs
        });
        let ended: Vec<_> = writers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(collector.join().unwrap() > 2);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    // Nothing needs anything any more.
    store.remove(&name("base")).unwrap();
    gc(store);
    assert_eq!(objects(&root), [""; 0]);
}

fn temp_name(writer: u64) -> &'static str {
    ["w0", "w1"][usize::try_from(writer).unwrap()]
}

fn one_writer(root: &RealDir, mine: &'static str, store: &Arc<Store>, rounds: u64) {
    root.create_dir(mine).unwrap();
    let around = Surroundings {
        dir: root.open_dir(mine).unwrap(),
        path: mine.into(),
        temporary: false,
        store: Arc::clone(store),
        store_path: "store".into(),
        host: BootHost::new(1),
        unneeded: None,
        say: Box::new(|why| panic!("{why}")),
    };
    let session = Arc::new(Session::create(around, &name("base"), None).unwrap());
    let workers = Workers::start(&session, |line| panic!("{line}")).unwrap();
    let device = session.device();
    for round in 0..rounds {
        let bytes = crate::session_world::bytes_of(round, 2 * BLOCK);
        device.write(ByteOffset(round % 8 * 4096), &bytes).unwrap();
        device.trim(ByteRange::new(8 * 4096, 9 * 4096)).unwrap();
        let text = format!("{mine}-{round}");
        let seal = session
            .freeze(&name(&text), &SnapshotOptions::default())
            .unwrap();
        let header = seal
            .wait(std::time::Duration::from_secs(60))
            .expect("in time")
            .unwrap();
        // Read from the store, not from memory.
        let report = verify(store, &header, &mut |_, _| {}).unwrap();
        assert!(report.is_whole(), "{text}: {:?}", report.damage);
        store.remove(&name(&text)).unwrap();
    }
    drop(workers);
    session.forget().unwrap();
}
