//! Programs that others wrote, and what a test does without them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::rig::{said, until};

/// Are these programs there? If not, the test says so and is over; where COWSLIP_REQUIRE_TOOLS is 1,
/// that is a failure.
pub(crate) fn have(test: &str, tools: &[&str]) -> bool {
    let missing = tools.iter().copied().filter(|t| tool(t).is_none());
    let missing = missing.collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var_os("COWSLIP_REQUIRE_TOOLS").is_some_and(|v| v == "1");
    assert!(!required, "{test} needs {missing}");
    skip(test, &missing);
    false
}

/// Says that a test is left out for want of something.
pub(crate) fn skip(test: &str, needs: &str) {
    eprintln!("SKIP {test}: needs {needs}");
}

/// Where a program is; those of e2fsprogs are not on everybody's PATH. `python3-nbd` is the system's
/// Python with libnbd's module.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    if name == "python3-nbd" {
        let python = PathBuf::from("/usr/bin/python3");
        let tried = Command::new(&python).args(["-c", "import nbd"]).output();
        return tried.is_ok_and(|o| o.status.success()).then_some(python);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|p| p.join(name)).find(|p| p.is_file())
}

/// Runs a tool that must succeed; its standard output.
#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new(tool(name).unwrap());
    let output = command.args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Unmounts, and waits until the file system is. For the moment between its fork and its exec, a process that another test starts has all files open that
/// this one has: busy is tried again. And whoever has a mount namespace of its own has it mounted for as long.
#[track_caller]
pub(crate) fn unmount(at: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (device, place) = (words.next()?, words.next()?);
        let name = device.strip_prefix("/dev/")?;
        (Path::new(place) == at).then(|| name.to_owned())
    });
    until("umount", || {
        let mut command = Command::new(tool("umount").unwrap());
        let output = command.arg(at).output().unwrap();
        let is_busy = output.status.code() == Some(32) && said(&output).contains("busy");
        assert!(output.status.success() || is_busy, "{}", said(&output));
        output.status.success().then_some(())
    });
    // As long as the kernel has it; ext4 says so.
    let known = device.map(|device| Path::new("/proc/fs/ext4").join(device));
    until("the file system to go", || {
        known.iter().all(|known| !known.exists()).then_some(())
    });
}

/// Runs a Python script with libnbd; its arguments are `sys.argv[1:]`.
#[track_caller]
pub(crate) fn python<A: AsRef<OsStr>>(script: &str, args: impl IntoIterator<Item = A>) -> String {
    let script = [OsStr::new("-c"), OsStr::new(script)].map(OsStr::to_owned);
    let args = args.into_iter().map(|a| a.as_ref().to_owned());
    run("python3-nbd", script.into_iter().chain(args))
}
