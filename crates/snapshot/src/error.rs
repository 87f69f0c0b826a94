//! What can go wrong with stored things.
//!
//! [`ObjectError`] is what a decoder knows: the place in the object at hand. [`StoreError`] adds
//! which object that is. Every message names the thing and the place.

use std::io;

/// What is wrong with one stored object, whichever that is.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Its bytes are not what was written, or were never right.
    #[error("{place}: {why}")]
    Damaged {
        /// Where in the object.
        place: String,
        /// What is wrong there.
        why: String,
    },
    /// It is of a version that this program does not know.
    #[error(
        "it is written in version {found} of the format, and this cowslip reads up to version {known}: use the release that wrote it, or a later one"
    )]
    Version {
        /// The object's version.
        found: u32,
        /// The newest that we know.
        known: u32,
    },
    /// The file layer failed.
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl ObjectError {
    pub(crate) fn damaged(place: impl Into<String>, why: impl Into<String>) -> Self {
        let (place, why) = (place.into(), why.into());
        Self::Damaged { place, why }
    }

    /// The same, said of an object by name.
    pub(crate) fn of(self, object: impl Into<String>) -> StoreError {
        let object = object.into();
        match self {
            Self::Damaged { place, why } => StoreError::Corrupt { object, place, why },
            Self::Version { found, known } => StoreError::Version {
                object,
                found,
                known,
            },
            Self::Io(source) => StoreError::io(format!("reading {object}"), source),
        }
    }
}

impl From<io::Error> for ObjectError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::damaged("its end", "the file is cut short"),
            io::ErrorKind::NotFound => Self::damaged("all of it", "the file is not there"),
            io::ErrorKind::FileTooLarge => Self::damaged("its end", error.to_string()),
            _ => Self::Io(error),
        }
    }
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No snapshot of this name.
    #[error("there is no snapshot {name} in the store")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The snapshot has no such part.
    #[error("the snapshot {name} has no {part}: it has {has}")]
    NoPart {
        /// The name.
        name: String,
        /// The part that is not there.
        part: crate::parts::Part,
        /// Those that are.
        has: String,
    },
    /// The name is taken.
    #[error("there is a snapshot {name} already")]
    AlreadyExists {
        /// The name.
        name: String,
    },
    /// No session of this id.
    #[error("the store knows no session {id}")]
    NoSession {
        /// The id.
        id: uuid::Uuid,
    },
    /// A session stands on a header that was collected.
    #[error("headers/{base}, which the session stands on, is not in the store any more: {why}")]
    BaseGone {
        /// What it stands on.
        base: crate::ids::HeaderId,
        /// How it came to that.
        why: String,
    },
    /// The directory is no store.
    #[error("the directory is not a cowslip store: {why}")]
    NotAStore {
        /// What shows it, and what to do.
        why: String,
    },
    /// A stored object is not what was stored.
    #[error("{object} is damaged: {place}: {why}")]
    Corrupt {
        /// Which object: its path in the store.
        object: String,
        /// Where in it.
        place: String,
        /// What is wrong there.
        why: String,
    },
    /// A stored object is of a version that this program does not know.
    #[error(
        "{object} is written in version {found} of the format, and this cowslip reads up to version {known}: use the release that wrote it, or a later one"
    )]
    Version {
        /// Which object.
        object: String,
        /// Its version.
        found: u32,
        /// The newest that we know.
        known: u32,
    },
    /// More than the format allows.
    #[error("{what}: at most {max}")]
    Limit {
        /// What is too large.
        what: String,
        /// The most that is allowed.
        max: u64,
    },
    /// The caller asked for what makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else holds what is needed, and has for long.
    #[error("{0}")]
    Busy(String),
    /// The disk that holds the store is full.
    #[error("no space left: {what}")]
    NoSpace {
        /// What was being done.
        what: String,
    },
    /// The file layer failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The file layer's own error.
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { what },
            _ => Self::Io { what, source },
        }
    }

    pub(crate) fn limit(what: impl Into<String>, max: u64) -> Self {
        let what = what.into();
        Self::Limit { what, max }
    }
}
