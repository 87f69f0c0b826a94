//! A virtual machine monitor in miniature, for tests: a process that owns memory, hands it over as Firecracker does, and whose threads touch it as
//! they are told.
//!
//! ```text
//! test ── Control::start ──> this binary again ── run_if_asked ──> Memory, registered; handshake to `memory.sock`
//!      ── lines by its standard input ──> threads that read, write, give back ──> lines by the same
//! ```
//!
//! What they do is told step by step; or they work by themselves, from a seed, until they are paused, and keep a shadow of each byte (`work.rs`): threads, or a
//! processor of /dev/kvm (`vcpu.rs`).
//!
//! Each test binary that uses it has a test of its own, `the_guest`, which calls [`run_if_asked`].
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails"
)]

mod control;
mod guest;
mod handing;
mod machine;
mod sys;
mod vcpu;
mod work;

pub use control::Control;
pub use guest::{Shape, run_if_asked};
pub use handing::hand_over;
pub use machine::{HugePages, can, can_kvm};
pub use sys::Memory;
