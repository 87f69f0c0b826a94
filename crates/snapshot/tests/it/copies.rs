//! Copies: of a session's directory, of a store. What is done to one of them does the other no harm.

use std::path::Path;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, RealDir, read_all};
use cowslip_sim::{Forget, MemoryFs};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::roots::SessionRecord;
use cowslip_snapshot::session::{Over, Session, SessionError, forget, go_over};
use cowslip_snapshot::{Caches, Store, StoreError};

use crate::compact::tight;
use crate::compact_session::with_session;
use crate::gc::gc;
use crate::rig::temp_dir;
use crate::session_world::{BootHost, Oracle, Step, World, fresh, name, surroundings};

/// As `cp -a` does it.
fn copy(root: &Path, from: &str, to: &str) {
    std::fs::create_dir(root.join(to)).unwrap();
    for entry in std::fs::read_dir(root.join(from)).unwrap() {
        let entry = entry.unwrap();
        let inside = entry.file_name().into_string().unwrap();
        let (from, to) = (format!("{from}/{inside}"), format!("{to}/{inside}"));
        match entry.file_type().unwrap().is_dir() {
            true => copy(root, &from, &to),
            false => drop(std::fs::copy(root.join(from), root.join(to)).unwrap()),
        }
    }
}

fn store_in(root: &dyn Dir, dir: &str) -> Store {
    let dir = root.open_dir(dir).unwrap();
    Store::open(&*dir, BootHost::new(1), Caches::default()).unwrap()
}

/// A session on the disk, at rest, and nothing but it that keeps what it stands on.
fn at_rest(root: &dyn Dir) -> Oracle {
    let (world, oracle) = with_session(root);
    for text in ["base", "one", "two"] {
        world.store.remove(&name(text)).unwrap();
    }
    oracle
}

fn records(store: &Store) -> Vec<SessionRecord> {
    store.sessions().unwrap()
}

#[test]
fn a_compaction_of_a_copied_store_leaves_the_sessions_of_the_other_alone() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let oracle = at_rest(&root);
    copy(temp.path(), "store", "copy");
    let store = store_in(&root, "copy");
    tight(&store).unwrap();
    let record = &records(&store)[0];
    assert!(record.moved.is_some());
    let dir = root.open_dir("session").unwrap();
    assert_eq!(go_over(&*dir, &store, record).unwrap(), Over::Not);
    assert!(World::open(&root, 1).unwrap().read() == oracle.image());
}

#[test]
fn a_copy_of_a_session_is_a_session_of_its_own() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let oracle = at_rest(&root);
    let store = store_in(&root, "store");
    let first = records(&store).remove(0);
    copy(temp.path(), "session", "copy");
    let copied = World::open_in(&root, "copy", 1).unwrap();
    let other = copied.session.manifest().id;
    assert_ne!(other, first.id);
    assert_eq!(records(&store).len(), 2);
    // One goes over and lets go, and the other has not heard of it.
    let world = World::open(&root, 1).unwrap();
    tight(&store).unwrap();
    assert!(world.session.go_over().unwrap());
    gc(&store);
    assert!(copied.read() == oracle.image() && world.read() == oracle.image());
    drop(copied);
    let copied = World::open_in(&root, "copy", 1).unwrap();
    assert_eq!(copied.session.manifest().id, other);
    assert!(copied.session.go_over().unwrap());
    forget(&store, first.id, |_| None).unwrap();
    gc(&store);
    assert!(copied.read() == oracle.image());
}

#[test]
fn a_session_that_was_moved_is_the_same() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let oracle = at_rest(&root);
    let store = store_in(&root, "store");
    let id = records(&store)[0].id;
    let (from, to) = (temp.path().join("session"), temp.path().join("elsewhere"));
    std::fs::rename(from, to).unwrap();
    let world = World::open_in(&root, "elsewhere", 1).unwrap();
    assert_eq!(world.session.manifest().id, id);
    assert_eq!(records(&store)[0].path, Path::new("elsewhere"));
    assert_eq!(records(&store).len(), 1);
    assert!(world.read() == oracle.image());
}

#[test]
fn what_a_session_stood_on_that_is_gone_is_said() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let mut oracle = at_rest(&root);
    copy(temp.path(), "session", "copy");
    let mut world = World::open(&root, 1).unwrap();
    for step in [Step::Freeze("three"), Step::Seal] {
        assert!(world.step(&step, &mut oracle));
    }
    gc(&world.store);
    let before = records(&world.store);
    let error = World::open_in(&root, "copy", 1).err().unwrap();
    let SessionError::Store(StoreError::BaseGone { why, .. }) = &error else {
        panic!("{error}");
    };
    assert!(why.contains("a copy of the session in session"), "{why}");
    assert_eq!(records(&world.store), before);
    // The same of one that was forgotten.
    let store = Arc::clone(&world.store);
    drop(world);
    store.remove(&name("three")).unwrap();
    forget(&store, before[0].id, |_| None).unwrap();
    gc(&store);
    let error = World::open(&root, 1).err().unwrap();
    assert!(error.to_string().contains("told to forget"), "{error}");
    assert_eq!(records(&store), []);
}

