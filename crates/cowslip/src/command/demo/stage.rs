//! Where the demo plays: a directory, an ext4 image in it, and this program as a server.

use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cowslip_nbd::{Client, client::Address};
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;
use crate::report::Taken;

pub(super) const IMAGE_BYTES: u64 = 32 << 20;
/// Files in the image that hold bytes worth rewriting.
const FILES: u64 = 24;
const FILE_BYTES: u64 = 512 << 10;

/// The directory. It goes at the end, unless it is to be kept.
pub(super) struct Stage {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    stamps_noted: Cell<u64>,
}

impl Stage {
    pub(super) fn set(keep: Option<&Path>) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("a directory for the demo: {e}"));
        let (path, temporary) = match keep {
            Some(path) => {
                std::fs::create_dir_all(path).map_err(|e| Failure::file(path, &e))?;
                if path
                    .read_dir()
                    .map_err(|e| Failure::file(path, &e))?
                    .next()
                    .is_some()
                {
                    let message = format!("{} is not empty", path.display());
                    return Err(Failure::usage(message).hint("--keep wants a new directory"));
                }
                (path.canonicalize().map_err(failed)?, None)
            }
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("cowslip-demo-")
                    .tempdir()
                    .map_err(failed)?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        Ok(Self {
            path,
            _temporary: temporary,
            stamps_noted: Cell::new(0),
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// How many stamps there were when this was called the last time; remembers `now`.
    pub(super) fn note_stamps(&self, now: u64) -> u64 {
        self.stamps_noted.replace(now)
    }

    /// A small file system, filled from a directory, which needs no root.
    pub(super) fn make_image(&self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("making the image: {e}"));
        let tree = self.at("tree");
        std::fs::create_dir(&tree).map_err(failed)?;
        for i in 0..FILES {
            let len = usize::try_from(FILE_BYTES).expect("small");
            let bytes = crate::random::random_bytes(1000 + i, len);
            std::fs::write(tree.join(format!("file-{i}")), bytes).map_err(failed)?;
        }
        let mkfs = find_mkfs()?;
        let output = Command::new(&mkfs)
            .args(["-q", "-F", "-b", "4096", "-d"])
            .arg(&tree)
            .arg(self.at("image.raw"))
            .arg(format!("{}k", IMAGE_BYTES >> 10))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Failure::file(&mkfs, &e))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::failed(format!(
                "{}: {}",
                mkfs.display(),
                why.trim()
            )));
        }
        std::fs::remove_dir_all(&tree).map_err(failed)
    }

    /// This program, on the demo's store.
    fn cowslip(&self, args: &[&str]) -> Result<Command, Failure> {
        let me = std::env::current_exe()
            .map_err(|e| Failure::failed(format!("finding this program: {e}")))?;
        let mut command = Command::new(me);
        command
            .arg("--store")
            .arg(self.at("store"))
            .args(args)
            .stdin(Stdio::null());
        // A service manager's sockets are not for the demo's server.
        command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        Ok(command)
    }

    fn output_of(&self, args: &[&str]) -> Result<Vec<u8>, Failure> {
        let output = self
            .cowslip(args)?
            .output()
            .map_err(|e| Failure::failed(format!("running cowslip {}: {e}", args.join(" "))))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::failed(format!(
                "cowslip {}: {}",
                args.join(" "),
                why.trim()
            )));
        }
        Ok(output.stdout)
    }

    pub(super) fn import(&self, name: &str) -> Result<(), Failure> {
        let image = self.at("image.raw");
        let image = image
            .to_str()
            .ok_or_else(|| Failure::failed(format!("{} is no text", image.display())))?;
        self.output_of(&["import", image, name, "--format", "raw"])
            .map(drop)
    }

    pub(super) fn snapshot(&self, session: &str, name: &str) -> Result<Taken, Failure> {
        let session = self.at(session);
        let session = session.to_string_lossy();
        let json = self.output_of(&["snapshot", &session, name, "--json"])?;
        serde_json::from_slice(&json)
            .map_err(|e| Failure::failed(format!("what `cowslip snapshot --json` printed: {e}")))
    }

    /// Starts a server, and waits until it is ready.
    pub(super) fn serve(
        &self,
        name: &str,
        session: &str,
        size: Option<u64>,
    ) -> Result<Server, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("starting the server: {e}"));
        let session = self.at(session);
        let mut command = self.cowslip(&["serve", name])?;
        command
            .arg("--session")
            .arg(&session)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(size) = size {
            command.arg("--size").arg(size.to_string());
        }
        let mut server = Server {
            child: command.spawn().map_err(failed)?,
            name: name.to_owned(),
            socket: session.join("nbd.sock"),
        };
        let stderr = server.child.stderr.take().expect("asked for above");
        let mut lines = BufReader::new(stderr);
        let mut said = String::new();
        while !said.contains("ready:") {
            if lines.read_line(&mut said).map_err(failed)? == 0 {
                return Err(Failure::failed(format!(
                    "the server ended: {}",
                    said.trim()
                )));
            }
        }
        // What else it says is read to the end, so that it never waits for us.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(server)
    }
}

/// A server process; killed when dropped, if it is still there.
pub(super) struct Server {
    child: Child,
    name: String,
    socket: PathBuf,
}

impl Server {
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        Client::connect(Address::Unix(&self.socket), &self.name)
            .map_err(|e| Failure::failed(format!("connecting to the server: {e}")))
    }

    /// All bytes of the device.
    pub(super) fn read_all(&self) -> Result<Vec<u8>, Failure> {
        const CHUNK: usize = 1 << 20;
        let mut client = self.connect()?;
        let size = usize::try_from(client.info().size_bytes)
            .map_err(|_| Failure::failed("the device is too large for the demo"))?;
        let mut bytes = vec![0; size];
        for (i, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
            client
                .read((i * CHUNK) as u64, chunk)
                .map_err(|e| Failure::failed(format!("reading the device: {e}")))?;
        }
        Ok(bytes)
    }

    /// As the power of a process can end: at once.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// As a user ends it, with SIGTERM.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        let failed = |why: String| Failure::failed(format!("ending the server: {why}"));
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed("it has no pid".into()))?;
        kill_process(pid, Signal::TERM).map_err(|e| failed(e.to_string()))?;
        for _ in 0..1000 {
            if let Some(status) = self.child.try_wait().map_err(|e| failed(e.to_string()))? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(failed(status.to_string()))
                };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(failed("it took longer than ten seconds".into()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// mkfs.ext4 is not on an ordinary user's PATH on every system.
fn find_mkfs() -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join("mkfs.ext4"))
        .find(|mkfs| mkfs.is_file());
    found.ok_or_else(|| {
        Failure::failed("mkfs.ext4 is not on this machine")
            .hint("install e2fsprogs (Debian, Fedora and Alpine call the package that)")
    })
}
