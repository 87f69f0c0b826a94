//! [`Waiting`]: the NBD device of a session whose server was killed, which waits for the next one.
//!
//! It is known by its place: nobody's any more, of that session, with the label of a device that is there. Taking the place's lock makes
//! it ours; the kernel then gives the device's sockets for that label only.
//!
//! The kernel may have a file system of the device mounted, and holds writes that it will send again: they belong to the session as it
//! was left. So the device is taken over only if nobody served the session meanwhile: what told its server from others
//! ([`About`](crate::About)`::served_as`) is what is found there now. Who fails to take it over has served nobody: it says that it was there, and leaves the device
//! to the next one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::devices::{self, Over};
use crate::error::AttachError;
use crate::loops::SECTOR_BYTES;
use crate::nbds;
use crate::place::Place;

/// See the module. Its place is held.
#[derive(Debug)]
pub struct Waiting {
    pub(crate) place: Place,
    pub(crate) index: u32,
    pub(crate) connections: usize,
    pub(crate) device: PathBuf,
}

/// What there is of a session's devices.
#[derive(Debug)]
pub enum Found {
    /// None waits.
    None,
    /// One, which can be taken over.
    Waiting(Waiting),
    /// One that waits for what the session was, before others served it.
    Outdated(PathBuf),
}

impl Waiting {
    /// Looks for the device of a session; `served_as` is what tells its last server from others.
    ///
    /// # Errors
    /// Where it cannot be looked for.
    pub fn find(
        run_dir: &Path,
        session: &Path,
        served_as: Option<&str>,
    ) -> Result<Found, AttachError> {
        let mut found = Found::None;
        // Those that are not it are let go again.
        for place in Place::left_behind(run_dir)? {
            let about = place
                .about()
                .filter(|about| about.session.as_deref() == Some(session));
            let Some(about) = about else { continue };
            let of = devices::of(&place)?;
            let Some(device) = of.into_iter().find(|d| matches!(d.over, Over::Label(_))) else {
                continue;
            };
            let index = nbds::index(&device.path);
            match (index, about.connections) {
                (Some(index), Some(connections))
                    if served_as.is_some() && about.served_as.as_deref() == served_as =>
                {
                    found = Found::Waiting(Self {
                        place,
                        index,
                        connections,
                        device: device.path,
                    });
                    break;
                }
                _ => found = Found::Outdated(device.path),
            }
        }
        Ok(found)
    }

    /// `/dev/nbdN`.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Is it as long, as far as it is known now, and as read-only? The kernel changes neither while it is connected.
    ///
    /// # Errors
    /// [`AttachError::Unlike`].
    pub fn check(&self, size_bytes: Option<u64>, read_only: bool) -> Result<(), AttachError> {
        let name = self.device.file_name().unwrap_or_default();
        let is = |what: &str, wanted: u64| {
            let text = fs::read_to_string(Path::new("/sys/block").join(name).join(what));
            text.is_ok_and(|text| text.trim().parse() == Ok(wanted))
        };
        let is_like = is("ro", u64::from(read_only))
            && size_bytes.is_none_or(|bytes| is("size", bytes / SECTOR_BYTES));
        if is_like {
            return Ok(());
        }
        Err(AttachError::Unlike(self.device.clone()))
    }
}
