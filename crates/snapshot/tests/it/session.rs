//! Sessions and seals: what a snapshot holds, what it counts, and what a failure leaves.

use std::sync::Arc;
use std::time::Duration;

use cowslip_block::files::{Dir, RealDir};
use cowslip_block::{ByteOffset, ByteRange, Room};
use cowslip_sim::{Call, EIO, ENOSPC, Fault, Faults, FaultyDir, MemoryFs, Rule};
use cowslip_snapshot::session::{
    Manifest, Seal, Session, SessionError, SnapshotOptions, Surroundings, Workers,
};
use cowslip_snapshot::{Caches, Header, Store, StoreError};

use crate::session_world::{
    BASE_BYTES, BLOCK, BootHost, Oracle, SIZE_BYTES, Step, World, bytes_of, fresh, name,
};

fn write(world: &World, block: usize, bytes: &[u8]) {
    world
        .session
        .device()
        .write(ByteOffset((block * BLOCK) as u64), bytes)
        .unwrap();
}

fn take(world: &World, text: &str, options: &SnapshotOptions) -> Result<Arc<Header>, SessionError> {
    let seal = world.session.freeze(&name(text), options)?;
    while world.session.seal_next() {}
    ended(&seal)
}

fn ended(seal: &Seal) -> Result<Arc<Header>, SessionError> {
    seal.wait(Duration::ZERO).expect("it has ended")
}

fn snapshot(world: &World, text: &str) -> Arc<Header> {
    take(world, text, &SnapshotOptions::default()).unwrap()
}

#[test]
fn blocks_are_counted_as_dirty_zero_or_same() {
    let (_disk, world) = fresh();
    let base = bytes_of(1, BASE_BYTES);
    // Two new blocks, one as it was, one whose bytes come back, one zeroed, one zero that was
    // zero, one zeroed past the parent's end.
    write(&world, 0, &bytes_of(5, 2 * BLOCK));
    write(&world, 2, &base[2 * BLOCK..3 * BLOCK]);
    write(&world, 3, &bytes_of(6, BLOCK));
    write(&world, 3, &base[3 * BLOCK..4 * BLOCK]);
    let device = world.session.device();
    device
        .write_zeroes(ByteRange::new(4 * 4096, 5 * 4096), Room::Free)
        .unwrap();
    device.trim(ByteRange::new(12 * 4096, 13 * 4096)).unwrap();
    let figures = snapshot(&world, "one").meta().figures;
    assert_eq!(
        (
            figures.dirty_blocks,
            figures.zero_blocks,
            figures.same_blocks
        ),
        (2, 1, 2)
    );
    // Nothing since: nothing in the next, and it is small.
    let nothing = snapshot(&world, "two");
    let figures = nothing.meta().figures;
    assert_eq!(
        (
            figures.dirty_blocks,
            figures.zero_blocks,
            figures.same_blocks
        ),
        (0, 0, 0)
    );
    assert!(nothing.object_bytes() < 512 && nothing.meta().own_layer.is_none());
    // What is zero already is not newly zero.
    device.trim(ByteRange::new(4 * 4096, 5 * 4096)).unwrap();
    assert_eq!(snapshot(&world, "three").meta().figures.zero_blocks, 0);
    // Told to keep them, it keeps them.
    write(&world, 2, &base[2 * BLOCK..3 * BLOCK]);
    let keep = SnapshotOptions {
        dedup: false,
        ..SnapshotOptions::default()
    };
    let kept = take(&world, "four", &keep).unwrap().meta().figures;
    assert_eq!((kept.dirty_blocks, kept.same_blocks), (1, 0));
    assert_eq!(world.session.status().unwrap().frozen, 0);
}

#[test]
fn a_block_of_the_tail_that_is_rewritten_as_it_was_counts_as_same() {
    let (_disk, world) = fresh();
    let base = bytes_of(1, BASE_BYTES);
    world
        .session
        .device()
        .write(ByteOffset(10 * 4096), &base[10 * BLOCK..])
        .unwrap();
    assert_eq!(snapshot(&world, "tail").meta().figures.same_blocks, 1);
}

