//! Seals that fail and are tried again: under every single fault the name appears in the end, with the
//! bytes of its freeze, and nothing is left over.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cowslip_block::files::{Access, Dir};
use cowslip_block::{ByteOffset, Device};
use cowslip_sim::{Call, EIO, ENOSPC, Faults, FaultyDir, Forget, MemoryFs, Rule};
use cowslip_snapshot::seal::SealError;
use cowslip_snapshot::session::{Seal, SessionError, SnapshotOptions, Workers};
use cowslip_snapshot::{Header, Image, StoreError};

use crate::gc::{gc, objects};
use crate::rig::spec;
use crate::session_power::{check_after, write};
use crate::session_world::{BLOCK, Oracle, SIZE_BYTES, Step, World, bytes_of, name};

/// For whatever should take a second or two, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const CALLS: [Call; 17] = [
    Call::Create,
    Call::Open,
    Call::OpenDir,
    Call::Rename,
    Call::Remove,
    Call::List,
    Call::SyncDir,
    Call::Lock,
    Call::Read,
    Call::Write,
    Call::Len,
    Call::SetLen,
    Call::Allocate,
    Call::Punch,
    Call::NextData,
    Call::Sync,
    Call::AllocatedBytes,
];

/// A disk that can fail, and a world on it.
fn faulty() -> (MemoryFs, Faults, Arc<dyn Dir>, World) {
    let disk = MemoryFs::new();
    let faults = Faults::new();
    let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
    let world = World::create(&*root, 1);
    (disk, faults, root, world)
}

/// Two overlapping snapshots, and writes after them.
fn two_frozen(world: &mut World, oracle: &mut Oracle) {
    let trim = Step::Trim {
        at: 3 * BLOCK,
        len: BLOCK,
    };
    for step in [
        write(0, 9000),
        trim,
        Step::Freeze("first"),
        write(5000, 9000),
        Step::Freeze("second"),
        write(100, 30),
        Step::Flush,
    ] {
        assert!(world.step(&step, oracle));
    }
}

fn ended(seal: &Seal) -> Option<Result<Arc<Header>, SessionError>> {
    seal.wait(Duration::ZERO)
}

fn is_cancelled(outcome: &Result<Arc<Header>, SessionError>) -> bool {
    matches!(outcome, Err(SessionError::Seal(error)) if matches!(**error, SealError::Cancelled))
}

#[test]
fn every_single_fault_passes_and_leaves_nothing() {
    let mut met = 0;
    for call in CALLS {
        for errno in [ENOSPC, EIO] {
            for k in 0.. {
                if !seal_under(call, errno, k) {
                    break;
                }
                met += 1;
            }
        }
    }
    assert!(met > 60, "only {met} faults were met");
}

/// The k-th call of a kind fails while the first of two snapshots is stored; false where there is no
/// such call.
fn seal_under(call: Call, errno: i32, k: u64) -> bool {
    let what = format!("{call:?} {k} fails with {errno}");
    let (_disk, faults, root, mut world) = faulty();
    let mut oracle = Oracle::new();
    two_frozen(&mut world, &mut oracle);
    let first = world.session.next_seal().unwrap();
    faults.add(Rule::once(call, errno).after(k));
    world.step(&Step::Seal, &mut oracle);
    faults.clear();
    if faults.met() == 0 {
        return false;
    }
    let again = ended(&first).is_none();
    assert_eq!(first.attempts().failed, u32::from(again), "{what}");
    let poisoned = world.session.status().unwrap().poisoned.is_some();
    if poisoned {
        // The fault met the session's own files. Reads go on, and the next start mends it.
        assert!(world.read() == oracle.image(), "{what}");
        drop((world, first));
        world = World::open(&*root, 1).unwrap();
    }
    while world.session.next_seal().is_some() {
        assert!(world.step(&Step::Seal, &mut oracle), "{what}: it passes");
    }
    world.check_names(&oracle, &what);
    let is_there = |text: &str| world.store.has(&name(text)).unwrap();
    for text in ["first", "second"] {
        // After a failure as after a power cut: what was not whole on disk by then is no cut.
        assert!(poisoned || is_there(text), "{what}: {text}");
    }
    assert!(world.read() == oracle.image(), "{what}");
    let collected = gc(&world.store);
    if !poisoned && call != Call::Remove {
        assert_eq!(collected.removed, [], "{what}: left by the attempt");
    }
    world.check_names(&oracle, &what);
    // What was stored is all there is.
    for text in ["base", "first", "second"]
        .into_iter()
        .filter(|text| is_there(text))
    {
        world.store.remove(&name(text)).unwrap();
    }
    world.session.forget().unwrap();
    gc(&world.store);
    assert_eq!(objects(&*root), [""; 0], "{what}");
    true
}

