//! [`History`]: what a place on a device may hold, when requests overlap in time.
//!
//! Each request has a number of its own, which is also the moment of its submission, and when it is
//! answered the moment of that; both come from one counter. Of two requests to one place, the one that
//! was submitted after the other was answered is *newer*; otherwise they may have been served in any
//! order. A place may hold the outcome of any request that has no newer one among those that count.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter for all threads. Moments are unique, and never 0.
#[derive(Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) submitted: u64,
    /// `u64::MAX` where it never was.
    pub(crate) answered: u64,
}

impl Op {
    /// What was there before all requests.
    pub(crate) const FIRST: Self = Self {
        submitted: 0,
        answered: 0,
    };

    pub(crate) fn unanswered(submitted: u64) -> Self {
        Self {
            submitted,
            answered: u64::MAX,
        }
    }

    pub(crate) fn is_newer_than(self, other: Self) -> bool {
        self.submitted > other.answered
    }
}

/// The requests to one place that may still show.
#[derive(Clone, Debug)]
pub(crate) struct History(Vec<Op>);

impl Default for History {
    fn default() -> Self {
        Self(vec![Op::FIRST])
    }
}

impl History {
    pub(crate) fn submit(&mut self, op: Op) {
        self.0.push(op);
    }

    /// It was answered: whatever it is newer than cannot show any more.
    pub(crate) fn answer(&mut self, submitted: u64, at: u64) {
        let op = self.0.iter_mut().find(|op| op.submitted == submitted);
        // Nothing where a newer one has been answered before.
        let Some(op) = op else { return };
        op.answered = at;
        let op = *op;
        self.0.retain(|other| !op.is_newer_than(*other));
    }

    /// The requests whose outcome may be there, by number.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|op| op.submitted)
    }

    /// It has been seen, and nothing is on its way any more: nothing else can show.
    pub(crate) fn settle(&mut self, submitted: u64) {
        self.0 = vec![Op {
            submitted,
            answered: submitted,
        }];
    }
}

#[test]
fn only_what_no_newer_request_has_covered_may_show() {
    let mut place = History::default();
    let may_be = |place: &History| place.candidates().collect::<Vec<_>>();
    place.submit(Op::unanswered(1));
    place.submit(Op::unanswered(2));
    assert_eq!(may_be(&place), [0, 1, 2]);
    place.answer(2, 3);
    // 1 and 2 were on their way together: either may have come last.
    assert_eq!(may_be(&place), [1, 2]);
    place.answer(1, 4);
    place.submit(Op::unanswered(5));
    assert_eq!(may_be(&place), [1, 2, 5]);
    place.answer(5, 6);
    assert_eq!(may_be(&place), [5]);
}
