//! What can be typed. Help texts are the first thing that many people read of cowslip.

mod attach;
mod memory;
mod run;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use cowslip_snapshot::ids::{ImageName, SnapshotName};
use uuid::Uuid;

pub(crate) use self::attach::{Attach, Detach, How, Mount, RunDir, Via};
pub(crate) use self::memory::{Memory, MemoryImport, MemoryServe, MemorySnapshot};
pub(crate) use self::run::{Accel, Run};
pub(crate) use self::values::{Address, Size};

/// The snapshot storage engine for microVM sandboxes.
#[derive(Debug, Parser)]
#[command(
    name = "cowslip",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = CODES_AND_NAMES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const CODES_AND_NAMES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 corrupt, 5 failed where 1 means \
    different, 6 taken but not stored yet.\n\
    Names of snapshots: 1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or a digit.\n\
    A snapshot is a disk, or has several parts: NAME:disk, NAME:memory, NAME:state and NAME:trace are one of them, NAME alone is the first that it has.";

const BUILD: &str = "A command of --run finds the image as its root, /proc and a small /dev where the image has the directories, \
    this machine's network, and nothing on its standard input; what it deletes leaves no bytes behind. \
    What is mounted in a directory is left out, and so are sockets. An entry of an archive that could lead out of it, \
    by .. or through a symbolic link, is refused; of several with one name the last is taken.";

const KERNEL_ARGS: &str = "A kernel without an initrd takes no noatime in rootflags=: it panics. The line leaves it out, and says so: \
    put it into /etc/fstab, or remount. With --initrd it is there.";

const ATTACHED: &str = "The device's path is the only line on standard output. At the end, what is mounted from it is unmounted; \
    where it is in use, lazily, after two seconds. It needs root, and the kernel's NBD client, or FUSE and loop devices: without them, `cowslip serve` and QEMU, \
    or nbdfuse. Killed with kill -9, a server by way of nbd is replaced by the next `cowslip attach --session` of the same session: what waits goes on, \
    what was under way within 30 seconds.";

const DIFF_QUIET: &str = "With --quiet nothing is printed, and the exit code is the answer: 0 equal, \
    1 different, in bytes or in size. Failures are 2 usage, 3 not found, 4 corrupt, 5 all others. \
    Without --quiet it is 0 for both answers.";

const EXPLAINED: &str = "Each block of the difference that is not zero now has one owner in the file system of NAME: the one with \
    most of its bytes. ext4 is read, as the next mount would find it; of anything else the owners are unknown. \
    A guest's memory is explained page by page: zero, equal to the parent's, equal to the disk, new.";

const SNAPSHOT_PENDING: &str = "A snapshot of a session that is being served is taken when the command \
    begins. Where it cannot be stored (a full disk), the server goes on trying, also without this command: \
    after --timeout it ends with code 6. Snapshots that are asked for later wait behind. \
    --after is run when the snapshot is taken, before it is stored; also where anything fails, and on a signal, but for kill -9.";

const QUIESCE: &str = "In this order: sync, trim (FITRIM), checkpoint of ext4's journal (Linux 5.14), and the command, if there is one, in the \
    frozen file system. It is thawed when the command ends or fails, on a signal, after --timeout, and also when \
    this program is killed. A step that the file system, the device or the kernel does not know is left out, with the reason. It needs root.";

