//! [`Pause`]: a guest that is held by somebody's command, and let go by another, whatever happens in between: a failure, a signal, the end of
//! patience. Only kill -9 is not provided for.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::failure::Failure;
use crate::report::complain;

/// What lets it go, until that was done.
type LetsGo = Arc<Mutex<Option<String>>>;

/// See the module.
pub(crate) struct Pause {
    after: LetsGo,
    signals: Handle,
}

impl Pause {
    /// Runs `before`. From here on `after` is run, once; also where `before` fails, which may have done half of it.
    pub(crate) fn begin(before: Option<&str>, after: Option<&str>) -> Result<Self, Failure> {
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
        let mut signals =
            signals.map_err(|e| Failure::failed(format!("waiting for signals: {e}")))?;
        let after: LetsGo = Arc::new(Mutex::new(after.map(str::to_owned)));
        let pause = Self {
            after: Arc::clone(&after),
            signals: signals.handle(),
        };
        thread::spawn(move || {
            if signals.forever().next().is_some() {
                let done = let_go(&after);
                complain(&done.map_or_else(|failure| failure.message, |()| "interrupted".into()));
                std::process::exit(1);
            }
        });
        before.map_or(Ok(()), |command| run("--before", command))?;
        Ok(pause)
    }

    /// It goes on.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let_go(&self.after)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Err(failure) = let_go(&self.after) {
            complain(&failure.message);
        }
        self.signals.close();
    }
}

fn let_go(after: &LetsGo) -> Result<(), Failure> {
    let command = after.lock().unwrap_or_else(PoisonError::into_inner).take();
    command.map_or(Ok(()), |command| run("--after", &command))
}

/// What it prints goes to standard error: standard output is for the result.
fn run(what: &str, command: &str) -> Result<(), Failure> {
    let failed = |why: String| Failure::failed(format!("{what} {command:?}: {why}"));
    let out = io::stderr().as_fd().try_clone_to_owned();
    let out = out.map_err(|e| failed(e.to_string()))?;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(out);
    let status = shell.status().map_err(|e| failed(e.to_string()))?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(status.to_string())),
    }
}
