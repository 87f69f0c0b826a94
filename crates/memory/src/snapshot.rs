//! [`capture`], and [`Captured::store`]: a snapshot of the memory of a guest that is served: what it wrote since the last one, over that one.
//!
//! ```text
//! runs        what is dirty by now is harvested and copied        (rounds.rs, guest/capture.rs)
//! paused      what it wrote since; copied as well, unless writes are told of
//! goes on     copied, where writes are told of
//! stored      compared, packed                                    (seal.rs)
//! committed   the next one is made over this one                  (Taken::committed)
//! ```
//!
//! Whatever fails, and whoever drops a [`Captured`] or a [`Taken`] without a word, leaves the guest as if nothing had been asked: what it wrote goes into the next
//! snapshot. One snapshot of a guest is taken at a time; a second one waits.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};

use cowslip_block::files::RealFile;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::{Header, StoreError};

use crate::guest::{CaptureError, Harvest, Tracking};
use crate::live::{Base, Live};
use crate::rounds::Rounds;
use crate::seal::{MemoryFigures, MemorySpec, PAGE, Step, seal};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Its monitor is another user's, say.
    #[error("the memory of process {0} cannot be looked at")]
    NotOurs(u32),
    /// See there.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Its memory may have changed while it was looked at.
    #[error("the guest did not stay paused until its memory was looked at")]
    NotPaused,
    /// Whoever asked has gone before the guest was paused for it.
    #[error("nobody waits for this snapshot any more")]
    NotWanted,
}

/// What a guest wrote, in a file, as its memory was at one moment. The guest goes on.
pub struct Captured<'a> {
    // Before the lock, which comes last: fields are dropped in this order.
    rounds: Rounds<'a>,
    harvest: Harvest,
    spool: RealFile,
    live: &'a Live,
    base: MutexGuard<'a, Base>,
}

/// A snapshot that is stored, and has no name yet.
#[derive(Debug)]
pub struct Taken<'a> {
    // As above.
    rounds: Rounds<'a>,
    header: Arc<Header>,
    figures: MemoryFigures,
    base: MutexGuard<'a, Base>,
}

/// Whoever asks for a snapshot, and has the guest paused for it.
pub trait Holder {
    /// Is the guest paused before it is asked for it? Then nothing is gained by looking at it ahead.
    fn is_paused(&self) -> bool;

    /// It is to be paused now, and is when this returns. Asked when it is this snapshot's turn, and what can be done ahead is done.
    ///
    /// # Errors
    /// [`SnapshotError::NotWanted`] where nobody pauses it any more.
    fn pause(&mut self) -> Result<(), SnapshotError>;

    /// It may go on; was it paused until now? Whoever paused it may have lost patience.
    fn goes_on(&mut self) -> bool;
}

impl Taken<'_> {
    /// Its map.
    pub fn header(&self) -> &Arc<Header> {
        &self.header
    }

    /// What became of the pages.
    pub fn figures(&self) -> MemoryFigures {
        self.figures
    }

    /// It has its name: the next one is made over it. The lease, under which it was stored, keeps it until then.
    pub fn committed(mut self, lease: Lease) {
        self.base.header = Arc::clone(&self.header);
        self.base.lease = Some(lease);
        self.rounds.committed();
    }
}

/// Takes what the guest wrote into this file: an empty one without a name, where there is room for it. Where this fails before the guest may go on, its holder
/// is not told that it may.
///
/// # Errors
/// [`SnapshotError`].
pub fn capture<'a>(
    live: &'a Live,
    spool: File,
    holder: &mut dyn Holder,
) -> Result<Captured<'a>, SnapshotError> {
    let base = live.base().lock().unwrap_or_else(PoisonError::into_inner);
    let process = live.process();
    let process = process.ok_or_else(|| SnapshotError::NotOurs(live.pid()))?;
    let mut rounds = Rounds::new(live.guest(), process);
    if !holder.is_paused() {
        rounds.ahead(&spool);
    }
    holder.pause()?;
    rounds.last(&spool)?;
    let goes_on = |holder: &mut dyn Holder| match holder.goes_on() {
        true => Ok(()),
        false => Err(SnapshotError::NotPaused),
    };
    match live.guest().tracking() {
        Tracking::Sync => {
            goes_on(holder)?;
            rounds.copy_last()?;
        }
        Tracking::Async | Tracking::None => {
            rounds.copy_last()?;
            goes_on(holder)?;
        }
    }
    let harvest = rounds.merged(&spool).map_err(CaptureError::Io)?;
    Ok(Captured {
        rounds,
        harvest,
        spool: RealFile::from(OwnedFd::from(spool)),
        live,
        base,
    })
}

impl<'a> Captured<'a> {
    /// Stores it, in the store of the image that the guest began from; with the disk that was snapshot with it, of whose frames the map may lead to so many.
    /// `progress` is told how much of a step is done, and of how much.
    ///
    /// # Errors
    /// As [`seal`] says.
    pub fn store(
        self,
        lease: &Lease,
        disk: Option<&Arc<Header>>,
        disk_frames_max: u64,
        progress: &mut dyn FnMut(Step, u64, u64),
    ) -> Result<Taken<'a>, StoreError> {
        let size_bytes = self.base.header.size_bytes();
        let per_page = self.live.guest().regions().page_size().bytes() / PAGE.bytes();
        let spec = MemorySpec {
            source: &SparseFile::new(&self.spool, size_bytes)?,
            size_bytes,
            parent: Some(&self.base.header),
            disk,
            dirty: Some(&self.harvest.changed(per_page.into())),
            disk_frames_max,
        };
        let (header, figures) = seal(self.live.store(), lease, &spec, progress)?;
        Ok(Taken {
            rounds: self.rounds,
            header,
            figures,
            base: self.base,
        })
    }
}
