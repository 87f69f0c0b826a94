//! [`Budget`]: memory for what is larger than a connection's own, shared by all connections of a server.
//!
//! Up to [`OWN_BYTES`](crate::limits::OWN_BYTES) of requests and replies are a connection's own. What goes beyond is a [`Share`] of the
//! budget, taken before the bytes arrive or are read.
//!
//! Invariants:
//! 1. All shares together are at most [`LARGE_BYTES_MAX`], whatever clients announce, send or leave unread.
//! 2. Whoever holds a share never waits for more of it, it gets rid of its replies first. So those who wait
//!    do so for clients, and never in a circle.
//! 3. Those who wait are served in the order in which they came, and nobody passes them.
//! 4. While somebody waits, a share for whose bytes its client did nothing for [`HOLD_WITHIN`] is overdue: its connection
//!    ends. To do something is to send or take [`MOVED_BYTES_MIN`] of them; the time that the server itself needs to
//!    execute a request is not the client's. So whoever waits is served, however many others send slowly or read nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::limits::{HOLD_WITHIN, LARGE_BYTES_MAX, MOVED_BYTES_MIN};

/// See the module.
pub(crate) struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    left: usize,
    /// Who waits, in order.
    queue: VecDeque<u64>,
    next: u64,
    stopping: bool,
}

