//! Roots: what keeps objects of a store from being collected.
//!
//! | root             | where                  | holds                       | ends                          |
//! |------------------|------------------------|-----------------------------|-------------------------------|
//! | a name           | `snapshots/<name>`     | its header                  | `rm`, or a replacement        |
//! | a lease          | `leases/<uuid>`        | what one running operation writes or reads | with its process, at the latest |
//! | a session        | `sessions/<uuid>`      | what the session is based on | when it is forgotten          |
//!
//! A temporary session holds a lease of its own id as well, and its record counts as long as that does.
//!
//! A lease is alive while somebody holds the lock on its file, however old it is; a session is kept
//! also when its directory cannot be found: it may have been moved away, and come back.
//!
//! Invariants:
//! - An object is protected by at least one root from before it has a name in `layers/` or
//!   `headers/` until nothing needs it: a lease lists it first; the lease is dropped only after a name
//!   or a session has taken over.
//! - Whoever makes the set of roots smaller, or takes over from a name, holds `RootLock`; so does the
//!   collector while it reads them (leases, then names, then sessions). It has listed the objects
//!   before, so that what is younger than its list is no concern of its.
//! - Who makes a root of something that perhaps nothing kept waits for the collections that run
//!   (`collecting.rs`), and looks whether it is all there.

pub(crate) mod collecting;
pub(crate) mod lease;
pub(crate) mod sessions;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::{Dir, Lock};

use crate::error::StoreError;

pub(crate) use self::collecting::Collecting;
pub use self::lease::Lease;
pub use self::sessions::SessionRecord;

pub(crate) const LOCK: &str = "roots.lock";
/// It is held for milliseconds, by a collection for as long as reading all names takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The right to change the set of roots. Given back when dropped. Nothing on a read-only file system: there
/// is nothing that could be changed.
#[derive(Debug)]
pub(crate) struct RootLock(
    #[expect(dead_code, reason = "held until dropped")] Option<Box<dyn Lock>>,
);

impl RootLock {
    pub(crate) fn take(leases: &Arc<dyn Dir>) -> Result<Self, StoreError> {
        let give_up = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        loop {
            match leases.try_lock(LOCK) {
                Ok(Some(lock)) => return Ok(Self(Some(lock))),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(Self(None)),
                Err(e) => return Err(StoreError::io("locking the store's roots", e)),
            }
            if Instant::now() > give_up {
                let why = format!("another process has held leases/{LOCK} for {PATIENCE:?}");
                return Err(StoreError::Busy(why));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}