const LAB: &str = "A variant is a profile, or plain+KNOB (`cowslip build --list-profiles`). Each runs each workload on the kernel's ext4 over a \
    block device of ours; the diff at each stage (no sync, sync, frozen, quiesced) stands beside the blocks that the workload really changed. Results: \
    results.jsonl, a line a cell, which the next run goes on from; results.tsv, results.json, report.md, report.html. Some 30 minutes \
    and 4 GB on two cores. It needs root, FUSE, loop devices, e2fsprogs and sqlite3; what it mounts it unmounts, also when it is interrupted.";

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Where snapshots are kept [default: $XDG_DATA_HOME/cowslip, or ~/.local/share/cowslip]
    #[arg(long, global = true, env = "COWSLIP_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress bars, no remarks
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a snapshot from a disk image
    Import(Import),
    /// Make a template from a directory or an archive of tar: an ext4 of its own
    #[command(after_help = BUILD)]
    Build(Build),
    /// Print the kernel's command line for a guest whose root is this snapshot
    #[command(after_help = KERNEL_ARGS)]
    KernelArgs(KernelArgs),
    /// Serve a snapshot as a writable NBD device
    Serve(Serve),
    /// Make a snapshot a block device of this machine, until a signal ends it
    #[command(after_help = ATTACHED)]
    Attach(Attach),
    /// Mount the file system of a snapshot, until a signal, or umount(8), ends it
    Mount(Mount),
    /// Boot a snapshot in QEMU, and run a command in it
    #[command(after_help = run::RUN)]
    Run(Run),
    /// End block devices that are nobody's any more
    Detach(Detach),
    /// Snapshot a session, while it is being served or at rest
    #[command(after_help = SNAPSHOT_PENDING)]
    Snapshot(Snapshot),
    /// List the snapshots
    #[command(visible_alias = "list")]
    Ls,
    /// Show what a snapshot is made of, and what it added to the store
    Inspect(Image),
    /// Read and check every stored byte, of the whole store or of one snapshot
    Verify(Verify),
    /// Mend what is damaged and can be had again, and say what the rest costs
    Repair(Repair),
    /// Show in which blocks two snapshots differ
    #[command(after_help = DIFF_QUIET)]
    Diff(Diff),
    /// Show whose the blocks are that a snapshot changed, and what would make it smaller
    #[command(after_help = EXPLAINED)]
    Explain(Explain),
    /// List what a snapshot was made from, back to its template
    Log(Image),
    /// Write a snapshot's image to a sparse raw file
    Export(Export),
    /// Remove a snapshot's name
    Rm(Name),
    /// Remove what no name, no session and no running command needs
    Gc(Gc),
    /// Rewrite what is partly used: images depend on fewer layers, and what nobody needs goes
    Compact(Compact),
    /// List the sessions that the store keeps something for
    Sessions(Sessions),
    /// Guests' memory: as a part of snapshots, and served
    #[command(subcommand)]
    Memory(Memory),
    /// In a guest, just before a snapshot: take out of a mounted file system what the snapshot need not hold
    #[command(after_help = QUIESCE)]
    Quiesce(Quiesce),
    /// Measure what the knobs of ext4 are worth: workloads on each, the diffs, and what they had to be
    #[command(after_help = LAB)]
    Lab(Lab),
    /// Thaws what `quiesce` froze, if that cannot
    #[command(hide = true)]
    ThawGuard(ThawGuard),
    /// See it all at work in half a minute, with nothing set up
    Demo(Demo),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The snapshot
    #[arg(value_parser = snapshot_name())]
    pub(crate) name: SnapshotName,
}

#[derive(Debug, Args)]
pub(crate) struct Image {
    /// The snapshot, or one part of it: NAME:memory
    #[arg(value_parser = image_name())]
    pub(crate) name: ImageName,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Only what this snapshot, or this part of it, depends on [default: everything in the store]
    #[arg(value_parser = image_name())]
    pub(crate) name: Option<ImageName>,
    /// Decode everything as well
    #[arg(long)]
    pub(crate) deep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Repair {
    /// Only what these snapshots depend on [default: everything in the store]
    #[arg(value_name = "NAME", value_parser = snapshot_name())]
    pub(crate) names: Vec<SnapshotName>,
    /// Another copy of the store: a backup, a replica
    #[arg(long, value_name = "STORE")]
    pub(crate) from: Option<PathBuf>,
    /// Say what would be mended, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The disk image: raw, or what qemu-img reads (qcow2, vmdk, vhdx, ...)
    pub(crate) image: PathBuf,
    /// The snapshot's name
    #[arg(value_parser = snapshot_name())]
    pub(crate) name: SnapshotName,
    /// The image's format; raw images are never probed for others when this says raw
    #[arg(long, default_value = "auto", value_name = "auto|raw|qcow2|...")]
    pub(crate) format: String,
    /// Take the name even if another snapshot has it
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// A directory, or an archive of tar, as it is or compressed by gzip or zstd; - reads an archive from standard input
    #[arg(value_name = "SOURCE", required_unless_present = "list_profiles")]
    pub(crate) source: Option<PathBuf>,
    /// The template's name
    #[arg(value_parser = snapshot_name(), required_unless_present = "list_profiles")]
    pub(crate) name: Option<SnapshotName>,
    /// How large the disk is; what is free of it costs nothing
    #[arg(long, value_name = "SIZE", default_value = "8G")]
    pub(crate) size: Size,
    /// How the file system is made and mounted
    #[arg(long, value_name = "PROFILE", default_value = crate::profile::DEFAULT)]
    pub(crate) profile: String,
    /// Turn one knob more, after those of the profile
    #[arg(long = "knob", value_name = "KNOB")]
    pub(crate) knobs: Vec<String>,
    /// One option of mkfs.ext4 more: --mkfs='-O ^metadata_csum'
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) mkfs: Vec<String>,
    /// Mount options more, for guests: commit=30,nodelalloc
    #[arg(long = "mount", value_name = "OPTIONS")]
    pub(crate) mount_options: Vec<String>,
    /// Fill it with debugfs, which needs no privilege: the same input gives the same blocks; this is the default
    #[arg(long, conflicts_with_all = ["as_root", "run"])]
    pub(crate) rootless: bool,
    /// Fill it through a mount; as root, with loop devices
    #[arg(long)]
    pub(crate) as_root: bool,
    /// Run a command in it before it is closed: /bin/sh -c in the image, as root; implies --as-root
    #[arg(long, value_name = "COMMAND")]
    pub(crate) run: Vec<String>,
    /// The file system's label
    #[arg(long, value_parser = label)]
    pub(crate) label: Option<String>,
    /// The file system's UUID [default: one that follows from what is in it]
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,
    /// Take the name even if another snapshot has it
    #[arg(long)]
    pub(crate) replace: bool,
    /// List the profiles, and the knobs that they are made of, each with one line of why
    #[arg(long, conflicts_with = "source")]
    pub(crate) list_profiles: bool,
    #[command(flatten)]
    pub(crate) run_dir: RunDir,
}

