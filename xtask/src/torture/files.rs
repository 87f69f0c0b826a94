//! [`Files`]: a guest's file system: ext4 on the kernel's block device, with files whose content says which
//! version of which file it is.
//!
//! A version is written to a new file, synced, renamed over the old one, and the directory synced: from then
//! on it is durable. What was begun and failed may be there or not. Now and then all of it is unmounted,
//! checked with e2fsck, and compared. A file system that has failed is mended as its owner would: e2fsck,
//! mount.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};

use super::client::{Settled, Shared, Trouble, Work};
use super::fault::Break;
use super::place::tool;
use crate::rig::random::Random;
use crate::run::output;

const FILES: usize = 24;
const BYTES_MAX: usize = 256 << 10;

/// What a file may be: the number of its version, or nothing.
#[derive(Clone, Debug, Default)]
struct Versions {
    durable: Option<u32>,
    /// Begun since, in order.
    maybe: Vec<Option<u32>>,
}

/// See the module.
pub(super) struct Files {
    dir: PathBuf,
    /// Where the servers' devices have their places, by the names of the files that they stand on.
    run: PathBuf,
    /// The server whose device is mounted; 0 for none.
    generation: u32,
    /// There is a file system.
    made: bool,
    files: BTreeMap<usize, Versions>,
    number: u32,
    random: Random,
}

fn content(file: usize, version: u32) -> Vec<u8> {
    let mut random = Random((u64::from(version) << 32) ^ file as u64);
    let len = 1 + random.below(BYTES_MAX);
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    words.flatten().take(len).collect()
}

fn failed(what: &str, error: &io::Error) -> Trouble {
    let why = format!("{what}: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull => Trouble::NoRoom(why),
        _ => Trouble::Failed(why),
    }
}

impl Files {
    /// `place` is where it is mounted: a directory of its own in which nobody can write by mistake.
    pub(super) fn new(place: &Path, run: PathBuf, random: Random) -> Result<Self> {
        fs::create_dir_all(place)?;
        let mut mount = tool("mount")?;
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]);
        output(mount.arg(place))?;
        let dir = place.join("guest");
        fs::create_dir(&dir)?;
        output(tool("mount")?.args(["-o", "remount,ro"]).arg(place))?;
        Ok(Self {
            dir,
            run,
            generation: 0,
            made: false,
            files: BTreeMap::new(),
            number: 0,
            random,
        })
    }

    fn path(&self, file: usize) -> PathBuf {
        self.dir.join(format!("f{file}"))
    }

    /// Mounts what is served now, and compares it.
    fn mount(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let generation = shared.generation.load(Ordering::SeqCst);
        let device = shared.address();
        // What was mounted may be another server's, or this one's, half known.
        self.generation = 0;
        while self.unmount().is_ok() {}
        self.check_device(&device)?;
        let mounted = || -> Result<()> {
            if !self.made {
                let mut mkfs = tool("mkfs.ext4")?;
                output(mkfs.args(["-q", "-F"]).arg(&device))?;
            } else {
                let checked = tool("e2fsck")?.args(["-f", "-y"]).arg(&device).output()?;
                let said = String::from_utf8_lossy(&checked.stdout);
                let is_well = matches!(checked.status.code(), Some(0..=2));
                anyhow::ensure!(is_well, "e2fsck of the guest's disk: {said}");
            }
            let mut mount = tool("mount")?;
            mount.args(["-o", "discard,noatime"]);
            output(mount.arg(&device).arg(&self.dir))?;
            Ok(())
        };
        mounted().map_err(|error| Trouble::Failed(format!("{error:#}")))?;
        // It stays what it is as long as it is mounted.
        self.check_device(&device)?;
        (self.generation, self.made) = (generation, true);
        shared.tell("the guest's disk is mounted");
        self.compare(shared)
    }

    /// When its server has gone, and it is cleared, its number may be that of another: of the disk below the session, say.
    fn check_device(&self, device: &Path) -> Result<(), Trouble> {
        let name = device.file_name().unwrap_or_default();
        let file = Path::new("/sys/block").join(name).join("loop/backing_file");
        let file = fs::read_to_string(file).unwrap_or_default();
        let is_its = |place: &str| self.run.join(place).is_dir();
        match file.trim().strip_prefix("/cowslip-").is_some_and(is_its) {
            true => Ok(()),
            false => Err(Trouble::Gone(format!(
                "{} is no server's",
                device.display()
            ))),
        }
    }

    fn unmount(&self) -> Result<()> {
        output(tool("umount")?.arg(&self.dir)).map(drop)
    }

    fn be_mounted(&mut self, shared: &Shared) -> Result<(), Trouble> {
        match shared.generation.load(Ordering::SeqCst) == self.generation {
            true => Ok(()),
            false => self.mount(shared),
        }
    }

    /// Every file is what it may be; what it is, it was from now on.
    fn compare(&mut self, shared: &Shared) -> Result<(), Trouble> {
        for file in 0..FILES {
            let bytes = match fs::read(self.path(file)) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(failed("reading a file", &error)),
            };
            let versions = self.files.entry(file).or_default();
            let may = [versions.durable].into_iter().chain(versions.maybe.clone());
            let is = |version: &Option<u32>| match (version, &bytes) {
                (Some(version), Some(bytes)) => content(file, *version) == *bytes,
                (version, bytes) => version.is_none() && bytes.is_none(),
            };
            let Some(held) = may.into_iter().find(is) else {
                let len = bytes.map(|bytes| bytes.len());
                let why =
                    format!("lost: file {file} has {len:?} bytes, and is none of {versions:?}");
                return Err(Trouble::Finding(why));
            };
            // Not durable yet: what it was before stays possible until it is synced.
            if !versions.maybe.is_empty() {
                versions.maybe.push(held);
            }
            let compared = bytes.map_or(0, |bytes| bytes.len());
            shared
                .compared_bytes
                .fetch_add(compared as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Puts a version in place, or removes the file.
    fn change(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let file = self.random.below(FILES);
        self.number += 1;
        let version = (!self.random.once_in(6)).then_some(self.number);
        let path = self.path(file);
        let versions = self.files.entry(file).or_default();
        versions.maybe.push(version);
        let change = || -> io::Result<()> {
            match version {
                Some(version) => {
                    let new = path.with_extension("new");
                    let mut out = File::create(&new)?;
                    out.write_all(&content(file, version))?;
                    out.sync_all()?;
                    fs::rename(new, &path)?;
                }
                None => match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                },
            }
            File::open(&self.dir)?.sync_all()
        };
        match change() {
            Ok(()) => {
                versions.durable = version;
                versions.maybe.clear();
                shared.done(1);
                Ok(())
            }
            Err(error) => {
                shared.told_error();
                Err(failed("writing a file", &error))
            }
        }
    }
}

