//! Snapshots of a session: freezing, and what becomes of the frozen caches. The six steps stand on
//! top of `mod.rs`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cowslip_block::cache::Cache;

use super::manifest::{CacheEntry, Manifest};
use super::{Session, SessionError, State, image_of, locked};
use crate::error::StoreError;
use crate::header::Header;
use crate::ids::{HeaderId, SnapshotName};
use crate::roots::lease::Protected;
use crate::roots::{Lease, SessionRecord};
use crate::seal::{SealError, SealProgress, SealRequest, committed, seal};

/// A snapshot on its way.
#[derive(Debug)]
pub struct Seal {
    request: SealRequest,
    /// How long no request could begin.
    held: Duration,
    done_blocks: AtomicU64,
    total_blocks: AtomicU64,
    outcome: Mutex<Option<Result<Arc<Header>, Arc<SealError>>>>,
    ended: Condvar,
}

/// What a snapshot is to be.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Take the name even if another snapshot has it.
    pub replace: bool,
    /// Leave out blocks that are equal to the parent's.
    pub dedup: bool,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            replace: false,
            dedup: true,
        }
    }
}

impl Session {
    /// Freezes the session under a name. The seal is queued; [`Seal::wait`] tells how it went.
    ///
    /// # Errors
    /// [`SessionError`]; the session goes on as if nothing had been asked.
    pub fn freeze(
        &self,
        name: &SnapshotName,
        options: &SnapshotOptions,
    ) -> Result<Arc<Seal>, SessionError> {
        let _one = locked(&self.changing);
        let old = self.manifest();
        self.check_free(name, options, &old)?;
        let request = SealRequest {
            name: name.clone(),
            header: HeaderId(self.host.new_uuid()),
            replace: options.replace,
            dedup: options.dedup,
        };
        let top_name = format!("cache-{}", old.next_cache);
        let top = Cache::create(
            Arc::clone(&self.dir),
            &top_name,
            self.geometry,
            self.host.boot_id(),
            Arc::clone(&self.health),
        );
        let top = top.map_err(|e| SessionError::io("making a new cache", e))?;
        let mut manifest = old.clone();
        manifest.next_cache += 1;
        manifest.caches.last_mut().expect("never empty").seal = Some(request.clone());
        manifest.caches.push(CacheEntry {
            name: top_name.clone(),
            seal: None,
        });
        if let Err(error) = self.replace_manifest(&old, manifest) {
            drop(top);
            // Poisoned: the manifest on disk may list it. What stays behind, for that or for want of
            // a working disk, is removed when the session is opened, if nothing lists it.
            if self.health.reason().is_none() {
                drop(Cache::remove(
                    &*self.dir,
                    &top_name,
                    self.geometry.block_size,
                ));
            }
            return Err(error);
        }
        let freeze = self.overlay.freeze(Arc::new(top));
        let seal = Arc::new(Seal::new(request, freeze.held));
        locked(&self.state).queue.push_back(Arc::clone(&seal));
        self.queued.notify_all();
        Ok(seal)
    }

    /// The seals that were asked for and have not ended, oldest first.
    pub fn pending(&self) -> Vec<Arc<Seal>> {
        locked(&self.state).queue.iter().cloned().collect()
    }

    fn check_free(
        &self,
        name: &SnapshotName,
        options: &SnapshotOptions,
        manifest: &Manifest,
    ) -> Result<(), SessionError> {
        let pending = manifest.caches.iter().filter_map(|c| c.seal.as_ref());
        let taken = pending.map(|s| &s.name).any(|n| n == name)
            || (!options.replace && self.store.has(name)?);
        if taken {
            return Err(StoreError::AlreadyExists {
                name: name.to_string(),
            }
            .into());
        }
        Ok(())
    }

