//! The first process of a guest: finds the guest's files, then runs one command after the other.
//!
//! 1. modules, in the order of their names in `/modules`;
//! 2. the port to the host;
//! 3. the files: the host's own (`host.rs`), or those of a disk (`disk.rs`);
//! 4. commands (`commands.rs`), until the host says that it is the end, or has gone.
//!
//! What goes wrong is told to the host, or said on the console, and is the end of the guest. Whoever a command leaves behind is this one's child from
//! then on, and may go on; what has ended is reaped while commands run.

mod commands;
mod disk;
#[path = "../frame.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the host's side has the rest of it"
)]
mod frame;
mod frozen;
mod host;
mod port;
mod sys;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use port::Port;
use sys::mounted;

/// Where the tree is put together.
const ROOT: &str = "/tree";

fn main() {
    if let Err(error) = live() {
        // The console.
        let _ = writeln!(io::stderr(), "cowslip-init: {error}");
    }
    sys::power_off();
}

fn live() -> io::Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        named(at, mounted(kind, at, kind, 0, ""))?;
    }
    for path in sorted("/modules")? {
        let is_compressed = !path.ends_with(".ko");
        named(&path, sys::load(&File::open(&path)?, is_compressed))?;
    }
    // For all threads, to the end.
    let port: &'static Port = Box::leak(Box::new(Port::find()?));
    let lived = files(port).and_then(|home| {
        port.send(frame::READY, &[])?;
        commands::serve(port, home)
    });
    if let Err(error) = &lived {
        port.send(frame::FAILED, error.to_string().as_bytes())?;
    }
    lived
}

/// Goes to where the guest's files are; the home directory of who runs commands there.
fn files(port: &Port) -> io::Result<&'static str> {
    named(ROOT, std::fs::create_dir(ROOT))?;
    if Path::new("/shares").exists() {
        return host::tree().map(|()| "/");
    }
    port.send(frame::HELLO, &[])?;
    disk::tree().map(|()| "/root")
}

/// As switch_root(8) does: modules that the kernel asks for are looked for here as well.
fn go_to_tree() -> io::Result<()> {
    std::env::set_current_dir(ROOT)?;
    mounted(".", "/", "", sys::MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

fn named<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn sorted(dir: &str) -> io::Result<Vec<String>> {
    let entries = named(dir, std::fs::read_dir(dir))?;
    let paths = entries.map(|entry| Ok(entry?.path().to_string_lossy().into_owned()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
