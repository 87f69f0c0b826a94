//! [`Session`]: a live, writable device over an image, with a directory of its own, that survives
//! a crash.
//!
//! ```text
//! session.json          what it is made of (manifest.rs)
//! cache-N.data          the bytes of cache N        } cowslip_block::cache; the highest N is
//! cache-N.journal-K     its states                  } written, the others are frozen
//! cache-N.state-K       a checkpoint of them        }
//! lock                  held by whoever has the session open
//! ```
//!
//! A snapshot, in order; a crash between any two leaves a session that opens:
//! 1. a new cache, empty, its files durable;
//! 2. the manifest lists it on top, and what the one below is to become;
//! 3. the overlay is frozen: one swap (invariant 5);
//! 4. behind: the frozen cache is drained, made durable and sealed (`seal.rs`), oldest first;
//! 5. the manifest names the new base and no longer lists the cache;
//! 6. the overlay retires it, and its files go.
//!
//! A seal that cannot be done (a full store, a name that is taken by then) loses its name, not its
//! bytes: the frozen cache stays in the stack and goes into the next snapshot. A seal that was
//! interrupted is taken up when the session is opened again; after a power cut only if its cache was
//! whole on disk by then, because what is left of it otherwise is no cut that anybody asked for.
//!
//! No threads here: whoever has the session open calls [`Session::seal_next`] and
//! [`Session::tidy`] (`workers.rs` does, in threads).

mod manifest;
mod workers;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cowslip_block::cache::{BlockState, Cache};
use cowslip_block::files::{Dir, Lock};
use cowslip_block::health::Health;
use cowslip_block::overlay::Overlay;
use cowslip_block::units::SIZE_BYTES_MAX;
use cowslip_block::{BlockSize, Device, DeviceError, Geometry};

pub use self::manifest::{CacheEntry, Manifest, SealRequest};
pub use self::workers::Workers;
use crate::error::StoreError;
use crate::header::Header;
use crate::host::Host;
use crate::ids::{HeaderId, SnapshotName};
use crate::image::Image;

use crate::seal::{SealError, SealProgress, committed, seal};
use crate::store::Store;

const LOCK: &str = "lock";

/// An open session.
pub struct Session {
    dir: Arc<dyn Dir>,
    store: Arc<Store>,
    host: Arc<dyn Host>,
    health: Arc<Health>,
    overlay: Arc<Overlay>,
    geometry: Geometry,
    state: Mutex<State>,
    /// One freeze, or one end of a seal, at a time.
    changing: Mutex<()>,
    queued: Condvar,
    stopping: AtomicBool,
    _lock: Box<dyn Lock>,
}

struct State {
    manifest: Manifest,
    base: Arc<Header>,
    /// The seals that are asked for, oldest first; each waits for those before it.
    queue: VecDeque<Arc<Seal>>,
}

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
        Self { replace: false, dedup: true }
    }
}

/// What there is in a session.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Blocks with bytes in the cache that is written.
    pub dirty_blocks: u64,
    /// Blocks zeroed or trimmed in it.
    pub zero_blocks: u64,
    /// Zeroed blocks whose room has not been given back yet.
    pub held_blocks: u64,
    /// Room of all caches on disk, in bytes.
    pub cache_bytes: u64,
    /// Room of their open journals, in bytes.
    pub journal_bytes: u64,
    /// Frozen caches that are not sealed yet.
    pub frozen: usize,
    /// Why writes are refused, if they are.
    pub poisoned: Option<String>,
}

/// Why a session refused.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Somebody has it open.
    #[error("the session is in use by another process")]
    InUse,
    /// There is no session in the directory.
    #[error("there is no session in this directory")]
    NotASession,
    /// The directory holds other things.
    #[error("the directory is not empty and not a session: it holds {0}")]
    Foreign(String),
    /// A size that cannot be.
    #[error("{0}")]
    Size(String),
    /// A file of the session is not what was written.
    #[error("the session is damaged: {0}")]
    Damaged(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A seal did not come about.
    #[error("the snapshot was not made: {0}")]
    Seal(Arc<SealError>),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The file layer failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The file layer's own error.
        source: io::Error,
    },
}