#[test]
fn a_name_that_is_taken_meanwhile_fails_the_seal() {
    let (_disk, world) = fresh();
    write(&world, 0, &bytes_of(5, BLOCK));
    let seal = world
        .session
        .freeze(&name("mine"), &SnapshotOptions::default())
        .unwrap();
    let base = world.store.resolve(&name("base")).unwrap();
    world
        .store
        .commit(&world.store.lease().unwrap(), &name("mine"), &base, false)
        .unwrap();
    world.session.seal_next();
    let error = ended(&seal).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("there is a snapshot mine already"),
        "{error}"
    );
    assert_eq!(
        world.store.resolve(&name("mine")).unwrap().id(),
        base.id(),
        "theirs stands"
    );
    // A pending name is as good as taken; a taken one is refused at once.
    for text in ["base", "mine"] {
        let refused = world
            .session
            .freeze(&name(text), &SnapshotOptions::default());
        assert!(matches!(
            refused,
            Err(SessionError::Store(StoreError::AlreadyExists { .. }))
        ));
    }
    let replace = SnapshotOptions {
        replace: true,
        ..SnapshotOptions::default()
    };
    let header = take(&world, "mine", &replace).unwrap();
    assert_eq!(
        header.meta().figures.dirty_blocks,
        1,
        "what the failed one held is in this one"
    );
}

#[test]
fn a_freeze_that_fails_leaves_the_session_as_it_was() {
    use Call::{Allocate, Create, Rename, SetLen, Sync, SyncDir, Write};
    for call in [Create, SetLen, Allocate, Write, Sync, SyncDir, Rename] {
        for after in 0..8 {
            freeze_under(&[Rule::once(call, EIO).after(after)]);
            freeze_under(&[Rule::every(call, EIO).after(after)]);
            // The manifest gets in place, and cannot be taken back.
            let kept = [SyncDir, Rename].map(|c| Rule::every(c, EIO).after(after));
            freeze_under(&[Rule::every(call, ENOSPC).after(after), kept[0].clone()]);
            freeze_under(&[Rule::every(call, ENOSPC).after(after + 1), kept[1].clone()]);
        }
    }
}

/// A file that is said not to be made, and is there, is in nobody's way.
#[test]
fn a_freeze_that_is_done_and_said_to_fail_can_be_asked_for_again() {
    for fault in [Fault::Late(EIO), Fault::Late(ENOSPC), Fault::Twice] {
        for after in 0..30 {
            freeze_under(&[Rule::any(fault).after(after)]);
        }
    }
}

/// A freeze on a disk that fails so; then, and after a restart, every byte is there.
fn freeze_under(rules: &[Rule]) {
    let what = format!("{rules:?}");
    let disk = MemoryFs::new();
    let faults = Faults::new();
    let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
    let world = World::create(&*root, 1);
    write(&world, 0, &bytes_of(5, BLOCK));
    let before = world.session.manifest();
    rules.iter().for_each(|rule| faults.add(rule.clone()));
    let frozen = world
        .session
        .freeze(&name("x"), &SnapshotOptions::default());
    faults.clear();
    let poisoned = world.session.status().unwrap().poisoned.is_some();
    if frozen.is_err() {
        assert_eq!(world.session.manifest(), before, "{what}");
        assert_eq!(world.session.status().unwrap().frozen, 0, "{what}");
        if !poisoned {
            write(&world, 1, &bytes_of(6, BLOCK));
            snapshot(&world, "x");
        }
    }
    let image = world.read();
    drop(world);
    let world = World::open(&*root, 1).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(world.read() == image, "{what}");
    while world.session.seal_next() {}
    write(&world, 2, &bytes_of(7, BLOCK));
    snapshot(&world, "y");
}

