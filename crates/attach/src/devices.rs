//! [`BlockDevice`]: the kernel's block devices that say what they are over, and which of them are a place's.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::AttachError;
use crate::loops;
use crate::nbds;
use crate::place::Place;

/// Of the loop device's and NBD's own steps.
const CLEAR_WITHIN: Duration = Duration::from_secs(20);
/// The kernel forgets a device a moment after its last user has gone; there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(10);

/// A block device that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    pub(crate) path: PathBuf,
    pub(crate) over: Over,
}

/// What it says that it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// A loop device: a file, as the kernel calls it, from the root of its file system where that is mounted nowhere any more.
    File(String),
    /// An NBD device: its label.
    Label(String),
}

/// All that say it.
fn all() -> Result<Vec<BlockDevice>, AttachError> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").map_err(AttachError::io("/sys/block"))? {
        let name = entry.map_err(AttachError::io("/sys/block"))?.file_name();
        let name = Path::new(&name);
        // It may go meanwhile, and then it is not in use.
        let over = loops::backing_file(name).map(Over::File);
        if let Some(over) = over.or_else(|| nbds::label(name).map(Over::Label)) {
            let path = Path::new("/dev").join(name);
            found.push(BlockDevice { path, over });
        }
    }
    Ok(found)
}

/// Those of a place.
pub(crate) fn of(place: &Place) -> Result<Vec<BlockDevice>, AttachError> {
    let mut all = all()?;
    all.retain(|device| place.is_below(&device.over));
    Ok(all)
}

/// What a device is over, if it still is the place's.
pub(crate) fn over(device: &Path, place: &Place) -> Result<Option<Over>, AttachError> {
    let mut of = of(place)?.into_iter();
    Ok(of.find(|d| d.path == device).map(|d| d.over))
}

/// Clears a place's device: at once, or when the last that uses it goes. If it is gone by now, that is fine.
pub(crate) fn clear(device: &Path, place: &Place) -> Result<(), AttachError> {
    let label = place.label();
    let cleared = match over(device, place)? {
        None => return Ok(()),
        Some(Over::File(_)) => loops::clear(device, &label, CLEAR_WITHIN),
        Some(Over::Label(_)) => {
            nbds::let_go(device, &label).and_then(|()| nbds::touch(device, CLEAR_WITHIN))
        }
    };
    still_there(cleared, device, place)
}

/// From now on a place's device goes with its last user, who is there.
pub(crate) fn go_with_last_user(device: &Path, place: &Place) -> Result<(), AttachError> {
    let label = place.label();
    let told = match over(device, place)? {
        None => return Ok(()),
        Some(Over::File(_)) => loops::clear(device, &label, CLEAR_WITHIN),
        Some(Over::Label(_)) => nbds::go_with_last_user(device, &label),
    };
    still_there(told, device, place)
}

/// An error counts if the device is still the place's.
fn still_there(
    done: Result<(), AttachError>,
    device: &Path,
    place: &Place,
) -> Result<(), AttachError> {
    match done {
        Err(error) if over(device, place)?.is_some() => Err(error),
        _ => Ok(()),
    }
}

/// Are all of a place's devices gone, after so long at most?
pub(crate) fn gone_within(place: &Place, within: Duration) -> Result<bool, AttachError> {
    let give_up = Instant::now() + within;
    while !of(place)?.is_empty() {
        if Instant::now() >= give_up {
            return Ok(false);
        }
        thread::sleep(PAUSE);
    }
    Ok(true)
}
