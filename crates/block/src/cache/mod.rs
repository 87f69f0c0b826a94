//! [`Cache`]: the writable layer. A sparse file with the bytes, a tracker with the state of each
//! block, a journal that lets both be found again.
//!
//! | state     | file                     | read          | write        | zero, trim    |
//! |-----------|--------------------------|---------------|--------------|---------------|
//! | Untouched | hole, or bytes of a failed write | what lies below | -> Dirty | -> Zero  |
//! | Dirty     | the block's bytes        | the file      | in place     | -> ZeroHeld   |
//! | ZeroHeld  | stale bytes, to be punched | zeros       | -> Dirty     | stays         |
//! | Zero      | hole, or provisioned room  | zeros       | -> Dirty     | stays         |
//!
//! A write that is all zeros in a block counts as zero there, whoever sent it. No state ever goes
//! back to Untouched. A block's bytes are always written whole (a partial write reads the rest
//! first), so what lies in the file under any other state than Dirty never shows.
//!
//! Invariants (numbers of ARCHITECTURE.md):
//! - 1: bytes, then record in the journal, then state, then return.
//! - 2: [`Cache::flush`] makes all that has returned survive a power cut.
//! - 3: partial blocks are read-modify-write under the block's stripe: two writers of two halves of a
//!   block both stay.
//! - 10: no room fails the request, and nothing else; EIO poisons the session. What a disk that failed lost is not shown as zeros.
//! - 13: a hole is punched under the stripe, after a look that the block is still ZeroHeld.
//!
//! Locks, in the order taken: `flushing`, then stripes (by number), then `journal`, then `states`
//! (and `states` alone for a look). Under a stripe the states of its blocks stand still. Bytes
//! are written under a stripe only; nothing slower than that, and never a read from below.
//!
//! Here: making, opening, looking. `write.rs`: writing. `durable.rs`: flushes and checkpoints.
//! `holes.rs`: giving room back. `journal/`: the record of states; `recover.rs`: what it says. Not here:
//! what lies below (the caller reads it), freezing (the overlay), sealing (the store).

mod durable;
mod holes;
mod journal;
mod recover;
mod write;

use std::io;

use self::journal::{Journal, Mark, Place, RECORD_BLOCKS_MAX};
use self::recover::recover;
use crate::device::{DeviceError, Geometry};
use crate::files::{Access, Dir, File};
use crate::gate::{Gate, Ticket};
use crate::health::Health;
use crate::planted::{Bug, planted};
use crate::sync::{
    Arc, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, RwLock, RwLockReadGuard,
};
use crate::tracker::StateTracker;
use crate::units::{BlockCount, BlockIndex, BlockRange, BlockSize, ByteOffset, ByteRange};
use crate::zero::is_zero;

/// The state of one block of a cache; see the table on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Never written here.
    Untouched,
    /// Its bytes are in the file.
    Dirty,
    /// Reads as zeros; the file still holds room that is to be given back.
    ZeroHeld,
    /// Reads as zeros.
    Zero,
}

use BlockState::{Dirty, Untouched, Zero, ZeroHeld};

/// Blocks that share a lock stand together in segments of so many, and a write is cut there: 256
/// KiB of a disk, so a lock is held for tens of microseconds.
const SEGMENT_BLOCKS: u64 = RECORD_BLOCKS_MAX;
const STRIPES: usize = 64;
/// A journal longer than this, and than eight times its checkpoint, is replaced by a checkpoint.
const JOURNAL_BYTES: u64 = 4 << 20;

/// A writable layer.
#[derive(Debug)]
pub struct Cache {
    name: String,
    dir: Arc<dyn Dir>,
    geometry: Geometry,
    boot_id: [u8; 16],
    file: Arc<dyn File>,
    states: RwLock<StateTracker<BlockState>>,
    journal: Mutex<Journal>,
    /// Older segments that a failed checkpoint left, and that a flush has to sync as well.
    unsynced_segments: Mutex<Vec<Arc<dyn File>>>,
    /// Length at which the journal is worth a checkpoint.
    journal_due: AtomicU64,
    stripes: Box<[Mutex<()>]>,
    /// One flush, or one checkpoint, at a time.
    flushing: Mutex<()>,
    /// Something returned since the last flush began.
    unsynced: AtomicBool,
    closed: AtomicBool,
    health: Arc<Health>,
    gate: Gate,
}

