//! What a cache costs beside the plain file that it stands on: the same bytes, the same file system,
//! the same run.
//!
//! | group | what |
//! |---|---|
//! | `write` | 4 KiB for the first time, again, scattered; 64 KiB in a row, half of them zeros; 512 bytes |
//! | `beside` | scattered first writes, alone and beside 128 MiB that were written in a row before |
//! | `read` | 4 and 256 KiB of what was written |
//! | `drop` | trim and zero of what was written, and of what was not |
//! | `taken up` | 64 MiB that somebody wrote who was killed: in memory, and on the disk of temporary files; beside one that was finished |
//!
//! `floor` is `pwrite` and `pread` on a file of the same size. All but that lies in `/dev/shm` where that is,
//! with the thread that punches and shortens the journal behind it, as in a session.
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cowslip_block::cache::Cache;
use cowslip_block::files::{Dir, File, RealDir};
use cowslip_block::health::Health;
use cowslip_block::overlay::Overlay;
use cowslip_block::{BlockSize, ByteOffset, ByteRange, Device, DeviceError, Geometry, ReadSink};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const SIZE_BYTES: u64 = 4 << 30;
/// As much as one cache takes before the next begins: 256 MiB.
const BLOCKS_MAX: u64 = 1 << 16;
const HOT_BLOCKS: u64 = 1024;
const GEOMETRY: Geometry = Geometry {
    size_bytes: SIZE_BYTES,
    block_size: BlockSize::DISK,
    read_only: false,
};

/// What lies below every cache here: zeros, at no cost.
struct Nothing;

impl Device for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: true,
            ..GEOMETRY
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        sink.zeroes(range.len());
        Ok(())
    }
}

/// Something that 4 KiB and more can be written to and read from.
trait Place {
    fn new() -> Self;
    fn write(&self, offset: u64, data: &[u8]);
    fn read(&self, offset: u64, buf: &mut [u8]);
}

fn temp_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    dir.expect("a temporary directory")
}

/// A file, and nothing else.
struct Floor {
    file: Arc<dyn File>,
    _temp: TempDir,
}

impl Place for Floor {
    fn new() -> Self {
        let temp = temp_dir();
        let dir = RealDir::open(temp.path()).expect("just made");
        let file = dir.create("floor").expect("a new file");
        file.set_len(SIZE_BYTES).expect("a hole");
        Self { file, _temp: temp }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.file.write_at(data, offset).expect("room");
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        self.file.read_at(buf, offset).expect("it is there");
    }
}

/// An overlay of one cache, and the thread behind it.
struct Live {
    overlay: Overlay,
    health: Arc<Health>,
    ended: Arc<AtomicBool>,
    tidy: Option<JoinHandle<()>>,
    _temp: TempDir,
}

impl Live {
    fn device(&self) -> &dyn Device {
        &self.overlay
    }
}

impl Place for Live {
    fn new() -> Self {
        let temp = temp_dir();
        let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).expect("just made"));
        let health = Health::new(|_| {});
        let cache = Cache::create(dir, "cache-1", GEOMETRY, [1; 16], Arc::clone(&health));
        let cache = Arc::new(cache.expect("a new cache"));
        let ended = Arc::new(AtomicBool::new(false));
        let (behind, bell, end) = (Arc::clone(&cache), Arc::clone(&health), Arc::clone(&ended));
        let tidy = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                while behind.punch_some().expect("punching") {}
                if behind.wants_checkpoint() {
                    behind.checkpoint().expect("a checkpoint");
                }
                bell.wait(Duration::from_secs(1));
            }
        });
        Self {
            overlay: Overlay::new(GEOMETRY, cache, Vec::new(), Arc::new(Nothing)),
            health,
            ended,
            tidy: Some(tidy),
            _temp: temp,
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device().write(ByteOffset(offset), data).expect("room");
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        self.device()
            .read_at(ByteOffset(offset), buf)
            .expect("it is there");
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.health.ring();
        if let Some(tidy) = self.tidy.take() {
            tidy.join().expect("the thread behind did its work");
        }
    }
}

/// Bytes none of which is zero.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3] | 1
    };
    (0..len).map(next).collect()
}

