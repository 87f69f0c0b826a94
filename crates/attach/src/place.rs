//! [`Place`]: the private directory of one attached device, and what proves that something is ours.
//!
//! ```text
//! RUN_DIR/                     0700, the user's own; locked while places come, and while they are judged
//!   <id>/                      locked by the process that serves the device, as long as it lives
//!     about.json               what it is, for people and for `detach`
//!     mnt/                     where the FUSE file system is mounted, for a moment only
//! ```
//!
//! The label of a place is `cowslip-<id>`. The file in the FUSE file system is called so, and a loop device over it tells of itself in
//! `/sys/block/loopN/loop/backing_file`, until it is cleared; an NBD device has the label itself, in `/sys/block/nbdN/backend`. A device
//! is ours if it has the label of one of our places: the id is random, and who cannot read the directory cannot know it. It is stale if nobody
//! holds the lock of its place: locks die with their process.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::devices::Over;
use crate::error::AttachError;

const ABOUT: &str = "about.json";
/// What takes its place, whole or not at all.
const ABOUT_NEXT: &str = "about.next";
const ABOUT_BYTES_MAX: u64 = 64 << 10;

/// What an attached device is, as its place tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// The process that serves it.
    pub pid: u32,
    /// What is served.
    pub name: String,
    /// The session's directory, where there is one.
    pub session: Option<PathBuf>,
    /// `/dev/nbdN`, or `/dev/loopN`.
    pub device: PathBuf,
    /// Of an NBD device: how many sockets it has.
    #[serde(default)]
    pub connections: Option<usize>,
    /// What told the session's server from those before and after it, while the place's process served it.
    #[serde(default)]
    pub served_as: Option<String>,
}

/// See the module. It is held as long as this lives.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    id: Uuid,
    _lock: OwnedFd,
}

impl Place {
    /// A new one.
    ///
    /// # Errors
    /// Where the directory cannot be had, or others could write in it.
    pub fn new(run_dir: &Path) -> Result<Self, AttachError> {
        let failed = || AttachError::io(run_dir.display().to_string());
        let private = |recursive| {
            let mut builder = DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        private(true).create(run_dir).map_err(failed())?;
        let all = open_own(run_dir).map_err(failed())?;
        flock(&all, FlockOperation::LockExclusive).map_err(|e| failed()(e.into()))?;
        let id = Uuid::new_v4();
        let path = run_dir.join(id.to_string());
        private(false).create(&path).map_err(failed())?;
        private(false).create(path.join("mnt")).map_err(failed())?;
        let lock = try_lock(&path).map_err(failed())?;
        let busy = || failed()(io::ErrorKind::ResourceBusy.into());
        Ok(Self {
            path,
            id,
            _lock: lock.ok_or_else(busy)?,
        })
    }

    /// The places whose processes are gone, held from now on: as long as they are, their devices are nobody else's to end.
    ///
    /// # Errors
    /// Where the directory cannot be read, or others could write in it. That there is none is no error.
    pub fn left_behind(run_dir: &Path) -> Result<Vec<Self>, AttachError> {
        let failed = || AttachError::io(run_dir.display().to_string());
        let all = match open_own(run_dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed())?,
        };
        // None comes while this is held, so one without a lock was left.
        flock(&all, FlockOperation::LockExclusive).map_err(|e| failed()(e.into()))?;
        let mut left = Vec::new();
        for entry in fs::read_dir(run_dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let id = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            // Other names are not ours.
            let Some(id) = id else { continue };
            match try_lock(&path) {
                Ok(Some(_lock)) => left.push(Self { path, id, _lock }),
                // Somebody's, or gone meanwhile.
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed()(e)),
            }
        }
        Ok(left)
    }

    /// Where the FUSE file system is mounted.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.path.join("mnt")
    }

    /// What its device says that it is; see the module.
    pub(crate) fn label(&self) -> String {
        format!("cowslip-{}", self.id)
    }

    /// Is this what a device of this place is over?
    pub(crate) fn is_below(&self, over: &Over) -> bool {
        match over {
            Over::File(file) => self.is_backing_file(file),
            Over::Label(label) => *label == self.label(),
        }
    }

    fn is_backing_file(&self, backing_file: &str) -> bool {
        // The kernel appends this where the directory of a lazily unmounted file system went.
        let path = backing_file
            .strip_suffix(" (deleted)")
            .unwrap_or(backing_file);
        let name = self.label();
        path == format!("/{name}") || Path::new(path) == self.mount_point().join(name)
    }

    /// Says what this is.
    ///
    /// # Errors
    /// The file system's own.
    pub fn describe(&self, about: &About) -> Result<(), AttachError> {
        let (path, next) = (self.path.join(ABOUT), self.path.join(ABOUT_NEXT));
        let text = serde_json::to_vec(about).map_err(io::Error::from);
        text.and_then(|text| fs::write(&next, text))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(AttachError::io(path.display().to_string()))
    }

    /// What this is, as far as it was said.
    pub fn about(&self) -> Option<About> {
        let path = self.path.join(ABOUT);
        let is_small = fs::metadata(&path).is_ok_and(|m| m.len() <= ABOUT_BYTES_MAX);
        serde_json::from_slice(&fs::read(path).ok().filter(|_| is_small)?).ok()
    }

    /// Removes the directory; for when nothing of the device is left.
    ///
    /// # Errors
    /// The file system's own.
    pub fn remove(self) -> Result<(), AttachError> {
        let gone = |done: io::Result<()>| match done {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        gone(fs::remove_dir(self.mount_point()))
            .and_then(|()| gone(fs::remove_file(self.path.join(ABOUT_NEXT))))
            .and_then(|()| gone(fs::remove_file(self.path.join(ABOUT))))
            .and_then(|()| gone(fs::remove_dir(&self.path)))
            .map_err(AttachError::io(self.path.display().to_string()))
    }
}

