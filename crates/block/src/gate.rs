//! A count of the requests inside a cache, and a way to wait until the last one has left.

use crate::planted::{Bug, planted};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Counts who is inside.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inside: u64,
    closed: bool,
}

/// Proof of being inside; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Ticket<'a>(&'a Gate);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it is held cannot leave the two fields half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters, unless the gate is closed: then the caller has an old stack in hand, and loads
    /// the new one.
    pub(crate) fn enter(&self) -> Option<Ticket<'_>> {
        let mut state = self.state();
        if state.closed && !planted(Bug::WriteIntoFrozen) {
            return None;
        }
        state.inside += 1;
        Some(Ticket(self))
    }

    /// Nobody enters any more.
    pub(crate) fn close(&self) {
        self.state().closed = true;
    }

    /// Waits until the last one has left, and nobody enters any more. A freeze closes the gate after the swap, so
    /// whoever loads the new stack may be here first: with the gate open, the last one to leave would wake nobody, and
    /// one with the old stack in hand would enter behind our back.
    pub(crate) fn drain(&self) {
        let mut state = self.state();
        state.closed |= !planted(Bug::DrainLeavesOpen);
        drop(self.emptied.wait_while(state, |s| s.inside > 0));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.0.emptied.notify_all();
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    /// Whoever froze has swapped the stack, and not closed the gate yet: who drains is woken all the same.
    #[test]
    fn who_drains_an_open_gate_is_woken_by_the_last_one_and_followed_by_none() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let inside = gate.enter();
            scope.spawn(|| gate.drain());
            while gate.enter().is_some() {
                std::thread::yield_now();
            }
            drop(inside);
        });
        assert!(gate.enter().is_none());
    }
}
