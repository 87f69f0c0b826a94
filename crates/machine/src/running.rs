//! [`Running`]: a machine that takes commands.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output};
use std::time::{Duration, Instant};

use cowslip_guest::frame;
use tempfile::TempDir;

use crate::monitor::{Monitor, memory_of};

/// Of the console, when something went wrong.
const TAIL_LINES: usize = 30;
/// Of one command's output.
const OUTPUT_MAX: usize = 64 << 20;

/// See the module. It ends with this.
#[derive(Debug)]
pub struct Running {
    child: Child,
    port: UnixStream,
    /// Of one that was booted with it.
    pub(crate) monitor: Option<Monitor>,
    /// `console`: the kernel's; `qemu`: its complaints.
    dir: TempDir,
}

impl Running {
    pub(crate) fn new(child: Child, port: UnixStream, dir: TempDir) -> Self {
        Self {
            child,
            port,
            monitor: None,
            dir,
        }
    }

    pub(crate) fn wait_until_ready(&mut self, within: Duration) {
        let (kind, why) = self.receive("booting", Instant::now() + within);
        assert_eq!(kind, frame::READY, "{}", String::from_utf8_lossy(&why));
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops all of it, but for QEMU: its memory and its disks change no more.
    pub fn stop(&mut self) {
        self.tell("stop");
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        self.tell("cont");
    }

    fn tell(&mut self, command: &str) {
        let monitor = self.monitor.as_mut();
        monitor.expect("it was booted with a monitor").tell(command);
    }

    /// Its memory, as a file.
    pub fn memory(&self) -> PathBuf {
        memory_of(self.pid())
    }

    /// Runs a command, as root, in `/`, with no input, and waits for its end and that of its streams: what is to go on behind it has others, as in
    /// `sh -c 'server > log 2>&1 &'`. One that takes longer fails the test.
    pub fn run<A: AsRef<OsStr>>(
        &mut self,
        words: impl IntoIterator<Item = A>,
        within: Duration,
    ) -> Output {
        let give_up = Instant::now() + within;
        let words: Vec<_> = words
            .into_iter()
            .map(|word| word.as_ref().as_bytes().to_owned())
            .collect();
        let payload = words.join(&0);
        let what = String::from_utf8_lossy(&payload).replace('\0', " ");
        assert!(payload.len() <= frame::PAYLOAD_MAX, "{what}");
        frame::send(&mut self.port, frame::COMMAND, &payload)
            .and_then(|()| frame::send(&mut self.port, frame::INPUT, &[]))
            .unwrap_or_else(|e| self.fail(&what, &e));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let (kind, payload) = self.receive(&what, give_up);
            match kind {
                frame::OUT => stdout.extend(payload),
                frame::ERR => stderr.extend(payload),
                frame::TAKEN => {}
                frame::EXIT => {
                    let status = String::from_utf8(payload).unwrap();
                    let status = ExitStatus::from_raw(status.parse().unwrap());
                    return Output {
                        status,
                        stdout,
                        stderr,
                    };
                }
                other => panic!("{what}: a frame of kind {other}"),
            }
            assert!(stdout.len() + stderr.len() <= OUTPUT_MAX, "{what}");
        }
    }

    /// Runs a script of sh(1) that must succeed; its standard output.
    #[track_caller]
    pub fn sh(&mut self, script: &str, within: Duration) -> String {
        let output = self.run(["sh", "-c", script], within);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{script}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What the kernel said.
    pub fn console(&self) -> String {
        let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).replace('\r', "")
    }

    fn receive(&mut self, what: &str, give_up: Instant) -> (u8, Vec<u8>) {
        let left = give_up.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        let left = left.max(Duration::from_millis(1));
        self.port.set_read_timeout(Some(left)).unwrap();
        frame::receive(&mut self.port).unwrap_or_else(|error| self.fail(what, &error))
    }

    fn fail(&self, what: &str, error: &io::Error) -> ! {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock => "it takes too long".to_owned(),
            io::ErrorKind::UnexpectedEof => "the machine is gone".to_owned(),
            _ => error.to_string(),
        };
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        let qemu = std::fs::read_to_string(self.dir.path().join("qemu")).unwrap_or_default();
        panic!("{what}: {why}\n== its console:\n{tail}\n== QEMU:\n{qemu}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
