//! [`Place`]: where a store or a session lies, and what can happen to it there.
//!
//! | kind      | is                                                                          | can be            |
//! |-----------|-----------------------------------------------------------------------------|-------------------|
//! | directory | the machine's own disk                                                      |                   |
//! | tmpfs     | a small one                                                                 | full              |
//! | disk      | a small ext4 over a loop device over nbdfuse over nbdkit with `error` filter | full, failing, cut |
//!
//! A disk fails by files that nbdkit looks for: `fail-reads` and `fail-writes`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use crate::run::{output, program};

const TMPFS: &str = "size=160m";
const DISK_BYTES: u64 = 256 << 20;
const WITHIN: Duration = Duration::from_secs(20);
const BALLAST: &str = "ballast";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Tmpfs,
    Disk,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
        }
    }
}

/// See the module.
pub(super) struct Place {
    pub(super) kind: Kind,
    /// Where its files are.
    pub(super) dir: PathBuf,
    base: PathBuf,
    nbdfuse: Option<Child>,
}

/// The command of a program that need not be on everybody's PATH.
pub(super) fn tool(name: &str) -> Result<Command> {
    let path = program(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    Ok(command)
}

/// What others may be in the way of, for a moment.
fn until_done(step: impl Fn() -> Result<()>) -> Result<()> {
    let give_up = Instant::now() + WITHIN;
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Place {
    pub(super) fn make(base: PathBuf, kind: Kind) -> Result<Self> {
        let dir = base.join("files");
        fs::create_dir_all(&dir)?;
        let mut place = Self {
            kind,
            dir,
            base,
            nbdfuse: None,
        };
        match kind {
            Kind::Directory => {}
            Kind::Tmpfs => {
                let mut mount = tool("mount")?;
                mount.args(["-t", "tmpfs", "-o", TMPFS, "tmpfs"]);
                output(mount.arg(&place.dir))?;
            }
            Kind::Disk => place.make_disk()?,
        }
        Ok(place)
    }

    fn make_disk(&mut self) -> Result<()> {
        let image = self.base.join("image");
        File::create(&image)?.set_len(DISK_BYTES)?;
        fs::create_dir(self.base.join("fuse"))?;
        let mut nbdfuse = tool("nbdfuse")?;
        nbdfuse
            .arg(self.device())
            .args(["--command", "nbdkit", "-s"]);
        nbdfuse.args(["--filter=error", "file"]).arg(&image);
        nbdfuse.arg("error=EIO");
        for (what, file) in [
            ("pread", "fail-reads"),
            ("pwrite", "fail-writes"),
            ("zero", "fail-writes"),
            ("trim", "fail-writes"),
        ] {
            let trigger = self.base.join(file);
            nbdfuse.arg(format!("error-{what}-rate=100%"));
            nbdfuse.arg(format!("error-{what}-file={}", trigger.display()));
        }
        let said = File::create(self.base.join("nbdfuse.log"))?;
        nbdfuse.stdout(said.try_clone()?).stderr(said);
        self.nbdfuse = Some(nbdfuse.spawn().context("starting nbdfuse")?);
        let give_up = Instant::now() + WITHIN;
        while !self.device().exists() {
            if Instant::now() > give_up {
                let said = fs::read_to_string(self.base.join("nbdfuse.log"))?;
                bail!("nbdfuse is not ready: {said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut mkfs = tool("mkfs.ext4")?;
        mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0"]);
        output(mkfs.arg(self.device()))?;
        self.mount()
    }

    fn device(&self) -> PathBuf {
        self.base.join("fuse/disk")
    }

    /// Over a loop device that goes with the mount. One that another victim's e2fsck still has open, though it is cleared, cannot be mounted.
    fn mount(&self) -> Result<()> {
        until_done(|| {
            let mut mount = tool("mount")?;
            mount.args(["-t", "ext4", "-o", "loop,discard,noatime"]);
            output(mount.arg(self.device()).arg(&self.dir)).map(drop)
        })
    }

    pub(super) fn unmount(&self) -> Result<()> {
        until_done(|| output(tool("umount")?.arg(&self.dir)).map(drop))
    }

    /// What an operator does with a disk that failed: unmount, e2fsck, mount. Nobody may have a file
    /// open there. What was not on the disk is gone then, whatever the kernel remembered of it.
    pub(super) fn remount(&self) -> Result<()> {
        if self.kind != Kind::Disk {
            return Ok(());
        }
        self.unmount()?;
        let mut e2fsck = tool("e2fsck")?;
        let checked = e2fsck.args(["-f", "-y"]).arg(self.device()).output()?;
        if !matches!(checked.status.code(), Some(0..=2)) {
            let said = String::from_utf8_lossy(&checked.stdout);
            bail!("e2fsck of the disk below: {said}");
        }
        self.mount()?;
        // It could not be removed from a disk that had failed.
        self.free();
        Ok(())
    }

    /// Has the file system given up?
    pub(super) fn is_broken(&self) -> bool {
        let path = self.dir.join("probe");
        let tried = File::create(&path).and_then(|file| file.sync_all());
        tried.and_then(|()| fs::remove_file(path)).is_err()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Takes all the room that is left.
    pub(super) fn fill(&self) -> Result<()> {
        let mut ballast = File::options();
        let ballast = ballast.append(true).create(true);
        // Not even that: it is as full, or as broken, as can be.
        let Ok(file) = ballast.open(self.path(BALLAST)) else {
            return Ok(());
        };
        let mut end = file.metadata()?.len();
        for step in [16 << 20, 1 << 20, 64 << 10, 4 << 10] {
            while fallocate(&file, FallocateFlags::empty(), end, step).is_ok() {
                end += step;
            }
        }
        Ok(())
    }

    pub(super) fn free(&self) {
        drop(fs::remove_file(self.path(BALLAST)));
    }

    pub(super) fn fail(&self, what: &str, fail: bool) -> Result<()> {
        let trigger = self.base.join(what);
        match fail {
            true => File::create(trigger).map(drop)?,
            false => drop(fs::remove_file(trigger)),
        }
        Ok(())
    }

    /// Makes the kernel read the files again.
    pub(super) fn forget_cached(&self) {
        forget(&self.dir);
    }

    /// The end of it; whoever has a file open there is a finding.
    pub(super) fn end(mut self) -> Result<()> {
        if self.kind != Kind::Directory {
            self.unmount()?;
        }
        if let Some(mut nbdfuse) = self.nbdfuse.take() {
            output(tool("umount")?.arg(self.base.join("fuse")))?;
            nbdfuse.wait()?;
        }
        fs::remove_dir_all(&self.base)?;
        Ok(())
    }
}

fn forget(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => forget(&path),
            Ok(kind) if kind.is_file() => {
                if let Ok(file) = File::open(path) {
                    let _ = fadvise(&file, 0, None, Advice::DontNeed);
                }
            }
            _ => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut nbdfuse) = self.nbdfuse.take() {
            drop(nbdfuse.kill());
            drop(nbdfuse.wait());
        }
    }
}