/// The list on disk may be older than the one in memory: where the one could not be written without a snapshot that is stored. That is no reason to refuse writes.
#[test]
fn a_freeze_that_fails_on_a_full_disk_after_another_failure_refuses_no_writes() {
    let faults = Faults::new();
    let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(MemoryFs::new().root(), &faults));
    let world = World::create(&*root, 1);
    write(&world, 0, &bytes_of(5, BLOCK));
    let name = "first".parse().unwrap();
    let seal = world.session.freeze(&name, &SnapshotOptions::default());
    faults.add(Rule::once(Call::Create, EIO).on("session.json"));
    world.session.seal_next();
    ended(&seal.unwrap()).unwrap();
    assert_eq!(faults.met(), 1);
    faults.add(Rule::every(Call::Write, ENOSPC).on("session.json"));
    take(&world, "second", &SnapshotOptions::default()).unwrap_err();
    write(&world, 1, &bytes_of(6, BLOCK));
    world.session.device().flush().unwrap();
    faults.clear();
    snapshot(&world, "third");
    drop(world);
    let world = World::open(&*root, 1).unwrap();
    assert!(world.read()[..BLOCK] == bytes_of(5, BLOCK));
    assert!(world.read()[BLOCK..2 * BLOCK] == bytes_of(6, BLOCK));
}

#[test]
fn a_seal_is_taken_up_by_the_next_start() {
    let disk = MemoryFs::new();
    let root = disk.root();
    let mut world = World::create(&*root, 1);
    let mut oracle = Oracle::new();
    let write = |at, len| Step::Write {
        at,
        len,
        fua: false,
    };
    for step in [
        write(0, 9000),
        Step::Freeze("one"),
        write(10, 10),
        Step::Freeze("two"),
    ] {
        assert!(world.step(&step, &mut oracle));
    }
    world.session.stop();
    assert!(!world.session.seal_next(), "it is interrupted");
    drop(world);
    let world = World::open(&*root, 1).unwrap();
    while world.session.seal_next() {}
    world.check_names(&oracle, "taken up");
    for text in ["one", "two"] {
        assert!(world.store.has(&name(text)).unwrap(), "{text}");
    }
    assert!(world.read() == oracle.image());
    assert_eq!(world.session.status().unwrap().frozen, 0);
    let left = root.open_dir("session").unwrap().list().unwrap();
    let caches = left.iter().filter(|n| n.starts_with("cache-")).count();
    assert_eq!(caches, 2, "data and journal of one cache: {left:?}");
}

#[test]
fn what_cannot_be_a_session_is_refused_with_the_reason() {
    let (disk, world) = fresh();
    let root = disk.root();
    let around = |dir: &str| Surroundings {
        dir: root.open_dir(dir).unwrap(),
        path: dir.into(),
        temporary: false,
        store: Arc::clone(&world.store),
        store_path: "store".into(),
        host: BootHost::new(1),
        unneeded: None,
        say: Box::new(|_| {}),
    };
    let why = |result: Result<Session, SessionError>| result.err().unwrap().to_string();
    assert_eq!(
        why(Session::open(around("session"))),
        "the session is in use by another process"
    );
    let none = Session::create(around("session"), &name("nope"), None);
    assert!(why(none).contains("no snapshot nope"));
    assert!(why(Session::create(around("store"), &name("base"), None)).contains("not empty"));
    root.create_dir("empty").unwrap();
    assert!(matches!(
        Session::open(around("empty")),
        Err(SessionError::NotASession)
    ));
    let small = Session::create(around("empty"), &name("base"), Some(BASE_BYTES as u64 - 1));
    assert!(matches!(small, Err(SessionError::Size(_))));
    // What a crash left in the middle of a creation is no obstacle.
    let empty = root.open_dir("empty").unwrap();
    empty.create("cache-1.data").unwrap();
    empty.create("session.json.new").unwrap();
    drop(Session::create(around("empty"), &name("base"), None).unwrap());
    drop(world);
    let file = root.open_dir("session").unwrap();
    let manifest = file
        .open("session.json", cowslip_block::files::Access::ReadWrite)
        .unwrap();
    manifest.write_at(b"x", 20).unwrap();
    let Err(SessionError::Damaged(why)) = World::open(&*root, 1).map(drop) else {
        panic!("a damaged manifest opens")
    };
    assert!(why.contains("session.json"), "{why}");
    assert!(Manifest::read(&*file).is_err());
}

