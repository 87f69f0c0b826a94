//! [`Way`]: the ways to a block device of the kernel, and which of them a machine has.
//!
//! | way | what it needs, beside root | why it, why not |
//! |---|---|---|
//! | [`Way::Nbd`] | the kernel's module nbd, Linux 5.14 | TRIM, WRITE_ZEROES, FLUSH and FUA arrive as such, over several sockets; a server that was killed is replaced by the next, and what waited goes on |
//! | [`Way::Fuse`] | `/dev/fuse`, loop devices, losetup(8) | any kernel has them; a server that was killed takes its device with it |

use std::path::Path;

use crate::client::Options;
use crate::error::AttachError;
use crate::nbds;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel's NBD client.
    Nbd,
    /// A FUSE file under a loop device.
    Fuse,
}

impl Way {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        }
    }

    /// Does this machine have what it needs? The module is loaded for that, if it can be.
    ///
    /// # Errors
    /// [`AttachError::Missing`], and what looking met.
    pub fn check(self) -> Result<(), AttachError> {
        check(rustix::process::geteuid().is_root(), "root")?;
        match self {
            Self::Nbd => nbds::netlink().map(drop),
            Self::Fuse => {
                let fuse = Path::new("/dev/fuse").exists();
                check(fuse, "/dev/fuse (the kernel's fuse)")?;
                let loops = Path::new("/dev/loop-control").exists();
                check(loops, "/dev/loop-control (the kernel's loop devices)")
            }
        }
    }

    /// The best that the machine has, and why it is not a better one.
    ///
    /// # Errors
    /// What the last of them lacks.
    pub fn best() -> Result<(Self, Option<AttachError>), AttachError> {
        match Self::Nbd.check() {
            Ok(()) => Ok((Self::Nbd, None)),
            Err(lacks) => Self::Fuse.check().map(|()| (Self::Fuse, Some(lacks))),
        }
    }
}

fn check(is_there: bool, what: &'static str) -> Result<(), AttachError> {
    if is_there {
        Ok(())
    } else {
        Err(AttachError::Missing(what))
    }
}

/// What is to be attached, and how.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which way.
    pub way: Way,
    /// For the one of them.
    pub nbd: Options,
    /// Where places are.
    pub run_dir: &'a Path,
    /// What is served, for people.
    pub name: &'a str,
    /// The session's directory, where there is one.
    pub session: Option<&'a Path>,
    /// See [`About`](crate::About).
    pub served_as: Option<&'a str>,
}
