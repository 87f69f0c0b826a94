//! The command from outside, with real clients: one binary, a module a subject.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails"
)]

#[path = "it/archives.rs"]
mod archives;
#[path = "it/attach.rs"]
mod attach;
#[path = "it/build.rs"]
mod build;
#[path = "it/bytes.rs"]
mod bytes;
#[path = "it/clients.rs"]
mod clients;
#[path = "it/cloud_hypervisor.rs"]
mod cloud_hypervisor;
#[path = "it/compact.rs"]
mod compact;
#[path = "it/contract.rs"]
mod contract;
#[path = "it/cut.rs"]
mod cut;
#[path = "it/damage.rs"]
mod damage;
#[path = "it/devices.rs"]
mod devices;
#[path = "it/diff.rs"]
mod diff;
#[path = "it/disk_guest.rs"]
mod disk_guest;
#[path = "it/ending.rs"]
mod ending;
#[path = "it/explain.rs"]
mod explain;
#[path = "it/ext4.rs"]
mod ext4;
#[path = "it/failed_disk.rs"]
mod failed_disk;
#[path = "it/firecracker.rs"]
mod firecracker;
#[path = "it/firecracker_disk.rs"]
mod firecracker_disk;
#[path = "it/fs_aware.rs"]
mod fs_aware;
#[path = "it/full.rs"]
mod full;
#[path = "it/gc.rs"]
mod gc;
#[path = "it/growth.rs"]
mod growth;
#[path = "it/guest_memory.rs"]
mod guest_memory;
#[path = "it/held.rs"]
mod held;
#[path = "it/history.rs"]
mod history;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/hostile_store.rs"]
mod hostile_store;
#[path = "it/images.rs"]
mod images;
#[path = "it/kernel_nbd.rs"]
mod kernel_nbd;
#[path = "it/kill.rs"]
mod kill;
#[path = "it/lab.rs"]
mod lab;
#[path = "it/libvirt.rs"]
mod libvirt;
#[path = "it/memory_import.rs"]
mod memory_import;
#[path = "it/memory_serve.rs"]
mod memory_serve;
#[path = "it/memory_snapshot.rs"]
mod memory_snapshot;
#[path = "it/mixed.rs"]
mod mixed;
#[path = "it/nested.rs"]
mod nested;
#[path = "it/qemu.rs"]
mod qemu;
#[path = "it/quiesce.rs"]
mod quiesce;
#[path = "it/recipe.rs"]
mod recipe;
#[path = "it/rig.rs"]
mod rig;
#[path = "it/run.rs"]
mod run;
#[path = "it/session.rs"]
mod session;
#[path = "it/sockets.rs"]
mod sockets;
#[path = "it/sparse.rs"]
mod sparse;
#[path = "it/systemd.rs"]
mod systemd;
#[path = "it/tools.rs"]
mod tools;
#[path = "it/without.rs"]
mod without;

#[test]
fn the_guest() {
    cowslip_vmm::run_if_asked();
}
