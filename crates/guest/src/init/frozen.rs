//! The root's file system, held still while the host takes its snapshot.
//!
//! | step | what it takes out of the next diff |
//! |---|---|
//! | sync | nothing; but what was written is in it |
//! | FITRIM | blocks of deleted files |
//! | `EXT4_IOC_CHECKPOINT` (Linux 5.14) | the journal |
//! | FIFREEZE | a journal that has begun again |
//!
//! What this file system, device or kernel does not know is left out; but for the freeze, which fails then.
//!
//! Invariant: what was frozen is thawed after [`HELD_MAX`], whatever the host does; it is told so when it says that it is done.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::named;
use crate::sys;

/// Longer, and the guest's own programs would suffer.
const HELD_MAX: Duration = Duration::from_secs(10);
const ALREADY: &str = "it is frozen already";

/// Which freeze there is, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Frozen(Arc<Mutex<Option<u32>>>);

impl Frozen {
    pub(crate) fn freeze(&self, number: u32) -> io::Result<()> {
        // One that is frozen would not be synced before it is thawed, and no word of that would be heard until then.
        if self.locked().is_some() {
            return Err(io::Error::other(ALREADY));
        }
        let root = File::open("/")?;
        sys::sync_all();
        // Whether there is something to gain depends on kernel and disk.
        let _ = sys::trim(&root);
        let _ = sys::checkpoint(&root);
        let mut held = self.locked();
        if held.is_some() {
            return Err(io::Error::other(ALREADY));
        }
        named("freeze", sys::freeze(&root))?;
        *held = Some(number);
        drop(held);
        let own = self.clone();
        thread::spawn(move || {
            thread::sleep(HELD_MAX);
            let _ = own.thaw(number);
        });
        Ok(())
    }

    /// Fails where it was thawed before.
    pub(crate) fn thaw(&self, number: u32) -> io::Result<()> {
        let mut held = self.locked();
        if *held != Some(number) {
            return Err(io::Error::other("it was not frozen any more"));
        }
        *held = None;
        named("thaw", File::open("/").and_then(|root| sys::thaw(&root)))
    }

    /// The end: nothing is held any more.
    pub(crate) fn let_go(&self) {
        let held = *self.locked();
        if let Some(number) = held {
            let _ = self.thaw(number);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
