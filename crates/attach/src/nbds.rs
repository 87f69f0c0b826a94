//! Devices of the kernel's NBD client: made by netlink, looked at in `/sys/block`.
//!
//! | setting | why |
//! |---|---|
//! | sectors of 512 bytes | as for loop devices (`loops.rs`): with 4096 the kernel refuses an ext4 with blocks of 1 KiB |
//! | a label, `cowslip-<id>` of the place | `/sys/block/nbdN/backend` tells whose the device is, as long as it is connected or anybody has it open |
//! | the kernel chooses the number | who looks for a free one himself meets others who do the same |
//!
//! A number says little, as for loop devices: all but DISCONNECT goes by number and label. And DISCONNECT is only for a device
//! that is mounted and whose server is dead: whoever mounted it holds its number.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::AttachError;
use crate::netlink::{Change, Netlink};
use crate::tool;

const LOAD_WITHIN: Duration = Duration::from_secs(20);
const NONE: &[std::os::fd::OwnedFd] = &[];

/// The kernel's NBD client, loaded if it can be.
pub(crate) fn netlink() -> Result<Netlink, AttachError> {
    if let Some(netlink) = Netlink::open()? {
        return Ok(netlink);
    }
    let missing = || AttachError::Missing("the kernel's NBD client (its module nbd)");
    // Whatever it says: what counts is what is there then.
    drop(tool::run("modprobe", &["nbd".as_ref()], LOAD_WITHIN));
    Netlink::open()?.ok_or_else(missing)
}

/// The path of a device, by its number.
pub(crate) fn path(index: u32) -> PathBuf {
    format!("/dev/nbd{index}").into()
}

/// The number of a device.
pub(crate) fn index(device: &Path) -> Option<u32> {
    let name = device.file_name()?.to_str()?;
    name.strip_prefix("nbd")?.parse().ok()
}

/// What a device is called by whoever connected it; nothing where nobody has.
pub(crate) fn label(name: &Path) -> Option<String> {
    read_label(name).ok().filter(|label| !label.is_empty())
}

/// Is it called so?
pub(crate) fn is_labelled(index: u32, label: &str) -> Result<bool, AttachError> {
    let name = format!("nbd{index}");
    match read_label(name.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => Ok(other.map_err(AttachError::io(name))? == label),
    }
}

fn read_label(name: &Path) -> io::Result<String> {
    let text = fs::read_to_string(Path::new("/sys/block").join(name).join("backend"))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// From now on the device goes when its last user does.
pub(crate) fn go_with_last_user(device: &Path, label: &str) -> Result<(), AttachError> {
    let change = Change {
        goes_with_last_user: Some(true),
        ..Change::default()
    };
    change_of(device, label, &change).map(drop)
}

/// The same; and whoever still uses it when its server has gone does not wait for another one.
pub(crate) fn let_go(device: &Path, label: &str) -> Result<(), AttachError> {
    let change = Change {
        goes_with_last_user: Some(true),
        dead_timeout: Some(Duration::ZERO),
    };
    change_of(device, label, &change).map(drop)
}

/// Ends a device that is mounted and whose server is dead: what waits for that fails.
pub(crate) fn cut_off(device: &Path, label: &str) -> Result<(), AttachError> {
    let change = Change::default();
    match change_of(device, label, &change)? {
        Some((netlink, index)) => netlink.disconnect(index),
        None => Ok(()),
    }
}

/// Opens a device and closes it: with its last user it goes, if it was to.
pub(crate) fn touch(device: &Path, within: Duration) -> Result<(), AttachError> {
    tool::run("sync", &["--".as_ref(), device.as_os_str()], within).map(drop)
}

fn change_of(
    device: &Path,
    label: &str,
    change: &Change,
) -> Result<Option<(Netlink, u32)>, AttachError> {
    let (Some(index), Some(netlink)) = (index(device), Netlink::open()?) else {
        return Ok(None);
    };
    netlink.reconfigure(index, label, change, NONE)?;
    Ok(Some((netlink, index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (path, wanted) in [
            ("/dev/nbd0", Some(0)),
            ("/dev/nbd17", Some(17)),
            ("/dev/nbd0p1", None),
            ("/dev/loop3", None),
        ] {
            assert_eq!(index(Path::new(path)), wanted, "{path}");
        }
        assert_eq!(path(17), Path::new("/dev/nbd17"));
    }
}
