//! The store: what is a store, and names.

use std::sync::{Arc, Barrier};

use cowslip_block::files::{Dir, RealDir};
use cowslip_sim::{Call, ENOSPC, Faults, FaultyDir, Rule};
use cowslip_snapshot::compact::{Options, Policy, survey};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::verify::{Depth, verify, verify_store};
use cowslip_snapshot::{Caches, Part, Parts, SnapshotName, Store, StoreError};

use crate::rig::{CountingHost, Rig, SMALL, spec, temp_dir};

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

#[test]
fn what_is_no_store_is_not_opened() {
    let temp = temp_dir();
    let dir = RealDir::open(temp.path()).unwrap();
    let host = CountingHost::from(1);
    let caches = Caches::default();
    let error = Store::open(&dir, host.clone(), caches).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    std::fs::write(temp.path().join("holiday.jpg"), b"x").unwrap();
    let error = Store::open_or_create(&dir, host.clone(), caches).unwrap_err();
    assert!(error.to_string().contains("holiday.jpg"), "{error}");
    std::fs::remove_file(temp.path().join("holiday.jpg")).unwrap();
    // Half made: a crash on the way does not stand in the way.
    std::fs::create_dir(temp.path().join("layers")).unwrap();
    Store::open_or_create(&dir, host.clone(), caches).unwrap();
    Store::open_or_create(&dir, host.clone(), caches).unwrap();
    Store::open(&dir, host.clone(), caches).unwrap();
    let marker = temp.path().join("store");
    let mut bytes = std::fs::read(&marker).unwrap();
    bytes[8] = 9;
    std::fs::write(&marker, &bytes).unwrap();
    let error = Store::open(&dir, host.clone(), caches).unwrap_err();
    assert!(
        matches!(error, StoreError::Version { found: 9, .. }),
        "{error}"
    );
    bytes[0] = b'x';
    std::fs::write(&marker, &bytes).unwrap();
    assert!(matches!(
        Store::open(&dir, host, caches),
        Err(StoreError::Corrupt { .. })
    ));
}

#[test]
fn names_are_given_once_unless_replaced() {
    let rig = Rig::new();
    let (a, b) = (rig.put(None, 10, &[]), rig.put(None, 20, &[]));
    let store = &rig.store;
    assert!(matches!(
        store.resolve(&name("n")),
        Err(StoreError::NotFound { .. })
    ));
    store
        .commit(&store.lease().unwrap(), &name("n"), &a, false)
        .unwrap();
    let again = store.commit(&store.lease().unwrap(), &name("n"), &b, false);
    assert!(
        matches!(again, Err(StoreError::AlreadyExists { .. })),
        "{again:?}"
    );
    assert_eq!(rig.reopened().resolve(&name("n")).unwrap().id(), a.id());
    store
        .commit(&store.lease().unwrap(), &name("n"), &b, true)
        .unwrap();
    store
        .commit(&store.lease().unwrap(), &name("m"), &a, true)
        .unwrap();
    assert_eq!(rig.reopened().resolve(&name("n")).unwrap().id(), b.id());
    assert!(rig.tmp_is_empty());
    std::fs::write(rig.path("snapshots/.hidden"), b"").unwrap();
    std::fs::write(rig.path("snapshots/torn"), b"cowslipN").unwrap();
    let list = store.list().unwrap();
    let names: Vec<_> = list.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["m", "n", "torn"]);
    let parts = list[0].stands_for.as_ref().unwrap().parts;
    assert_eq!(parts, Parts::one(Part::Disk, a.id()));
    assert!(matches!(
        list[2].stands_for,
        Err(StoreError::Corrupt { .. })
    ));
    store.remove(&name("n")).unwrap();
    assert!(matches!(
        store.remove(&name("n")),
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(
        store.resolve(&name("n")),
        Err(StoreError::NotFound { .. })
    ));
}

