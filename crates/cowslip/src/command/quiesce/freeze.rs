//! A command in a frozen file system.
//!
//! Invariant: what was frozen here is thawed, whatever happens: the command fails, cannot be started, takes longer than it may, a signal comes
//! (all: by [`around`], before anything else is done about it); or this process hangs or is killed (by `guard.rs`).

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::iterator::Signals;

use super::Mounted;
use super::guard::Guard;
use crate::failure::Failure;
use crate::report::duration;
use crate::sys;

/// A command that is told to end has so long for it.
const END_WITHIN: Duration = Duration::from_secs(2);

/// What ends the wait for the command.
enum End {
    Ended(io::Result<ExitStatus>),
    Signal,
}

/// Runs it; for how long the file system was frozen.
pub(super) fn around(
    mounted: &Mounted,
    command: &[OsString],
    timeout: Duration,
    signals: Signals,
    out_is_taken: bool,
) -> Result<Duration, Failure> {
    let guard = Guard::start(&mounted.path, timeout)?;
    guard.arm()?;
    let root = mounted.root.as_fd();
    if let Err(error) = sys::freeze(root) {
        guard.disarm();
        let failure = mounted.failed("freeze", error);
        return Err(match error {
            Errno::BUSY => failure.hint("somebody else has frozen it; `fsfreeze -u` thaws it"),
            Errno::OPNOTSUPP => failure.hint("this file system cannot be frozen"),
            _ => failure,
        });
    }
    let begun = Instant::now();
    let ran = run(command, timeout, signals, out_is_taken);
    let thawed = sys::thaw(root);
    let held = begun.elapsed();
    guard.disarm();
    let ended = ran.and_then(Ran::finish);
    match thawed {
        Ok(()) => {}
        Err(Errno::INVAL) => {
            ended?;
            let message = "the file system was thawed before the command had ended";
            return Err(Failure::failed(message));
        }
        Err(error) => return Err(mounted.failed("thaw", error)),
    }
    ended.map(|()| held)
}

/// A command that need not have ended.
enum Ran {
    Ended(ExitStatus),
    /// It is told to end once the file system is thawed: before, no signal may reach it.
    StillRuns {
        group: Pid,
        ended: mpsc::Receiver<End>,
        why: String,
    },
}

fn run(
    command: &[OsString],
    timeout: Duration,
    mut signals: Signals,
    out_is_taken: bool,
) -> Result<Ran, Failure> {
    let (program, args) = command.split_first().expect("clap wants one");
    let name = program.to_string_lossy();
    let mut command = Command::new(program);
    // A group of its own: what it starts ends with it.
    command.args(args).process_group(0);
    if out_is_taken {
        let errors = io::stderr().as_fd().try_clone_to_owned();
        command.stdout(errors.map_or_else(|_| Stdio::null(), Stdio::from));
    }
    let child = command
        .spawn()
        .map_err(|e| Failure::failed(format!("starting {name}: {e}")))?;
    let group = Pid::from_child(&child);
    let (say, ended) = mpsc::channel();
    let on_signal = say.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = on_signal.send(End::Signal);
        }
    });
    thread::spawn(move || say.send(End::Ended(wait(child))));
    let why = match ended.recv_timeout(timeout) {
        Ok(End::Ended(status)) => {
            let status = status.map_err(|e| Failure::failed(format!("waiting for {name}: {e}")))?;
            return Ok(Ran::Ended(status));
        }
        Ok(End::Signal) => "a signal came, and the file system was thawed".to_owned(),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let limit = duration(timeout);
            format!("{name} took longer than {limit} (--timeout), and the file system was thawed")
        }
    };
    Ok(Ran::StillRuns { group, ended, why })
}

fn wait(mut child: Child) -> io::Result<ExitStatus> {
    child.wait()
}

impl Ran {
    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Ended(status) if status.success() => Ok(()),
            Self::Ended(status) => Err(Failure::failed(format!("the command failed: {status}"))),
            Self::StillRuns { group, ended, why } => {
                let give_up = Instant::now() + END_WITHIN;
                let _ = kill_process_group(group, Signal::TERM);
                let is_over = || {
                    let left = give_up.saturating_duration_since(Instant::now());
                    match ended.recv_timeout(left) {
                        Ok(End::Ended(_)) => Some(true),
                        Ok(End::Signal) => None,
                        Err(_) => Some(false),
                    }
                };
                if std::iter::repeat_with(is_over).flatten().next() != Some(true) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                Err(Failure::failed(why))
            }
        }
    }
}
