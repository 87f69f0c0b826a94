//! Writing: bytes, then record, then state (invariant 1), under the stripe of the blocks.

use super::BlockState::{Dirty, Untouched, Zero, ZeroHeld};
use super::journal::Mark;
use super::{Below, Cache, SEGMENT_BLOCKS, STRIPES, apply, index_usize, locked};
use crate::device::{DeviceError, Room};
use crate::planted::{Bug, planted};
use crate::sync::{Mutex, MutexGuard, Ordering, PoisonError};
use crate::units::{BlockIndex, BlockRange, ByteOffset, ByteRange};
use crate::zero::is_zero;

impl Cache {
    /// Writes `data` at `offset`, in the order: part of a block, whole blocks, part of a block.
    pub(crate) fn write(
        &self,
        offset: ByteOffset,
        data: &[u8],
        below: Below<'_>,
    ) -> Result<(), DeviceError> {
        self.health.check()?;
        let written = self.write_parts(offset, data, below);
        // Also where it failed: a part of it may be there, and be read, and the next flush covers what is read.
        self.unsynced.store(true, Ordering::Release);
        written
    }

    fn write_parts(
        &self,
        offset: ByteOffset,
        data: &[u8],
        below: Below<'_>,
    ) -> Result<(), DeviceError> {
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
        if planted(Bug::PartBeforeLock) {
            self.read_rest(block, &mut bytes)?;
        }
        let _stripe = locked(self.stripe(block));
        if !planted(Bug::PartBeforeLock) {
            self.read_rest(block, &mut bytes)?;
        }
        bytes[within..within + data.len()].copy_from_slice(data);
        if is_zero(&bytes) {
            self.mark_zero(one, Room::Free)
        } else {
            self.put(one, &bytes)
        }
    }

    /// A block as it is here. Where it is Untouched, what was read from below stays.
    fn read_rest(&self, block: BlockIndex, bytes: &mut [u8]) -> Result<(), DeviceError> {
        match self.state_of(block) {
            Untouched => {}
            Dirty => self.read_block(block, bytes)?,
            ZeroHeld if planted(Bug::StaleUnderZero) => self.read_block(block, bytes)?,
            ZeroHeld | Zero => bytes.fill(0),
        }
        Ok(())
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
        if planted(Bug::MarkBeforeBytes) {
            self.mark_dirty(blocks, bytes)?;
        }
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

    pub(super) fn stripe(&self, block: BlockIndex) -> &Mutex<()> {
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
