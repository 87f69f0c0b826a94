//! What a session's caches share: whether writes can still be trusted, and a bell that says that
//! there is work to do behind the requests.

use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::device::DeviceError;

/// Invariant 10: EIO on the cache, or a failed sync, and no later write can be trusted. Writes
/// fail from then on, reads go on, and the reason is said once.
pub struct Health {
    reason: OnceLock<Arc<str>>,
    say: Box<dyn Fn(&str) + Send + Sync>,
    bell: Bell,
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Health {
    /// Sound; `say` is called once, with the reason, should that change.
    pub fn new(say: impl Fn(&str) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            reason: OnceLock::new(),
            say: Box::new(say),
            bell: Bell::default(),
        })
    }

    /// Why writes are refused, if they are.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(AsRef::as_ref)
    }

    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        match self.reason.get() {
            None => Ok(()),
            Some(reason) => Err(DeviceError::Poisoned(Arc::clone(reason))),
        }
    }

    /// The file layer failed while doing `what`: want of room fails the request, all else
    /// poisons the session.
    pub(crate) fn judge(&self, what: &str, error: io::Error) -> DeviceError {
        match DeviceError::from(error) {
            DeviceError::Io(error) => self.poison(&format!("{what} failed: {error}")),
            other => other,
        }
    }

    /// From now on no write succeeds.
    pub fn poison(&self, reason: &str) -> DeviceError {
        let mut first = false;
        let kept = self.reason.get_or_init(|| {
            first = true;
            Arc::from(reason)
        });
        if first {
            (self.say)(kept);
        }
        DeviceError::Poisoned(Arc::clone(kept))
    }

    /// There is something to do: holes to punch, a journal to shorten.
    pub fn ring(&self) {
        let mut rung = self
            .bell
            .rung
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *rung, true) {
            self.bell.heard.notify_all();
        }
    }

    /// Waits until somebody rang since the last wait, or for `at_most`.
    pub fn wait(&self, at_most: Duration) {
        let rung = self
            .bell
            .rung
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .bell
            .heard
            .wait_timeout_while(rung, at_most, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}
