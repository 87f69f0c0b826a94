//! Cloud Hypervisor with a disk of ours by the kernel's NBD client, and its memory from a snapshot: docs/cloud-hypervisor.md, block by block.
//!
//! There is no package of it: without `COWSLIP_CLOUD_HYPERVISOR`, and none on the PATH, this is left out. The guest (`disk_guest.rs`) compares its disk with
//! its memory all the time: those of two moments are damage to it.

use std::path::PathBuf;

use cowslip_machine::Kernel;
use serde_json::Value;

use super::bytes::{MIB, noise};
use super::disk_guest;
use super::nested::{LONG, World};
use super::recipe::blocks;
use super::rig::Rig;
use super::tools::{skip, tool};

const RECIPE: &str = include_str!("../../../../docs/cloud-hypervisor.md");

/// It, and the program that tells it what to do; what is missing, a line says.
fn cloud_hypervisor(test: &str) -> Option<[(&'static str, PathBuf); 2]> {
    let told = std::env::var_os("COWSLIP_CLOUD_HYPERVISOR").map(PathBuf::from);
    let found = told.or_else(|| tool("cloud-hypervisor"));
    let found = found.and_then(|path| path.canonicalize().ok());
    let remote = found.as_ref().map(|path| path.with_file_name("ch-remote"));
    let Some((path, remote)) = found.zip(remote.filter(|path| path.is_file())) else {
        skip(
            test,
            "Cloud Hypervisor (COWSLIP_CLOUD_HYPERVISOR, or on the PATH) with ch-remote beside it",
        );
        return None;
    };
    Some([("cloud-hypervisor", path), ("ch-remote", remote)])
}

/// The disk of a guest that was cut off: its journal is replayed, and nothing else needs to be done.
fn is_sound(world: &mut World, guest: &str) {
    world.sh(&format!(
        "cowslip snapshot {guest}/session {guest}-end > /dev/null
        cowslip export {guest}-end:disk {guest}/image --quiet > /dev/null
        e2fsck -E journal_only -y {guest}/image > {guest}/e2fsck 2>&1 || [ $? = 1 ]
        e2fsck -fn {guest}/image >> {guest}/e2fsck 2>&1 || {{ cat {guest}/e2fsck >&2; exit 1; }}
        rm {guest}/image"
    ));
}

#[test]
fn cloud_hypervisor_goes_on_with_its_disk_as_the_recipe_says() {
    let test = "cloud_hypervisor_goes_on_with_its_disk_as_the_recipe_says";
    let Some(programs) = cloud_hypervisor(test) else {
        return;
    };
    let rig = Rig::new();
    let files = |kernel: &Kernel| {
        let files = disk_guest::files(&rig, kernel);
        rig.file("root/data/gone", &noise(1, 4 * MIB));
        files
    };
    let Some(mut world) = World::new(test, &rig, &programs, files) else {
        return;
    };
    let [begin, boot, save, end_first, fork, again, end] = blocks(RECIPE)[..] else {
        panic!("the recipe has other blocks than this test runs");
    };
    world.sh(begin);
    world.sh(boot);
    let first = world.ticks_after("a/console", 4);
    eprintln!("{}", world.sh(save));
    let zeroed = world.sh("cowslip diff template vm1:disk --json");
    let zeroed: Value = serde_json::from_str(&zeroed).unwrap();
    // What the guest deleted, it trimmed.
    assert!(
        zeroed["zeroed_blocks"].as_u64().unwrap() >= 1000,
        "{zeroed}"
    );
    let on = world.ticks_after("a/console", first);
    world.ticks_after("a/console", on);
    world.sh(end_first);
    is_sound(&mut world, "a");
    world.sh(fork);
    let restored = world.ticks_after("b/console", first);
    eprintln!("{}", world.sh(again));
    let forked = world.ticks_after("c/console", restored);
    world.ticks_after("c/console", forked);
    world.ticks_after("b/console", forked);
    world.sh(end);
    is_sound(&mut world, "b");
    is_sound(&mut world, "c");
    world.sh("cowslip verify");
    let gone = "until [ -z \"$(cat /sys/block/nbd*/backend 2> /dev/null)\" ]; do sleep 0.1; done; ls /run/cowslip";
    assert_eq!(world.machine.sh(gone, LONG), "");
}
