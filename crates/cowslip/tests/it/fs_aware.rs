//! `snapshot --fs-aware` with a real kernel's ext4: what is left out, and that nobody misses it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bytes::{BLOCK, MIB, noise};
use crate::devices::Devices;
use crate::rig::{PATIENCE, Served};
use crate::tools::{run, unmount};

/// Without `discard`: what is deleted leaves its bytes.
const OPTIONS: &str = "noatime,lazytime";
/// Blocks of the file that is deleted.
const GONE: u64 = (20 * MIB / BLOCK) as u64;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// An ext4 on a device, mounted, with files, and what deleted files left. `served` is ended first.
struct Mounted {
    served: Served,
    devices: Devices,
    device: PathBuf,
    dir: PathBuf,
}

impl Mounted {
    fn new(test: &str, mkfs: &[&str]) -> Option<Self> {
        let tools = ["mkfs.ext4", "e2fsck", "fsfreeze", "blockdev"];
        let devices = Devices::new(test, &tools)?;
        devices.empty("base", 96);
        let (served, device) = devices.attach("base --session s");
        let path = device.to_str().unwrap();
        run("mkfs.ext4", ["-q"].iter().chain(mkfs).chain(&[path]));
        let dir = devices.dir("mnt");
        run("mount", ["-o", OPTIONS, path, dir.to_str().unwrap()]);
        let mounted = Self {
            served,
            devices,
            device,
            dir,
        };
        mounted.work(1);
        Some(mounted)
    }

    /// Files made, and rewritten by rename; one made and deleted.
    fn work(&self, seed: u64) {
        for i in 0..40 {
            let to = self.dir.join(format!("dir{}", i % 7));
            fs::create_dir_all(&to).unwrap();
            let bytes = noise(seed * 100 + i, 3000 * usize::try_from(1 + i).unwrap());
            write(&to.join("new"), &bytes);
            fs::rename(to.join("new"), to.join(format!("f{i}"))).unwrap();
        }
        write(&self.dir.join("gone"), &noise(seed, 20 * MIB));
        fs::remove_file(self.dir.join("gone")).unwrap();
        run("sync", ["-f", self.dir.to_str().unwrap()]);
    }

    fn files(&self) -> Files {
        files(&self.dir)
    }

    /// A snapshot that leaves out what is not needed: how many blocks that were, of those written.
    #[track_caller]
    fn aware(&self, name: &str) -> u64 {
        let taken = self
            .devices
            .rig
            .json(&format!("snapshot s {name} --fs-aware"));
        number(&taken, "unneeded_blocks")
    }

    /// The file system in a snapshot is sound, and has these files.
    #[track_caller]
    fn check(&self, name: &str, wanted: &Files) {
        let rig = &self.devices.rig;
        let raw = format!("{name}.raw");
        rig.ok(&format!("export {name} {raw} --quiet"));
        run("e2fsck", ["-fn".as_ref(), rig.path(&raw).as_os_str()]);
        let copy = self.devices.dir(&format!("of-{name}"));
        let mounted = self
            .devices
            .mount(&format!("{name} {} --read-only", copy.display()));
        assert_equal(&files(&copy), wanted, name);
        mounted.end();
    }

    fn end(self) {
        self.served.end_within(PATIENCE);
        self.devices.assert_nothing_left();
    }
}

/// A frozen file system, thawed at the end, however the test ends.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(dir: &'a Path) -> Self {
        run("fsfreeze", ["-f".as_ref(), dir.as_os_str()]);
        Self(dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", ["-u".as_ref(), self.0.as_os_str()]);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// All files below a directory, by their paths in it.
fn files(root: &Path) -> Files {
    let (mut all, mut left) = (Files::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                all.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
            }
        }
    }
    all
}

#[track_caller]
fn assert_equal(found: &Files, wanted: &Files, what: &str) {
    assert!(found.keys().eq(wanted.keys()), "{what}: {:?}", found.keys());
    for (path, bytes) in found {
        assert!(*bytes == wanted[path], "{what}: {}", path.display());
    }
}

fn number(of: &Value, what: &str) -> u64 {
    of[what]
        .as_u64()
        .unwrap_or_else(|| panic!("{what} in {of}"))
}

#[test]
fn an_unmounted_file_system_does_without_what_it_does_not_need() {
    let test = "an_unmounted_file_system_does_without_what_it_does_not_need";
    for mkfs in [
        &["-b4096"][..],
        &["-b1024"],
        &["-Obigalloc", "-C16384"],
        &["-O^has_journal"],
    ] {
        let Some(mounted) = Mounted::new(test, mkfs) else {
            return;
        };
        let rig = &mounted.devices.rig;
        let files = mounted.files();
        assert_eq!(files.len(), 40);
        unmount(&mounted.dir);
        // What was deleted is in one, and not in the other, which is made over it.
        rig.ok("snapshot s plain");
        let aware = rig.json("snapshot s aware --fs-aware");
        assert_eq!(number(&aware, "unneeded_blocks"), 0, "{aware}");
        assert!(number(&aware, "zero_blocks") >= GONE, "{aware}");
        let zeroed = number(&rig.json("diff plain aware"), "zeroed_blocks");
        assert_eq!(zeroed, number(&aware, "zero_blocks"));
        assert_eq!(
            number(
                &rig.json("explain aware --against base")["shadow"],
                "free_blocks"
            ),
            0
        );
        mounted.check("aware", &files);
        // Directly over what has none of it.
        run(
            "mount",
            [
                "-o".as_ref(),
                OPTIONS.as_ref(),
                mounted.device.as_os_str(),
                mounted.dir.as_os_str(),
            ],
        );
        mounted.work(2);
        let files = mounted.files();
        unmount(&mounted.dir);
        assert!(mounted.aware("again") >= GONE);
        mounted.check("again", &files);
        mounted.end();
    }
}

