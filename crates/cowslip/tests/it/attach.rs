//! A block device of the kernel, with real file systems on it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bytes::{BLOCK, MIB, assert_same, noise};
use crate::devices::{Devices, gone};
use crate::rig::{PATIENCE, said, until};
use crate::tools::{run, tool, unmount};

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

fn blocks(info: &Value, what: &str) -> u64 {
    info[what]
        .as_u64()
        .unwrap_or_else(|| panic!("{what} in {info}"))
}

/// The content of a file that has a number.
fn numbered(i: u64) -> Vec<u8> {
    noise(i, 1000 + 777 * usize::try_from(i % 50).unwrap())
}

/// Files that come and go on a file system, and what of it is in the snapshots.
fn comes_and_goes(test: &str, mkfs: &str, options: &[&str]) {
    let Some(devices) = Devices::new(test, &[mkfs, "fstrim"]) else {
        return;
    };
    let rig = &devices.rig;
    devices.empty("base", 320);
    let (served, device) = devices.attach("base --session s");
    let path = device.to_str().unwrap();
    run(mkfs, options.iter().copied().chain([path]));
    let mnt = devices.mount_at(&device, "mnt");
    let kept = noise(1, 4 * MIB);
    write_synced(&mnt.join("kept"), &kept);
    write_synced(&mnt.join("gone"), &noise(2, 24 * MIB));
    run("sync", ["-f", mnt.to_str().unwrap()]);
    let before = rig.json("snapshot s before");
    let gone_blocks = (24 * MIB / BLOCK) as u64;
    assert!(blocks(&before, "dirty_blocks") > gone_blocks, "{before}");
    // Rewritten, and deleted.
    let rewritten = noise(3, MIB);
    let file = OpenOptions::new()
        .write(true)
        .open(mnt.join("kept"))
        .unwrap();
    file.write_all_at(&rewritten, 12345).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // xfs frees what was deleted behind the requests; a trim before that finds nothing.
    let free_bytes = || {
        let stat = rustix::fs::statvfs(&mnt).unwrap();
        stat.f_bfree * stat.f_frsize
    };
    let wanted = free_bytes() + (23 * MIB) as u64;
    fs::remove_file(mnt.join("gone")).unwrap();
    run("sync", ["-f", mnt.to_str().unwrap()]);
    let is_freed = || (free_bytes() >= wanted).then_some(());
    until("the deleted file's room to be free", is_freed);
    run("sync", ["-f", mnt.to_str().unwrap()]);
    run("fstrim", [mnt.to_str().unwrap()]);
    rig.ok("snapshot s after");
    let diff = rig.json("diff before after");
    // Of smaller blocks, some share one of ours with what stays.
    assert!(blocks(&diff, "zeroed_blocks") >= gone_blocks - 8, "{diff}");
    assert!(blocks(&diff, "changed_blocks") < gone_blocks / 4, "{diff}");
    let after = rig.inspect("after");
    assert!(blocks(&after, "dirty_blocks") < gone_blocks / 4, "{after}");
    // Over the journal of a file system that is mounted.
    let copy = devices.dir("copy");
    let mounted = devices.mount("after copy");
    let mut wanted = kept;
    wanted[12345..12345 + MIB].copy_from_slice(&rewritten);
    assert_same(&fs::read(copy.join("kept")).unwrap(), &wanted, "the copy");
    assert_same(&fs::read(mnt.join("kept")).unwrap(), &wanted, "the first");
    assert!(!copy.join("gone").exists());
    mounted.end();
    served.end_within(PATIENCE);
    devices.assert_nothing_left();
}

#[test]
fn files_on_ext4() {
    let lazy = "lazy_itable_init=1,lazy_journal_init=1,discard";
    comes_and_goes("files_on_ext4", "mkfs.ext4", &["-q", "-b4096", "-E", lazy]);
}

#[test]
fn files_on_ext4_with_blocks_smaller_than_ours() {
    let test = "files_on_ext4_with_blocks_smaller_than_ours";
    comes_and_goes(test, "mkfs.ext4", &["-q", "-b1024"]);
}

#[test]
fn files_on_xfs() {
    comes_and_goes("files_on_xfs", "mkfs.xfs", &["-q", "-f"]);
}

