//! A device in memory, with what tests need to make it misbehave.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, RwLock};

use cowslip_block::{
    BlockSize, ByteOffset, ByteRange, Device, DeviceError, Extent, Geometry, ReadSink, Room,
};

const BLOCK: usize = 4096;

/// Blocks are holes until they are written; writes make them dirty.
pub(crate) struct Ram {
    pub(crate) geometry: Geometry,
    content: RwLock<Content>,
    pub(crate) flushes: AtomicU64,
    /// While it is closed, flushes wait.
    gate: (Mutex<bool>, Condvar),
    waiting: (Mutex<u64>, Condvar),
    /// Reads that touch one of these bytes fail half way.
    pub(crate) bad_bytes: Mutex<BTreeSet<u64>>,
    /// Reads that touch one of these bytes panic.
    pub(crate) panic_bytes: Mutex<BTreeSet<u64>>,
    pub(crate) full: Mutex<bool>,
}

struct Content {
    bytes: Vec<u8>,
    present: Vec<bool>,
    dirty: Vec<bool>,
}

impl Ram {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let len = usize::try_from(size_bytes).unwrap();
        let blocks = len.div_ceil(BLOCK);
        let content = Content {
            bytes: vec![0; len],
            present: vec![false; blocks],
            dirty: vec![false; blocks],
        };
        Self {
            geometry: Geometry {
                size_bytes,
                block_size: BlockSize::DISK,
                read_only: false,
            },
            content: RwLock::new(content),
            flushes: AtomicU64::new(0),
            gate: (Mutex::new(true), Condvar::new()),
            waiting: (Mutex::new(0), Condvar::new()),
            bad_bytes: Mutex::default(),
            panic_bytes: Mutex::default(),
            full: Mutex::default(),
        }
    }

    pub(crate) fn read_only(mut self) -> Self {
        self.geometry.read_only = true;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.content.read().unwrap().bytes.clone()
    }

    pub(crate) fn set_gate(&self, open: bool) {
        *self.gate.0.lock().unwrap() = open;
        self.gate.1.notify_all();
    }

    /// Waits until so many flushes stand before the gate.
    pub(crate) fn wait_for_flushes(&self, count: u64) {
        let mut waiting = self.waiting.0.lock().unwrap();
        while *waiting < count {
            waiting = self.waiting.1.wait(waiting).unwrap();
        }
    }

    fn change_waiting(&self, change: impl FnOnce(&mut u64)) {
        change(&mut self.waiting.0.lock().unwrap());
        self.waiting.1.notify_all();
    }

    fn can_write(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.geometry.check_range(range)?;
        if *self.full.lock().unwrap() {
            Err(DeviceError::NoSpace)
        } else {
            Ok(())
        }
    }
}

fn indices(range: ByteRange) -> std::ops::Range<usize> {
    usize::try_from(range.start.0).unwrap()..usize::try_from(range.end.0).unwrap()
}

/// The range, cut at block boundaries: (block, part).
fn pieces(range: ByteRange) -> impl Iterator<Item = (usize, ByteRange)> {
    let blocks = BlockSize::DISK.blocks_touched(range);
    blocks.iter().map(move |block| {
        let whole = BlockSize::DISK.bytes_of(cowslip_block::BlockRange::one(block));
        (usize::try_from(block.0).unwrap(), whole.intersect(range))
    })
}

impl Device for Ram {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        self.geometry.check_range(range)?;
        let touches = |set: &Mutex<BTreeSet<u64>>| {
            set.lock()
                .unwrap()
                .range(range.start.0..range.end.0)
                .next()
                .is_some()
        };
        assert!(!touches(&self.panic_bytes), "as asked");
        let bad = touches(&self.bad_bytes);
        let content = self.content.read().unwrap();
        for (block, part) in pieces(range) {
            if content.present[block] {
                let from = &content.bytes[indices(part)];
                sink.data(from.len()).copy_from_slice(from);
            } else {
                sink.zeroes(part.len());
            }
            if bad {
                return Err(DeviceError::Corrupt("a bad byte".into()));
            }
        }
        Ok(())
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        let range = ByteRange::at(offset.0, data.len() as u64).unwrap();
        self.can_write(range)?;
        let mut content = self.content.write().unwrap();
        content.bytes[indices(range)].copy_from_slice(data);
        for (block, _) in pieces(range) {
            content.present[block] = true;
            content.dirty[block] = true;
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, room: Room) -> Result<(), DeviceError> {
        self.geometry.check_range(range)?;
        let mut content = self.content.write().unwrap();
        content.bytes[indices(range)].fill(0);
        for (block, part) in pieces(range) {
            let whole = part.len() == BLOCK as u64;
            content.present[block] = room == Room::Provision || (content.present[block] && !whole);
            content.dirty[block] = true;
        }
        Ok(())
    }

    fn trim(&self, range: ByteRange) -> Result<(), DeviceError> {
        let inside = BlockSize::DISK.blocks_inside(range);
        if inside.is_empty() {
            return self.geometry.check_range(range);
        }
        self.write_zeroes(BlockSize::DISK.bytes_of(inside), Room::Free)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.change_waiting(|waiting| *waiting += 1);
        let mut open = self.gate.0.lock().unwrap();
        while !*open {
            open = self.gate.1.wait(open).unwrap();
        }
        drop(open);
        self.change_waiting(|waiting| *waiting -= 1);
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        self.geometry.check_range(range)?;
        let content = self.content.read().unwrap();
        for (block, part) in pieces(range) {
            let (hole, dirty) = (!content.present[block], content.dirty[block]);
            if visit(Extent {
                len: part.len(),
                hole,
                dirty,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }
}
