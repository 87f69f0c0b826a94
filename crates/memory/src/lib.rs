//! Guest memory: restored page by page as the guest touches it, and of what it wrote only what changed is stored.
//!
//! ```text
//! handshake  the monitor's regions and userfaultfd, checked
//! guest      faults -> page (the table) -> install; removals exclude installs
//! source     the snapshot's map and frames, shared by all guests of it
//! ```
//!
//! Read in this order: [`page`], [`regions`], [`handshake`], [`source`], [`guest`]; [`sys`] is the kernel.

pub mod guest;
pub mod handshake;
pub mod limits;
pub mod page;
pub mod regions;
pub mod source;
pub mod sys;
