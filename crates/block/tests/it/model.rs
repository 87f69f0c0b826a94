//! Cache and overlay beside a plain vector of bytes: random writes, zeroes, trims, flushes, freezes
//! and kills, over a base of odd sizes.

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::cache::Cache;
use cowslip_block::files::{Dir, RealDir};
use cowslip_block::overlay::Overlay;
use cowslip_block::{ByteOffset, ByteRange, Device, Room};
use proptest::prelude::*;

use crate::rig::{BOOT, Base, geometry, health, index, overlay, pattern, read};

#[derive(Clone, Debug)]
enum Op {
    Write {
        at: u64,
        len: u64,
        seed: u64,
        zero_every: u64,
    },
    Zero {
        at: u64,
        len: u64,
        provision: bool,
    },
    Trim {
        at: u64,
        len: u64,
    },
    Flush,
    Freeze,
    Kill,
    Punch,
    Checkpoint,
}

const SIZE: u64 = 100 * 4096 + 777;
const BASE: u64 = 60 * 4096 + 5;

fn op() -> impl Strategy<Value = Op> {
    let at = prop_oneof![0..SIZE, (0..SIZE / 4096).prop_map(|b| b * 4096)];
    let len = prop_oneof![1..300u64, (1..20u64).prop_map(|b| b * 4096), 1..80_000u64];
    let range = (at, len).prop_map(|(at, len)| (at, len.min(SIZE - at)));
    prop_oneof![
        6 => (range.clone(), any::<u64>(), 0..4u64)
            .prop_map(|((at, len), seed, zero_every)| Op::Write { at, len, seed, zero_every }),
        3 => (range.clone(), any::<bool>())
            .prop_map(|((at, len), provision)| Op::Zero { at, len, provision }),
        3 => range.prop_map(|(at, len)| Op::Trim { at, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Freeze),
        1 => Just(Op::Kill),
        1 => Just(Op::Punch),
        1 => Just(Op::Checkpoint),
    ]
}

/// What a write writes: a pattern, with every so many-th block zero.
fn bytes_of(at: u64, len: u64, seed: u64, zero_every: u64) -> Vec<u8> {
    let mut bytes = pattern(seed, index(len));
    for (i, byte) in bytes.iter_mut().enumerate() {
        let block = (at + i as u64) / 4096;
        if zero_every > 0 && block.is_multiple_of(zero_every + 1) {
            *byte = 0;
        }
    }
    bytes
}

/// The device, and everything that a restart needs.
struct World {
    _temp: tempfile::TempDir,
    dir: Arc<dyn Dir>,
    names: Vec<String>,
    caches: Vec<Arc<Cache>>,
    overlay: Overlay,
    oracle: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).unwrap());
        let base = pattern(99, index(BASE));
        let mut oracle = base.clone();
        oracle.resize(index(SIZE), 0);
        let (overlay, cache) = overlay(&dir, SIZE, base);
        let names = vec!["cache-1".to_owned()];
        Self {
            _temp: temp,
            dir,
            names,
            caches: vec![cache],
            overlay,
            oracle,
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write {
                at,
                len,
                seed,
                zero_every,
            } => {
                let bytes = bytes_of(at, len, seed, zero_every);
                self.overlay.write(ByteOffset(at), &bytes).unwrap();
                self.oracle[index(at)..index(at + len)].copy_from_slice(&bytes);
            }
            Op::Zero { at, len, provision } => {
                let room = if provision {
                    Room::Provision
                } else {
                    Room::Free
                };
                self.overlay
                    .write_zeroes(ByteRange::at(at, len).unwrap(), room)
                    .unwrap();
                self.oracle[index(at)..index(at + len)].fill(0);
            }
            Op::Trim { at, len } => {
                self.overlay.trim(ByteRange::at(at, len).unwrap()).unwrap();
                // The whole blocks inside; the last one of the device is whole where it ends.
                for (block, bytes) in self.oracle.chunks_mut(4096).enumerate() {
                    let start = block as u64 * 4096;
                    if at <= start && start + bytes.len() as u64 <= at + len {
                        bytes.fill(0);
                    }
                }
            }
            Op::Flush => self.overlay.flush().unwrap(),
            Op::Freeze => {
                let name = format!("cache-{}", self.names.len() + 1);
                let top =
                    Cache::create(Arc::clone(&self.dir), &name, geometry(SIZE), BOOT, health());
                let top = Arc::new(top.unwrap());
                let freeze = self.overlay.freeze(Arc::clone(&top));
                freeze.frozen.finish().unwrap();
                self.names.push(name);
                self.caches.push(top);
            }
            Op::Kill => self.reopen(),
            Op::Punch => while self.top().punch_some().unwrap() {},
            Op::Checkpoint => self.top().checkpoint().unwrap(),
        }
    }

    fn top(&self) -> &Cache {
        self.caches.last().unwrap()
    }

    /// As after a kill: only what is in the files counts.
    fn reopen(&mut self) {
        let open = |name: &String| {
            let cache = Cache::find(Arc::clone(&self.dir), name, geometry(SIZE), BOOT, health());
            let found = cache.unwrap();
            assert!(found.is_whole());
            Arc::new(found.settle().unwrap())
        };
        let mut caches: Vec<_> = self.names.iter().map(open).collect();
        for (before, after) in self.caches.iter().zip(&caches) {
            assert_eq!(before.is_finished(), after.is_finished());
        }
        self.caches.clone_from(&caches);
        let top = caches.pop().unwrap();
        caches.reverse();
        let base = Arc::new(Base(pattern(99, index(BASE))));
        self.overlay = Overlay::new(geometry(SIZE), top, caches, base);
    }

    fn check(&self) {
        assert!(
            read(&self.overlay, 0, index(SIZE)) == self.oracle,
            "the bytes differ"
        );
        let mut at = 0;
        let all = ByteRange::new(0, SIZE);
        self.overlay
            .block_status(all, &mut |extent| {
                let bytes = &self.oracle[index(at)..index(at + extent.len)];
                if extent.hole {
                    assert!(
                        bytes.iter().all(|b| *b == 0),
                        "a hole at {at} that is not zero"
                    );
                }
                at += extent.len;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(at, SIZE, "extents cover the device");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_device_reads_what_was_written_to_it(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
        world.check();
        world.reopen();
        world.check();
    }
}

#[test]
fn reads_past_the_end_and_writes_past_the_end_are_refused() {
    let world = World::new();
    let device: &dyn Device = &world.overlay;
    for (at, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX - 1, 1)] {
        let mut buf = vec![0; len];
        assert!(device.read_at(ByteOffset(at), &mut buf).is_err());
        assert!(device.write(ByteOffset(at), &buf).is_err());
    }
    assert!(device.read_at(ByteOffset(SIZE), &mut []).is_ok());
}

#[test]
fn alternating_zero_and_data_blocks_are_counted_exactly() {
    use cowslip_block::cache::BlockState;
    let mut world = World::new();
    world.run(&Op::Write {
        at: 0,
        len: 16 * 4096,
        seed: 1,
        zero_every: 1,
    });
    assert_eq!(world.top().count(BlockState::Dirty).0, 8);
    assert_eq!(world.top().count(BlockState::Zero).0, 8);
    world.check();
}

#[test]
fn block_status_says_what_changed_since_the_freeze() {
    let mut world = World::new();
    world.run(&Op::Write {
        at: 0,
        len: 8192,
        seed: 1,
        zero_every: 0,
    });
    world.run(&Op::Freeze);
    world.run(&Op::Write {
        at: 4096,
        len: 4096,
        seed: 2,
        zero_every: 0,
    });
    world.run(&Op::Trim {
        at: 8192,
        len: 4096,
    });
    let mut seen = Vec::new();
    world
        .overlay
        .block_status(ByteRange::new(0, 16384), &mut |e| {
            seen.push((e.len, e.hole, e.dirty));
            ControlFlow::Continue(())
        })
        .unwrap();
    let expected = [
        (4096, false, false),
        (4096, false, true),
        (4096, true, true),
        (4096, false, false),
    ];
    assert_eq!(seen, expected);
}
