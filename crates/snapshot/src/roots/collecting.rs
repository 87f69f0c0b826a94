//! [`Collecting`]: a collection that runs, for those who must know.
//!
//! A collection reads the roots, and later removes what they did not reach. Who makes a root of something that
//! perhaps nothing kept ([`crate::store::Store::admit_session`]) is seen by the next collection, not by one that has
//! read the roots already: it waits for those, and looks whether all is there still.
//!
//! `leases/collect-N.lock`, empty: each is held (flock) by one collection from before it reads the roots until
//! it has removed what it removes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::{Dir, Lock};

use crate::error::StoreError;

/// The files: so many collections run at once.
pub(crate) const LOCKS: [&str; 4] = [
    "collect-0.lock",
    "collect-1.lock",
    "collect-2.lock",
    "collect-3.lock",
];
/// A collection of a large store walks many maps.
const PATIENCE: Duration = Duration::from_secs(120);

/// Held while a collection runs.
#[derive(Debug)]
pub(crate) struct Collecting(#[expect(dead_code, reason = "held until dropped")] Box<dyn Lock>);

impl Collecting {
    pub(crate) fn begin(leases: &Arc<dyn Dir>) -> Result<Self, StoreError> {
        patiently(|| {
            for name in LOCKS {
                if let Some(lock) = try_lock(leases, name)? {
                    return Ok(Some(Self(lock)));
                }
            }
            Ok(None)
        })
    }

    /// Waits until those that run now have ended.
    pub(crate) fn wait_for_all(leases: &Arc<dyn Dir>) -> Result<(), StoreError> {
        LOCKS
            .iter()
            .try_for_each(|name| patiently(|| try_lock(leases, name)).map(drop))
    }
}

fn try_lock(leases: &Arc<dyn Dir>, name: &str) -> Result<Option<Box<dyn Lock>>, StoreError> {
    let lock = leases.try_lock(name);
    lock.map_err(|e| StoreError::io(format!("locking leases/{name}"), e))
}

fn patiently<T>(
    mut attempt: impl FnMut() -> Result<Option<T>, StoreError>,
) -> Result<T, StoreError> {
    let give_up = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
        if Instant::now() > give_up {
            let why = format!("collections have been running for {PATIENCE:?}");
            return Err(StoreError::Busy(why));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
