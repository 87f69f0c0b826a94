//! Programs of others that tests and measurements use, and the Debian packages they come in.
//!
//! Only what is missing is installed, and never at the price of another package: on a machine with a
//! part of QEMU from backports, older siblings would take it away, so the others are looked for there as
//! well. The sources of packages are left as they are.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use cowslip_machine::Kernel;

use crate::apt::Apt;
use crate::kernels;
use crate::run::program;

/// One thing that may be missing.
pub(crate) struct Need {
    /// What it is called in messages.
    pub(crate) what: &'static str,
    package: Option<&'static str>,
    /// Unpacked for who asks, not installed.
    kernel: Option<&'static str>,
    is_there: fn() -> bool,
    /// What is left out without it.
    pub(crate) without: &'static str,
}

impl Need {
    /// Can it be installed?
    pub(crate) fn is_a_package(&self) -> bool {
        self.package.is_some() || self.kernel.is_some()
    }
}

const fn need(
    what: &'static str,
    package: Option<&'static str>,
    is_there: fn() -> bool,
    without: &'static str,
) -> Need {
    Need {
        what,
        package,
        kernel: None,
        is_there,
        without,
    }
}

const fn kernel(version: &'static str, what: &'static str, is_there: fn() -> bool) -> Need {
    Need {
        kernel: Some(version),
        ..need(what, None, is_there, "real kernels")
    }
}

fn all(programs: &[&str]) -> bool {
    programs.iter().all(|name| program(name).is_some())
}

fn python(program: &str, code: &str) -> bool {
    let mut command = Command::new(program);
    command
        .args(["-c", code])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout == b"0\n")
}

/// What the tests need.
pub(crate) const TESTS: &[Need] = &[
    need(
        "mkfs.ext4, e2fsck, debugfs, dumpe2fs",
        Some("e2fsprogs"),
        || all(&["mkfs.ext4", "e2fsck", "debugfs", "dumpe2fs"]),
        "ext4 in an export, the demo, the reader of ext4",
    ),
    need(
        "qemu-img, qemu-io",
        Some("qemu-utils"),
        || all(&["qemu-img", "qemu-io"]),
        "QEMU as a client, import of qcow2",
    ),
    need(
        "nbdinfo, nbdcopy, nbdfuse",
        Some("libnbd-bin"),
        || all(&["nbdinfo", "nbdcopy", "nbdfuse"]),
        "libnbd's tools as clients",
    ),
    need(
        "libnbd for /usr/bin/python3",
        Some("python3-libnbd"),
        || python("/usr/bin/python3", "import nbd"),
        "requests that no polite client sends",
    ),
    need(
        "fio",
        Some("fio"),
        || all(&["fio"]),
        "fio with verification",
    ),
    need(
        "python3 with libzstd",
        Some("libzstd1"),
        || python("python3", "import ctypes; ctypes.CDLL('libzstd.so.1')"),
        "the format read by the Python reader",
    ),
    need(
        "mount, umount, losetup",
        Some("mount"),
        || all(&["mount", "umount", "losetup"]),
        "mkfs through FUSE, block devices, ext4 in use",
    ),
    need(
        "blkid, blkdiscard, blockdev, fallocate, findmnt, fsfreeze, fstrim, nsenter, prlimit, setpriv, unshare",
        Some("util-linux"),
        || {
            all(&["blkid", "blkdiscard", "blockdev", "fallocate"])
                && all(&["findmnt", "fsfreeze", "fstrim"])
                && all(&["nsenter", "prlimit", "setpriv", "unshare"])
        },
        "block devices, the lab",
    ),
    need(
        "nbd-client",
        Some("nbd-client"),
        || all(&["nbd-client"]),
        "who else disconnects a kernel's device",
    ),
    need(
        "strace",
        Some("strace"),
        || all(&["strace"]),
        "a server that is slow at one thing",
    ),
    need(
        "systemctl",
        Some("systemd"),
        || all(&["systemctl"]),
        "the units of the docs",
    ),
    need(
        "pgrep",
        Some("procps"),
        || all(&["pgrep"]),
        "the units of the docs",
    ),
    need("sqlite3", Some("sqlite3"), || all(&["sqlite3"]), "the lab"),
    need(
        "mkfs.xfs",
        Some("xfsprogs"),
        || all(&["mkfs.xfs"]),
        "xfs on a block device",
    ),
    need(
        "mkfs.btrfs",
        Some("btrfs-progs"),
        || all(&["mkfs.btrfs"]),
        "btrfs on a block device",
    ),
    need(
        "rsync",
        Some("rsync"),
        || all(&["rsync"]),
        "templates compared with their source",
    ),
    need(
        "setfattr",
        Some("attr"),
        || all(&["setfattr"]),
        "attributes in templates",
    ),
    need(
        "setfacl",
        Some("acl"),
        || all(&["setfacl"]),
        "access rules in templates",
    ),
    need(
        "nbdkit",
        Some("nbdkit"),
        || all(&["nbdkit"]),
        "disks that fail below real servers",
    ),
    need(
        "faketime",
        Some("faketime"),
        || crate::torture::clock_library().is_some(),
        "clocks that jump",
    ),
    need(
        "busybox",
        Some("busybox-static"),
        || all(&["busybox"]),
        "commands run in a template",
    ),
    need(
        "mmdebstrap",
        Some("mmdebstrap"),
        || all(&["mmdebstrap"]),
        "a Debian that boots from its template",
    ),
    need(
        "curl",
        Some("curl"),
        || all(&["curl"]),
        "Firecracker's commands",
    ),
    need(
        "libvirtd",
        Some("libvirt-daemon"),
        || all(&["libvirtd"]),
        "domains of libvirt",
    ),
    need(
        "virsh",
        Some("libvirt-clients"),
        || all(&["virsh"]),
        "domains of libvirt",
    ),
    need(
        "qemu-ga",
        Some("qemu-guest-agent"),
        || all(&["qemu-ga"]),
        "domains of libvirt",
    ),
    need(
        "zstd",
        Some("zstd"),
        || all(&["zstd"]),
        "compressed archives",
    ),
    need(
        "depmod, modprobe",
        Some("kmod"),
        || all(&["depmod", "modprobe"]),
        "real kernels",
    ),
    need("xz", Some("xz-utils"), || all(&["xz"]), "real kernels"),
    need(
        "qemu-system-x86_64",
        Some("qemu-system-x86"),
        || all(&["qemu-system-x86_64"]),
        "real kernels",
    ),
    kernel("6.1", "Linux 6.1 of Debian, to boot", || {
        Kernel::find("6.1").is_some()
    }),
    kernel("6.12", "Linux 6.12 of Debian's backports, to boot", || {
        Kernel::find("6.12").is_some()
    }),
    need(
        "root, /dev/fuse and loop devices",
        None,
        has_devices,
        "mkfs through FUSE, block devices",
    ),
    need(
        "/dev/userfaultfd and PAGEMAP_SCAN (Linux 6.7)",
        None,
        || Path::new("/dev/userfaultfd").exists() && is_root(),
        "guests whose memory is served",
    ),
];

