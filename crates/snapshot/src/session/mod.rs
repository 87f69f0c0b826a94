//! [`Session`]: a live, writable device over an image, with a directory of its own, that survives
//! a crash.
//!
//! ```text
//! session.json          what it is made of (manifest.rs)
//! cache-N.data          the bytes of cache N        } cowslip_block::cache; the highest N is
//! cache-N.journal-K     its states                  } written, the others are frozen
//! cache-N.state-K       a checkpoint of them        }
//! failed                the disk failed: what no flush covers does not count (failed.rs)
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
//! A seal that fails for a reason that may pass (a full store) is tried again until it is stored; one
//! that cannot be done (a name that is taken by then), or that is cancelled, loses its name, not its
//! bytes: the frozen cache stays in the stack and goes into the next snapshot (`sealing.rs`). A seal
//! that was not at its end is taken up when the session is opened again; after a power cut only if its
//! cache was whole on disk by then, because what is left of it otherwise is no cut that anybody asked for.
//!
//! No threads here: whoever has the session open calls [`Session::seal_next`] and
//! [`Session::tidy`] (`workers.rs` does, in threads).

mod directory;
mod error;
mod failed;
mod forget;
mod freeze;
mod go_over;
mod manifest;
mod queued;
mod sealing;
mod workers;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cowslip_block::cache::{BlockState, Cache};
use cowslip_block::files::{Dir, Lock};
use cowslip_block::health::Health;
use cowslip_block::overlay::Overlay;
use cowslip_block::planted::{Bug, planted};
use cowslip_block::units::SIZE_BYTES_MAX;
use cowslip_block::{Device, Geometry};
use uuid::Uuid;

use self::directory::{refuse_foreign, remove_unlisted, take_lock};
pub use self::error::SessionError;
pub use self::forget::{forget, is_in};
pub use self::freeze::SnapshotOptions;
use self::freeze::settle_seals;
pub use self::go_over::{Over, go_over};
pub use self::manifest::{CacheEntry, Manifest};
pub use self::queued::{Attempts, Seal};
pub use self::workers::Workers;
use crate::error::StoreError;
use crate::header::Header;
use crate::host::Host;
use crate::ids::{DirId, HeaderId, SnapshotName};
use crate::image::Image;
use crate::roots::{Lease, SessionRecord};
use crate::store::Store;
use crate::unneeded::Unneeded;

/// An open session.
pub struct Session {
    dir: Arc<dyn Dir>,
    store: Arc<Store>,
    host: Arc<dyn Host>,
    unneeded: Option<Arc<dyn Unneeded>>,
    health: Arc<Health>,
    overlay: Arc<Overlay>,
    geometry: Geometry,
    /// As the store knows this session.
    record: SessionRecord,
    state: Mutex<State>,
    /// One freeze, or one end of a seal, at a time.
    changing: Mutex<()>,
    queued: Condvar,
    stopping: AtomicBool,
    /// Of a temporary session: the store keeps its record as long as this is held.
    _life: Option<Lease>,
    _lock: Box<dyn Lock>,
}

