//! [`Seal`]: a snapshot on its way, from the freeze to its end, over any number of attempts.
//!
//! ```text
//! queued -> attempt -> stored
//!    ^         |-----> given up: it was cancelled, or failed for a reason that stays
//!    |         v
//!    +---- failed for a reason that may pass: the next attempt after 1 s, 2 s, ... 30 s
//! ```
//!
//! What an attempt leaves for the next one is in [`Work`], which belongs to whoever seals. Not here:
//! what an attempt does (`sealing.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{SessionError, locked};
use crate::header::Header;
use crate::ids::SnapshotName;
use crate::roots::Lease;
use crate::seal::{SealError, SealProgress};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A snapshot on its way.
#[derive(Debug)]
pub struct Seal {
    name: SnapshotName,
    /// How long no request could begin.
    held: Duration,
    done_blocks: AtomicU64,
    total_blocks: AtomicU64,
    memory_bytes: AtomicU64,
    unneeded_blocks: AtomicU64,
    fate: Mutex<Fate>,
    ended: Condvar,
    work: Mutex<Work>,
}

/// How the attempts at a seal went so far.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// Those that failed; the next is tried again.
    pub failed: u32,
    /// Why the last of them did.
    pub last_error: Option<Arc<SealError>>,
    /// When the next is due.
    pub next_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Fate {
    attempts: Attempts,
    cancelled: bool,
    /// Since the last attempt: the next is due.
    just_cancelled: bool,
    /// No attempt is made yet.
    unconfirmed: bool,
    outcome: Option<Result<Arc<Header>, Arc<SealError>>>,
}

/// What one attempt leaves for the next.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Held over all attempts, so that a collection takes nothing that a later one relies on.
    pub(super) lease: Option<Lease>,
    /// The header stands, and only its name is missing.
    pub(super) header: Option<Arc<Header>>,
    /// An earlier process asked for it, and may have left objects under its header's id. They are
    /// under no lease of ours: a collection may be about to remove them.
    pub(super) taken_up: bool,
    /// The name may be there although nobody was told.
    pub(super) maybe_committed: bool,
}

impl Seal {
    /// One that was just asked for.
    pub(super) fn new(name: SnapshotName, held: Duration, unconfirmed: bool) -> Self {
        let fate = Fate {
            unconfirmed,
            ..Fate::default()
        };
        Self {
            name,
            held,
            done_blocks: AtomicU64::new(0),
            total_blocks: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            unneeded_blocks: AtomicU64::new(0),
            fate: Mutex::new(fate),
            ended: Condvar::new(),
            work: Mutex::default(),
        }
    }

    /// One that an earlier process left.
    pub(super) fn taken_up(name: SnapshotName) -> Self {
        let work = Work {
            taken_up: true,
            maybe_committed: true,
            ..Work::default()
        };
        Self {
            work: Mutex::new(work),
            ..Self::new(name, Duration::ZERO, false)
        }
    }

    /// What it is to be called.
    pub fn name(&self) -> &SnapshotName {
        &self.name
    }

    /// How long no request could begin while the session was frozen.
    pub fn held(&self) -> Duration {
        self.held
    }

    /// How far it has come; the attempt before counts until the next begins.
    pub fn progress(&self) -> SealProgress {
        SealProgress {
            done_blocks: self.done_blocks.load(Ordering::Relaxed),
            total_blocks: self.total_blocks.load(Ordering::Relaxed),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            unneeded_blocks: self.unneeded_blocks.load(Ordering::Relaxed),
        }
    }

    pub(super) fn advance(&self, to: SealProgress) {
        self.done_blocks.store(to.done_blocks, Ordering::Relaxed);
        self.total_blocks.store(to.total_blocks, Ordering::Relaxed);
        self.memory_bytes.store(to.memory_bytes, Ordering::Relaxed);
        self.unneeded_blocks
            .store(to.unneeded_blocks, Ordering::Relaxed);
    }

