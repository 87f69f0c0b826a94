//! Block devices and mounts of the tests: what each test may leave is ended with it, however it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};
use std::time::Duration;

use crate::rig::{Rig, Served, until};
use crate::tools::{have, run, skip, tool};

pub(crate) const MOUNT_OPTIONS: &str = "discard,noatime,lazytime";

/// A rig, and the end of all its devices. Declared before servers, so that it goes after them.
pub(crate) struct Devices {
    pub(crate) rig: Rig,
    _mounts: RwLockReadGuard<'static, ()>,
}

/// A mount namespace that is made has all mounts that there are, and holds them, whoever unmounts them outside: so none is made
/// while devices are in use, and the other way round.
static MOUNTS: RwLock<()> = RwLock::new(());

/// For a test that makes mount namespaces.
pub(crate) fn no_devices() -> RwLockWriteGuard<'static, ()> {
    patiently(|| MOUNTS.try_write())
}

/// Nobody is in the way of a test that asks a second time, as one who waits in the lock's own line would be.
fn patiently<T>(attempt: impl Fn() -> TryLockResult<T>) -> T {
    loop {
        match attempt() {
            Ok(guard) => return guard,
            // By a test that failed.
            Err(TryLockError::Poisoned(guard)) => return guard.into_inner(),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Devices {
    /// Nothing, with a line that says why, where a block device cannot be had.
    pub(crate) fn new(test: &str, tools: &[&str]) -> Option<Self> {
        let missing = ["/dev/fuse", "/dev/loop-control"];
        let missing = missing.iter().find(|path| !Path::new(path).exists());
        if !rustix::process::geteuid().is_root() || missing.is_some() {
            skip(test, missing.unwrap_or(&"root"));
            return None;
        }
        let always = ["losetup", "mount", "umount", "blkid"];
        have(test, &[&always, tools].concat()).then(|| Self {
            rig: Rig::new(),
            _mounts: patiently(|| MOUNTS.try_read()),
        })
    }

    /// A snapshot of zeros.
    pub(crate) fn empty(&self, name: &str, mib: u64) {
        let path = self.rig.path("empty.raw");
        let file = fs::File::create(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        self.rig
            .ok(&format!("import empty.raw {name} --format raw --quiet"));
    }

    /// `cowslip attach` with these arguments, ready, and the path that it printed.
    #[track_caller]
    pub(crate) fn attach(&self, line: &str) -> (Served, PathBuf) {
        let (served, line) = self.start("attach", line);
        assert!(line.starts_with("/dev/loop"), "{line}");
        (served, line.into())
    }

    /// `cowslip mount`, ready.
    #[track_caller]
    pub(crate) fn mount(&self, line: &str) -> Served {
        self.start("mount", line).0
    }

    #[track_caller]
    fn start(&self, what: &str, line: &str) -> (Served, String) {
        // Also where the kernel has NBD: that has tests of its own.
        let words = [what, "--via=fuse"]
            .into_iter()
            .chain(line.split_whitespace());
        let mut command = self.rig.command(words);
        command.stdout(Stdio::piped());
        let mut served = Served::start(command, self.rig.path("none"));
        let line = served.first_line();
        (served, line)
    }

    /// A directory in the rig.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.rig.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Mounts a device there, as the system does.
    #[track_caller]
    pub(crate) fn mount_at(&self, device: &Path, name: &str) -> PathBuf {
        let dir = self.dir(name);
        let paths = [device.to_str().unwrap(), dir.to_str().unwrap()];
        run("mount", ["-o", MOUNT_OPTIONS].into_iter().chain(paths));
        dir
    }

    /// Loop devices over files of this rig's places, by name.
    pub(crate) fn loops(&self) -> Vec<String> {
        let places = fs::read_dir(self.rig.path("run")).into_iter().flatten();
        let places: Vec<String> = places
            .map(|place| place.unwrap().file_name().into_string().unwrap())
            .collect();
        let files = fs::read_dir("/sys/block").unwrap().filter_map(|entry| {
            let path = entry.unwrap().path().join("loop/backing_file");
            fs::read_to_string(path).ok()
        });
        files
            .filter(|file| places.iter().any(|place| file.contains(place)))
            .collect()
    }

    /// Mounts within the rig.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let rig = self.rig.path("").to_str().unwrap().to_owned();
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let targets = all.lines().map(|l| l.split(' ').nth(4).unwrap().to_owned());
        targets.filter(|target| target.starts_with(&rig)).collect()
    }

    /// Nothing is left: no mount, no loop device, no place.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), [""; 0]);
        assert_eq!(self.loops(), [""; 0]);
        let places = fs::read_dir(self.rig.path("run")).into_iter().flatten();
        assert_eq!(places.count(), 0, "places");
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for target in self.mounts().iter().rev() {
            let umount = Command::new(tool("umount").unwrap())
                .args(["-l", target])
                .status();
            drop(umount);
        }
        let ended = self.rig.run("detach --stale --quiet");
        if !std::thread::panicking() {
            assert!(ended.status.success(), "{}", crate::rig::said(&ended));
        }
    }
}

/// Waits until nothing of this kind is left.
#[track_caller]
pub(crate) fn gone(what: &str, left: impl Fn() -> bool) {
    until(what, || (!left()).then_some(()));
}