/// A cache as it was found: judged, and not changed yet.
pub struct Found {
    cache: Cache,
    same_boot: bool,
    lost: bool,
}

impl Found {
    /// Does it hold all that had been acknowledged? After a power cut only a cache that was finished does
    /// for certain.
    pub fn is_whole(&self) -> bool {
        self.same_boot || self.cache.is_finished()
    }

    /// Makes it one that can be used. What was judged is not to be judged again, after bytes have changed: from
    /// here on this is the boot that wrote it, and a cache that was not whole looks as if it were. So whatever
    /// follows from [`Found::is_whole`] is durable before this is called.
    ///
    /// # Errors
    /// The file system's own.
    pub fn settle(self) -> io::Result<Cache> {
        if !self.same_boot {
            self.cache.checkpoint_held()?;
            if self.cache.is_finished() {
                self.cache.append_closed()?;
            }
        }
        Ok(self.cache)
    }
}

/// How a partial write gets at the bytes below: fills the buffer with the bytes of the range.
pub(crate) type Below<'a> = &'a dyn Fn(ByteRange, &mut [u8]) -> Result<(), DeviceError>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a request must not take the device from the others; what the locks protect is
    // changed in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// Makes a new, empty cache of this name in `dir`; durable when this returns.
    ///
    /// # Errors
    /// The file system's own; nothing is left behind then.
    pub fn create(
        dir: Arc<dyn Dir>,
        name: &str,
        geometry: Geometry,
        boot_id: [u8; 16],
        health: Arc<Health>,
    ) -> io::Result<Self> {
        let data = data_name(name);
        let file = dir.create(&data)?;
        let fill = || {
            file.set_len(file_len(&geometry))?;
            file.sync()?;
            place(&*dir, name, &geometry, boot_id).create()
        };
        let journal = fill().inspect_err(|_| drop(dir.remove(&data)))?;
        let states = new_tracker(&geometry);
        Ok(Self::assemble(
            dir, name, geometry, boot_id, health, file, states, journal,
        ))
    }

    /// Finds a cache that is there, and its states, and changes nothing. After a change of boot id, what
    /// no flush covers counts only as far as its bytes are really there; and so it does where a dirty block
    /// turns out to be lost, which is how a disk that failed looks when it was mounted again.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData` naming the file where what a flush covered is damaged; or the
    /// file system's own.
    pub fn find(
        dir: Arc<dyn Dir>,
        name: &str,
        geometry: Geometry,
        boot_id: [u8; 16],
        health: Arc<Health>,
    ) -> io::Result<Found> {
        let again = (Arc::clone(&dir), Arc::clone(&health));
        let found = Self::find_as(dir, name, geometry, boot_id, health, false)?;
        if found.same_boot && found.lost {
            let (dir, health) = again;
            return Self::find_after_failure(dir, name, geometry, boot_id, health);
        }
        if found.same_boot && !found.cache.is_finished() {
            found.cache.write_again()?;
        }
        Ok(found)
    }

    /// Whoever had it was killed. What could not be written meanwhile, the kernel has told that one, or will tell nobody: a flush of ours would succeed, and
    /// cover nothing.
    fn write_again(&self) -> io::Result<()> {
        let states = self.export();
        let dirty = states.blocks_in(Dirty).expect(TRACKED);
        let ranges = dirty.into_iter().map(|run| self.block_size().bytes_of(run));
        self.file
            .write_again(&mut ranges.map(|bytes| (bytes.start.0, bytes.end.0)))?;
        for name in files_of(&*self.dir, &self.name)? {
            if name != data_name(&self.name) {
                let file = self.dir.open(&name, Access::ReadWrite)?;
                file.write_again(&mut std::iter::once((0, file.len()?)))?;
            }
        }
        Ok(())
    }

    /// The same after the disk failed, which is as after a change of boot id, but that the kernel may
    /// remember, as if it were on the disk, what never came there.
    ///
    /// # Errors
    /// As [`Cache::find`].
    pub fn find_after_failure(
        dir: Arc<dyn Dir>,
        name: &str,
        geometry: Geometry,
        boot_id: [u8; 16],
        health: Arc<Health>,
    ) -> io::Result<Found> {
        for file in files_of(&*dir, name)? {
            dir.open(&file, Access::ReadWrite)?.reread()?;
        }
        Self::find_as(dir, name, geometry, boot_id, health, true)
    }

    fn find_as(
        dir: Arc<dyn Dir>,
        name: &str,
        geometry: Geometry,
        boot_id: [u8; 16],
        health: Arc<Health>,
        after_failure: bool,
    ) -> io::Result<Found> {
        let file = dir.open(&data_name(name), Access::ReadWrite)?;
        if file.len()? != file_len(&geometry) {
            let why = format!("{} has the wrong length", data_name(name));
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut replay = place(&*dir, name, &geometry, boot_id).replay()?;
        replay.same_boot &= !after_failure;
        let recovered = recover(&replay, &geometry, &*file)?;
        let same_boot = replay.same_boot;
        let cache = Self::assemble(
            dir,
            name,
            geometry,
            boot_id,
            health,
            file,
            recovered.states,
            replay.journal,
        );
        cache.closed.store(recovered.closed, Ordering::Release);
        if !planted(Bug::SegmentForgotten) {
            *locked(&cache.unsynced_segments) = replay.older;
        }
        Ok(Found {
            cache,
            same_boot,
            lost: recovered.lost,
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields, from two constructors"
    )]
    fn assemble(
        dir: Arc<dyn Dir>,
        name: &str,
        geometry: Geometry,
        boot_id: [u8; 16],
        health: Arc<Health>,
        file: Arc<dyn File>,
        states: StateTracker<BlockState>,
        journal: Journal,
    ) -> Self {
        Self {
            name: name.to_owned(),
            dir,
            geometry,
            boot_id,
            file,
            states: RwLock::new(states),
            journal: Mutex::new(journal),
            unsynced_segments: Mutex::default(),
            journal_due: AtomicU64::new(JOURNAL_BYTES),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            flushing: Mutex::new(()),
            unsynced: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            health,
            gate: Gate::default(),
        }
    }

    /// Its name, the stem of its files' names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the files of the cache `name`. What has them open goes on reading.
    ///
    /// # Errors
    /// The file system's own; a file that is not there is none.
    pub fn remove(dir: &dyn Dir, name: &str, block_size: BlockSize) -> io::Result<()> {
        let place = Place {
            dir,
            cache: name,
            block_size,
            boot_id: [0; 16],
        };
        place.remove_all()?;
        match dir.remove(&data_name(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    // Looking.

    fn states(&self) -> RwLockReadGuard<'_, StateTracker<BlockState>> {
        self.states.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn block_size(&self) -> BlockSize {
        self.geometry.block_size
    }

    /// A copy of all states as they are now; costs nothing, whatever the size of the device.
    pub fn export(&self) -> StateTracker<BlockState> {
        self.states().clone()
    }

    /// How many blocks are in a state.
    pub fn count(&self, state: BlockState) -> BlockCount {
        self.export().count(state).expect(TRACKED)
    }

    fn state_of(&self, block: BlockIndex) -> BlockState {
        self.states().get(block).expect(TRACKED)
    }

    /// The state of `start` and of how many blocks after it, up to `end`.
    pub(crate) fn run_at(&self, start: BlockIndex, end: BlockIndex) -> (BlockState, BlockIndex) {
        self.states().run_at(start, end)
    }

    /// Reads bytes of blocks that are Dirty. None of them is room that was never written: one that is was lost by a disk that failed, and that
    /// may not have said so yet.
    ///
    /// # Errors
    /// The file system's own, which do not poison; a block that was lost does.
    pub fn read_dirty(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.file.read_at(buf, offset.0)?;
        let size = self.block_size();
        let (mut at, mut rest) = (offset.0, &*buf);
        while !rest.is_empty() {
            let block = size.block_floor(ByteOffset(at));
            let end = size.bytes_of(BlockRange::one(block)).end.0;
            let (piece, after) = rest.split_at(rest.len().min(index_usize(end - at)));
            if is_zero(piece) {
                self.check_there(block)?;
            }
            (at, rest) = (end, after);
        }
        Ok(())
    }

    /// Part of a block read as zeros while it was Dirty: the rest of it may not, it may have been zeroed meanwhile, or it was lost.
    fn check_there(&self, block: BlockIndex) -> Result<(), DeviceError> {
        let _stripe = locked(self.stripe(block));
        match self.state_of(block) {
            Dirty => self.read_block(block, &mut vec![0; self.block_size().bytes_usize()]),
            Untouched | Zero | ZeroHeld => Ok(()),
        }
    }

    /// Reads a block that is Dirty, under its stripe.
    fn read_block(&self, block: BlockIndex, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let at = self.block_size().offset_of(block).0;
        self.file.read_at(bytes, at)?;
        let is_hole = |data: Vec<(u64, u64)>| {
            let first = data.first();
            first.is_none_or(|(start, _)| *start >= at + bytes.len() as u64)
        };
        if is_zero(bytes) && is_hole(self.file.next_written(at)?) {
            let what = format!("the disk lost what was written to it: block {}", block.0);
            return Err(self.health.poison(&what));
        }
        Ok(())
    }

    /// The room that the bytes take, and that the journal takes, in bytes.
    ///
    /// # Errors
    /// The file system's own.
    pub fn room(&self) -> io::Result<(u64, u64)> {
        Ok((self.file.allocated_bytes()?, locked(&self.journal).len()))
    }

    // Entering and leaving: see the overlay.

    pub(crate) fn enter(&self) -> Option<Ticket<'_>> {
        self.gate.enter()
    }

    pub(crate) fn close_gate(&self) {
        self.gate.close();
    }

    /// Waits until the last request in a frozen cache is done.
    pub fn drain(&self) {
        self.gate.drain();
    }
}

const TRACKED: &str = "the four states are tracked, and the range was checked at the door";

fn new_tracker(geometry: &Geometry) -> StateTracker<BlockState> {
    let blocks = geometry.block_size.count_ceil(geometry.size_bytes);
    StateTracker::new(blocks, Untouched, &[Dirty, ZeroHeld, Zero]).expect("four different states")
}

fn apply(states: &mut StateTracker<BlockState>, mark: &Mark) {
    match mark {
        Mark::Dirty(blocks, _) => states.set_range(*blocks, Dirty).expect(TRACKED),
        Mark::Zero(blocks) => {
            states.replace(*blocks, Dirty, ZeroHeld).expect(TRACKED);
            states.replace(*blocks, Untouched, Zero).expect(TRACKED);
        }
        Mark::Provisioned(blocks) => states.set_range(*blocks, Zero).expect(TRACKED),
        Mark::Flushed(_) | Mark::Closed => {}
    }
}

fn place<'a>(
    dir: &'a dyn Dir,
    cache: &'a str,
    geometry: &Geometry,
    boot_id: [u8; 16],
) -> Place<'a> {
    Place {
        dir,
        cache,
        block_size: geometry.block_size,
        boot_id,
    }
}

fn data_name(name: &str) -> String {
    format!("{name}.data")
}

/// All that are a cache's: its data, and its journal's segments.
fn files_of(dir: &dyn Dir, name: &str) -> io::Result<impl Iterator<Item = String>> {
    let is_its = move |file: &String| {
        let stem = file.split_once('.').map(|(stem, _)| stem);
        stem == Some(name)
    };
    Ok(dir.list()?.into_iter().filter(is_its))
}

/// Whole blocks: the last block of an image of any size has room for all of it.
fn file_len(geometry: &Geometry) -> u64 {
    let size = geometry.block_size;
    size.bytes_in(size.count_ceil(geometry.size_bytes))
}

fn index_usize(n: u64) -> usize {
    usize::try_from(n).expect("within a buffer in memory, so it fits")
}
