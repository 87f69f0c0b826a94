//! `cowslip quiesce`: what it takes out of a diff, and that what it froze is thawed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bytes::{BLOCK, MIB, noise};
use crate::devices::Devices;
use crate::rig::{PATIENCE, Served, said};
use crate::tools::run;

/// An ext4 on a device, mounted with these options. `served` is ended first.
struct Mounted {
    served: Served,
    devices: Devices,
    dir: PathBuf,
}

impl Mounted {
    fn new(test: &str, mkfs: &[&str], options: &str) -> Option<Self> {
        let devices = Devices::new(test, &["mkfs.ext4", "fsfreeze"])?;
        devices.empty("base", 128);
        let (served, device) = devices.attach("base --session s");
        let path = device.to_str().unwrap();
        run(
            "mkfs.ext4",
            ["-q"].iter().chain(mkfs).copied().chain([path]),
        );
        let dir = devices.dir("mnt");
        run("mount", ["-o", options, path, dir.to_str().unwrap()]);
        Some(Self {
            served,
            devices,
            dir,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let mut file = File::create(self.at(name)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
    }

    /// `cowslip quiesce`, not started.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.devices.rig.command(["quiesce"]);
        command.arg(&self.dir).args(args);
        command
    }

    fn quiesce(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let output = self.quiesce(&[&["--json"], args].concat());
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Blocks with other bytes than in `base` that are not zero.
    fn changed(&self, name: &str) -> u64 {
        let rig = &self.devices.rig;
        rig.ok(&format!("snapshot s {name}"));
        rig.json(&format!("diff base {name}"))["changed_blocks"]
            .as_u64()
            .unwrap()
    }

    /// Can be written to: it is not frozen. What waits in a frozen file system no signal reaches, so a
    /// failure thaws it first.
    #[track_caller]
    fn assert_thawed(&self) {
        let (path, (say, done)) = (self.at("probe"), channel());
        let probe = thread::spawn(move || say.send(fs::write(path, "x").is_ok()));
        let is_thawed = done.recv_timeout(PATIENCE);
        if is_thawed.is_err() {
            run("fsfreeze", ["-u".as_ref(), self.dir.as_os_str()]);
        }
        probe.join().unwrap().unwrap();
        assert_eq!(is_thawed, Ok(true), "it is frozen");
    }

    fn end(self) {
        let Self {
            served, devices, ..
        } = self;
        served.end_within(PATIENCE);
        devices.assert_nothing_left();
    }
}

fn steps(quiesced: &Value) -> Vec<(&str, bool)> {
    let steps = quiesced["steps"].as_array().unwrap();
    let step = |s: &'_ Value| (s["step"].as_str().unwrap().to_owned(), s["done"] == true);
    let names = ["sync", "trim", "checkpoint", "freeze"];
    let known = |s: (String, bool)| (*names.iter().find(|n| **n == s.0).unwrap(), s.1);
    steps.iter().map(step).map(known).collect()
}

#[test]
fn a_quiesced_file_system_has_a_smaller_diff() {
    let test = "a_quiesced_file_system_has_a_smaller_diff";
    // No discards while it is in use: what is deleted stays, until somebody trims.
    let Some(mounted) = Mounted::new(test, &["-b4096"], "noatime") else {
        return;
    };
    mounted.write("kept", &noise(1, 4 * MIB));
    mounted.write("gone", &noise(2, 24 * MIB));
    for i in 0..40 {
        mounted.write(&format!("small{i}"), &noise(i, 1000));
    }
    fs::remove_file(mounted.at("gone")).unwrap();
    let synced = mounted.json(&["--no-trim", "--no-checkpoint"]);
    assert_eq!(steps(&synced), [("sync", true)]);
    let after_sync = mounted.changed("after-sync");
    let trimmed = mounted.json(&["--no-sync", "--no-checkpoint"]);
    assert_eq!(steps(&trimmed), [("trim", true)]);
    assert!(
        trimmed["steps"][0]["trimmed_bytes"].as_u64().unwrap() > 24 << 20,
        "{trimmed}"
    );
    let after_trim = mounted.changed("after-trim");
    let gone = (24 * MIB / BLOCK) as u64;
    assert!(after_trim + gone <= after_sync, "{after_trim} {after_sync}");
    let all = mounted.json(&[]);
    assert_eq!(
        steps(&all),
        [("sync", true), ("trim", true), ("checkpoint", true)]
    );
    let after_all = mounted.changed("after-all");
    // Each fsync was a transaction of several blocks.
    assert!(after_all + 200 <= after_trim, "{after_all} {after_trim}");
    let files = (4 * MIB / BLOCK + 40) as u64;
    assert!((files..files + 100).contains(&after_all), "{after_all}");
    // Without a journal that step is left out, and says so.
    mounted.end();
    let Some(bare) = Mounted::new(test, &["-O", "^has_journal"], "noatime") else {
        return;
    };
    let quiesced = bare.json(&[]);
    assert_eq!(
        steps(&quiesced),
        [("sync", true), ("trim", true), ("checkpoint", false)]
    );
    assert_eq!(
        quiesced["steps"][2]["what"],
        "left out: there is no journal"
    );
    bare.end();
}

#[test]
fn the_command_runs_in_a_frozen_file_system_which_is_thawed_after_it() {
    let test = "the_command_runs_in_a_frozen_file_system_which_is_thawed_after_it";
    let Some(mounted) = Mounted::new(test, &[], "discard") else {
        return;
    };
    mounted.write("file", &noise(1, MIB));
    // It is frozen: a second freeze is refused.
    let again = format!("! fsfreeze -f {} 2>&1 && echo seen", mounted.dir.display());
    let quiesced = mounted.json(&["--", "sh", "-c", &again]);
    assert_eq!(steps(&quiesced)[3], ("freeze", true));
    mounted.assert_thawed();

    let failed = mounted.quiesce(&["--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        said(&failed).contains("exit status: 7"),
        "{}",
        said(&failed)
    );
    mounted.assert_thawed();

    let missing = mounted.quiesce(&["--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(1));
    mounted.assert_thawed();

    // The command waits for what it has frozen itself: only the thaw can end it.
    let write = format!("echo x > {}/late", mounted.dir.display());
    let late = mounted.quiesce(&["--timeout", "300ms", "--", "sh", "-c", &write]);
    assert_eq!(late.status.code(), Some(1));
    assert!(said(&late).contains("--timeout"), "{}", said(&late));
    mounted.assert_thawed();

    // Somebody else's freeze is left alone.
    let path = mounted.dir.to_str().unwrap();
    run("fsfreeze", ["-f", path]);
    let refused = mounted.quiesce(&["--no-sync", "--no-trim", "--no-checkpoint", "--", "true"]);
    run("fsfreeze", ["-u", path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("somebody else"),
        "{}",
        said(&refused)
    );
    mounted.assert_thawed();
    mounted.end();
}

#[test]
fn signals_and_kill_9_thaw_as_well() {
    let Some(mounted) = Mounted::new("signals_and_kill_9_thaw_as_well", &[], "discard") else {
        return;
    };
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut child = start(&mounted, &["--timeout", "10m"]);
        kill_process(Pid::from_child(&child), signal).unwrap();
        mounted.assert_thawed();
        let status = child.wait().unwrap();
        let code = (signal != Signal::KILL).then_some(1);
        assert_eq!(status.code(), code, "{signal:?}: {status}");
    }
    // One that hangs: after the timeout, and the guard's second.
    let mut child = start(&mounted, &["--timeout", "200ms"]);
    kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
    mounted.assert_thawed();
    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    mounted.end();
}

/// One that is in the middle of its command, which ends by itself before long, if nobody else ends it.
fn start(mounted: &Mounted, args: &[&str]) -> Child {
    let mut command = mounted.command(args);
    command.args(["--", "sh", "-c", "echo frozen; exec sleep 5"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "frozen\n");
    child
}

#[test]
fn only_a_mount_point_is_quiesced() {
    let Some(devices) = Devices::new("only_a_mount_point_is_quiesced", &[]) else {
        return;
    };
    let rig = &devices.rig;
    devices.dir("plain");
    let said = rig.fails(2, "quiesce plain");
    assert!(said.contains("nothing is mounted at"), "{said}");
    rig.fails(3, "quiesce no-such-directory");
    // Steps that a file system does not know are left out.
    let at = devices.dir("tmp");
    run("mount", ["-t", "tmpfs", "none", at.to_str().unwrap()]);
    let quiesced = rig.json("quiesce tmp");
    assert_eq!(
        steps(&quiesced),
        [("sync", true), ("trim", false), ("checkpoint", false)]
    );
    assert_eq!(quiesced["file_system"], "tmpfs");
}
