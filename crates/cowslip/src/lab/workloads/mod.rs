//! The workloads: small honest programs with a seed. Each changes files through a [`Hand`] and leaves syncing to the
//! stage that comes after it, but for what the program that it stands for syncs itself.
//!
//! | workload | stands for |
//! |---|---|
//! | `idle`, `first-mount-file`, `first-mount-device` | nothing at all: what the file system does by itself |
//! | `read-walk` | `find`, `grep -r`, a linter |
//! | `unpack`, `tiny-files` | package managers, archives, caches of small objects |
//! | `edit-build` | an editor and a compiler |
//! | `append-fsync`, `sqlite` | logs, databases |
//! | `create-delete`, `zero-fill` | temporary files, swap files, images |
//! | `utimes`, `delete-base` | `touch`, `git checkout`, `rm -r` |
//! | `boot` | a little of everything, as a system does when it starts |
//! | `chain` | five snapshots with a little work between: its figures are sums over the five |

mod files;
mod sqlite;
mod work;

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Scale;
use super::hand::Hand;
use super::programs::Stop;
use crate::failure::Failure;

/// Snapshots of a chain.
pub(crate) const CHAIN: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    Idle,
    FirstMountFile,
    FirstMountDevice,
    ReadWalk,
    Unpack,
    TinyFiles,
    EditBuild,
    AppendFsync,
    Sqlite,
    CreateDelete,
    ZeroFill,
    Utimes,
    DeleteBase,
    Boot,
    Chain,
}

/// All there are: name, and about how many seconds a cell takes.
pub(crate) const ALL: [(Workload, &str, u32); 15] = [
    (Workload::Idle, "idle", 9),
    (Workload::FirstMountFile, "first-mount-file", 3),
    (Workload::FirstMountDevice, "first-mount-device", 4),
    (Workload::ReadWalk, "read-walk", 3),
    (Workload::Unpack, "unpack", 4),
    (Workload::TinyFiles, "tiny-files", 4),
    (Workload::EditBuild, "edit-build", 4),
    (Workload::AppendFsync, "append-fsync", 3),
    (Workload::Sqlite, "sqlite", 4),
    (Workload::CreateDelete, "create-delete", 5),
    (Workload::ZeroFill, "zero-fill", 3),
    (Workload::Utimes, "utimes", 3),
    (Workload::DeleteBase, "delete-base", 3),
    (Workload::Boot, "boot", 3),
    (Workload::Chain, "chain", 10),
];

/// What a workload begins from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// A tree with a past.
    Aged,
    /// As mkfs.ext4 left it, in a file.
    FreshFile,
    /// The same, on a block device.
    FreshDevice,
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        let found = ALL.iter().find(|(w, _, _)| *w == self);
        found.map_or("", |(_, name, _)| name)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        ALL.iter().find(|(_, n, _)| *n == name).map(|(w, _, _)| *w)
    }

    pub(crate) fn guess_seconds(self) -> u32 {
        ALL.iter()
            .find(|(w, _, _)| *w == self)
            .map_or(0, |(_, _, s)| *s)
    }

    pub(crate) fn base(self) -> Base {
        match self {
            Self::FirstMountFile => Base::FreshFile,
            Self::FirstMountDevice => Base::FreshDevice,
            _ => Base::Aged,
        }
    }
}

/// Does the work. `device` is what the file system is mounted from.
pub(crate) fn run(
    workload: Workload,
    hand: &mut Hand,
    scale: Scale,
    device: &Path,
    stop: &Stop,
) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("{}: {e}", workload.name()));
    match workload {
        // Longer than the journal's five seconds.
        Workload::Idle => stop.sleep(Duration::from_millis(scale.of(6000) as u64)),
        Workload::FirstMountFile | Workload::FirstMountDevice => {
            work::until_initialised(hand, device, stop)
        }
        Workload::Sqlite => sqlite::run(hand, scale),
        Workload::ReadWalk => files::read_walk(hand).map_err(failed),
        Workload::Unpack => files::unpack(hand, scale).map_err(failed),
        Workload::TinyFiles => files::tiny(hand, scale).map_err(failed),
        Workload::CreateDelete => files::create_delete(hand, scale).map_err(failed),
        Workload::ZeroFill => files::zero_fill(hand, scale).map_err(failed),
        Workload::Utimes => files::utimes(hand, scale).map_err(failed),
        Workload::DeleteBase => files::delete_base(hand).map_err(failed),
        Workload::EditBuild => work::edit_build(hand, scale, 30).map_err(failed),
        Workload::AppendFsync => work::append_fsync(hand, scale).map_err(failed),
        Workload::Boot => work::boot(hand, scale).map_err(failed),
        Workload::Chain => work::a_little(hand, scale).map_err(failed),
    }
}
