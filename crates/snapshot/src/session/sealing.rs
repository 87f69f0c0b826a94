//! From a frozen cache to a name: attempts, their ends, and cancelling.
//!
//! | an attempt ends with | the seal | what was frozen |
//! |---|---|---|
//! | the name in place | is stored | is in the snapshot, and retired |
//! | an error that may pass ([`SealError::may_pass`]) | stays first in the queue, and is tried again | stays |
//! | any other error, or a cancel | loses its name | stays, and goes into the next snapshot |
//! | the end of the session | stays in the manifest, to be taken up | stays |
//!
//! Invariants:
//! - What an attempt relies on was written under the lease that the seal holds over all its attempts. A
//!   seal that is taken up from an earlier process relies on nothing that this one left, unless it
//!   has its name: it gets another header id, because a collection may have listed the objects under the
//!   old one already.
//! - A failed attempt leaves no layer behind; where the header stands, the next one only commits.
//! - Where the session is full of frozen caches, a seal does not lose its name whatever the error: it is
//!   the way out.

use std::sync::Arc;
use std::time::Duration;

use cowslip_block::cache::Cache;
use cowslip_block::overlay::Overlay;
use cowslip_block::planted::{Bug, planted};
use cowslip_block::read_only::ReadOnly;
use cowslip_block::{BlockRange, Device};

use super::manifest::CacheEntry;
use super::queued::Work;
use super::{Seal, Session, SessionError, image_of, locked};
use crate::header::Header;
use crate::ids::{HeaderId, SnapshotName};
use crate::limits::FROZEN_CACHES_MAX;
use crate::roots::Lease;
use crate::roots::lease::Protected;
use crate::seal::{Frozen, SealError, SealRequest, committed, seal};

impl Session {
    /// Makes one attempt at the oldest snapshot that waits, due or not. True where that is how it ended,
    /// stored or given up; false where none waits, it will be tried again, or the session stops.
    ///
    /// How it went, error or not, the [`Seal`] tells.
    pub fn seal_next(&self) -> bool {
        let Some(seal) = self.next_seal() else {
            return false;
        };
        let mut work = seal.work();
        if seal.has_ended() || seal.is_unconfirmed() {
            // Another thread was faster; or it may never be stored.
            return false;
        }
        let outcome = match self.attempt(&seal, &mut work) {
            Ok((header, count)) => {
                self.retire(&header, count);
                Ok(header)
            }
            // Unless the name may stand, which has to be known first.
            Err(error) if seal.is_cancelled() && !(work.maybe_committed && error.may_pass()) => {
                Err(SealError::Cancelled)
            }
            Err(SealError::Interrupted) => {
                // It stays in the manifest, to be taken up.
                *work = Work::default();
                seal.end(Err(SealError::Interrupted));
                return false;
            }
            Err(error) if error.may_pass() || self.is_full() => {
                seal.failed(error);
                return false;
            }
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.give_up(seal.name());
        }
        locked(&self.state).queue.pop_front();
        // The lease ends: the manifest and the store's record of this session name the new base.
        *work = Work::default();
        seal.end(outcome);
        true
    }

    /// The header, and how many caches went into it.
    fn attempt(&self, seal: &Seal, work: &mut Work) -> Result<(Arc<Header>, usize), SealError> {
        let group = self.group_of(seal.name());
        if work.maybe_committed && !planted(Bug::CommittedTwice) {
            if let Some((header, lease)) = committed(&self.store, &self.request(seal)?)? {
                work.lease = Some(lease);
                return Ok((header, group.len()));
            }
            work.maybe_committed = false;
        }
        if seal.is_cancelled() {
            return Err(SealError::Cancelled);
        }
        if std::mem::take(&mut work.taken_up) {
            self.renew(seal)
                .inspect_err(|_| work.taken_up = true)
                .map_err(|e| SealError::Session(e.to_string()))?;
        }
        for cache in &group {
            cache.finish()?;
        }
        let request = self.request(seal)?;
        let lease = match work.lease.take() {
            Some(lease) => lease,
            None => self.lease(request.header)?,
        };
        let lease = work.lease.insert(lease);
        let header = match &work.header {
            Some(header) => Arc::clone(header),
            None => self.build(seal, &request, lease, &group)?,
        };
        work.header = Some(Arc::clone(&header));
        work.maybe_committed = true;
        self.store
            .commit(lease, &request.name, &header, request.replace)?;
        Ok((header, group.len()))
    }

    fn lease(&self, header: HeaderId) -> Result<Lease, SealError> {
        let lease = self.store.lease()?;
        lease.protect(Protected::Header(header))?;
        Ok(lease)
    }

    fn build(
        &self,
        seal_: &Seal,
        request: &SealRequest,
        lease: &Lease,
        group: &[Arc<Cache>],
    ) -> Result<Arc<Header>, SealError> {
        let before = lease.mark();
        let built = self.leased_base(lease).and_then(|parent| {
            // Before anything is written.
            let unneeded = self.unneeded(request, group, &parent)?;
            let frozen = Frozen {
                caches: group,
                size_bytes: self.geometry.size_bytes,
                unneeded: &unneeded,
            };
            seal(&self.store, lease, &parent, &frozen, request, &mut |p| {
                seal_.advance(p);
                !self.is_stopping() && !seal_.is_cancelled()
            })
        });
        built.inspect_err(|_| lease.rewind(before))
    }

