//! Reading ext4: whose each block is, and what its journal holds.
//!
//! ```text
//! Source -> FileSystem -> inodes, directories, xattrs, journal
//!                      -> Owners  (every block has exactly one)
//!                      -> Paths   (of the inodes that somebody asks about)
//! ```
//!
//! Read in this order: [`superblock`], [`file_system`], [`inode`], [`journal`], [`owners`], [`paths`]. Nothing
//! here writes.
//!
//! An image is untrusted. Invariants of the whole crate:
//! 1. No bytes of an image make it panic, loop, or allocate more than [`limits`] says.
//! 2. Damage inside a file system that can be opened is a *problem*, counted and told ([`Problems`]), not an error: the
//!    rest still has owners. Errors are for what cannot be opened, for limits, and for sources that cannot be read.
//! 3. A tree block, an xattr block and a directory block are followed once in a pass, whoever points at
//!    them: work and memory are bounded by the size of the image, whatever it says.

mod checksum;
pub mod descriptor;
pub mod directory;
pub mod error;
pub mod exact;
mod extents;
pub mod features;
mod fields;
pub mod file_system;
mod indirect;
pub mod inode;
mod inode_table;
pub mod journal;
pub mod limits;
pub mod mapping;
mod orphans;
pub mod owners;
pub mod paths;
pub mod problems;
mod read;
pub mod source;
pub mod superblock;
mod view;
pub mod xattr;

pub use error::Ext4Error;
pub use exact::{Inexact, unneeded};
pub use file_system::{FileSystem, State};
pub use inode::{Inode, Kind};
pub use owners::{Class, Owned, Owner, Owners};
pub use paths::Paths;
pub use problems::{Problem, Problems};
pub use source::Source;
pub use superblock::Superblock;
