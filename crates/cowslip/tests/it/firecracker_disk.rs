//! Firecracker with a disk of ours by the kernel's NBD client: docs/firecracker-disk.md, block by block.
//!
//! The guest (`disk_guest.rs`) compares its disk with its memory all the time: those of two moments are damage to it.

use cowslip_machine::Kernel;

use super::disk_guest;
use super::firecracker::{self, firecracker};
use super::nested::{LONG, World};
use super::recipe::blocks;
use super::rig::Rig;

const RECIPE: &str = include_str!("../../../../docs/firecracker-disk.md");

/// The device that a guest's Firecracker has open is that of its own session, and no other.
fn has_its_own_disk(world: &mut World, guest: &str) -> String {
    let open = format!("readlink /proc/$(cat {guest}/pid)/fd/* | grep '^/dev/nbd' | sort -u");
    let open = world.sh(&open);
    assert_eq!(open, world.sh(&format!("cat {guest}/device")));
    open
}

/// The disk of a guest that has ended.
fn is_sound(world: &mut World, guest: &str) {
    world.sh(&format!(
        "cowslip snapshot {guest}/session {guest}-end > /dev/null
        cowslip export {guest}-end:disk {guest}/image --quiet > /dev/null
        e2fsck -fn {guest}/image > {guest}/e2fsck 2>&1 || {{ cat {guest}/e2fsck >&2; exit 1; }}
        rm {guest}/image"
    ));
}

#[test]
fn firecracker_goes_on_with_its_disk_as_the_recipe_says() {
    let test = "firecracker_goes_on_with_its_disk_as_the_recipe_says";
    let Some(firecracker) = firecracker(test) else {
        return;
    };
    let rig = Rig::new();
    let files = |kernel: &Kernel| disk_guest::files(&rig, kernel);
    let Some(mut world) = World::new(test, &rig, &[("firecracker", firecracker)], files) else {
        return;
    };
    let [
        begin,
        boot,
        snapshot,
        end_first,
        fork,
        live,
        again,
        disk_server,
        end,
    ] = blocks(RECIPE)[..]
    else {
        panic!("the recipe has other blocks than this test runs");
    };
    world.sh(blocks(firecracker::RECIPE)[0]);
    world.sh(begin);
    world.sh(boot);
    let first = world.ticks_after("a/console", 4);
    // ext4 does not show an option in /proc/mounts that its superblock has as well.
    world.sh("grep ' / ext4 ' a/console | grep -w noatime | grep -w lazytime; grep -w '^options:.*discard' a/console");
    eprintln!("{}", world.sh(snapshot));
    let parts = world.sh("cowslip inspect vm1");
    for part in ["disk", "memory", "state"] {
        assert!(parts.contains(part), "{parts}");
    }
    let on = world.ticks_after("a/console", first);
    world.ticks_after("a/console", on);
    world.sh(end_first);
    is_sound(&mut world, "a");
    world.sh(fork);
    let restored = world.ticks_after("b/console", first);
    eprintln!("{}", world.sh(live));
    let later = world.ticks_after("b/console", restored);
    // Nobody needs the first snapshot for it.
    world.sh("cowslip rm vm1; cowslip gc");
    world.sh(again);
    let again = world.ticks_after("c/console", restored);
    world.ticks_after("c/console", again);
    assert_ne!(
        has_its_own_disk(&mut world, "b"),
        has_its_own_disk(&mut world, "c")
    );
    world.sh(disk_server);
    let later = world.ticks_after("b/console", later + 3);
    world.ticks_after("b/console", later + 3);
    world.sh(end);
    is_sound(&mut world, "b");
    is_sound(&mut world, "c");
    world.sh("cowslip verify");
    let left = world.machine.sh(
        "cat /sys/block/nbd*/backend 2> /dev/null || true; ls /run/cowslip",
        LONG,
    );
    assert_eq!(left, "");
}
