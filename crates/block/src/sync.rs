//! The locks, atomics and conditions of a cache, its gate and the overlay.
//!
//! They are std's. With the feature `shuttle`, which only `cowslip-sim` asks for, they are those of the crate of that name: it
//! runs all threads of a test in one, and decides at each of these who goes on. Not here: what is shared by caches and is not a
//! part of their protocol (`health.rs`).

pub(crate) use std::sync::{Arc, PoisonError, Weak};

#[cfg(feature = "shuttle")]
use shuttle::sync as from;
#[cfg(not(feature = "shuttle"))]
use std::sync as from;

pub(crate) use from::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use from::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
