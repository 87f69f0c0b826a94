//! Why a snapshot is as big as it is: whose its changed blocks are, and what would make it smaller.
//!
//! ```text
//! runs that differ, owners of bytes -> share.rs: whose each block is -> tally.rs: totals
//!                                                                  -> inodes.rs: what changed in inode tables
//!                                                                  -> picture.rs: where they lie
//! totals -> advice.rs
//! ```
//!
//! Pure: what is stored and how it is read is the command's business.
//!
//! 1. A block of the diff is counted once, for the owner of the most of its bytes; of two with as many, for
//!    the first in the block. Bytes are counted exactly, each for its own owner.
//! 2. Whose a block is, the *new* image says.

pub(crate) mod advice;
pub(crate) mod inodes;
pub(crate) mod picture;
pub(crate) mod share;
pub(crate) mod tally;

pub(crate) use advice::{Advice, advise};
pub(crate) use inodes::TableChanges;
pub(crate) use picture::Picture;
pub(crate) use share::Share;
pub(crate) use tally::{Counted, Tally};