struct State {
    manifest: Manifest,
    base: Arc<Header>,
    /// Earlier bases, which requests may read still.
    left: Vec<(Weak<dyn Device>, HeaderId)>,
    /// The bases that the store's record lists, as far as we have put it there.
    noted: Vec<HeaderId>,
    /// The seals that are asked for, oldest first; each waits for those before it.
    queue: VecDeque<Arc<Seal>>,
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
    /// Memory for the states of all caches, in bytes.
    pub state_memory_bytes: u64,
    /// Memory that the seal holds that is being made, in bytes.
    pub seal_memory_bytes: u64,
    /// Why writes are refused, if they are.
    pub poisoned: Option<String>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they protect changes in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a session needs of its surroundings.
pub struct Surroundings {
    /// The session's own directory.
    pub dir: Arc<dyn Dir>,
    /// That directory's path, for people to find it.
    pub path: PathBuf,
    /// It goes with this process.
    pub temporary: bool,
    /// Where its snapshots come from and go to.
    pub store: Arc<Store>,
    /// That store's path, to be found again without being told.
    pub store_path: PathBuf,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// Asked for snapshots that are to leave out what is not needed; without it, they are refused.
    pub unneeded: Option<Arc<dyn Unneeded>>,
    /// Told once why writes are refused, should it come to that.
    pub say: Box<dyn Fn(&str) + Send + Sync>,
}

impl Surroundings {
    /// What the store is to know of a session that stands on `base`.
    fn record(&self, id: Uuid, base: HeaderId) -> Result<SessionRecord, SessionError> {
        let directory = DirId::of(&*self.dir)
            .map_err(|e| SessionError::io("looking at the session directory", e))?;
        Ok(SessionRecord {
            version: SessionRecord::VERSION,
            id,
            path: self.path.clone(),
            directory: Some(directory),
            temporary: self.temporary,
            headers: vec![base],
            moved: None,
        })
    }
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
        let (base, _lease) = around.store.resolve_leased(name)?;
        let geometry = session_geometry(&base, size_bytes)?;
        let lock = take_lock(&*around.dir)?;
        if Manifest::read(&*around.dir)?.is_some() {
            return Err(SessionError::InUse);
        }
        refuse_foreign(&*around.dir)?;
        remove_unlisted(&*around.dir, &[], geometry.block_size)?;
        let mut record = around.record(Uuid::nil(), base.id())?;
        record.id = around.store.id_for(&record)?;
        let life = match around.temporary {
            true => Some(around.store.lease_session(record.id)?),
            false => None,
        };
        around.store.put_session(&record)?;
        let (store, id) = (Arc::clone(&around.store), record.id);
        Self::begin(around, name, base, geometry, (lock, life), record).inspect_err(|_| {
            // Nothing to keep anything for. Where this fails too, the user is shown it as missing.
            drop(store.forget_session(id));
        })
    }

