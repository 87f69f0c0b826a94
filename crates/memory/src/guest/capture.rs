//! What a guest wrote since the last snapshot, copied out of its memory as it is at one moment.
//!
//! ```text
//! guest paused   harvest   what is dirty is known, and protected again                as long as that takes
//! goes on, if its writes are told (Tracking::Sync); else it stays paused              (of one that runs all along: rounds.rs)
//!                copy      run by run into a file, a page that it wants to write first of all
//!                finish    all is there; or it is not to be: then it counts as dirty again
//! ```
//!
//! Rules:
//! 1. A page that is still to be copied is protected: whoever writes it stops, it is copied, and only then it goes on.
//! 2. What was read of a page counts only if nobody else has copied it meanwhile: after that it may have been written.
//! 3. A page that is given back before it was copied is lost, and the capture with it: the guest is not held up for it.
//!
//! The file is as long as the memory, with holes where nothing was written, or the guest gave it back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::*;
use crate::process::Process;

/// Addresses that are being given back are so for as long as one read of events takes.
const HARVEST_WITHIN: Duration = Duration::from_secs(5);
/// Read at a time, at least a page.
const BATCH_BYTES: u64 = 256 << 10;

/// What was dirty at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// Pages that may have been written: they are to be copied.
    pub dirty: Vec<BlockRange>,
    /// Pages that read as zeros, whatever the image has.
    pub zeros: Vec<BlockRange>,
}

impl Harvest {
    /// More of them, none of which is there.
    fn add_dirty(&mut self, more: Vec<BlockRange>) {
        match self.dirty.is_empty() {
            true => self.dirty = more,
            false => {
                self.dirty.extend(more);
                self.dirty.sort_unstable_by_key(|run| run.start);
            }
        }
    }

