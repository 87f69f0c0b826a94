//! Sessions: who may open one, what it begins from, how large it is, what becomes of it.

use std::process::Stdio;

use cowslip_nbd::{Client, ClientError, Errno};

use crate::bytes::{BLOCK, MIB, assert_same, noise, sum};
use crate::rig::{Rig, Served, said, until};

fn rig() -> Rig {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    rig
}

#[track_caller]
fn refused(outcome: Result<(), ClientError>, errno: Errno) {
    match outcome {
        Err(ClientError::Refused { errno: is, .. }) if is == errno => {}
        other => panic!("not {errno}, but {other:?}"),
    }
}

#[test]
fn two_servers_on_one_session() {
    let rig = rig();
    let served = rig.serve("base --session s");
    for line in [
        "serve base --session s",
        "serve --session s",
        "serve base --session s --read-only",
    ] {
        let said = rig.fails(1, line);
        assert!(said.contains("in use by another process"), "{said}");
    }
    // The first is none the worse for it.
    served.client().write(0, b"still there").unwrap();
    rig.ok("snapshot s one");
    served.end();
    rig.serve("--session s").end();
}

#[test]
fn a_session_that_a_command_has_open_is_served_when_that_is_done() {
    let rig = rig();
    let served = rig.serve("base --session s --size 48M");
    served.client().write(0, &noise(2, 32 * MIB)).unwrap();
    served.end();
    // It has no server to ask: the command opens the session itself, for as long as it seals.
    let mut command = rig.command(["snapshot", "s", "at-rest"]);
    let mut command = command.stdout(Stdio::null()).spawn().unwrap();
    let tmp = rig.store().join("tmp");
    until("the seal to begin", || {
        (sum(&tmp, &|m| m.len()) > 0).then_some(())
    });
    let served = rig.serve("--session s");
    assert!(command.wait().unwrap().success());
    assert_same(
        &served.read_all()[..32 * MIB],
        &noise(2, 32 * MIB),
        "the session",
    );
    served.end();
}

#[test]
fn a_session_that_a_command_has_open_is_forgotten_when_that_is_done() {
    let rig = rig();
    let served = rig.serve("base --session s --size 48M");
    served.client().write(0, &noise(2, 16 * MIB)).unwrap();
    served.end();
    let listed = rig.json("sessions");
    let id = listed[0]["id"].as_str().unwrap();
    let mut command = rig.command(["snapshot", "s", "at-rest"]);
    let mut command = command.stdout(Stdio::null()).spawn().unwrap();
    let tmp = rig.store().join("tmp");
    until("the seal to begin", || {
        (sum(&tmp, &|m| m.len()) > 0).then_some(())
    });
    rig.ok(&format!("sessions --forget {id}"));
    assert!(command.wait().unwrap().success(), "it was not disturbed");
    let listed = rig.json("sessions");
    assert_eq!(listed, serde_json::json!([]));
}

#[test]
fn a_session_path_longer_than_a_socket_address() {
    let rig = rig();
    let long = "d".repeat(60);
    let path = rig.path(&format!("{long}/{long}/{long}"));
    let path = path.to_str().unwrap();
    let mut command = rig.command(["serve", "base", "--session", path]);
    command.arg("--quiet");
    let served = Served::start(command, format!("{path}/nbd.sock").into());
    served.client().write(4096, b"far away").unwrap();
    rig.ok(&format!("snapshot {path} one"));
    served.end();
    rig.ok(&format!("snapshot {path} two"));
    assert_eq!(&rig.export("one")[4096..4104], b"far away");
}

#[test]
fn a_snapshot_at_rest() {
    let rig = rig();
    let served = rig.serve("base --session s");
    served.client().write(8192, &noise(2, 8192)).unwrap();
    let whole = served.read_all();
    served.end();
    let info = rig.json("snapshot s rest");
    assert_eq!(
        (&info["dirty_blocks"], &info["generation"]),
        (&2.into(), &1.into())
    );
    assert_same(&rig.export("rest"), &whole, "the snapshot");
    // The session goes on over it.
    let served = rig.serve("--session s");
    assert_same(&served.read_all(), &whole, "the session");
    served.client().write(0, b"more").unwrap();
    let info = rig.json("snapshot s more");
    assert_eq!(
        (&info["dirty_blocks"], &info["parent_name"]),
        (&1.into(), &"rest".into())
    );
}

