//! Firecracker itself, in a machine with a KVM of its own: docs/firecracker.md, block by block, with a guest that checks its own memory all the time.
//!
//! There is no package of it: without `COWSLIP_FIRECRACKER`, and none on the PATH, this is left out.

use std::path::PathBuf;

use cowslip_machine::{Archive, Kernel};

use super::nested::World;
use super::recipe::blocks;
use super::rig::Rig;
use super::tools::{skip, tool};

pub(crate) const RECIPE: &str = include_str!("../../../../docs/firecracker.md");

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

/// What is missing, a line says.
pub(crate) fn firecracker(test: &str) -> Option<PathBuf> {
    let told = std::env::var_os("COWSLIP_FIRECRACKER").map(PathBuf::from);
    let found = told.or_else(|| tool("firecracker"));
    let found = found.and_then(|path| path.canonicalize().ok());
    if found.is_none() {
        skip(test, "Firecracker (COWSLIP_FIRECRACKER, or on the PATH)");
    }
    found
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

#[test]
fn firecracker_restores_from_our_server_as_the_recipe_says() {
    let test = "firecracker_restores_from_our_server_as_the_recipe_says";
    let Some(firecracker) = firecracker(test) else {
        return;
    };
    let rig = Rig::new();
    let files = |_: &Kernel| vec![("INITRD", rig.file("initrd", &guest()))];
    let Some(mut world) = World::new(test, &rig, &[("firecracker", firecracker)], files) else {
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
