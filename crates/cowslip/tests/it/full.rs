//! A full disk: what cannot be done fails and says so, the rest goes on, and all of it works again
//! when there is room. On a small tmpfs of its own, so only as root.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Stdio};

use cowslip_nbd::{Client, ClientError, Errno};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bytes::{MIB, assert_same, cache_room, noise};
use crate::rig::{Rig, said, until};
use crate::tools::{have, run, skip};

pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(test: &str, rig: &Rig, name: &str, mib: usize) -> Option<Self> {
        if !have(test, &["mount", "umount"]) {
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            skip(test, "root, for a tmpfs of its own");
            return None;
        }
        let path = rig.path(name);
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={mib}m");
        run(
            "mount",
            ["-t", "tmpfs", "-o", &size, "tmpfs", path.to_str().unwrap()],
        );
        Some(Self(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: after a panic a server may still have files open there.
        drop(
            std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .output(),
        );
    }
}

/// Writes MiB after MiB until the disk is full; how many went in.
fn fill(client: &mut Client, seed: u64) -> usize {
    for i in 0..32 {
        match client.write((i * MIB) as u64, &noise(seed + i as u64, MIB)) {
            Ok(()) => {}
            Err(ClientError::Refused {
                errno: Errno::NoSpc,
                ..
            }) => return i,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it is not full");
}

#[test]
fn a_session_on_a_full_disk() {
    let rig = Rig::new();
    rig.import("base", &noise(1, 32 * MIB));
    let Some(tmpfs) = Tmpfs::mount("a_session_on_a_full_disk", &rig, "s", 12) else {
        return;
    };
    let served = rig.serve("base --session s");
    let mut client = served.client();
    let written = fill(&mut client, 100);
    assert!(written >= 8, "{written}");
    // The connection lives, reads go on, what is in place can be written again.
    let mut bytes = vec![0; 32 * MIB];
    client.read(0, &mut bytes).unwrap();
    client.write(0, &noise(200, MIB)).unwrap();
    client.flush().unwrap();
    client
        .write((written as u64) << 20, &noise(1, MIB))
        .unwrap_err();
    // So do trims and zeroes, and they make room.
    for i in 0..200 {
        client.trim((20 << 20) + i * 8192, 4096).unwrap();
        client.write_zeroes((24 << 20) + i * 8192, 4096).unwrap();
    }
    client.trim(0, 2 << 20).unwrap();
    client.write_zeroes(2 << 20, 2 << 20).unwrap();
    let room = || cache_room(&rig.path("s"));
    until("room", || {
        (room() < (written as u64 - 3) << 20).then_some(())
    });
    client.write(24 << 20, &noise(300, 2 * MIB)).unwrap();
    client.flush().unwrap();
    let before = served.read_all();
    assert!(before[24 * MIB..26 * MIB] == noise(300, 2 * MIB));
    assert!(before[..4 * MIB].iter().all(|b| *b == 0));
    for i in 4..written {
        assert!(
            before[i * MIB..(i + 1) * MIB] == noise(100 + i as u64, MIB),
            "MiB {i}"
        );
    }
    // kill -9 on a full disk loses nothing either.
    fill(&mut client, 400);
    let before = served.read_all();
    served.kill();
    let served = rig.serve("--session s");
    assert_same(&served.read_all(), &before, "after the kill");
    // A snapshot wants a new cache: no room for its journal, no snapshot, nothing lost.
    let output = rig.run("snapshot s one");
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        served.client().trim(4 << 20, 4 << 20).unwrap();
        let snapshot = || rig.run("snapshot s one").status.success().then_some(());
        until("room for a snapshot", snapshot);
    }
    // Sealed, the session is empty, and there is room again.
    let held = served.read_all();
    assert_same(&rig.export("one"), &held, "the snapshot");
    until("the sealed cache to go", || {
        (room() < MIB as u64).then_some(())
    });
    served.client().write(0, &noise(500, 8 * MIB)).unwrap();
    served.end();
    drop(tmpfs);
}

impl Tmpfs {
    /// Takes all the room that is left.
    pub(crate) fn fill_up(&self) {
        let mut filler = std::fs::File::create(self.0.join("tmp/filler")).unwrap();
        let page = [1; 4096];
        while filler.write_all(&page).is_ok() {}
    }
}

/// A command that waits, and what it says meanwhile.
struct Waiting {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Waiting {
    fn start(rig: &Rig, line: &str) -> Self {
        let mut command = rig.command(line.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    fn hears(&mut self, text: &str) {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        assert!(line.contains(text), "{line}");
    }
}

/// The snapshots on their way in the one session that there is.
fn on_their_way(rig: &Rig) -> Vec<Value> {
    let sessions = rig.json("sessions");
    sessions[0]["live"]["sealing"].as_array().unwrap().clone()
}

#[test]
fn snapshots_into_a_full_store_wait_for_room() {
    let test = "snapshots_into_a_full_store_wait_for_room";
    let rig = Rig::new();
    let Some(tmpfs) = Tmpfs::mount(test, &rig, "store", 40) else {
        return;
    };
    rig.import("base", &noise(1, 8 * MIB));
    rig.import("unwanted", &noise(9, 24 * MIB));
    let served = rig.serve("base --session s");
    let mut client = served.client();
    client.write(0, &noise(2, 8 * MIB)).unwrap();
    let one = served.read_all();
    tmpfs.fill_up();
    let objects = || {
        let count = |dir| std::fs::read_dir(tmpfs.0.join(dir)).unwrap().count();
        (count("layers"), count("headers"), count("tmp"))
    };
    let before = objects();

    // It is taken, says that it waits, and goes on waiting; whoever does not want to wait is told.
    let mut waiting = Waiting::start(&rig, "snapshot s one --timeout 5m");
    waiting.hears("tried again");
    client.write(4096, b"after one").unwrap();
    let said = rig.fails(6, "snapshot s two --timeout 0s");
    assert!(
        said.contains("two is taken")
            && said.contains("storing one failed")
            && said.contains("space"),
        "{said}"
    );
    let two = served.read_all();
    rig.fails(6, "snapshot s unwanted --timeout 0s --replace");
    client.write(9000, b"after two").unwrap();
    let three = served.read_all();
    // A signal ends the command, not the snapshot. (Not Ctrl-C's: what runs behind a shell ignores that one.)
    let mut interrupted = Waiting::start(&rig, "snapshot s three --timeout 5m");
    interrupted.hears("storing one failed");
    kill_process(Pid::from_child(&interrupted.child), Signal::TERM).unwrap();
    let status = interrupted.child.wait().unwrap();
    assert_eq!(status.signal(), Some(15), "{status}");
    client.write(20_000, b"after three").unwrap();
    let now = served.read_all();
    let way = on_their_way(&rig);
    let names: Vec<_> = way.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one", "two", "unwanted", "three"]);
    assert!(way[0]["failed_attempts"].as_u64().unwrap() > 0, "{way:?}");
    assert!(way[0]["last_error"].as_str().unwrap().contains("space"));
    assert!(way[0]["next_try_ms"].as_u64().unwrap() <= 30_000);
    assert!(rig.ok("sessions").contains("ON ITS WAY"));
    // An attempt may be going on just now.
    until("nothing to be left of the attempts", || {
        (objects() == before).then_some(())
    });
    let said = rig.fails(1, "snapshot s two");
    assert!(
        said.contains("two already"),
        "a name on its way is taken: {said}"
    );
    rig.fails(3, "inspect one");

    // One is given up: its name is free, its bytes stay.
    assert_eq!(
        rig.json("snapshot s unwanted --cancel")["cancelled"],
        "unwanted"
    );
    rig.fails(3, "snapshot s unwanted --cancel");
    assert_eq!(on_their_way(&rig).len(), 3);
    assert_same(&served.read_all(), &now, "the session");

    // A collection works on the full disk. With the room that it makes the others appear.
    rig.ok("rm unwanted");
    assert!(rig.json("gc")["removed_bytes"].as_u64().unwrap() > 20 << 20);
    assert!(waiting.child.wait().unwrap().success());
    until("the others", || on_their_way(&rig).is_empty().then_some(()));
    for (name, bytes) in [("one", &one), ("two", &two), ("three", &three)] {
        rig.ok(&format!("verify {name}"));
        assert_same(&rig.export(name), bytes, name);
    }
    rig.fails(3, "inspect unwanted");
    assert_same(&served.read_all(), &now, "the session");
    // What was frozen is given back.
    until("room", || {
        (cache_room(&rig.path("s")) < MIB as u64).then_some(())
    });
    assert_eq!(rig.json("gc")["removed_bytes"], 0);
    // Said once, and not again with each attempt.
    let said = served.end();
    assert_eq!(said.matches("not stored yet").count(), 1, "{said}");
}

#[test]
fn a_server_killed_with_a_full_store_goes_on_there() {
    let test = "a_server_killed_with_a_full_store_goes_on_there";
    let rig = Rig::new();
    let Some(tmpfs) = Tmpfs::mount(test, &rig, "store", 40) else {
        return;
    };
    rig.import("base", &noise(1, 8 * MIB));
    let served = rig.serve("base --session s");
    served.client().write(0, &noise(2, 8 * MIB)).unwrap();
    let one = served.read_all();
    tmpfs.fill_up();
    rig.fails(6, "snapshot s one --timeout 0s");
    served.kill();
    let served = rig.serve("--session s");
    until("an attempt", || {
        let failed = on_their_way(&rig)[0]["failed_attempts"].as_u64();
        (failed? > 0).then_some(())
    });
    served.client().write(4096, b"more").unwrap();
    rig.fails(6, "snapshot s two --timeout 0s");
    let two = served.read_all();
    served.end();
    // At rest nobody would try again: a new one fails at once, and loses its name; an old one is kept.
    let said = rig.fails(1, "snapshot s rest");
    assert!(said.contains("one, which was asked for before"), "{said}");
    rig.ok("snapshot s one --cancel");
    rig.fails(3, "snapshot s one --cancel");
    std::fs::remove_file(tmpfs.0.join("tmp/filler")).unwrap();
    let served = rig.serve("--session s");
    until("the second", || {
        rig.run("inspect two").status.success().then_some(())
    });
    assert_same(
        &rig.export("two"),
        &two,
        "two, with what was written for one",
    );
    rig.fails(3, "inspect one");
    served.client().write(0, &noise(4, 8 * MIB)).unwrap();
    let now = served.read_all();
    served.end();
    tmpfs.fill_up();
    let said = rig.fails(1, "snapshot s rest");
    assert!(said.contains("space") && said.contains("kept"), "{said}");
    std::fs::remove_file(tmpfs.0.join("tmp/filler")).unwrap();
    rig.ok("snapshot s rest");
    assert_same(&rig.export("rest"), &now, "at rest");
    assert!(one != now, "the cancelled one was another");
}

#[test]
fn an_import_into_a_full_store() {
    let rig = Rig::new();
    let Some(tmpfs) = Tmpfs::mount("an_import_into_a_full_store", &rig, "store", 4) else {
        return;
    };
    rig.file("big.raw", &noise(1, 8 * MIB));
    let said = rig.fails(1, "import big.raw big");
    assert!(said.contains("space"), "{said}");
    assert_eq!(std::fs::read_dir(tmpfs.0.join("tmp")).unwrap().count(), 0);
    rig.file("small.raw", &noise(1, MIB));
    rig.ok("import small.raw small");
    rig.ok("verify small");
}

/// A compaction needs room before it gives any back.
#[test]
fn a_compaction_of_a_full_store() {
    let rig = Rig::new();
    let Some(_tmpfs) = Tmpfs::mount("a_compaction_of_a_full_store", &rig, "small", 24) else {
        return;
    };
    let store = rig.path("small/store");
    let ok = |line: &str| rig.ok(&format!("{line} --store {}", store.display()));
    // Two layers of which a half is needed, and no room for that half once more.
    let (first, second) = (noise(1, 8 * MIB), noise(2, 8 * MIB));
    rig.file("a.raw", &first);
    ok("import a.raw a --format raw --quiet");
    let served = rig.serve(&format!("a --session s --store {}", store.display()));
    let mut client = served.client();
    client.write(0, &second[..6 * MIB]).unwrap();
    drop(client);
    served.end();
    ok("snapshot s b");
    std::fs::remove_dir_all(rig.path("s")).unwrap();
    let id = rig.json(&format!("sessions --store {}", store.display()));
    ok(&format!(
        "sessions --forget {}",
        id[0]["id"].as_str().unwrap()
    ));
    ok("rm a");
    let filler = rig.path("small/filler");
    let room = |bytes: usize| {
        std::fs::write(&filler, vec![1; bytes])
            .map_err(|e| e.kind())
            .err()
    };
    assert_eq!(room(24 * MIB), Some(std::io::ErrorKind::StorageFull));
    let line = format!("compact --store {}", store.display());
    let why = rig.fails(1, &line);
    assert!(why.contains("no space left"), "{why}");
    let want = [&second[..6 * MIB], &first[6 * MIB..]].concat();
    let read = || {
        ok("verify b");
        ok("export b out.raw --replace --quiet");
        std::fs::read(rig.path("out.raw")).unwrap()
    };
    assert_same(&read(), &want, "b, after a compaction that failed");
    // Even a full store is collected.
    ok("gc");
    std::fs::remove_file(&filler).unwrap();
    let done: Value = serde_json::from_str(&ok("compact --json")).unwrap();
    assert!(done["removed_bytes"].as_u64() > Some(7 << 20), "{done}");
    assert_same(&read(), &want, "b, after a compaction");
}
