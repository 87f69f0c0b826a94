//! The files of a disk: the root that the kernel's command line names (`root=`, `rootfstype=`, `rootflags=`, `ro`), as any initramfs mounts it.
//!
//! Nothing is made in it that is not there: what the system wants to mount goes only where there is a directory for it.

use std::ffi::c_ulong;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::{self, MS_MOVE, MS_RDONLY, mounted};
use crate::{ROOT, go_to_tree, named};

/// A disk that is there at all is found in no time.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

/// Mount options that are flags of mount(2); each that is not here is the file system's.
const FLAGS: [(&str, c_ulong); 11] = [
    ("ro", MS_RDONLY),
    ("nosuid", 2),
    ("nodev", 4),
    ("noexec", 8),
    ("sync", 16),
    ("dirsync", 128),
    ("noatime", 1024),
    ("nodiratime", 2048),
    ("relatime", 1 << 21),
    ("strictatime", 1 << 24),
    ("lazytime", 1 << 25),
];

pub(crate) fn tree() -> io::Result<()> {
    let line = std::fs::read_to_string("/proc/cmdline")?;
    let said = |name: &str| {
        line.split_whitespace()
            .rev()
            .find_map(|w| w.strip_prefix(name))
    };
    let device = said("root=").unwrap_or("/dev/vda");
    let kind = said("rootfstype=").unwrap_or("ext4");
    let (mut flags, data) = sorted_out(said("rootflags=").unwrap_or(""));
    if line
        .split_whitespace()
        .rfind(|word| ["ro", "rw"].contains(word))
        == Some("ro")
    {
        flags |= MS_RDONLY;
    }
    wait_for(device)?;
    named(device, mounted(device, ROOT, kind, flags, &data))?;
    let within = |at: &str| Some(format!("{ROOT}{at}")).filter(|at| Path::new(at).is_dir());
    if let Some(dev) = within("/dev") {
        mounted("/dev", &dev, "", MS_MOVE, "")?;
        for dir in ["pts", "shm"] {
            named(dir, std::fs::create_dir_all(format!("{dev}/{dir}")))?;
        }
        mounted(
            "devpts",
            &format!("{dev}/pts"),
            "devpts",
            0,
            "mode=620,ptmxmode=666",
        )?;
        mounted("tmpfs", &format!("{dev}/shm"), "tmpfs", 0, "mode=1777")?;
    }
    for (kind, at, data) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("tmpfs", "/run", "mode=755"),
    ] {
        if let Some(path) = within(at) {
            named(at, mounted(kind, &path, kind, 0, data))?;
        }
    }
    go_to_tree()?;
    // A program may want to talk to itself; without, it goes on as well.
    let _ = sys::loopback_up();
    Ok(())
}

fn wait_for(device: &str) -> io::Result<()> {
    let give_up = Instant::now() + FOUND_WITHIN;
    while !Path::new(device).exists() {
        if Instant::now() > give_up {
            let why = format!("there is no {device}");
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Flags of mount(2), and what the file system is told, as mount(8) sorts them.
fn sorted_out(options: &str) -> (c_ulong, String) {
    let mut flags = 0;
    let mut rest = Vec::new();
    for option in options
        .split(',')
        .filter(|option| !["", "rw", "defaults"].contains(option))
    {
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= flag,
            None => rest.push(option),
        }
    }
    (flags, rest.join(","))
}