#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    /// The snapshot
    #[arg(value_parser = snapshot_name())]
    pub(crate) name: SnapshotName,
    /// Who boots it
    #[arg(long = "for", value_enum, default_value_t = Machine::Firecracker)]
    pub(crate) machine: Machine,
    /// The device that is the root
    #[arg(long, value_name = "DEVICE", default_value = "/dev/vda")]
    pub(crate) root: String,
    /// The guest boots with an initrd, which mounts the root by mount(8) and takes all options
    #[arg(long)]
    pub(crate) initrd: bool,
}

/// Machines that boot a kernel directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Machine {
    Firecracker,
    CloudHypervisor,
    Qemu,
}

fn label(text: &str) -> Result<String, String> {
    match text.len() {
        1..=16 if !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => Err("a label is 1 to 16 bytes".into()),
    }
}

/// What a device is and where what is written to it is kept, whatever the front end.
#[derive(Debug, Args)]
pub(crate) struct DeviceOptions {
    /// Keep what is written in this directory, and go on there next time
    #[arg(long, value_name = "DIR")]
    pub(crate) session: Option<PathBuf>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Serve the device larger than the snapshot; the growth reads as zeros (8G, 512M, ...)
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Size>,
    /// Memory for decoded parts of the image
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) frame_cache: Size,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The snapshot; for a session that is there already, what it began from, or left out. With --read-only also one part of it: NAME:memory
    #[arg(value_parser = image_name(), required_unless_present = "session")]
    pub(crate) name: Option<ImageName>,
    #[command(flatten)]
    pub(crate) device: DeviceOptions,
    /// Where to listen: unix:PATH or tcp:HOST:PORT [default: nbd.sock in the session's directory]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "stdio")]
    pub(crate) nbd: Option<Address>,
    /// Serve one client on standard input and output
    #[arg(long)]
    pub(crate) stdio: bool,
    /// Listen on addresses other than loopback; there is no encryption and no password
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    /// The session's directory
    #[arg(value_name = "SESSION_DIR")]
    pub(crate) session: PathBuf,
    /// The new snapshot's name
    #[arg(value_parser = snapshot_name(), value_name = "NEWNAME")]
    pub(crate) name: SnapshotName,
    /// Take the name even if another snapshot has it
    #[arg(long)]
    pub(crate) replace: bool,
    /// Keep blocks that were rewritten with what the parent has
    #[arg(long)]
    pub(crate) no_dedup: bool,
    /// Leave out what the file system does not need: free blocks, the journal. Only where that is certain, of an ext4 that is
    /// unmounted or frozen
    #[arg(long)]
    pub(crate) fs_aware: bool,
    /// After an attempt to store it failed, wait so long for another to succeed (10s, 5m, 0s)
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) hold: Hold,
    /// Give up the snapshot of this name that is on its way; what was written stays in the session
    #[arg(long, conflicts_with_all = ["replace", "no_dedup", "fs_aware", "timeout", "before", "after"])]
    pub(crate) cancel: bool,
}

