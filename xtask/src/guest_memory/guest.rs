//! [`Guest`]: a kernel under QEMU, with a disk that is served to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cowslip_machine::{Kernel, Machine, Running};
use serde_json::json;

/// One of Debian's.
pub(super) const KERNEL: &str = "6.1";
pub(super) const MEMORY_MIB: u32 = 256;
/// For anything that it is told to do: it is slow, and so may be the machine.
const WITHIN: Duration = Duration::from_secs(600);
/// Where its disk is.
const DISK: &str = "/tmp/disk";

/// See the module.
pub(super) struct Guest {
    running: Running,
    /// What each page is for, as its kernel said when it was asked last: a word of flags each.
    pub(super) page_flags: Vec<u64>,
}

impl Guest {
    /// Boots it, with the disk that is served there.
    pub(super) fn boot(kernel: &Kernel, disk: &Path) -> Self {
        let server = json!({"type": "unix", "path": disk});
        let disk =
            json!({"driver": "nbd", "node-name": "disk", "discard": "unmap", "server": server});
        let machine = Machine::new(kernel).memory_mib(MEMORY_MIB).monitored();
        let machine = machine.qemu([
            "-blockdev",
            &disk.to_string(),
            "-device",
            "virtio-blk-pci,drive=disk",
        ]);
        let mut running = machine.boot();
        let mount = format!("mount -t ext4 -o discard,noatime,lazytime /dev/vda {DISK}");
        let modules = "modprobe virtio_blk && modprobe ext4";
        running.sh(
            &format!("{modules} && mkdir {DISK} && {mount} && mount --bind /dev {DISK}/dev"),
            WITHIN,
        );
        Self {
            running,
            page_flags: Vec::new(),
        }
    }

    /// A script with the disk as its root.
    pub(super) fn chroot(&mut self, script: &str) {
        let output = self
            .running
            .run(["chroot", DISK, "sh", "-c", script], WITHIN);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}");
    }

    pub(super) fn stop(&mut self) {
        self.running.stop();
    }

    pub(super) fn go_on(&mut self) {
        self.running.go_on();
    }

    /// Its memory, as a file.
    pub(super) fn memory(&self) -> PathBuf {
        self.running.memory()
    }

    /// Asks what pages are for. That is work, which changes some: before what is measured, not in it.
    pub(super) fn look_at_pages(&mut self) {
        let words = [
            "dd",
            "if=/proc/kpageflags",
            "bs=64k",
            "iflag=fullblock",
            "status=none",
        ];
        // 8 bytes for each page of 4 KiB.
        let count = format!("count={}", MEMORY_MIB / 32);
        let said = self
            .running
            .run(words.into_iter().chain([&*count]), WITHIN)
            .stdout;
        let words = said.as_chunks::<8>().0.iter();
        self.page_flags = words.map(|word| u64::from_le_bytes(*word)).collect();
    }
}
