//! Compaction under a session: it goes over to the new base when it can, and a compaction that fails, or
//! is cut off, at any call harms neither it nor any name.

use std::sync::{Arc, Barrier};

use cowslip_block::files::Dir;
use cowslip_sim::{Call, EIO, ENOSPC, Faults, FaultyDir, Forget, MemoryFs, Rule};
use cowslip_snapshot::compact::{Around, Options, Policy, compact};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::roots::SessionRecord;
use cowslip_snapshot::session::{Over, go_over};
use cowslip_snapshot::{Store, StoreError};

use crate::compact::tight;
use crate::rig::{CountingHost, SMALL};
use crate::session_world::{BLOCK, Oracle, Step, World, name};

/// A session that stands on what is compacted, and its history.
pub(crate) fn with_session(root: &dyn Dir) -> (World, Oracle) {
    let mut world = World::create(root, 1);
    let mut oracle = Oracle::new();
    let write = |at, len| Step::Write {
        at,
        len,
        fua: false,
    };
    for steps in [
        [write(0, 9000), Step::Freeze("one"), Step::Seal],
        [write(7, 3 * BLOCK), Step::Freeze("two"), Step::Seal],
        [write(5 * BLOCK, 2 * BLOCK), Step::Flush, Step::Tidy],
    ] {
        for step in steps {
            assert!(world.step(&step, &mut oracle));
        }
    }
    (world, oracle)
}

fn record(store: &Store) -> SessionRecord {
    let sessions = store.sessions().unwrap();
    assert_eq!(sessions.len(), 1);
    sessions[0].clone()
}

#[test]
fn a_session_that_is_served_goes_over_by_itself() {
    let disk = MemoryFs::new();
    let (mut world, mut oracle) = with_session(&*disk.root());
    let old = record(&world.store).headers[0];
    tight(&world.store).unwrap();
    // Both are kept until it has.
    let told = record(&world.store);
    assert_eq!((told.headers.len(), told.headers[0]), (2, old));
    assert!(world.store.find_header(old).unwrap().is_some());
    assert!(world.read() == oracle.image());
    assert!(world.session.go_over().unwrap());
    assert!(!world.session.go_over().unwrap());
    assert!(world.read() == oracle.image());
    assert_eq!(record(&world.store).headers, [told.moved.unwrap()]);
    collect(&world.store, false, &mut |_, _| ()).unwrap();
    assert!(world.store.find_header(old).unwrap().is_none());
    assert!(world.read() == oracle.image());
    // And the next snapshot is made over the new one.
    for step in [Step::Freeze("three"), Step::Seal] {
        assert!(world.step(&step, &mut oracle));
    }
    world.check_names(&oracle, "after");
    drop(world);
    let world = World::open(&*disk.root(), 1).unwrap();
    assert!(world.read() == oracle.image());
}

#[test]
fn a_session_that_is_forgotten_while_it_goes_over_stays_so() {
    for spin in 0..200 {
        let disk = MemoryFs::new();
        let (world, _) = with_session(&*disk.root());
        let store = Arc::clone(&world.store);
        drop(world);
        tight(&store).unwrap();
        let told = record(&store);
        let dir = disk.root().open_dir("session").unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                go_over(&*dir, &store, &told).unwrap();
            });
            start.wait();
            (0..spin * 50).for_each(|_| std::hint::spin_loop());
            store.forget_session(told.id).unwrap();
        });
        assert!(store.sessions().unwrap().is_empty(), "{spin}");
    }
}

#[test]
fn a_session_at_rest_is_made_to_go_over_or_does_when_it_is_open() {
    for by_hand in [true, false] {
        let disk = MemoryFs::new();
        let (world, oracle) = with_session(&*disk.root());
        let store = Arc::clone(&world.store);
        drop(world);
        let old = record(&store).headers[0];
        tight(&store).unwrap();
        let told = record(&store);
        let dir = disk.root().open_dir("session").unwrap();
        if by_hand {
            assert_eq!(go_over(&*dir, &store, &told).unwrap(), Over::Done);
            assert_eq!(go_over(&*dir, &store, &told).unwrap(), Over::Not);
            assert_eq!(record(&store).headers, [told.moved.unwrap()]);
        }
        let world = World::open(&*disk.root(), 1).unwrap();
        assert_eq!(world.session.go_over().unwrap(), !by_hand);
        assert_eq!(record(&world.store).headers, [told.moved.unwrap()]);
        collect(&world.store, false, &mut |_, _| ()).unwrap();
        assert!(world.store.find_header(old).unwrap().is_none());
        assert!(world.read() == oracle.image());
        // Nobody's business while it is open.
        assert_eq!(go_over(&*dir, &store, &told).unwrap(), Over::InUse);
    }
}

#[test]
fn a_session_that_an_earlier_compaction_left_behind_is_told_again() {
    let disk = MemoryFs::new();
    let (world, oracle) = with_session(&*disk.root());
    let store = Arc::clone(&world.store);
    drop(world);
    // Killed before it told anybody, say.
    tight(&store).unwrap();
    let left = record(&store);
    assert!(left.moved.is_some());
    let dir = disk.root().open_dir("session").unwrap();
    let told = std::cell::Cell::new(0);
    let moved = |records: &[SessionRecord]| {
        told.set(told.get() + 1);
        assert_eq!(records, std::slice::from_ref(&left));
        assert_eq!(go_over(&*dir, &store, &records[0]).unwrap(), Over::Done);
    };
    let around = Around {
        moved: &moved,
        progress: &|_| true,
    };
    let options = Options {
        policy: Policy::AUTO,
        names: Vec::new(),
        step_bytes: u64::MAX,
    };
    compact(&store, &options, &around).unwrap();
    assert_eq!(told.get(), 1);
    assert!(store.find_header(left.headers[0]).unwrap().is_none());
    assert!(World::open(&*disk.root(), 1).unwrap().read() == oracle.image());
}

