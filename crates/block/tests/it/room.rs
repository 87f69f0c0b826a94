//! Room: what zeroes and trims give back, and what a full or failing disk does.

use std::sync::Arc;

use cowslip_block::cache::BlockState;
use cowslip_block::files::{Dir, RealDir};
use cowslip_block::{ByteOffset, ByteRange, Device, Room};

use crate::rig::{index, overlay, pattern, read};

#[test]
fn zeroes_and_trims_give_their_room_back_and_provisioning_keeps_it() {
    let temp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).unwrap());
    let size = 4 << 20;
    let (overlay, cache) = overlay(&dir, size, pattern(3, index(size)));
    overlay
        .write(ByteOffset(0), &pattern(1, index(size)))
        .unwrap();
    let (full, _) = cache.room().unwrap();
    assert!(full >= size);
    overlay.trim(ByteRange::new(0, 1 << 20)).unwrap();
    overlay
        .write_zeroes(ByteRange::new(1 << 20, 2 << 20), Room::Free)
        .unwrap();
    overlay
        .write(ByteOffset(2 << 20), &vec![0; 1 << 20])
        .unwrap();
    assert_eq!(cache.count(BlockState::ZeroHeld).0, 768);
    while cache.punch_some().unwrap() {}
    assert_eq!(cache.count(BlockState::ZeroHeld).0, 0);
    let (after, _) = cache.room().unwrap();
    assert!(
        after <= size / 4 + (64 << 10),
        "{after} bytes are still held"
    );
    overlay
        .write_zeroes(ByteRange::new(3 << 20, 4 << 20), Room::Provision)
        .unwrap();
    while cache.punch_some().unwrap() {}
    assert!(
        cache.room().unwrap().0 >= size / 4,
        "provisioned room is kept"
    );
    assert!(read(&overlay, 0, index(size)).iter().all(|b| *b == 0));
}