#[test]
fn a_session_remembers_its_store_from_wherever_it_was_named() {
    let rig = rig();
    let served = rig.serve("base --session s");
    served.client().write(0, b"x").unwrap();
    served.end();
    // Named relative to a directory that the next user is not in.
    rig.ok("--store store snapshot s one");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = rig.command(["snapshot", rig.path("s").to_str().unwrap(), "two"]);
    let output = command
        .current_dir(&elsewhere)
        .env_remove("COWSLIP_STORE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let mut command = rig.command(["serve", "--session", rig.path("s").to_str().unwrap()]);
    command.current_dir(&elsewhere).env_remove("COWSLIP_STORE");
    Served::start(command, rig.path("s/nbd.sock")).end();
    rig.ok("verify two");
}

#[test]
fn a_name_that_is_taken() {
    let rig = rig();
    rig.import("other", &noise(3, MIB));
    let served = rig.serve("base --session s");
    served.client().write(0, b"written").unwrap();
    for line in ["snapshot s other", "snapshot s base"] {
        let said = rig.fails(1, line);
        assert!(said.contains("--replace"), "{said}");
    }
    rig.ok("snapshot s other --replace");
    assert_eq!(&rig.export("other")[..7], b"written");
    // Also the very name that the session began from: what it reads from stays.
    served.client().write(BLOCK as u64, b"again").unwrap();
    rig.ok("snapshot s base --replace");
    served.end();
    let said = rig.fails(1, "snapshot s base");
    assert!(said.contains("--replace"), "{said}");
    rig.ok("snapshot s base --replace");
    let image = rig.export("base");
    assert_eq!(
        (&image[..7], &image[4096..4101]),
        (&b"written"[..], &b"again"[..])
    );
    assert_eq!(rig.inspect("base")["generation"], 3);
}

#[test]
fn a_snapshot_is_served_again() {
    let rig = rig();
    let served = rig.serve("base --session s");
    let mut client = served.client();
    client.write(4000, &noise(2, 9000)).unwrap();
    client.trim(500_000, 100_000).unwrap();
    rig.ok("snapshot s one");
    client.write(0, &noise(3, 100_000)).unwrap();
    rig.ok("snapshot s two");
    let two = served.read_all();
    served.end();
    let resumed = rig.serve_at("two --read-only", "two.sock");
    assert_same(&resumed.read_all(), &two, "resumed");
    let mut wanted = noise(1, MIB);
    wanted[4000..13000].copy_from_slice(&noise(2, 9000));
    // The whole blocks in it.
    wanted[503_808..598_016].fill(0);
    // And a fork from the first.
    std::fs::remove_dir_all(rig.path("s")).unwrap();
    let served = rig.serve("one --session s");
    assert_same(&served.read_all(), &wanted, "forked");
    served.client().write(0, b"fork").unwrap();
    rig.ok("snapshot s fork");
    let info = rig.inspect("fork");
    assert_eq!(
        (&info["parent_name"], &info["generation"]),
        (&"one".into(), &2.into())
    );
}

#[test]
fn a_larger_size_reads_as_zeros_and_a_smaller_one_is_refused() {
    let rig = rig();
    let said = rig.fails(2, "serve base --session s --size 1048575");
    assert!(said.contains("smaller than the image"), "{said}");
    rig.fails(2, "serve base --session s --size 2P");
    rig.fails(2, "serve base --session s --size 1.5G");
    assert!(!rig.path("s/session.json").exists());
    let served = rig.serve("base --session s --size 3M");
    let mut wanted = noise(1, MIB);
    wanted.resize(3 * MIB, 0);
    assert_same(&served.read_all(), &wanted, "grown");
    let mut client = served.client();
    // Across the old end, and at the new one.
    client.write(MIB as u64 - 3, b"across").unwrap();
    client.write(3 * MIB as u64 - 3, b"end").unwrap();
    wanted[MIB - 3..MIB + 3].copy_from_slice(b"across");
    wanted[3 * MIB - 3..].copy_from_slice(b"end");
    rig.ok("snapshot s grown");
    served.end();
    rig.fails(2, "serve --session s --size 4M");
    rig.serve("--session s --size 3M").end();
    assert_same(&rig.export("grown"), &wanted, "exported");
    assert_eq!(rig.inspect("grown")["size_bytes"], 3 << 20);
    // Again, read-only and without a session.
    let served = rig.serve_at("grown --size 5M --read-only", "ro.sock");
    wanted.resize(5 * MIB, 0);
    assert_same(&served.read_all(), &wanted, "grown again");
}

#[test]
fn a_temporary_session_says_so_and_goes() {
    let rig = rig();
    let mut command = rig.command(["serve", "base", "--nbd", "unix:t.sock"]);
    let temporary = rig.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    command.env("TMPDIR", &temporary);
    let served = Served::start(command, rig.path("t.sock"));
    assert!(
        served.ready.contains("temporary") && served.ready.contains("dropped"),
        "{}",
        served.ready
    );
    served.client().write(0, b"not for long").unwrap();
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 1);
    // Its directory is in that line, and it can be snapshotted like any other.
    let path = served.ready.split("temporary session ").nth(1).unwrap();
    let path = path.split(':').next().unwrap().to_owned();
    rig.ok(&format!("snapshot {path} kept"));
    served.end();
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    assert_eq!(&rig.export("kept")[..12], b"not for long");
}

