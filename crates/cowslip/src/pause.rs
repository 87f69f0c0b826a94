//! [`Pause`]: a guest that is held by somebody's command, and let go by another, whatever happens in between: a failure, a signal, the end of
//! patience. Only kill -9 is not provided for.
//!
//! Both commands run under one lock. So a signal that comes while one of them runs is acted upon when it has ended: a guest is never let go before it was
//! paused, nor left paused because this process ended too early. They are no part of this process's group: Ctrl-C is for this one.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;
use crate::report::complain;

/// See the module.
pub(crate) struct Pause(Arc<Mutex<State>>);

struct State {
    is_held: bool,
    after: Option<String>,
}

impl Pause {
    /// Runs `before`. From here on `after` is run, once; also where `before` fails, which may have done half of it. A signal ends the process, then
    /// and later.
    pub(crate) fn begin(before: Option<&str>, after: Option<&str>) -> Result<Self, Failure> {
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
        let mut signals =
            signals.map_err(|e| Failure::failed(format!("waiting for signals: {e}")))?;
        let pause = Self(Arc::new(Mutex::new(State {
            is_held: true,
            after: after.map(str::to_owned),
        })));
        let mut state = pause.locked();
        let shared = Arc::clone(&pause.0);
        thread::spawn(move || {
            if signals.forever().next().is_some() {
                let done = locked(&shared).let_go();
                complain(&done.map_or_else(|failure| failure.message, |()| "interrupted".into()));
                std::process::exit(1);
            }
        });
        let begun = before.map_or(Ok(()), |command| run("--before", command));
        if begun.is_err() {
            // Why it could not be paused is what is told.
            if let Err(failure) = state.let_go() {
                complain(&failure.message);
            }
        }
        drop(state);
        begun.map(|()| pause)
    }

    /// Does something while it is held, if it still is.
    pub(crate) fn while_held(&self, act: impl FnOnce()) {
        let state = self.locked();
        if state.is_held {
            act();
        }
    }

    /// It goes on.
    pub(crate) fn end(self) -> Result<(), Failure> {
        self.locked().let_go()
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        locked(&self.0)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Err(failure) = self.locked().let_go() {
            complain(&failure.message);
        }
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn let_go(&mut self) -> Result<(), Failure> {
        self.is_held = false;
        let after = self.after.take();
        after.map_or(Ok(()), |command| run("--after", &command))
    }
}

/// What it prints goes to standard error: standard output is for the result.
fn run(what: &str, command: &str) -> Result<(), Failure> {
    let failed = |why: String| Failure::failed(format!("{what} {command:?}: {why}"));
    let out = io::stderr().as_fd().try_clone_to_owned();
    let out = out.map_err(|e| failed(e.to_string()))?;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(out);
    let status = shell.process_group(0).status();
    let status = status.map_err(|e| failed(e.to_string()))?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(status.to_string())),
    }
}
