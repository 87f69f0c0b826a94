//! What a snapshot costs: the freeze, during which the device is held, and the seal behind it.
//!
//! `seal` packs 64 MiB that were written to a session over an image of 64 MiB: noise; text, which
//! compresses; the very bytes of the parent; and noise in single blocks scattered over 8 GiB. Each is
//! timed from the freeze to the committed name, syncs included, in `/dev/shm` where that is.
//!
//! `memory` is no time: it is what the seal of a million scattered blocks takes, by its own account and by the
//! process's peak. The blocks have 512 bytes, so that they fit in memory themselves; what a seal holds does not
//! depend on that.
//!
//! `freeze` is `Session::freeze` alone, with 64 MiB dirty: a new cache, the manifest, the swap. How long
//! of that no request could begin is printed beside it.
#![allow(missing_docs, reason = "criterion's macros make items without")]
#![allow(clippy::print_stderr, reason = "a figure beside the times")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::{Dir, RealDir};
use cowslip_block::{BlockSize, ByteOffset};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::session::{Session, SnapshotOptions, Surroundings};
use cowslip_snapshot::{Caches, SnapshotName, Store};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const IMAGE_BYTES: usize = 64 << 20;
const DISK_BYTES: u64 = 8 << 30;

/// A store with an image of noise in it, and a session over it.
struct Rig {
    session: Session,
    _temp: TempDir,
}

impl Rig {
    fn new(image: &[u8]) -> Self {
        Self::of_blocks(image, BlockSize::DISK, DISK_BYTES)
    }

    fn of_blocks(image: &[u8], block_size: BlockSize, disk_bytes: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let temp = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let temp = temp.expect("a temporary directory");
        let open = |name: &str| {
            let path: PathBuf = temp.path().join(name);
            RealDir::open_or_create(&path).expect("a new directory")
        };
        let (dir, sources) = (open("store"), open("sources"));
        let store = Store::open_or_create(&dir, Arc::new(RealHost), Caches::default());
        let store = Arc::new(store.expect("a new store"));
        let source = sources.create("image").expect("a new file");
        source.write_at(image, 0).expect("room");
        let options = ImportOptions {
            block_size,
            made_by: "a bench".into(),
        };
        let len = image.len() as u64;
        let lease = store.lease().expect("a lease");
        let header = import(
            &store,
            &lease,
            source.as_ref(),
            len,
            &options,
            &mut |_, _| {},
        );
        let base = name("base");
        store
            .commit(&lease, &base, &header.expect("room"), false)
            .expect("a free name");
        let around = Surroundings {
            dir: Arc::new(open("session")),
            path: temp.path().join("session"),
            temporary: false,
            store,
            store_path: temp.path().join("store"),
            host: Arc::new(RealHost),
            unneeded: None,
            say: Box::new(|_| {}),
        };
        let session = Session::create(around, &base, Some(disk_bytes)).expect("a new session");
        Self {
            session,
            _temp: temp,
        }
    }

    fn write(&self, data: &[u8], stride: usize) {
        let device = self.session.device();
        let chunk = if stride == BLOCK { 64 * BLOCK } else { BLOCK };
        for (n, bytes) in data.chunks(chunk).enumerate() {
            let offset = (n * chunk * (stride / BLOCK)) as u64;
            device.write(ByteOffset(offset), bytes).expect("room");
        }
    }

    /// The time of the freeze, and for how much of it the device was held.
    fn freeze(&self, to: &str) -> (Duration, Duration) {
        let begun = Instant::now();
        let seal = self.session.freeze(&name(to), &SnapshotOptions::default());
        let seal = seal.expect("a free name");
        (begun.elapsed(), seal.held())
    }

    /// All that a snapshot takes; the bytes that it stored.
    fn snapshot(&self, to: &str) -> (Duration, u64) {
        let begun = Instant::now();
        let seal = self.session.freeze(&name(to), &SnapshotOptions::default());
        let seal = seal.expect("a free name");
        assert!(self.session.seal_next(), "a seal was asked for");
        let took = begun.elapsed();
        let header = seal.wait(Duration::ZERO).expect("it has ended");
        (took, header.expect("a snapshot").meta().payload_bytes)
    }
}