/// Times `go` for the numbers 0 and up; after `max` of them the place is made anew, untimed. It goes
/// on for a while even where criterion asks for few, and tells the time of as many as it asked for:
/// to make a place takes long, and the first requests after that are not what is meant.
fn timed<P: Place>(count: u64, max: u64, prepare: impl Fn(&P), go: impl Fn(&P, u64)) -> Duration {
    const LEAST: u64 = 4096;
    let all = count.max(LEAST);
    let mut total = Duration::ZERO;
    let mut left = all;
    while left > 0 {
        let place = P::new();
        prepare(&place);
        let now = left.min(max);
        let begun = Instant::now();
        (0..now).for_each(|n| go(&place, n));
        total += begun.elapsed();
        left -= now;
    }
    total.mul_f64(count as f64 / all as f64)
}

/// The n-th of all blocks, in an order that jumps about: each comes once (an odd factor).
fn scattered(n: u64) -> u64 {
    let blocks = SIZE_BYTES / BLOCK as u64;
    n.wrapping_mul(0x9e37_79b1) % blocks * BLOCK as u64
}

fn in_a_row(n: u64) -> u64 {
    n * BLOCK as u64
}

fn hot(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b1) % HOT_BLOCKS * BLOCK as u64
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// One way to write, at a cache and at the floor.
fn both(group: &mut Group<'_>, name: &str, data: &[u8], at: fn(u64) -> u64, max: u64, warm: bool) {
    fn fill(place: &impl Place, warm: bool) {
        let all = noise(BLOCK);
        let blocks = if warm { HOT_BLOCKS } else { 0 };
        (0..blocks).for_each(|n| place.write(in_a_row(n), &all));
    }
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function(format!("{name}/cache"), |b| {
        b.iter_custom(|n| timed::<Live>(n, max, |p| fill(p, warm), |p, i| p.write(at(i), data)));
    });
    group.bench_function(format!("{name}/floor"), |b| {
        b.iter_custom(|n| timed::<Floor>(n, max, |p| fill(p, warm), |p, i| p.write(at(i), data)));
    });
}

fn writes(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    let block = noise(BLOCK);
    let large = noise(16 * BLOCK);
    let mut mixed = large.clone();
    (0..16)
        .step_by(2)
        .for_each(|i| mixed[i * BLOCK..(i + 1) * BLOCK].fill(0));
    both(
        &mut group,
        "4 KiB first, in a row",
        &block,
        in_a_row,
        BLOCKS_MAX,
        false,
    );
    both(
        &mut group,
        "4 KiB first, scattered",
        &block,
        scattered,
        BLOCKS_MAX,
        false,
    );
    both(&mut group, "4 KiB hot", &block, hot, u64::MAX, true);
    both(
        &mut group,
        "512 bytes hot",
        &block[..512],
        |n| hot(n) + 512,
        u64::MAX,
        true,
    );
    let in_a_row = |n| n * 16 * BLOCK as u64;
    both(
        &mut group,
        "64 KiB first, in a row",
        &large,
        in_a_row,
        BLOCKS_MAX / 16,
        false,
    );
    both(
        &mut group,
        "64 KiB first, every other block zero",
        &mixed,
        in_a_row,
        BLOCKS_MAX / 16,
        false,
    );
    group.finish();
}

/// The cliff that bitmaps of runs fall off: it must not be there.
fn beside(c: &mut Criterion) {
    const ROW_BYTES: u64 = 128 << 20;
    let mut group = c.benchmark_group("beside");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let block = noise(BLOCK);
    // Scattered over the 256 MiB that follow the row.
    let next_to = |n: u64| ROW_BYTES + n.wrapping_mul(0x9e37_79b1) % BLOCKS_MAX * BLOCK as u64;
    let row = |place: &Live| {
        let large = noise(64 * BLOCK);
        let offsets = (0..ROW_BYTES).step_by(large.len());
        offsets.for_each(|at| place.write(at, &large));
    };
    group.bench_function("4 KiB first, scattered, alone", |b| {
        b.iter_custom(|n| timed::<Live>(n, BLOCKS_MAX, |_| {}, |p, i| p.write(next_to(i), &block)));
    });
    group.bench_function("4 KiB first, scattered, beside 128 MiB in a row", |b| {
        b.iter_custom(|n| timed::<Live>(n, BLOCKS_MAX, row, |p, i| p.write(next_to(i), &block)));
    });
    group.finish();
}

