//! Loop devices: made and cleared by losetup(8), looked at in `/sys/block`.
//!
//! | setting | why |
//! |---|---|
//! | direct I/O | a page cache below the device's own would keep each byte twice, and write back behind it when memory is short |
//! | sectors of 512 bytes | a file system made on any common disk can be mounted: ext4 with blocks of 1 KiB, xfs and partition tables that count in 512 bytes. Whole blocks arrive as whole blocks all the same |
//! | no "autoclear" | the device lives until it is cleared, mounted or not; see `attached.rs` |

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

/// Clears a loop device: at once, or when the last that uses it goes.
pub(crate) fn clear(device: &Path, within: Duration) -> Result<(), AttachError> {
    tool::run(
        "losetup",
        &["--detach".as_ref(), device.as_os_str()],
        within,
    )
    .map(drop)
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
