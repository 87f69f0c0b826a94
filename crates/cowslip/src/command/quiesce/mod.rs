//! `cowslip quiesce`: what a guest runs just before its disk is snapshot, so that the snapshot holds little else than
//! its files.
//!
//! | step | how | what it takes out of the next diff |
//! |---|---|---|
//! | sync | syncfs(2) | nothing; but what was written is in it, and freed blocks are free on the disk |
//! | trim | FITRIM | blocks of deleted files |
//! | checkpoint | `EXT4_IOC_CHECKPOINT` (ext4, Linux 5.14) | the journal: its blocks are discarded, or zeroed where the device knows no discard |
//! | freeze | FIFREEZE, around a command | a journal that has begun again |
//!
//! Each step can be left out. One that this file system, device or kernel does not know is left out by itself, with the reason: that is no failure.
//!
//! - `freeze.rs`: the command in a frozen file system, and the thaw, whatever happens;
//! - `guard.rs`: the process that thaws when this one cannot.

mod freeze;
mod guard;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cowslip_attach::mounts;
use rustix::fs::{OFlags, syncfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(super) use self::guard::run as guard;
use super::Context;
use super::target::signals;
use crate::args::Quiesce;
use crate::failure::{Failure, Kind};
use crate::report::{bytes, duration, table};
use crate::sys::{self, Erase};

/// Its field names are a contract.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Quiesced {
    pub(crate) mountpoint: PathBuf,
    pub(crate) file_system: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) total_ms: f64,
}

/// Its field names are a contract.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: String,
    /// Or left out; `what` says why.
    pub(crate) done: bool,
    pub(crate) what: String,
    pub(crate) ms: f64,
    /// Of a trim: what the file system says that it discarded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) trimmed_bytes: Option<u64>,
}

/// A file system that is mounted.
struct Mounted {
    path: PathBuf,
    kind: String,
    root: File,
}

pub(super) fn run(context: &Context, args: &Quiesce) -> Result<(), Failure> {
    // With a command, a signal ends that, and not us before the thaw.
    let signals = match args.command.is_empty() {
        true => None,
        false => Some(signals()?),
    };
    let begun = Instant::now();
    let mounted = Mounted::open(&args.mountpoint)?;
    let mut steps = Vec::new();
    let mut take = |name, step: fn(&Mounted) -> Result<Outcome, Errno>| {
        let begun = Instant::now();
        let outcome = step(&mounted).map_err(|e| mounted.failed(name, e))?;
        steps.push(outcome.told(name, begun));
        Ok::<_, Failure>(())
    };
    if !args.no_sync {
        take("sync", sync)?;
    }
    if !args.no_trim {
        take("trim", trim)?;
    }
    if !args.no_checkpoint {
        take("checkpoint", checkpoint)?;
    }
    let frozen = signals.map_or(Ok(()), |signals| {
        let begun = Instant::now();
        let held = freeze::around(
            &mounted,
            &args.command,
            args.timeout,
            signals,
            context.global.json,
        )?;
        steps.push(Outcome::Done(format!("held for {}", duration(held))).told("freeze", begun));
        Ok(())
    });
    let quiesced = Quiesced {
        mountpoint: mounted.path,
        file_system: mounted.kind,
        steps,
        total_ms: ms_since(begun),
    };
    // What was done is told in any case.
    context.report.result(&quiesced, || quiesced.text())?;
    frozen
}

impl Mounted {
    fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.canonicalize().map_err(|e| Failure::file(path, &e))?;
        // A directory where nothing is mounted lies in another file system: that one is not meant.
        let mounts = mounts::all()?;
        let Some(mount) = mounts.into_iter().rfind(|m| m.target == path) else {
            let message = format!("nothing is mounted at {}", path.display());
            return Err(
                Failure::usage(message).hint("give the directory where the file system is mounted")
            );
        };
        let flags = i32::try_from(OFlags::DIRECTORY.bits()).expect("a flag of open(2)");
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path);
        Ok(Self {
            root: root.map_err(|e| Failure::file(&path, &e))?,
            kind: mount.kind,
            path,
        })
    }

    fn failed(&self, step: &str, error: Errno) -> Failure {
        let message = format!("{}: {step}: {error}", self.path.display());
        let failure = Failure::new(Kind::Failed, message);
        match error {
            Errno::PERM | Errno::ACCESS => failure.hint("it needs root"),
            _ => failure,
        }
    }
}

/// What came of a step.
enum Outcome {
    Done(String),
    Trimmed(u64),
    /// There is no such thing here.
    LeftOut(&'static str),
}

impl Outcome {
    fn told(self, name: &str, begun: Instant) -> Step {
        let (done, what, trimmed_bytes) = match self {
            Self::Done(what) => (true, what, None),
            Self::Trimmed(n) => (true, format!("{} were free", bytes(n)), Some(n)),
            Self::LeftOut(why) => (false, format!("left out: {why}"), None),
        };
        Step {
            step: name.to_owned(),
            done,
            what,
            ms: ms_since(begun),
            trimmed_bytes,
        }
    }
}

fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn sync(mounted: &Mounted) -> Result<Outcome, Errno> {
    syncfs(&mounted.root)?;
    Ok(Outcome::Done("written".into()))
}

fn trim(mounted: &Mounted) -> Result<Outcome, Errno> {
    match sys::trim(mounted.root.as_fd()) {
        Ok(bytes) => Ok(Outcome::Trimmed(bytes)),
        Err(Errno::OPNOTSUPP) => Ok(Outcome::LeftOut("the device knows no discard")),
        Err(Errno::NOTTY) => Ok(Outcome::LeftOut("this file system knows no trim")),
        Err(Errno::ROFS) => Ok(Outcome::LeftOut("the file system is read-only")),
        Err(error) => Err(error),
    }
}

/// A device without discard (a virtio disk may be one) takes zeros, which cost a snapshot as little.
fn checkpoint(mounted: &Mounted) -> Result<Outcome, Errno> {
    if mounted.kind != "ext4" {
        return Ok(Outcome::LeftOut("only ext4 has it"));
    }
    let root = mounted.root.as_fd();
    let (done, how) = match sys::checkpoint(root, Erase::Discard) {
        Err(Errno::OPNOTSUPP) => (sys::checkpoint(root, Erase::Zeroes), "zeroed"),
        other => (other, "discarded"),
    };
    match done {
        Ok(()) => Ok(Outcome::Done(format!("the journal is empty, and {how}"))),
        Err(Errno::NODEV) => Ok(Outcome::LeftOut("there is no journal")),
        Err(Errno::NOTTY) => Ok(Outcome::LeftOut("the kernel is older than 5.14")),
        Err(Errno::ROFS) => Ok(Outcome::LeftOut("the file system is read-only")),
        Err(error) => Err(error),
    }
}

impl Quiesced {
    fn text(&self) -> String {
        let row = |step: &Step| {
            vec![
                step.step.clone(),
                format!("{:.1} ms", step.ms),
                step.what.clone(),
            ]
        };
        table(&[], &[1], self.steps.iter().map(row).collect())
    }
}
