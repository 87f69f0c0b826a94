//! [`Prefetch`]: what the last guest touched first, put in place for the next one before it asks.
//!
//! Workers of the pool share one guest's prefetch: each takes the next pieces of runs, [`STEP_BYTES`] in all, and then its turn is over, so that faults of this
//! guest and of others come in between. It ends with the trace, and where bytes cannot be had: a fault says so to more purpose.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cowslip_block::BlockRange;
use rustix::io::Errno;

use crate::guest::{Fill, Guest, GuestError};
use crate::live::{FETCH_WITHIN, PUT_OFF};
use crate::trace::Trace;

/// Read in one turn.
const STEP_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Prefetch {
    trace: Arc<Trace>,
    next: Mutex<Next>,
}

/// What is next: of this run, the page after so many.
#[derive(Debug, Default)]
struct Next {
    run: usize,
    done: u64,
}

impl Prefetch {
    pub(crate) fn new(trace: Arc<Trace>) -> Self {
        Self {
            trace,
            next: Mutex::default(),
        }
    }

    /// One turn. Is there more?
    pub(crate) fn step(&self, guest: &Guest) -> Result<bool, GuestError> {
        let page_bytes = u64::from(guest.regions().page_size().bytes());
        let mut left = (STEP_BYTES / page_bytes).max(1);
        while left > 0 {
            let Some(pages) = self.take(left) else {
                return Ok(false);
            };
            if !fill(guest, pages)? {
                return Ok(false);
            }
            left -= pages.count().0;
        }
        Ok(true)
    }

    /// The next pages of a run, so many at most, which nobody else takes.
    fn take(&self, most: u64) -> Option<BlockRange> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let run = self.trace.runs().get(next.run)?;
        let start = run.start.0 + next.done;
        let end = run.end.0.min(start + most);
        match end == run.end.0 {
            true => {
                *next = Next {
                    run: next.run + 1,
                    done: 0,
                }
            }
            false => next.done += most,
        }
        Some(BlockRange::new(start, end))
    }
}

/// Is the guest still there?
fn fill(guest: &Guest, run: BlockRange) -> Result<bool, GuestError> {
    let give_up = Instant::now() + FETCH_WITHIN;
    loop {
        let filled = guest.fill(run, Fill::All)?;
        match filled.stopped {
            // Addresses are being given back, which takes as long as one read of events.
            Some(Errno::AGAIN) if Instant::now() < give_up => std::thread::sleep(PUT_OFF),
            Some(Errno::AGAIN) => return Ok(false),
            _ => return Ok(!filled.is_gone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use cowslip_block::{BlockIndex, BlockSize};

    use super::*;

    #[test]
    fn long_runs_are_taken_in_pieces_and_each_page_once() {
        let mut trace = Trace::new(BlockSize::DISK);
        for page in (100..700).chain([3]).chain(50..60) {
            trace.touched(BlockIndex(page));
        }
        let prefetch = Prefetch::new(Arc::new(trace.clone()));
        let pieces: Vec<_> = std::iter::from_fn(|| prefetch.take(256)).collect();
        assert!(
            pieces
                .iter()
                .all(|piece| (1..=256).contains(&piece.count().0))
        );
        let taken = pieces.iter().flat_map(|piece| piece.iter());
        assert!(taken.eq(trace.runs().iter().flat_map(|run| run.iter())));
        assert_eq!(pieces.len(), 5);
    }
}
