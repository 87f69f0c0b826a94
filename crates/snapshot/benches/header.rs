//! What maps and layers cost: build, encode, open and look-up at 1 k, 100 k and 5 M runs; a layer
//! written, and 4 KiB read from it.
//!
//! A header is built and encoded in one step (its nodes are hashed as they are made), decoded again
//! and stored: `build` is all of that, in `/dev/shm` where there is one. `build_one` is a snapshot of one
//! changed block on top.
#![allow(missing_docs, reason = "criterion's macros make items without")]
#![allow(clippy::print_stderr, reason = "a figure beside the times")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cowslip_block::files::RealDir;
use cowslip_block::{BlockIndex, BlockRange, BlockSize, ByteOffset, Device};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::{
    Caches, DiffFigures, Header, HeaderSpec, Image, LayerId, MapRun, Store, Target,
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use uuid::Uuid;

fn temp_dir() -> TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() {
        tempfile::tempdir_in(shm)
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary directory")
}

fn store(at: &TempDir, frame_bytes: u64) -> Arc<Store> {
    let caches = Caches {
        frame_bytes,
        node_bytes: 1 << 30,
    };
    let dir = RealDir::open(at.path()).expect("it was just made");
    let store = Store::open_or_create(&dir, Arc::new(RealHost), caches);
    Arc::new(store.expect("an empty directory becomes a store"))
}

/// Runs of two blocks in every four, in one layer or another, none beside its neighbour.
fn scattered(runs: u64) -> Vec<MapRun> {
    let run = |i: u64| MapRun {
        blocks: BlockRange::new(4 * i, 4 * i + 2),
        to: Target::Layer {
            id: LayerId(Uuid::from_u128(u128::from(1 + i % 3))),
            at: 2 * i,
        },
    };
    (0..runs).map(run).collect()
}

fn put(store: &Store, parent: Option<&Header>, blocks: u64, changes: &[MapRun]) -> Arc<Header> {
    let spec = HeaderSpec {
        parent,
        size_bytes: blocks * 4096,
        block_size: BlockSize::DISK,
        changes,
        layer: None,
        figures: DiffFigures::default(),
        made_by: "bench",
    };
    store
        .put_header(&store.lease().expect("a lease"), &spec)
        .expect("a header")
}

/// Numbers without pattern, the same in every run.
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

fn headers(c: &mut Criterion) {
    for runs in [1_000u64, 100_000, 5_000_000] {
        let blocks = runs * 4;
        let changes = scattered(runs);
        let mut group = c.benchmark_group("header");
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(3));
        let label = |what: &str| BenchmarkId::new(what.to_owned(), runs);
        group.bench_function(label("build"), |b| {
            // A store for each, so that memory does not fill up with headers.
            let build = |temp: TempDir| (put(&store(&temp, 0), None, blocks, &changes), temp);
            b.iter_batched(temp_dir, build, BatchSize::PerIteration);
        });
        let temp = temp_dir();
        let here = store(&temp, 0);
        let header = put(&here, None, blocks, &changes);
        let bytes = header.object_bytes();
        eprintln!(
            "{runs} runs: {bytes} bytes, {:.2} a run",
            bytes as f64 / runs as f64
        );
        let one = [MapRun {
            blocks: BlockRange::one(BlockIndex(blocks / 2)),
            to: Target::Zero,
        }];
        group.bench_function(label("build_one"), |b| {
            b.iter(|| put(&here, Some(&header), blocks, &one));
        });
        group.bench_function(label("open"), |b| {
            b.iter(|| here.open_header(black_box(header.id())));
        });
        group.bench_function(label("open_cold_and_look_up"), |b| {
            b.iter(|| {
                let cold = store(&temp, 0).open_header(header.id()).expect("a header");
                cold.runs(BlockRange::one(BlockIndex(blocks / 3)))
            });
        });
        let mut next = numbers();
        group.bench_function(label("look_up"), |b| {
            b.iter(|| header.runs(BlockRange::one(BlockIndex(next(blocks)))));
        });
        group.finish();
    }
}

/// Half of it compresses well, half does not.
fn payload(bytes: usize) -> Vec<u8> {
    let mut next = numbers();
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        let word = if out.len() / 512 % 2 == 0 {
            next(u64::MAX)
        } else {
            7
        };
        out.extend(word.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn layers(c: &mut Criterion) {
    let size = BlockSize::DISK;
    let payload = payload(64 << 20);
    let blocks = size.count_ceil(payload.len() as u64).0;
    let mut group = c.benchmark_group("layer");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("write_64_mib", |b| {
        let write = |temp: TempDir| {
            let store = store(&temp, 0);
            let lease = store.lease().expect("a lease");
            let mut writer = store.layer_writer(&lease, size).expect("a writer");
            writer.push(&payload).expect("room");
            // The directory is given back, so that its removal is not measured.
            (writer.finish().expect("room"), temp)
        };
        b.iter_batched(temp_dir, write, BatchSize::PerIteration);
    });
    group.throughput(Throughput::Bytes(4096));
    for (what, frame_bytes) in [("read_4_kib_cached", 1 << 30), ("read_4_kib_one_frame", 0)] {
        let temp = temp_dir();
        let store = store(&temp, frame_bytes);
        let mut writer = store
            .layer_writer(&store.lease().expect("a lease"), size)
            .expect("a writer");
        writer.push(&payload).expect("room");
        let layer = writer.finish().expect("room");
        let all = [MapRun {
            blocks: BlockRange::new(0, blocks),
            to: Target::Layer {
                id: layer.id,
                at: 0,
            },
        }];
        let header = put(&store, None, blocks, &all);
        let image = Image::new(store, header);
        let device: &dyn Device = &image;
        let mut whole = vec![0; payload.len()];
        device
            .read_at(ByteOffset(0), &mut whole)
            .expect("what was written");
        let (mut next, mut buf) = (numbers(), [0; 4096]);
        group.bench_function(what, |b| {
            b.iter(|| device.read_at(ByteOffset(next(blocks) * 4096), &mut buf));
        });
    }
    group.finish();
}

criterion_group!(benches, headers, layers);
criterion_main!(benches);
