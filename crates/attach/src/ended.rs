//! [`Ended`]: whether the kernel has let go of a device, for whoever waits for that.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Told once; later tellings change nothing.
pub(crate) struct Ended {
    state: Mutex<State>,
    bell: Condvar,
}

struct State {
    is_ended: bool,
    on_end: Option<Box<dyn FnOnce() + Send>>,
}

impl Ended {
    pub(crate) fn new(on_end: impl FnOnce() + Send + 'static) -> Self {
        let state = State {
            is_ended: false,
            on_end: Some(Box::new(on_end)),
        };
        Self {
            state: Mutex::new(state),
            bell: Condvar::new(),
        }
    }

    /// The kernel has let go.
    pub(crate) fn tell(&self) {
        let mut state = self.locked();
        state.is_ended = true;
        let on_end = state.on_end.take();
        drop(state);
        self.bell.notify_all();
        if let Some(on_end) = on_end {
            on_end();
        }
    }

    /// Has it, after so long at most?
    pub(crate) fn within(&self, within: Duration) -> bool {
        let waited = self
            .bell
            .wait_timeout_while(self.locked(), within, |state| !state.is_ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_ended
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
