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
//! - 10: no room fails the request, and nothing else; EIO poisons the session.
//! - 13: a hole is punched under the stripe, after a look that the block is still ZeroHeld.
//!
//! Locks, in the order taken: `flushing`, then stripes (by number), then `journal`, then `states`
//! (and `states` alone for a look). Under a stripe the states of its blocks stand still. Bytes
//! are written under a stripe only; nothing slower than that, and never a read from below.
//!
//! Not here: what lies below (the caller reads it), freezing (the overlay), sealing (the store).

mod journal;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use self::journal::{Journal, Mark, Place, RECORD_BLOCKS_MAX, Replay};
use crate::device::{DeviceError, Geometry, Room};
use crate::files::{Access, Dir, File};
use crate::gate::{Gate, Ticket};
use crate::health::Health;
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
    /// As found when it was opened: nothing that was acknowledged is missing.
    whole: bool,
    health: Arc<Health>,
    gate: Gate,
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

    /// Opens a cache that is there, and finds its states again. After a change of boot id, what
    /// no flush covers counts only as far as its bytes are really there.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData` naming the file where what a flush covered is damaged; or the
    /// file system's own.
    pub fn open(
        dir: Arc<dyn Dir>,
        name: &str,
        geometry: Geometry,
        boot_id: [u8; 16],
        health: Arc<Health>,
    ) -> io::Result<Self> {
        let file = dir.open(&data_name(name), Access::ReadWrite)?;
        if file.len()? != file_len(&geometry) {
            let why = format!("{} has the wrong length", data_name(name));
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let replay = place(&*dir, name, &geometry, boot_id).replay()?;
        let (states, closed) = recover(&replay, &geometry, &*file)?;
        let same_boot = replay.same_boot;
        let mut cache = Self::assemble(
            dir,
            name,
            geometry,
            boot_id,
            health,
            file,
            states,
            replay.journal,
        );
        cache.closed.store(closed, Ordering::Release);
        cache.whole = closed || same_boot;
        // What was just judged is not to be judged again, after bytes have changed.
        if !same_boot {
            cache.checkpoint()?;
            if closed {
                cache.append_closed()?;
            }
        }
        Ok(cache)
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
            whole: true,
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

    /// Reads bytes of blocks that are Dirty.
    ///
    /// # Errors
    /// The file system's own. Reads never poison.
    pub fn read_dirty(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<(), DeviceError> {
        Ok(self.file.read_at(buf, offset.0)?)
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

    // Writing.

    /// Writes `data` at `offset`, in the order: part of a block, whole blocks, part of a block.
    pub(crate) fn write(
        &self,
        offset: ByteOffset,
        data: &[u8],
        below: Below<'_>,
    ) -> Result<(), DeviceError> {
        self.health.check()?;
        let size = self.block_size();
        let (mut at, mut rest) = (offset.0, data);
        while !rest.is_empty() {
            let block = size.block_floor(ByteOffset(at));
            let block_start = size.offset_of(block).0;
            let unit = size.bytes_usize();
            let taken = if at == block_start && rest.len() >= unit {
                // Up to the end of the segment, whole blocks only.
                let segment_end = (block.0 / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS;
                let blocks = (rest.len() / unit).min(index_usize(segment_end - block.0));
                let taken = blocks * unit;
                self.write_blocks(block, &rest[..taken])?;
                taken
            } else {
                let within = index_usize(at - block_start);
                let taken = rest.len().min(unit - within);
                self.write_part(block, within, &rest[..taken], below)?;
                taken
            };
            at += taken as u64;
            rest = &rest[taken..];
        }
        self.unsynced.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes whole blocks of one segment, each run of one kind by one call.
    fn write_blocks(&self, first: BlockIndex, data: &[u8]) -> Result<(), DeviceError> {
        let unit = self.block_size().bytes_usize();
        // Scanned before the lock is taken.
        let runs = runs_by_kind(first, data, unit);
        let _stripe = locked(self.stripe(first));
        for (blocks, zero) in runs {
            if zero {
                self.mark_zero(blocks, Room::Free)?;
            } else {
                let start = index_usize(blocks.start.0 - first.0) * unit;
                let end = index_usize(blocks.end.0 - first.0) * unit;
                self.put(blocks, &data[start..end])?;
            }
        }
        Ok(())
    }

    /// Writes part of one block: reads the rest of it, from here or from below, and writes it whole.
    fn write_part(
        &self,
        block: BlockIndex,
        within: usize,
        data: &[u8],
        below: Below<'_>,
    ) -> Result<(), DeviceError> {
        let size = self.block_size();
        let one = BlockRange::one(block);
        let mut bytes = vec![0; size.bytes_usize()];
        // Read before the lock: what lies below stands still, and may be slow to come.
        if self.state_of(block) == Untouched {
            let range = size
                .bytes_of(one)
                .intersect(ByteRange::new(0, self.geometry.size_bytes));
            below(range, &mut bytes[..index_usize(range.len())])?;
        }
        let _stripe = locked(self.stripe(block));
        match self.state_of(block) {
            Untouched => {}
            Dirty => self.read_dirty(size.offset_of(block), &mut bytes)?,
            ZeroHeld | Zero => bytes.fill(0),
        }
        bytes[within..within + data.len()].copy_from_slice(data);
        if is_zero(&bytes) {
            self.mark_zero(one, Room::Free)
        } else {
            self.put(one, &bytes)
        }
    }

    /// Makes whole blocks read as zeros.
    pub(crate) fn zero_blocks(&self, blocks: BlockRange, room: Room) -> Result<(), DeviceError> {
        self.health.check()?;
        if blocks.is_empty() {
            return Ok(());
        }
        let _stripes = self.all_stripes_of(blocks);
        if room == Room::Provision {
            let bytes = self.block_size().bytes_of(blocks);
            self.file
                .allocate(bytes.start.0, bytes.len())
                .map_err(|e| self.health.judge("reserving room in the cache file", e))?;
        }
        self.mark_zero(blocks, room)?;
        self.unsynced.store(true, Ordering::Release);
        Ok(())
    }

    /// Puts the bytes of whole blocks in the file, and marks them. Under their stripe.
    fn put(&self, blocks: BlockRange, bytes: &[u8]) -> Result<(), DeviceError> {
        let size = self.block_size();
        let put = self
            .file
            .write_at(bytes, size.offset_of(blocks.start).0)
            .map_err(|e| self.health.judge("writing the cache file", e))
            .and_then(|()| self.mark_dirty(blocks, bytes));
        if put.is_err() {
            self.give_back(blocks);
        }
        put
    }

    fn mark_dirty(&self, blocks: BlockRange, bytes: &[u8]) -> Result<(), DeviceError> {
        if self.run_at(blocks.start, blocks.end) == (Dirty, blocks.end) {
            return Ok(());
        }
        let crcs = bytes
            .chunks(self.block_size().bytes_usize())
            .map(crc32c::crc32c)
            .collect();
        self.mark(&Mark::Dirty(blocks, crcs))
    }

    fn mark_zero(&self, blocks: BlockRange, room: Room) -> Result<(), DeviceError> {
        let (state, end) = self.run_at(blocks.start, blocks.end);
        match room {
            // Nothing changes.
            Room::Free if end == blocks.end && matches!(state, Zero | ZeroHeld) => return Ok(()),
            Room::Free => self.mark(&Mark::Zero(blocks))?,
            Room::Provision => self.mark(&Mark::Provisioned(blocks))?,
        }
        // Only a state that was Dirty leaves bytes to punch; asking the tracker costs more.
        if (state, end) != (Untouched, blocks.end) {
            self.health.ring();
        }
        Ok(())
    }

    /// Record, then state, as one step: the journal and the tracker change in the same order.
    fn mark(&self, mark: &Mark) -> Result<(), DeviceError> {
        let mut journal = locked(&self.journal);
        journal
            .append(mark)
            .map_err(|e| self.health.judge("writing the session's journal", e))?;
        if journal.len() > self.journal_due.load(Ordering::Relaxed) {
            self.health.ring();
        }
        let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
        apply(&mut states, mark);
        Ok(())
    }

    /// After a failed write: room that no state speaks of goes back.
    fn give_back(&self, blocks: BlockRange) {
        let size = self.block_size();
        for (run, state) in self.export().runs(blocks) {
            if state != Dirty {
                let bytes = size.bytes_of(run);
                // The write has failed already, and its own reason is the one to tell.
                drop(self.file.punch(bytes.start.0, bytes.len()));
            }
        }
    }

    fn stripe(&self, block: BlockIndex) -> &Mutex<()> {
        &self.stripes[index_usize(block.0 / SEGMENT_BLOCKS % STRIPES as u64)]
    }

    fn all_stripes_of(&self, blocks: BlockRange) -> Vec<MutexGuard<'_, ()>> {
        let first = blocks.start.0 / SEGMENT_BLOCKS;
        let last = blocks
            .end
            .0
            .div_ceil(SEGMENT_BLOCKS)
            .min(first + STRIPES as u64);
        let mut numbers: Vec<u64> = (first..last).map(|s| s % STRIPES as u64).collect();
        numbers.sort_unstable();
        numbers
            .into_iter()
            .map(|n| locked(&self.stripes[index_usize(n)]))
            .collect()
    }

    // Durability.

    /// Makes all that has returned survive a power cut: its bytes, then its marks.
    ///
    /// # Errors
    /// [`DeviceError`]; a failed sync poisons the session.
    pub fn flush(&self) -> Result<(), DeviceError> {
        let _one = locked(&self.flushing);
        self.health.check()?;
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let flushed = self.flush_now();
        if flushed.is_err() {
            self.unsynced.store(true, Ordering::Release);
        }
        flushed
    }

    fn flush_now(&self) -> Result<(), DeviceError> {
        // Whatever the reason: the kernel may have dropped what it could not write.
        let failed = |e: io::Error| self.health.poison(&format!("a sync failed: {e}"));
        let upto = locked(&self.journal).next_sequence();
        self.file.sync().map_err(failed)?;
        let file = {
            let mut journal = locked(&self.journal);
            let marked = journal.append(&Mark::Flushed(upto));
            marked.map_err(|e| self.health.judge("writing the session's journal", e))?;
            journal.file()
        };
        for older in locked(&self.unsynced_segments).drain(..) {
            older.sync().map_err(failed)?;
        }
        file.sync().map_err(failed)
    }

    /// For a frozen cache: waits for its last request, makes it durable, and says so on disk, so
    /// that it counts as whole even after a power cut.
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub fn finish(&self) -> Result<(), DeviceError> {
        self.drain();
        if self.is_finished() {
            return Ok(());
        }
        self.flush()?;
        self.append_closed()
            .map_err(|e| self.health.judge("closing a frozen cache", e))?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    fn append_closed(&self) -> io::Result<()> {
        let mut journal = locked(&self.journal);
        journal.append(&Mark::Closed)?;
        journal.file().sync()
    }

    /// Frozen, and whole on disk?
    pub fn is_finished(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Did it hold all that had been acknowledged when it was opened? After a power cut only a
    /// cache that was finished does for certain.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    // Behind the requests. The session calls these when the bell rings.

    /// Gives back the room of some of the blocks that were zeroed; true where more are waiting.
    ///
    /// # Errors
    /// The file system's own; the blocks stay ZeroHeld.
    pub fn punch_some(&self) -> io::Result<bool> {
        const RUNS: usize = 64;
        let states = self.export();
        let held = states.blocks_in(ZeroHeld).expect(TRACKED);
        let waiting: Vec<BlockRange> = held.take(RUNS + 1).collect();
        for run in waiting.iter().take(RUNS) {
            let mut at = run.start.0;
            while at < run.end.0 {
                let end = run.end.0.min((at / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS);
                self.punch_segment(BlockRange::new(at, end))?;
                at = end;
            }
        }
        Ok(waiting.len() > RUNS)
    }

    /// Within one segment: what is still ZeroHeld becomes a hole (invariant 13).
    fn punch_segment(&self, blocks: BlockRange) -> io::Result<()> {
        let _stripe = locked(self.stripe(blocks.start));
        let still: Vec<_> = self
            .states()
            .runs(blocks)
            .filter(|(_, s)| *s == ZeroHeld)
            .map(|(b, _)| b)
            .collect();
        for run in still {
            let bytes = self.block_size().bytes_of(run);
            self.file.punch(bytes.start.0, bytes.len())?;
            let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
            states.set_range(run, Zero).expect(TRACKED);
        }
        Ok(())
    }

    /// Is the journal long enough to be worth a checkpoint?
    pub fn wants_checkpoint(&self) -> bool {
        locked(&self.journal).len() > self.journal_due.load(Ordering::Relaxed)
    }

    /// Replaces the journal so far by the states as they are. Writers go on meanwhile: they append
    /// to a new segment; only flushes wait.
    ///
    /// # Errors
    /// The file system's own; the journal is as good as before then.
    pub fn checkpoint(&self) -> io::Result<()> {
        let _one = locked(&self.flushing);
        let place = place(&*self.dir, &self.name, &self.geometry, self.boot_id);
        let segment = locked(&self.journal).segment() + 1;
        let prepared = place.prepare(segment)?;
        let (states, next, started) = {
            let mut journal = locked(&self.journal);
            let next = journal.next_sequence();
            let new = prepared.start(&place, next)?;
            let started = new.file();
            let old = std::mem::replace(&mut *journal, new);
            locked(&self.unsynced_segments).push(old.file());
            (self.export(), next, started)
        };
        self.file.sync()?;
        started.sync()?;
        let encoded = states.encode();
        place.write_state(segment, next, &encoded)?;
        locked(&self.unsynced_segments).clear();
        self.journal_due.store(
            JOURNAL_BYTES.max(encoded.len() as u64 * 8),
            Ordering::Relaxed,
        );
        place.remove_before(segment)
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

/// The states that a journal speaks of, and whether the cache was closed.
fn recover(
    replay: &Replay,
    geometry: &Geometry,
    file: &dyn File,
) -> io::Result<(StateTracker<BlockState>, bool)> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut states = new_tracker(geometry);
    let all = BlockRange::new(0, states.count_blocks().0);
    if let Some(bytes) = &replay.states {
        states = StateTracker::decode(
            bytes,
            states.count_blocks(),
            Untouched,
            &[Dirty, ZeroHeld, Zero],
        )
        .map_err(|e| invalid(format!("a checkpoint does not decode: {e}")))?;
    }
    let mut closed = false;
    for (mark, flushed) in &replay.marks {
        if let Mark::Dirty(blocks, _) | Mark::Zero(blocks) | Mark::Provisioned(blocks) = mark
            && blocks.intersect(all) != *blocks
        {
            return Err(invalid(format!(
                "the journal speaks of {blocks:?}, past the end"
            )));
        }
        match mark {
            Mark::Dirty(blocks, crcs) if !flushed && !replay.same_boot => {
                apply_what_is_there(&mut states, *blocks, crcs, geometry.block_size, file)?;
            }
            mark => apply(&mut states, mark),
        }
        closed = *mark == Mark::Closed;
    }
    Ok((states, closed))
}

/// Invariant 2, after a power cut: a mark without its bytes does not count.
fn apply_what_is_there(
    states: &mut StateTracker<BlockState>,
    blocks: BlockRange,
    crcs: &[u32],
    size: BlockSize,
    file: &dyn File,
) -> io::Result<()> {
    let mut bytes = vec![0; size.bytes_usize()];
    for (block, crc) in blocks.iter().zip(crcs) {
        file.read_at(&mut bytes, size.offset_of(block).0)?;
        if crc32c::crc32c(&bytes) == *crc {
            states
                .set_range(BlockRange::one(block), Dirty)
                .expect(TRACKED);
        }
    }
    Ok(())
}

/// The runs of zero and of other blocks in whole blocks of data.
fn runs_by_kind(first: BlockIndex, data: &[u8], unit: usize) -> Vec<(BlockRange, bool)> {
    let mut runs: Vec<(BlockRange, bool)> = Vec::with_capacity(1);
    for (block, bytes) in (first.0..).zip(data.chunks(unit)) {
        let zero = is_zero(bytes);
        match runs.last_mut() {
            Some((run, kind)) if *kind == zero => run.end = BlockIndex(block + 1),
            _ => runs.push((BlockRange::one(BlockIndex(block)), zero)),
        }
    }
    runs
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

/// Whole blocks: the last block of an image of any size has room for all of it.
fn file_len(geometry: &Geometry) -> u64 {
    let size = geometry.block_size;
    size.bytes_in(size.count_ceil(geometry.size_bytes))
}

fn index_usize(n: u64) -> usize {
    usize::try_from(n).expect("within a buffer in memory, so it fits")
}
