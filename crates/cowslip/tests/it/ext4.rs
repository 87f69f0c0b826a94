//! A file system: made in an export, or copied into one, and clean in the snapshot of it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::bytes::{MIB, noise};
use crate::rig::{Rig, until};
use crate::tools::{have, run, skip, tool};

const MKFS: [&str; 5] = ["-q", "-F", "-b", "4096", "-d"];

/// A directory with something in it.
fn tree(rig: &Rig) -> String {
    let root = rig.path("tree");
    std::fs::create_dir(&root).unwrap();
    for i in 0..40usize {
        let dir = root.join(format!("dir{}", i % 5));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(
            dir.join(format!("file{i}")),
            noise(i as u64, 1000 * (i + 1)),
        )
        .unwrap();
    }
    root.to_str().unwrap().to_owned()
}

fn fsck(image: &Path) {
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), image.as_os_str()]);
}

#[test]
fn a_file_system_copied_in_is_clean_in_a_snapshot() {
    let tools = ["mkfs.ext4", "e2fsck", "nbdcopy"];
    if !have("a_file_system_copied_in_is_clean_in_a_snapshot", &tools) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, 24 * MIB));
    let served = rig.serve("base --session s");
    let image = rig.path("fs.raw");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(24 << 20).unwrap();
    run(
        "mkfs.ext4",
        MKFS.iter()
            .copied()
            .chain([tree(&rig).as_str(), image.to_str().unwrap()]),
    );
    run("nbdcopy", [image.to_str().unwrap(), &served.uri()]);
    rig.ok("snapshot s fs");
    rig.ok("export fs fs-out.raw");
    fsck(&rig.path("fs-out.raw"));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(rig.path("fs-out.raw")).unwrap());
    // Most of a new file system is zeros over what was noise.
    let info = rig.inspect("fs");
    let blocks = |what: &str| info[what].as_u64().unwrap();
    assert!(blocks("zero_blocks") > blocks("dirty_blocks"), "{info}");
    assert_eq!(blocks("zero_blocks") + blocks("dirty_blocks"), 24 * 256);
}

#[test]
fn a_file_system_made_in_an_export_is_clean_in_a_snapshot() {
    let test = "a_file_system_made_in_an_export_is_clean_in_a_snapshot";
    if !have(test, &["mkfs.ext4", "e2fsck", "nbdfuse", "umount"]) {
        return;
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        skip(test, "root and /dev/fuse");
        return;
    }
    let rig = Rig::new();
    rig.import("base", &vec![0; 24 * MIB]);
    let served = rig.serve("base --session s");
    let mounted = Fuse::mount(&rig, &served.uri());
    let disk = rig.path("mnt/disk");
    run(
        "mkfs.ext4",
        MKFS.iter()
            .copied()
            .chain([tree(&rig).as_str(), disk.to_str().unwrap()]),
    );
    fsck(&disk);
    rig.ok("snapshot s made");
    drop(mounted);
    rig.ok("export made made.raw");
    fsck(&rig.path("made.raw"));
    // It goes on from the snapshot.
    served.end();
    rig.ok("verify made");
}

/// A file `mnt/disk` that is the export.
struct Fuse {
    child: std::process::Child,
    mount: std::path::PathBuf,
}

impl Fuse {
    fn mount(rig: &Rig, uri: &str) -> Self {
        let mount = rig.path("mnt");
        std::fs::create_dir(&mount).unwrap();
        let pid = rig.path("nbdfuse.pid");
        let mut command = Command::new(tool("nbdfuse").unwrap());
        command.arg("-P").arg(&pid).arg(mount.join("disk")).arg(uri);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let fuse = Self { child, mount };
        // It writes this file when it has mounted.
        until("nbdfuse to be ready", || pid.exists().then_some(()));
        fuse
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let unmount = Command::new(tool("umount").unwrap())
            .arg(&self.mount)
            .status();
        if !unmount.is_ok_and(|s| s.success()) {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}
