//! [`Attached`]: a device as `/dev/nbdN` or `/dev/loopN`, from its beginning to the last request.
//!
//! The beginning; what a crash leaves between any two steps, `stale.rs` ends:
//!
//! | | by the kernel's NBD client | by FUSE and a loop device |
//! |---|---|---|
//! | 1 | a place is taken (`place.rs`), or that of the server before is taken over | a place is taken |
//! | 2 | pairs of sockets are served at one end | the FUSE file system is mounted in it, and answered |
//! | 3 | the kernel gets the others, with the place's label | losetup(8) makes a loop device over its file |
//! | 4 | | the FUSE file system is taken out of the tree again: the loop device holds it, nobody else can reach it |
//! | 5 | the place tells what it is | the same |
//!
//! The end, while requests are still answered; no step waits longer than its limit:
//!
//! | step | limit | if it takes longer |
//! |---|---|---|
//! | what is mounted from it is unmounted, the latest first | [`UNMOUNT_WITHIN`] | it is left |
//! | while somebody uses it: again and again | [`BUSY_FOR`] | it is synced, and unmounted lazily |
//! | NBD: the device is to go with its last user, and not to wait for a server; it is opened, synced and closed | 20 s | it is left |
//! | loop: losetup(8) clears it: at once, or when its last user goes | 20 s | it is left |
//! | the kernel lets go | [`GONE_WITHIN`] | whoever still uses it gets errors from now on, and it goes with them |
//!
//! It is the same where somebody else disconnects or clears the device first: what is still mounted from it is unmounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cowslip_block::Device;

use crate::client::{Client, Start};
use crate::devices;
use crate::disk::Say;
use crate::error::AttachError;
use crate::loops::{self, SECTOR_BYTES};
use crate::mounts::{self, Mount};
use crate::place::{About, Place};
use crate::server::{Server, let_go};
use crate::tool;
use crate::waiting::Waiting;
use crate::way::{Wanted, Way};

/// A file system may have much to write back.
pub const UNMOUNT_WITHIN: Duration = Duration::from_secs(60);
/// Those who work in a mounted file system when the end comes often end themselves.
pub const BUSY_FOR: Duration = Duration::from_secs(2);
/// What a loop device needs to come.
const LOOP_WITHIN: Duration = Duration::from_secs(20);
/// Whoever still has the device open, to let go.
pub const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Between the kernel's last word over a socket and the moment when it has forgotten the device.
const FORGOTTEN_WITHIN: Duration = Duration::from_millis(200);
/// Between two attempts to unmount what is in use: there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(50);

/// See the module.
pub struct Attached {
    device: PathBuf,
    place: Place,
    front: Front,
    say: Say,
}

/// Who answers the kernel.
enum Front {
    Loop(Server),
    Nbd(Client),
}

impl Attached {
    /// Attaches a device; in the place of a server that was killed, if it is given one that `waits`. `say` is handed lines for
    /// people, `on_end` is called when the kernel has let go of the device, also where somebody else cleared it.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is left then, but for a device that waited: that goes on waiting.
    pub fn new(
        device: Arc<dyn Device>,
        wanted: &Wanted<'_>,
        waits: Option<Waiting>,
        say: impl Fn(&str) + Send + Sync + 'static,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, AttachError> {
        let (say, geometry): (Say, _) = (Arc::new(say), device.geometry());
        let mut about = About {
            pid: std::process::id(),
            name: wanted.name.to_owned(),
            session: wanted.session.map(Path::to_owned),
            device: PathBuf::new(),
            connections: None,
            served_as: wanted.served_as.map(str::to_owned),
        };
        let attached = match (wanted.way, waits) {
            (_, Some(waiting)) => {
                let attached = Self::taken_over(device, wanted, waiting, about, say, on_end)?;
                attached.remark(geometry.size_bytes);
                return Ok(attached);
            }
            (Way::Nbd, None) => {
                let place = Place::new(wanted.run_dir)?;
                let label = place.label();
                let started = Client::start(
                    device,
                    label,
                    &Start::New,
                    wanted.nbd,
                    Arc::clone(&say),
                    on_end,
                );
                match started {
                    Ok(client) => Self::over_nbd(place, client, say),
                    Err(error) => return Err(given_up(place, error)),
                }
            }
            (Way::Fuse, None) => Self::over_loop(device, wanted.run_dir, say, on_end)?,
        };
        about.device.clone_from(&attached.device);
        if let Front::Nbd(client) = &attached.front {
            about.connections = Some(client.connections());
        }
        if let Err(error) = attached.place.describe(&about) {
            attached.end();
            return Err(error);
        }
        attached.remark(geometry.size_bytes);
        Ok(attached)
    }

