//! Programs that the lab runs, and the wish to stop.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Kind};

/// Somebody wants the lab to end. Looked at between steps, each of which takes seconds at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails when somebody does.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.is_asked() {
            true => Err(Failure::failed("interrupted")
                .hint("the same command with --out goes on where it was")),
            false => Ok(()),
        }
    }

    pub(crate) fn sleep(&self, time: Duration) -> Result<(), Failure> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            thread::sleep(Duration::from_millis(50).min(time));
        }
        Ok(())
    }
}

/// Where a program is; those of e2fsprogs are not on everybody's PATH.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let places = std::env::split_paths(&path).chain(usual);
    places
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Runs a program that must succeed; its standard output.
pub(crate) fn run(name: &str, args: &[&OsStr]) -> Result<String, Failure> {
    succeeded(name, command(name)?.args(args).output())
}

/// The same, with standard input.
pub(crate) fn fed(name: &str, args: &[&OsStr], input: &str) -> Result<String, Failure> {
    let mut command = command(name)?;
    let child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = child.and_then(|mut child| {
        let mut pipe = child.stdin.take().expect("asked for above");
        pipe.write_all(input.as_bytes())?;
        drop(pipe);
        child.wait_with_output()
    });
    succeeded(name, output)
}

/// Runs a program whose exit status is an answer; nothing where a signal ended it.
pub(crate) fn status(name: &str, args: &[&OsStr]) -> Result<Option<i32>, Failure> {
    let output = command(name)?.args(args).output();
    let output = output.map_err(|e| Failure::failed(format!("running {name}: {e}")))?;
    Ok(output.status.code())
}

fn command(name: &str) -> Result<Command, Failure> {
    let program = find(name)
        .ok_or_else(|| Failure::new(Kind::Failed, format!("{name} is not on this machine")))?;
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

pub(crate) fn succeeded(name: &str, output: std::io::Result<Output>) -> Result<String, Failure> {
    let output = output.map_err(|e| Failure::failed(format!("running {name}: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let why = match why.trim() {
        "" => output.status.to_string(),
        why => why.to_owned(),
    };
    Err(Failure::failed(format!("{name}: {why}")))
}