/// A collection has read the roots when a session comes that nothing has kept: it is not served on what
/// is about to be removed.
#[test]
fn a_forgotten_session_that_comes_back_waits_for_the_collection_that_runs() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let (world, _) = with_session(&root);
    let store = Arc::clone(&world.store);
    drop(world);
    // Another image keeps the collection busy.
    for text in ["one", "two"] {
        store.remove(&name(text)).unwrap();
    }
    let record = records(&store).remove(0);
    store.forget_session(record.id).unwrap();
    std::thread::scope(|scope| {
        let mut opening = None;
        let mut meanwhile = |_, _| {
            opening.get_or_insert_with(|| {
                let opening = scope.spawn(|| {
                    let root = RealDir::open(temp.path()).unwrap();
                    World::open(&root, 1).map(drop)
                });
                while records(&store).is_empty() && !opening.is_finished() {
                    std::thread::yield_now();
                }
                opening
            });
        };
        let removed = collect(&store, false, &mut meanwhile).unwrap().removed;
        assert!(!removed.is_empty());
        let error = opening.unwrap().join().unwrap().err().unwrap();
        let gone = matches!(error, SessionError::Store(StoreError::BaseGone { .. }));
        assert!(gone, "{error}");
    });
    assert_eq!(records(&store), []);
}

/// Killed anywhere in the beginning of a session: there is one record for its directory when it is begun
/// again.
#[test]
fn a_kill_leaves_no_second_record_of_a_directory() {
    let mut kills = 0;
    for cut in 0.. {
        let (disk, world) = fresh();
        let root = disk.root();
        root.create_dir("new").unwrap();
        let begin = |root: &dyn Dir, store: &Arc<Store>| {
            let around = surroundings(root, "new", store, BootHost::new(1));
            Session::create(around, &name("base"), None).map(drop)
        };
        disk.cut_after(disk.operations() + cut);
        let done = begin(&*root, &world.store);
        let after = disk.after_cut(Forget::Nothing);
        if done.is_ok() && !disk.is_cut() {
            break;
        }
        kills += 1;
        let store = Arc::new(store_in(&*after.root(), "store"));
        match begin(&*after.root(), &store) {
            // It was all there, and only its end was not heard of.
            Ok(()) | Err(SessionError::InUse) => {}
            Err(other) => panic!("cut {cut}: {other}"),
        }
        assert_eq!(records(&store).len(), 2, "cut {cut}");
    }
    assert!(kills > 10, "{kills}");
}

#[test]
fn a_kill_in_the_opening_of_a_copy_leaves_no_third_record() {
    let mut kills = 0;
    for cut in 0.. {
        let disk = MemoryFs::new();
        let root = disk.root();
        let oracle = at_rest(&*root);
        let (from, to) = (root.open_dir("session").unwrap(), "copy");
        root.create_dir(to).unwrap();
        let to = root.open_dir(to).unwrap();
        for name in from.list().unwrap() {
            let bytes = read_all(&*from.open(&name, Access::Read).unwrap(), u64::MAX);
            let file = to.create(&name).unwrap();
            file.write_at(&bytes.unwrap(), 0).unwrap();
        }
        disk.cut_after(disk.operations() + cut);
        let done = World::open_in(&*root, "copy", 1).is_ok();
        if done && !disk.is_cut() {
            break;
        }
        kills += 1;
        let after = disk.after_cut(Forget::Nothing);
        let copied = World::open_in(&*after.root(), "copy", 1).unwrap();
        assert!(copied.read() == oracle.image());
        assert_eq!(records(&copied.store).len(), 2, "cut {cut}");
    }
    assert!(kills > 5, "{kills}");
}

#[test]
fn a_session_that_is_open_is_not_forgotten() {
    let temp = temp_dir();
    let root = RealDir::open(temp.path()).unwrap();
    let (world, _) = with_session(&root);
    let store = Arc::clone(&world.store);
    let id = world.session.manifest().id;
    let open = |path: &Path| root.open_dir(path.to_str().unwrap()).ok();
    let error = forget(&store, id, open).unwrap_err();
    assert!(matches!(error, SessionError::InUse), "{error}");
    drop(world);
    forget(&store, id, open).unwrap();
    assert_eq!(records(&store), []);
}

/// What somebody reads is needed also where it is damaged.
#[test]
fn a_damaged_header_that_is_being_read_stops_the_collection() {
    let (disk, world) = fresh();
    let (header, _lease) = world.store.resolve_leased(&name("base")).unwrap();
    world.session.forget().unwrap();
    world.store.remove(&name("base")).unwrap();
    let headers = disk
        .root()
        .open_dir("store")
        .unwrap()
        .open_dir("headers")
        .unwrap();
    let file = headers
        .open(&header.id().to_string(), Access::ReadWrite)
        .unwrap();
    let at = file.len().unwrap() - 40;
    let mut byte = [0];
    file.read_at(&mut byte, at).unwrap();
    file.write_at(&[!byte[0]], at).unwrap();
    let other = store_in(&*disk.root(), "store");
    let error = collect(&other, false, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    file.write_at(&byte, at).unwrap();
    assert!(world.read() == Oracle::new().image());
    assert_eq!(gc(&other).removed, []);
}

/// A name that means an id to others, and is not as we write it.
#[test]
fn files_of_others_are_left_alone() {
    let (disk, world) = fresh();
    let store = disk.root().open_dir("store").unwrap();
    let theirs = [
        "AAAAAAAABBBBCCCCDDDDEEEEEEEEEEEE",
        "{aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee}",
    ];
    for dir in ["layers", "headers", "sessions", "leases"] {
        let dir = store.open_dir(dir).unwrap();
        theirs
            .iter()
            .for_each(|name| drop(dir.create(name).unwrap()));
    }
    assert_eq!(gc(&world.store).removed, []);
    assert_eq!(records(&world.store).len(), 1);
    for dir in ["layers", "headers", "sessions", "leases"] {
        let names = store.open_dir(dir).unwrap().list().unwrap();
        assert!(
            theirs
                .iter()
                .all(|name| names.contains(&(*name).to_owned())),
            "{dir}"
        );
    }
}
