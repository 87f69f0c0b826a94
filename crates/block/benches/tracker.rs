//! The tracker beside one flat `RoaringTreemap` per state, which is what it is chosen over.
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

use std::hint::black_box;

use cowslip_block::tracker::StateTracker;
use cowslip_block::{BlockCount, BlockIndex, BlockRange};
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main};
use roaring::RoaringTreemap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Untouched,
    Dirty,
    Zero,
}
use State::{Dirty, Untouched, Zero};

/// 64 TiB in blocks of 4 KiB.
const WHOLE_DISK: u64 = 1 << 34;
/// 4 GiB, where the hot path lives.
const SMALL_DISK: u64 = 1 << 20;
/// Writes per iteration: enough for a set to grow out of an array container.
const SCATTERED: usize = 8192;

/// One flat set per state; a block in none is untouched.
#[derive(Clone, Default)]
struct Naive {
    dirty: RoaringTreemap,
    zero: RoaringTreemap,
}

impl Naive {
    fn set_range(&mut self, range: BlockRange, state: State) {
        let blocks = range.start.0..range.end.0;
        for (of, set) in [(Dirty, &mut self.dirty), (Zero, &mut self.zero)] {
            if of == state {
                set.insert_range(blocks.clone());
            } else {
                set.remove_range(blocks.clone());
            }
        }
    }

    fn get(&self, block: BlockIndex) -> State {
        match (self.dirty.contains(block.0), self.zero.contains(block.0)) {
            (true, _) => Dirty,
            (_, true) => Zero,
            _ => Untouched,
        }
    }
}

trait Subject: Clone {
    fn set(&mut self, range: BlockRange, state: State);
}

impl Subject for StateTracker<State> {
    fn set(&mut self, range: BlockRange, state: State) {
        self.set_range(range, state)
            .expect("tracked, and within the device");
    }
}

impl Subject for Naive {
    fn set(&mut self, range: BlockRange, state: State) {
        self.set_range(range, state);
    }
}

fn tracker(blocks: u64) -> StateTracker<State> {
    StateTracker::new(BlockCount(blocks), Untouched, &[Dirty, Zero]).expect("three states")
}

/// Block numbers below a power of two, spread evenly, in no order (Fibonacci hashing).
fn scattered(below: u64) -> impl Fn(u64) -> BlockRange {
    move |i| {
        BlockRange::one(BlockIndex(
            i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - below.ilog2()),
        ))
    }
}

/// Time per block of `SCATTERED` single blocks set after `before` was.
fn single<T: Subject>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    before: &T,
    below: u64,
    state: impl Fn(u64) -> State,
) {
    let block = scattered(below);
    group.throughput(criterion::Throughput::Elements(SCATTERED as u64));
    group.bench_function(name, |b| {
        // One write on top of the clone, so that the tree of a live device stands.
        let fresh = || {
            let mut fresh = before.clone();
            fresh.set(block(0), state(0));
            fresh
        };
        b.iter_batched(
            fresh,
            |mut subject| {
                for i in 0..SCATTERED as u64 {
                    subject.set(block(i), state(i));
                }
                subject
            },
            BatchSize::LargeInput,
        );
    });
}

fn single_blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("single");
    let all = BlockRange::new(0, SMALL_DISK);
    let (empty, naive) = (tracker(SMALL_DISK), Naive::default());
    let (mut in_large, mut naive_in_large) = (empty.clone(), naive.clone());
    in_large.set(all, Zero);
    naive_in_large.set(all, Zero);
    let dirty = |_| Dirty;
    let both = |i: u64| [Dirty, Zero, Dirty][usize::try_from(i % 3).expect("below 3")];
    // One leaf, 32768 of its blocks: sets cross from array to bitmap.
    single(
        &mut group,
        "scattered 128 MiB/tracker",
        &empty,
        1 << 15,
        dirty,
    );
    single(
        &mut group,
        "scattered 128 MiB/naive",
        &naive,
        1 << 15,
        dirty,
    );
    single(
        &mut group,
        "scattered 4 GiB/tracker",
        &empty,
        SMALL_DISK,
        dirty,
    );
    single(
        &mut group,
        "scattered 4 GiB/naive",
        &naive,
        SMALL_DISK,
        dirty,
    );
    single(
        &mut group,
        "two states 128 MiB/tracker",
        &empty,
        1 << 15,
        both,
    );
    single(
        &mut group,
        "two states 128 MiB/naive",
        &naive,
        1 << 15,
        both,
    );
    single(
        &mut group,
        "inside 128 MiB set before/tracker",
        &in_large,
        1 << 15,
        dirty,
    );
    single(
        &mut group,
        "inside 128 MiB set before/naive",
        &naive_in_large,
        1 << 15,
        dirty,
    );
    single(
        &mut group,
        "inside 4 GiB set before/tracker",
        &in_large,
        SMALL_DISK,
        dirty,
    );
    single(
        &mut group,
        "inside 4 GiB set before/naive",
        &naive_in_large,
        SMALL_DISK,
        dirty,
    );
    let mut disk = tracker(WHOLE_DISK);
    disk.set(BlockRange::new(0, WHOLE_DISK), Zero);
    single(
        &mut group,
        "inside 64 TiB set before/tracker",
        &disk,
        WHOLE_DISK,
        dirty,
    );
    group.finish();

    let mut group = c.benchmark_group("hot");
    let block = BlockRange::one(BlockIndex(12345));
    let mut flip = false;
    let mut hot = tracker(SMALL_DISK);
    group.bench_function("rewrite/tracker", |b| {
        b.iter(|| hot.set(black_box(block), Dirty));
    });
    group.bench_function("flip/tracker", |b| {
        b.iter(|| {
            flip = !flip;
            hot.set(black_box(block), if flip { Dirty } else { Zero });
        });
    });
    // The worst that a leaf can do: each step moves a set across the border of 4096 members,
    // between an array and a bitmap.
    let mut border = tracker(SMALL_DISK);
    (0..4097).for_each(|i| border.set(BlockRange::one(BlockIndex(i * 3)), Dirty));
    group.bench_function("at the border of array and bitmap/tracker", |b| {
        b.iter(|| {
            flip = !flip;
            let state = if flip { Untouched } else { Dirty };
            border.set(BlockRange::one(BlockIndex(300)), state);
        });
    });
    group.finish();
}

