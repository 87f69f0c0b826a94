//! Snapshots of guests that are served: each is what the memory was when the guest was paused, whatever it does then.

use std::sync::Arc;

use cowslip_block::{ByteOffset, Device};
use cowslip_memory::guest::Tracking;
use cowslip_memory::live::Live;
use cowslip_memory::page::PageState;
use cowslip_memory::server::Options;
use cowslip_memory::snapshot::{Holder, SnapshotError, Taken, capture};
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::{Header, Image, Store};
use cowslip_vmm::{Control, can};

use crate::rig::{image_byte, until};
use crate::served::Host;

const PAGE: usize = 4096;
const PAGES: usize = 256;

/// A guest that does nothing of itself; with what is to happen when it is paused, and when it goes on.
struct Held<P, G> {
    is_paused: bool,
    pause: P,
    goes_on: G,
}

impl<P: FnMut() -> bool, G: FnMut() -> bool> Holder for Held<P, G> {
    fn is_paused(&self) -> bool {
        self.is_paused
    }

    fn pause(&mut self) -> Result<(), SnapshotError> {
        match (self.pause)() {
            true => Ok(()),
            false => Err(SnapshotError::NotWanted),
        }
    }

    fn goes_on(&mut self) -> bool {
        (self.goes_on)()
    }
}

/// One guest, and what the first byte of each of its pages is.
struct World {
    host: Host,
    guest: Control,
    live: Arc<Live>,
    store: Arc<Store>,
    lease: Lease,
    oracle: Vec<u8>,
    seed: u64,
}

impl World {
    fn new(tracking: Tracking) -> Self {
        let host = Host::with(PAGES, Options::default());
        let guest = host.guest(PAGES, tracking);
        until("the guest", || !host.server.guests().is_empty());
        let live = Arc::clone(&host.server.guests()[0]);
        let store = Arc::clone(live.store());
        let lease = store.lease().unwrap();
        Self {
            host,
            guest,
            live,
            store,
            lease,
            oracle: (0..PAGES).map(image_byte).collect(),
            seed: 7,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        // Knuth's generator of 64 bits; the high ones are good.
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.seed >> 33).unwrap() % bound
    }

    /// Begins some writes, reads and removals; how many, and what the memory is when they are done.
    fn begin_some(&mut self) -> (usize, Vec<u8>) {
        let mut next = self.oracle.clone();
        let count = 1 + self.below(12);
        for _ in 0..count {
            let page = self.below(PAGES);
            match self.below(8) {
                0 => {
                    let end = (page + 1 + self.below(6)).min(PAGES);
                    next[page..end].fill(0);
                    self.guest.begin(&format!("w remove {page} {end}"));
                }
                1 => self.guest.begin(&format!("w read {page}")),
                _ => {
                    let value = u8::try_from(self.below(256)).unwrap();
                    next[page] = value;
                    self.guest.begin(&format!("w write {page} {value}"));
                }
            }
        }
        (count, next)
    }

    fn answers(&mut self, count: usize) {
        (0..count).for_each(|_| drop(self.guest.answer()));
    }

    fn run(&mut self) {
        let (count, next) = self.begin_some();
        self.answers(count);
        self.oracle = next;
    }

    /// Of a guest that is paused before it is asked for.
    fn snapshot(&self, goes_on: impl FnMut() -> bool) -> Result<Taken<'_>, SnapshotError> {
        taken(
            &self.live,
            &self.lease,
            &mut Held {
                is_paused: true,
                pause: || true,
                goes_on,
            },
        )
    }

    fn check(&self, header: &Arc<Header>) {
        let image: &dyn Device = &Image::new(Arc::clone(&self.store), Arc::clone(header));
        let mut bytes = vec![1; PAGES * PAGE];
        image.read_at(ByteOffset(0), &mut bytes).unwrap();
        for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
            assert_eq!(bytes[0], self.oracle[page], "page {page}");
        }
    }
}

fn taken<'a>(
    live: &'a Live,
    lease: &Lease,
    holder: &mut dyn Holder,
) -> Result<Taken<'a>, SnapshotError> {
    let captured = capture(live, tempfile::tempfile().unwrap(), holder)?;
    Ok(captured.store(lease, None, 0, &mut |_, _, _| ()).unwrap())
}

#[test]
fn each_is_what_the_memory_was_and_holds_only_what_changed() {
    let test = "each_is_what_the_memory_was_and_holds_only_what_changed";
    if !can(test, false) {
        return;
    }
    for tracking in [Tracking::Async, Tracking::Sync] {
        let mut world = World::new(tracking);
        assert_eq!(world.live.guest().tracking(), tracking);
        for round in 0..40 {
            world.run();
            let taken = world.snapshot(|| true).unwrap();
            let (header, figures) = (Arc::clone(taken.header()), taken.figures());
            assert_eq!(
                figures.payload + figures.delta,
                header.meta().figures.dirty_blocks,
                "{figures:?}"
            );
            // Lost now and then: the next has it as well.
            if round % 5 == 4 {
                drop(taken);
            } else {
                taken.committed(world.store.lease().unwrap());
            }
            world.check(&header);
        }
        // Who did not stay paused is refused, and nothing is lost.
        world.run();
        let refused = world.snapshot(|| false).unwrap_err();
        assert!(matches!(refused, SnapshotError::NotPaused), "{refused}");
        let taken = world.snapshot(|| true).unwrap();
        world.check(taken.header());
        drop(taken);
        // Nothing was written: nothing is stored.
        let last = world.snapshot(|| true).unwrap();
        last.committed(world.store.lease().unwrap());
        let taken = world.snapshot(|| true).unwrap();
        assert_eq!(taken.figures().changed(), 0, "{:?}", taken.figures());
        assert_eq!(world.host.said(), "");
    }
}

