//! Invariant 5, with a request that takes its time: a frozen cache that somebody is still inside is
//! neither copied from nor finished.
//!
//! The request is held in a read of the base, which a partial write makes inside its cache. What must
//! not happen meanwhile would happen at once, so it is given a moment to; what must happen is awaited.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cowslip_block::cache::Cache;
use cowslip_block::files::{Dir, RealDir};
use cowslip_block::overlay::Overlay;
use cowslip_block::{ByteOffset, ByteRange, Device, DeviceError, Geometry, ReadSink};
use cowslip_sim::{Forget, MemoryFs};

use crate::rig::{BOOT, Base, geometry, health, overlay, pattern, read};

const MOMENT: Duration = Duration::from_millis(100);

/// A base whose first read waits until it is let go.
struct HeldBase {
    base: Base,
    held_once: AtomicBool,
    reached: Sender<()>,
    let_go: Mutex<Receiver<()>>,
}

impl Device for HeldBase {
    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        if !self.held_once.swap(true, Ordering::SeqCst) {
            self.reached.send(()).unwrap();
            self.let_go.lock().unwrap().recv().unwrap();
        }
        self.base.read(range, sink)
    }
}

/// Holds a write of the first half of block 0 inside the top cache, freezes that, and does
/// `meanwhile` in a thread: it must not be done before the write is let go.
fn while_a_write_is_held(meanwhile: impl FnOnce(&Overlay, &Cache) + Send) {
    let temp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).unwrap());
    let cache = |name| {
        let made = Cache::create(Arc::clone(&dir), name, geometry(8192), BOOT, health());
        Arc::new(made.unwrap())
    };
    let ((reached, is_reached), (let_go, is_let_go)) = (channel(), channel());
    let base = HeldBase {
        base: Base(pattern(1, 8192)),
        held_once: AtomicBool::new(false),
        reached,
        let_go: Mutex::new(is_let_go),
    };
    let overlay = Overlay::new(geometry(8192), cache("cache-1"), Vec::new(), Arc::new(base));
    let overlay = &overlay;
    std::thread::scope(|scope| {
        let held = scope.spawn(|| overlay.write(ByteOffset(0), &pattern(2, 2048)).unwrap());
        is_reached.recv().unwrap();
        let frozen = overlay.freeze(cache("cache-2")).frozen;
        let (done, is_done) = channel();
        scope.spawn(move || {
            meanwhile(overlay, &frozen);
            // Nobody listens any more where the test has failed.
            let _ = done.send(());
        });
        let too_early = is_done.recv_timeout(MOMENT).is_ok();
        let_go.send(()).unwrap();
        held.join().unwrap();
        assert!(!too_early, "it did not wait for the write");
        is_done.recv().unwrap();
    });
    assert!(
        read(overlay, 0, 2048) == pattern(2, 2048),
        "the write was lost"
    );
}

#[test]
fn a_copy_up_waits_for_who_is_inside_a_frozen_cache() {
    while_a_write_is_held(|overlay, _| {
        overlay.write(ByteOffset(2048), &pattern(3, 2048)).unwrap();
        assert!(read(overlay, 2048, 2048) == pattern(3, 2048));
    });
}

#[test]
fn a_frozen_cache_is_not_finished_while_somebody_is_inside() {
    while_a_write_is_held(|_, frozen| {
        frozen.finish().unwrap();
        assert!(frozen.is_finished());
    });
}

/// A checkpoint that comes late does not take back that the cache is whole on disk.
#[test]
fn a_finished_cache_is_whole_after_a_power_cut_whatever_comes_behind() {
    let disk = MemoryFs::new();
    let (overlay, _) = overlay(&disk.root(), 8192, vec![0; 8192]);
    overlay.write(ByteOffset(0), &pattern(1, 4096)).unwrap();
    let next = Cache::create(disk.root(), "cache-2", geometry(8192), BOOT, health());
    let frozen = overlay.freeze(Arc::new(next.unwrap())).frozen;
    frozen.finish().unwrap();
    frozen.checkpoint().unwrap();
    let after = disk.after_cut(Forget::Unsynced).root();
    let again = Cache::find(after, "cache-1", geometry(8192), [2; 16], health()).unwrap();
    assert!(again.is_whole());
}