    /// Puts a new manifest in force. Where that fails, the old one is put back: what is on disk
    /// must not say more than what is so.
    fn replace_manifest(&self, old: &Manifest, new: Manifest) -> Result<(), SessionError> {
        if let Err(error) = new.write(&*self.dir) {
            let on_disk = || Manifest::read(&*self.dir).ok().flatten();
            if old.write(&*self.dir).is_err() && on_disk().as_ref() != Some(old) {
                self.health
                    .poison(&format!("writing session.json failed: {error}"));
            }
            return Err(SessionError::io("writing session.json", error));
        }
        locked(&self.state).manifest = new;
        Ok(())
    }

    /// The oldest snapshot that waits to be sealed.
    pub fn next_seal(&self) -> Option<Arc<Seal>> {
        locked(&self.state).queue.front().cloned()
    }

    /// Seals the oldest snapshot that waits; false where none does.
    ///
    /// The outcome, error or not, is the [`Seal`]'s; a seal that failed has lost its name.
    pub fn seal_next(&self) -> bool {
        let Some(seal) = self.next_seal() else {
            return false;
        };
        // Held until the manifest and the store's record of this session name the new base.
        let lease = self.store.lease().map_err(SealError::from);
        let outcome = lease.and_then(|lease| Ok((self.seal_one(&seal, &lease)?, lease)));
        if let Err(SealError::Interrupted) = outcome {
            // It stays in the manifest, to be taken up.
            seal.end(Err(SealError::Interrupted));
            return false;
        }
        let outcome = match outcome {
            Ok(((header, count), _lease)) => {
                self.retire(&header, count);
                Ok(header)
            }
            Err(error) => {
                self.give_up(&seal.request);
                Err(error)
            }
        };
        locked(&self.state).queue.pop_front();
        seal.end(outcome);
        true
    }

    /// The header, and how many caches went into it.
    fn seal_one(&self, seal_: &Seal, lease: &Lease) -> Result<(Arc<Header>, usize), SealError> {
        lease.protect(Protected::Header(seal_.request.header))?;
        let group = self.group_of(&seal_.request);
        for cache in &group {
            cache.finish()?;
        }
        let parent = Arc::clone(&locked(&self.state).base);
        let header = match committed(&self.store, &seal_.request)? {
            Some(header) => header,
            None => seal(
                &self.store,
                lease,
                &parent,
                &group,
                self.geometry.size_bytes,
                &seal_.request,
                &mut |progress| {
                    seal_
                        .done_blocks
                        .store(progress.done_blocks, Ordering::Relaxed);
                    seal_
                        .total_blocks
                        .store(progress.total_blocks, Ordering::Relaxed);
                    !self.is_stopping()
                },
            )?,
        };
        Ok((header, group.len()))
    }

    /// The cache that was frozen for this request, and those below it that belong to none any
    /// more; newest first.
    fn group_of(&self, request: &SealRequest) -> Vec<Arc<Cache>> {
        let state = locked(&self.state);
        let is_it = |c: &CacheEntry| c.seal.as_ref() == Some(request);
        let count = state
            .manifest
            .caches
            .iter()
            .position(is_it)
            .map_or(0, |at| at + 1);
        let stack = self.overlay.stack();
        stack.frozen()[stack.frozen().len() - count..].to_vec()
    }

    /// Steps 5 and 6. The snapshot stands, whatever becomes of these.
    fn retire(&self, header: &Arc<Header>, count: usize) {
        let _one = locked(&self.changing);
        let old = self.manifest();
        let mut manifest = old.clone();
        let gone: Vec<CacheEntry> = manifest.caches.drain(..count).collect();
        manifest.base = header.meta().id;
        if let Some(request) = gone.last().and_then(|c| c.seal.as_ref()) {
            manifest.base_name = request.name.clone();
        }
        // The store keeps both bases for as long as it is open which one the manifest names.
        let both = self.note_bases(vec![old.base, header.id()]);
        if both.is_err() || self.replace_manifest(&old, manifest).is_err() {
            // The caches stay, and go into the next snapshot as well. On disk the request is still
            // listed, with the header's id, so that the next start finds it committed.
            clear_seal(&mut locked(&self.state).manifest, header.meta().id);
            return;
        }
        locked(&self.state).base = Arc::clone(header);
        self.overlay.retire(count, image_of(&self.store, header));
        // Where this fails, the old base is kept until the next snapshot.
        drop(self.note_bases(vec![header.id()]));
        for entry in gone {
            // Nothing names them: what cannot be removed now is removed at the next start.
            drop(Cache::remove(
                &*self.dir,
                &entry.name,
                self.geometry.block_size,
            ));
        }
    }