#[test]
fn files_on_btrfs() {
    comes_and_goes("files_on_btrfs", "mkfs.btrfs", &["-q", "-f"]);
}

/// Parts of sectors and blocks, zeros of all kinds: the block device against a buffer.
#[test]
fn the_device_reads_as_what_was_written() {
    let test = "the_device_reads_as_what_was_written";
    let Some(devices) = Devices::new(test, &["fallocate", "blkdiscard"]) else {
        return;
    };
    let rig = &devices.rig;
    let mut wanted = noise(1, 8 * MIB);
    rig.import("base", &wanted);
    let (served, device) = devices.attach("base --session s");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&device)
        .unwrap();
    for (seed, at, len) in [
        (2, 1, 1),
        (3, 4095, 2),
        (4, 8191, 70_001),
        (5, 7 * MIB + 3, MIB - 3),
    ] {
        let bytes = noise(seed, len);
        file.write_all_at(&bytes, at as u64).unwrap();
        wanted[at..at + len].copy_from_slice(&bytes);
    }
    file.sync_all().unwrap();
    let path = device.to_str().unwrap();
    let at = |tool, flags: &[&str], offset: usize, len: usize| {
        let numbers = [format!("-o{offset}"), format!("-l{len}"), path.to_owned()];
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        run(tool, flags.chain(numbers));
    };
    // Zeros that must be exact, in sectors: parts of blocks at both ends.
    for (tool, flags, offset, len) in [
        ("fallocate", &["-p", "-n"][..], MIB + 512, 3 * 4096 + 1024),
        ("fallocate", &["-z", "-n"][..], 2 * MIB + 1024, 512),
        ("fallocate", &["-z", "-n"][..], 3 * MIB + 512, MIB),
        ("blkdiscard", &["-z"][..], 5 * MIB + 512, 1024),
        ("blkdiscard", &[][..], 6 * MIB, 64 << 10),
    ] {
        at(tool, flags, offset, len);
        wanted[offset..offset + len].fill(0);
    }
    file.sync_all().unwrap();
    let mut found = Vec::new();
    File::open(&device)
        .unwrap()
        .read_to_end(&mut found)
        .unwrap();
    assert_same(&found, &wanted, "the block device");
    drop(file);
    rig.ok("snapshot s taken");
    assert_same(&rig.export("taken"), &wanted, "the snapshot");
    // Whole blocks only: of the hole, of the zeros, of the discard.
    assert_eq!(blocks(&rig.inspect("taken"), "zero_blocks"), 2 + 255 + 16);
    served.end_within(PATIENCE);
    devices.assert_nothing_left();
}

#[test]
fn what_was_synced_is_in_a_snapshot_taken_meanwhile() {
    let test = "what_was_synced_is_in_a_snapshot_taken_meanwhile";
    let Some(devices) = Devices::new(test, &["mkfs.ext4"]) else {
        return;
    };
    let rig = &devices.rig;
    devices.empty("base", 128);
    let (served, device) = devices.attach("base --session s");
    run("mkfs.ext4", ["-q", device.to_str().unwrap()]);
    let mnt = devices.mount_at(&device, "mnt");
    let (synced, stop) = (Mutex::new(0u64), AtomicBool::new(false));
    let until_synced = |n: u64| until("files", || (*synced.lock().unwrap() >= n).then_some(()));
    thread::scope(|scope| {
        let writer = || {
            for i in 0.. {
                if stop.load(Ordering::Relaxed) || i == 400 {
                    return;
                }
                write_synced(&mnt.join(format!("f{i}")), &numbered(i));
                *synced.lock().unwrap() = i + 1;
            }
        };
        scope.spawn(writer);
        let mut cuts = Vec::new();
        for name in ["one", "two"] {
            until_synced(20 * (cuts.len() as u64 + 1));
            cuts.push((name, *synced.lock().unwrap()));
            rig.ok(&format!("snapshot s {name}"));
        }
        stop.store(true, Ordering::Relaxed);
        for (name, files) in cuts {
            let copy = devices.dir(name);
            let mounted = devices.mount(&format!("{name} {name}"));
            for i in 0..files {
                let wanted = numbered(i);
                let found = fs::read(copy.join(format!("f{i}"))).unwrap();
                assert_same(&found, &wanted, &format!("f{i} of {files} in {name}"));
            }
            mounted.end();
        }
    });
    served.end_within(PATIENCE);
    devices.assert_nothing_left();
}

