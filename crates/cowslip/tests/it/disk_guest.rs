//! A guest with its root on a disk: it has files there, and their sums in its memory, and compares the two all the time, with an empty page cache.
//! Memory of one moment with the disk of another is damage to it.
//!
//! Nothing but busybox and Debian's kernel; a program `/sbin/agent`, where somebody has put one, runs beside it, and a file `/data/gone` goes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use cowslip_machine::{Archive, Kernel};

use super::rig::Rig;
use super::tools::tool;

/// Files and directories of a rig's, each with the name of its variable in a recipe.
pub(crate) type Files = Vec<(&'static str, PathBuf)>;

/// What a guest of Debian's kernel needs for its disk, where it is not built in. Nothing says that ext4 needs the first.
const MODULES: [&str; 6] = [
    "crc32c_generic",
    "virtio_mmio",
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "ext4",
];

/// Mounts what the command line says, as it says.
const INITRAMFS: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
for word in $($b cat /proc/cmdline); do
  case $word in
    root=*) root=${word#root=} ;;
    rootflags=*) flags=${word#rootflags=} ;;
  esac
done
until [ -b $root ]; do $b sleep 0.1; done
$b mount -t ext4 -o rw,$flags $root /disk
$b mount --move /dev /disk/dev
exec $b switch_root /disk /sbin/init
"#;

/// Each tick writes a file; some of them stay in memory until a later one. No two guests write the same one, nor keep the same sums.
const GUEST: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t tmpfs m /m
echo 0 > /proc/sys/kernel/ctrl-alt-del
trap '$b sync; $b mount -o remount,ro /; $b reboot -f' INT
$b grep ' / ext4 ' /proc/mounts
echo options: $($b cat /proc/fs/ext4/vda/options)
[ ! -x /sbin/agent ] || /sbin/agent > /m/agent 2>&1 &
cd /data
[ ! -e gone ] || { $b rm gone; $b sync; }
n=0
while :; do
  n=$((n + 1))
  $b seq $((n * 1000)) $((n * 1000 + 999)) > $n
  $b cat /proc/uptime >> $n
  $b sha256sum $n >> /m/sums
  if [ $((n % 3)) = 0 ]; then $b sync; fi
  echo 3 > /proc/sys/vm/drop_caches
  if $b sha256sum -cs /m/sums; then
    echo "tick $n whole"
  else
    echo "tick $n damaged"
  fi
  $b sleep 1
done
"#;

/// `INITRD`, and `ROOT`, a directory that its disk is made of.
pub(crate) fn files(rig: &Rig, kernel: &Kernel) -> Files {
    let busybox = std::fs::read(tool("busybox").unwrap()).unwrap();
    let mut archive = Archive::new();
    for dir in ["bin", "dev", "disk", "modules", "proc"] {
        archive.directory(dir);
    }
    archive.file("bin/busybox", &busybox);
    archive.file("init", INITRAMFS.as_bytes());
    for (number, (name, bytes)) in kernel.with_needs(&MODULES).iter().enumerate() {
        archive.file(&format!("modules/{number:02}-{name}"), bytes);
    }
    let at = |path: &str| rig.path("root").join(path);
    for dir in ["bin", "data", "dev", "m", "proc", "sbin"] {
        std::fs::create_dir_all(at(dir)).unwrap();
    }
    std::fs::copy(tool("busybox").unwrap(), at("bin/busybox")).unwrap();
    symlink("busybox", at("bin/sh")).unwrap();
    rig.file("root/sbin/init", GUEST.as_bytes());
    std::fs::set_permissions(at("sbin/init"), PermissionsExt::from_mode(0o755)).unwrap();
    vec![
        ("INITRD", rig.file("initrd", &archive.finish())),
        ("ROOT", rig.path("root")),
    ]
}
