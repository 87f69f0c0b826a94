//! A disk that failed for a moment, below a server that was killed meanwhile: what is flushed afterwards is on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::bytes::{BLOCK, MIB, assert_same, noise};
use crate::rig::{Rig, until};
use crate::tools::{have, run, skip, unmount};

/// ext4, on a disk whose writes fail on demand.
struct Disk {
    dir: PathBuf,
    nbdfuse: Child,
}

impl Disk {
    fn new(rig: &Rig) -> Self {
        let dir = rig.path("disk");
        for name in ["fuse", "files"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let image = dir.join("image");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let mut nbdfuse = Command::new("nbdfuse");
        nbdfuse
            .arg(dir.join("fuse/disk"))
            .args(["--command", "nbdkit", "-s"]);
        nbdfuse.args(["--filter=error", "file"]).arg(&image);
        nbdfuse.args(["error=EIO", "error-pwrite-rate=100%"]);
        nbdfuse.arg(format!("error-pwrite-file={}", dir.join("fail").display()));
        nbdfuse.stdin(Stdio::null()).stdout(Stdio::null());
        let nbdfuse = nbdfuse.spawn().unwrap();
        let disk = Self { dir, nbdfuse };
        until("nbdfuse", || disk.device().exists().then_some(()));
        run(
            "mkfs.ext4",
            ["-q", "-F", "-E", "lazy_itable_init=0", text(&disk.device())],
        );
        disk.mount();
        disk
    }

    fn device(&self) -> PathBuf {
        self.dir.join("fuse/disk")
    }

    fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    fn mount(&self) {
        // Times of files are no reason to write.
        let options = "loop,noatime,lazytime,commit=300";
        run(
            "mount",
            [
                "-t",
                "ext4",
                "-o",
                options,
                text(&self.device()),
                text(&self.files()),
            ],
        );
    }

    fn fails(&self, fails: bool) {
        let fail = self.dir.join("fail");
        if fails {
            File::create(fail).unwrap();
        } else {
            fs::remove_file(fail).unwrap();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for what in [self.files(), self.dir.join("fuse/disk")] {
            let mut umount = Command::new("umount");
            drop(umount.arg("-l").arg(what).stderr(Stdio::null()).status());
        }
        drop(self.nbdfuse.kill());
        drop(self.nbdfuse.wait());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The kernel told of the failure, but not us: to it all is written.
#[test]
fn what_failed_to_be_written_under_a_server_that_was_killed_is_written_again() {
    let test = "what_failed_to_be_written_under_a_server_that_was_killed_is_written_again";
    if !have(test, &["nbdfuse", "nbdkit", "mkfs.ext4", "mount"]) {
        return;
    }
    let can_mount = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !can_mount || !Path::new("/dev/fuse").exists() {
        return skip(test, "root, /dev/fuse and loop devices");
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    let disk = Disk::new(&rig);
    let session = disk.files().join("s");
    let serve = format!("base --session {}", session.display());
    let served = rig.serve_at(&serve, "nbd.sock");
    let mut client = served.client();
    // Some in place, some that were never written.
    let old = noise(2, 16 * BLOCK);
    client.write(0, &old).unwrap();
    client.flush().unwrap();
    let new = noise(3, 32 * BLOCK);
    client.write(0, &new).unwrap();
    disk.fails(true);
    let cache = fs::read_dir(&session).unwrap().map(|e| e.unwrap().path());
    let cache = cache.filter(|path| path.extension().is_some_and(|e| e == "data"));
    let cache: Vec<_> = cache.collect();
    assert_eq!(cache.len(), 1, "{cache:?}");
    let told = File::open(&cache[0]).unwrap().sync_data();
    assert!(told.is_err(), "the disk does not fail");
    drop(client);
    served.kill();
    disk.fails(false);
    let served = rig.serve_at(&serve, "nbd.sock");
    served.client().flush().unwrap();
    served.end();
    // Nothing is remembered from here on.
    unmount(&disk.files());
    disk.mount();
    let served = rig.serve_at(&serve, "nbd.sock");
    let mut found = vec![0; MIB];
    served.client().read(0, &mut found).unwrap();
    assert_same(&found[..new.len()], &new, "what was flushed");
    served.end();
}
