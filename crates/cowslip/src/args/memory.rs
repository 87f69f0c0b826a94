//! `cowslip memory`: what can be typed of guests' memory.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use cowslip_snapshot::ids::{ImageName, SnapshotName};

use super::{Address, Hold, Size, image_name, snapshot_name};

const IMPORT: &str = "The guest is paused meanwhile: the file must not change. Its holes cost nothing, and are zeros, but with --diff-file. The result has up to \
    three parts: `export NAME:memory`, `export NAME:state` and `export NAME:disk` give each back, byte for byte; `inspect NAME:memory` says where its pages are.";

const SERVE: &str = "For Firecracker, PATH is the backend_path of a mem_backend with backend_type Uffd. Any number of guests may come, each \
    with its own copy of the memory. What the first one touches is noted and becomes a part of the snapshot, its trace; for guests of a snapshot that has one, \
    those pages are put in place before they ask. When a signal ends the server, what is left of their memory is put in place first, and they go on without it; \
    a second signal kills them. A guest whose page cannot be had, for half a minute, is killed: it never reads zeros for what is stored.";

const SNAPSHOT: &str = "In this order: a copy of what the guest wrote, while it runs; --before, which pauses it; what it wrote since; --after, which lets it go; storing. Where the guest's writes are \
    faults (a userfaultfd without UFFD_FEATURE_WP_ASYNC) that too is copied while it goes on, else while it is paused. Without --before it is taken to be paused all the time. --after is run whatever happens, also on a signal, but for kill -9.";

#[derive(Debug, Subcommand)]
pub(crate) enum Memory {
    /// Make a snapshot from a guest's memory file, with the disk and the monitor's state that belong to it
    #[command(after_help = IMPORT)]
    Import(MemoryImport),
    /// Serve a snapshot's memory to virtual machines, page by page as they touch it (userfaultfd)
    #[command(after_help = SERVE)]
    Serve(MemoryServe),
    /// Snapshot the memory of a guest that is being served: what it wrote since it began, or since its last snapshot
    #[command(after_help = SNAPSHOT)]
    Snapshot(MemorySnapshot),
}

#[derive(Debug, Args)]
pub(crate) struct MemoryImport {
    /// The memory of a paused guest: a file, or a memfd as /proc/PID/fd/N
    #[arg(value_name = "MEMFILE")]
    pub(crate) memory: PathBuf,
    /// The snapshot's name
    #[arg(value_parser = snapshot_name())]
    pub(crate) name: SnapshotName,
    /// The snapshot whose memory the guest began with: pages equal to its cost nothing
    #[arg(long, value_parser = snapshot_name(), value_name = "NAME")]
    pub(crate) parent: Option<SnapshotName>,
    /// The snapshot of the guest's disk, taken in the same pause: it becomes a part of this one, and pages that it has are not stored
    #[arg(long, value_parser = snapshot_name(), value_name = "NAME")]
    pub(crate) disk: Option<SnapshotName>,
    /// What the virtual machine monitor saved of itself; nobody looks into it
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// The file holds only pages that changed, as a diff snapshot of Firecracker does: its holes are the parent's, not zeros
    #[arg(long, requires = "parent")]
    pub(crate) diff_file: bool,
    /// Point at so many frames of the disk (64 KiB of it each), those that save most; each may cost a fetch when the memory is restored
    #[arg(long, value_name = "N", default_value_t = cowslip_memory::limits::DISK_FRAMES_MAX)]
    pub(crate) disk_frames: u64,
    /// Take the name even if another snapshot has it
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryServe {
    /// The snapshot: its memory, or, where it is one image alone, that
    #[arg(value_parser = image_name())]
    pub(crate) name: ImageName,
    /// Where monitors hand over their userfaultfd: unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = unix_path)]
    pub(crate) uffd: PathBuf,
    /// Put nothing in place before it is asked for, and note nothing
    #[arg(long, conflicts_with = "record")]
    pub(crate) no_prefetch: bool,
    /// Note anew what the first guest touches, in the place of what an earlier one did
    #[arg(long)]
    pub(crate) record: bool,
    /// For how long that is noted, from its coming on
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) record_for: Duration,
    /// Memory for decoded parts of the image, for all guests together
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) frame_cache: Size,
}

#[derive(Debug, Args)]
pub(crate) struct MemorySnapshot {
    /// The snapshot's name
    #[arg(value_parser = snapshot_name())]
    pub(crate) name: SnapshotName,
    /// Where the server's guests come to: the address of `memory serve --uffd`
    #[arg(long, value_name = "ADDRESS", value_parser = unix_path)]
    pub(crate) server: PathBuf,
    /// The process of the guest's monitor, where there are several
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    #[command(flatten)]
    pub(crate) hold: Hold,
    /// The snapshot of the guest's disk, taken in the same pause: it becomes a part of this one, and pages that it has are not stored
    #[arg(long, value_parser = snapshot_name(), value_name = "NAME")]
    pub(crate) disk: Option<SnapshotName>,
    /// What the virtual machine monitor saved of itself; nobody looks into it
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Point at so many frames of the disk (64 KiB of it each), those that save most; each may cost a fetch when the memory is restored
    #[arg(long, value_name = "N", default_value_t = cowslip_memory::limits::DISK_FRAMES_MAX)]
    pub(crate) disk_frames: u64,
    /// Take the name even if another snapshot has it
    #[arg(long)]
    pub(crate) replace: bool,
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
