//! Names of stored things: [`LayerId`], [`HeaderId`], [`SnapshotName`], [`ImageName`]; and of directories: [`DirId`].
//!
//! Ids are made by the host and never reused. A snapshot's name is a file name and is typed by
//! people: its rule is enforced by the only way to make one, [`SnapshotName::from_str`].

use std::fmt;
use std::io;
use std::str::FromStr;

use cowslip_block::files::{Dir, Identity};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::SNAPSHOT_NAME_BYTES_MAX;
use crate::parts::Part;

/// Which layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerId(pub Uuid);

/// Which header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HeaderId(pub Uuid);

impl LayerId {
    /// The layer that reads as zeros. It has no object in the store.
    pub const NIL: Self = Self(Uuid::nil());

    /// Does it read as zeros?
    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.0)
    }
}

impl fmt::Display for HeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for HeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "header {}", self.0)
    }
}

/// The id that a file is named after, in the one form that we write: others are files of others.
pub(crate) fn canonical(name: &str) -> Option<Uuid> {
    let id = Uuid::parse_str(name).ok()?;
    (id.to_string() == name).then_some(id)
}

/// Which directory, as it is written down: a rename keeps it, a copy has another (see [`Identity`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirId(String);

impl DirId {
    /// Of this one.
    ///
    /// # Errors
    /// The file system's own.
    pub fn of(dir: &dyn Dir) -> io::Result<Self> {
        let Identity {
            inode,
            born_unix_ns,
        } = dir.identity()?;
        Ok(Self(format!("{inode}@{born_unix_ns}")))
    }
}

/// A snapshot's name: 1 to 128 of `A-Z a-z 0-9 . _ -`, the first a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

/// The text is no snapshot name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a snapshot: a name is {rule}", rule = SnapshotName::RULE)]
pub struct BadSnapshotName(String);

impl SnapshotName {
    /// What can be a name, said to people. So it is one component of a path, no option, and the
    /// same to everybody who reads it.
    pub const RULE: &str = "1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or a digit";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotName {
    type Err = BadSnapshotName;

    fn from_str(text: &str) -> Result<Self, BadSnapshotName> {
        let first_ok = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest_ok = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !first_ok || !rest_ok || text.len() > SNAPSHOT_NAME_BYTES_MAX {
            // A message is for people: of a very long text they need the start only.
            return Err(BadSnapshotName(text.chars().take(200).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = BadSnapshotName;

    fn try_from(text: String) -> Result<Self, BadSnapshotName> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One image of a snapshot: its name alone, or with the part, as in `vm-1:memory`. A name has no colon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName {
    /// The snapshot.
    pub name: SnapshotName,
    /// Which part; where none is said, the disk, or what there is instead.
    pub part: Option<Part>,
}

/// The text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadImageName {
    /// The part is none.
    #[error("{0:?} is no part of a snapshot: those are disk, memory and state")]
    Part(String),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] BadSnapshotName),
}

impl ImageName {
    /// This part of a snapshot.
    pub fn part(name: &SnapshotName, part: Part) -> Self {
        let (name, part) = (name.clone(), Some(part));
        Self { name, part }
    }
}

impl From<&SnapshotName> for ImageName {
    fn from(name: &SnapshotName) -> Self {
        let (name, part) = (name.clone(), None);
        Self { name, part }
    }
}

impl FromStr for ImageName {
    type Err = BadImageName;

    fn from_str(text: &str) -> Result<Self, BadImageName> {
        let (name, part) = match text.split_once(':') {
            None => (text, None),
            Some((name, part)) => {
                let known = part.parse();
                let shown = || BadImageName::Part(part.chars().take(200).collect());
                (name, Some(known.map_err(|()| shown())?))
            }
        };
        let name = name.parse()?;
        Ok(Self { name, part })
    }
}

impl TryFrom<String> for ImageName {
    type Error = BadImageName;

    fn try_from(text: String) -> Result<Self, BadImageName> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(image: ImageName) -> Self {
        image.to_string()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            None => self.name.fmt(f),
            Some(part) => write!(f, "{}:{part}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_name_and_perhaps_a_part() {
        for (text, part) in [
            ("vm.1", None),
            ("vm:disk", Some(Part::Disk)),
            ("a:state", Some(Part::State)),
        ] {
            let image: ImageName = text.parse().unwrap();
            assert_eq!((image.part, image.to_string().as_str()), (part, text));
        }
        for bad in [
            "",
            ":",
            ":memory",
            "a:",
            "a:Memory",
            "a:memory:state",
            "a:0",
            "/a:disk",
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