#[test]
fn a_kill_at_every_operation_of_a_retried_seal_loses_nothing() {
    for rule in [
        // Its layer, its header, its name, and a name that may be there although it failed.
        Rule::once(Call::Write, ENOSPC).on(".0"),
        Rule::once(Call::Rename, ENOSPC).after(1),
        Rule::once(Call::Rename, ENOSPC).after(2),
        Rule::once(Call::SyncDir, EIO).after(2),
    ] {
        let last = retried_until(&rule, u64::MAX).0.operations();
        let first = retried_until(&rule, 0).0.operations();
        for n in first..=last {
            let (disk, oracle) = retried_until(&rule, n);
            let what = format!("{rule:?}, then cut at operation {n}");
            let kill = disk.after_cut(Forget::Nothing);
            check_after(&kill, oracle.clone(), true, &what);
            for forget in [Forget::Unsynced, Forget::Some(n)] {
                check_after(&disk.after_cut(forget), oracle.clone(), false, &what);
            }
        }
    }
}

/// A first attempt under the rule; then the power goes `n` operations after the start, in the second at
/// the earliest.
fn retried_until(rule: &Rule, n: u64) -> (MemoryFs, Oracle) {
    let (disk, faults, _root, mut world) = faulty();
    let mut oracle = Oracle::new();
    two_frozen(&mut world, &mut oracle);
    faults.add(rule.clone());
    assert!(!world.step(&Step::Seal, &mut oracle), "{rule:?} fails it");
    assert_eq!(faults.met(), 1);
    disk.cut_after(n);
    for step in [Step::Seal, write(7, 5000), Step::Seal, Step::Flush] {
        if !world.step(&step, &mut oracle) {
            break;
        }
    }
    (disk, oracle)
}

#[test]
fn a_seal_that_is_taken_up_relies_on_nothing_that_was_left() {
    let (disk, faults, root, mut world) = faulty();
    let mut oracle = Oracle::new();
    two_frozen(&mut world, &mut oracle);
    let before = objects(&*root);
    // Layer and header stand, the name does not.
    faults.add(Rule::every(Call::Rename, ENOSPC).on("first"));
    assert!(!world.step(&Step::Seal, &mut oracle));
    let mut left = objects(&*root);
    left.retain(|path| !before.contains(path));
    assert_eq!(left.len(), 2, "{left:?}");
    drop(world);
    let disk = disk.after_cut(Forget::Nothing);
    let root = disk.root();
    let mut world = World::open(&*root, 1).unwrap();
    while world.session.next_seal().is_some() {
        assert!(world.step(&Step::Seal, &mut oracle));
    }
    // A collection that had listed them before the session was opened removes them now.
    let store = root.open_dir("store").unwrap();
    for path in left {
        let (dir, file) = path.split_once('/').unwrap();
        store.open_dir(dir).unwrap().remove(file).unwrap();
    }
    drop(world);
    let world = World::open(&*root, 1).unwrap();
    world.check_names(&oracle, "after the collection");
    assert!(world.read() == oracle.image());
}

