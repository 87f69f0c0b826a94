//! Firecracker itself, in a machine with a KVM of its own: docs/firecracker.md, block by block, with a guest that checks its own memory all the time.
//!
//! There is no package of it: without `COWSLIP_FIRECRACKER`, and none on the PATH, this is left out. What it takes, `firecracker_disk.rs` has from here.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowslip_machine::{Access, Archive, Kernel, Machine, Running, have};

use super::disk_guest::Files;
use super::recipe::blocks;
use super::rig::{COWSLIP, Rig};
use super::tools::{self, skip, tool};

pub(crate) const RECIPE: &str = include_str!("../../../../docs/firecracker.md");

/// For what takes seconds on a machine that has nothing else to do.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// The first process of the guest: `a` stays as it is, `b` grows. Each tick says whether both are what they were.
const GUEST: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t tmpfs m /m
$b seq 600000 > /m/a
sum=$($b sha256sum < /m/a)
n=0
while :; do
  n=$((n + 1))
  $b seq $((n * 1000)) $((n * 1000 + 999)) >> /m/b
  if [ "$($b sha256sum < /m/a)" = "$sum" ] && $b seq 1000 $((n * 1000 + 999)) | $b cmp -s - /m/b; then
    echo "tick $n whole"
  else
    echo "tick $n damaged"
  fi
  $b sleep 1
done
"#;

fn firecracker() -> Option<PathBuf> {
    let told = std::env::var_os("COWSLIP_FIRECRACKER").map(PathBuf::from);
    told.or_else(|| tool("firecracker"))
}

fn guest() -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("bin");
    archive.directory("m");
    let busybox = std::fs::read(tool("busybox").unwrap()).unwrap();
    archive.file("bin/busybox", &busybox);
    archive.file("init", GUEST.as_bytes());
    archive.finish()
}

/// The machine, and the directory in it where the recipe is run.
pub(crate) struct World {
    pub(crate) machine: Running,
    begin: String,
}

impl World {
    /// Where Firecracker works; else a line says what is missing. `files` is what the guest begins with, by the names that the recipe has for them.
    pub(crate) fn new(test: &str, rig: &Rig, files: impl FnOnce(&Kernel) -> Files) -> Option<Self> {
        let Some(firecracker) = firecracker() else {
            skip(test, "Firecracker (COWSLIP_FIRECRACKER, or on the PATH)");
            return None;
        };
        let (true, Some(kernel)) = (tools::have(test, &["busybox", "curl"]), have(test, "6.12"))
        else {
            return None;
        };
        let mut files = files(&kernel);
        files.push(("KERNEL", kernel.program()));
        let mut machine = Machine::new(&kernel).memory_mib(3072);
        // Where they are may be below /tmp, which is the machine's own.
        let programs = [Path::new(COWSLIP), &firecracker, &files[files.len() - 1].1];
        for program in programs {
            machine = machine.share(program.parent().unwrap(), Access::Read);
        }
        let mut machine = machine.share(&rig.path(""), Access::Read).boot();
        let kvm = "modprobe kvm_amd 2> /dev/null || modprobe kvm_intel; test -c /dev/kvm";
        if !machine.run(["sh", "-c", kvm], LONG).status.success() {
            skip(test, "a QEMU that emulates SVM");
            return None;
        }
        machine.sh("mkdir /tmp/recipe /tmp/bin", LONG);
        for (name, file) in [
            ("cowslip", Path::new(COWSLIP)),
            ("firecracker", &firecracker),
        ] {
            let file = file.canonicalize().unwrap();
            machine.sh(&format!("ln -s {} /tmp/bin/{name}", file.display()), LONG);
        }
        let files = files.iter();
        let files = files.map(|(name, path)| format!(" {name}={}", path.display()));
        let begin = format!(
            "set -e; cd /tmp/recipe; PATH=/tmp/bin:$PATH; export COWSLIP_STORE=/tmp/recipe/store{}",
            files.collect::<String>()
        );
        Some(Self { machine, begin })
    }

    pub(crate) fn sh(&mut self, block: &str) -> String {
        self.machine.sh(&format!("{}\n{block}", self.begin), LONG)
    }

    /// What the guest with this console has counted to, once that is more than this.
    pub(crate) fn ticks_after(&mut self, console: &str, before: u32) -> u32 {
        let give_up = Instant::now() + LONG;
        loop {
            let log = self.sh(&format!("sleep 1; cat {console}"));
            assert!(!log.contains("damaged"), "{log}");
            let ticks = log.split("tick ").skip(1);
            let whole = ticks.filter_map(|tick| tick.split_once(" whole")?.0.parse().ok());
            if let Some(last) = whole.max().filter(|last| *last > before) {
                return last;
            }
            assert!(Instant::now() < give_up, "{console} after {before}: {log}");
        }
    }
}

#[test]
fn firecracker_restores_from_our_server_as_the_recipe_says() {
    let test = "firecracker_restores_from_our_server_as_the_recipe_says";
    let rig = Rig::new();
    let files = |_: &Kernel| vec![("INITRD", rig.file("initrd", &guest()))];
    let Some(mut world) = World::new(test, &rig, files) else {
        return;
    };
    let [api, boot, import, restore, snapshot, fork, end] = blocks(RECIPE)[..] else {
        panic!("the recipe has other blocks than this test runs");
    };
    world.sh(api);
    world.sh(boot);
    let first = world.ticks_after("a.log", 1);
    world.sh(import);
    world.sh(restore);
    let restored = world.ticks_after("b.log", first);
    world.sh(snapshot);
    world.ticks_after("b.log", restored);
    // What the first guest touched was noted; the next one has it before it asks.
    let (_, load) = restore.split_once("vm1.state\n").unwrap();
    let noted = "until cowslip inspect vm1:trace > /dev/null 2>&1; do sleep 1; done";
    world.sh(&format!("{noted}\n{}", load.replace("b.", "d.")));
    world.ticks_after("d.log", first);
    world.sh("kill $(cat d.pid)");
    // Nobody needs the first server for it.
    world.sh("cowslip rm vm1; cowslip gc");
    world.sh(fork);
    let forked = world.ticks_after("c.log", restored);
    // Firecracker's own file of all memory, and ours, of the same pause.
    world.sh("sed 's/b.sock/c.sock/; s/Diff/Full/' pause > pause-c; sed 's/b.sock/c.sock/; /^rm/d' resume > resume-c; chmod +x pause-c resume-c");
    let ours =
        "cowslip memory snapshot vm3 --server unix:vm2.sock --before ./pause-c --after ./resume-c";
    world.sh(&format!(
        "{ours} && cowslip export vm3:memory ours && cmp ours unneeded"
    ));
    world.ticks_after("c.log", forked);
    // Without its server, with all of its memory.
    let before = world.ticks_after("b.log", restored);
    world.sh(end);
    world.ticks_after("b.log", before + 1);
    let said = world.sh("cat vm1.log");
    assert!(said.contains("of 1 guest"), "{said}");
    world.sh("cowslip verify");
}