fn name(text: &str) -> SnapshotName {
    text.parse().expect("a name")
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend(x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Lines of words, all different.
fn text(len: usize) -> Vec<u8> {
    let words = [
        "snapshot", "guest", "page", "write", "layer", "of", "the", "kernel",
    ];
    let seeds = noise(7, len);
    let mut out = Vec::with_capacity(len + 64);
    for (n, seed) in seeds.iter().enumerate() {
        if out.len() >= len {
            break;
        }
        out.extend(format!("{n} {} ", words[usize::from(*seed) % words.len()]).as_bytes());
    }
    out.truncate(len);
    out
}

fn seals(c: &mut Criterion) {
    let image = noise(1, IMAGE_BYTES);
    let other = noise(2, IMAGE_BYTES);
    let text = text(IMAGE_BYTES);
    let mut group = c.benchmark_group("seal");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(IMAGE_BYTES as u64));
    let scattered = usize::try_from(DISK_BYTES).expect("64 bits") / (IMAGE_BYTES / BLOCK);
    let cases = [
        ("64 MiB of noise", &other, BLOCK),
        ("64 MiB of text", &text, BLOCK),
        ("64 MiB as the parent has them", &image, BLOCK),
        ("64 MiB of noise in scattered blocks", &other, scattered),
    ];
    for (what, data, stride) in cases {
        let mut stored = 0;
        group.bench_function(what, |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let rig = Rig::new(&image);
                    rig.write(data, stride);
                    let (took, bytes) = rig.snapshot("next");
                    (total, stored) = (total + took, bytes);
                }
                total
            });
        });
        eprintln!("{what}: {stored} bytes of payload stored");
    }
    group.finish();
}

fn freezes(c: &mut Criterion) {
    let mut group = c.benchmark_group("freeze");
    group.sample_size(10);
    let image = noise(1, BLOCK);
    let data = noise(2, IMAGE_BYTES);
    let mut held = Vec::new();
    group.bench_function("with 64 MiB dirty", |b| {
        b.iter_custom(|times| {
            let mut total = Duration::ZERO;
            for _ in 0..times {
                let rig = Rig::new(&image);
                rig.write(&data, BLOCK);
                let (took, one) = rig.freeze("next");
                held.push(one);
                total += took;
            }
            total
        });
    });
    held.sort();
    if let (Some(middle), Some(longest)) = (held.get(held.len() / 2), held.last()) {
        eprintln!(
            "held: {middle:?} in the middle, {longest:?} at the longest, of {}",
            held.len()
        );
    }
    group.finish();
}

/// What proc(5) says of the process's memory, in KiB.
fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn memory(_: &mut Criterion) {
    let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    if !filters.all(|filter| "memory".contains(&filter)) {
        return;
    }
    const BLOCKS: u64 = 1_000_000;
    let size = BlockSize::new(512).expect("a block size");
    let rig = Rig::of_blocks(&[1; 512], size, 2 * BLOCKS * 512);
    let device = rig.session.device();
    for n in 0..BLOCKS {
        let mut block = [0; 512];
        block[..8].copy_from_slice(&(n + 1).to_le_bytes());
        device.write(ByteOffset(2 * n * 512), &block).expect("room");
    }
    let seal = rig
        .session
        .freeze(&name("next"), &SnapshotOptions::default());
    let seal = seal.expect("a free name");
    let states = rig.session.status().expect("a session").state_memory_bytes;
    // Sets the peak to what there is now.
    drop(std::fs::write("/proc/self/clear_refs", "5"));
    let before = memory_kib("VmRSS:");
    let begun = Instant::now();
    assert!(rig.session.seal_next(), "a seal was asked for");
    let took = begun.elapsed();
    let peak = memory_kib("VmHWM:").saturating_sub(before);
    let own = seal.progress().memory_bytes;
    let header = seal.wait(Duration::ZERO).expect("it has ended");
    let object = header.expect("a snapshot").object_bytes();
    eprintln!(
        "memory: a seal of {BLOCKS} scattered blocks took {took:.2?}, {own} bytes by its own account \
         (states: {states}), {peak} KiB by the process's peak; a header of {object} bytes"
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3));
    targets = freezes, seals, memory
}
criterion_main!(benches);
