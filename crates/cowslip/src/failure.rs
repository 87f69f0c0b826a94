//! [`Failure`]: how every error reaches the user: what failed, a hint where there is one, and one
//! of the fixed exit codes. This is the only place that knows the codes.

use std::fmt;
use std::io;
use std::path::Path;

use cowslip_block::DeviceError;
use cowslip_snapshot::error::StoreError;
use cowslip_snapshot::seal::SealError;
use cowslip_snapshot::session::SessionError;
use serde::{Deserialize, Serialize};

/// The exit code of `diff --quiet` where the images differ.
pub(crate) const DIFFERENT: u8 = 1;

/// The kind of a failure, which is its exit code. They are a contract: see the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Failed,
    Usage,
    NotFound,
    Corrupt,
    /// As `Failed`, where code 1 is an answer: see [`DIFFERENT`].
    Undecided,
    /// The snapshot is taken, and not stored yet: the server goes on trying.
    Pending,
    /// As `Failed`, where all codes below belong to a command in a guest.
    Around,
    /// That command took longer than it may.
    Late,
}

impl Kind {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Corrupt => 4,
            Self::Undecided => 5,
            Self::Pending => 6,
            // As env(1), timeout(1) and others who run commands have it.
            Self::Late => 124,
            Self::Around => 125,
        }
    }
}

/// What the user is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same, of a command whose exit code 1 is an answer.
    pub(crate) fn undecided(self) -> Self {
        let kind = match self.kind {
            Kind::Failed => Kind::Undecided,
            kind => kind,
        };
        Self { kind, ..self }
    }

    /// The same, of who runs a command in a guest: the other codes are the command's.
    pub(crate) fn around(self) -> Self {
        let kind = match self.kind {
            Kind::Late => Kind::Late,
            _ => Kind::Around,
        };
        Self { kind, ..self }
    }

    /// A file that could not be used: names it, and tells a missing one from the rest.
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Failed,
        };
        Self::new(kind, format!("{}: {error}", path.display()))
    }

    /// The same, said of something.
    pub(crate) fn about(self, what: impl fmt::Display) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let failure = |kind| Self::new(kind, error.to_string());
        match &error {
            StoreError::NotFound { .. } => {
                failure(Kind::NotFound).hint("`cowslip ls` lists the snapshots")
            }
            StoreError::NoPart { name, .. } => {
                failure(Kind::NotFound).hint(format!("`cowslip inspect {name}` shows its parts"))
            }
            StoreError::AlreadyExists { .. } => {
                failure(Kind::Failed).hint("--replace takes its place")
            }
            StoreError::NoSession { .. } => {
                failure(Kind::NotFound).hint("`cowslip sessions` lists them")
            }
            StoreError::BaseGone { .. } => failure(Kind::NotFound).hint(
                "its own bytes are whole; another copy of the store may have what is missing",
            ),
            StoreError::NotAStore { .. } => failure(Kind::NotFound)
                .hint("--store DIR or COWSLIP_STORE says where it is; `cowslip import` makes one"),
            StoreError::Corrupt { .. } => failure(Kind::Corrupt),
            StoreError::NoSpace { .. } => {
                failure(Kind::Failed).hint("nothing was committed; make room and try again")
            }
            StoreError::Version { .. }
            | StoreError::Limit { .. }
            | StoreError::Invalid(_)
            | StoreError::Busy(_)
            | StoreError::Io { .. } => failure(Kind::Failed),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let failure = |kind| Self::new(kind, error.to_string());
        match error {
            SessionError::Store(error) => error.into(),
            SessionError::Device(error) => error.into(),
            SessionError::Seal(error) => match &*error {
                SealError::Store(StoreError::AlreadyExists { name }) => {
                    let error = StoreError::AlreadyExists { name: name.clone() };
                    Self::from(error).hint("what was written is kept, for the next snapshot")
                }
                SealError::Store(StoreError::Corrupt { .. })
                | SealError::Read(DeviceError::Corrupt(_)) => {
                    Self::new(Kind::Corrupt, error.to_string())
                }
                SealError::Interrupted => Self::failed(error.to_string()),
                SealError::Refused(_) => Self::failed(error.to_string()).hint(
                    "unmount it, or freeze it (cowslip quiesce DIR -- COMMAND, fsfreeze -f); what was written is kept, for the next snapshot",
                ),
                _ => Self::failed(error.to_string())
                    .hint("what was written is kept, for the next snapshot"),
            },
            SessionError::InUse => failure(Kind::Failed),
            SessionError::NotASession => failure(Kind::NotFound),
            SessionError::Foreign(_) => failure(Kind::Failed)
                .hint("give a new or an empty directory: a session wants one of its own"),
            SessionError::Size(_) => failure(Kind::Usage),
            SessionError::Damaged(_) => failure(Kind::Corrupt),
            SessionError::NotOnItsWay { .. } => failure(Kind::NotFound)
                .hint("`cowslip sessions` shows which snapshots are on their way"),
            SessionError::TooManyFrozen { .. } | SessionError::Full => failure(Kind::Failed)
                .hint("`cowslip sessions` shows what is on its way, and what holds it up"),
            SessionError::Io { .. } => failure(Kind::Failed),
        }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let kind = match error {
            DeviceError::Corrupt(_) => Kind::Corrupt,
            _ => Kind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}