#[test]
fn the_end_while_somebody_works_in_it() {
    let test = "the_end_while_somebody_works_in_it";
    let Some(devices) = Devices::new(test, &["mkfs.ext4"]) else {
        return;
    };
    devices.empty("base", 64);
    let (served, device) = devices.attach("base --session s");
    run("mkfs.ext4", ["-q", device.to_str().unwrap()]);
    let mnt = devices.mount_at(&device, "mnt");
    write_synced(&mnt.join("synced"), &noise(1, MIB));
    // Written, not synced, and held open.
    let mut held = File::create(mnt.join("held")).unwrap();
    held.write_all(&noise(2, MIB)).unwrap();
    let said = served.end_within(PATIENCE);
    assert!(
        said.contains("is in use; it is unmounted all the same"),
        "{said}"
    );
    assert!(said.contains("still in use"), "{said}");
    assert_eq!(devices.mounts(), [""; 0]);
    // Whoever held it is told, and holds nothing up.
    let failed = held
        .write_all(&noise(3, MIB))
        .and_then(|()| held.sync_all());
    assert!(failed.is_err());
    drop(held);
    gone("the loop device", || !devices.loops().is_empty());
    devices.rig.ok("detach --stale");
    devices.assert_nothing_left();
    // What was synced is there, and what was not, because it was unmounted.
    devices.dir("mnt");
    let mounted = devices.mount("base mnt --session s");
    assert_same(
        &fs::read(mnt.join("synced")).unwrap(),
        &noise(1, MIB),
        "synced",
    );
    assert_same(&fs::read(mnt.join("held")).unwrap(), &noise(2, MIB), "held");
    mounted.end();
    devices.assert_nothing_left();
}

#[test]
fn a_server_that_is_killed_leaves_what_detach_ends() {
    let test = "a_server_that_is_killed_leaves_what_detach_ends";
    let Some(devices) = Devices::new(test, &["mkfs.ext4"]) else {
        return;
    };
    let rig = &devices.rig;
    devices.empty("base", 128);
    let (served, device) = devices.attach("base --session s");
    let (other, other_device) = devices.attach("base --session other");
    assert_ne!(device, other_device);
    run("mkfs.ext4", ["-q", device.to_str().unwrap()]);
    let mnt = devices.mount_at(&device, "mnt");
    let synced = Mutex::new(0u64);
    thread::scope(|scope| {
        let writer = || {
            for i in 0u64.. {
                let written = File::create(mnt.join(format!("f{i}"))).and_then(|mut file| {
                    file.write_all(&noise(i, 30_000))?;
                    file.sync_all()
                });
                match written {
                    Ok(()) => *synced.lock().unwrap() = i + 1,
                    Err(_) => return,
                }
            }
        };
        scope.spawn(writer);
        until("files", || (*synced.lock().unwrap() >= 20).then_some(()));
        served.kill();
    });
    let dry = rig.json("detach --stale --dry-run");
    assert_eq!(dry["stale"].as_array().unwrap().len(), 1, "{dry}");
    assert_eq!(
        dry["stale"][0]["devices"][0],
        device.to_str().unwrap(),
        "{dry}"
    );
    assert_eq!(dry["stale"][0]["mounts"][0], mnt.to_str().unwrap(), "{dry}");
    assert_eq!(devices.mounts().len(), 1);
    let ended = rig.json("detach --stale");
    assert_eq!(ended["stale"][0]["is_gone"], true, "{ended}");
    assert_eq!(devices.mounts(), [""; 0]);
    assert_eq!(devices.loops().len(), 1, "the other one is not touched");
    File::open(&other_device)
        .unwrap()
        .read_exact(&mut [0; 512])
        .unwrap();
    other.end();
    devices.assert_nothing_left();
    let mounted = devices.mount("base mnt --session s");
    for i in 0..*synced.lock().unwrap() {
        let found = fs::read(mnt.join(format!("f{i}"))).unwrap();
        assert_same(&found, &noise(i, 30_000), &format!("f{i}"));
    }
    mounted.end();
    devices.assert_nothing_left();
}

