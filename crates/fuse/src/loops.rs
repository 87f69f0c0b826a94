//! Loop devices: made and cleared by losetup(8), looked at in `/sys/block`.
//!
//! | setting | why |
//! |---|---|
//! | direct I/O | a page cache below the device's own would keep each byte twice, and write back behind it when memory is short |
//! | sectors of 512 bytes | a file system made on any common disk can be mounted: ext4 with blocks of 1 KiB, xfs and partition tables that count in 512 bytes. Whole blocks arrive as whole blocks all the same |
//! | no "autoclear" | the device lives until it is cleared, mounted or not; see `attached.rs` |
//!
//! A number says little: the moment a device is cleared, by whomever, its number is anybody's. What is done to a device is done
//! to one over the file of a [`Place`].

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::AttachError;
use crate::place::Place;
use crate::tool;

/// The unit of a loop device. What is left of a file behind the last whole one cannot be reached.
pub const SECTOR_BYTES: u64 = 512;

/// Makes a loop device over a file; its path.
pub(crate) fn make(file: &Path, read_only: bool, within: Duration) -> Result<PathBuf, AttachError> {
    let mut args = ["--find", "--show", "--direct-io=on", "--sector-size=512"]
        .map(OsStr::new)
        .to_vec();
    if read_only {
        args.push("--read-only".as_ref());
    }
    args.extend(["--".as_ref(), file.as_os_str()]);
    tool::run("losetup", &args, within).map(PathBuf::from)
}

/// Clears a device over a place's file. It is held open meanwhile: the number of what is open is not given away. By a child: this
/// process would be the one that answers what closing it waits for.
const CLEAR: &str = r#"{
    case "$(cat "/sys/block/${1##*/}/loop/backing_file")" in
        */"$2" | */"$2 (deleted)") losetup --detach "$1" ;;
    esac
} <"$1""#;

/// Clears a place's loop device: at once, or when the last that uses it goes. If it is gone by now, that is fine.
pub(crate) fn clear(device: &Path, place: &Place, within: Duration) -> Result<(), AttachError> {
    let name = place.file_name();
    let args = ["-c".as_ref(), CLEAR.as_ref(), "clear".as_ref()];
    let args = [&args[..], &[device.as_os_str(), name.as_ref()]].concat();
    match tool::run("sh", &args, within) {
        Err(error) if is_over(device, place)? => Err(error),
        _ => Ok(()),
    }
}

/// Is this still a loop device of that place?
pub(crate) fn is_over(device: &Path, place: &Place) -> Result<bool, AttachError> {
    Ok(of(place)?.iter().any(|l| l.device == device))
}

/// The loop devices of a place.
pub(crate) fn of(place: &Place) -> Result<Vec<Loop>, AttachError> {
    let mut all = all()?;
    all.retain(|l| place.is_over(&l.backing_file));
    Ok(all)
}

/// A loop device that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// `/dev/loopN`.
    pub device: PathBuf,
    /// The file below it, as the kernel calls it: from the root of its file system where that is mounted nowhere any more.
    pub backing_file: String,
}

/// All loop devices that are in use.
///
/// # Errors
/// Where `/sys` is missing.
pub fn all() -> Result<Vec<Loop>, AttachError> {
    let sys = Path::new("/sys/block");
    let mut found = Vec::new();
    for entry in fs::read_dir(sys).map_err(AttachError::io("/sys/block"))? {
        let name = entry.map_err(AttachError::io("/sys/block"))?.file_name();
        // It may go meanwhile, and then it is not in use.
        if let Ok(file) = fs::read_to_string(sys.join(&name).join("loop/backing_file")) {
            found.push(Loop {
                device: Path::new("/dev").join(&name),
                backing_file: file.trim_end_matches('\n').to_owned(),
            });
        }
    }
    Ok(found)
}

/// Does this loop device do direct I/O?
pub(crate) fn is_direct(device: &Path) -> bool {
    let name = device.file_name().unwrap_or_default();
    let dio = Path::new("/sys/block").join(name).join("loop/dio");
    fs::read_to_string(dio).is_ok_and(|text| text.trim() == "1")
}