    /// Goes on where a server was killed.
    fn taken_over(
        device: Arc<dyn Device>,
        wanted: &Wanted<'_>,
        waiting: Waiting,
        mut about: About,
        say: Say,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, AttachError> {
        // Whoever finds it from here on, after an error or a crash, finds it left by this process.
        about.device.clone_from(&waiting.device);
        about.connections = Some(waiting.connections);
        waiting.place.describe(&about)?;
        let geometry = device.geometry();
        waiting.check(Some(geometry.size_bytes), geometry.read_only)?;
        let start = Start::Resume {
            index: waiting.index,
            connections: waiting.connections,
        };
        let label = waiting.place.label();
        let client = Client::start(device, label, &start, wanted.nbd, Arc::clone(&say), on_end)?;
        Ok(Self::over_nbd(waiting.place, client, say))
    }

    fn over_nbd(place: Place, client: Client, say: Say) -> Self {
        Self {
            device: client.device(),
            place,
            front: Front::Nbd(client),
            say,
        }
    }

    fn over_loop(
        device: Arc<dyn Device>,
        run_dir: &Path,
        say: Say,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, AttachError> {
        let read_only = device.geometry().read_only;
        let place = Place::new(run_dir)?;
        let at = place.mount_point();
        let started = Server::start(device, &at, place.label(), Arc::clone(&say), on_end);
        let server = match started {
            Ok(server) => server,
            Err(error) => return Err(given_up(place, error)),
        };
        let made = loops::make(&at.join(place.label()), read_only, LOOP_WITHIN);
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
        Ok(Self {
            device: path,
            place,
            front: Front::Loop(server),
            say,
        })
    }

    fn remark(&self, size_bytes: u64) {
        if matches!(self.front, Front::Loop(_)) && !loops::is_direct(&self.device) {
            (self.say)("this kernel keeps the device's bytes twice: direct I/O was refused");
        }
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            let left = size_bytes % SECTOR_BYTES;
            (self.say)(&format!(
                "the last {left} bytes are not on the block device: it has sectors of {SECTOR_BYTES}"
            ));
        }
    }

    /// `/dev/nbdN`, or `/dev/loopN`.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// From now on the device goes when it is unmounted: for when what it is for is mounted.
    ///
    /// # Errors
    /// What the kernel, or losetup(8), said.
    pub fn end_with_its_mount(&self) -> Result<(), AttachError> {
        devices::go_with_last_user(&self.device, &self.place)
    }

    /// Ends it; the table of the module. Says whether nothing of it is left.
    pub fn end(self) -> bool {
        let is_gone = self.has_gone() || {
            release(&self.device, &self.place, BUSY_FOR, &*self.say);
            self.goes_within(GONE_WITHIN)
        };
        if let Front::Nbd(client) = &self.front {
            (self.say)(&client.told());
        }
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

    /// By its last user, or by somebody else?
    fn has_gone(&self) -> bool {
        match &self.front {
            Front::Loop(server) => server.ends_within(Duration::ZERO),
            Front::Nbd(client) if client.ends_within(Duration::ZERO) => {
                self.goes_within(FORGOTTEN_WITHIN)
            }
            Front::Nbd(_) => false,
        }
    }

    fn goes_within(&self, within: Duration) -> bool {
        match &self.front {
            Front::Loop(server) => server.ends_within(within),
            // Where that cannot be seen, nothing says that it is gone.
            Front::Nbd(_) => devices::gone_within(&self.place, within).unwrap_or(false),
        }
    }
}

/// What cannot be removed is left for `stale.rs`; the reason of it all is what is told.
fn given_up(place: Place, error: AttachError) -> AttachError {
    drop(place.remove());
    error
}

/// Unmounts what is mounted from a place's device, and clears it. It may be gone already: cleared by somebody else, or with its
/// last mount; and its number another's.
pub(crate) fn release(device: &Path, place: &Place, busy_for: Duration, say: &dyn Fn(&str)) {
    let trouble = |error: AttachError| say(&format!("ending {}: {error}", device.display()));
    match mounts_of(device, place) {
        Ok(mounts) => mounts
            .iter()
            .for_each(|mount| unmount(&mount.target, busy_for, say)),
        Err(error) => trouble(error),
    }
    if let Err(error) = devices::clear(device, place) {
        trouble(error);
    }
}

/// What is mounted from a place's device; nothing where it is no longer the place's.
pub(crate) fn mounts_of(device: &Path, place: &Place) -> Result<Vec<Mount>, AttachError> {
    let mounts = mounts::of_device(device)?;
    // In this order: a device that is the place's now was so when its mounts were listed.
    let is_ours = devices::over(device, place)?.is_some();
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
