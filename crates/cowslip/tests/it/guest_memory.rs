//! A real kernel's memory and disk, under one name: booted, snapshotted, left alone for a moment, snapshotted again. At length: `cargo xtask guest-memory`.

use std::time::Duration;

use cowslip_machine::{Machine, have};

use super::rig::Rig;
use crate::bytes::MIB;

const LONG: Duration = Duration::from_secs(120);
const MEMORY_MIB: u32 = 192;

#[test]
fn an_idle_guest_costs_little_and_nothing_is_lost() {
    let Some(kernel) = have("an_idle_guest_costs_little_and_nothing_is_lost", "6.1") else {
        return;
    };
    let rig = Rig::new();
    rig.import("empty", &vec![0; 8 * MIB]);
    let served = rig.serve("empty --session s");
    let disk = format!(
        r#"{{"driver": "nbd", "node-name": "disk", "server": {{"type": "unix", "path": "{}"}}}}"#,
        served.socket().display()
    );
    let machine = Machine::new(&kernel).memory_mib(MEMORY_MIB).monitored();
    let mut machine = machine
        .qemu(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk"])
        .boot();
    // What is on the disk is in the page cache as well.
    machine.sh(
        "modprobe virtio_blk && seq 500000 | dd of=/dev/vda bs=1M iflag=fullblock conv=fsync",
        LONG,
    );
    let mut taken = Vec::new();
    for (name, parent) in [("one", ""), ("two", "--parent one")] {
        machine.stop();
        rig.ok(&format!("snapshot s {name}-disk"));
        let memory = machine.memory();
        let line = format!(
            "memory import {} {name} --disk {name}-disk {parent}",
            memory.display()
        );
        taken.push(rig.json(&line));
        let now = std::fs::read(memory).unwrap();
        machine.go_on();
        assert!(rig.export(&format!("{name}:memory")) == now, "{name}");
        machine.sh("sleep 1", LONG);
    }
    let number = |at: usize, field: &str| taken[at][field].as_u64().unwrap();
    // 3.3 MB of numbers.
    assert!(number(0, "disk_pages") > 700, "{}", taken[0]);
    assert!(
        number(1, "changed_pages") < number(0, "changed_pages") / 4,
        "{}",
        taken[1]
    );
    assert!(
        number(1, "stored_bytes") < number(0, "stored_bytes") / 4,
        "{}",
        taken[1]
    );
    let disk = rig.export("two:disk");
    assert!(disk.starts_with(b"1\n2\n3\n"));
    served.end();
}
