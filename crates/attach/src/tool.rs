//! Programs of the system that do what this process must not (see the crate's rule): each is a child
//! with a time limit.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::AttachError;

/// Runs a program to its end; its standard output. One that takes longer is killed, and not waited
/// for: it may be where no signal reaches it.
pub(crate) fn run(
    program: &'static str,
    args: &[&OsStr],
    within: Duration,
) -> Result<String, AttachError> {
    let mut command = Command::new(program);
    command
        .args(args)
        // Its messages are shown, and some are looked at.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => AttachError::Missing(package_of(program)),
        _ => AttachError::io(format!("starting {program}"))(error),
    })?;
    let failed = || AttachError::io(format!("waiting for {program}"));
    if !ends_within(&child, within).map_err(failed())? {
        drop(child.kill());
        return Err(AttachError::TooLong { program, within });
    }
    let status = child.wait().map_err(failed())?;
    let (mut out, mut err) = (String::new(), String::new());
    let read = child
        .stdout
        .take()
        .map(|mut pipe| pipe.read_to_string(&mut out));
    let also = child
        .stderr
        .take()
        .map(|mut pipe| pipe.read_to_string(&mut err));
    for read in [read, also].into_iter().flatten() {
        read.map_err(failed())?;
    }
    if status.success() {
        return Ok(out.trim().to_owned());
    }
    let said = match err.trim() {
        "" => status.to_string(),
        said => said.trim_start_matches(&format!("{program}: ")).to_owned(),
    };
    Err(AttachError::Refused { program, said })
}

fn package_of(program: &str) -> &'static str {
    match program {
        "mount" | "umount" => "the programs mount and umount (Debian: mount)",
        "losetup" => "the program losetup (util-linux; Debian: mount)",
        "blkid" => "the program blkid (Debian: util-linux)",
        _ => "the programs sh, cat and sync, which every system has",
    }
}

fn ends_within(child: &Child, within: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let within = Timespec::try_from(within).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&within)) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, within: Duration) -> Result<String, AttachError> {
        run("sh", &["-c".as_ref(), script.as_ref()], within)
    }

    #[test]
    fn a_program_is_heard_and_bounded() {
        let long = Duration::from_secs(60);
        assert_eq!(shell("echo out; echo err >&2", long).unwrap(), "out");
        let refused = shell("echo no >&2; exit 3", long).unwrap_err();
        assert_eq!(refused.to_string(), "sh: no");
        let mute = shell("exit 3", long).unwrap_err();
        assert_eq!(mute.to_string(), "sh: exit status: 3");
        let late = shell("exec sleep 1000", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(late, AttachError::TooLong { .. }), "{late}");
    }
}
