//! `cowslip mount`: attach, and mount what is on the device, until a signal ends it, or umount(8).

use std::path::Path;
use std::time::Duration;

use cowslip_attach::mounts;
use serde::Serialize;

use super::Context;
use super::attach::Live;
use super::target::{Wanted, on_signal, signals};
use crate::args::Mount;
use crate::failure::{Failure, Kind};

/// To look at a device, and to mount it: a journal may have to be replayed first.
const LOOK_WITHIN: Duration = Duration::from_secs(20);
const MOUNT_WITHIN: Duration = Duration::from_secs(120);

/// Its field names are a contract.
#[derive(Debug, Serialize)]
struct Line<'a> {
    dir: &'a Path,
    device: &'a Path,
    via: &'a str,
    taken_over: bool,
    file_system: &'a str,
    options: &'a str,
    name: String,
    session: Option<&'a Path>,
    pid: u32,
}

pub(super) fn run(context: &Context, args: &Mount) -> Result<(), Failure> {
    let signals = signals()?;
    let dir = args.dir.canonicalize();
    let dir = dir.map_err(|e| Failure::file(&args.dir, &e))?;
    if !dir.is_dir() {
        return Err(Failure::usage(format!(
            "{} is not a directory",
            dir.display()
        )));
    }
    let wanted = Wanted {
        name: Some(&args.name),
        options: &args.device,
    };
    check_outside(context, args, &dir)?;
    let live = Live::begin(context, &wanted, &args.how, &args.run)?;
    let mounted = mount(context, args, &dir, &live);
    if mounted.is_ok() {
        let path = dir.display().to_string();
        let way = format!("at {path} {}", live.by_way_of);
        live.target.say_ready(&*live.device, &way);
        on_signal(signals, live.end.clone());
        let _ = live.ended.recv();
    }
    live.end();
    mounted
}

/// A server that writes to the file system which it serves waits for itself.
fn check_outside(context: &Context, args: &Mount, dir: &Path) -> Result<(), Failure> {
    let session = args.device.session.clone();
    let store = context.store_path()?;
    for (what, path) in [("session", session), ("store", Some(store))] {
        let inside = path.filter(|path| mounts::lies_in(path, dir));
        if let Some(path) = inside {
            let (path, dir) = (path.display(), dir.display());
            let message = format!("the {what} {path} lies in {dir}: it would be hidden");
            return Err(Failure::usage(message).hint("mount it elsewhere"));
        }
    }
    Ok(())
}

fn mount(context: &Context, args: &Mount, dir: &Path, live: &Live) -> Result<(), Failure> {
    let device = live.attached.device();
    // By a server that was killed.
    let is_mounted = live.is_taken_over
        && mounts::of_device(device)?
            .iter()
            .any(|mount| mount.target == dir);
    let kind = mounts::kind_of(device, LOOK_WITHIN)?.ok_or_else(|| {
        let name = &live.target.name;
        Failure::new(
            Kind::Failed,
            format!("{name} has no file system that is known here"),
        )
        .hint("`cowslip attach` makes it a block device; a disk with partitions has them there")
    })?;
    let read_only = live.device.geometry().read_only;
    let options = match &args.options {
        Some(options) => options.clone(),
        None => default_options(&kind, read_only).to_owned(),
    };
    if !is_mounted {
        mounts::mount(device, dir, &options, MOUNT_WITHIN)?;
    }
    live.attached.end_with_its_mount()?;
    let line = Line {
        dir,
        device,
        via: live.way.name(),
        taken_over: live.is_taken_over,
        file_system: &kind,
        options: &options,
        name: live.target.name.to_string(),
        session: live.session.as_deref(),
        pid: std::process::id(),
    };
    context.report.result(&line, || dir.display().to_string())
}

/// Discards reach the device at once, and times of access cause no writes. What only reads must not replay a
/// journal. Copies of one xfs, as all forks are, have one id: `nouuid` mounts them side by side.
fn default_options(kind: &str, read_only: bool) -> &'static str {
    match (kind, read_only) {
        ("ext3" | "ext4", true) => "ro,noload",
        ("xfs", true) => "ro,norecovery,nouuid",
        ("btrfs", true) => "ro,rescue=nologreplay",
        (_, true) => "ro",
        ("xfs", false) => "discard,noatime,lazytime,nouuid",
        ("ext2" | "ext3" | "ext4" | "btrfs" | "f2fs" | "vfat", false) => "discard,noatime,lazytime",
        (_, false) => "noatime,lazytime",
    }
}