#[test]
fn attempts_without_end_do_not_fill_the_store() {
    let every = |call, name| Rule::every(call, ENOSPC).on(name);
    attempts_without_end(every(Call::Rename, "-"));
    attempts_without_end(every(Call::SyncDir, "layers"));
    // Of leases and of what is written under them, which are called by ids.
    attempts_without_end(every(Call::Write, "0000-0000"));
    attempts_without_end(every(Call::SyncDir, "headers"));
}

fn attempts_without_end(rule: Rule) {
    let (_disk, faults, root, mut world) = faulty();
    let mut oracle = Oracle::new();
    two_frozen(&mut world, &mut oracle);
    let seal = world.session.next_seal().unwrap();
    let before = objects(&*root);
    faults.add(rule);
    let lease_bytes = || {
        let leases = root.open_dir("store").unwrap().open_dir("leases").unwrap();
        let names = leases.list().unwrap();
        let len = |n: &String| leases.open(n, Access::Read).unwrap().len().unwrap();
        (names.iter().map(len).sum::<u64>(), names.len())
    };
    let mut lengths = Vec::new();
    for n in 1..=20 {
        world.session.seal_next();
        assert_eq!(seal.attempts().failed, n);
        lengths.push(lease_bytes());
        assert_eq!(objects(&*root), before);
    }
    assert!(lengths.iter().all(|len| *len == lengths[0]), "{lengths:?}");
    let why = seal.attempts().last_error.unwrap().to_string();
    assert!(why.contains("no space left"), "{why}");
    faults.clear();
    while world.session.next_seal().is_some() {
        assert!(world.step(&Step::Seal, &mut oracle));
    }
    world.check_names(&oracle, "in the end");
}

#[test]
fn a_name_that_stands_although_it_failed_is_found_by_the_next_attempt() {
    let (_disk, faults, root, mut world) = faulty();
    let mut oracle = Oracle::new();
    two_frozen(&mut world, &mut oracle);
    faults.add(Rule::once(Call::SyncDir, EIO).on("snapshots"));
    faults.add(Rule::once(Call::Remove, EIO).on("first"));
    assert!(!world.step(&Step::Seal, &mut oracle));
    assert!(world.store.has(&name("first")).unwrap());
    assert_eq!(faults.met(), 2);
    // Cancelled too late: it is stored.
    let seal = world.session.cancel(&name("first")).unwrap();
    assert!(world.session.seal_next());
    assert!(ended(&seal).unwrap().is_ok());
    assert!(world.step(&Step::Seal, &mut oracle));
    world.check_names(&oracle, "both");
    assert_eq!(gc(&world.store).removed, []);
    drop(world);
    assert!(World::open(&*root, 1).unwrap().read() == oracle.image());
}

#[test]
fn an_error_that_stays_takes_the_name_away_and_not_the_bytes() {
    let (_disk, _faults, _root, mut world) = faulty();
    let mut oracle = Oracle::new();
    two_frozen(&mut world, &mut oracle);
    let seals = world.session.pending();
    let base = world.store.resolve(&name("base")).unwrap();
    let lease = world.store.lease().unwrap();
    world
        .store
        .commit(&lease, &name("first"), &base, false)
        .unwrap();
    assert!(world.session.seal_next());
    let error = ended(&seals[0]).unwrap().unwrap_err();
    let SessionError::Seal(error) = error else {
        panic!("{error}")
    };
    assert!(
        matches!(&*error, SealError::Store(StoreError::AlreadyExists { name }) if name == "first"),
        "{error}"
    );
    assert!(world.session.seal_next());
    let second = ended(&seals[1]).unwrap().unwrap();
    assert_eq!(second.meta().generation, 1, "it holds what both had");
    assert_eq!(world.session.status().unwrap().frozen, 0);
    assert!(world.read() == oracle.image());
}

