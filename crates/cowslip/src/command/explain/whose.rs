//! [`Whose`]: the file system of an image, or that there is none that can be read.

use std::collections::HashMap;
use std::sync::Arc;

use cowslip_block::{ByteRange, Device, DeviceError};
use cowslip_ext4::problems::Problems;
use cowslip_ext4::{Ext4Error, FileSystem, Owned, Owner, Owners, Paths, State};
use serde::Serialize;

use crate::command::Context;
use crate::failure::{Failure, Kind};
use crate::report::{Unit, advance, count};

/// Whose the bytes of an image are.
pub(super) enum Whose {
    /// An ext4's.
    Ext4(Box<Ext4>),
    /// Nobody can tell, for this reason.
    Unknown(String),
}

pub(super) struct Ext4 {
    pub(super) fs: FileSystem<'static>,
    pub(super) owners: Owners,
}

/// Something wrong in a file system, so many times. Its field names are a contract.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) count: u64,
}

impl Whose {
    pub(super) fn read(context: &Context, image: Arc<dyn Device>) -> Result<Self, Failure> {
        let bar = context.report.progress("reading", Unit::Groups);
        let read = FileSystem::open(image, State::Replayed).and_then(|fs| {
            let groups = fs.superblock().groups().into();
            let owners = Owners::read(&fs, &mut |done| advance(&bar, done.into(), groups))?;
            Ok(Ext4 { fs, owners })
        });
        bar.finish_and_clear();
        match read {
            Ok(ext4) => Ok(Self::Ext4(Box::new(ext4))),
            Err(error @ Ext4Error::Read { .. }) => Err(unreadable(&error)),
            Err(error) => Ok(Self::Unknown(error.to_string())),
        }
    }

    /// The paths of those of these owners that have an inode.
    pub(super) fn paths(
        &self,
        context: &Context,
        owners: &[Owner],
    ) -> Result<HashMap<u32, String>, Failure> {
        let Self::Ext4(ext4) = self else {
            return Ok(HashMap::new());
        };
        let inodes: Vec<u32> = owners.iter().filter_map(|owner| owner.inode()).collect();
        ext4.paths(context, &inodes)
    }

    /// The owners of a range of bytes, in order, without gaps.
    pub(super) fn of(&self, range: ByteRange) -> Box<dyn Iterator<Item = Owned> + '_> {
        let owner = Owner::Unknown;
        match self {
            Self::Ext4(ext4) => Box::new(ext4.owners.runs(range)),
            Self::Unknown(_) => Box::new(std::iter::once(Owned { range, owner })),
        }
    }
}

impl Ext4 {
    /// The paths of some inodes, as they are, in bytes that somebody else chose.
    pub(super) fn paths(
        &self,
        context: &Context,
        wanted: &[u32],
    ) -> Result<HashMap<u32, String>, Failure> {
        let bar = context.report.progress("naming", Unit::Groups);
        let groups = 2 * u64::from(self.fs.superblock().groups());
        let paths = Paths::read(&self.fs, wanted.iter().copied(), &mut |done| {
            advance(&bar, done.into(), groups);
        });
        bar.finish_and_clear();
        let paths = paths.map_err(|error| unreadable(&error))?;
        let path = |inode: &u32| {
            let found = paths.get(*inode).map(|found| found.path);
            let found = found.unwrap_or_else(|| format!("<{inode}>").into_bytes());
            (*inode, String::from_utf8_lossy(&found).into_owned())
        };
        Ok(wanted.iter().map(path).collect())
    }

    /// All that is wrong with it, and the first few in words.
    pub(super) fn wrong(&self) -> (Vec<Wrong>, Vec<String>) {
        let told = [self.fs.problems(), self.owners.problems()];
        let mut all: Vec<Wrong> = told
            .into_iter()
            .flat_map(Problems::iter)
            .map(|(problem, count)| Wrong {
                what: problem.to_string(),
                count,
            })
            .collect();
        let said = self.owners.disagreements();
        let disagreements = [
            (
                "blocks in use that the bitmap calls free",
                said.owned_but_free_blocks,
            ),
            (
                "blocks that the bitmap calls used and nothing has",
                said.used_but_unowned_blocks,
            ),
            ("blocks that two have", said.owned_twice_blocks),
            (
                "inodes in use that the bitmap calls free",
                said.live_but_free_inodes,
            ),
            (
                "inodes that the bitmap calls used and are not",
                said.dead_but_used_inodes,
            ),
        ];
        all.extend(
            disagreements
                .into_iter()
                .filter(|(_, n)| *n > 0)
                .map(|(what, count)| Wrong {
                    what: what.into(),
                    count,
                }),
        );
        let examples = told.into_iter().flat_map(Problems::examples);
        (all, examples.cloned().collect())
    }

    /// One line about what was found.
    pub(super) fn in_words(&self) -> String {
        let replayed = match self.fs.replayed_blocks() {
            0 => String::new(),
            n => format!(", with {} of its journal", count(n, "block")),
        };
        format!("ext4 in blocks of {}{replayed}", self.owners.block_bytes())
    }
}

/// The image itself cannot be read.
fn unreadable(error: &Ext4Error) -> Failure {
    let corrupt = match error {
        Ext4Error::Read { source, .. } => source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<DeviceError>())
            .is_some_and(|inner| matches!(inner, DeviceError::Corrupt(_))),
        _ => false,
    };
    let kind = if corrupt { Kind::Corrupt } else { Kind::Failed };
    Failure::new(kind, error.to_string())
}
