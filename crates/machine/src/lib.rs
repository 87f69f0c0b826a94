//! Real kernels, for tests: Debian's, under QEMU, with this machine's own files as theirs.
//!
//! ```text
//! test ── Machine::boot ──> qemu-system-x86_64 ── kernel ──> init (crates/guest): root over 9p, read-only, below an overlay in memory
//!      ── Running::run ──> one virtio port, frames (crates/guest) ──> a command, as root ──> its streams, how it ended
//! ```
//!
//! A kernel comes from a cache, where `cargo xtask test` puts it ([`Kernel`]); a test asks [`have`] first. The processor is emulated, one, and some
//! 20 times slower than the one it runs on, so that it needs nothing of this machine's kernel: give it little to do, and time.
//!
//! What is in the machine: every program and library of this one at its own path, `/dev`, `/proc`, `/sys`, empty `/tmp` and `/run`. What it writes
//! is gone with it, except below what [`Machine::share`] has. There is no network.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails"
)]

mod kernel;
mod machine;
mod monitor;
mod running;

pub use cowslip_guest::Archive;
pub use kernel::{Kernel, VERSIONS, have};
pub use machine::{Access, Machine};
pub use running::Running;
