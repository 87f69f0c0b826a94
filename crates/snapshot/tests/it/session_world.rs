//! A session in memory, beside an oracle: for every block, all values that were written to it, in
//! order, and which of them must still be there after a kill, and after a power cut.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cowslip_block::files::Dir;
use cowslip_block::{BlockRange, BlockSize, ByteOffset, ByteRange, Device, Room};
use cowslip_sim::MemoryFs;
use cowslip_sim::memory::SECTOR_BYTES;
use cowslip_snapshot::host::Host;
use cowslip_snapshot::image::Image;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::seal::SealError;
use cowslip_snapshot::session::{Session, SessionError, SnapshotOptions, Surroundings};
use cowslip_snapshot::unneeded::Unneeded;
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{Caches, SnapshotName, Store};
use uuid::Uuid;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const BASE_BYTES: usize = 10 * BLOCK + 100;
pub(crate) const SIZE_BYTES: usize = 14 * BLOCK + 333;

/// Ids that count through all hosts of the test, and a boot that it chooses.
#[derive(Debug)]
pub(crate) struct BootHost {
    boot: u8,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl BootHost {
    pub(crate) fn new(boot: u8) -> Arc<Self> {
        Arc::new(Self { boot })
    }
}

impl Host for BootHost {
    fn now_unix_ms(&self) -> u64 {
        1_800_000_000_000
    }

    fn boot_id(&self) -> [u8; 16] {
        [self.boot; 16]
    }

    fn new_uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(NEXT_ID.fetch_add(1, Ordering::Relaxed)))
    }
}

pub(crate) fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

/// Bytes that tell which write they came from; never zero.
pub(crate) fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((seed * 131 + i * 7 + i / 251) % 255) as u8 + 1)
        .collect()
}

/// One step of a history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write {
        at: usize,
        len: usize,
        fua: bool,
    },
    /// Whole blocks, alternately data and zeros.
    Mixed {
        block: usize,
        blocks: usize,
    },
    Zero {
        at: usize,
        len: usize,
        room: Room,
    },
    Trim {
        at: usize,
        len: usize,
    },
    Flush,
    Freeze(&'static str),
    Seal,
    Tidy,
    Checkpoint,
}

/// All values of one block, and how far they are promised.
#[derive(Clone, Debug)]
struct Block {
    values: Vec<Vec<u8>>,
    /// The last that was acknowledged.
    acknowledged: usize,
    /// The last that was acknowledged before a flush that was acknowledged.
    durable: usize,
}

/// What the client knows.
#[derive(Clone, Debug)]
pub(crate) struct Oracle {
    blocks: Vec<Block>,
    /// What each snapshot holds that was asked for, and whether it was reported as committed.
    snapshots: Vec<(&'static str, Vec<u8>, bool)>,
}

impl Oracle {
    pub(crate) fn new() -> Self {
        let mut image = bytes_of(1, BASE_BYTES);
        image.resize(SIZE_BYTES, 0);
        let block = |b: &[u8]| Block {
            values: vec![b.to_vec()],
            acknowledged: 0,
            durable: 0,
        };
        Self {
            blocks: image.chunks(BLOCK).map(block).collect(),
            snapshots: Vec::new(),
        }
    }

    /// The name was removed.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.snapshots.retain(|(n, _, _)| *n != name);
        self
    }

