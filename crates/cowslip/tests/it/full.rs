//! A full disk: what cannot be done fails and says so, the rest goes on, and all of it works again
//! when there is room. On a small tmpfs of its own, so only as root.

use std::path::PathBuf;

use cowslip_nbd::{Client, ClientError, Errno};

use crate::bytes::{MIB, assert_same, cache_room, noise};
use crate::rig::{Rig, said, until};
use crate::tools::{have, run, skip};

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(test: &str, rig: &Rig, name: &str, mib: usize) -> Option<Self> {
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

#[test]
fn a_snapshot_into_a_full_store() {
    let rig = Rig::new();
    let test = "a_snapshot_into_a_full_store";
    let Some(tmpfs) = Tmpfs::mount(test, &rig, "store", 24) else {
        return;
    };
    rig.import("base", &noise(1, 8 * MIB));
    let served = rig.serve("base --session s");
    let mut client = served.client();
    client.write(0, &noise(2, 8 * MIB)).unwrap();
    let filler = tmpfs.0.join("tmp/filler");
    std::fs::write(&filler, vec![1; 12 * MIB]).unwrap();
    for _ in 0..2 {
        let said = rig.fails(1, "snapshot s one");
        assert!(said.contains("space") && said.contains("kept"), "{said}");
        rig.fails(3, "inspect one");
    }
    // Nothing is left of the tries, nothing lost, and it goes on.
    assert_eq!(std::fs::read_dir(tmpfs.0.join("tmp")).unwrap().count(), 1);
    assert_same(&served.read_all(), &noise(2, 8 * MIB), "the session");
    client.write(4096, b"more").unwrap();
    rig.ok("verify base");
    // Killed and served again, it is still all there.
    served.kill();
    let served = rig.serve("--session s");
    let mut wanted = noise(2, 8 * MIB);
    wanted[4096..4100].copy_from_slice(b"more");
    assert_same(&served.read_all(), &wanted, "after the kill");
    std::fs::remove_file(&filler).unwrap();
    rig.ok("snapshot s one");
    rig.ok("verify one");
    let info = rig.inspect("one");
    assert_eq!(
        (&info["dirty_blocks"], &info["parent_name"]),
        (&2048.into(), &"base".into())
    );
    // What was frozen for the tries went into it, and is given back.
    assert!(cache_room(&rig.path("s")) < MIB as u64);
    let out = rig.path("out.raw");
    rig.ok(&format!("export one {}", out.display()));
    assert_same(&std::fs::read(out).unwrap(), &wanted, "the snapshot");
    served.end();
    drop(tmpfs);
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
