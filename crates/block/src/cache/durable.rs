//! Durability: flushes, the end of a frozen cache, and checkpoints (invariant 2).

use std::io;

use super::journal::Mark;
use super::{Cache, JOURNAL_BYTES, locked, place};
use crate::device::DeviceError;
use crate::planted::{Bug, planted};
use crate::sync::Ordering;

impl Cache {
    /// Makes all that has returned survive a power cut: its bytes, then its marks.
    ///
    /// # Errors
    /// [`DeviceError`]; a failed sync poisons the session.
    pub fn flush(&self) -> Result<(), DeviceError> {
        let _one = locked(&self.flushing);
        self.flush_held()
    }

    /// The same, by whoever holds `flushing`.
    fn flush_held(&self) -> Result<(), DeviceError> {
        self.health.check()?;
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let flushed = self.flush_now();
        if planted(Bug::FlushNotedLate) {
            self.unsynced.store(false, Ordering::Release);
        }
        if flushed.is_err() {
            self.unsynced.store(true, Ordering::Release);
        }
        flushed
    }

    fn flush_now(&self) -> Result<(), DeviceError> {
        // Whatever the reason: the kernel may have dropped what it could not write.
        let failed = |e: io::Error| self.health.poison(&format!("a sync failed: {e}"));
        let mut upto = locked(&self.journal).next_sequence();
        if !planted(Bug::BytesUnsynced) {
            self.file.sync().map_err(failed)?;
        }
        if planted(Bug::FlushVouchesLate) {
            upto = locked(&self.journal).next_sequence();
        }
        let file = {
            let mut journal = locked(&self.journal);
            let marked = journal.append(&Mark::Flushed(upto));
            marked.map_err(|e| self.health.judge("writing the session's journal", e))?;
            journal.file()
        };
        for older in locked(&self.unsynced_segments).drain(..) {
            older.sync().map_err(failed)?;
        }
        if planted(Bug::JournalUnsynced) {
            return Ok(());
        }
        file.sync().map_err(failed)
    }

    /// For a frozen cache: waits for its last request, makes it durable, and says so on disk, so
    /// that it counts as whole even after a power cut.
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub fn finish(&self) -> Result<(), DeviceError> {
        if !planted(Bug::FinishUndrained) {
            self.drain();
        }
        // Not beside a checkpoint: that begins a segment which knows nothing of the end.
        let _one = locked(&self.flushing);
        if self.is_finished() {
            return Ok(());
        }
        if !planted(Bug::ClosedBeforeFlush) {
            self.flush_held()?;
        }
        self.append_closed()
            .map_err(|e| self.health.judge("closing a frozen cache", e))?;
        self.closed.store(true, Ordering::Release);
        if planted(Bug::ClosedBeforeFlush) {
            self.flush_held()?;
        }
        Ok(())
    }

    pub(super) fn append_closed(&self) -> io::Result<()> {
        let mut journal = locked(&self.journal);
        journal.append(&Mark::Closed)?;
        journal.file().sync()
    }

    /// Frozen, and whole on disk?
    pub fn is_finished(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Is the journal long enough to be worth a checkpoint?
    pub fn wants_checkpoint(&self) -> bool {
        locked(&self.journal).len() > self.journal_due.load(Ordering::Relaxed)
    }

    /// Replaces the journal so far by the states as they are. Writers go on meanwhile: they append
    /// to a new segment; only flushes wait. The journal of a cache that is finished stays as it is.
    ///
    /// # Errors
    /// The file system's own; the journal is as good as before then. A failed sync poisons the session: a
    /// later one would not tell.
    pub fn checkpoint(&self) -> io::Result<()> {
        let _one = locked(&self.flushing);
        if self.is_finished() {
            return Ok(());
        }
        self.checkpoint_held()
    }

    /// The same of any cache, by whoever holds `flushing`, or has it alone.
    pub(super) fn checkpoint_held(&self) -> io::Result<()> {
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
        let failed = |e: io::Error| {
            self.health.poison(&format!("a sync failed: {e}"));
            e
        };
        if !planted(Bug::CheckpointBeforeBytes) {
            self.file.sync().map_err(failed)?;
        }
        started.sync().map_err(failed)?;
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