/// The moment a loop device is cleared its number is anybody's, and what is there then is not ours.
#[test]
fn a_number_that_is_another_ones_by_now_is_left_alone() {
    let test = "a_number_that_is_another_ones_by_now_is_left_alone";
    let Some(devices) = Devices::new(test, &["mkfs.ext4"]) else {
        return;
    };
    let rig = &devices.rig;
    devices.empty("base", 64);
    fs::write(rig.path("other.raw"), noise(1, MIB)).unwrap();
    let (is_taken, bin) = (rig.path("taken"), devices.dir("bin"));
    // An umount behind which somebody clears the device, and has its number for a file of theirs.
    let script = r#"#!/bin/sh
        "$UMOUNT" "$@" && losetup --detach "$DEVICE" && losetup "$DEVICE" "$OTHER" && : >"$TAKEN""#;
    fs::write(bin.join("umount"), script).unwrap();
    fs::set_permissions(bin.join("umount"), fs::Permissions::from_mode(0o700)).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)));
    let path = path.unwrap();
    // Another test may be the one that gets the number.
    until("the number to be taken", || {
        let (served, device) = devices.attach("base --session s");
        run("mkfs.ext4", ["-q", device.to_str().unwrap()]);
        devices.mount_at(&device, "mnt");
        served.kill();
        let mut command = rig.command(["detach", "--stale"]);
        command.env("PATH", &path);
        command.env("UMOUNT", tool("umount").unwrap());
        command.env("DEVICE", &device);
        command.env("OTHER", rig.path("other.raw"));
        command.env("TAKEN", &is_taken);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        is_taken.exists().then(|| {
            let listed = run(
                "losetup",
                ["--list", "--noheadings", device.to_str().unwrap()],
            );
            run("losetup", ["--detach", device.to_str().unwrap()]);
            assert!(listed.contains("other.raw"), "{listed}");
        })
    });
    devices.assert_nothing_left();
}

#[test]
fn what_is_read_only_refuses_writes() {
    let test = "what_is_read_only_refuses_writes";
    let Some(devices) = Devices::new(test, &["mkfs.ext4"]) else {
        return;
    };
    devices.empty("base", 64);
    let (served, device) = devices.attach("base --session s");
    run("mkfs.ext4", ["-q", device.to_str().unwrap()]);
    let mnt = devices.mount_at(&device, "mnt");
    write_synced(&mnt.join("file"), &noise(1, MIB));
    // Its journal is not replayed, so what is on disk is what counts.
    unmount(&mnt);
    devices.rig.ok("snapshot s made");
    served.end_within(PATIENCE);
    let (served, device) = devices.attach("made --read-only");
    let opened = OpenOptions::new().write(true).open(&device);
    let refused = opened.and_then(|file| file.write_all_at(&[1; 4096], 0));
    let refused = refused.unwrap_err().kind();
    assert_eq!(refused, std::io::ErrorKind::PermissionDenied);
    let mounted = devices.mount("made mnt --read-only");
    assert_same(&fs::read(mnt.join("file")).unwrap(), &noise(1, MIB), "file");
    let refused = File::create(mnt.join("new")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mounted.end();
    served.end_within(PATIENCE);
    devices.assert_nothing_left();
}

#[test]
fn a_mount_that_is_unmounted_ends() {
    let test = "a_mount_that_is_unmounted_ends";
    let Some(devices) = Devices::new(test, &["mkfs.ext4"]) else {
        return;
    };
    devices.empty("base", 64);
    let (served, device) = devices.attach("base --session s");
    run("mkfs.ext4", ["-q", device.to_str().unwrap()]);
    served.end_within(PATIENCE);
    let mnt = devices.dir("mnt");
    let mut mounted = devices.mount("base mnt --session s");
    write_synced(&mnt.join("file"), &noise(1, MIB));
    // Another test that starts a program has our files open in it for a moment.
    let umount = || {
        Command::new(tool("umount").unwrap())
            .arg(&mnt)
            .status()
            .unwrap()
    };
    until("umount", || umount().success().then_some(()));
    assert!(mounted.wait_within(PATIENCE).success());
    devices.assert_nothing_left();
    // It has a socket for snapshots as any other.
    let mounted = devices.mount("base mnt --session s");
    assert_same(&fs::read(mnt.join("file")).unwrap(), &noise(1, MIB), "file");
    devices.rig.ok("snapshot s taken");
    mounted.end();
    devices.assert_nothing_left();
}

#[test]
fn devices_come_and_go() {
    let Some(devices) = Devices::new("devices_come_and_go", &["mkfs.ext4"]) else {
        return;
    };
    devices.rig.import("base", &noise(1, MIB));
    for round in 0..20u64 {
        let (served, device) = devices.attach("base --session s");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&device)
            .unwrap();
        let mut first = [0; 8];
        file.read_exact_at(&mut first, 4096).unwrap();
        assert!(
            round == 0 || u64::from_le_bytes(first) == round,
            "round {round}"
        );
        file.write_all_at(&(round + 1).to_le_bytes(), 4096).unwrap();
        // Not synced: the end of the device writes it back.
        drop(file);
        served.end();
        devices.assert_nothing_left();
    }
}