impl Work for Files {
    fn some(&mut self, shared: &Shared) -> Result<(), Trouble> {
        self.be_mounted(shared)?;
        for _ in 0..4 {
            self.change(shared)?;
        }
        Ok(())
    }

    fn leave(&mut self, _: Break, _: &Shared) -> Result<(), Trouble> {
        Ok(())
    }

    fn settle(&mut self, shared: &Shared) -> Result<Settled, Trouble> {
        self.be_mounted(shared)?;
        if let Err(trouble) = self.change(shared) {
            // The guest's kernel has given up; its owner has not.
            shared.tell(format_args!("the guest's disk is mended: {trouble:?}"));
            self.mount(shared)?;
            self.change(shared)?;
        }
        let well_at = Instant::now();
        // From the disk, not from memory.
        let generation = std::mem::take(&mut self.generation);
        let checked = || -> Result<()> {
            self.unmount()?;
            output(tool("e2fsck")?.args(["-f", "-n"]).arg(shared.address()))?;
            let mut mount = tool("mount")?;
            mount.args(["-o", "discard,noatime"]);
            output(mount.arg(shared.address()).arg(&self.dir))?;
            Ok(())
        };
        // A server that refuses writes by now makes this fail; another will not.
        checked().map_err(|error| Trouble::Failed(format!("the guest's disk: {error:#}")))?;
        self.generation = generation;
        self.compare(shared)?;
        // Whatever it is, it is on the disk.
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed("syncing", &error))?;
        for versions in self.files.values_mut() {
            if let Some(held) = versions.maybe.pop() {
                versions.durable = held;
                versions.maybe.clear();
            }
        }
        shared.tell("the guest's disk is compared");
        let versions = Vec::new();
        Ok(Settled { well_at, versions })
    }

    fn end(&mut self, _: &Shared) -> Result<()> {
        self.unmount()?;
        let place = self.dir.parent().context("it was made in one")?;
        output(tool("umount")?.arg(place))?;
        fs::remove_dir(place)?;
        Ok(())
    }
}
