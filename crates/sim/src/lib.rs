//! Files that forget and files that fail: what cowslip's own tests stand under the real code.
//!
//! - [`MemoryFs`]: a file system in memory that knows what was synced, and can be cut at any
//!   operation;
//! - [`FaultyDir`]: any directory, with calls that fail, are late, are made twice or are forgotten, as told;
//! - [`load`]: a small write load, and what each snapshot of it holds;
//! - [`world`]: the real code over such a disk, and every crash and every fault that a history could meet.
//!
//! With the feature `planted`, `planted` plants bugs, and sees that they are found; with `shuttle`,
//! `schedules` has threads take turns. Not here: the network.

mod choose;
pub mod faulty;
pub mod load;
pub mod memory;
#[cfg(feature = "planted")]
pub mod planted;
#[cfg(feature = "shuttle")]
pub mod schedules;
mod seeded;
pub mod world;

/// What a panic says: a finding like any other.
pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("?")
}

pub use faulty::{Call, EIO, ENOSPC, Fault, Faults, FaultyDir, Rule};
pub use memory::{Forget, MemoryFs};
