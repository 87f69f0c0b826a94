//! The crate from outside: one binary, a module a subject.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "it/crashes.rs"]
mod crashes;
#[path = "it/faults.rs"]
mod faults;
#[cfg(feature = "planted")]
#[path = "it/planted.rs"]
mod planted;
#[cfg(feature = "shuttle")]
#[path = "it/schedules.rs"]
mod schedules;
