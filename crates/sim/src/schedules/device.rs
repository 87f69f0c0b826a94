//! What a schedule is about: an overlay in a [`MemoryFs`], and a base that a snapshot can take the place of.

use std::sync::Arc;

use cowslip_block::cache::{Cache, Found};
use cowslip_block::files::Dir;
use cowslip_block::health::Health;
use cowslip_block::overlay::{Overlay, Stack};
use cowslip_block::{BlockSize, ByteOffset, ByteRange, Device, DeviceError, Geometry, ReadSink};

use super::oracle::CELL;
use crate::memory::{Forget, MemoryFs};

pub(super) const CELLS: usize = 6;
pub(super) const SIZE: usize = CELLS * CELL;
pub(super) const BOOT: [u8; 16] = [1; 16];

/// A read-only device in memory.
pub(super) struct Flat(pub(super) Vec<u8>);

impl Device for Flat {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: true,
            ..geometry()
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        // Whoever copies up waits for a store.
        shuttle::thread::yield_now();
        let place = |at: ByteOffset| usize::try_from(at.0).expect("it is in memory");
        let bytes = &self.0[place(range.start)..place(range.end)];
        sink.data(bytes.len()).copy_from_slice(bytes);
        Ok(())
    }
}

pub(super) fn geometry() -> Geometry {
    Geometry {
        size_bytes: SIZE as u64,
        block_size: BlockSize::new(512).expect("a size that blocks may have"),
        read_only: false,
    }
}

fn health() -> Arc<Health> {
    Health::new(|_| {})
}

pub(super) fn new_cache(dir: &Arc<dyn Dir>, number: usize) -> Arc<Cache> {
    let name = format!("cache-{number}");
    let made = Cache::create(Arc::clone(dir), &name, geometry(), BOOT, health());
    Arc::new(made.expect("nothing fails here"))
}

pub(super) fn read(device: &dyn Device, cell: usize, cells: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; cells * CELL];
    let read = device.read_at(ByteOffset((cell * CELL) as u64), &mut bytes);
    read.expect("nothing fails here");
    bytes
}

/// What these levels hold, seen from the newest.
pub(super) fn content(caches: &[Arc<Cache>], base: &Arc<dyn Device>) -> Vec<u8> {
    let (top, frozen) = caches.split_first().expect("there is always one");
    let (top, frozen) = (Arc::clone(top), frozen.to_vec());
    // It closes the gates of what is frozen already.
    let overlay = Overlay::new(geometry(), top, frozen, Arc::clone(base));
    read(&overlay, 0, CELLS)
}

pub(super) fn find(disk: &MemoryFs, name: &str, boot: [u8; 16]) -> Result<Found, String> {
    let found = Cache::find(disk.root(), name, geometry(), boot, health());
    found.map_err(|e| format!("{name}: {e}"))
}

/// A stack, and the disk, at one moment.
pub(super) struct Moment {
    disk: MemoryFs,
    stack: Arc<Stack>,
    base: Arc<dyn Device>,
}

impl Moment {
    pub(super) fn new(disk: MemoryFs, stack: Arc<Stack>, base: Arc<dyn Device>) -> Self {
        Self { disk, stack, base }
    }

    /// The same, after a power cut.
    pub(super) fn cut(&self, forget: Forget) -> Self {
        Self {
            disk: self.disk.after_cut(forget),
            stack: Arc::clone(&self.stack),
            base: Arc::clone(&self.base),
        }
    }

    /// What the next start finds, in this boot or after it.
    pub(super) fn recovered(&self, boot: [u8; 16]) -> Result<Vec<u8>, String> {
        let names = std::iter::once(self.stack.top()).chain(self.stack.frozen());
        let find = |cache: &Arc<Cache>| {
            let settled = find(&self.disk, cache.name(), boot)?.settle();
            settled.map(Arc::new).map_err(|e| e.to_string())
        };
        let caches: Result<Vec<_>, String> = names.map(find).collect();
        Ok(content(&caches?, &self.base))
    }
}