#[test]
fn read_only_refuses_what_writes() {
    let rig = rig();
    let check = |client: &mut Client| {
        refused(client.write(0, b"x"), Errno::Perm);
        refused(client.write_zeroes(0, 4096), Errno::Perm);
        refused(client.trim(0, 4096), Errno::Perm);
        client.flush().unwrap();
        let mut bytes = vec![0; 4096];
        client.read(0, &mut bytes).unwrap();
        assert!(bytes == noise(1, 4096));
    };
    let served = rig.serve_at("base --read-only", "ro.sock");
    assert!(served.ready.contains("read-only"), "{}", served.ready);
    check(&mut served.client());
    served.end();
    let served = rig.serve("base --session s --read-only");
    check(&mut served.client());
    served.end();
    // The session is a session like any other.
    let served = rig.serve("--session s");
    served.client().write(0, b"x").unwrap();
}

#[test]
fn a_session_is_what_it_began_from() {
    let rig = rig();
    rig.import("other", &noise(3, MIB));
    rig.serve("base --session s").end();
    let said = rig.fails(2, "serve other --session s");
    assert!(said.contains("began from base"), "{said}");
    rig.fails(2, "serve nothing --session s");
    // Also after a snapshot: it is still what it began from.
    rig.ok("snapshot s one");
    rig.serve("base --session s").end();
    rig.fails(2, "serve one --session s");
    // A name that is gone is none that it needs.
    rig.ok("rm base");
    rig.serve("--session s").end();
}

#[test]
fn directories_that_are_no_sessions() {
    let rig = rig();
    std::fs::create_dir(rig.path("foreign")).unwrap();
    rig.file("foreign/letter.txt", b"dear");
    let said = rig.fails(1, "serve base --session foreign");
    assert!(said.contains("letter.txt"), "{said}");
    assert_eq!(
        std::fs::read(rig.path("foreign/letter.txt")).unwrap(),
        b"dear"
    );
    rig.fails(3, "serve --session nowhere");
    rig.fails(3, "serve missing --session nowhere");
    assert!(
        !rig.path("nowhere").exists(),
        "what failed leaves nothing behind"
    );
    rig.fails(3, "snapshot nowhere one");
    rig.fails(3, "snapshot foreign one");
    std::fs::create_dir(rig.path("empty")).unwrap();
    rig.fails(3, "snapshot empty one");
    rig.fails(3, "serve --session empty");
    rig.fails(1, "serve base --session store");
    // An empty directory becomes one.
    rig.serve_at("base --session empty", "e.sock").end();
    // One whose list is damaged is refused, with the file's name.
    let manifest = rig.path("empty/session.json");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    for line in ["serve --session empty", "snapshot empty one"] {
        let said = rig.fails(4, line);
        assert!(said.contains("session.json"), "{said}");
    }
}

#[test]
fn images_of_any_length() {
    for (i, len) in [10 * MIB + 777, 1, 4095, 4097].into_iter().enumerate() {
        let rig = Rig::new();
        let mut wanted = noise(i as u64, len);
        rig.import("base", &wanted);
        assert_same(&rig.export("base"), &wanted, "imported");
        assert_eq!(rig.inspect("base")["size_bytes"], len);
        let served = rig.serve("base --session s");
        assert_same(&served.read_all(), &wanted, "served");
        let mut client = served.client();
        refused(client.write(len as u64, b"x"), Errno::NoSpc);
        client.write(len as u64 - 1, b"!").unwrap();
        wanted[len - 1] = b'!';
        if len > 8192 {
            let from = len - 5000;
            client.write(from as u64, &noise(9, 4000)).unwrap();
            wanted[from..from + 4000].copy_from_slice(&noise(9, 4000));
        }
        assert_same(&served.read_all(), &wanted, "written");
        rig.ok("snapshot s one");
        assert_same(&rig.export("one"), &wanted, "snapshotted");
        // The last block, and only that: the part of it that there is counts as whole.
        let tail = len / BLOCK * BLOCK;
        client.trim(tail as u64, (len - tail) as u64).unwrap();
        wanted[tail..].fill(0);
        rig.ok("snapshot s two");
        assert_same(&rig.export("two"), &wanted, "trimmed");
        rig.ok("verify two");
        served.end();
        // Grown by a part of a block: what is new reads as zeros, also in the block that was the last.
        rig.import("three", &wanted);
        wanted.resize(len + 100, 0);
        std::fs::remove_dir_all(rig.path("s")).unwrap();
        let served = rig.serve(&format!("three --session s --size {}", len + 100));
        assert_same(&served.read_all(), &wanted, "grown");
        rig.ok("snapshot s four");
        assert_same(&rig.export("four"), &wanted, "grown and snapshotted");
    }
}
