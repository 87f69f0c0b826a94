//! docs/libvirt.md, block by block: libvirt of this machine, for a user without rights, with guests under an emulated processor.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use cowslip_machine::have;
use serde_json::Value;

use super::bytes::{MIB, noise};
use super::disk_guest;
use super::recipe::blocks;
use super::rig::{COWSLIP, Rig, said, until_by};
use super::tools::{self, run, tool};

const RECIPE: &str = include_str!("../../../../docs/libvirt.md");
/// An emulated processor, on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(300);
/// Who has nothing: `nobody`, mostly.
const USER: &str = "65534";
/// QEMU's guest agent; the port to the host has its name from the kernel.
const AGENT: &str = r"#!/bin/busybox sh
b=/bin/busybox
until [ -e /dev/vport*p1 ]; do $b sleep 0.1; done
exec /usr/sbin/qemu-ga -m virtio-serial -p /dev/vport*p1 -t /m
";
/// libvirt's daemons, and what else a test left that failed: processes whose numbers are in files.
const END: &str = "for file in $(find . -name '*.pid'); do kill -9 $(cat $file) || true; done";

struct World {
    rig: Rig,
    begin: String,
}

impl World {
    fn sh(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, script: &str) -> Output {
        let user = ["--reuid", USER, "--regid", USER, "--clear-groups"];
        let mut command = Command::new("setpriv");
        command.args(user).args(["sh", "-ec"]);
        let script = format!("{}\n{script}", self.begin);
        command
            .arg(script)
            .current_dir(self.rig.path(""))
            .output()
            .unwrap()
    }

    /// What the guest of a domain has counted to, once that is more than this.
    fn ticks_after(&self, domain: &str, before: usize) -> usize {
        until_by(Instant::now() + LONG, "a guest that goes on", || {
            let log = std::fs::read(self.rig.path(&format!("{domain}.console"))).unwrap();
            let log = String::from_utf8_lossy(&log);
            assert!(!log.contains("damaged"), "{log}");
            let ticks = log.lines().filter(|line| line.starts_with("tick ")).count();
            Some(ticks).filter(|ticks| *ticks > before)
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.run(END));
    }
}

/// The agent of this machine, with its libraries, in the tree of the guest.
fn add_agent(root: &Path) {
    let agent = tool("qemu-ga").unwrap();
    let needs = run("ldd", [&agent]);
    let libraries = needs
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let libraries = libraries.map(|library| (Path::new(library), library));
    for (from, to) in libraries.chain([(&*agent, "/usr/sbin/qemu-ga")]) {
        let to = root.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
    let program = root.join("sbin/agent");
    std::fs::write(&program, AGENT).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
}

fn world(test: &str) -> Option<World> {
    let tools = [
        "busybox", "ldd", "libvirtd", "qemu-ga", "setpriv", "strip", "virsh",
    ];
    let (true, Some(kernel)) = (tools::have(test, &tools), have(test, "6.12")) else {
        return None;
    };
    let rig = Rig::new();
    let mut files = disk_guest::files(&rig, &kernel);
    add_agent(&rig.path("root"));
    rig.file("root/data/gone", &noise(1, 4 * MIB));
    // Where they are may be nobody's business.
    std::fs::copy(kernel.program(), rig.path("vmlinux")).unwrap();
    files.push(("KERNEL", rig.path("vmlinux")));
    for dir in ["bin", "run", "home"] {
        std::fs::create_dir(rig.path(dir)).unwrap();
    }
    let program = rig.path("bin/cowslip");
    run(
        "strip",
        ["-o".as_ref(), program.as_os_str(), COWSLIP.as_ref()],
    );
    run(
        "chown",
        ["-R".as_ref(), USER.as_ref(), rig.path("").as_os_str()],
    );
    let at = rig.path("");
    let at = at.display();
    let files = files.iter();
    let files = files.map(|(name, path)| format!(" {name}={}", path.display()));
    let begin = format!(
        "export HOME={at}/home XDG_RUNTIME_DIR={at}/run TMPDIR={at} LIBVIRT_DEFAULT_URI=qemu:///session TYPE=qemu PATH={at}/bin:$PATH
        unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME
        export COWSLIP_STORE={at}/store{}",
        files.collect::<String>()
    );
    Some(World { rig, begin })
}

#[test]
fn a_domain_of_libvirt_is_snapshotted_and_forked_as_the_recipe_says() {
    let test = "a_domain_of_libvirt_is_snapshotted_and_forked_as_the_recipe_says";
    let Some(world) = world(test) else {
        return;
    };
    let [begin, suspended, frozen, fork, end] = blocks(RECIPE)[..] else {
        panic!("the recipe has other blocks than this test runs");
    };
    world.sh(begin);
    let first = world.ticks_after("vm1", 2);
    world.sh(suspended);
    let zeroed = world.sh("cowslip diff template suspended --json");
    let zeroed: Value = serde_json::from_str(&zeroed).unwrap();
    // What the guest deleted, it trimmed.
    assert!(
        zeroed["zeroed_blocks"].as_u64().unwrap() >= 1000,
        "{zeroed}"
    );
    let later = world.ticks_after("vm1", first);
    let ping = "virsh qemu-agent-command vm1 '{\"execute\": \"guest-ping\"}'";
    until_by(Instant::now() + LONG, "the guest's agent", || {
        world.run(ping).status.success().then_some(())
    });
    // It is refused of a file system that is in use.
    world.sh(frozen);
    world.sh("cowslip export frozen image --quiet; e2fsck -fn image; rm image");
    world.ticks_after("vm1", later);
    world.sh(fork);
    let forked = world.ticks_after("vm2", 2);
    world.ticks_after("vm2", forked);
    world.sh(end);
    world.sh("cowslip verify");
}