/// Its writes are told of, so it goes on while it is copied: the snapshot is what it was before.
#[test]
fn a_guest_goes_on_while_its_memory_is_stored() {
    if !can("a_guest_goes_on_while_its_memory_is_stored", false) {
        return;
    }
    let mut world = World::new(Tracking::Sync);
    let (mut stored, mut given_back) = (0, 0);
    while stored < 60 {
        world.run();
        // What it does meanwhile is asked for at the moment when it may go on.
        let (mut went_on, before) = ((0, Vec::new()), world.oracle.clone());
        let header = {
            let (begin, orders) = std::sync::mpsc::channel();
            let done = world.live.clone();
            let lease = world.store.lease().unwrap();
            std::thread::scope(|scope| {
                let taking = scope.spawn(move || {
                    let mut holder = Held {
                        is_paused: true,
                        pause: || true,
                        goes_on: || begin.send(()).is_ok(),
                    };
                    let taken = taken(&done, &lease, &mut holder)?;
                    let header = Arc::clone(taken.header());
                    taken.committed(lease);
                    Ok(header)
                });
                orders.recv().unwrap();
                went_on = world.begin_some();
                world.answers(went_on.0);
                taking.join().unwrap()
            })
        };
        match header {
            Ok(header) => {
                assert_eq!(world.oracle, before);
                world.check(&header);
                stored += 1;
            }
            // Memory that was given back before it was copied: nothing is stored, and nothing lost.
            Err(SnapshotError::Capture(_)) => given_back += 1,
            Err(error) => panic!("{error}"),
        }
        world.oracle = went_on.1;
    }
    assert!(given_back < stored, "{given_back} of {stored}");
    assert_eq!(world.host.said(), "");
}

/// It writes and gives back until it is paused: what it wrote last is there, and what it did not touch again.
#[test]
fn what_was_written_before_the_pause_is_copied_ahead_of_it() {
    let test = "what_was_written_before_the_pause_is_copied_ahead_of_it";
    if !can(test, false) {
        return;
    }
    for tracking in [Tracking::Async, Tracking::Sync] {
        let mut world = World::new(tracking);
        for round in 0..60 {
            (0..4).for_each(|_| world.run());
            let (live, store) = (Arc::clone(&world.live), Arc::clone(&world.store));
            let (ask, asked) = std::sync::mpsc::channel();
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let taking = scope.spawn(move || {
                    let lease = store.lease().unwrap();
                    let mut holder = Held {
                        is_paused: false,
                        pause: || ask.send(()).is_ok() && told.recv().is_ok(),
                        // Now and then it did not stay paused.
                        goes_on: || round % 7 != 3,
                    };
                    let taken = taken(&live, &lease, &mut holder)?;
                    let header = Arc::clone(taken.header());
                    if round % 5 != 4 {
                        taken.committed(store.lease().unwrap());
                    }
                    Ok::<_, SnapshotError>((header, lease))
                });
                while asked.try_recv().is_err() && !taking.is_finished() {
                    world.run();
                }
                tell.send(()).unwrap();
                match taking.join().unwrap() {
                    Ok((header, _lease)) => world.check(&header),
                    Err(SnapshotError::NotPaused) => assert_eq!(round % 7, 3),
                    Err(error) => panic!("{error}"),
                }
            });
        }
        assert_eq!(world.host.said(), "");
    }
}

/// Nothing is lost; and of a guest that rests by then, nothing is left to the pause.
#[test]
fn one_that_nobody_waits_for_any_more_is_not_taken() {
    if !can("one_that_nobody_waits_for_any_more_is_not_taken", false) {
        return;
    }
    for tracking in [Tracking::Async, Tracking::Sync] {
        let mut world = World::new(tracking);
        let dirty = |world: &World| {
            let states = world.live.guest().states();
            states.count(PageState::Dirty).unwrap().0
        };
        (0..20).for_each(|_| world.run());
        assert!(dirty(&world) > 0);
        let mut holder = Held {
            is_paused: false,
            pause: || {
                assert_eq!(dirty(&world), 0);
                false
            },
            goes_on: || panic!("something was harvested"),
        };
        let refused = taken(&world.live, &world.lease, &mut holder).unwrap_err();
        assert!(matches!(refused, SnapshotError::NotWanted), "{refused}");
        assert!(dirty(&world) > 0);
        world.run();
        let taken = world.snapshot(|| true).unwrap();
        world.check(taken.header());
    }
}