#[test]
fn a_cancelled_snapshot_loses_its_name_and_nothing_else() {
    // The first in line, which whoever seals gives up, after an attempt or before any; or one behind it.
    for (text, tried) in [("first", false), ("first", true), ("second", false)] {
        let (_disk, faults, root, mut world) = faulty();
        let mut oracle = Oracle::new();
        two_frozen(&mut world, &mut oracle);
        if tried {
            faults.add(Rule::once(Call::Rename, ENOSPC));
            assert!(!world.session.seal_next());
        }
        let seal = world.session.cancel(&name(text)).unwrap();
        assert_eq!(ended(&seal).is_some(), text == "second");
        while world.session.seal_next() {}
        assert!(is_cancelled(&ended(&seal).unwrap()), "{text}");
        assert!(matches!(
            world.session.cancel(&name(text)),
            Err(SessionError::NotOnItsWay { .. })
        ));
        assert!(!world.store.has(&name(text)).unwrap(), "{text}");
        world.check_names(&oracle, text);
        assert!(world.read() == oracle.image());
        // The name is free again, now and after a restart.
        drop(world);
        let mut world = World::open(&*root, 1).unwrap();
        assert_eq!(world.session.pending().len(), 0);
        assert!(world.step(&Step::Freeze("third"), &mut oracle));
        assert!(world.step(&Step::Seal, &mut oracle));
        world.check_names(&oracle, text);
        assert_eq!(world.session.status().unwrap().frozen, 0);
        assert!(world.read() == oracle.image());
    }
}

/// The threads: a full store, snapshots that queue behind it, a client that goes on, one that is
/// given up; then there is room.
#[test]
fn snapshots_wait_for_room_and_then_appear_by_themselves() {
    let (_disk, faults, _root, world) = faulty();
    let (store, session) = (world.store, Arc::new(world.session));
    let (say, said) = channel();
    let say = Mutex::new(say);
    let workers = Workers::start(&session, move |line| {
        drop(say.lock().unwrap().send(line.to_owned()));
    })
    .unwrap();
    // Whatever is written into the store begins as a file that is named after a lease.
    faults.add(Rule::every(Call::Create, ENOSPC).on("00000000-"));
    let device = session.device();
    let mut seals = Vec::new();
    let mut images = Vec::new();
    for (round, text) in (0..).zip(["one", "two", "three"]) {
        let bytes = bytes_of(round, 9000);
        device.write(ByteOffset(round * 4000), &bytes).unwrap();
        images.push(read(&*device));
        let options = SnapshotOptions::default();
        seals.push(session.freeze(&name(text), &options).unwrap());
        if round == 0 {
            let line = said.recv_timeout(PATIENCE).unwrap();
            assert!(
                line.contains("one is not stored yet") && line.contains("space"),
                "{line}"
            );
        }
    }
    device.write(ByteOffset(77), b"the client goes on").unwrap();
    let now = read(&*device);
    assert_eq!(session.pending().len(), 3);
    session.cancel(&name("two")).unwrap();
    assert!(is_cancelled(&ended(&seals[1]).unwrap()));
    faults.clear();
    for at in [0, 2] {
        let header = seals[at].wait(PATIENCE).expect("it appears").unwrap();
        assert!(read(&Image::new(Arc::clone(&store), header)) == images[at]);
    }
    assert!(!store.has(&name("two")).unwrap());
    assert!(read(&*device) == now);
    // The first in line, before its next attempt is due.
    faults.add(Rule::every(Call::Create, EIO).on("00000000-"));
    let options = SnapshotOptions::default();
    let seal = session.freeze(&name("four"), &options).unwrap();
    let line = said.recv_timeout(PATIENCE).unwrap();
    assert!(line.contains("four"), "{line}");
    session.cancel(&name("four")).unwrap();
    assert!(is_cancelled(&seal.wait(PATIENCE).expect("it is woken")));
    drop(workers);
    assert_eq!(
        said.try_iter().count(),
        0,
        "each kind of error is said once"
    );
}

