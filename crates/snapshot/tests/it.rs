//! The crate from outside: one binary, a module a subject.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "it/compact.rs"]
mod compact;
#[path = "it/compact_session.rs"]
mod compact_session;
#[path = "it/copies.rs"]
mod copies;
#[path = "it/damage.rs"]
mod damage;
#[path = "it/deltas.rs"]
mod deltas;
#[path = "it/deltas_hostile.rs"]
mod deltas_hostile;
#[path = "it/diff.rs"]
mod diff;
#[path = "it/faults.rs"]
mod faults;
#[path = "it/gc.rs"]
mod gc;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/header.rs"]
mod header;
#[path = "it/history.rs"]
mod history;
#[path = "it/image.rs"]
mod image;
#[path = "it/layer.rs"]
mod layer;
#[path = "it/limits.rs"]
mod limits;
#[path = "it/made.rs"]
mod made;
#[path = "it/parts.rs"]
mod parts;
#[path = "it/repair.rs"]
mod repair;
#[path = "it/rig.rs"]
mod rig;
#[path = "it/session.rs"]
mod session;
#[path = "it/session_failed.rs"]
mod session_failed;
#[path = "it/session_power.rs"]
mod session_power;
#[path = "it/session_retry.rs"]
mod session_retry;
#[path = "it/session_world.rs"]
mod session_world;
#[path = "it/store.rs"]
mod store;
#[path = "it/unneeded.rs"]
mod unneeded;