    /// How the attempts went so far.
    pub fn attempts(&self) -> Attempts {
        locked(&self.fate).attempts.clone()
    }

    /// Waits until it has ended, or for `at_most`: nothing then.
    pub fn wait(&self, at_most: Duration) -> Option<Result<Arc<Header>, SessionError>> {
        let fate = locked(&self.fate);
        let waited = self
            .ended
            .wait_timeout_while(fate, at_most, |fate| fate.outcome.is_none());
        let (fate, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let outcome = fate.outcome.clone();
        outcome.map(|o| o.map_err(SessionError::Seal))
    }

    /// For whoever seals.
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        locked(&self.work)
    }

    pub(super) fn cancel(&self) {
        let mut fate = locked(&self.fate);
        (fate.cancelled, fate.just_cancelled) = (true, true);
    }

    pub(super) fn confirm(&self) {
        locked(&self.fate).unconfirmed = false;
    }

    pub(super) fn is_cancelled(&self) -> bool {
        locked(&self.fate).cancelled
    }

    /// Is it not to be stored yet, nor to be given up?
    pub(super) fn is_unconfirmed(&self) -> bool {
        let fate = locked(&self.fate);
        fate.unconfirmed && !fate.cancelled
    }

    pub(super) fn has_ended(&self) -> bool {
        locked(&self.fate).outcome.is_some()
    }

    /// How long until the next attempt is due.
    pub(super) fn due_in(&self) -> Duration {
        let fate = locked(&self.fate);
        match fate.attempts.next_at {
            _ if fate.just_cancelled => Duration::ZERO,
            _ if fate.unconfirmed => LONGEST_PAUSE,
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        }
    }

    /// An attempt failed, and there will be another.
    pub(super) fn failed(&self, error: SealError) {
        let mut fate = locked(&self.fate);
        let pause = pause_after(fate.attempts.failed);
        fate.just_cancelled = false;
        fate.attempts = Attempts {
            failed: fate.attempts.failed.saturating_add(1),
            last_error: Some(Arc::new(error)),
            next_at: Some(Instant::now() + pause),
        };
        // What was built may stand, and only its name be missing.
        self.advance(SealProgress {
            unneeded_blocks: self.progress().unneeded_blocks,
            ..SealProgress::default()
        });
    }

    /// There will be no other attempt.
    pub(super) fn end(&self, outcome: Result<Arc<Header>, SealError>) {
        locked(&self.fate).outcome = Some(outcome.map_err(Arc::new));
        self.ended.notify_all();
    }
}

/// How long to wait after an attempt that so many failed before.
fn pause_after(failed: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failed.min(16));
    doubled.min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds: Vec<u64> = (0..7).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn an_attempt_is_due_at_once_then_after_a_pause_and_when_it_is_cancelled() {
        let seal = Seal::new("one".parse().unwrap(), Duration::ZERO, false);
        assert_eq!(seal.due_in(), Duration::ZERO);
        for _ in 0..8 {
            seal.failed(SealError::Session("the disk is full".into()));
        }
        let due = seal.due_in();
        assert!(LONGEST_PAUSE / 2 < due && due <= LONGEST_PAUSE, "{due:?}");
        assert_eq!(seal.attempts().failed, 8);
        seal.cancel();
        assert_eq!(seal.due_in(), Duration::ZERO);
        seal.failed(SealError::Session("nor can it be cancelled".into()));
        assert!(seal.due_in() > LONGEST_PAUSE / 2);
    }

    #[test]
    fn none_is_made_before_it_is_confirmed_or_cancelled() {
        let unconfirmed = || Seal::new("one".parse().unwrap(), Duration::ZERO, true);
        let [confirmed, cancelled] = [unconfirmed(), unconfirmed()];
        assert_eq!(confirmed.due_in(), LONGEST_PAUSE);
        confirmed.confirm();
        assert_eq!(confirmed.due_in(), Duration::ZERO);
        cancelled.cancel();
        assert_eq!(cancelled.due_in(), Duration::ZERO);
    }
}