    /// The device as the last request left it, acknowledged or not.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.blocks
            .iter()
            .flat_map(|b| b.values.last().unwrap().clone())
            .collect()
    }

    fn submit(&mut self, at: usize, bytes: &[u8]) {
        let mut image = self.image();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        for (i, new) in image.chunks(BLOCK).enumerate() {
            let touched = i * BLOCK < at + bytes.len() && at < i * BLOCK + new.len();
            if touched {
                self.blocks[i].values.push(new.to_vec());
            }
        }
    }

    fn acknowledge(&mut self) {
        for block in &mut self.blocks {
            block.acknowledged = block.values.len() - 1;
        }
    }

    fn flushed(&mut self) {
        for block in &mut self.blocks {
            block.durable = block.acknowledged;
        }
    }

    /// Whole blocks inside, the last one of the device included where it ends there.
    fn trimmed(&mut self, at: usize, len: usize) {
        for i in 0..self.blocks.len() {
            let (start, size) = (i * BLOCK, self.blocks[i].values[0].len());
            if at <= start && start + size <= at + len {
                self.blocks[i].values.push(vec![0; size]);
            }
        }
    }

    /// Is this what a kill (or else a power cut) may leave? Takes it as the new beginning.
    pub(crate) fn accept(&mut self, image: &[u8], kill: bool, what: &str) {
        for (i, (block, now)) in self.blocks.iter_mut().zip(image.chunks(BLOCK)).enumerate() {
            let floor = if kill {
                block.acknowledged
            } else {
                block.durable
            };
            let values = &block.values[floor..];
            let found = values.iter().any(|value| value == now);
            // A disk may tear what was not flushed, between two sectors.
            let is_torn = || {
                now.chunks(SECTOR_BYTES).enumerate().all(|(s, sector)| {
                    let at = s * SECTOR_BYTES;
                    values
                        .iter()
                        .any(|value| value[at..at + sector.len()] == *sector)
                })
            };
            assert!(
                found || !kill && is_torn(),
                "{what}: block {i} holds none of the values {floor}.. of {}; it is value {:?}",
                block.values.len(),
                block.values.iter().position(|v| v == now),
            );
            *block = Block {
                values: vec![now.to_vec()],
                acknowledged: 0,
                durable: 0,
            };
        }
    }
}

pub(crate) struct World {
    pub(crate) store: Arc<Store>,
    pub(crate) session: Session,
    writes: u64,
}

impl World {
    /// A store with a base, and a session on it, as files of a directory.
    pub(crate) fn create(root: &dyn Dir, boot: u8) -> Self {
        root.create_dir("store").unwrap();
        root.create_dir("session").unwrap();
        root.create_dir("import").unwrap();
        root.sync().unwrap();
        let host = BootHost::new(boot);
        let dir = root.open_dir("store").unwrap();
        let store = Store::open_or_create(&*dir, Arc::clone(&host) as _, Caches::default());
        let store = Arc::new(store.unwrap());
        let source = root.open_dir("import").unwrap().create("base").unwrap();
        source.write_at(&bytes_of(1, BASE_BYTES), 0).unwrap();
        let options = ImportOptions {
            block_size: BlockSize::DISK,
            made_by: "test".into(),
        };
        let size = BASE_BYTES as u64;
        let header = import(
            &store,
            &store.lease().unwrap(),
            &*source,
            size,
            &options,
            &mut |_, _| {},
        )
        .unwrap();
        store
            .commit(&store.lease().unwrap(), &name("base"), &header, false)
            .unwrap();
        let around = surroundings(root, "session", &store, host);
        let session = Session::create(around, &name("base"), Some(SIZE_BYTES as u64)).unwrap();
        Self {
            store,
            session,
            writes: 100,
        }
    }

    pub(crate) fn open(root: &dyn Dir, boot: u8) -> Result<Self, SessionError> {
        Self::open_in(root, "session", boot)
    }

    /// The session in this directory.
    pub(crate) fn open_in(root: &dyn Dir, session: &str, boot: u8) -> Result<Self, SessionError> {
        let host = BootHost::new(boot);
        let dir = root.open_dir("store").unwrap();
        let store = Store::open(&*dir, Arc::clone(&host) as _, Caches::default());
        let store = Arc::new(store.unwrap());
        let session = Session::open(surroundings(root, session, &store, host))?;
        Ok(Self {
            store,
            session,
            writes: 1000 + u64::from(boot) * 100,
        })
    }

    /// Does one step, and notes it. False where it failed.
    pub(crate) fn step(&mut self, step: &Step, oracle: &mut Oracle) -> bool {
        let device = self.session.device();
        self.writes += 1;
        let range = |at: usize, len: usize| ByteRange::at(at as u64, len as u64).unwrap();
        let done = match *step {
            Step::Write { at, len, fua } => {
                let bytes = bytes_of(self.writes, len);
                oracle.submit(at, &bytes);
                let written = device.write(ByteOffset(at as u64), &bytes);
                return written.is_ok() && {
                    oracle.acknowledge();
                    !fua || self.flush(oracle)
                };
            }
            Step::Mixed { block, blocks } => {
                let mut bytes = bytes_of(self.writes, blocks * BLOCK);
                bytes.chunks_mut(BLOCK).step_by(2).for_each(|b| b.fill(0));
                oracle.submit(block * BLOCK, &bytes);
                device
                    .write(ByteOffset((block * BLOCK) as u64), &bytes)
                    .is_ok()
            }
            Step::Zero { at, len, room } => {
                oracle.submit(at, &vec![0; len]);
                device.write_zeroes(range(at, len), room).is_ok()
            }
            Step::Trim { at, len } => {
                oracle.trimmed(at, len);
                device.trim(range(at, len)).is_ok()
            }
            Step::Flush => return self.flush(oracle),
            Step::Freeze(text) => {
                // What it holds if it is ever seen: all that was written until now.
                oracle.snapshots.push((text, oracle.image(), false));
                return self
                    .session
                    .freeze(&name(text), &SnapshotOptions::default())
                    .is_ok();
            }
            Step::Seal => return self.seal(oracle),
            Step::Tidy => return self.session.tidy().is_ok(),
            Step::Checkpoint => return self.session.checkpoint().is_ok(),
        };
        if done {
            oracle.acknowledge();
        }
        done
    }

