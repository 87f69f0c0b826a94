//! A device that may not be written to: whole where one can write, refused in each way there is to write.

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::cache::Cache;
use cowslip_block::files::{Dir, RealDir};
use cowslip_block::overlay::Overlay;
use cowslip_block::read_only::ReadOnly;
use cowslip_block::{ByteOffset, ByteRange, Device, DeviceError, Room};

use crate::rig::{BOOT, Base, geometry, health};

fn is_refused(device: &dyn Device) {
    let range = ByteRange::new(0, 4096);
    let results = [
        device.write(ByteOffset(0), b"x"),
        device.write_zeroes(range, Room::Free),
        device.trim(range),
    ];
    for result in results {
        assert!(matches!(result, Err(DeviceError::ReadOnly)), "{result:?}");
    }
    assert!(device.geometry().read_only);
    device.flush().unwrap();
}

#[test]
fn what_is_read_only_refuses_and_reads() {
    let base = Arc::new(Base(vec![7; 8192]));
    is_refused(&*base);
    let temporary = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temporary.path()).unwrap());
    let geometry = geometry(8192);
    let cache = Cache::create(dir, "c", geometry, BOOT, health()).unwrap();
    let writable = Overlay::new(geometry, Arc::new(cache), Vec::new(), base);
    writable.write(ByteOffset(0), &[9; 4096]).unwrap();
    let device: Arc<dyn Device> = Arc::new(ReadOnly(Arc::new(writable)));
    is_refused(&*device);
    let mut bytes = [0; 8192];
    device.read_at(ByteOffset(0), &mut bytes).unwrap();
    assert!(bytes[..4096] == [9; 4096] && bytes[4096..] == [7; 4096]);
    let mut extents = Vec::new();
    let seen = device.block_status(ByteRange::new(0, 8192), &mut |extent| {
        extents.push((extent.len, extent.dirty));
        ControlFlow::Continue(())
    });
    seen.unwrap();
    assert_eq!(extents, [(4096, true), (4096, false)]);
    // Past the end there is nothing, whichever way the end is missed.
    for at in [8192, u64::MAX] {
        assert!(device.read_at(ByteOffset(at), &mut bytes).is_err());
    }
}
