//! Files that forget and files that fail: what cowslip's own tests stand under the real code.
//!
//! - [`MemoryFs`]: a file system in memory that knows what was synced, and can be cut at any
//!   operation;
//! - [`FaultyDir`]: any directory, with calls that fail as told;
//! - [`load`]: a small write load, and what each snapshot of it holds.
//!
//! Not here: torn sectors, every possible crash state (a seed gives one), the network.

pub mod faulty;
pub mod load;
pub mod memory;
mod seeded;

pub use faulty::{Call, EIO, ENOSPC, Faults, FaultyDir, Rule};
pub use memory::{Forget, MemoryFs};
