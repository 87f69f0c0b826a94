//! [`Counters`]: what a server has done so far, as plain atomics that anyone may read at any time.
//!
//! Each is exact by itself; two read one after the other need not belong to the same moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the server began, over all its connections.
#[derive(Debug, Default)]
pub struct Counters {
    /// READ requests served.
    pub reads: AtomicU64,
    /// WRITE requests served.
    pub writes: AtomicU64,
    /// WRITE_ZEROES requests served.
    pub zeroes: AtomicU64,
    /// TRIM requests served.
    pub trims: AtomicU64,
    /// WRITEs, WRITE_ZEROESes and TRIMs that were to be durable before their replies.
    pub fuas: AtomicU64,
    /// FLUSH requests taken.
    pub flushes: AtomicU64,
    /// BLOCK_STATUS requests served.
    pub statuses: AtomicU64,
    /// CACHE requests served.
    pub caches: AtomicU64,
    /// Bytes of the device that READs asked for.
    pub read_bytes: AtomicU64,
    /// Bytes that WRITEs brought.
    pub written_bytes: AtomicU64,
    /// Requests that were answered with an error.
    pub errors: AtomicU64,
    /// Connections served now.
    pub connections: AtomicU64,
    /// Connections ever accepted.
    pub connections_total: AtomicU64,
    /// Connections closed at once, for there were too many.
    pub connections_refused: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
