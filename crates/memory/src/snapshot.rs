//! [`take`]: a snapshot of the memory of a guest that is served: what it wrote since the last one, over that one.
//!
//! ```text
//! paused      harvest; copy, unless writes are told of            (guest/capture.rs)
//! goes on     copy, where writes are told of; seal                (seal.rs)
//! committed   the next one is made over this one                  (Taken::committed)
//! ```
//!
//! Whatever fails, and whoever drops a [`Taken`] without a word, leaves the guest as if nothing had been asked: what it wrote goes into the next
//! snapshot. One snapshot of a guest is taken at a time; a second one waits.

use std::fs::File;
use std::sync::{Arc, MutexGuard, PoisonError};

use cowslip_block::files::RealFile;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::{Header, StoreError};

use crate::guest::{CaptureError, Guest, Harvest, Tracking};
use crate::live::{Base, Live};
use crate::seal::{MemoryFigures, MemorySpec, PAGE, Step, seal};

/// What a snapshot is made with.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotSpec<'a> {
    /// Takes what was written: an empty file, without a name, where there is room for it.
    pub spool: &'a File,
    /// The disk that is snapshot with it.
    pub disk: Option<&'a Arc<Header>>,
    /// Frames of the disk that the map may lead to.
    pub disk_frames_max: u64,
}

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
    /// Whoever asked has gone while another one was taken.
    #[error("nobody waits for this snapshot any more")]
    NotWanted,
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A snapshot that is stored, and has no name yet.
#[derive(Debug)]
pub struct Taken<'a> {
    // Before the lock, which comes last: fields are dropped in this order.
    harvested: Harvested<'a>,
    header: Arc<Header>,
    figures: MemoryFigures,
    base: MutexGuard<'a, Base>,
}

/// What is dirty again if it is dropped before its snapshot is committed.
#[derive(Debug)]
struct Harvested<'a> {
    guest: &'a Guest,
    harvest: Harvest,
    is_committed: bool,
}

impl Drop for Harvested<'_> {
    fn drop(&mut self) {
        if !self.is_committed {
            self.guest.lose(&self.harvest);
        }
    }
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
        self.harvested.is_committed = true;
    }
}

/// Takes one, in the store of the image that the guest began from. `is_wanted` is asked when it is this one's turn, before anything is taken
/// from the guest. The guest is paused; `goes_on` is called when it may go on, and says whether it was paused until
/// then: whoever paused it may have lost patience. Where this fails before, it is not called. `progress` is told how much of a step is done, and of how
/// much.
///
/// # Errors
/// [`SnapshotError`].
pub fn take<'a>(
    live: &'a Live,
    lease: &Lease,
    spec: &SnapshotSpec<'_>,
    is_wanted: impl FnOnce() -> bool,
    goes_on: impl FnOnce() -> bool,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<Taken<'a>, SnapshotError> {
    let base = live.base().lock().unwrap_or_else(PoisonError::into_inner);
    if !is_wanted() {
        return Err(SnapshotError::NotWanted);
    }
    let guest = live.guest();
    let process = live.process();
    let process = process.ok_or_else(|| SnapshotError::NotOurs(live.pid()))?;
    let harvested = Harvested {
        guest,
        harvest: guest.harvest(process, spec.spool)?,
        is_committed: false,
    };
    let goes_on = || match goes_on() {
        true => Ok(()),
        false => Err(SnapshotError::NotPaused),
    };
    let copy = || guest.copy(process, &harvested.harvest);
    match guest.tracking() {
        Tracking::Sync => {
            goes_on()?;
            copy()?;
        }
        Tracking::Async | Tracking::None => {
            copy()?;
            goes_on()?;
        }
    }
    let sealed = store_it(
        live,
        &harvested.harvest,
        &base.header,
        lease,
        spec,
        progress,
    );
    let (header, figures) = sealed?;
    Ok(Taken {
        harvested,
        header,
        figures,
        base,
    })
}

fn store_it(
    live: &Live,
    harvest: &Harvest,
    base: &Arc<Header>,
    lease: &Lease,
    spec: &SnapshotSpec<'_>,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<(Arc<Header>, MemoryFigures), SnapshotError> {
    let spool = spec.spool.try_clone().map_err(CaptureError::Io)?;
    let spool = RealFile::from(std::os::fd::OwnedFd::from(spool));
    let size_bytes = base.size_bytes();
    let per_page = live.guest().regions().page_size().bytes() / PAGE.bytes();
    let sealed = seal(
        live.store(),
        lease,
        &MemorySpec {
            source: &SparseFile::new(&spool, size_bytes)?,
            size_bytes,
            parent: Some(base),
            disk: spec.disk,
            dirty: Some(&harvest.changed(per_page.into())),
            disk_frames_max: spec.disk_frames_max,
        },
        progress,
    );
    Ok(sealed?)
}
