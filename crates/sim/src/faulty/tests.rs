//! Each rule by itself, over a directory in memory.

use std::io::ErrorKind;

use cowslip_block::files::{Access, Dir};

use super::*;
use crate::MemoryFs;

fn world() -> (Faults, Arc<dyn Dir>) {
    let faults = Faults::new();
    let dir = FaultyDir::new(MemoryFs::new().root(), &faults);
    (faults, Arc::new(dir))
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn once_fails_once_and_the_call_below_does_not_happen() {
    let (faults, dir) = world();
    let file = dir.create("f").unwrap();
    faults.add(Rule::once(Call::Write, ENOSPC));
    let error = file.write_at(b"1", 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 0);
    file.write_at(b"1", 0).unwrap();
    assert_eq!(faults.met(), 1);
}

#[test]
fn after_counts_from_when_the_rule_was_added() {
    let (faults, dir) = world();
    let file = dir.create("f").unwrap();
    file.sync().unwrap();
    faults.add(Rule::once(Call::Sync, EIO).after(2));
    // Another kind of call does not count.
    dir.sync().unwrap();
    file.sync().unwrap();
    file.sync().unwrap();
    assert_eq!(errno(file.sync()), EIO);
    file.sync().unwrap();
}

#[test]
fn every_fails_until_cleared() {
    let (faults, dir) = world();
    faults.add(Rule::every(Call::Create, ENOSPC).after(1));
    dir.create("a").unwrap();
    assert_eq!(errno(dir.create("b")), ENOSPC);
    assert_eq!(errno(dir.create("b")), ENOSPC);
    faults.clear();
    dir.create("b").unwrap();
}

#[test]
fn a_name_chooses_files_also_in_directories_below() {
    let (faults, dir) = world();
    dir.create_dir("d").unwrap();
    let d = dir.open_dir("d").unwrap();
    let (cache, journal) = (d.create("0.cache").unwrap(), d.create("0.journal").unwrap());
    faults.add(Rule::every(Call::Punch, EIO).on("cache"));
    faults.add(Rule::every(Call::SyncDir, EIO).on("d"));
    assert_eq!(errno(cache.punch(0, 1)), EIO);
    journal.punch(0, 1).unwrap();
    assert_eq!(errno(d.sync()), EIO);
    dir.sync().unwrap();
}

#[test]
fn renames_go_between_faulty_directories_and_match_either_name() {
    let (faults, dir) = world();
    dir.create_dir("d").unwrap();
    let d = dir.open_dir("d").unwrap();
    dir.create("f").unwrap();
    faults.add(Rule::once(Call::Rename, EIO).on("target"));
    assert_eq!(errno(dir.rename_new("f", &*d, "target")), EIO);
    dir.rename_new("f", &*d, "target").unwrap();
    d.rename_into("target", &*dir, "g").unwrap();
    dir.rename("g", "h").unwrap();
    assert_eq!(d.list().unwrap(), [""; 0]);
    assert!(dir.open("h", Access::Read).is_ok());
}

#[test]
fn every_kind_of_call_can_fail() {
    let (faults, dir) = world();
    let file = dir.create("f").unwrap();
    dir.create_dir("d").unwrap();
    type Try<'a> = (Call, Box<dyn Fn() -> io::Result<()> + 'a>);
    let tries: Vec<Try<'_>> = vec![
        (Call::Create, Box::new(|| dir.create("new").map(drop))),
        (
            Call::Open,
            Box::new(|| dir.open("f", Access::Read).map(drop)),
        ),
        (Call::CreateDir, Box::new(|| dir.create_dir("new dir"))),
        (Call::OpenDir, Box::new(|| dir.open_dir("d").map(drop))),
        (Call::Rename, Box::new(|| dir.rename("f", "f"))),
        (
            Call::Rename,
            Box::new(|| dir.rename_new("f", &*dir, "newest")),
        ),
        (
            Call::Rename,
            Box::new(|| dir.rename_into("newest", &*dir, "f")),
        ),
        (Call::Remove, Box::new(|| dir.remove("new"))),
        (Call::List, Box::new(|| dir.list().map(drop))),
        (Call::SyncDir, Box::new(|| dir.sync())),
        (Call::Lock, Box::new(|| dir.try_lock("lock").map(drop))),
        (Call::Write, Box::new(|| file.write_at(b"12", 0))),
        (Call::Read, Box::new(|| file.read_at(&mut [0], 0))),
        (Call::Len, Box::new(|| file.len().map(drop))),
        (Call::SetLen, Box::new(|| file.set_len(1))),
        (Call::Allocate, Box::new(|| file.allocate(0, 1))),
        (Call::Punch, Box::new(|| file.punch(0, 1))),
        (Call::NextData, Box::new(|| file.next_data(0).map(drop))),
        (Call::Sync, Box::new(|| file.sync())),
        (
            Call::AllocatedBytes,
            Box::new(|| file.allocated_bytes().map(drop)),
        ),
    ];
    for (call, attempt) in tries {
        faults.add(Rule::once(call, EIO));
        assert_eq!(errno(attempt()), EIO, "{call:?}");
        attempt().unwrap();
        faults.clear();
    }
}