/// On a real file system, with the threads: snapshots one after the other while writes go on.
#[test]
fn workers_seal_and_tidy_behind_the_writes() {
    let temp = tempfile::tempdir().unwrap();
    let root = RealDir::open(temp.path()).unwrap();
    let world = World::create(&root, 1);
    let session = Arc::new(world.session);
    let workers = Workers::start(&session, |line| panic!("{line}")).unwrap();
    let device = session.device();
    let mut seals = Vec::new();
    for round in 0..20u64 {
        device
            .write(ByteOffset(round % 7 * 4096), &bytes_of(round, 9000))
            .unwrap();
        device.trim(ByteRange::new(8 * 4096, 9 * 4096)).unwrap();
        let text = format!("round-{round}");
        seals.push(
            session
                .freeze(&name(&text), &SnapshotOptions::default())
                .unwrap(),
        );
    }
    for (round, seal) in (1..).zip(seals) {
        let header = seal
            .wait(Duration::from_secs(60))
            .expect("in time")
            .unwrap();
        assert_eq!(header.meta().generation, round);
    }
    let reading = |session: &Session| {
        let mut bytes = vec![0; SIZE_BYTES];
        session.device().read_at(ByteOffset(0), &mut bytes).unwrap();
        bytes
    };
    let image = reading(&session);
    drop(workers);
    drop((device, session));
    let world = World::open(&root, 1).unwrap();
    assert!(world.read() == image);
    assert_eq!(world.session.manifest().base_name, name("round-19"));
    let caches = Caches {
        frame_bytes: 1 << 20,
        node_bytes: 1 << 20,
    };
    let dir = root.open_dir("store").unwrap();
    let again = Store::open(&*dir, BootHost::new(1), caches).unwrap();
    assert_eq!(again.list().unwrap().len(), 21);
}

#[test]
fn a_full_disk_is_no_reason_not_to_open() {
    let disk = MemoryFs::new();
    let faults = Faults::new();
    let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
    let world = World::create(&*root, 1);
    write(&world, 0, &bytes_of(5, BLOCK));
    let image = world.read();
    drop(world);
    for call in [Call::Create, Call::Write, Call::Allocate] {
        faults.add(Rule::every(call, ENOSPC));
    }
    let world = World::open(&*root, 1).unwrap();
    assert!(world.read() == image);
    let device = world.session.device();
    device.trim(ByteRange::new(0, 4096)).unwrap_err();
    faults.clear();
    device.trim(ByteRange::new(0, 4096)).unwrap();
    write(&world, 0, &bytes_of(6, BLOCK));
    snapshot(&world, "later");
}

#[test]
fn a_session_that_cannot_begin_is_not_remembered() {
    for call in [Call::Create, Call::Allocate, Call::Sync, Call::Rename] {
        for after in 0..8 {
            let disk = MemoryFs::new();
            let faults = Faults::new();
            let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
            let world = World::create(&*root, 1);
            root.create_dir("other").unwrap();
            let around = Surroundings {
                dir: root.open_dir("other").unwrap(),
                path: "other".into(),
                temporary: false,
                store: Arc::clone(&world.store),
                store_path: "store".into(),
                host: BootHost::new(1),
                unneeded: None,
                say: Box::new(|_| {}),
            };
            faults.add(Rule::once(call, ENOSPC).after(after));
            let begun = Session::create(around, &name("base"), None);
            faults.clear();
            let remembered = world.store.sessions().unwrap().len();
            assert_eq!(
                remembered,
                1 + usize::from(begun.is_ok()),
                "{call:?} {after}"
            );
        }
    }
}