impl SessionError {
    fn io(what: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::InvalidData => Self::Damaged(source.to_string()),
            _ => Self::Io { what: what.into(), source },
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they protect changes in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a session needs of its surroundings.
pub struct Surroundings {
    /// The session's own directory.
    pub dir: Arc<dyn Dir>,
    /// Where its snapshots come from and go to.
    pub store: Arc<Store>,
    /// That store's path, to be found again without being told.
    pub store_path: PathBuf,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// Told once why writes are refused, should it come to that.
    pub say: Box<dyn Fn(&str) + Send + Sync>,
}

impl Session {
    /// Begins a session from a snapshot, in a directory that is empty, or that a crash left in the
    /// middle of this very call.
    ///
    /// `size_bytes`, if given, is at least the image's; what it adds reads as zeros.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn create(
        around: Surroundings,
        name: &SnapshotName,
        size_bytes: Option<u64>,
    ) -> Result<Self, SessionError> {
        let base = around.store.resolve(name)?;
        let geometry = session_geometry(&base, size_bytes)?;
        let lock = take_lock(&*around.dir)?;
        if Manifest::read(&*around.dir)?.is_some() {
            return Err(SessionError::InUse);
        }
        refuse_foreign(&*around.dir)?;
        remove_unlisted(&*around.dir, &[], geometry.block_size)?;
        let manifest = Manifest {
            version: Manifest::VERSION,
            id: around.host.new_uuid(),
            store: around.store_path.clone(),
            began_from: name.clone(),
            base: base.meta().id,
            base_name: name.clone(),
            size_bytes: geometry.size_bytes,
            block_size_bytes: geometry.block_size.bytes(),
            caches: vec![CacheEntry { name: "cache-1".into(), seal: None }],
            next_cache: 2,
        };
        let health = Health::new(around.say);
        let top = Cache::create(
            Arc::clone(&around.dir),
            "cache-1",
            geometry,
            around.host.boot_id(),
            Arc::clone(&health),
        );
        let top = top.map_err(|e| SessionError::io("making the session's cache", e))?;
        manifest.write(&*around.dir).map_err(|e| SessionError::io("writing session.json", e))?;
        let overlay = Overlay::new(
            geometry,
            Arc::new(top),
            Vec::new(),
            image_of(&around.store, &base),
        );
        Ok(Self {
            dir: around.dir,
            store: around.store,
            host: around.host,
            health,
            overlay: Arc::new(overlay),
            geometry,
            state: Mutex::new(State { manifest, base, queue: VecDeque::new() }),
            changing: Mutex::new(()),
            queued: Condvar::new(),
            stopping: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Opens a session where it was: nothing that was acknowledged is lost.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(around: Surroundings) -> Result<Self, SessionError> {
        let lock = take_lock(&*around.dir)?;
        let mut manifest = Manifest::read(&*around.dir)?.ok_or(SessionError::NotASession)?;
        manifest.store = around.store_path;
        let base = around.store.open_header(manifest.base)?;
        let geometry = session_geometry(&base, Some(manifest.size_bytes))?;
        if geometry.block_size.bytes() != manifest.block_size_bytes {
            return Err(SessionError::Damaged("session.json has another block size".into()));
        }
        remove_unlisted(&*around.dir, &manifest.caches, geometry.block_size)?;
        let health = Health::new(around.say);
        let mut caches = Vec::new();
        for entry in &manifest.caches {
            let cache = Cache::open(
                Arc::clone(&around.dir),
                &entry.name,
                geometry,
                around.host.boot_id(),
                Arc::clone(&health),
            );
            let cache = cache.map_err(|e| SessionError::io(format!("opening {}", entry.name), e))?;
            caches.push(Arc::new(cache));
        }
        let queue = settle_seals(&mut manifest, &caches);
        manifest.write(&*around.dir).map_err(|e| SessionError::io("writing session.json", e))?;
        let top = caches.pop().expect("a manifest lists at least one");
        caches.reverse();
        let image = image_of(&around.store, &base);
        Ok(Self {
            dir: around.dir,
            store: around.store,
            host: around.host,
            health,
            overlay: Arc::new(Overlay::new(geometry, top, caches, image)),
            geometry,
            state: Mutex::new(State { manifest, base, queue }),
            changing: Mutex::new(()),
            queued: Condvar::new(),
            stopping: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// The device, for a front end.
    pub fn device(&self) -> Arc<dyn Device> {
        Arc::clone(&self.overlay) as Arc<dyn Device>
    }

    /// What it is made of, as it is on disk.
    pub fn manifest(&self) -> Manifest {
        locked(&self.state).manifest.clone()
    }

    /// What there is in it.
    ///
    /// # Errors
    /// The file system's own.
    pub fn status(&self) -> io::Result<Status> {
        let stack = self.overlay.stack();
        let count = |state| stack.top().count(state).0;
        let held_blocks = count(BlockState::ZeroHeld);
        let mut status = Status {
            dirty_blocks: count(BlockState::Dirty),
            zero_blocks: count(BlockState::Zero) + held_blocks,
            held_blocks,
            frozen: stack.frozen().len(),
            poisoned: self.health.reason().map(str::to_owned),
            ..Status::default()
        };
        for cache in stack.frozen().iter().chain([stack.top()]) {
            let (cache_bytes, journal_bytes) = cache.room()?;
            status.cache_bytes += cache_bytes;
            status.journal_bytes += journal_bytes;
        }
        Ok(status)
    }

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
        manifest.caches.push(CacheEntry { name: top_name.clone(), seal: None });
        if let Err(error) = self.replace_manifest(&old, manifest) {
            drop(top);
            // What stays behind for want of a working disk is removed when the session is opened.
            drop(Cache::remove(&*self.dir, &top_name, self.geometry.block_size));
            return Err(error);
        }
        let freeze = self.overlay.freeze(Arc::new(top));
        let seal = Arc::new(Seal::new(request, freeze.held));
        locked(&self.state).queue.push_back(Arc::clone(&seal));
        self.queued.notify_all();
        Ok(seal)
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
            return Err(StoreError::AlreadyExists { name: name.to_string() }.into());
        }
        Ok(())
    }

    /// Puts a new manifest in force. Where that fails, the old one is put back: what is on disk
    /// must not say more than what is so.
    fn replace_manifest(&self, old: &Manifest, new: Manifest) -> Result<(), SessionError> {
        if let Err(error) = new.write(&*self.dir) {
            let on_disk = || Manifest::read(&*self.dir).ok().flatten();
            if old.write(&*self.dir).is_err() && on_disk().as_ref() != Some(old) {
                self.health.poison(&format!("writing session.json failed: {error}"));
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
        let Some(seal) = self.next_seal() else { return false };
        let outcome = self.seal_one(&seal);
        if let Err(SealError::Interrupted) = outcome {
            // It stays in the manifest, to be taken up.
            seal.end(Err(SealError::Interrupted));
            return false;
        }
        let outcome = match outcome {
            Ok((header, count)) => {
                self.retire(&header, count);
                Ok(header)
            }
            Err(error) => {
                self.forget(&seal.request);
                Err(error)
            }
        };
        locked(&self.state).queue.pop_front();
        seal.end(outcome);
        true
    }

    /// The header, and how many caches went into it.
    fn seal_one(&self, seal_: &Seal) -> Result<(Arc<Header>, usize), SealError> {
        let group = self.group_of(&seal_.request);
        for cache in &group {
            cache.finish()?;
        }
        let parent = Arc::clone(&locked(&self.state).base);
        let header = match committed(&self.store, &seal_.request)? {
            Some(header) => header,
            None => seal(
                &self.store,
                &parent,
                &group,
                self.geometry.size_bytes,
                &seal_.request,
                &mut |progress| {
                    seal_.done_blocks.store(progress.done_blocks, Ordering::Relaxed);
                    seal_.total_blocks.store(progress.total_blocks, Ordering::Relaxed);
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
        let count = state.manifest.caches.iter().position(is_it).map_or(0, |at| at + 1);
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
        if self.replace_manifest(&old, manifest).is_err() {
            // The caches stay, and go into the next snapshot as well. On disk the request is still
            // listed, with the header's id, so that the next start finds it committed.
            clear_seal(&mut locked(&self.state).manifest, header.meta().id);
            return;
        }
        locked(&self.state).base = Arc::clone(header);
        self.overlay.retire(count, image_of(&self.store, header));
        for entry in gone {
            // Nothing names them: what cannot be removed now is removed at the next start.
            drop(Cache::remove(&*self.dir, &entry.name, self.geometry.block_size));
        }
    }

    /// A seal that failed loses its name. Where even this cannot be written, the next start tries
    /// the seal again.
    fn forget(&self, request: &SealRequest) {
        let _one = locked(&self.changing);
        let old = self.manifest();
        let mut manifest = old.clone();
        clear_seal(&mut manifest, request.header);
        if self.replace_manifest(&old, manifest.clone()).is_err() {
            locked(&self.state).manifest = manifest;
        }
    }

    /// Waits until a seal is asked for; false when the session is stopping.
    fn wait_for_seal(&self) -> bool {
        let idle = |state: &mut State| state.queue.is_empty() && !self.is_stopping();
        drop(
            self.queued
                .wait_while(locked(&self.state), idle)
                .unwrap_or_else(PoisonError::into_inner),
        );
        !self.is_stopping()
    }

    /// What is done behind the requests: room given back, a long journal shortened.
    ///
    /// # Errors
    /// The file system's own. All is as it was, and can be tried again.
    pub fn tidy(&self) -> io::Result<()> {
        let stack = self.overlay.stack();
        let top = stack.top();
        while top.punch_some()? {
            if self.is_stopping() {
                return Ok(());
            }
        }
        if top.wants_checkpoint() {
            top.checkpoint()?;
        }
        Ok(())
    }

    /// Shortens the journal now, however long it is.
    ///
    /// # Errors
    /// As [`Session::tidy`].
    pub fn checkpoint(&self) -> io::Result<()> {
        self.overlay.stack().top().checkpoint()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn wait_for_work(&self, at_most: Duration) {
        self.health.wait(at_most);
    }

    /// Interrupts the seal that is running, if one is, and lets no other begin.
    pub fn stop(&self) {
        // Under the lock: whoever is about to wait sees it.
        let state = locked(&self.state);
        self.stopping.store(true, Ordering::Relaxed);
        drop(state);
        self.health.ring();
        self.queued.notify_all();
    }
}

impl Seal {
    fn new(request: SealRequest, held: Duration) -> Self {
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
        let waited = self.ended.wait_timeout_while(outcome, at_most, |o| o.is_none());
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

fn image_of(store: &Arc<Store>, header: &Arc<Header>) -> Arc<dyn Device> {
    Arc::new(Image::new(Arc::clone(store), Arc::clone(header)))
}

fn take_lock(dir: &dyn Dir) -> Result<Box<dyn Lock>, SessionError> {
    let lock = dir.try_lock(LOCK).map_err(|e| SessionError::io("locking the session", e))?;
    lock.ok_or(SessionError::InUse)
}

fn session_geometry(base: &Header, size_bytes: Option<u64>) -> Result<Geometry, SessionError> {
    let image = base.meta().size_bytes;
    let size_bytes = size_bytes.unwrap_or(image);
    if size_bytes < image {
        let why = format!("a size of {size_bytes} bytes is smaller than the image's {image}");
        return Err(SessionError::Size(why));
    }
    if size_bytes > SIZE_BYTES_MAX {
        let why = format!("a size of {size_bytes} bytes; at most {SIZE_BYTES_MAX}");
        return Err(SessionError::Size(why));
    }
    Ok(Geometry { size_bytes, block_size: base.meta().block_size, read_only: false })
}

/// Whose is a file of a session directory?
fn cache_of(file: &str) -> Option<&str> {
    let (stem, _) = file.split_once('.')?;
    stem.strip_prefix("cache-")?.parse::<u64>().ok().map(|_| stem)
}

fn refuse_foreign(dir: &dyn Dir) -> Result<(), SessionError> {
    let names = dir.list().map_err(|e| SessionError::io("listing the session directory", e))?;
    let ours = |n: &str| {
        matches!(n, LOCK | "control.sock" | "nbd.sock" | "session.json.new") || cache_of(n).is_some()
    };
    match names.into_iter().find(|n| !ours(n)) {
        Some(foreign) => Err(SessionError::Foreign(foreign)),
        None => Ok(()),
    }
}

/// Removes the files of caches that the manifest does not list: a crash left them.
fn remove_unlisted(
    dir: &dyn Dir,
    listed: &[CacheEntry],
    block_size: BlockSize,
) -> Result<(), SessionError> {
    let names = dir.list().map_err(|e| SessionError::io("listing the session directory", e))?;
    for stem in names.iter().filter_map(|n| cache_of(n)) {
        if !listed.iter().any(|c| c.name == stem) {
            Cache::remove(dir, stem, block_size)
                .map_err(|e| SessionError::io(format!("removing what is left of {stem}"), e))?;
        }
    }
    Ok(())
}

/// Which of the seals that the manifest lists are taken up: those whose cache is whole. After a
/// kill each is; after a power cut, those that had been made durable.
fn settle_seals(manifest: &mut Manifest, caches: &[Arc<Cache>]) -> VecDeque<Arc<Seal>> {
    let mut queue = VecDeque::new();
    for (entry, cache) in manifest.caches.iter_mut().zip(caches) {
        let Some(request) = entry.seal.clone() else { continue };
        if cache.is_whole() {
            queue.push_back(Arc::new(Seal::new(request, Duration::ZERO)));
        } else {
            entry.seal = None;
        }
    }
    queue
}
