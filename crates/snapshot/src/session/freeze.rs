//! Snapshots of a session: freezing, and retiring what was sealed. The six steps stand on top of
//! `mod.rs`; what lies between the two is `sealing.rs`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use cowslip_block::cache::{Cache, Found};
use cowslip_block::planted::{Bug, planted};

use super::manifest::{CacheEntry, Manifest};
use super::{Seal, Session, SessionError, locked};
use crate::error::StoreError;
use crate::header::Header;
use crate::ids::{HeaderId, SnapshotName};
use crate::limits::FROZEN_CACHES_MAX;
use crate::seal::SealRequest;

/// What a snapshot is to be.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Take the name even if another snapshot has it.
    pub replace: bool,
    /// Leave out blocks that are equal to the parent's.
    pub dedup: bool,
    /// Leave out blocks that what is inside the device does not need; refused, once it is frozen, where that is not
    /// certain.
    pub fs_aware: bool,
    /// Nothing is stored before [`Session::confirm`] says that it is to be. A session that is opened again after a kill does not ask: it is stored.
    pub unconfirmed: bool,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            replace: false,
            dedup: true,
            fs_aware: false,
            unconfirmed: false,
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
        check_room(&old, options)?;
        self.check_free(name, options, &old)?;
        let request = SealRequest {
            name: name.clone(),
            header: HeaderId(self.host.new_uuid()),
            replace: options.replace,
            replaces: match options.replace {
                true => self.store.origin_of(name)?,
                false => None,
            },
            dedup: options.dedup,
            fs_aware: options.fs_aware,
        };
        let top_name = format!("cache-{}", old.next_cache);
        let mut manifest = old.clone();
        manifest.next_cache += 1;
        manifest.caches.last_mut().expect("never empty").seal = Some(request);
        manifest.caches.push(CacheEntry {
            name: top_name.clone(),
            seal: None,
        });
        if planted(Bug::ListBeforeCache) {
            drop(manifest.write(&*self.dir));
        }
        let top = self.new_cache(&top_name);
        let top = top.map_err(|e| SessionError::io("making a new cache", e))?;
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
        let seal = Arc::new(Seal::new(name.clone(), freeze.held, options.unconfirmed));
        locked(&self.state).queue.push_back(Arc::clone(&seal));
        self.queued.notify_all();
        Ok(seal)
    }

    fn new_cache(&self, name: &str) -> io::Result<Cache> {
        let create = || {
            let (dir, health) = (Arc::clone(&self.dir), Arc::clone(&self.health));
            Cache::create(dir, name, self.geometry, self.host.boot_id(), health)
        };
        match create() {
            // An earlier freeze failed and left it, or a disk that said so had made it. Nothing lists it, unless
            // the session is poisoned.
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists && self.health.reason().is_none() =>
            {
                Cache::remove(&*self.dir, name, self.geometry.block_size)?;
                create()
            }
            other => other,
        }
    }

    /// A snapshot that was to wait for this is stored.
    pub fn confirm(&self, seal: &Seal) {
        let state = locked(&self.state);
        seal.confirm();
        self.queued.notify_all();
        drop(state);
    }

    /// What the next snapshot will be made over: the last that was asked for, unless that is given up,
    /// or the base, by the name that it was committed under.
    pub fn newest(&self) -> SnapshotName {
        let state = locked(&self.state);
        let last = state.queue.back().map(|seal| seal.name().clone());
        last.unwrap_or_else(|| state.manifest.base_name.clone())
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

    /// Puts a new manifest in force. Where that fails after it took the old one's place on disk, the old one is put back: what is on disk
    /// must not say more than what is so.
    pub(super) fn replace_manifest(
        &self,
        old: &Manifest,
        new: Manifest,
    ) -> Result<(), SessionError> {
        if let Err(error) = new.write(&*self.dir) {
            // Not compared with the old one: after another failure that may be on disk as it was before.
            let is_as_it_was =
                matches!(Manifest::read(&*self.dir), Ok(Some(found)) if found != new);
            if !is_as_it_was && old.write(&*self.dir).is_err() {
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

    /// Steps 5 and 6. The snapshot stands, whatever becomes of these.
    pub(super) fn retire(&self, header: &Arc<Header>, count: usize) {
        let one = locked(&self.changing);
        let old = self.manifest();
        let mut manifest = old.clone();
        let gone: Vec<CacheEntry> = manifest.caches.drain(..count).collect();
        if !planted(Bug::SecondGeneration) {
            manifest.base = header.meta().id;
        }
        if let Some(request) = gone.last().and_then(|c| c.seal.as_ref()) {
            manifest.base_name = request.name.clone();
        }
        let remove = |entry: &CacheEntry| {
            // Nothing names them: what cannot be removed now is removed at the next start.
            let size = self.geometry.block_size;
            drop(Cache::remove(&*self.dir, &entry.name, size));
        };
        if planted(Bug::FilesBeforeList) {
            gone.iter().for_each(remove);
        }
        // The store keeps both bases for as long as it is open which one the manifest names.
        let mut bases = locked(&self.state).bases();
        bases.push(header.id());
        let both = self.note_bases(bases);
        if both.is_err() || self.replace_manifest(&old, manifest).is_err() {
            // The caches stay, and go into the next snapshot as well. On disk the request is still
            // listed, with the header's id, so that the next start finds it committed.
            if let Some(request) = gone.last().and_then(|c| c.seal.as_ref()) {
                clear_seal(&mut locked(&self.state).manifest, &request.name);
            }
            return;
        }
        self.rebase(header, count);
        drop(one);
        self.let_go();
        gone.iter().for_each(remove);
    }

    /// A seal that failed loses its name. Where even this cannot be written, the next start tries
    /// the seal again.
    pub(super) fn give_up(&self, name: &SnapshotName) {
        let _one = locked(&self.changing);
        let old = self.manifest();
        let mut manifest = old.clone();
        clear_seal(&mut manifest, name);
        if self.replace_manifest(&old, manifest.clone()).is_err() {
            locked(&self.state).manifest = manifest;
        }
    }
}

fn clear_seal(manifest: &mut Manifest, name: &SnapshotName) {
    for entry in &mut manifest.caches {
        entry.seal = entry.seal.take().filter(|s| s.name != *name);
    }
}

/// Each frozen cache has two files open, and a read may go through all. While one waits to be
/// stored, so many are enough; where none does, a snapshot is the way to have fewer. One that may be
/// refused is no such way.
fn check_room(manifest: &Manifest, options: &SnapshotOptions) -> Result<(), SessionError> {
    let waiting = manifest.caches.iter().any(|c| c.seal.is_some());
    let max = if waiting || options.fs_aware {
        FROZEN_CACHES_MAX
    } else {
        2 * FROZEN_CACHES_MAX
    };
    if manifest.caches.len() > max {
        return Err(SessionError::TooManyFrozen { max });
    }
    Ok(())
}

/// Which of the seals that the manifest lists are taken up: those whose cache is whole. After a
/// kill each is; after a power cut, those that had been made durable.
pub(super) fn settle_seals(manifest: &mut Manifest, caches: &[Found]) -> VecDeque<Arc<Seal>> {
    let mut queue = VecDeque::new();
    for (entry, cache) in manifest.caches.iter_mut().zip(caches) {
        let Some(request) = entry.seal.clone() else {
            continue;
        };
        if cache.is_whole() {
            queue.push_back(Arc::new(Seal::taken_up(request.name)));
        } else {
            entry.seal = None;
        }
    }
    queue
}