#[test]
fn what_is_late_is_done_and_what_is_forgotten_is_not() {
    let (faults, dir) = world();
    let file = dir.create("f").unwrap();
    // What only looks is not late.
    faults.add(Rule::any(Fault::Late(EIO)));
    assert_eq!(file.len().unwrap(), 0);
    assert_eq!(errno(file.write_at(b"1", 0)), EIO);
    assert_eq!(file.len().unwrap(), 1);
    assert_eq!(faults.met(), 1);

    faults.add(Rule::any(Fault::Forgotten));
    file.write_at(b"2", 1).unwrap();
    assert_eq!(file.len().unwrap(), 1);
    faults.add(Rule::any(Fault::Forgotten));
    dir.rename("f", "g").unwrap();
    faults.add(Rule::any(Fault::Forgotten));
    dir.create("new").unwrap().write_at(b"1", 0).unwrap();
    assert_eq!(dir.list().unwrap(), ["f"]);
    // It holds nothing, and keeps nobody out.
    faults.add(Rule::any(Fault::Forgotten));
    let _lock = dir.try_lock("lock").unwrap().unwrap();
    assert!(dir.try_lock("lock").unwrap().is_some());
}

#[test]
fn what_is_asked_twice_has_the_second_answer() {
    let (faults, dir) = world();
    dir.create_dir("d").unwrap();
    let d = dir.open_dir("d").unwrap();
    let twice = || faults.add(Rule::any(Fault::Twice));
    let kind = |asked: io::Result<()>| asked.unwrap_err().kind();
    twice();
    assert_eq!(kind(dir.create("f").map(drop)), ErrorKind::AlreadyExists);
    twice();
    let renamed = dir.rename_new("f", &*d, "f");
    assert_eq!(kind(renamed), ErrorKind::AlreadyExists);
    twice();
    assert_eq!(kind(d.rename_into("f", &*dir, "g")), ErrorKind::NotFound);
    twice();
    assert_eq!(kind(dir.remove("g")), ErrorKind::NotFound);
    assert_eq!(faults.met(), 4);
    assert_eq!(dir.list().unwrap(), ["d"]);
}

#[test]
fn a_path_chooses_a_directory_and_all_below() {
    let (faults, dir) = world();
    for name in ["store", "session"] {
        dir.create_dir(name).unwrap();
    }
    let (store, session) = (
        dir.open_dir("store").unwrap(),
        dir.open_dir("session").unwrap(),
    );
    store.create_dir("layers").unwrap();
    let layers = store.open_dir("layers").unwrap();
    faults.add(Rule::any(Fault::Refused(EIO)).on("store/").after(1));
    session.create("f").unwrap();
    layers.sync().unwrap();
    assert_eq!(errno(layers.create("f")), EIO);
    faults.add(Rule::once(Call::Rename, EIO).on("store/layers/g"));
    session.rename_into("f", &*session, "g").unwrap();
    assert_eq!(errno(session.rename_into("g", &*layers, "g")), EIO);
}
