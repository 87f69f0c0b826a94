//! A store to test with: in memory where there is `/dev/shm`, with ids that count and time that
//! stands still.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowslip_block::files::{Dir, RealDir};
use cowslip_block::{BlockRange, BlockSize};
use cowslip_snapshot::host::Host;
use cowslip_snapshot::{Caches, DiffFigures, Header, HeaderSpec, LayerId, MapRun, Store, Target};
use tempfile::TempDir;
use uuid::Uuid;

/// The same ids and the same time in every run.
#[derive(Debug)]
pub(crate) struct CountingHost(AtomicU64);

impl CountingHost {
    pub(crate) fn from(first: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(first)))
    }
}

impl Host for CountingHost {
    fn now_unix_ms(&self) -> u64 {
        1_800_000_000_000
    }

    fn boot_id(&self) -> [u8; 16] {
        [7; 16]
    }

    fn new_uuid(&self) -> Uuid {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        Uuid::from_u64_pair(0xc0_57_11_9b_00_00_40_00, 0x8000_0000_0000_0000 | n)
    }
}

pub(crate) struct Rig {
    pub(crate) temp: TempDir,
    pub(crate) store: Arc<Store>,
}

pub(crate) const SMALL: Caches = Caches {
    frame_bytes: 1 << 20,
    node_bytes: 1 << 20,
};

pub(crate) fn temp_dir() -> TempDir {
    match Path::new("/dev/shm") {
        shm if shm.is_dir() => tempfile::tempdir_in(shm).unwrap(),
        _ => tempfile::tempdir().unwrap(),
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        let temp = temp_dir();
        let dir = RealDir::open(temp.path()).unwrap();
        let store = Store::open_or_create(&dir, CountingHost::from(1), SMALL).unwrap();
        let store = Arc::new(store);
        Self { temp, store }
    }

    /// The same store with nothing in its caches.
    pub(crate) fn reopened(&self) -> Arc<Store> {
        let dir = RealDir::open(self.temp.path()).unwrap();
        Arc::new(Store::open(&dir, CountingHost::from(1 << 32), SMALL).unwrap())
    }

    pub(crate) fn path(&self, object: &str) -> PathBuf {
        self.temp.path().join(object)
    }

    /// A header over `parent` with these changes, whose layers need not exist.
    pub(crate) fn put(
        &self,
        parent: Option<&Header>,
        blocks: u64,
        changes: &[MapRun],
    ) -> Arc<Header> {
        let size_bytes = blocks * 4096;
        self.store
            .put_header(
                &self.store.lease().unwrap(),
                &spec(parent, size_bytes, changes),
            )
            .unwrap()
    }

    /// Runs `check` on the store with each change of one byte, and each cut, of one object.
    pub(crate) fn for_each_damage(&self, object: &str, check: impl Fn(&Arc<Store>, &str)) {
        let path = self.path(object);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                std::fs::write(&path, &bytes).unwrap();
                check(
                    &self.reopened(),
                    &format!("{object}: byte {at} ^ {flip:#x}"),
                );
            }
        }
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            check(&self.reopened(), &format!("{object}: cut to {len}"));
        }
        let mut longer = whole.clone();
        longer.push(0);
        std::fs::write(&path, &longer).unwrap();
        check(&self.reopened(), &format!("{object}: a byte more"));
        std::fs::write(&path, &whole).unwrap();
    }

    pub(crate) fn tmp_is_empty(&self) -> bool {
        let tmp = RealDir::open(&self.path("tmp")).unwrap();
        tmp.list().unwrap().is_empty()
    }
}

pub(crate) fn spec<'a>(
    parent: Option<&'a Header>,
    size_bytes: u64,
    changes: &'a [MapRun],
) -> HeaderSpec<'a> {
    HeaderSpec {
        parent,
        size_bytes,
        block_size: BlockSize::DISK,
        changes,
        layer: None,
        figures: DiffFigures::default(),
        made_by: "a test",
    }
}

pub(crate) fn to(layer: u128, at: u64) -> Target {
    let id = LayerId(Uuid::from_u128(layer));
    Target::Layer { id, at }
}

pub(crate) fn run(start: u64, end: u64, to: Target) -> MapRun {
    let blocks = BlockRange::new(start, end);
    MapRun { blocks, to }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}
