//! A disk that failed below a cache: what it lost shows as what lies below, never as something else.

use std::sync::Arc;

use cowslip_block::cache::{Cache, Found};
use cowslip_block::files::{Access, Dir};
use cowslip_block::overlay::Overlay;
use cowslip_block::{ByteOffset, Device, DeviceError};
use cowslip_sim::{Call, EIO, Faults, FaultyDir, MemoryFs, Rule};

use crate::rig::{BOOT, Base, geometry, health, index, overlay, pattern, read};

const BLOCK: usize = 4096;
const SIZE: u64 = 8 * BLOCK as u64;

/// Blocks 1 and 2 are written, and 1 is flushed; the cache's bytes of block 2 become these.
fn lost(bytes: &[u8], find: impl FnOnce(Arc<dyn Dir>) -> Found) -> Vec<u8> {
    let dir = MemoryFs::new().root();
    let base = pattern(3, index(SIZE));
    let (device, cache) = overlay(&dir, SIZE, base.clone());
    let at = |block: usize| ByteOffset((block * BLOCK) as u64);
    device.write(at(1), &pattern(1, BLOCK)).unwrap();
    device.flush().unwrap();
    device.write(at(2), &pattern(2, 10)).unwrap();
    drop((device, cache));
    let file = dir.open("cache-1.data", Access::ReadWrite).unwrap();
    file.write_at(bytes, at(2).0).unwrap();
    find(Arc::clone(&dir)).settle().unwrap().flush().unwrap();
    // What did not count does not come back with a later flush.
    let again = Cache::find(Arc::clone(&dir), "cache-1", geometry(SIZE), BOOT, health());
    let again = Arc::new(again.unwrap().settle().unwrap());
    let base: Arc<dyn Device> = Arc::new(Base(base));
    let device = Overlay::new(geometry(SIZE), again, Vec::new(), base);
    assert!(read(&device, at(1).0, BLOCK) == pattern(1, BLOCK));
    read(&device, at(2).0, BLOCK)
}

fn below() -> Vec<u8> {
    pattern(3, index(SIZE))[2 * BLOCK..3 * BLOCK].to_vec()
}

/// The boot id does not tell that a disk failed and was mounted again. A dirty block is never all zeros,
/// so one that is was lost: bytes beside the write are what they were.
#[test]
fn a_mark_over_zeros_does_not_count() {
    let find = |dir| Cache::find(dir, "cache-1", geometry(SIZE), BOOT, health()).unwrap();
    assert!(lost(&[0; BLOCK], find) == below());
    // What was rewritten in place is there, whatever its record says.
    assert!(lost(&pattern(7, BLOCK), find) == pattern(7, BLOCK));
}

/// The hole came to the disk, and the record of the zeros did not.
#[test]
fn a_hole_without_its_record_is_zeros() {
    let dir = MemoryFs::new().root();
    let (device, cache) = overlay(&dir, SIZE, pattern(3, index(SIZE)));
    device.write(ByteOffset(0), &pattern(1, 2 * BLOCK)).unwrap();
    device.flush().unwrap();
    drop((device, cache));
    let file = dir.open("cache-1.data", Access::ReadWrite).unwrap();
    file.punch(0, BLOCK as u64).unwrap();
    let found = Cache::find(Arc::clone(&dir), "cache-1", geometry(SIZE), BOOT, health()).unwrap();
    assert!(!found.is_whole(), "a disk that lost something says so");
    let cache = Arc::new(found.settle().unwrap());
    let base: Arc<dyn Device> = Arc::new(Base(pattern(3, index(SIZE))));
    let device = Overlay::new(geometry(SIZE), cache, Vec::new(), base);
    assert!(read(&device, 0, BLOCK) == [0; BLOCK]);
    assert!(read(&device, BLOCK as u64, BLOCK) == pattern(1, 2 * BLOCK)[BLOCK..]);
    device.write(ByteOffset(10), &[5]).unwrap();
    device.flush().unwrap();
}

#[test]
fn after_a_failure_a_mark_without_its_bytes_does_not_count() {
    let find =
        |dir| Cache::find_after_failure(dir, "cache-1", geometry(SIZE), BOOT, health()).unwrap();
    assert!(lost(&[0; BLOCK], find) == below());
    assert!(lost(&pattern(7, BLOCK), find) == below());
    let mut written = below();
    written[..10].copy_from_slice(&pattern(2, 10));
    assert!(lost(&written, find) == written);
}

/// The kernel tells once that it could not write.
#[test]
fn a_sync_that_fails_in_a_checkpoint_poisons_as_well() {
    for file in [".data", ".journal-1"] {
        let faults = Faults::new();
        let dir: Arc<dyn Dir> = Arc::new(FaultyDir::new(MemoryFs::new().root(), &faults));
        let (device, cache) = overlay(&dir, SIZE, pattern(3, index(SIZE)));
        device.write(ByteOffset(0), &pattern(1, BLOCK)).unwrap();
        let rule = Rule::once(Call::Sync, EIO).on(file);
        // The new segment is synced when it is made, and when it is begun.
        faults.add(if file == ".data" { rule } else { rule.after(1) });
        cache.checkpoint().unwrap_err();
        let flushed = device.flush();
        assert!(
            matches!(flushed, Err(DeviceError::Poisoned(_))),
            "{file}: {flushed:?}"
        );
        assert!(read(&device, 0, BLOCK) == pattern(1, BLOCK));
    }
}

/// A kernel that has no place for a page drops it, and tells whoever syncs next: until then reads would show zeros.
#[test]
fn what_the_disk_lost_is_not_read_as_zeros() {
    let dir = MemoryFs::new().root();
    let (device, _) = overlay(&dir, SIZE, pattern(3, index(SIZE)));
    let mut half = pattern(1, BLOCK);
    half[..BLOCK / 2].fill(0);
    device.write(ByteOffset(0), &half).unwrap();
    device.write(ByteOffset(BLOCK as u64), &half).unwrap();
    let file = dir.open("cache-1.data", Access::ReadWrite).unwrap();
    file.punch(BLOCK as u64, BLOCK as u64).unwrap();
    assert!(
        read(&device, 0, BLOCK / 2) == [0; 2048],
        "half of it is zeros"
    );
    device.write(ByteOffset(10), &[5]).unwrap();
    let mut buf = [0; 100];
    let error = (&device as &dyn Device).read_at(ByteOffset(BLOCK as u64 + 9), &mut buf);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("lost") && error.contains("block 1"),
        "{error}"
    );
    // What is there is still read; nothing is written any more.
    half[10] = 5;
    assert!(read(&device, 0, BLOCK) == half);
    let write = device.write(ByteOffset(0), &half);
    assert!(matches!(write, Err(DeviceError::Poisoned(_))), "{write:?}");
}

/// Nor does it become part of a block that is written in part.
#[test]
fn what_the_disk_lost_is_not_written_around() {
    let dir = MemoryFs::new().root();
    let (device, _) = overlay(&dir, SIZE, pattern(3, index(SIZE)));
    device.write(ByteOffset(0), &pattern(1, BLOCK)).unwrap();
    let file = dir.open("cache-1.data", Access::ReadWrite).unwrap();
    file.punch(0, BLOCK as u64).unwrap();
    let write = device.write(ByteOffset(10), &[5]);
    assert!(matches!(write, Err(DeviceError::Poisoned(_))), "{write:?}");
}
