//! [`Attached`]: a device as `/dev/loopN`, from the mount of the FUSE file system to the last request.
//!
//! The beginning; what a crash leaves between any two, `stale.rs` ends:
//! 1. a place is taken (`place.rs`);
//! 2. the FUSE file system is mounted in it, and answered;
//! 3. losetup(8) makes a loop device over its file;
//! 4. the FUSE file system is taken out of the tree again: the loop device holds it, nobody else can reach it;
//! 5. the place tells what it is.
//!
//! The end, while requests are still answered; no step waits longer than its limit:
//!
//! | step | limit | if it takes longer |
//! |---|---|---|
//! | what is mounted from it is unmounted, the latest first | [`UNMOUNT_WITHIN`] | it is left |
//! | while somebody uses it: again and again | [`BUSY_FOR`] | it is synced, and unmounted lazily |
//! | losetup(8) clears the loop device: at once, or when its last user goes | [`LOOP_WITHIN`] | it is left |
//! | the kernel lets go of the FUSE file system | [`GONE_WITHIN`] | whoever still uses it gets errors from now on |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cowslip_block::Device;

use crate::disk::Say;
use crate::error::AttachError;
use crate::loops::{self, SECTOR_BYTES};
use crate::mounts::{self, Mount};
use crate::place::{About, Place};
use crate::server::{Server, let_go};
use crate::tool;

/// A file system may have much to write back.
pub const UNMOUNT_WITHIN: Duration = Duration::from_secs(60);
/// Those who work in a mounted file system when the end comes often end themselves.
pub const BUSY_FOR: Duration = Duration::from_secs(2);
/// The loop device's own steps.
pub const LOOP_WITHIN: Duration = Duration::from_secs(20);
/// Whoever still has the device open, to let go.
pub const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Between two attempts to unmount what is in use: there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(50);

/// See the module.
pub struct Attached {
    device: PathBuf,
    place: Place,
    server: Server,
    say: Say,
}

impl Attached {
    /// Attaches a device. `say` is handed lines for people, `on_end` is called when the kernel has let go of the device, also where
    /// somebody else cleared it.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is left then.
    pub fn new(
        device: Arc<dyn Device>,
        run_dir: &Path,
        name: &str,
        session: Option<&Path>,
        say: impl Fn(&str) + Send + Sync + 'static,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, AttachError> {
        check_machine()?;
        let (say, geometry): (Say, _) = (Arc::new(say), device.geometry());
        let place = Place::new(run_dir)?;
        let at = place.mount_point();
        let started = Server::start(device, &at, place.file_name(), Arc::clone(&say), on_end);
        let server = match started {
            Ok(server) => server,
            Err(error) => return Err(given_up(place, error)),
        };
        let made = loops::make(&at.join(place.file_name()), geometry.read_only, LOOP_WITHIN);
        // Made or not: with nothing over its file, this ends the server.
        let out = let_go(&at).map_err(AttachError::io("unmounting the FUSE file system"));
        let path = match (made, out) {
            (Ok(path), Ok(())) => path,
            (Err(error), _) => return Err(given_up(place, error)),
            (Ok(path), Err(error)) => {
                release(&path, &place, Duration::ZERO, &*say);
                return Err(given_up(place, error));
            }
        };
        let attached = Self {
            device: path,
            place,
            server,
            say,
        };
        let about = About {
            pid: std::process::id(),
            name: name.to_owned(),
            session: session.map(Path::to_owned),
            device: attached.device.clone(),
        };
        if let Err(error) = attached.place.describe(&about) {
            attached.end();
            return Err(error);
        }
        attached.remark(geometry.size_bytes);
        Ok(attached)
    }

