//! What processes that were killed left behind, and its end.
//!
//! Only what a place proves to be ours is touched (see `place.rs`), and only where the place's process is
//! gone. Mounts are ours if they are of such a loop device: nothing that lies on it can be read or written
//! any more, whoever mounted it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::attached::{GONE_WITHIN, mounts_of, release};
use crate::devices::{self, Over};
use crate::error::AttachError;
use crate::mounts;
use crate::nbds;
use crate::place::{About, Place};
use crate::server::{KIND, let_go};

/// What one process left.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// What it was, as far as it had said.
    pub about: Option<About>,
    /// NBD and loop devices, still in use.
    pub devices: Vec<PathBuf>,
    /// Where something of them is mounted, and the FUSE file system where it is.
    pub mounts: Vec<PathBuf>,
    /// Nothing of it is left any more.
    pub is_gone: bool,
}

/// Looks for what was left, and ends it if `end` says so.
///
/// # Errors
/// Where it cannot be looked for.
pub fn find(run_dir: &Path, end: bool, say: &dyn Fn(&str)) -> Result<Vec<Leftover>, AttachError> {
    let places = Place::left_behind(run_dir)?;
    places
        .into_iter()
        .map(|place| one(place, end, say))
        .collect()
}

fn one(place: Place, end: bool, say: &dyn Fn(&str)) -> Result<Leftover, AttachError> {
    let devices = devices::of(&place)?;
    let mut leftover = Leftover {
        about: place.about(),
        mounts: Vec::new(),
        is_gone: false,
        devices: devices.iter().map(|d| d.path.clone()).collect(),
    };
    for device in &leftover.devices {
        let mounts = mounts_of(device, &place)?;
        leftover.mounts.extend(mounts.into_iter().map(|m| m.target));
    }
    let at = place.mount_point();
    let is_mounted = mounts::all()?
        .iter()
        .any(|m| m.target == at && m.kind == KIND);
    if is_mounted {
        leftover.mounts.push(at.clone());
    }
    if !end {
        return Ok(leftover);
    }
    for device in &devices {
        if let Over::Label(label) = &device.over {
            stop_waiting(&device.path, label, &place)?;
        }
        release(&device.path, &place, Duration::ZERO, say);
    }
    if is_mounted {
        let_go(&at).map_err(AttachError::io("unmounting a FUSE file system"))?;
    }
    // The kernel clears a device a moment after its last user has gone.
    leftover.is_gone = devices::gone_within(&place, GONE_WITHIN)?;
    if leftover.is_gone {
        place.remove()?;
    }
    Ok(leftover)
}

/// What is mounted from an NBD device waits for a server, and would hold up its unmount: it fails from now on.
fn stop_waiting(device: &Path, label: &str, place: &Place) -> Result<(), AttachError> {
    if mounts_of(device, place)?.is_empty() {
        return Ok(());
    }
    match nbds::cut_off(device, label) {
        Err(error) if devices::over(device, place)?.is_some() => Err(error),
        _ => Ok(()),
    }
}
