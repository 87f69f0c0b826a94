//! Building a template: a directory or an archive becomes an ext4, which becomes a snapshot.
//!
//! ```text
//! directory ------------+                          +-> rootless: debugfs --------------------+
//!                       +-> Tree -> mkfs.ext4 -----+                                         +-> e2fsck -fn -> import
//! spool -> tar ---------+    (in memory)           +-> inside: mount -> rooted -> --run -----+
//! ```
//!
//! Read in this order: `cowslip-tree` (the tree, tar), `directory`, `spool`, `e2fsprogs`, `rootless`, `rooted`, `inside`. What may be
//! hostile is the archive: it is made into a tree in memory, by rules that stand on top of its `model`, and only that tree is ever
//! made into files.
//!
//! Invariant: the image, and whatever else is only needed for a while, are files without a name: however the process
//! ends, they are gone.

mod dead_journal;
mod directory;
mod e2fsprogs;
mod identity;
pub(crate) mod inside;
mod room;
mod rooted;
mod rootless;
mod spool;

use std::fs::File;
use std::path::Path;

use cowslip_ext4::{FileSystem, State};
use cowslip_tree::Tree;
use cowslip_tree::tar::{self, ArchiveError};
use uuid::Uuid;

use self::e2fsprogs::{E2fsprogs, Script};
use self::inside::Mounted;
use crate::failure::Failure;
use crate::profile::Settings;

pub(crate) use self::e2fsprogs::path_of;

/// 2020-01-01: what time it is, unless SOURCE_DATE_EPOCH says.
const NOW: u64 = 1_577_836_800;
/// The least that an inode can be made for.
const BYTES_PER_INODE_MIN: u64 = 1024;

/// What there is to do, step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many files of a directory.
    Reading,
    /// So many bytes of an archive.
    Unpacking,
    /// So many bytes of contents, of so many.
    Filling,
    Checking,
}

/// Told how far a step is, and how far it goes, 0 where that is not known.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(Step, u64, u64);

/// How it is to be made.
pub(crate) struct Plan<'a> {
    pub(crate) size_bytes: u64,
    pub(crate) settings: &'a Settings,
    pub(crate) label: Option<&'a str>,
    pub(crate) uuid: Option<Uuid>,
    /// As root, in a mount namespace of our own: where to mount it, and what to run in it.
    pub(crate) mounted: Option<(&'a Path, &'a [String])>,
    /// A directory with room for the image.
    pub(crate) room: &'a Path,
}

/// A file system in a file without a name.
pub(crate) struct Image {
    pub(crate) file: File,
    pub(crate) uuid: Uuid,
    pub(crate) mkfs_args: Vec<String>,
}

/// Reads a directory, or an archive: `-` is standard input. Returns what there is to be said besides.
pub(crate) fn read(
    source: &Path,
    size_bytes: u64,
    room: &Path,
    progress: Progress<'_>,
) -> Result<(Tree, Vec<String>), Failure> {
    let nodes_max = usize::try_from(size_bytes / BYTES_PER_INODE_MIN).unwrap_or(usize::MAX);
    let mut tree = Tree::new(nodes_max);
    if source.is_dir() {
        let mut files = 0;
        let remarks = directory::read(source, &mut tree, &mut || {
            files += 1;
            progress(Step::Reading, files, 0);
        })?;
        return Ok((tree, remarks));
    }
    // Zeros of a file may be many more bytes in the archive than in the image.
    let max = size_bytes.saturating_mul(2).saturating_add(1 << 30);
    let archive = spool::archive(source, room, max, &mut |done| {
        progress(Step::Unpacking, done, 0)
    })?;
    tar::read(&archive, &mut tree, size_bytes, &mut |done| {
        progress(Step::Unpacking, done, 0)
    })
    .map_err(|error| match error {
        ArchiveError::Io(e) => Failure::file(source, &e),
        refused @ ArchiveError::Refused { .. } => {
            Failure::failed(format!("{}: {refused}", source.display()))
        }
    })?;
    Ok((tree, Vec::new()))
}

/// Makes the file system, fills it, and checks it.
pub(crate) fn make(plan: &Plan<'_>, tree: &Tree, progress: Progress<'_>) -> Result<Image, Failure> {
    let uuid = plan
        .uuid
        .unwrap_or_else(|| identity::uuid_of(tree, plan.size_bytes, &plan.settings.mkfs_args()));
    let file = tempfile::tempfile_in(plan.room).map_err(|e| Failure::file(plan.room, &e))?;
    file.set_len(plan.size_bytes)
        .map_err(|e| Failure::file(plan.room, &e))?;
    let tools = E2fsprogs {
        image: &file,
        room: plan.room,
        now: now()?,
    };
    let mkfs_args = mkfs_args(plan, uuid)?;
    tools.mkfs(&mkfs_args)?;
    carry_options(&tools, plan.settings)?;
    check_room(&file, tree, plan.size_bytes)?;
    let total = tree.counts().content_bytes;
    let mut filling = |done| progress(Step::Filling, done, total);
    match plan.mounted {
        None => rootless::fill(&tools, tree, &mut filling)?,
        Some((dir, commands)) => {
            let mounted = Mounted::new(&file, dir)?;
            rooted::fill(&mounted.root()?, tree, &mut filling)?;
            for command in commands {
                mounted.run(command)?;
            }
            mounted.close()?;
        }
    }
    progress(Step::Checking, 0, 0);
    tools.check()?;
    dead_journal::clear(&file)?;
    Ok(Image {
        file,
        uuid,
        mkfs_args,
    })
}

fn now() -> Result<u64, Failure> {
    let Some(said) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|v| !v.is_empty()) else {
        return Ok(NOW);
    };
    let seconds = said.to_str().and_then(|text| text.parse().ok());
    // 0 is no time to e2fsprogs, and it has 32 bits for most.
    let seconds = seconds.filter(|s| (1..=u64::from(u32::MAX)).contains(s));
    seconds.ok_or_else(|| Failure::usage("SOURCE_DATE_EPOCH is no number of seconds since 1970"))
}

fn mkfs_args(plan: &Plan<'_>, uuid: Uuid) -> Result<Vec<String>, Failure> {
    let mut settings = plan.settings.clone();
    let own = format!("-E hash_seed={uuid},root_owner=0:0");
    settings.add_mkfs_text(&own).map_err(Failure::failed)?;
    let mut args = settings.mkfs_args();
    args.extend(["-U".into(), uuid.to_string()]);
    if let Some(label) = plan.label {
        args.extend(["-L".into(), label.into()]);
    }
    Ok(args)
}

/// ext4's own mount options go with the file system: whoever mounts it, mounts it so.
fn carry_options(tools: &E2fsprogs<'_>, settings: &Settings) -> Result<(), Failure> {
    let options = settings.ext4_options();
    if options.is_empty() {
        return Ok(());
    }
    if options.len() > 63 {
        return Err(Failure::usage(format!(
            "mount options of more than 63 bytes: {options}"
        )));
    }
    let mut script = Script::default();
    let said = script.line("ssv mount_opts", &[options.as_bytes()]);
    said.map_err(Failure::usage)?;
    tools.debugfs(&script)
}

fn check_room(image: &File, tree: &Tree, size_bytes: u64) -> Result<(), Failure> {
    let failed = |e: String| Failure::failed(format!("the new file system: {e}"));
    let image = image.try_clone().map_err(|e| failed(e.to_string()))?;
    let fs = FileSystem::open(image, State::OnDisk).map_err(|e| failed(e.to_string()))?;
    room::check(tree, fs.superblock(), size_bytes)
}