impl Budget {
    pub(crate) fn new() -> Self {
        let state = State {
            left: LARGE_BYTES_MAX,
            queue: VecDeque::new(),
            next: 0,
            stopping: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Nobody waits any more.
    pub(crate) fn stop(&self) {
        self.locked().stopping = true;
        self.changed.notify_all();
    }

    /// No code that can panic runs under this lock, so a poisoned one is still whole.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one connection holds of the budget.
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
    /// When it was last of use.
    used: Instant,
    /// What has moved since then.
    moved: usize,
}

impl Share {
    pub(crate) fn of(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            bytes: 0,
            used: Instant::now(),
            moved: 0,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Does it cover so many bytes, or can it at once? Not while others wait.
    pub(crate) fn covers(&mut self, bytes: usize) -> bool {
        let mut state = self.budget.locked();
        let more = bytes.saturating_sub(self.bytes);
        if !state.queue.is_empty() || more > state.left {
            return false;
        }
        state.left -= more;
        drop(state);
        self.bytes += more;
        self.renew();
        true
    }

    /// Waits for so many bytes in the place of what it holds, which goes back first.
    pub(crate) fn wait_for(&mut self, bytes: usize) {
        self.keep(0);
        let mut state = self.budget.locked();
        let ticket = state.next;
        state.next += 1;
        state.queue.push_back(ticket);
        while !state.stopping && (state.queue.front() != Some(&ticket) || state.left < bytes) {
            let changed = self.budget.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
        state.queue.retain(|waiting| *waiting != ticket);
        // At the end of the server nothing is counted any more.
        if state.left >= bytes {
            state.left -= bytes;
            self.bytes = bytes;
        }
        drop(state);
        self.renew();
        self.budget.changed.notify_all();
    }

    /// Gives back all but so many bytes.
    pub(crate) fn keep(&mut self, bytes: usize) {
        let back = self.bytes.saturating_sub(bytes);
        if back > 0 {
            self.bytes -= back;
            self.budget.locked().left += back;
            self.budget.changed.notify_all();
        }
    }

    /// It is of use now: its time begins again.
    pub(crate) fn renew(&mut self) {
        self.used = Instant::now();
        self.moved = 0;
    }

    /// So many bytes came from the client or went to it.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
        // A byte now and then is no use to anybody.
        if self.moved >= MOVED_BYTES_MIN && self.bytes > 0 {
            self.renew();
        }
    }

    /// Does somebody wait while this holds something?
    pub(crate) fn is_wanted(&self) -> bool {
        self.bytes > 0 && !self.budget.locked().queue.is_empty()
    }

    /// And has it lain still for too long?
    pub(crate) fn is_overdue(&self) -> bool {
        self.is_wanted() && self.used.elapsed() > HOLD_WITHIN
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    const HALF: usize = LARGE_BYTES_MAX / 2;

    fn left(budget: &Budget) -> usize {
        budget.locked().left
    }

    /// Waits in a thread; its share comes out once it has it.
    fn waiter(budget: &Arc<Budget>, bytes: usize) -> Receiver<Share> {
        let before = budget.locked().next;
        let (send, got) = channel();
        let mut share = Share::of(Arc::clone(budget));
        thread::spawn(move || {
            share.wait_for(bytes);
            drop(send.send(share));
        });
        while budget.locked().next == before {
            thread::yield_now();
        }
        got
    }

    #[test]
    fn there_is_so_much_and_no_more() {
        let budget = Arc::new(Budget::new());
        let [mut one, mut other] = [(); 2].map(|()| Share::of(Arc::clone(&budget)));
        assert!(one.covers(HALF) && other.covers(HALF));
        assert!(one.covers(HALF) && one.covers(1), "it has so much already");
        assert!(!one.covers(HALF + 1));
        assert_eq!((one.bytes(), left(&budget)), (HALF, 0));
        other.keep(1);
        assert!(one.covers(HALF + 1));
        drop((one, other));
        assert_eq!(left(&budget), LARGE_BYTES_MAX);
    }

    #[test]
    fn who_waits_is_served_in_order_and_nobody_passes() {
        let budget = Arc::new(Budget::new());
        let mut holder = Share::of(Arc::clone(&budget));
        assert!(holder.covers(LARGE_BYTES_MAX - 10) && !holder.is_wanted());
        let large = waiter(&budget, HALF);
        let small = waiter(&budget, 5);
        assert!(holder.is_wanted() && !holder.is_overdue());
        let mut passer = Share::of(Arc::clone(&budget));
        assert!(!passer.covers(5), "there are 10 left, and others wait");
        assert!(!holder.covers(1), "not even of its own");
        assert!(small.try_recv().is_err() && large.try_recv().is_err());
        holder.keep(HALF);
        let large = large.recv().unwrap();
        assert_eq!(large.bytes(), HALF);
        assert!(small.try_recv().is_err(), "nothing is left");
        drop(large);
        assert_eq!(small.recv().unwrap().bytes(), 5);
        assert!(passer.covers(HALF) && !holder.is_wanted());
    }

    #[test]
    fn a_share_is_overdue_unless_enough_moves() {
        let budget = Arc::new(Budget::new());
        let mut holder = Share::of(Arc::clone(&budget));
        assert!(holder.covers(LARGE_BYTES_MAX));
        let long_ago = |share: &mut Share| {
            let then = Instant::now().checked_sub(2 * HOLD_WITHIN);
            share.used = then.expect("a machine that has run for some seconds");
        };
        long_ago(&mut holder);
        assert!(!holder.is_overdue(), "nobody waits");
        let waiting = waiter(&budget, HALF);
        assert!(holder.is_overdue());
        holder.moved(MOVED_BYTES_MIN - 1);
        assert!(holder.is_overdue(), "a little is nothing");
        holder.moved(1);
        assert!(!holder.is_overdue(), "little by little it is enough");
        long_ago(&mut holder);
        holder.moved(MOVED_BYTES_MIN - 1);
        assert!(holder.is_overdue(), "and is counted anew");
        holder.renew();
        assert!(!holder.is_overdue(), "a request was executed");
        long_ago(&mut holder);
        holder.moved(MOVED_BYTES_MIN - 1);
        assert!(holder.is_overdue());
        drop(holder);
        waiting.recv().unwrap();
    }

    #[test]
    fn at_the_end_nobody_waits() {
        let budget = Arc::new(Budget::new());
        let mut holder = Share::of(Arc::clone(&budget));
        assert!(holder.covers(LARGE_BYTES_MAX));
        let waiting = waiter(&budget, HALF);
        budget.stop();
        assert_eq!(waiting.recv().unwrap().bytes(), 0);
        Share::of(Arc::clone(&budget)).wait_for(HALF);
        drop(holder);
        assert_eq!(left(&budget), LARGE_BYTES_MAX);
    }
}
