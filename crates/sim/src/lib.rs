//! Files that forget and files that fail: what cowslip's own tests stand under the real code.
//!
//! - [`MemoryFs`]: a file system in memory that knows what was synced, and can be cut at any
//!   operation;
//! - [`FaultyDir`]: any directory, with calls that fail as told;
//! - [`load`]: a small write load, and what each snapshot of it holds;
//! - [`world`]: the real code over such a disk, and every crash that a history could meet.
//!
//! With the feature `planted`, `planted` plants bugs, and sees that they are found. Not here: the network.

mod choose;
pub mod faulty;
pub mod load;
pub mod memory;
#[cfg(feature = "planted")]
pub mod planted;
mod seeded;
pub mod world;

pub use faulty::{Call, EIO, ENOSPC, Faults, FaultyDir, Rule};
pub use memory::{Forget, MemoryFs};