    fn flush(&self, oracle: &mut Oracle) -> bool {
        let flushed = self.session.device().flush().is_ok();
        if flushed {
            oracle.flushed();
        }
        flushed
    }

    /// One attempt to seal the oldest frozen cache.
    fn seal(&self, oracle: &mut Oracle) -> bool {
        let Some(seal) = self.session.next_seal() else {
            return true;
        };
        self.session.seal_next();
        let stored = matches!(seal.wait(Duration::ZERO), Some(Ok(_)));
        let text = seal.name().as_str();
        if stored && let Some(entry) = oracle.snapshots.iter_mut().find(|(n, _, _)| *n == text) {
            entry.2 = true;
        }
        stored
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0xee; SIZE_BYTES];
        self.session
            .device()
            .read_at(ByteOffset(0), &mut bytes)
            .unwrap();
        bytes
    }

    /// Every name stands for a whole snapshot, with exactly the bytes of its freeze; those that
    /// were reported are there.
    pub(crate) fn check_names(&self, oracle: &Oracle, what: &str) {
        let names = self.store.list().unwrap();
        for listed in &names {
            let text = listed.name.as_str();
            let header = self
                .store
                .resolve(&listed.name)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let report = verify(&self.store, &header, &mut |_, _| {}).unwrap();
            assert!(report.is_whole(), "{what}: {text}: {:?}", report.damage);
            let mut bytes = vec![0xee; usize::try_from(header.size_bytes()).unwrap()];
            let image: &dyn Device = &Image::new(Arc::clone(&self.store), header);
            image.read_at(ByteOffset(0), &mut bytes).unwrap();
            let expected = match oracle.snapshots.iter().find(|(n, _, _)| *n == text) {
                Some((_, expected, _)) => expected.clone(),
                None => bytes_of(1, BASE_BYTES),
            };
            assert!(bytes == expected, "{what}: {text} is not what was frozen");
        }
        for (text, _, committed) in &oracle.snapshots {
            let there = names.iter().any(|l| l.name.as_str() == *text);
            assert!(
                there || !committed,
                "{what}: {text} was committed, and is not there"
            );
        }
    }
}

/// What the first byte is of a device that is exact.
pub(crate) const EXACT: u8 = b'E';
/// Blocks that nobody needs then.
pub(crate) const UNNEEDED: [Range<usize>; 3] = [1..2, 5..7, 12..13];

/// Knows what is in a device: its first byte says it.
struct FirstByte;

impl Unneeded for FirstByte {
    fn blocks(&self, frozen: &Arc<dyn Device>) -> Result<Vec<BlockRange>, SealError> {
        let mut first = [0];
        frozen.read_at(ByteOffset(0), &mut first)?;
        if first != [EXACT] {
            return Err(SealError::Refused(format!(
                "the first byte is {:#x}",
                first[0]
            )));
        }
        let range = |b: Range<usize>| BlockRange::new(b.start as u64, b.end as u64);
        Ok(UNNEEDED.map(range).to_vec())
    }
}

pub(crate) fn surroundings(
    root: &dyn Dir,
    session: &str,
    store: &Arc<Store>,
    host: Arc<BootHost>,
) -> Surroundings {
    Surroundings {
        dir: root.open_dir(session).unwrap(),
        path: session.into(),
        temporary: false,
        store: Arc::clone(store),
        store_path: "store".into(),
        host,
        unneeded: Some(Arc::new(FirstByte)),
        say: Box::new(|_| {}),
    }
}

/// A disk with a world on it, all of it durable.
pub(crate) fn fresh() -> (MemoryFs, World) {
    let disk = MemoryFs::new();
    let world = World::create(&*disk.root(), 1);
    (disk, world)
}
