//! What a file system is to hold: a [`Tree`] in memory, and how it is read from an archive of tar.
//!
//! ```text
//! archive -> tar::read -> Tree -> whoever fills a file system
//! ```
//!
//! Read in this order: [`model`], [`content`], [`tar`]. Names, links, attributes and pieces of files are untrusted until they
//! are in a tree; nothing of an archive is ever a path of this machine. Nothing here writes but [`content::Opened::copy_to`].
//!
//! Not here: decompression, directories as a source, and what is made of a tree.

pub mod content;
pub mod model;
pub mod tar;
pub mod xattrs;

pub use content::{Content, Opened, Piece};
pub use model::{Attributes, Counts, Kind, Node, NodeId, ROOT, Time, Tree};