/// What `torture` needs.
pub(crate) const TORTURE: &[Need] = &[
    need(
        "root, /dev/fuse and loop devices",
        None,
        has_devices,
        "all of it",
    ),
    need(
        "nbdkit",
        Some("nbdkit"),
        || all(&["nbdkit"]),
        "disks that fail",
    ),
    need(
        "nbdfuse",
        Some("libnbd-bin"),
        || all(&["nbdfuse"]),
        "disks that fail",
    ),
    need(
        "mkfs.ext4, e2fsck",
        Some("e2fsprogs"),
        || all(&["mkfs.ext4", "e2fsck"]),
        "disks that fail",
    ),
    need("fio", Some("fio"), || all(&["fio"]), "a client"),
    need(
        "faketime",
        Some("faketime"),
        || crate::torture::clock_library().is_some(),
        "clocks that jump",
    ),
];

fn has_devices() -> bool {
    let devices = ["/dev/fuse", "/dev/loop-control"];
    is_root() && devices.iter().all(|path| Path::new(path).exists())
}

/// What `bench peers` needs.
pub(crate) const PEERS: &[Need] = &[
    need("fio", Some("fio"), || all(&["fio"]), "all of it"),
    need(
        "nbdcopy",
        Some("libnbd-bin"),
        || all(&["nbdcopy"]),
        "a peer",
    ),
    need(
        "nbdkit",
        Some("nbdkit"),
        || all(&["nbdkit"]),
        "two of the peers",
    ),
    need(
        "qemu-img, qemu-nbd",
        Some("qemu-utils"),
        || all(&["qemu-img", "qemu-nbd"]),
        "a peer",
    ),
];

/// What is missing, after an attempt to install it where that is allowed and possible.
pub(crate) fn provide(needs: &'static [Need], install: bool) -> Result<Vec<&'static Need>> {
    let missing = || {
        needs
            .iter()
            .filter(|need| !(need.is_there)())
            .collect::<Vec<_>>()
    };
    let mut still = missing();
    if install && is_root() && program("apt-get").is_some() {
        let packages: Vec<&str> = still.iter().filter_map(|need| need.package).collect();
        if !packages.is_empty() {
            install_all(&packages);
            still = missing();
        }
        for version in still.iter().filter_map(|need| need.kernel) {
            if let Err(error) = kernels::fetch(version) {
                println!("== Linux {version}: {error:#}");
            }
        }
        still = missing();
    }
    for need in &still {
        println!("== missing: {}", describe(need));
    }
    Ok(still)
}

fn describe(need: &Need) -> String {
    let mut text = need.what.to_owned();
    if let Some(package) = need.package {
        let _ = write!(text, " (Debian: {package})");
    }
    let _ = write!(text, "; skipped: {}", need.without);
    text
}

fn install_all(packages: &[&str]) {
    println!("== installing {}", packages.join(" "));
    let apt = Apt::system();
    if apt.install(packages) {
        return;
    }
    // The lists may be old, or not there at all.
    apt.get(&["update", "-q"]);
    if apt.install(packages) {
        return;
    }
    // One may want siblings in the version that is not there any more: QEMU's, where some of it is from backports.
    let backports = kernels::lists().and_then(|place| Apt::with_backports(&place).ok());
    for package in packages {
        let _ = apt.install(&[package])
            || backports
                .as_ref()
                .is_some_and(|apt| apt.install(&[package]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_described_in_one_line() {
        let gone = need(
            "a program",
            Some("a-package"),
            || all(&["no-such-program"]),
            "a test",
        );
        assert!(!(gone.is_there)());
        assert_eq!(
            describe(&gone),
            "a program (Debian: a-package); skipped: a test"
        );
        assert!(all(&["sh"]));
    }
}
