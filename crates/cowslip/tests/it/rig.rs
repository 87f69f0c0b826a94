//! What every test stands on: a directory of its own with a store in it, the built command, and
//! servers that end with the test, however it ends.
//!
//! A server is waited for by the line that it prints when it is ready; nothing here guesses how long
//! something takes. Waits are bounded, so that a test that cannot go on fails and says what it was
//! waiting for.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use cowslip_nbd::Client;
use cowslip_nbd::client::Address;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::bytes::{MIB, sum};

pub(crate) const COWSLIP: &str = env!("CARGO_BIN_EXE_cowslip");

/// For whatever should take milliseconds, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with a store in it, not made yet.
pub(crate) struct Rig {
    dir: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("cowslip-it-")
                .tempdir()
                .unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A file with these bytes.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The command, not started, in this directory and with its store.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(COWSLIP);
        command
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        // Temporary sessions go there as well, and with the test.
        command.env("TMPDIR", self.dir.path());
        command.env("COWSLIP_STORE", self.store());
        // Block devices of one test are not another's to end.
        command.env("COWSLIP_RUN_DIR", self.path("run"));
        command
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line.split_whitespace()).output().unwrap()
    }

    /// Runs a command that must succeed; its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "cowslip {line}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, with `--json`.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    /// Runs a command that must end with this exit code; its standard error.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(code),
            "cowslip {line}: {}",
            said(&output)
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// A snapshot with this content.
    #[track_caller]
    pub(crate) fn import(&self, name: &str, bytes: &[u8]) {
        self.file("import.raw", bytes);
        self.ok(&format!("import import.raw {name} --format raw --quiet"));
        std::fs::remove_file(self.path("import.raw")).unwrap();
    }

    /// The content of a snapshot.
    #[track_caller]
    pub(crate) fn export(&self, name: &str) -> Vec<u8> {
        self.ok(&format!("export {name} export.raw --replace --quiet"));
        std::fs::read(self.path("export.raw")).unwrap()
    }

    /// `cowslip serve` with these arguments; returns when it is ready. It listens on the socket of
    /// its session directory, which is `s` in this rig.
    #[track_caller]
    pub(crate) fn serve(&self, line: &str) -> Served {
        let command = self.command(["serve"].into_iter().chain(line.split_whitespace()));
        Served::start(command, self.path("s/nbd.sock"))
    }

    /// The same, on another socket in this rig.
    #[track_caller]
    pub(crate) fn serve_at(&self, line: &str, socket: &str) -> Served {
        let at = format!("unix:{}", self.path(socket).display());
        let words = ["serve", "--nbd", &at]
            .into_iter()
            .chain(line.split_whitespace());
        Served::start(self.command(words), self.path(socket))
    }

    /// `cowslip memory serve` at `memory.sock`.
    #[track_caller]
    pub(crate) fn serve_memory(&self, line: &str) -> Served {
        let socket = self.path("memory.sock");
        let at = format!("unix:{}", socket.display());
        let words = ["memory", "serve", "--uffd", &at].into_iter();
        Served::start(self.command(words.chain(line.split_whitespace())), socket)
    }

    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> Value {
        self.json(&format!("inspect {name}"))
    }

    /// The bytes of all files in the store.
    pub(crate) fn store_bytes(&self) -> u64 {
        sum(&self.store(), &|m| m.len())
    }
}

/// A server, and the end of it when dropped.
pub(crate) struct Served {
    child: Child,
    socket: PathBuf,
    pub(crate) ready: String,
    lines: Receiver<String>,
}

impl Served {
    #[track_caller]
    pub(crate) fn start(mut command: Command, socket: PathBuf) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (say, lines) = channel();
        thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|l| say.send(l))
        });
        let mut served = Self {
            child,
            socket,
            ready: String::new(),
            lines,
        };
        served.ready = served.line_with("ready:");
        served
    }

    /// Waits until the server says something with `text` in it.
    #[track_caller]
    pub(crate) fn line_with(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => heard += &format!("{line}\n"),
                Err(RecvTimeoutError::Timeout) => panic!("it never said {text:?}, but: {heard}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended, saying: {heard}"),
            }
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What NBD clients take.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(Address::Unix(&self.socket), "").unwrap()
    }

    #[track_caller]
    pub(crate) fn read_all(&self) -> Vec<u8> {
        let mut client = self.client();
        let mut all = vec![0; usize::try_from(client.info().size_bytes).unwrap()];
        for (i, part) in all.chunks_mut(8 * MIB).enumerate() {
            client.read((i * 8 * MIB) as u64, part).unwrap();
        }
        all
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The first line of its standard output, for which it was given a pipe.
    #[track_caller]
    pub(crate) fn first_line(&mut self) -> String {
        let mut line = String::new();
        let mut out = BufReader::new(self.child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "it ended by itself: {}",
            self.rest()
        );
    }

    /// SIGTERM, and waits until it has ended well; the rest of what it said.
    #[track_caller]
    pub(crate) fn end(self) -> String {
        self.end_by(Signal::TERM)
    }

    /// The same, within the five seconds that it may take.
    #[track_caller]
    pub(crate) fn end_by(self, signal: Signal) -> String {
        self.end_as(signal, Duration::from_secs(5))
    }

    /// The same by SIGTERM, where much has to be written back.
    #[track_caller]
    pub(crate) fn end_within(self, time: Duration) -> String {
        self.end_as(Signal::TERM, time)
    }

    #[track_caller]
    fn end_as(mut self, signal: Signal, time: Duration) -> String {
        kill_process(self.pid(), signal).unwrap();
        let status = self.wait_within(time);
        let said = self.rest();
        assert_eq!(status.code(), Some(0), "{status}: {said}");
        said
    }

    #[track_caller]
    pub(crate) fn wait_within(&mut self, time: Duration) -> ExitStatus {
        let deadline = Instant::now() + time;
        until_by(deadline, "the server to end", || {
            self.child.try_wait().unwrap()
        })
    }

    fn rest(&self) -> String {
        self.lines.iter().map(|line| line + "\n").collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Asks again and again, for so long as any healthy machine needs.
#[track_caller]
pub(crate) fn until<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    until_by(Instant::now() + PATIENCE, what, found)
}

#[track_caller]
pub(crate) fn until_by<T>(
    deadline: Instant,
    what: &str,
    mut found: impl FnMut() -> Option<T>,
) -> T {
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Both outputs, for a message.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}