#[test]
fn a_frozen_file_system_goes_on_over_what_is_left() {
    let test = "a_frozen_file_system_goes_on_over_what_is_left";
    for mkfs in [&["-b4096"][..], &["-b1024", "-Ofast_commit"]] {
        let Some(mounted) = Mounted::new(test, mkfs) else {
            return;
        };
        // Deleted, and open: nobody's by name, and needed.
        let orphan = mounted.dir.join("orphan");
        write(&orphan, &noise(7, MIB));
        let held = OpenOptions::new().read(true).open(&orphan).unwrap();
        fs::remove_file(&orphan).unwrap();
        let wanted = mounted.files();
        let frozen = Frozen::new(&mounted.dir);
        let unneeded = mounted.aware("aware");
        drop(frozen);
        assert!(unneeded >= GONE, "{unneeded}");
        // All that the kernel knows comes from the device again.
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        run(
            "blockdev",
            ["--flushbufs".as_ref(), mounted.device.as_os_str()],
        );
        assert_equal(&mounted.files(), &wanted, "the kernel that went on");
        let mut found = vec![0; MIB];
        held.read_exact_at(&mut found, 0).unwrap();
        assert!(found == noise(7, MIB), "the orphan");
        drop(held);
        // It works on in the room that reads as zeros now.
        mounted.work(3);
        let later = mounted.files();
        unmount(&mounted.dir);
        mounted.devices.rig.ok("snapshot s later");
        mounted.check("later", &later);
        // The orphan is not deleted yet there, which a check says by its exit code.
        let copy = mounted.devices.dir("of-aware");
        let served = mounted
            .devices
            .mount(&format!("aware {} --session t", copy.display()));
        assert_equal(&files(&copy), &wanted, "aware");
        served.end();
        mounted.end();
    }
}

#[test]
fn a_mounted_file_system_that_is_not_frozen_is_refused() {
    let test = "a_mounted_file_system_that_is_not_frozen_is_refused";
    let Some(mounted) = Mounted::new(test, &["-b4096"]) else {
        return;
    };
    let rig = &mounted.devices.rig;
    let said = rig.fails(1, "snapshot s aware --fs-aware");
    assert!(said.contains("mounted and not frozen"), "{said}");
    assert!(said.contains("kept, for the next"), "{said}");
    rig.fails(3, "inspect aware");
    let files = mounted.files();
    // Nothing is lost by it, and the name is free.
    unmount(&mounted.dir);
    assert!(mounted.aware("aware") >= GONE);
    mounted.check("aware", &files);
    mounted.end();
    // What is no ext4 at all, also at rest.
    let rig = crate::rig::Rig::new();
    rig.import("noise", &noise(1, MIB));
    rig.serve("noise --session s").end();
    let said = rig.fails(1, "snapshot s aware --fs-aware");
    assert!(said.contains("no ext4"), "{said}");
}

/// The noise that each mount option takes away is named.
#[test]
fn inodes_that_were_only_looked_at_are_told() {
    let test = "inodes_that_were_only_looked_at_are_told";
    let Some(mounted) = Mounted::new(test, &["-b4096"]) else {
        return;
    };
    let rig = &mounted.devices.rig;
    let remount = |options: &str| {
        unmount(&mounted.dir);
        let (device, dir) = (mounted.device.as_os_str(), mounted.dir.as_os_str());
        run("mount", ["-o".as_ref(), options.as_ref(), device, dir]);
    };
    let advice = |name: &str| {
        run("sync", ["-f", mounted.dir.to_str().unwrap()]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        rig.ok(&format!("snapshot s {name}"));
        let said = rig.json(&format!("explain {name}"));
        assert_eq!(said["unknown_blocks"], 0, "{said}");
        let all = said["advice"].as_array().unwrap().clone();
        let blocks = move |what: &str| {
            let found = all.iter().find(|advice| advice["what"] == what);
            found.map_or(0, |advice| number(advice, "blocks"))
        };
        [blocks("read_times"), blocks("times"), blocks("free")]
    };
    let [_, _, free] = advice("first");
    assert!(free >= GONE, "{free}");
    remount("strictatime");
    advice("mounted");
    mounted.files();
    let [read, times, _] = advice("read");
    assert!(read > 0 && times == 0, "{read} {times}");
    for path in mounted.files().keys() {
        let file = File::open(mounted.dir.join(path)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
    }
    let [_, times, _] = advice("touched");
    assert!(times > 0, "{times}");
    unmount(&mounted.dir);
    mounted.end();
}