/// How a guest is held for its snapshot.
#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// A command that pauses the guest, or freezes its file system (sh -c)
    #[arg(long, value_name = "COMMAND")]
    pub(crate) before: Option<String>,
    /// A command that lets it go on, as soon as it may; run whatever happens
    #[arg(long, value_name = "COMMAND")]
    pub(crate) after: Option<String>,
    /// Let it go, and store nothing, where the snapshot cannot be taken in this time
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) pause_timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The one snapshot, or one part of it: NAME:memory
    #[arg(value_parser = image_name(), value_name = "A")]
    pub(crate) a: ImageName,
    /// The other one
    #[arg(value_parser = image_name(), value_name = "B")]
    pub(crate) b: ImageName,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The snapshot, or one part of it: NAME:memory
    #[arg(value_parser = image_name())]
    pub(crate) name: ImageName,
    /// What it is compared with [default: what it was made over; for a template, nothing]
    #[arg(long, value_parser = image_name(), value_name = "OTHER")]
    pub(crate) against: Option<ImageName>,
    /// Write a page with a picture of the device to this file as well: what changed, where, whose
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// List so many files; 0 is all
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) top: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The snapshot, or one part of it: NAME:memory
    #[arg(value_parser = image_name())]
    pub(crate) name: ImageName,
    /// The file to write
    #[arg(value_name = "OUT.raw")]
    pub(crate) out: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Compact {
    /// Only what these snapshots use [default: all]
    #[arg(value_parser = snapshot_name(), value_name = "NAME")]
    pub(crate) names: Vec<SnapshotName>,
    /// Only what is due: more than a quarter of the store is needed by nobody, or a snapshot depends on
    /// more than 128 layers
    #[arg(long)]
    pub(crate) auto: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Copy so much at one go: about as much free room is needed
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    pub(crate) step: Size,
}

#[derive(Debug, Args)]
pub(crate) struct Sessions {
    /// Keep nothing for this session any more: its directory is gone for good
    #[arg(long, value_name = "SESSION")]
    pub(crate) forget: Option<Uuid>,
}

#[derive(Debug, Args)]
pub(crate) struct Quiesce {
    /// Where the file system is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub(crate) mountpoint: PathBuf,
    /// Do not write back what is dirty
    #[arg(long)]
    pub(crate) no_sync: bool,
    /// Do not discard what is free
    #[arg(long)]
    pub(crate) no_trim: bool,
    /// Do not empty the journal
    #[arg(long)]
    pub(crate) no_checkpoint: bool,
    /// The file system is thawed after so long, whatever the command does
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// Freeze the file system, run this, and thaw it; with --json, its standard output goes to standard error
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Lab {
    /// Where results and the store of the lab are kept; what was measured there before is not measured again
    /// [default: cowslip-lab; with --quick, a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// A few variants and workloads, at a seventh of their size: below two minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these variants
    #[arg(long = "variant", value_name = "NAME", value_delimiter = ',')]
    pub(crate) variants: Vec<String>,
    /// Only these workloads
    #[arg(long = "workload", value_name = "NAME", value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,
    /// Cells that run at the same time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) jobs: u8,
    /// The seed of the workloads; the same seed writes the same files
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ThawGuard {
    pub(crate) mountpoint: PathBuf,
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep the store and the session in this directory, to look at
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// The seed of the workload; the same seed writes the same bytes
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// What is no text at all is refused with the rule as well.
fn snapshot_name() -> impl TypedValueParser<Value = SnapshotName> {
    OsStringValueParser::new().try_map(|text| text.to_string_lossy().parse::<SnapshotName>())
}

/// The same, perhaps with a part.
fn image_name() -> impl TypedValueParser<Value = ImageName> {
    OsStringValueParser::new().try_map(|text| text.to_string_lossy().parse::<ImageName>())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_says_the_rule_for_names() {
        assert!(CODES_AND_NAMES.contains(SnapshotName::RULE));
    }
}