    /// Tells the store what this session needs.
    fn note_bases(&self, headers: Vec<HeaderId>) -> Result<(), StoreError> {
        self.store.put_session(&SessionRecord {
            headers,
            ..self.record.clone()
        })
    }

    /// A seal that failed loses its name. Where even this cannot be written, the next start tries
    /// the seal again.
    fn give_up(&self, request: &SealRequest) {
        let _one = locked(&self.changing);
        let old = self.manifest();
        let mut manifest = old.clone();
        clear_seal(&mut manifest, request.header);
        if self.replace_manifest(&old, manifest.clone()).is_err() {
            locked(&self.state).manifest = manifest;
        }
    }

    /// Waits until a seal is asked for; false when the session is stopping.
    pub(super) fn wait_for_seal(&self) -> bool {
        let idle = |state: &mut State| state.queue.is_empty() && !self.is_stopping();
        drop(
            self.queued
                .wait_while(locked(&self.state), idle)
                .unwrap_or_else(PoisonError::into_inner),
        );
        !self.is_stopping()
    }
}

impl Seal {
    pub(super) fn new(request: SealRequest, held: Duration) -> Self {
        Self {
            request,
            held,
            done_blocks: AtomicU64::new(0),
            total_blocks: AtomicU64::new(0),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    /// How long no request could begin while the session was frozen.
    pub fn held(&self) -> Duration {
        self.held
    }

    /// What is being made.
    pub fn request(&self) -> &SealRequest {
        &self.request
    }

    /// How far it has come.
    pub fn progress(&self) -> SealProgress {
        SealProgress {
            done_blocks: self.done_blocks.load(Ordering::Relaxed),
            total_blocks: self.total_blocks.load(Ordering::Relaxed),
        }
    }

    /// Waits until it has ended, or for `at_most`: nothing then.
    pub fn wait(&self, at_most: Duration) -> Option<Result<Arc<Header>, SessionError>> {
        let outcome = locked(&self.outcome);
        let waited = self
            .ended
            .wait_timeout_while(outcome, at_most, |o| o.is_none());
        let (outcome, _) = waited.unwrap_or_else(PoisonError::into_inner);
        outcome.clone().map(|o| o.map_err(SessionError::Seal))
    }

    fn end(&self, outcome: Result<Arc<Header>, SealError>) {
        *locked(&self.outcome) = Some(outcome.map_err(Arc::new));
        self.ended.notify_all();
    }
}

fn clear_seal(manifest: &mut Manifest, header: HeaderId) {
    for entry in &mut manifest.caches {
        entry.seal = entry.seal.take().filter(|s| s.header != header);
    }
}

/// Which of the seals that the manifest lists are taken up: those whose cache is whole. After a
/// kill each is; after a power cut, those that had been made durable.
pub(super) fn settle_seals(manifest: &mut Manifest, caches: &[Arc<Cache>]) -> VecDeque<Arc<Seal>> {
    let mut queue = VecDeque::new();
    for (entry, cache) in manifest.caches.iter_mut().zip(caches) {
        let Some(request) = entry.seal.clone() else {
            continue;
        };
        if cache.is_whole() {
            queue.push_back(Arc::new(Seal::new(request, Duration::ZERO)));
        } else {
            entry.seal = None;
        }
    }
    queue
}
