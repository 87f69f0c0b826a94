//! [`Prefetch`]: what the last guest touched first, put in place for the next one before it asks.
//!
//! Workers of the pool share one guest's prefetch: each takes the next runs, some [`STEP_BYTES`] of them, and then its turn is over, so that faults of this
//! guest and of others come in between. It ends with the trace, and where bytes cannot be had: a fault says so to more purpose.

use std::sync::atomic::{AtomicUsize, Ordering};
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
    trace: Trace,
    next: AtomicUsize,
}

impl Prefetch {
    pub(crate) fn new(trace: Trace) -> Self {
        Self {
            trace,
            next: AtomicUsize::new(0),
        }
    }

    /// One turn. Is there more?
    pub(crate) fn step(&self, guest: &Guest) -> Result<bool, GuestError> {
        let page_bytes = u64::from(guest.regions().page_size().bytes());
        let mut bytes = 0;
        while bytes < STEP_BYTES {
            let Some(run) = self
                .trace
                .runs()
                .get(self.next.fetch_add(1, Ordering::Relaxed))
            else {
                return Ok(false);
            };
            if !fill(guest, *run)? {
                return Ok(false);
            }
            bytes += run.count().0 * page_bytes;
        }
        Ok(true)
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
