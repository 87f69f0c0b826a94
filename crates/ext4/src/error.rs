//! Why a file system, or a part of it, could not be read.
//!
//! What is wrong *inside* a file system that can be read is in [`crate::Problems`].

use std::io;

/// Why a file system could not be read. Every message names the thing and the place.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// There is no ext4 here.
    #[error("this is no ext4 file system: {why}")]
    NotExt4 {
        /// What shows it.
        why: String,
    },
    /// It is ext4, but not of a kind that is read here.
    #[error("this file system is not supported: {what}")]
    Unsupported {
        /// What about it.
        what: String,
    },
    /// The bytes make no sense.
    #[error("{place} is damaged: {why}")]
    Damaged {
        /// Which structure.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// It ends before its superblock says.
    #[error("the file system has {needs_bytes} bytes, and what holds it only {has_bytes}")]
    Truncated {
        /// As the superblock says.
        needs_bytes: u64,
        /// What there is.
        has_bytes: u64,
    },
    /// More than is read here.
    #[error("{what}: at most {max}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// The most that is read.
        max: u64,
    },
    /// What holds the file system cannot be read.
    #[error("reading {bytes} bytes at {at}: {source}")]
    Read {
        /// Where.
        at: u64,
        /// How many.
        bytes: u64,
        /// The source's own error.
        source: io::Error,
    },
}

impl Ext4Error {
    pub(crate) fn damaged(place: impl Into<String>, why: impl Into<String>) -> Self {
        let (place, why) = (place.into(), why.into());
        Self::Damaged { place, why }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        let what = what.into();
        Self::Unsupported { what }
    }
}