fn reads(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    let (live, floor) = (Live::new(), Floor::new());
    let large = noise(64 * BLOCK);
    for n in 0..64 {
        live.write(n * large.len() as u64, &large);
        floor.write(n * large.len() as u64, &large);
    }
    for (name, len) in [("4 KiB written", BLOCK), ("256 KiB written", 64 * BLOCK)] {
        let mut buf = vec![0; len];
        let places = 64 * large.len() as u64 / len as u64;
        let at = |n: &mut u64| {
            *n = n.wrapping_add(0x9e37_79b1);
            *n % places * len as u64
        };
        group.throughput(Throughput::Bytes(len as u64));
        let mut n = 0;
        group.bench_function(format!("{name}/cache"), |b| {
            b.iter(|| live.read(at(&mut n), &mut buf));
        });
        group.bench_function(format!("{name}/floor"), |b| {
            b.iter(|| floor.read(at(&mut n), &mut buf));
        });
    }
    let mut buf = vec![0; BLOCK];
    group.throughput(Throughput::Bytes(BLOCK as u64));
    group.bench_function("4 KiB never written/cache", |b| {
        b.iter(|| live.read(1 << 30, &mut buf));
    });
    group.finish();
}

fn drops(c: &mut Criterion) {
    let mut group = c.benchmark_group("drop");
    let large = noise(64 * BLOCK);
    let fill = |place: &Live| {
        (0..BLOCKS_MAX / 64).for_each(|n| place.write(n * large.len() as u64, &large));
    };
    let trim = |place: &Live, n: u64, len: u64| {
        let range = ByteRange::at(n * len, len).expect("within the device");
        place.device().trim(range).expect("always");
    };
    for (name, len) in [("4 KiB", BLOCK as u64), ("1 MiB", 1 << 20)] {
        // All of it is written once, and trimmed once.
        let max = BLOCKS_MAX * BLOCK as u64 / len;
        group.bench_function(format!("trim {name} written"), |b| {
            b.iter_custom(|n| timed::<Live>(n, max, fill, |p, i| trim(p, i, len)));
        });
        group.bench_function(format!("trim {name} never written"), |b| {
            b.iter_custom(|n| timed::<Live>(n, max, |_| {}, |p, i| trim(p, i, len)));
        });
    }
    group.finish();
}

/// Until it is found: after a kill it is synced, and what the kernel remembers of it written once more.
fn taken_up(c: &mut Criterion) {
    const TAKEN_BLOCKS: u64 = 64 << 8;
    let mut group = c.benchmark_group("taken up");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(TAKEN_BLOCKS * BLOCK as u64));
    let block = noise(BLOCK);
    let on_disk = || tempfile::tempdir().expect("a temporary directory");
    let places = [
        ("in memory", temp_dir as fn() -> TempDir),
        ("on disk", on_disk),
    ];
    let orders = [
        ("in a row", in_a_row as fn(u64) -> u64),
        ("scattered", scattered),
    ];
    for ((place, temp), (order, at)) in places.into_iter().flat_map(|p| orders.map(|o| (p, o))) {
        for (end, finishes) in [("killed", false), ("finished", true)] {
            let fill = || {
                let temp = temp();
                let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).expect("just made"));
                let health = Health::new(|_| {});
                let cache = Cache::create(Arc::clone(&dir), "cache-1", GEOMETRY, [1; 16], health);
                let cache = Arc::new(cache.expect("a new cache"));
                let overlay =
                    Overlay::new(GEOMETRY, Arc::clone(&cache), Vec::new(), Arc::new(Nothing));
                let write = |n| Device::write(&overlay, ByteOffset(at(n)), &block).expect("room");
                (0..TAKEN_BLOCKS).for_each(write);
                if finishes {
                    cache.finish().expect("room");
                }
                (temp, dir)
            };
            group.bench_function(format!("64 MiB {order}, {place}, {end}"), |b| {
                let find = |(temp, dir): (TempDir, Arc<dyn Dir>)| {
                    let health = Health::new(|_| {});
                    let found = Cache::find(dir, "cache-1", GEOMETRY, [1; 16], health);
                    (found.expect("it is there"), temp)
                };
                b.iter_batched(fill, find, criterion::BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = writes, beside, reads, drops, taken_up
}
criterion_main!(benches);
