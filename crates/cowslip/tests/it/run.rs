//! Guests that boot from a disk of ours, by one command: what they run, what is snapshotted meanwhile, how they end. Under an emulated processor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cowslip_machine::Kernel;
use rustix::process::{Pid, Signal, kill_process};

use crate::full::Tmpfs;
use crate::rig::{COWSLIP, Rig, said, until_by};
use crate::tools::{have, run, tool};

/// An emulated processor, on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(300);
/// What a kernel needs to find its disk; anything more that its list names is left out.
const MODULES: [&str; 12] = [
    "virtio",
    "virtio_ring",
    "virtio_pci",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
];

/// A kernel to boot; without, the test says so.
fn kernel(test: &str) -> Option<Kernel> {
    let tools = [
        "busybox",
        "qemu-system-x86_64",
        "setpriv",
        "mkfs.ext4",
        "e2fsck",
        "debugfs",
    ];
    if !have(test, &tools) {
        return None;
    }
    cowslip_machine::have(test, "6.1")
}

/// A tree with busybox as all its programs, and perhaps with a kernel of its own.
fn tree(rig: &Rig, kernel: Option<&Kernel>) {
    let at = |path: &str| rig.path("tree").join(path);
    for dir in [
        "bin", "dev", "proc", "sys", "run", "root", "data", "usr/lib", "boot",
    ] {
        std::fs::create_dir_all(at(dir)).unwrap();
    }
    symlink("usr/lib", at("lib")).unwrap();
    std::fs::copy(tool("busybox").unwrap(), at("bin/busybox")).unwrap();
    for program in run("busybox", ["--list"])
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", at("bin").join(program)).unwrap();
    }
    let Some(kernel) = kernel else {
        return;
    };
    let release = kernel
        .modules()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    std::fs::write(at("boot/vmlinuz-0.1"), "an old one, and broken").unwrap();
    std::fs::copy(kernel.program(), at(&format!("boot/vmlinuz-{release}"))).unwrap();
    let modules = at(&format!("lib/modules/{release}"));
    std::fs::create_dir_all(&modules).unwrap();
    let list = std::fs::read_to_string(kernel.modules().join("modules.dep")).unwrap();
    std::fs::write(modules.join("modules.dep"), &list).unwrap();
    for path in list.lines().map(|line| line.split_once(':').unwrap().0) {
        let name = Path::new(path).file_stem().unwrap().to_str().unwrap();
        if MODULES.contains(&name.replace('-', "_").as_str()) {
            std::fs::create_dir_all(modules.join(path).parent().unwrap()).unwrap();
            std::fs::copy(kernel.modules().join(path), modules.join(path)).unwrap();
        }
    }
}