/// What a compaction has written in vain is not left on the full disk.
#[test]
fn a_compaction_that_finds_no_room_leaves_nothing() {
    for after in 0.. {
        let disk = MemoryFs::new();
        let faults = Faults::new();
        let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
        let (world, _) = with_session(&*root);
        world.store.remove(&name("one")).unwrap();
        faults.add(Rule::every(Call::Write, ENOSPC).after(after));
        let done = tight(&world.store);
        faults.clear();
        let left = collect(&world.store, false, &mut |_, _| ()).unwrap();
        assert_eq!(left.removed, [], "after {after}: {done:?}");
        if done.is_ok() {
            assert!(after > 10, "{after}");
            break;
        }
    }
}

/// Killed anywhere in a seal, then compacted: the snapshot that was committed is found again when the
/// session is opened, though its header is another one by then.
#[test]
fn a_snapshot_that_was_committed_is_found_again_after_a_compaction() {
    let mut committed = 0;
    for cut in 0.. {
        let disk = MemoryFs::new();
        let (mut world, mut oracle) = with_session(&*disk.root());
        assert!(world.step(&Step::Freeze("three"), &mut oracle));
        let manifest = world.session.manifest();
        let asked = manifest.caches.iter().find_map(|c| c.seal.as_ref());
        let asked = asked.unwrap().header;
        disk.cut_after(disk.operations() + cut);
        let done = world.step(&Step::Seal, &mut oracle);
        drop(world);
        let disk_after = disk.after_cut(Forget::Nothing);
        let dir = disk_after.root().open_dir("store").unwrap();
        let store = Store::open(&*dir, CountingHost::from(1 << 50), SMALL).unwrap();
        let there = store.has(&name("three")).unwrap();
        tight(&store).unwrap();
        let world = World::open(&*disk_after.root(), 1).unwrap();
        while world.session.seal_next() {}
        let header = world.store.resolve(&name("three")).unwrap();
        if there {
            committed += 1;
            assert_eq!(header.meta().origin, asked, "cut {cut}");
            assert_ne!(header.id(), asked, "cut {cut}");
        }
        world.check_names(&oracle, "after");
        assert!(world.read() == oracle.image(), "cut {cut}");
        if done && !disk.is_cut() {
            break;
        }
    }
    assert!(committed > 5, "{committed}");
}

/// The disk fails, or is full, or the power is cut, at every call of a compaction in which a session goes over as well.
#[test]
fn a_compaction_that_is_cut_short_harms_nothing() {
    for (call, errno) in [
        (Call::Write, ENOSPC),
        (Call::Create, ENOSPC),
        (Call::Write, EIO),
        (Call::Sync, EIO),
        (Call::SyncDir, EIO),
        (Call::Rename, EIO),
        (Call::Remove, EIO),
        (Call::Open, EIO),
        (Call::Read, EIO),
        (Call::Lock, EIO),
    ] {
        for after in 0.. {
            let disk = MemoryFs::new();
            let faults = Faults::new();
            let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
            let (world, oracle) = with_session(&*root);
            world.store.remove(&name("one")).unwrap();
            let oracle = oracle.without("one");
            faults.add(Rule::every(call, errno).after(after));
            let done = tight(&world.store).and_then(|_| {
                let over = world.session.go_over();
                over.map_err(|e| StoreError::Invalid(e.to_string()))
            });
            faults.clear();
            let what = format!("{call:?} {errno:?} after {after}: {done:?}");
            assert!(world.read() == oracle.image(), "{what}");
            // A store that has nothing cached, and the session at its next start.
            drop(world);
            let world = World::open(&*root, 1).unwrap();
            world.check_names(&oracle, &what);
            tight(&world.store).unwrap();
            world.session.go_over().unwrap();
            assert!(world.read() == oracle.image(), "{what}");
            world.check_names(&oracle, &what);
            if done.is_ok() {
                assert!(after > 0, "{call:?}: the fault was never met");
                break;
            }
        }
    }
}

#[test]
fn a_power_cut_at_any_operation_of_a_compaction_harms_nothing() {
    for cut in 0.. {
        let disk = MemoryFs::new();
        let (world, oracle) = with_session(&*disk.root());
        world.store.remove(&name("one")).unwrap();
        let oracle = oracle.without("one");
        world.session.device().flush().unwrap();
        let begun = disk.operations();
        disk.cut_after(begun + cut);
        let done = tight(&world.store).is_ok() && world.session.go_over().is_ok();
        drop(world);
        for forget in [
            Forget::Unsynced,
            Forget::Nothing,
            Forget::Some(cut),
            Forget::Some(cut + 1000),
        ] {
            let what = format!("cut after {cut}, {forget:?}");
            let disk = disk.after_cut(forget);
            let world = World::open(&*disk.root(), 2).unwrap_or_else(|e| panic!("{what}: {e}"));
            world.check_names(&oracle, &what);
            assert!(world.read() == oracle.image(), "{what}");
            tight(&world.store).unwrap();
            world.session.go_over().unwrap();
            assert!(world.read() == oracle.image(), "{what}");
            world.check_names(&oracle, &what);
        }
        if done && !disk.is_cut() {
            assert!(cut > 30, "{cut}");
            break;
        }
    }
}