#[test]
fn mistakes_are_refused_before_anything_is_begun() {
    let test = "mistakes_are_refused_before_anything_is_begun";
    let Some(devices) = Devices::new(test, &[]) else {
        return;
    };
    let rig = &devices.rig;
    rig.import("base", &noise(1, MIB));
    rig.fails(3, "attach nothing");
    rig.fails(2, "attach");
    rig.fails(2, "attach base --via telepathy");
    rig.fails(3, "mount base nowhere");
    rig.fails(2, "detach");
    devices.dir("mnt/below");
    let refused = rig.fails(2, "mount base mnt --session mnt/below/not-there/s");
    assert!(refused.contains("would be hidden"), "{refused}");
    let refused = rig.fails(1, "mount base mnt --session s");
    assert!(
        refused.contains("no file system that is known"),
        "{refused}"
    );
    devices.assert_nothing_left();
    // A losetup that fails.
    let bin = devices.dir("bin");
    fs::write(bin.join("losetup"), "#!/bin/sh\necho no luck >&2\nexit 1\n").unwrap();
    fs::set_permissions(bin.join("losetup"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = rig.command(["attach", "base", "--via=fuse"]);
    let output = command.env("PATH", &bin).output().unwrap();
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("losetup: no luck"), "{told}");
    devices.assert_nothing_left();
}

#[test]
fn an_early_end_leaves_nothing() {
    let Some(devices) = Devices::new("an_early_end_leaves_nothing", &[]) else {
        return;
    };
    devices.rig.import("base", &noise(1, MIB));
    for millis in [0, 5, 10, 20, 30, 40, 50, 60, 80, 120, 160] {
        for signal in [Signal::TERM, Signal::KILL] {
            let mut command = devices.rig.command(["attach", "base", "--session", "s"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            // Not an event that is waited for: any moment will do.
            thread::sleep(Duration::from_millis(millis));
            kill_process(Pid::from_child(&child), signal).unwrap();
            until("its end", || child.try_wait().unwrap());
            if signal == Signal::KILL {
                // A child that was at work when its parent was killed may have to end first.
                until("all of it to go", || {
                    devices
                        .rig
                        .run("detach --stale")
                        .status
                        .success()
                        .then_some(())
                });
            }
            devices.assert_nothing_left();
        }
    }
}

#[test]
fn a_server_that_is_killed_holds_up_nobody_who_writes() {
    let test = "a_server_that_is_killed_holds_up_nobody_who_writes";
    let Some(devices) = Devices::new(test, &[]) else {
        return;
    };
    devices.empty("base", 64);
    let (served, device) = devices.attach("base --session s");
    let file = OpenOptions::new().write(true).open(&device).unwrap();
    // In the kernel's cache of the device, most of it.
    file.write_all_at(&noise(1, 32 * MIB), 0).unwrap();
    served.kill();
    assert!(file.sync_all().is_err());
    drop(file);
    devices.rig.ok("detach --stale");
    devices.assert_nothing_left();
}
