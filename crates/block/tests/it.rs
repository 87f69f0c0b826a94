//! The crate from outside: one binary, a module a subject.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "it/concurrent.rs"]
mod concurrent;
#[path = "it/drain.rs"]
mod drain;
#[path = "it/failed.rs"]
mod failed;
#[path = "it/model.rs"]
mod model;
#[path = "it/read_only.rs"]
mod read_only;
#[path = "it/rig.rs"]
mod rig;
#[path = "it/room.rs"]
mod room;
