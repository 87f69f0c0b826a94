//! [`Guard`]: a process of its own that thaws what its starter has frozen and cannot thaw any more.
//!
//! It reads a pipe from its starter, which says one byte at a time:
//!
//! | it hears | it does |
//! |---|---|
//! | [`ARMED`]: "I am about to freeze" | from now on: |
//! | [`DISARMED`]: "it is thawed, or was not frozen" | ends |
//! | the end of the pipe: the starter is dead | thaws, and ends |
//! | nothing for the timeout and [`GRACE`]: the starter hangs | thaws, again and again until it succeeds or hears one of the two |
//!
//! It has the file system open before anything is frozen, and a process group of its own: what is typed at the terminal does not reach it. The end of
//! the pipe comes when the starter's freeze has returned, also where it was killed in the middle of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Mounted;
use crate::args::ThawGuard;
use crate::failure::Failure;
use crate::report::complain;
use crate::sys;

const ARMED: u8 = b'a';
const DISARMED: u8 = b'd';
const READY: &str = "ready";
/// The starter comes first, if it can.
const GRACE: Duration = Duration::from_secs(1);
/// Between two attempts to thaw what is only being frozen: there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(50);

/// The starter's side.
pub(super) struct Guard {
    child: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Returns when it is ready.
    pub(super) fn start(mountpoint: &Path, timeout: Duration) -> Result<Self, Failure> {
        let failed =
            |e: std::io::Error| Failure::failed(format!("starting the guard of the freeze: {e}"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .arg("thaw-guard")
            .arg("--timeout")
            .arg(format!("{}ms", timeout.as_millis()))
            .arg("--")
            .arg(mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let pipe = child.stdin.take().expect("asked for above");
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("asked for above"));
        out.read_line(&mut said).map_err(failed)?;
        if said.trim() != READY {
            return Err(Failure::failed("the guard of the freeze did not start"));
        }
        Ok(Self { child, pipe })
    }

    pub(super) fn arm(&self) -> Result<(), Failure> {
        (&self.pipe)
            .write_all(&[ARMED])
            .map_err(|e| Failure::failed(format!("the guard of the freeze: {e}")))
    }

    /// It is thawed, or was not frozen.
    pub(super) fn disarm(mut self) {
        // A guard that is gone needs no word.
        let _ = self.pipe.write_all(&[DISARMED]);
        drop(self.pipe);
        let _ = self.child.wait();
    }
}

/// The guard's side: `cowslip thaw-guard`, which is in no help text.
pub(in crate::command) fn run(args: &ThawGuard) -> Result<(), Failure> {
    let mounted = Mounted::open(&args.mountpoint)?;
    crate::report::print(READY)?;
    let failed = |e: std::io::Error| Failure::failed(format!("the pipe of a guard: {e}"));
    // Unbuffered: what was not read yet must be seen by poll(2).
    let pipe = std::io::stdin().as_fd().try_clone_to_owned();
    let mut pipe = File::from(pipe.map_err(failed)?);
    if heard(&mut pipe) != Some(ARMED) {
        return Ok(());
    }
    let mut patience = args.timeout + GRACE;
    loop {
        let is_over = has_word(&pipe, patience).map_err(failed)?;
        if is_over && heard(&mut pipe) == Some(DISARMED) {
            return Ok(());
        }
        match sys::thaw(mounted.root.as_fd()) {
            Ok(()) => {
                let path = mounted.path.display();
                complain(&format!("{path} is thawed: who froze it is gone, or hangs"));
                return Ok(());
            }
            // Thawed by its starter just before, or not frozen yet.
            Err(Errno::INVAL) if is_over => return Ok(()),
            Err(Errno::INVAL) => patience = PAUSE,
            Err(error) => return Err(mounted.failed("thaw", error)),
        }
    }
}

/// A byte; nothing at the end.
fn heard(pipe: &mut impl Read) -> Option<u8> {
    let mut byte = [0];
    pipe.read_exact(&mut byte).ok().map(|()| byte[0])
}

/// Waits for a byte, or the end of the pipe.
fn has_word(pipe: &File, within: Duration) -> std::io::Result<bool> {
    let within = Timespec::try_from(within).map_err(std::io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&within)) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}
