//! A block device where something that it needs is missing: the error says what, and what to do instead, before anything is begun.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bytes::{MIB, noise};
use crate::devices::{Devices, no_devices};
use crate::rig::{COWSLIP, Rig, Served, said};
use crate::tools::{have, skip, tool};

#[test]
fn without_the_kernels_nbd_client_it_is_fuse() {
    let test = "without_the_kernels_nbd_client_it_is_fuse";
    if may_have_nbd() {
        return skip(test, "a kernel without modules");
    }
    let Some(devices) = Devices::new(test, &[]) else {
        return;
    };
    let rig = &devices.rig;
    rig.import("base", &noise(1, MIB));
    let refused = rig.fails(1, "attach base --via nbd --session s");
    assert!(refused.contains("the kernel's NBD client"), "{refused}");
    assert!(refused.contains("--via fuse"), "{refused}");
    assert!(!rig.path("s").exists());
    let mut command = rig.command(["attach", "base"]);
    command.stdout(Stdio::null());
    let served = Served::start(command, rig.path("none"));
    assert!(
        served.ready.contains("by way of fuse (not nbd: "),
        "{}",
        served.ready
    );
    served.end();
    devices.assert_nothing_left();
}

/// Or load it?
fn may_have_nbd() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let modules = Path::new("/lib/modules").join(release.trim());
    modules.exists() || Path::new("/sys/module/nbd").exists()
}

/// What `attach` of a new session says by way of each, where it fails; run by `unshare` with these arguments, before the command.
fn refusals(rig: &Rig, unshare: &[&str]) -> [String; 3] {
    ["nbd", "fuse", "auto"].map(|via| {
        let attach = rig.command(["attach", "base", "--session", "s", "--via", via]);
        let mut command = Command::new(tool("unshare").unwrap());
        command.args(unshare).arg(COWSLIP).args(attach.get_args());
        command.current_dir(rig.path(""));
        let set = attach
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        let output = command.envs(set).output().unwrap();
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{via}: {told}");
        assert!(!rig.path("s").exists(), "{via}: {told}");
        assert!(told.contains("cowslip serve"), "{via}: {told}");
        told
    })
}

#[test]
fn without_root_there_is_serve() {
    let test = "without_root_there_is_serve";
    if !have(test, &["unshare"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    // Nobody's user, in a namespace of its own.
    for told in refusals(&rig, &["--user"]) {
        assert!(told.contains("a block device needs root"), "{told}");
        assert!(
            !told.contains("--via fuse"),
            "it needs root as well: {told}"
        );
    }
}

#[test]
fn without_fuse_there_is_serve() {
    let test = "without_fuse_there_is_serve";
    if !rustix::process::geteuid().is_root() || may_have_nbd() {
        return skip(test, "root, and a kernel without modules");
    }
    if !have(test, &["unshare", "mount"]) {
        return;
    }
    let _alone = no_devices();
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    let hidden = "mount -t tmpfs none /dev && exec \"$@\"";
    let [nbd, fuse, auto] = refusals(&rig, &["--mount", "sh", "-c", hidden, "sh"]);
    assert!(nbd.contains("the kernel's NBD client"), "{nbd}");
    assert!(!nbd.contains("--via fuse"), "it is not there: {nbd}");
    for told in [fuse, auto] {
        assert!(told.contains("/dev/fuse"), "{told}");
    }
}