fn read(device: &dyn Device) -> Vec<u8> {
    let mut bytes = vec![0; SIZE_BYTES];
    device.read_at(ByteOffset(0), &mut bytes).unwrap();
    bytes
}

/// What took a name after a snapshot was asked to take it is newer, and stays, when the server was killed
/// between the two.
#[test]
fn a_seal_that_is_taken_up_replaces_what_it_was_asked_to_and_nothing_newer() {
    for newer in [false, true] {
        let (disk, faults, root, mut world) = faulty();
        let mut oracle = Oracle::new();
        let put = |world: &World| {
            let lease = world.store.lease().unwrap();
            let parent = world.store.resolve(&name("base")).unwrap();
            let spec = spec(Some(&parent), parent.size_bytes(), &[]);
            let header = world.store.put_header(&lease, &spec).unwrap();
            world
                .store
                .commit(&lease, &name("latest"), &header, true)
                .unwrap();
            header.id()
        };
        let old = put(&world);
        assert!(world.step(&write(0, 9000), &mut oracle));
        let replace = SnapshotOptions {
            replace: true,
            ..SnapshotOptions::default()
        };
        world.session.freeze(&name("latest"), &replace).unwrap();
        let stands = newer.then(|| put(&world));
        drop((world, root, faults));
        let world = World::open(&*disk.root(), 1).unwrap();
        let seal = world.session.next_seal().unwrap();
        world.session.seal_next();
        let now = world.store.resolve(&name("latest")).unwrap().id();
        match (stands, ended(&seal)) {
            (None, Some(Ok(header))) => assert!(now == header.id() && now != old),
            (Some(newer), Some(Err(error))) => {
                assert_eq!(now, newer);
                assert!(
                    error
                        .to_string()
                        .contains("there is a snapshot latest already"),
                    "{error}"
                );
            }
            (_, other) => panic!("{other:?}"),
        }
        assert!(world.read() == oracle.image());
    }
}

/// The name stands, and nobody was told: a cancel that cannot look is no cancel.
#[test]
fn a_cancel_that_cannot_know_waits_until_it_does() {
    let (_disk, faults, _root, mut world) = faulty();
    let mut oracle = Oracle::new();
    assert!(world.step(&write(0, 9000), &mut oracle));
    let replace = SnapshotOptions {
        replace: true,
        ..SnapshotOptions::default()
    };
    let seal = world.session.freeze(&name("one"), &replace).unwrap();
    faults.add(Rule::once(Call::SyncDir, EIO).on("snapshots"));
    assert!(!world.session.seal_next());
    assert!(world.store.has(&name("one")).unwrap());
    world.session.cancel(&name("one")).unwrap();
    faults.add(Rule::once(Call::Open, EIO).on("one"));
    assert!(!world.session.seal_next());
    assert!(ended(&seal).is_none());
    assert!(world.session.seal_next());
    ended(&seal).unwrap().unwrap();
}

/// The store is told that a base is not needed any more also where the first attempt at that failed.
#[test]
fn an_old_base_is_let_go_of_later_where_it_could_not_be_at_once() {
    let (_disk, faults, _root, mut world) = faulty();
    let mut oracle = Oracle::new();
    let id = world.session.manifest().id;
    for step in [write(0, 9000), Step::Freeze("one")] {
        assert!(world.step(&step, &mut oracle));
    }
    // The first says that both are needed.
    let record = format!("{id}.new");
    faults.add(Rule::once(Call::Create, ENOSPC).on(&record).after(1));
    assert!(world.step(&Step::Seal, &mut oracle));
    assert_eq!(faults.met(), 1);
    let listed = || world.store.sessions().unwrap()[0].headers.clone();
    assert_eq!(listed().len(), 2);
    world.session.settle().unwrap();
    assert_eq!(listed(), [world.session.manifest().base]);
}