#[test]
fn of_many_that_want_a_name_one_gets_it() {
    let rig = Rig::new();
    let headers: Vec<_> = (1..9).map(|i| rig.put(None, i, &[])).collect();
    let start = Barrier::new(headers.len());
    let won: Vec<bool> = std::thread::scope(|scope| {
        let racers: Vec<_> = headers
            .iter()
            .map(|h| {
                scope.spawn(|| {
                    start.wait();
                    rig.store
                        .commit(&rig.store.lease().unwrap(), &name("prize"), h, false)
                        .is_ok()
                })
            })
            .collect();
        racers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert_eq!(won.iter().filter(|w| **w).count(), 1);
    let winner = won.iter().position(|w| *w).unwrap();
    assert_eq!(
        rig.store.resolve(&name("prize")).unwrap().id(),
        headers[winner].id()
    );
}

#[test]
fn any_damage_to_a_record_is_noticed() {
    let rig = Rig::new();
    let header = rig.put(None, 10, &[]);
    rig.store
        .commit(&rig.store.lease().unwrap(), &name("n"), &header, false)
        .unwrap();
    rig.for_each_damage("snapshots/n", |store, what| {
        let error = store.resolve(&name("n")).expect_err(what);
        let known = matches!(
            error,
            StoreError::Corrupt { .. } | StoreError::Version { .. } | StoreError::Io { .. }
        );
        assert!(known, "{what}: {error}");
    });
}

#[test]
fn a_record_under_another_name_is_noticed() {
    let rig = Rig::new();
    let lease = rig.store.lease().unwrap();
    for (text, blocks) in [("a", 10), ("b", 20)] {
        let header = rig.put(None, blocks, &[]);
        rig.store
            .commit(&lease, &name(text), &header, false)
            .unwrap();
    }
    std::fs::copy(rig.path("snapshots/a"), rig.path("snapshots/b")).unwrap();
    rig.store.resolve(&name("a")).unwrap();
    let error = rig.store.resolve(&name("b")).unwrap_err();
    assert!(error.to_string().starts_with("snapshots/b"), "{error}");
}

#[test]
fn a_name_stands_for_the_header_that_was_committed() {
    let rig = Rig::new();
    let a = rig.put(None, 10, &[]);
    rig.store
        .commit(&rig.store.lease().unwrap(), &name("n"), &a, false)
        .unwrap();
    // Another header of the same id and length: whole in itself, but not the one.
    let other = Rig::new();
    let b = other.put(None, 11, &[]);
    assert_eq!(a.object_bytes(), b.object_bytes());
    assert_eq!(a.id(), b.id(), "both rigs count alike");
    let object = format!("headers/{}", a.id());
    std::fs::copy(other.path(&object), rig.path(&object)).unwrap();
    let store = rig.reopened();
    store.open_header(a.id()).unwrap();
    assert!(matches!(
        store.resolve(&name("n")),
        Err(StoreError::Corrupt { .. })
    ));
    std::fs::remove_file(rig.path(&object)).unwrap();
    let error = rig.reopened().resolve(&name("n")).unwrap_err();
    assert!(error.to_string().contains("not there"), "{error}");
}

const EROFS: i32 = 30;

/// A store on a disk that takes nothing any more, or that nobody may write to.
fn unwritable(errno: i32) -> (Rig, Faults, Arc<Store>) {
    let rig = Rig::new();
    let header = rig.put(None, 100, &[]);
    let lease = rig.store.lease().unwrap();
    rig.store
        .commit(&lease, &name("one"), &header, false)
        .unwrap();
    drop(lease);
    let faults = Faults::new();
    let inner = Arc::new(RealDir::open(rig.temp.path()).unwrap());
    let dir = FaultyDir::new(inner, &faults);
    let store = Arc::new(Store::open(&dir, CountingHost::from(1 << 32), SMALL).unwrap());
    let calls: &[Call] = match errno {
        EROFS => &[
            Call::Create,
            Call::CreateDir,
            Call::Rename,
            Call::Remove,
            Call::Lock,
        ],
        _ => &[],
    };
    for call in calls.iter().chain([&Call::Write, &Call::Allocate]) {
        faults.add(Rule::every(*call, errno));
    }
    (rig, faults, store)
}

fn dry() -> Options {
    Options {
        policy: Policy::AUTO,
        names: Vec::new(),
        step_bytes: 1,
    }
}

#[test]
fn what_is_on_a_full_disk_is_read_and_protected() {
    let (rig, _faults, store) = unwritable(ENOSPC);
    let (header, lease) = store.resolve_leased(&name("one")).unwrap();
    survey(&store, &dry(), &|_| true).unwrap();
    // Another process has room again, and what is being read is not taken away.
    let gc = || collect(&rig.store, false, &mut |_, _| {}).unwrap().removed;
    rig.store.remove(&name("one")).unwrap();
    assert_eq!(gc(), []);
    assert!(verify(&store, &header, &mut |_, _| {}).unwrap().is_whole());
    let report = verify_store(
        &RealDir::open(rig.temp.path()).unwrap(),
        CountingHost::from(1 << 33),
        Depth::Decoded,
        &mut |_, _| {},
    );
    assert_eq!(report.unwrap().foreign, [""; 0]);
    drop(lease);
    assert_eq!(gc().len(), 1);
    let left = RealDir::open(&rig.path("leases")).unwrap().list().unwrap();
    assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
    // What a killed process left protects nothing, and goes.
    let marker = "00000000-0000-4000-8000-000000000001.header.00000000-0000-4000-8000-000000000002";
    std::fs::write(rig.path("leases").join(marker), "").unwrap();
    gc();
    assert!(!rig.path("leases").join(marker).exists());
}

#[test]
fn what_is_on_a_read_only_disk_is_read() {
    let (_rig, _faults, store) = unwritable(EROFS);
    let (header, _lease) = store.resolve_leased(&name("one")).unwrap();
    assert!(verify(&store, &header, &mut |_, _| {}).unwrap().is_whole());
    survey(&store, &dry(), &|_| true).unwrap();
    let error = store.remove(&name("one")).unwrap_err();
    assert!(error.to_string().contains("os error 30"), "{error}");
    let error = store
        .lease()
        .and_then(|lease| store.put_header(&lease, &spec(None, 4096, &[])));
    assert!(error.unwrap_err().to_string().contains("os error 30"));
}
