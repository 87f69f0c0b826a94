//! A kernel block device without a driver of our own: any [`cowslip_block::Device`] as the one file of
//! a FUSE file system, and a loop device over that file.
//!
//! ```text
//! ext4, xfs, ... -> /dev/loopN -> the file (FUSE, direct I/O) -> `disk` -> Device
//! ```
//!
//! Read in this order: `disk` (what the kernel's requests mean), `server` (the threads that answer
//! them), [`loops`], [`mounts`], `tool`, [`place`] (what proves that something is ours), [`attached`] (all of it
//! together, and its end), [`stale`].
//!
//! **The rule that keeps it from hanging.** A process that serves a device must not wait for it: a
//! thread that waits for its own process's answer cannot be killed, and keeps `/dev/fuse` open, so that the kernel
//! never learns that nobody answers any more. Therefore this process opens neither the file nor the loop device, and
//! mounts and unmounts nothing that lies on it: losetup(8), mount(8) and umount(8) do, as children, each with a
//! time limit. When this process dies, however it dies, the kernel fails what it has not answered.
//!
//! Not here: what is served, and any other front end.

pub mod attached;
mod disk;
mod error;
pub mod loops;
pub mod mounts;
pub mod place;
mod server;
pub mod stale;
mod tool;

pub use attached::Attached;
pub use error::AttachError;
pub use place::{About, Place};
