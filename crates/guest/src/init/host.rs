//! The host's own files: its root, read-only over 9p, below an overlay in memory, and what is shared over that.

use std::io;

use crate::sys::{MS_MOVE, MS_RDONLY, mounted};
use crate::{ROOT, go_to_tree, named, sorted};

const NINE: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=";

pub(crate) fn tree() -> io::Result<()> {
    let shares = sorted("/shares")?.into_iter().map(std::fs::read_to_string);
    let shares = shares.collect::<io::Result<Vec<_>>>()?;
    for dir in ["/host", "/kept"] {
        named(dir, std::fs::create_dir(dir))?;
    }
    let loose = &format!("{NINE}loose");
    named("root", mounted("root", "/host", "9p", MS_RDONLY, loose))?;
    mounted("kept", "/kept", "tmpfs", 0, "size=75%")?;
    std::fs::create_dir("/kept/upper")?;
    std::fs::create_dir("/kept/work")?;
    let overlay = "lowerdir=/host,upperdir=/kept/upper,workdir=/kept/work";
    named("overlay", mounted("root", ROOT, "overlay", 0, overlay))?;
    let within = |path: &str| -> io::Result<String> {
        let path = format!("{ROOT}{path}");
        named(&path, std::fs::create_dir_all(&path))?;
        Ok(path)
    };
    mounted("/dev", &within("/dev")?, "", MS_MOVE, "")?;
    for (kind, at, data) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
    ] {
        named(at, mounted(kind, &within(at)?, kind, 0, data))?;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let modules = within(&format!("/usr/lib/modules/{}", release.trim_end()))?;
    let modules = mounted("modules", &modules, "9p", MS_RDONLY, loose);
    named("modules", modules)?;
    for (number, share) in shares.iter().enumerate() {
        let (access, path) = share.split_once(' ').unwrap_or(("rw", share));
        let (flags, data) = match access {
            "ro" => (MS_RDONLY, loose.clone()),
            // What either side writes, the other sees.
            _ => (0, format!("{NINE}mmap")),
        };
        let tag = format!("share{number}");
        named(path, mounted(&tag, &within(path)?, "9p", flags, &data))?;
    }
    go_to_tree()
}
