//! What the tests of cache and overlay stand on: a base in memory, and an overlay over it in a
//! directory of files.

use std::sync::Arc;

use cowslip_block::cache::Cache;
use cowslip_block::files::Dir;
use cowslip_block::health::Health;
use cowslip_block::overlay::Overlay;
use cowslip_block::{BlockSize, ByteOffset, ByteRange, Device, DeviceError, Geometry, ReadSink};

/// A read-only device in memory.
pub(crate) struct Base(pub(crate) Vec<u8>);

impl Device for Base {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.0.len() as u64,
            block_size: BlockSize::DISK,
            read_only: true,
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        let (start, end) = (index(range.start.0), index(range.end.0));
        sink.data(end - start).copy_from_slice(&self.0[start..end]);
        Ok(())
    }
}

pub(crate) const BOOT: [u8; 16] = [1; 16];

pub(crate) fn geometry(size_bytes: u64) -> Geometry {
    Geometry {
        size_bytes,
        block_size: BlockSize::DISK,
        read_only: false,
    }
}

pub(crate) fn health() -> Arc<Health> {
    Health::new(|_| {})
}

/// An overlay of one cache over a base.
pub(crate) fn overlay(dir: &Arc<dyn Dir>, size: u64, base: Vec<u8>) -> (Overlay, Arc<Cache>) {
    let cache = Cache::create(Arc::clone(dir), "cache-1", geometry(size), BOOT, health());
    let cache = Arc::new(cache.unwrap());
    let base = Arc::new(Base(base));
    (
        Overlay::new(geometry(size), Arc::clone(&cache), Vec::new(), base),
        cache,
    )
}

pub(crate) fn read(device: &dyn Device, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    device.read_at(ByteOffset(offset), &mut bytes).unwrap();
    bytes
}

/// Bytes that are not zero and tell where they come from.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3] | 1
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// Ends the threads beside a test also when the test fails: a scope waits for them.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