    /// The files of a new session, in their order.
    fn begin(
        around: Surroundings,
        name: &SnapshotName,
        base: Arc<Header>,
        geometry: Geometry,
        (lock, life): (Box<dyn Lock>, Option<Lease>),
        record: SessionRecord,
    ) -> Result<Self, SessionError> {
        let manifest = Manifest {
            version: Manifest::VERSION,
            id: record.id,
            store: around.store_path.clone(),
            store_directory: Some(around.store.directory().clone()),
            began_from: name.clone(),
            base: base.meta().id,
            base_name: name.clone(),
            size_bytes: geometry.size_bytes,
            block_size_bytes: geometry.block_size.bytes(),
            caches: vec![CacheEntry {
                name: "cache-1".into(),
                seal: None,
            }],
            next_cache: 2,
        };
        let health = failed::health(&around.dir, around.say);
        let top = Cache::create(
            Arc::clone(&around.dir),
            "cache-1",
            geometry,
            around.host.boot_id(),
            Arc::clone(&health),
        );
        let top = top.map_err(|e| SessionError::io("making the session's cache", e))?;
        manifest
            .write(&*around.dir)
            .map_err(|e| SessionError::io("writing session.json", e))?;
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
            unneeded: around.unneeded,
            health,
            overlay: Arc::new(overlay),
            geometry,
            record,
            state: Mutex::new(State {
                noted: vec![manifest.base],
                left: Vec::new(),
                manifest,
                base,
                queue: VecDeque::new(),
            }),
            changing: Mutex::new(()),
            queued: Condvar::new(),
            stopping: AtomicBool::new(false),
            _life: life,
            _lock: lock,
        })
    }

    /// Opens a session where it was: nothing that was acknowledged is lost.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(around: Surroundings) -> Result<Self, SessionError> {
        let lock = take_lock(&*around.dir)?;
        // What a killed process renamed and did not sync is acted upon from here on: a power cut must not
        // bring back a manifest that knows nothing of it.
        if !planted(Bug::RenameReliedOn) {
            let synced = around.dir.sync();
            synced.map_err(|e| SessionError::io("syncing the session's directory", e))?;
        }
        let on_disk = Manifest::take(&*around.dir)?.ok_or(SessionError::NotASession)?;
        let mut manifest = on_disk.clone();
        manifest.store.clone_from(&around.store_path);
        manifest.store_directory = Some(around.store.directory().clone());
        let wanted = around.record(manifest.id, manifest.base)?;
        let record = around.store.admit_session(wanted)?;
        // A copy of another session's directory.
        manifest.id = record.id;
        let base = around.store.open_header(manifest.base)?;
        let geometry = session_geometry(&base, Some(manifest.size_bytes))?;
        if geometry.block_size.bytes() != manifest.block_size_bytes {
            return Err(SessionError::Damaged(
                "session.json has another block size".into(),
            ));
        }
        remove_unlisted(&*around.dir, &manifest.caches, geometry.block_size)?;
        let health = failed::health(&around.dir, around.say);
        let mut found = Vec::new();
        let has_failed = failed::is_left(&*around.dir)
            .map_err(|e| SessionError::io("looking whether the disk failed", e))?;
        let find = match has_failed {
            true => Cache::find_after_failure,
            false => Cache::find,
        };
        for entry in &manifest.caches {
            let cache = find(
                Arc::clone(&around.dir),
                &entry.name,
                geometry,
                around.host.boot_id(),
                Arc::clone(&health),
            );
            let cache =
                cache.map_err(|e| SessionError::io(format!("opening {}", entry.name), e))?;
            found.push(cache);
        }
        let queue = settle_seals(&mut manifest, &found);
        let write = || match manifest == on_disk {
            true => Ok(()),
            false => manifest
                .write(&*around.dir)
                .map_err(|e| SessionError::io("writing session.json", e)),
        };
        if !planted(Bug::TornLooksWhole) {
            write()?;
        }
        let mut caches = Vec::new();
        for (entry, found) in manifest.caches.iter().zip(found) {
            let cache = found.settle();
            let cache =
                cache.map_err(|e| SessionError::io(format!("opening {}", entry.name), e))?;
            caches.push(Arc::new(cache));
        }
        if planted(Bug::TornLooksWhole) {
            write()?;
        }
        if has_failed {
            failed::remove(&*around.dir)
                .map_err(|e| SessionError::io("noting that the disk works again", e))?;
        }
        let top = caches.pop().expect("a manifest lists at least one");
        caches.reverse();
        let image = image_of(&around.store, &base);
        Ok(Self {
            dir: around.dir,
            store: around.store,
            host: around.host,
            unneeded: around.unneeded,
            health,
            overlay: Arc::new(Overlay::new(geometry, top, caches, image)),
            geometry,
            record,
            state: Mutex::new(State {
                noted: vec![manifest.base],
                left: Vec::new(),
                manifest,
                base,
                queue,
            }),
            changing: Mutex::new(()),
            queued: Condvar::new(),
            stopping: AtomicBool::new(false),
            _life: None,
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
            seal_memory_bytes: self.next_seal().map_or(0, |s| s.progress().memory_bytes),
            poisoned: self.health.reason().map(str::to_owned),
            ..Status::default()
        };
        for cache in stack.frozen().iter().chain([stack.top()]) {
            let (cache_bytes, journal_bytes) = cache.room()?;
            status.cache_bytes += cache_bytes;
            status.journal_bytes += journal_bytes;
            status.state_memory_bytes += cache.export().memory_bytes();
        }
        Ok(status)
    }

    /// What is done behind the requests: room given back, a long journal shortened.
    ///
    /// # Errors
    /// The file system's own. All is as it was, and can be tried again.
    pub fn tidy(&self) -> io::Result<()> {
        if self.health.reason().is_some() {
            failed::leave(&*self.dir)?;
        }
        // Loaded anew each time: what is frozen meanwhile is somebody else's, and whoever retires it waits
        // until nobody holds it.
        while self.overlay.stack().top().punch_some()? {
            if self.is_stopping() {
                return Ok(());
            }
        }
        let stack = self.overlay.stack();
        let top = stack.top();
        if top.wants_checkpoint() {
            top.checkpoint()?;
        }
        Ok(())
    }

    /// Closes what the store has removed, so that its room is free.
    pub fn let_go_of_removed(&self) {
        self.store.let_go_of_removed();
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

    /// The store keeps nothing for this session any more: it will not be opened again.
    ///
    /// # Errors
    /// As [`Store::forget_session`].
    pub fn forget(&self) -> Result<(), StoreError> {
        self.store.forget_session(self.record.id)
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

fn image_of(store: &Arc<Store>, header: &Arc<Header>) -> Arc<dyn Device> {
    Arc::new(Image::new(Arc::clone(store), Arc::clone(header)))
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
    Ok(Geometry {
        size_bytes,
        block_size: base.meta().block_size,
        read_only: false,
    })
}
