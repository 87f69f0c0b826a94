//! The first process of a machine: makes the host's tree its own, then runs one command after the other.
//!
//! 1. modules, in the order of their names in `/modules`;
//! 2. the port to the host;
//! 3. the tree: the host's root, read-only over 9p, below an overlay in memory, and what is shared over that;
//! 4. commands, until the host has gone.
//!
//! What goes wrong is said on the console, and is the end of the machine. Whoever a command leaves behind is this one's child from then on, and
//! may go on; what has ended is reaped while commands run.

#[path = "../frame.rs"]
mod frame;
mod sys;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use sys::{MS_MOVE, MS_RDONLY, mounted};

/// Where the tree is put together.
const ROOT: &str = "/tree";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NINE: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=";

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
    let port = port()?;
    let shares = sorted("/shares")?.into_iter().map(std::fs::read_to_string);
    let shares = shares.collect::<io::Result<Vec<_>>>()?;
    tree(&shares)?;
    frame::send(&mut &port, frame::READY, &[])?;
    commands(&port)
}

fn named<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::other(format!("{what}: {error}")))
}

fn sorted(dir: &str) -> io::Result<Vec<String>> {
    let entries = named(dir, std::fs::read_dir(dir))?;
    let paths = entries.map(|entry| Ok(entry?.path().to_string_lossy().into_owned()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The one port that there is, once the driver has found it.
fn port() -> io::Result<File> {
    loop {
        for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
            let entry = entry?;
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let path = Path::new("/dev").join(entry.file_name());
            if name.trim_end() == "cowslip" && path.exists() {
                return File::options().read(true).write(true).open(path);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn tree(shares: &[String]) -> io::Result<()> {
    for dir in [ROOT, "/host", "/kept"] {
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
    // As switch_root(8) does: modules that the kernel asks for are looked for here as well.
    std::env::set_current_dir(ROOT)?;
    mounted(".", "/", "", MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

fn commands(port: &File) -> io::Result<()> {
    loop {
        let (kind, payload) = match frame::receive(&mut &*port) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        if kind != frame::COMMAND {
            return Err(io::Error::other("not a command"));
        }
        let words: Vec<_> = payload
            .split(|byte| *byte == 0)
            .map(OsStr::from_bytes)
            .collect();
        let status = run(&words, port)?;
        frame::send(&mut &*port, frame::EXIT, status.to_string().as_bytes())?;
    }
}

/// Runs a command to its end, and to that of its streams: whoever it leaves behind has others.
fn run(words: &[&OsStr], port: &File) -> io::Result<i32> {
    let port = &Mutex::new(port);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/"), ("LC_ALL", "C.UTF-8")]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let why = format!("{}: {error}\n", words[0].display());
            pass_on(why.as_bytes(), frame::ERR, port)?;
            // As a shell says it.
            return Ok(127 << 8);
        }
    };
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let out = scope.spawn(|| out.map_or(Ok(()), |out| pass_on(out, frame::OUT, port)));
        let err = scope.spawn(|| err.map_or(Ok(()), |err| pass_on(err, frame::ERR, port)));
        let status = loop {
            let (ended, status) = sys::wait_for_any()?;
            if ended == pid {
                break status;
            }
        };
        for stream in [out, err] {
            stream.join().map_err(|_| io::Error::other("a stream"))??;
        }
        Ok(status)
    })
}

fn pass_on(mut from: impl Read, kind: u8, port: &Mutex<&File>) -> io::Result<()> {
    let mut part = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut part)? {
            0 => return Ok(()),
            length => length,
        };
        let mut port = port.lock().map_err(|_| io::Error::other("the port"))?;
        frame::send(&mut *port, kind, &part[..length])?;
    }
}
