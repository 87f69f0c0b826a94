//! Loop devices: made and cleared by losetup(8), looked at in `/sys/block`.
//!
//! | setting | why |
//! |---|---|
//! | direct I/O | a page cache below the device's own would keep each byte twice, and write back behind it when memory is short |
//! | sectors of 512 bytes | a file system made on any common disk can be mounted: ext4 with blocks of 1 KiB, xfs and partition tables that count in 512 bytes. Whole blocks arrive as whole blocks all the same |
//! | no "autoclear" | the device lives until it is cleared, mounted or not; see `attached.rs` |
//!
//! A number says little: the moment a device is cleared, by whomever, its number is anybody's. What is done to a device is done
//! to one over the file of a place.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::AttachError;
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

/// Clears a device over a file of that name: at once, or when the last that uses it goes.
pub(crate) fn clear(device: &Path, name: &str, within: Duration) -> Result<(), AttachError> {
    let args = ["-c".as_ref(), CLEAR.as_ref(), "clear".as_ref()];
    let args = [&args[..], &[device.as_os_str(), name.as_ref()]].concat();
    tool::run("sh", &args, within).map(drop)
}

/// The file below a loop device, by the device's name.
pub(crate) fn backing_file(name: &Path) -> Option<String> {
    let path = Path::new("/sys/block").join(name).join("loop/backing_file");
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Does this loop device do direct I/O?
pub(crate) fn is_direct(device: &Path) -> bool {
    let name = device.file_name().unwrap_or_default();
    let dio = Path::new("/sys/block").join(name).join("loop/dio");
    fs::read_to_string(dio).is_ok_and(|text| text.trim() == "1")
}