/// One `cowslip run`, talked to.
struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Talk {
    fn start(rig: &Rig, line: &str, script: &str) -> Self {
        let words = ["run", "--accel", "tcg"]
            .into_iter()
            .chain(line.split_whitespace());
        let mut command = rig.command(words.chain(["--", "sh", "-c", script]));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(rig.path("log"));
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.unwrap());
        let mut child = command.spawn().unwrap();
        Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    #[track_caller]
    fn hears(&mut self, rig: &Rig, wanted: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(rig.path("log")).unwrap();
        assert_eq!(line.trim_end(), wanted, "{}", log());
    }

    fn says(&mut self, line: &str) {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
    }

    #[track_caller]
    fn ends_with(&mut self, rig: &Rig, code: i32) -> String {
        let status = until_by(Instant::now() + LONG, "cowslip run", || {
            self.child.try_wait().unwrap()
        });
        let log = std::fs::read_to_string(rig.path("log")).unwrap();
        assert_eq!(status.code(), Some(code), "{log}");
        log
    }

    /// QEMU's process.
    fn qemu(&self) -> i32 {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// e2fsck finds nothing to mend, not even a journal to replay.
#[track_caller]
fn is_clean(rig: &Rig, name: &str) {
    rig.export(name);
    let image = rig.path("export.raw");
    let mut check = Command::new(tool("e2fsck").unwrap());
    let output = check.arg("-fn").arg(&image).output().unwrap();
    let text = said(&output);
    assert!(
        output.status.success() && !text.contains("journal"),
        "{text}"
    );
    std::fs::remove_file(image).unwrap();
}

#[test]
fn a_guest_boots_is_snapshotted_while_it_runs_and_goes_on() {
    let Some(kernel) = kernel("a_guest_boots_is_snapshotted_while_it_runs_and_goes_on") else {
        return;
    };
    let rig = Rig::new();
    tree(&rig, Some(&kernel));
    rig.ok("build tree base --size 512M --quiet");
    let mut guest = Talk::start(
        &rig,
        "base --session s --snapshot-on-exit after --quiet",
        // ext4 does not show an option in /proc/mounts that its superblock has as well.
        "set -e; tr ' ' '\\n' < /proc/cmdline | grep ^rootflags; awk '$2 == \"/\" { print $3, $4 }' /proc/mounts; grep -x discard /proc/fs/ext4/vda/options; \
         seq 200000 > /data/numbers; seq 9 > /data/gone; rm /data/gone; \
         echo held; read word; echo $word > /data/word; echo to nobody >&2; kill -TERM $$",
    );
    guest.hears(&rig, "rootflags=discard,noatime,lazytime");
    guest.hears(&rig, "ext4 rw,lazytime,noatime");
    guest.hears(&rig, "discard");
    guest.hears(&rig, "held");
    // Two that hold it at once would let it go for each other.
    let beside = rig.command("snapshot s beside --json".split(' '));
    let beside = { beside }.stdout(Stdio::piped()).spawn().unwrap();
    let taken = rig.json("snapshot s while --fs-aware");
    let beside = beside.wait_with_output().unwrap();
    let beside: serde_json::Value = serde_json::from_slice(&beside.stdout).unwrap();
    let dirty = [taken, beside].map(|taken| {
        assert_eq!(taken["guest"], "frozen", "{taken}");
        taken["dirty_blocks"].as_u64().unwrap()
    });
    assert!(dirty.iter().sum::<u64>() > 300, "{dirty:?}");
    guest.says("went-on");
    let log = guest.ends_with(&rig, 128 + 15);
    assert_eq!(log, "to nobody\n");
    is_clean(&rig, "while");
    is_clean(&rig, "after");
    // A fork has what was there then, and nothing of later; what it writes is its own, and dropped.
    let mut fork = Talk::start(
        &rig,
        "while --json",
        "cat > /data/word; tail -n 1 /data/numbers; ls /data; cat /data/word; no-such-program",
    );
    fork.says("of the fork");
    drop(fork.input.take());
    let mut result = String::new();
    std::io::Read::read_to_string(&mut fork.output, &mut result).unwrap();
    let log = fork.ends_with(&rig, 127);
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert!(
        log.contains("200000\nlost+found\nnumbers\nword\nof the fork\n")
            || log.contains("200000\nnumbers\nword\nof the fork\n"),
        "{log}"
    );
    assert_eq!(
        (
            &result["exit_code"],
            &result["accel"],
            &result["ended_cleanly"],
            &result["session"]
        ),
        (
            &127.into(),
            &"tcg".into(),
            &true.into(),
            &serde_json::Value::Null
        ),
        "{result}"
    );
    assert_eq!(
        result["kernel_release"],
        kernel.modules().file_name().unwrap().to_str().unwrap()
    );
    // What was written after it is in the session, and in the other one.
    rig.export("after");
    let word = run(
        "debugfs",
        [
            "-R",
            "cat /data/word",
            rig.path("export.raw").to_str().unwrap(),
        ],
    );
    // Its inode holds it, with room for more.
    assert_eq!(word.trim_end_matches('\0'), "went-on\n");
}

/// A small tree has no package manager, no dynamic linker, no thousands of files.
#[test]
fn a_debian_boots_from_its_template_and_so_does_a_fork() {
    let test = "a_debian_boots_from_its_template_and_so_does_a_fork";
    let sources = "/etc/apt/sources.list.d/debian.sources";
    if !have(test, &["mmdebstrap"]) {
        return;
    }
    let Some(kernel) = kernel(test) else {
        return;
    };
    let rig = Rig::new();
    let tree = rig.path("debian.tar");
    let make = [
        "--quiet",
        "--variant=minbase",
        "bookworm",
        tree.to_str().unwrap(),
        sources,
    ];
    run("mmdebstrap", make);
    rig.ok("build debian.tar base --size 1G --quiet");
    let with = format!(
        "--quiet --kernel {} --modules {}",
        kernel.program().display(),
        kernel.modules().display()
    );
    let mut guest = Talk::start(
        &rig,
        &format!("base --session s {with}"),
        "set -e; findmnt -rno FSTYPE,OPTIONS /; tar -cf /var/etc.tar etc && md5sum /var/etc.tar > /var/sum; \
         echo held; read word; rm /var/etc.tar; dpkg --verify base-files; echo $word",
    );
    guest.hears(&rig, "ext4 rw,noatime,lazytime");
    guest.hears(&rig, "held");
    assert_eq!(rig.json("snapshot s while")["guest"], "frozen");
    guest.says("went on");
    guest.hears(&rig, "went on");
    guest.ends_with(&rig, 0);
    is_clean(&rig, "while");
    let mut fork = Talk::start(&rig, &format!("while {with}"), "md5sum -c /var/sum");
    fork.hears(&rig, "/var/etc.tar: OK");
    fork.ends_with(&rig, 0);
}

#[test]
fn a_guest_that_is_killed_leaves_nothing_behind_but_its_session() {
    let test = "a_guest_that_is_killed_leaves_nothing_behind_but_its_session";
    let Some(kernel) = kernel(test) else {
        return;
    };
    let rig = Rig::new();
    let Some(store) = Tmpfs::mount(test, &rig, "store", 40) else {
        return;
    };
    tree(&rig, None);
    rig.ok("build tree base --size 64M --quiet");
    let with = format!(
        "--session s --kernel {} --modules {}",
        kernel.program().display(),
        kernel.modules().display()
    );
    let mut guest = Talk::start(
        &rig,
        &format!("base {with}"),
        "echo one > /data/one; sync; echo synced; sleep 1000",
    );
    guest.hears(&rig, "synced");
    let qemu = guest.qemu();
    let name = std::fs::read_to_string(format!("/proc/{qemu}/comm")).unwrap();
    assert!(name.starts_with("qemu-system"), "{name}");
    guest.child.kill().unwrap();
    guest.child.wait().unwrap();
    until_by(Instant::now() + LONG, "QEMU to end", || {
        let stat = std::fs::read_to_string(format!("/proc/{qemu}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    let mut left: Vec<_> = std::fs::read_dir(rig.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["log", "s", "store", "tree"]);
    // It goes on; and a signal ends it well.
    let mut guest = Talk::start(
        &rig,
        &format!("{with} --snapshot-on-exit end"),
        "cat /data/one; echo two > /data/two; echo ready; sleep 1000",
    );
    guest.hears(&rig, "one");
    guest.hears(&rig, "ready");
    kill_process(Pid::from_child(&guest.child), Signal::TERM).unwrap();
    let log = guest.ends_with(&rig, 125);
    assert!(
        log.contains("turned off cleanly") && log.contains("interrupted"),
        "{log}"
    );
    is_clean(&rig, "end");
    let mut guest = Talk::start(
        &rig,
        &format!("{with} --timeout 12s"),
        "cat /data/two; sleep 1000",
    );
    let log = guest.ends_with(&rig, 124);
    assert!(log.contains("--timeout"), "{log}");
    // A store that is full is waited for, but not by who wants to end.
    let mut guest = Talk::start(
        &rig,
        &format!("{with} --snapshot-on-exit never"),
        "head -c 1000000 /dev/urandom > /data/three; echo written; read word",
    );
    guest.hears(&rig, "written");
    store.fill_up();
    guest.says("end");
    until_by(Instant::now() + LONG, "the snapshot to be tried", || {
        let log = std::fs::read_to_string(rig.path("log")).unwrap();
        log.contains("storing never failed").then_some(())
    });
    kill_process(Pid::from_child(&guest.child), Signal::TERM).unwrap();
    let log = guest.ends_with(&rig, 125);
    assert!(log.contains("cancelled"), "{log}");
    std::fs::remove_file(rig.store().join("tmp/filler")).unwrap();
    let taken = rig.json("snapshot s later");
    assert!(taken["dirty_blocks"].as_u64().unwrap() > 240, "{taken}");
}

/// script(1) gives it a terminal.
#[test]
fn a_shell_on_its_console_has_the_terminal_until_it_ends() {
    let test = "a_shell_on_its_console_has_the_terminal_until_it_ends";
    let Some(kernel) = kernel(test) else {
        return;
    };
    if !have(test, &["script", "stty"]) {
        return;
    }
    let rig = Rig::new();
    tree(&rig, None);
    rig.ok("build tree base --size 64M --quiet");
    let inside = format!(
        "stty rows 33 cols 77; before=$(stty -g); {} --store {} run base --quiet --accel tcg --session {} --kernel {} --modules {}; \
         code=$?; [ \"$before\" = \"$(stty -g)\" ] && echo as before; exit $code",
        COWSLIP,
        rig.store().display(),
        rig.path("s").display(),
        kernel.program().display(),
        kernel.modules().display()
    );
    let mut typing = Command::new(tool("script").unwrap());
    let mut typing = typing
        .args(["-qec", &inside, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = typing.stdin.take().unwrap();
    let mut seen = BufReader::new(typing.stdout.take().unwrap()).split(b'\n');
    let mut sees = |wanted: &str| {
        let line = seen.by_ref().map(|line| line.unwrap()).find(|line| {
            let line = String::from_utf8_lossy(line);
            line.trim_end().ends_with(wanted)
        });
        assert!(line.is_some(), "{wanted}");
    };
    // As soon as there is a shell: nothing that was typed before is lost. Ctrl-C is for what runs there.
    writeln!(
        keys,
        "stty size; echo $((6 * 7)) > /data/typed; sh -c 'tty; exec sleep 1000'"
    )
    .unwrap();
    sees("33 77");
    sees("/dev/ttyS0");
    keys.write_all(&[3]).unwrap();
    writeln!(keys, "echo in$?errupted; exit 7").unwrap();
    sees("in130errupted");
    sees("as before");
    let status = until_by(Instant::now() + LONG, "the shell's end", || {
        typing.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(7));
    // It is as after any other end.
    rig.ok("snapshot s after");
    is_clean(&rig, "after");
}

#[test]
fn what_cannot_be_run_says_why_and_begins_no_session() {
    if !have(
        "what_cannot_be_run_says_why_and_begins_no_session",
        &["mkfs.ext4", "busybox"],
    ) {
        return;
    }
    let rig = Rig::new();
    tree(&rig, None);
    rig.ok("build tree base --size 64M --quiet");
    rig.import("noise", &vec![7; 1 << 20]);
    let fails = |mut command: Command, wanted: &str| {
        let output = command.output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(text.contains(wanted), "{wanted}: {text}");
        assert!(!rig.path("s").exists(), "{text}");
    };
    let words = |line: &str| rig.command(line.split_whitespace());
    let mut bare = words("run base --session s -- true");
    bare.env("PATH", rig.path("nowhere"));
    fails(bare, "Debian: qemu-system-x86");
    if !have(
        "what_cannot_be_run_says_why_and_begins_no_session",
        &["qemu-system-x86_64", "setpriv"],
    ) {
        return;
    }
    fails(words("run base -- true"), "the image has none in /boot");
    fails(
        words("run base --kernel nowhere -- true"),
        "nowhere: No such file",
    );
    fails(
        words("run base --kernel tree/bin/busybox -- true"),
        "is no Linux kernel",
    );
    fails(words("run noise -- true"), "noise holds no ext4");
    fails(words("run base --memory 32M -- true"), "64 MiB");
    fails(words("run nobody --session s -- true"), "nobody");
}