    /// All of them, in order, in blocks of so many to a page.
    pub fn changed(&self, blocks_per_page: u64) -> Vec<BlockRange> {
        let scaled = |run: &BlockRange| {
            BlockRange::new(run.start.0 * blocks_per_page, run.end.0 * blocks_per_page)
        };
        let mut all: Vec<_> = self.dirty.iter().chain(&self.zeros).map(scaled).collect();
        all.sort_unstable_by_key(|run| run.start);
        all
    }
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The guest gave memory back that was not copied yet.
    #[error("the guest gave memory back while it was being copied; pause it, or try again")]
    GivenBack,
    /// Its memory could not be read, or the file not be written.
    #[error("copying the guest's memory")]
    Io(#[from] io::Error),
    /// The guest cannot be served any further.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A capture that goes on.
#[derive(Debug)]
pub(super) struct Copying {
    to: File,
    pending: Pending,
    failed: Option<CaptureError>,
}

/// Pages that are still to be copied: a bit for each page of the memory, so that a pause does not depend on how many they are.
#[derive(Debug)]
struct Pending(Vec<u64>);

impl Pending {
    /// These, of so many pages.
    fn new(runs: &[BlockRange], pages: u64) -> Self {
        let mut pending = Self(vec![0; index(pages.div_ceil(64))]);
        for run in runs {
            for page in run.iter() {
                *pending.word(page) |= Self::bit(page);
            }
        }
        pending
    }

    fn word(&mut self, page: BlockIndex) -> &mut u64 {
        &mut self.0[index(page.0 / 64)]
    }

    fn bit(page: BlockIndex) -> u64 {
        1 << (page.0 % 64)
    }

    fn contains(&self, page: BlockIndex) -> bool {
        self.0[index(page.0 / 64)] & Self::bit(page) != 0
    }

    /// Was it there?
    fn remove(&mut self, page: BlockIndex) -> bool {
        let was = self.contains(page);
        *self.word(page) &= !Self::bit(page);
        was
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

impl Copying {
    /// Writes pages that follow each other; nothing where there is none.
    fn write(&self, pages: BlockRange, bytes: &[u8]) -> io::Result<()> {
        match pages.is_empty() {
            true => Ok(()),
            false => {
                let page = bytes.len() as u64 / pages.count().0;
                self.to.write_all_at(bytes, pages.start.0 * page)
            }
        }
    }

    fn fail(&mut self, why: CaptureError) {
        self.pending.clear();
        self.failed.get_or_insert(why);
    }

    /// These are about to be given back.
    pub(super) fn given_back(&mut self, gone: BlockRange) {
        if gone.iter().any(|page| self.pending.contains(page)) {
            self.fail(CaptureError::GivenBack);
        }
    }
}

impl Guest {
    /// Takes what was written since the last harvest, to be copied into this file, over what is there. It is as it was at one moment if the guest is paused: until this
    /// returns where its writes are told of, and until it is copied where the kernel notes them. Of one that runs, what it writes meanwhile is in this one or the
    /// next.
    ///
    /// # Errors
    /// [`CaptureError`]; nothing was taken then.
    pub fn harvest(&self, process: &Process, to: &File) -> Result<Harvest, CaptureError> {
        to.set_len(self.regions.pages().end.0 * self.page_bytes())?;
        let give_up = Instant::now() + HARVEST_WITHIN;
        loop {
            match self.try_harvest(process, to) {
                // Addresses are being given back: once their event is read.
                Err(GuestError::Kernel {
                    why: Errno::AGAIN, ..
                }) if Instant::now() < give_up => std::thread::yield_now(),
                other => return Ok(other?),
            }
        }
    }

    fn try_harvest(&self, process: &Process, to: &File) -> Result<Harvest, GuestError> {
        // Nothing is put in place meanwhile, and no protection lifted.
        let alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut pages = self.locked();
        if pages.is_let_go {
            return Err(GuestError::Abandoned);
        }
        let all = self.regions.pages();
        let to = to.try_clone().map_err(|e| {
            kernel("a descriptor more")(Errno::from_io_error(&e).unwrap_or(Errno::MFILE))
        })?;
        // The last step that may fail: what the kernel told is told once.
        let written = match self.tracking {
            Tracking::Async => self.take_written(process, &mut pages)?,
            Tracking::Sync | Tracking::None => Vec::new(),
        };
        let mut harvest = pages.harvest(self.tracking);
        match self.tracking {
            Tracking::Sync => self.protect_all(&harvest.dirty)?,
            Tracking::Async => harvest.add_dirty(written),
            Tracking::None => {}
        }
        if self.tracking != Tracking::None {
            pages.replace(all, PageState::Dirty, PageEvent::Harvested);
        }
        *self.copying() = Some(Copying {
            to,
            pending: Pending::new(&harvest.dirty, all.end.0),
            failed: None,
        });
        drop((pages, alone));
        Ok(harvest)
    }

    /// Copies what was harvested.
    ///
    /// # Errors
    /// [`CaptureError`]: what was harvested is lost, see [`Self::lose`].
    pub fn copy(&self, process: &Process, harvest: &Harvest) -> Result<(), CaptureError> {
        let batch = (BATCH_BYTES / self.page_bytes()).max(1);
        let mut bytes = Vec::new();
        for run in &harvest.dirty {
            for start in (run.start.0..run.end.0).step_by(index(batch)) {
                let pages = BlockRange::new(start, run.end.0.min(start + batch));
                for (part, addresses) in self.regions.addresses_of(pages) {
                    if !self.copy_some(process, (part, addresses.start), &mut bytes) {
                        return self.finish();
                    }
                }
            }
        }
        self.finish()
    }

    /// Pages that follow each other, and so do their addresses. Does the capture go on?
    fn copy_some(
        &self,
        process: &Process,
        (pages, at): (BlockRange, u64),
        bytes: &mut Vec<u8>,
    ) -> bool {
        let page = self.page_bytes();
        bytes.resize(index(pages.count().0 * page), 0);
        let mut read = process.read(at, bytes);
        if read.is_err() {
            // What was given back is gone before its event is acted on: whoever is at that says so first.
            drop(self.gate.read().unwrap_or_else(PoisonError::into_inner));
            if pages.count().0 > 1 {
                // One that was copied first and given back then is nothing to the others.
                let mut each = pages.iter().zip((at..).step_by(index(page)));
                return each
                    .all(|(one, at)| self.copy_some(process, (BlockRange::one(one), at), bytes));
            }
            // What the kernel dropped and told nobody of is zeros (`page.rs`, 2 and 3): as for a thread of the guest.
            if self.serve(pages.start, PageEvent::ReadFault).is_ok() {
                read = process.read(at, bytes);
            }
        }
        self.keep(pages, bytes, read)
    }

    /// Of pages that were read, keeps those that nobody else has copied meanwhile. Does the capture go on?
    fn keep(&self, pages: BlockRange, bytes: &[u8], read: io::Result<()>) -> bool {
        let mut copying = self.copying();
        let Some(copying) = copying.as_mut().filter(|copying| copying.failed.is_none()) else {
            return false;
        };
        let page = index(self.page_bytes());
        let mut runs: Vec<BlockRange> = Vec::new();
        for block in pages.iter().filter(|block| copying.pending.remove(*block)) {
            match runs.last_mut() {
                Some(last) if last.end == block => last.end.0 += 1,
                _ => runs.push(BlockRange::one(block)),
            }
        }
        let kept = match read {
            // Of those that are copied already it does not matter whether they can be read.
            _ if runs.is_empty() => Ok(()),
            Err(why) => Err(why),
            Ok(()) => runs.into_iter().try_for_each(|run| {
                let at = |block: BlockIndex| index(block.0 - pages.start.0) * page;
                copying.write(run, &bytes[at(run.start)..at(run.end)])
            }),
        };
        if let Err(why) = kept {
            copying.fail(why.into());
        }
        copying.failed.is_none()
    }

    /// A page that the guest wants to write: copied first, if it is to be, and then let go.
    ///
    /// # Errors
    /// [`GuestError`]. That it could not be copied is the capture's affair.
    pub fn copy_first(&self, page: BlockIndex, process: &Process) -> Result<Served, GuestError> {
        // No harvest protects it again in between; one that came before has it as one that is not written.
        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let event = PageEvent::ProtectFault;
        if self.locked().happens(page, event)? != Action::Unprotect {
            return Ok(Served::Again(page, event));
        }
        let addresses = self.addresses(page);
        if let Some(copying) = &mut *self.copying()
            && copying.pending.remove(page)
        {
            let mut bytes = vec![0; index(self.page_bytes())];
            let copied = process.read(addresses.start, &mut bytes);
            if let Err(why) = copied.and_then(|()| copying.write(BlockRange::one(page), &bytes)) {
                copying.fail(why.into());
            }
        }
        self.answered(
            self.uffd.protect(addresses, false),
            page,
            PageEvent::ProtectFault,
        )
    }

    /// The capture that goes on, if one does, is not to be.
    pub(super) fn fail_capture(&self) {
        if let Some(copying) = &mut *self.copying() {
            copying.fail(GuestError::Abandoned.into());
        }
    }

    /// No page is to be copied any more: was each of them?
    fn finish(&self) -> Result<(), CaptureError> {
        match self.copying().take().and_then(|copying| copying.failed) {
            None => Ok(()),
            Some(why) => Err(why),
        }
    }

    /// What was harvested last is not stored: it counts as dirty again.
    pub fn lose(&self, harvest: &Harvest) {
        drop(self.copying().take());
        let mut pages = self.locked();
        for run in &harvest.dirty {
            pages.replace(*run, PageState::Kept, PageEvent::HarvestLost);
        }
    }

    /// Does a capture go on? Whoever is at it now may end it: then yes.
    pub(super) fn is_captured(&self) -> bool {
        self.copying
            .try_lock()
            .map_or(true, |copying| copying.is_some())
    }

    pub(super) fn copying(&self) -> MutexGuard<'_, Option<Copying>> {
        // What panicked under it failed to copy, and so the pages are pending still.
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kernel noted, of pages that an earlier snapshot has, in order; they stay so, as they are protected again. Others are dirty.
    fn take_written(
        &self,
        process: &Process,
        pages: &mut Pages,
    ) -> Result<Vec<BlockRange>, GuestError> {
        let mut written = Vec::new();
        for (_, addresses) in self.regions.addresses_of(self.regions.pages()) {
            let taken = process.take_written(addresses, &mut |run| written.push(run));
            if let Err(why) = taken {
                // What was told is protected again, and so not told twice: all of it may have been written.
                for from in [PageState::Clean, PageState::Kept, PageState::Zero] {
                    pages.replace(self.regions.pages(), from, PageEvent::ProtectFault);
                }
                return Err(kernel("asking what was written")(why));
            }
        }
        let (mut kept, mut others) = (Vec::with_capacity(written.len()), Vec::new());
        let mut told = BlockIndex(0);
        for run in written
            .into_iter()
            .flat_map(|run| self.regions.pages_in(run))
        {
            // Of a page that is larger than the kernel's, parts are told.
            let run = BlockRange::new(run.start.max(told).0, run.end.0);
            told = run.end;
            for (part, state) in pages.states.runs(run) {
                match state {
                    PageState::Kept => kept.push(part),
                    PageState::Clean | PageState::Zero => others.push((part, state)),
                    PageState::Missing | PageState::Dirty | PageState::Removed => {}
                }
            }
        }
        for (run, from) in others {
            pages.replace(run, from, PageEvent::ProtectFault);
        }
        Ok(kept)
    }

    fn protect_all(&self, runs: &[BlockRange]) -> Result<(), GuestError> {
        for (_, addresses) in runs.iter().flat_map(|run| self.regions.addresses_of(*run)) {
            match self.uffd.protect(addresses, true) {
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(why) => return Err(kernel("protecting what was written")(why)),
            }
        }
        Ok(())
    }
}
