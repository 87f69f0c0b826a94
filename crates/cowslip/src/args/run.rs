//! What `cowslip run` takes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cowslip_snapshot::ids::{ImageName, SnapshotName};

use super::{DeviceOptions, Size, image_name, snapshot_name};

/// At the end of its help.
pub(super) const RUN: &str = "The kernel is --kernel, or the newest below /boot of the image; its modules for the disk are those of --modules, or of the image, or of this machine. \
    COMMAND runs as root, with this command's streams; its exit code is the one of cowslip. Where cowslip itself fails that is 125; 124: --timeout; 126, 127: it cannot be run; 128+N: signal N ended it. \
    Without COMMAND the terminal is the guest's: a shell, which ends with the guest; Ctrl-] turns it off, twice kills it. SIGTERM and Ctrl-C turn the guest off. `cowslip snapshot SESSION_DIR NAME` works meanwhile, with the guest's file system frozen for it.";

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The snapshot; for a session that is there already, what it began from, or left out
    #[arg(value_parser = image_name(), required_unless_present = "session")]
    pub(crate) name: Option<ImageName>,
    #[command(flatten)]
    pub(crate) device: DeviceOptions,
    /// The kernel: bzImage, or an ELF with an entry for PVH [default: the newest in /boot of the image]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel's modules: the directory with modules.dep [default: /lib/modules/RELEASE of the image, or of this machine]
    #[arg(long, value_name = "DIR")]
    pub(crate) modules: Option<PathBuf>,
    /// More for the kernel's command line
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    pub(crate) append: Vec<String>,
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: Size,
    /// Its processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) cpus: u8,
    /// What runs its instructions; auto is KVM where that works, which is tried
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub(crate) accel: Accel,
    /// End the guest after so long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Snapshot the disk at the end, if the guest was turned off cleanly
    #[arg(long, value_name = "NAME", value_parser = snapshot_name(), conflicts_with = "read_only")]
    pub(crate) snapshot_on_exit: Option<SnapshotName>,
    /// Take that name even if another snapshot has it
    #[arg(long, requires = "snapshot_on_exit")]
    pub(crate) replace: bool,
    /// One argument more for QEMU
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<OsString>,
    /// Run this in the guest, and turn it off [default: a shell on its console]; with --json, its standard output goes to standard error
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// What runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    Auto,
    Kvm,
    Tcg,
}
