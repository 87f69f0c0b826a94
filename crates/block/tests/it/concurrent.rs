//! Several writers at once, and freezes beside them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use cowslip_block::cache::Cache;
use cowslip_block::files::{Dir, RealDir};
use cowslip_block::overlay::Overlay;
use cowslip_block::{ByteOffset, ByteRange, Device, Room};

use crate::rig::{BOOT, Base, SetOnDrop, geometry, health, index, overlay, pattern, read};

fn directory() -> (tempfile::TempDir, Arc<dyn Dir>) {
    let temp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).unwrap());
    (temp, dir)
}

/// Two halves of each block by two threads, with a zeroing of other bytes and a puncher beside:
/// nobody's bytes are lost, whoever copies the block up.
#[test]
fn two_halves_of_a_block_written_at_once_both_stay() {
    const BLOCKS: u64 = 2000;
    let (_temp, dir) = directory();
    let size = BLOCKS * 4096;
    let (overlay, cache) = overlay(&dir, size, pattern(5, index(size)));
    let (overlay, cache) = (&overlay, &cache);
    let start = &Barrier::new(3);
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetOnDrop(done);
        let halves: Vec<_> = (0..2u64)
            .map(|half| {
                scope.spawn(move || {
                    start.wait();
                    for block in 0..BLOCKS {
                        let at = block * 4096 + half * 2048;
                        // The middle of a half is zeroed, then its start is written.
                        let middle = ByteRange::at(at + 1024, 512).unwrap();
                        overlay.write_zeroes(middle, Room::Free).unwrap();
                        overlay.write(ByteOffset(at), &pattern(at, 1024)).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            start.wait();
            while !done.load(Ordering::Relaxed) {
                cache.punch_some().unwrap();
            }
        });
        for half in halves {
            half.join().unwrap();
        }
    });
    let base = pattern(5, index(size));
    for at in (0..size).step_by(2048) {
        let got = read(overlay, at, 2048);
        assert_eq!(
            &got[..1024],
            &pattern(at, 1024)[..],
            "written bytes at {at}"
        );
        assert!(
            got[1024..1536].iter().all(|b| *b == 0),
            "zeroed bytes at {at}"
        );
        assert_eq!(
            &got[1536..],
            &base[index(at + 1536)..index(at + 2048)],
            "base bytes at {at}"
        );
    }
}

/// A puncher beside a writer that zeroes and rewrites the same blocks: a late hole never eats a
/// later write (invariant 13).
#[test]
fn a_late_hole_never_eats_a_later_write() {
    const ROUNDS: u64 = 300;
    let (_temp, dir) = directory();
    let size = 256 * 4096;
    let (overlay, cache) = overlay(&dir, size, vec![0; index(size)]);
    let (overlay, cache) = (&overlay, &cache);
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetOnDrop(done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                cache.punch_some().unwrap();
            }
        });
        for round in 1..=ROUNDS {
            let bytes = pattern(round, index(size));
            overlay.write(ByteOffset(0), &bytes).unwrap();
            overlay.trim(ByteRange::new(0, size / 2)).unwrap();
            overlay
                .write(ByteOffset(4096), &bytes[4096..40960])
                .unwrap();
            let got = read(overlay, 0, 81920);
            assert!(got[..4096].iter().all(|b| *b == 0));
            assert!(got[4096..40960] == bytes[4096..40960], "round {round}");
            assert!(got[40960..].iter().all(|b| *b == 0));
        }
    });
}

/// Four writers, each writing increasing sequence numbers to blocks of its own and, after each, to
/// a shared page of numbers; freezes beside them. In every frozen stack, if a later write is there,
/// every earlier acknowledged one is (invariant 5).
#[test]
fn every_freeze_is_a_consistent_cut() {
    const WRITERS: u64 = 4;
    const BLOCKS_EACH: u64 = 8;
    let (_temp, dir) = directory();
    let size = WRITERS * BLOCKS_EACH * 4096;
    let (overlay, first) = overlay(&dir, size, vec![0; index(size)]);
    let overlay = &overlay;
    let sequence = &AtomicU64::new(0);
    let done = &AtomicBool::new(false);
    let mut caches = vec![first];
    std::thread::scope(|scope| {
        let _end = SetOnDrop(done);
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut turn = 0;
                while !done.load(Ordering::Relaxed) {
                    // Taken before the write is submitted, so all numbers that were acknowledged
                    // by then are lower.
                    let n = sequence.fetch_add(1, Ordering::SeqCst) + 1;
                    let block = writer * BLOCKS_EACH + turn % BLOCKS_EACH;
                    // Odd turns write part of the block: a copy-up, perhaps from a frozen cache.
                    let len = if turn % 2 == 0 { 4096 } else { 512 };
                    let mut bytes = vec![7; len];
                    bytes[..8].copy_from_slice(&n.to_le_bytes());
                    overlay.write(ByteOffset(block * 4096), &bytes).unwrap();
                    turn += 1;
                }
            });
        }
        for number in 2..40 {
            let reached = sequence.load(Ordering::SeqCst) + 50;
            let give_up = Instant::now() + Duration::from_secs(60);
            while sequence.load(Ordering::SeqCst) < reached {
                assert!(Instant::now() < give_up, "the writers have stopped");
                std::thread::yield_now();
            }
            let name = format!("cache-{number}");
            let top = Cache::create(Arc::clone(&dir), &name, geometry(size), BOOT, health());
            let top = Arc::new(top.unwrap());
            // What has been acknowledged when the freeze begins is in it.
            overlay.freeze(Arc::clone(&top)).frozen.finish().unwrap();
            caches.push(top);
        }
    });
    // Each cut, as an overlay of the caches up to it: the numbers of one writer are those of its
    // last BLOCKS_EACH turns without a gap in their order.
    for cut in 1..caches.len() {
        let mut stack: Vec<_> = caches[..cut].to_vec();
        let top = stack.pop().unwrap();
        stack.reverse();
        let base = Arc::new(Base(vec![0; index(size)]));
        let frozen = Overlay::new(geometry(size), top, stack, base);
        for writer in 0..WRITERS {
            let numbers: Vec<u64> = (0..BLOCKS_EACH)
                .map(|b| {
                    let at = (writer * BLOCKS_EACH + b) * 4096;
                    u64::from_le_bytes(read(&frozen, at, 8).try_into().unwrap())
                })
                .collect();
            // Written round robin: from the oldest on, the numbers rise around the ring.
            let newest = (0..numbers.len()).max_by_key(|i| numbers[*i]).unwrap();
            let ring: Vec<u64> = (1..=numbers.len())
                .map(|i| numbers[(newest + i) % numbers.len()])
                .collect();
            let written: Vec<u64> = ring.into_iter().filter(|n| *n > 0).collect();
            assert!(
                written.is_sorted(),
                "cut {cut}, writer {writer}: {numbers:?}"
            );
        }
    }
}