    fn remark(&self, size_bytes: u64) {
        if !loops::is_direct(&self.device) {
            (self.say)("this kernel keeps the device's bytes twice: direct I/O was refused");
        }
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            let left = size_bytes % SECTOR_BYTES;
            (self.say)(&format!(
                "the last {left} bytes are not on the block device: it has sectors of {SECTOR_BYTES}"
            ));
        }
    }

    /// `/dev/loopN`.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// From now on the device goes when it is unmounted: for when what it is for is mounted.
    ///
    /// # Errors
    /// What losetup(8) said.
    pub fn end_with_its_mount(&self) -> Result<(), AttachError> {
        loops::clear(&self.device, &self.place, LOOP_WITHIN)
    }

    /// Ends it; the table of the module. Says whether nothing of it is left.
    pub fn end(self) -> bool {
        let is_gone = self.server.ends_within(Duration::ZERO) || {
            release(&self.device, &self.place, BUSY_FOR, &*self.say);
            self.server.ends_within(GONE_WITHIN)
        };
        if !is_gone {
            let device = self.device.display();
            (self.say)(&format!(
                "{device} is still in use: what its users do from now on fails; `cowslip detach --stale` when they are gone"
            ));
            return false;
        }
        if let Err(error) = self.place.remove() {
            (self.say)(&error.to_string());
        }
        true
    }
}

/// What cannot be removed is left for `stale.rs`; the reason of it all is what is told.
fn given_up(place: Place, error: AttachError) -> AttachError {
    drop(place.remove());
    error
}

/// Unmounts what is mounted from a place's loop device, and clears it. It may be gone already: cleared by somebody else, or with its
/// last mount; and its number another's.
pub(crate) fn release(device: &Path, place: &Place, busy_for: Duration, say: &dyn Fn(&str)) {
    let trouble = |error: AttachError| say(&format!("ending {}: {error}", device.display()));
    match mounts_of(device, place) {
        Ok(mounts) => mounts
            .iter()
            .for_each(|mount| unmount(&mount.target, busy_for, say)),
        Err(error) => trouble(error),
    }
    if let Err(error) = loops::clear(device, place, LOOP_WITHIN) {
        trouble(error);
    }
}

/// What is mounted from a place's loop device; nothing where it is no longer the place's.
pub(crate) fn mounts_of(device: &Path, place: &Place) -> Result<Vec<Mount>, AttachError> {
    let mounts = mounts::of_device(device)?;
    // In this order: a device that is the place's now was so when its mounts were listed.
    let is_ours = loops::is_over(device, place)?;
    Ok(mounts.into_iter().filter(|_| is_ours).collect())
}

fn unmount(target: &Path, busy_for: Duration, say: &dyn Fn(&str)) {
    let give_up = Instant::now() + busy_for;
    let place = target.display();
    loop {
        match mounts::unmount(target, false, UNMOUNT_WITHIN) {
            Ok(()) => return,
            Err(AttachError::Refused { .. }) if Instant::now() < give_up => thread::sleep(PAUSE),
            Err(AttachError::Refused { .. }) => break,
            Err(error) => return say(&format!("unmounting {place}: {error}")),
        }
    }
    if !busy_for.is_zero() {
        // What they wrote so far is kept.
        let synced = tool::run("sync", &["-f".as_ref(), target.as_os_str()], UNMOUNT_WITHIN);
        if let Err(error) = synced {
            say(&format!("syncing {place}: {error}"));
        }
        say(&format!("{place} is in use; it is unmounted all the same"));
    }
    if let Err(error) = mounts::unmount(target, true, LOOP_WITHIN) {
        say(&format!("unmounting {place}: {error}"));
    }
}

/// Does this machine have what a block device needs?
///
/// # Errors
/// [`AttachError::Missing`].
pub fn check_machine() -> Result<(), AttachError> {
    let needs = [
        (rustix::process::geteuid().is_root(), "root"),
        (
            Path::new("/dev/fuse").exists(),
            "/dev/fuse (the kernel's fuse)",
        ),
        (
            Path::new("/dev/loop-control").exists(),
            "/dev/loop-control (the kernel's loop devices)",
        ),
    ];
    match needs.into_iter().find(|(is_there, _)| !is_there) {
        Some((_, what)) => Err(AttachError::Missing(what)),
        None => Ok(()),
    }
}
