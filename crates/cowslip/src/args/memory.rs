//! `cowslip memory`: what can be typed of guests' memory.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cowslip_snapshot::ids::SnapshotName;

use super::{Address, Size, snapshot_name};

const SERVE: &str = "For Firecracker, PATH is the backend_path of a mem_backend with backend_type Uffd. Any number of guests may come, each \
    with its own copy of the memory. When a signal ends the server, what is left of their memory is put in place first, and they go on without it; \
    a second signal kills them. A guest whose page cannot be had, for half a minute, is killed: it never reads zeros for what is stored.";

#[derive(Debug, Subcommand)]
pub(crate) enum Memory {
    /// Serve a snapshot's memory to virtual machines, page by page as they touch it (userfaultfd)
    #[command(after_help = SERVE)]
    Serve(MemoryServe),
}

#[derive(Debug, Args)]
pub(crate) struct MemoryServe {
    /// The snapshot
    #[arg(value_parser = snapshot_name())]
    pub(crate) name: SnapshotName,
    /// Where monitors hand over their userfaultfd: unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = unix_path)]
    pub(crate) uffd: PathBuf,
    /// Memory for decoded parts of the image, for all guests together
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) frame_cache: Size,
}

fn unix_path(text: &str) -> Result<PathBuf, String> {
    match text.parse() {
        Ok(Address::Unix(path)) => Ok(path),
        Ok(Address::Tcp(_)) => {
            Err("a userfaultfd is handed over through a unix socket: unix:PATH".into())
        }
        Err(_) => Err("an address is unix:PATH".into()),
    }
}
