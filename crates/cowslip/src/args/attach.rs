//! The command lines of `attach`, `mount` and `detach`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cowslip_snapshot::ids::ImageName;

use super::{DeviceOptions, image_name};

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The snapshot; for a session that is there already, what it began from, or left out. With --read-only also one part of it: NAME:memory
    #[arg(value_parser = image_name(), required_unless_present = "session")]
    pub(crate) name: Option<ImageName>,
    #[command(flatten)]
    pub(crate) device: DeviceOptions,
    #[command(flatten)]
    pub(crate) how: How,
    #[command(flatten)]
    pub(crate) run: RunDir,
}

/// How the kernel comes to it.
#[derive(Debug, Args)]
pub(crate) struct How {
    /// By the kernel's NBD client, by a FUSE file under a loop device, or by the first of these that the machine has
    #[arg(long, value_enum, default_value_t = Via::Auto)]
    pub(crate) via: Via,
    /// By way of nbd: when the server is gone, let requests wait so long for the next one before they fail
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) dead_timeout: Duration,
    /// By way of nbd: so many sockets, whose requests are served at once
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) connections: u8,
}

/// The ways to a block device of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Via {
    Auto,
    Nbd,
    Fuse,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// The snapshot; for a session that is there already, what it began from
    #[arg(value_parser = image_name())]
    pub(crate) name: ImageName,
    /// Where to mount it
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceOptions,
    /// Options for mount(8) [default: discard,noatime,lazytime, or what reading alone takes]
    #[arg(long, short)]
    pub(crate) options: Option<String>,
    #[command(flatten)]
    pub(crate) how: How,
    #[command(flatten)]
    pub(crate) run: RunDir,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// End what commands left that were killed: their block devices, and what is mounted from them
    #[arg(long, required = true)]
    pub(crate) stale: bool,
    /// Say what was left, and end nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) run: RunDir,
}

#[derive(Debug, Args)]
pub(crate) struct RunDir {
    /// Where attached devices are noted, for `detach --stale`
    #[arg(
        long = "run-dir",
        env = "COWSLIP_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/cowslip"
    )]
    pub(crate) path: PathBuf,
}
