//! Guest memory: restored page by page as the guest touches it, and of what it wrote only what changed is stored.
//!
//! ```text
//! handshake  the monitor's regions and userfaultfd, checked
//! guest      faults -> page (the table) -> install; removals exclude installs
//! source     the snapshot's map and frames, shared by all guests of it
//! server     guests without number: one thread for what is at hand, a pool in turns for what is not
//! seal       memory that stands still -> what each page becomes -> layer and header
//! snapshot   a guest that is served: what it wrote, copied out in rounds as it was at one moment -> seal
//! ```
//!
//! Read in this order: [`page`], [`regions`], [`handshake`], [`source`], [`guest`], [`live`], [`server`]; [`sys`] is the kernel. By itself: [`seal`], with
//! what it chooses by in `choice.rs` and the disk's blocks in [`disk`].

mod choice;
pub mod disk;
pub mod guest;
pub mod handshake;
pub mod limits;
pub mod live;
pub mod page;
mod pool;
mod prefetch;
pub mod process;
pub mod regions;
mod rounds;
pub mod seal;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod sys;
pub mod trace;
