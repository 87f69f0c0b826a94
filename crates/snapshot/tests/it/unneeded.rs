//! Snapshots that leave out what is not needed: what becomes of it, and of the wish when it is refused or a crash comes.

use std::sync::Arc;
use std::time::Duration;

use cowslip_block::{ByteOffset, Device};
use cowslip_snapshot::limits::FROZEN_CACHES_MAX;
use cowslip_snapshot::seal::SealError;
use cowslip_snapshot::session::{Seal, Session, SessionError, SnapshotOptions};
use cowslip_snapshot::{Header, Image};

use crate::session_world::{
    BASE_BYTES, BLOCK, BootHost, EXACT, SIZE_BYTES, UNNEEDED, World, bytes_of, fresh, name,
    surroundings,
};

const AWARE: SnapshotOptions = SnapshotOptions {
    replace: false,
    dedup: true,
    fs_aware: true,
    unconfirmed: false,
};

fn write(world: &World, at: usize, bytes: &[u8]) {
    let device = world.session.device();
    device.write(ByteOffset(at as u64), bytes).unwrap();
}

fn seal(world: &World, seal: &Seal) -> Result<Arc<Header>, SessionError> {
    while world.session.seal_next() {}
    seal.wait(Duration::ZERO).expect("it has ended")
}

fn image(world: &World, header: &Arc<Header>) -> Vec<u8> {
    let mut bytes = vec![0xee; SIZE_BYTES];
    let image: &dyn Device = &Image::new(Arc::clone(&world.store), Arc::clone(header));
    image.read_at(ByteOffset(0), &mut bytes).unwrap();
    bytes
}

/// The same with zeros where nothing is needed.
fn without_unneeded(mut bytes: Vec<u8>) -> Vec<u8> {
    for blocks in UNNEEDED {
        let end = SIZE_BYTES.min(blocks.end * BLOCK);
        bytes[blocks.start * BLOCK..end].fill(0);
    }
    bytes
}

#[test]
fn what_is_not_needed_is_zeros_whoever_has_it() {
    let (_disk, world) = fresh();
    // Needed; not needed; not needed and of the base; as the base has it; not needed, past the base.
    write(&world, 0, &[EXACT]);
    write(&world, BLOCK, &bytes_of(5, 2 * BLOCK));
    write(
        &world,
        8 * BLOCK,
        &bytes_of(1, BASE_BYTES)[8 * BLOCK..9 * BLOCK],
    );
    write(&world, 12 * BLOCK, &bytes_of(6, 2 * BLOCK));
    let before = world.read();
    let asked = world.session.freeze(&name("one"), &AWARE).unwrap();
    // What comes later is not in it, and not looked at.
    write(&world, 0, b"not exact any more");
    let now = world.read();
    let header = seal(&world, &asked).unwrap();
    assert_eq!(image(&world, &header), without_unneeded(before));
    // Of blocks 1, 5, 6 of the base, not of 12, which it does not have; of those written 1 and 12.
    let figures = header.meta().figures;
    assert_eq!((figures.dirty_blocks, figures.same_blocks), (3, 1));
    assert_eq!(figures.zero_blocks, 3);
    assert_eq!(asked.progress().unneeded_blocks, 2);
    // The session goes on over it.
    assert_eq!(world.read(), without_unneeded(now));
    // Once more: nothing that is there already.
    write(&world, 0, &[EXACT]);
    let asked = world.session.freeze(&name("two"), &AWARE).unwrap();
    let figures = seal(&world, &asked).unwrap().meta().figures;
    assert_eq!((figures.dirty_blocks, figures.zero_blocks), (1, 0));
    assert_eq!(asked.progress().unneeded_blocks, 0);
}

#[test]
fn what_is_not_certain_is_refused_and_goes_into_the_next() {
    let (_disk, world) = fresh();
    write(&world, BLOCK, &bytes_of(5, BLOCK));
    let before = world.read();
    let asked = world.session.freeze(&name("one"), &AWARE).unwrap();
    match seal(&world, &asked) {
        Err(SessionError::Seal(error)) => {
            assert!(
                matches!(&*error, SealError::Refused(why) if why.contains("byte is 0x")),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(!world.store.has(&name("one")).unwrap());
    assert!(world.session.pending().is_empty());
    let asked = world
        .session
        .freeze(&name("two"), &SnapshotOptions::default());
    let header = seal(&world, &asked.unwrap()).unwrap();
    assert!(image(&world, &header) == before && world.read() == before);
}

#[test]
fn a_seal_that_is_taken_up_does_what_was_asked_for() {
    for exact in [true, false] {
        let (disk, world) = fresh();
        write(&world, 0, &[if exact { EXACT } else { 7 }]);
        write(&world, BLOCK, &bytes_of(5, BLOCK));
        let before = world.read();
        world.session.freeze(&name("one"), &AWARE).unwrap();
        // kill -9, before anything of it was done.
        drop(world);
        let world = World::open(&*disk.root(), 1).unwrap();
        let taken_up = world.session.pending().remove(0);
        match (exact, seal(&world, &taken_up)) {
            (true, Ok(header)) => {
                assert_eq!(image(&world, &header), without_unneeded(before));
                assert_eq!(taken_up.progress().unneeded_blocks, 1);
            }
            (false, Err(error)) => assert!(error.to_string().contains("left out"), "{error}"),
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn where_nobody_knows_what_is_in_the_device_it_is_refused() {
    let (disk, world) = fresh();
    write(&world, 0, &[EXACT]);
    world.session.freeze(&name("one"), &AWARE).unwrap();
    let store = Arc::clone(&world.store);
    drop(world);
    let around = surroundings(&*disk.root(), "session", &store, BootHost::new(1));
    let session = Session::open(cowslip_snapshot::session::Surroundings {
        unneeded: None,
        ..around
    })
    .unwrap();
    let taken_up = session.pending().remove(0);
    assert!(session.seal_next());
    let error = taken_up.wait(Duration::ZERO).unwrap().unwrap_err();
    assert!(error.to_string().contains("nobody here knows"), "{error}");
}

#[test]
fn a_snapshot_that_may_be_refused_leaves_room_for_one_that_may_not() {
    let (_disk, world) = fresh();
    let mut refused = 0;
    let full = loop {
        match world.session.freeze(&name("refused"), &AWARE) {
            Ok(asked) => assert!(seal(&world, &asked).is_err()),
            Err(error) => break error,
        }
        refused += 1;
    };
    assert!(matches!(full, SessionError::TooManyFrozen { .. }), "{full}");
    assert_eq!(refused, FROZEN_CACHES_MAX);
    let asked = world
        .session
        .freeze(&name("plain"), &SnapshotOptions::default());
    seal(&world, &asked.unwrap()).unwrap();
    assert_eq!(world.session.status().unwrap().frozen, 0);
}
