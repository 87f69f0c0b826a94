//! Each kernel boots, runs commands, sees what it is shared, and is gone in the end.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use cowslip_machine::{Access, Machine, VERSIONS, have};

const LONG: Duration = Duration::from_secs(120);

#[test]
fn commands_run_in_a_real_kernel_one_after_the_other() {
    for version in VERSIONS {
        let Some(kernel) = have("commands_run_in_a_real_kernel_one_after_the_other", version)
        else {
            return;
        };
        let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (ours, theirs) = (ours.path(), theirs.path());
        std::fs::write(ours.join("told"), "by us\n").unwrap();
        std::fs::write(theirs.join("read"), "only\n").unwrap();
        let machine = Machine::new(&kernel).memory_mib(512);
        let machine = machine
            .share(ours, Access::Write)
            .share(theirs, Access::Read);
        let mut machine = machine.boot();
        let release = machine.sh("uname -r", LONG);
        assert!(release.starts_with(&format!("{version}.")), "{release}");
        // Streams apart, and how it ended.
        let output = machine.run(["sh", "-c", "printf 'a\\0b'; echo c >&2; exit 7"], LONG);
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(
            (&output.stdout[..], &output.stderr[..]),
            (&b"a\0b"[..], &b"c\n"[..])
        );
        let output = machine.run(["sh", "-c", "kill -9 $$"], LONG);
        assert_eq!(output.status.code(), None, "{output:?}");
        let output = machine.run(["no-such-program"], LONG);
        assert_eq!(output.status.code(), Some(127));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-program: No such file"));
        let many = machine.run(["seq", "200000"], LONG).stdout;
        let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
        assert!(many == expected.as_bytes());
        // Who is left behind goes on, and is reaped.
        machine.sh("sleep 1000 > /dev/null 2>&1 & echo $! > /tmp/pid", LONG);
        machine.sh("kill -0 $(cat /tmp/pid) && kill $(cat /tmp/pid)", LONG);
        machine.sh(
            "while kill -0 $(cat /tmp/pid) 2> /dev/null; do sleep 0.1; done",
            LONG,
        );
        // Shares: each sees what the other does; the rest of the tree is its own.
        let at = |dir: &Path, name: &str| dir.join(name).display().to_string();
        let told = machine.sh(&format!("cat {}", at(ours, "told")), LONG);
        assert_eq!(told, "by us\n");
        std::fs::write(ours.join("told"), "again, and more\n").unwrap();
        let told = machine.sh(&format!("cat {0}; echo back > {0}", at(ours, "told")), LONG);
        assert_eq!(told, "again, and more\n");
        assert_eq!(
            std::fs::read_to_string(ours.join("told")).unwrap(),
            "back\n"
        );
        let refused = format!("cat {0} && ! echo x 2> /dev/null > {0}", at(theirs, "read"));
        assert_eq!(machine.sh(&refused, LONG), "only\n");
        let nowhere = "/usr/cowslip-was-here";
        machine.sh(&format!("echo x > {nowhere}"), LONG);
        assert!(!Path::new(nowhere).exists());
        // Modules, by name, and ext4 when the kernel asks for it.
        machine.sh("modprobe nbd && test -b /dev/nbd0 && modprobe loop", LONG);
        let mounts = "truncate -s 30M x && mkfs.ext4 -q x && mkdir m && mount x m";
        machine.sh(&format!("cd /tmp && {mounts}"), LONG);
        let process = format!("/proc/{}", machine.pid());
        assert!(Path::new(&process).exists());
        drop(machine);
        assert!(!Path::new(&process).exists());
    }
}

#[test]
fn a_command_that_takes_too_long_fails_its_test_and_no_machine_outlives_its_thread() {
    let test = "a_command_that_takes_too_long_fails_its_test_and_no_machine_outlives_its_thread";
    let Some(kernel) = have(test, "6.1") else {
        return;
    };
    let (tell, told) = channel();
    let test = thread::spawn(move || {
        // Nobody ends it but the kernel, as where a test is killed.
        let mut machine = ManuallyDrop::new(Machine::new(&kernel).memory_mib(256).boot());
        tell.send(machine.pid()).unwrap();
        machine.run(["sleep", "1000"], Duration::from_millis(500));
    });
    let why = test.join().unwrap_err();
    let why = why.downcast_ref::<String>().unwrap();
    assert!(
        why.starts_with("sleep 1000: it takes too long\n== its console"),
        "{why}"
    );
    let stat = format!("/proc/{}/stat", told.recv().unwrap());
    // It is this process's child, so that it stays as a zombie.
    let give_up = Instant::now() + LONG;
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(Instant::now() < give_up, "QEMU goes on");
        thread::yield_now();
    }
}