    /// What the snapshot is to do without, as told by whoever knows what is in the device as it was frozen.
    fn unneeded(
        &self,
        request: &SealRequest,
        group: &[Arc<Cache>],
        base: &Arc<Header>,
    ) -> Result<Vec<BlockRange>, SealError> {
        let Some((newest, older)) = group.split_first().filter(|_| request.fs_aware) else {
            return Ok(Vec::new());
        };
        let Some(unneeded) = &self.unneeded else {
            let why = "nobody here knows what is in the device";
            return Err(SealError::Refused(why.into()));
        };
        let base = image_of(&self.store, base);
        let (top, frozen) = (Arc::clone(newest), older.to_vec());
        let frozen = ReadOnly(Arc::new(Overlay::new(self.geometry, top, frozen, base)));
        let device: Arc<dyn Device> = Arc::new(frozen);
        unneeded.blocks(&device)
    }

    /// The base, protected: it may be replaced, by one that reads the same, while it is being read.
    fn leased_base(&self, lease: &Lease) -> Result<Arc<Header>, SealError> {
        let _one = locked(&self.changing);
        let base = Arc::clone(&locked(&self.state).base);
        lease.protect(Protected::Header(base.id()))?;
        Ok(base)
    }

    /// What the manifest says that the seal is to become.
    fn request(&self, seal: &Seal) -> Result<SealRequest, SealError> {
        let state = locked(&self.state);
        let mut requests = state.manifest.caches.iter().filter_map(|c| c.seal.as_ref());
        let found = requests.find(|r| r.name == *seal.name()).cloned();
        // Nobody but whoever seals takes the first of the queue away.
        found.ok_or(SealError::Cancelled)
    }

    /// Gives a seal that was taken up a header id of this process. It does not replace what has taken the name
    /// since it was asked for.
    fn renew(&self, seal: &Seal) -> Result<(), SessionError> {
        let _one = locked(&self.changing);
        let now = self.store.origin_of(seal.name())?;
        let old = self.manifest();
        let mut manifest = old.clone();
        let requests = manifest.caches.iter_mut().filter_map(|c| c.seal.as_mut());
        for request in requests.filter(|r| r.name == *seal.name()) {
            request.header = HeaderId(self.host.new_uuid());
            let asked = request.replaces;
            request.replace &= asked.is_none() || now.is_none() || now == asked;
        }
        self.replace_manifest(&old, manifest)
    }

    /// The cache that was frozen for this name, and those below it that belong to none any
    /// more; newest first.
    fn group_of(&self, name: &SnapshotName) -> Vec<Arc<Cache>> {
        let state = locked(&self.state);
        let is_it = |c: &CacheEntry| c.seal.as_ref().is_some_and(|s| s.name == *name);
        let count = state
            .manifest
            .caches
            .iter()
            .position(is_it)
            .map_or(0, |at| at + 1);
        let stack = self.overlay.stack();
        stack.frozen()[stack.frozen().len() - count..].to_vec()
    }

    /// Gives up a snapshot that is on its way: it loses its name, what was written stays. The first
    /// of the queue is ended by whoever seals, who may have been faster: [`Seal::wait`] tells.
    ///
    /// # Errors
    /// [`SessionError::NotOnItsWay`], [`SessionError::Full`].
    pub fn cancel(&self, name: &SnapshotName) -> Result<Arc<Seal>, SessionError> {
        let mut state = locked(&self.state);
        let Some(at) = state.queue.iter().position(|s| s.name() == name) else {
            let name = name.to_string();
            return Err(SessionError::NotOnItsWay { name });
        };
        if self.is_full() {
            return Err(SessionError::Full);
        }
        let seal = Arc::clone(&state.queue[at]);
        seal.cancel();
        self.queued.notify_all();
        if at == 0 {
            return Ok(seal);
        }
        state.queue.remove(at);
        drop(state);
        self.give_up(name);
        seal.end(Err(SealError::Cancelled));
        Ok(seal)
    }

    /// More frozen caches than [`Session::freeze`] allows while another snapshot waits.
    fn is_full(&self) -> bool {
        self.overlay.stack().frozen().len() > FROZEN_CACHES_MAX
    }

    /// Waits until an attempt is due; false when the session is stopping.
    pub(super) fn wait_for_seal(&self) -> bool {
        let mut state = locked(&self.state);
        while !self.is_stopping() {
            let pause = state.queue.front().map(|seal| seal.due_in());
            if pause == Some(Duration::ZERO) {
                return true;
            }
            // Woken by a freeze, a cancel, the end.
            let waited = self.queued.wait_timeout(state, pause.unwrap_or(FOR_LONG));
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        false
    }
}

/// A wait that is woken by what it waits for.
const FOR_LONG: Duration = Duration::from_secs(3600);