fn ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("range");
    let million = BlockRange::new(777, 777 + 1_000_000);
    let mut tracked = tracker(WHOLE_DISK);
    let mut naive = Naive::default();
    let mut flip = false;
    let mut next = || {
        flip = !flip;
        if flip { Dirty } else { Zero }
    };
    group.bench_function("set 1M/tracker", |b| {
        b.iter(|| tracked.set(million, next()));
    });
    group.bench_function("set 1M/naive", |b| b.iter(|| naive.set(million, next())));
    let all = BlockRange::new(0, WHOLE_DISK);
    group.bench_function("set 2^34/tracker", |b| b.iter(|| tracked.set(all, next())));

    // 1M blocks in 64 GiB, every 16th one: 256 leaves.
    let mut used = tracker(WHOLE_DISK);
    (0..1 << 20).for_each(|i| used.set(BlockRange::one(BlockIndex(i * 16)), Dirty));
    group.bench_function("replace in 2^34 with 1M scattered/tracker", |b| {
        b.iter_batched(
            || used.clone(),
            |mut used| used.replace(all, Dirty, Zero).map(|()| used),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("set 2^34 with 1M scattered/tracker", |b| {
        b.iter_batched_ref(
            || used.clone(),
            |used| used.set(all, Zero),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("clone with 1M scattered/tracker", |b| {
        b.iter(|| used.clone());
    });
    group.bench_function("count with 1M scattered/tracker", |b| {
        b.iter(|| used.count(Dirty));
    });
    group.bench_function("export 1M scattered/tracker", |b| {
        b.iter(|| used.export(Dirty));
    });
    group.bench_function("encode 1M scattered/tracker", |b| b.iter(|| used.encode()));
    group.bench_function("first write after a clone/tracker", |b| {
        b.iter_batched_ref(
            || used.clone(),
            |used| used.set(BlockRange::one(BlockIndex(1 << 19)), Zero),
            BatchSize::LargeInput,
        );
    });
    group.finish();

    let mut group = c.benchmark_group("whole disk, flat");
    group.sample_size(10);
    group.bench_function("set 2^34/naive", |b| {
        b.iter_batched_ref(
            Naive::default,
            |naive| naive.set(all, next()),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn look_ups(c: &mut Criterion) {
    let mut group = c.benchmark_group("look");
    let (mut tracked, mut naive) = (tracker(SMALL_DISK), Naive::default());
    let block = scattered(SMALL_DISK);
    for i in 0..200_000 {
        let state = if i % 3 == 0 { Zero } else { Dirty };
        let BlockRange { start, .. } = block(i);
        let range = BlockRange::new(start.0, (start.0 + i % 5 + 1).min(SMALL_DISK));
        tracked.set(range, state);
        naive.set(range, state);
    }
    let mut at = 0;
    let mut next = || {
        at += 1;
        BlockIndex(block(at).start.0.min(SMALL_DISK - 8))
    };
    group.bench_function("get/tracker", |b| b.iter(|| tracked.get(next())));
    group.bench_function("get/naive", |b| b.iter(|| naive.get(next())));
    group.bench_function("run_at/tracker", |b| {
        b.iter(|| {
            let at = next();
            tracked.run_at(at, BlockIndex(at.0 + 8))
        });
    });
    group.bench_function("runs over 8/tracker", |b| {
        b.iter(|| {
            let at = next().0;
            tracked
                .runs(BlockRange::new(at, at + 8))
                .fold(0, |n, run| n + run.0.count().0)
        });
    });
    group.bench_function("runs over 8/naive, block by block", |b| {
        b.iter(|| {
            let at = next().0;
            (at..at + 8)
                .filter(|at| naive.get(BlockIndex(*at)) == Dirty)
                .count()
        });
    });
    group.bench_function("has_range of 8/tracker", |b| {
        b.iter(|| {
            let at = next().0;
            tracked.has_range(BlockRange::new(at, at + 8), &[Dirty, Zero])
        });
    });
    let fresh = tracker(WHOLE_DISK);
    group.bench_function("runs over 8, uniform/tracker", |b| {
        b.iter(|| {
            let at = next().0;
            fresh
                .runs(BlockRange::new(at, at + 8))
                .fold(0, |n, run| n + run.0.count().0)
        });
    });
    group.finish();
}

criterion_group!(benches, single_blocks, ranges, look_ups);
criterion_main!(benches);
