//! [`AttachError`]: why there is no block device.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a device could not be attached, mounted or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The machine lacks something that this needs.
    #[error("a block device needs {0}")]
    Missing(&'static str),
    /// A program of the system refused.
    #[error("{program}: {said}")]
    Refused {
        /// Which program.
        program: &'static str,
        /// What it said, or how it ended.
        said: String,
    },
    /// A program of the system did not end in time.
    #[error("{program} has not ended within {} s", within.as_secs())]
    TooLong {
        /// Which program.
        program: &'static str,
        /// How long it had.
        within: Duration,
    },
    /// A device that waits for its server is not what is served now.
    #[error("{} waits for a device of another size, or that is read-only or is not", .0.display())]
    Unlike(PathBuf),
    /// The system's own.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The error.
        source: io::Error,
    },
}

impl AttachError {
    /// Did the kernel refuse it as what makes no sense, as it does for a device that is not there any more? All else may pass.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput)
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io {
            what: what.into(),
            source,
        }
    }
}
