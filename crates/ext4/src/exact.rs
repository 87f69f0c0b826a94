//! [`unneeded`]: what an ext4 does not need, where that is certain.
//!
//! A mounted kernel owns blocks that the bitmaps on disk still call free, and the transaction that it commits lies in
//! blocks of the journal that look dead. So a block is unneeded only where the file system is *exact on disk*: nobody
//! holds anything that is not there. It is where it was unmounted, and where it is frozen: a freeze writes
//! back all that is dirty, empties the journal, and lets nobody write until the thaw.
//!
//! What has to be so, each refused with a reason of its own ([`Inexact`]):
//!
//! | what | because otherwise |
//! |---|---|
//! | the first superblock is good | a copy does not say whether the file system is in use |
//! | no feature that is not known here | it may keep blocks in a way that nobody here sees |
//! | it needs no recovery | it is mounted and not frozen, or was never unmounted: a kernel sets this at the mount and clears it in a freeze |
//! | its state is clean, without errors, without orphans being deleted | without a journal, this alone says that nobody has it mounted |
//! | the journal is empty, and has seen no error | what is in it is not in its place yet |
//! | no problem, and bitmaps and inodes agree | what the reader misunderstands it would call free |
//!
//! Then free blocks and dead blocks of the journal are unneeded, and nothing else: orphans still have their blocks, and so
//! has what is in use and nobody has.

use std::fmt;

use cowslip_block::ByteRange;

use crate::error::Ext4Error;
use crate::features::{Feature, Features};
use crate::file_system::FileSystem;
use crate::owners::{Disagreements, Owner, Owners};
use crate::problems::{Problem, Problems};

/// Why it is not certain what a file system does not need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inexact {
    /// The superblock that was used is a copy, or does not match its checksum.
    Superblock,
    /// Features that are not known here.
    Features,
    /// The next mount would recover it.
    NeedsRecovery,
    /// It was not unmounted, has errors, or was deleting orphans: the superblock's word.
    State(u16),
    /// It should have a journal, and none can be read.
    NoJournal,
    /// The journal has transactions, or an error.
    Journal {
        /// Where its log starts, 0 where it is empty.
        start: u32,
        /// What went wrong with it once.
        error: i32,
    },
    /// Something is wrong in it; the first thing, in words.
    Problem(String),
    /// Bitmaps and inodes do not agree.
    Disagreement(Disagreements),
}

impl fmt::Display for Inexact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("the first superblock is damaged"),
            Self::Features => f.write_str("the file system has features that this version does not know"),
            Self::NeedsRecovery => {
                f.write_str("the file system needs recovery: it is mounted and not frozen, or was not unmounted")
            }
            Self::State(state) => write!(
                f,
                "the file system's state is {state:#x}, not clean: it is mounted, was not unmounted, or has errors"
            ),
            Self::NoJournal => f.write_str("the journal cannot be read"),
            Self::Journal { start, error: 0 } => {
                write!(f, "the journal is not empty: its log starts at block {start}")
            }
            Self::Journal { error, .. } => write!(f, "the journal had an error: {error}"),
            Self::Problem(first) => write!(f, "something is wrong in the file system: {first}"),
            Self::Disagreement(found) => {
                write!(f, "the file system's bitmaps and inodes do not agree: {found:?}")
            }
        }
    }
}

/// The runs of bytes that the file system does not need, in order, with gaps between them; or why that is not certain.
/// `progress` is as for [`Owners::read`].
///
/// # Errors
/// Where the file system cannot be read.
pub fn unneeded(
    fs: &FileSystem<'_>,
    progress: &mut dyn FnMut(u32),
) -> Result<Result<Vec<ByteRange>, Inexact>, Ext4Error> {
    if let Err(inexact) = says_so(fs) {
        return Ok(Err(inexact));
    }
    let owners = Owners::read(fs, progress)?;
    Ok(agrees(&owners).map(|()| {
        let mut runs: Vec<ByteRange> = Vec::new();
        for owned in owners.runs(ByteRange::new(0, owners.size_bytes())) {
            if !matches!(owned.owner, Owner::Free | Owner::Journal { live: false }) {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.end == owned.range.start => last.end = owned.range.end,
                _ => runs.push(owned.range),
            }
        }
        runs
    }))
}

/// What superblock and journal say.
fn says_so(fs: &FileSystem<'_>) -> Result<(), Inexact> {
    let sb = fs.superblock();
    let rules = [
        (
            fs.problems().count(Problem::Superblock) == 0,
            Inexact::Superblock,
        ),
        (
            sb.features.unknown() == Features::default(),
            Inexact::Features,
        ),
        (!sb.features.has(Feature::RECOVER), Inexact::NeedsRecovery),
        (sb.is_clean(), Inexact::State(sb.state)),
    ];
    if let Some((_, inexact)) = rules.into_iter().find(|(holds, _)| !holds) {
        return Err(inexact);
    }
    match fs.journal() {
        None if sb.journal_inode != 0 => Err(Inexact::NoJournal),
        Some(journal) if journal.start != 0 || journal.error != 0 => Err(Inexact::Journal {
            start: journal.start,
            error: journal.error,
        }),
        _ => no_problem(fs.problems()),
    }
}

/// The parts fit each other.
fn agrees(owners: &Owners) -> Result<(), Inexact> {
    no_problem(owners.problems())?;
    match owners.disagreements() {
        none if none == Disagreements::default() => Ok(()),
        found => Err(Inexact::Disagreement(found)),
    }
}

fn no_problem(problems: &Problems) -> Result<(), Inexact> {
    let Some((kind, _)) = problems.iter().next() else {
        return Ok(());
    };
    let first = problems.examples().first();
    Err(Inexact::Problem(
        first.cloned().unwrap_or_else(|| kind.to_string()),
    ))
}
