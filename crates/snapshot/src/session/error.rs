//! [`SessionError`]: why a session refused.

use std::io;
use std::sync::Arc;

use cowslip_block::DeviceError;

use crate::error::StoreError;
use crate::seal::SealError;

/// Why a session refused.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Somebody has it open.
    #[error("the session is in use by another process")]
    InUse,
    /// There is no session in the directory.
    #[error("there is no session in this directory")]
    NotASession,
    /// The directory holds other things.
    #[error("the directory is not empty and not a session: it holds {0}")]
    Foreign(String),
    /// A size that cannot be.
    #[error("{0}")]
    Size(String),
    /// A file of the session is not what was written.
    #[error("the session is damaged: {0}")]
    Damaged(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A seal did not come about.
    #[error("the snapshot was not made: {0}")]
    Seal(Arc<SealError>),
    /// No snapshot of this name waits to be stored.
    #[error("no snapshot {name} is on its way")]
    NotOnItsWay {
        /// The name.
        name: String,
    },
    /// Too many snapshots wait to be stored.
    #[error("{max} frozen caches are not stored yet; at most {max}")]
    TooManyFrozen {
        /// The most that is allowed.
        max: usize,
    },
    /// A snapshot must be stored before another can be given up.
    #[error("so many snapshots were given up before that this one has to be stored")]
    Full,
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The file layer failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The file layer's own error.
        source: io::Error,
    },
}

impl SessionError {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::InvalidData => Self::Damaged(source.to_string()),
            _ => Self::Io {
                what: what.into(),
                source,
            },
        }
    }
}
