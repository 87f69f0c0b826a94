//! Any [`cowslip_block::Device`] as a block device of the kernel, in one of two [`Way`]s:
//!
//! ```text
//! nbd:   ext4, xfs, ... -> /dev/nbdN  -> the kernel's NBD client -> sockets -> cowslip_nbd -> Device
//! fuse:  ext4, xfs, ... -> /dev/loopN -> the file (FUSE, direct I/O)        -> `disk`      -> Device
//! ```
//!
//! Read in this order: [`way`] (which of them a machine has); `netlink`, `nbds`, [`client`], `fence`; `disk` (what the kernel's FUSE requests mean),
//! `server` (the threads that answer them), [`loops`]; `devices`, [`mounts`], `tool`, [`place`] (what proves that something is ours),
//! [`attached`] (all of it together, and its end), [`stale`], [`waiting`].
//!
//! **The rule that keeps it from hanging.** A process that serves a device must not wait for it: a
//! thread that waits for its own process's answer cannot be killed, and keeps `/dev/fuse`, or the sockets, open, so that the kernel
//! never learns that nobody answers any more. Therefore this process opens neither the file nor the device, and
//! mounts and unmounts nothing that lies on it: losetup(8), sync(1), mount(8) and umount(8) do, as children, each with a
//! time limit. When this process dies, however it dies, the kernel fails what it has not answered, or lets it wait for the next server.
//!
//! Not here: what is served, and any other front end.

pub mod attached;
pub mod client;
mod devices;
mod disk;
mod ended;
mod error;
mod fence;
pub mod loops;
pub mod mounts;
mod nbds;
mod netlink;
pub mod place;
mod server;
pub mod stale;
mod tool;
pub mod waiting;
pub mod way;

pub use attached::Attached;
pub use client::Options;
pub use error::AttachError;
pub use place::{About, Place};
pub use waiting::{Found, Waiting};
pub use way::{Wanted, Way};