/// A directory that nobody else can write in.
fn open_own(path: &Path) -> io::Result<OwnedFd> {
    let meta = fs::symlink_metadata(path)?;
    let is_own = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
    if !is_own || meta.mode() & 0o022 != 0 {
        let why = "it is not a directory that only its owner, this user, can write in";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    open(path)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn try_lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let dir = open(path)?;
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_place_is_left_behind_when_its_holder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert!(Place::left_behind(&run).unwrap().is_empty());
        let (one, two) = (Place::new(&run).unwrap(), Place::new(&run).unwrap());
        fs::create_dir(run.join("somebody-elses")).unwrap();
        assert!(Place::left_behind(&run).unwrap().is_empty());
        let about = About {
            pid: 7,
            name: "base".into(),
            session: None,
            device: "/dev/loop9".into(),
            connections: None,
            served_as: None,
        };
        one.describe(&about).unwrap();
        let id = one.id;
        drop(one);
        let left = Place::left_behind(&run).unwrap();
        assert_eq!(left.iter().map(|p| p.id).collect::<Vec<_>>(), [id]);
        assert_eq!(left[0].about().unwrap().pid, 7);
        assert!(Place::left_behind(&run).unwrap().is_empty(), "it is held");
        left.into_iter().for_each(|p| p.remove().unwrap());
        two.remove().unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count(), 1, "somebody else's");
    }

    #[test]
    fn what_devices_are_over_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path()).unwrap();
        let name = place.label();
        let mounted = place.mount_point().join(&name);
        for ours in [format!("/{name}"), format!("/{name} (deleted)")] {
            assert!(place.is_below(&Over::File(ours.clone())), "{ours}");
        }
        assert!(place.is_below(&Over::File(mounted.to_str().unwrap().into())));
        assert!(place.is_below(&Over::Label(name.clone())));
        let other = Place::new(dir.path()).unwrap().label();
        assert!(!place.is_below(&Over::Label(other.clone())));
        assert!(!place.is_below(&Over::Label(String::new())));
        for others in [
            "/disk.img".into(),
            name.clone(),
            format!("/x/{name}"),
            format!("/{other}"),
        ] {
            assert!(!place.is_below(&Over::File(others.clone())), "{others}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_in_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Place::new(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("only its owner"), "{refused}");
        assert!(Place::left_behind(dir.path()).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Place::new(dir.path()).unwrap();
    }
}
