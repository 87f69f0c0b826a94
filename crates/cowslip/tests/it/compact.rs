//! `cowslip compact` from outside: beside servers that go over by themselves, for sessions at rest,
//! on a full disk, interrupted and killed.

use rustix::process::{Signal, kill_process};

use crate::bytes::{MIB, assert_same, noise};
use crate::rig::{Rig, said};

/// A chain of snapshots that each rewrite a part of the same 8 MiB; what the newest holds.
fn chain(rig: &Rig, snapshots: u64) -> Vec<u8> {
    let mut image = noise(1, 8 * MIB);
    rig.import("n0", &image);
    let mut parent = "n0".to_owned();
    for n in 1..=snapshots {
        let served = rig.serve(&format!("{parent} --session s"));
        let mut client = served.client();
        for part in 0..4 {
            let at = ((n * 3 + part * 5) % 16) as usize * MIB / 2;
            let bytes = noise(100 * n + part, MIB / 2);
            client.write(at as u64, &bytes).unwrap();
            image[at..at + MIB / 2].copy_from_slice(&bytes);
        }
        drop(client);
        parent = format!("n{n}");
        rig.ok(&format!("snapshot s {parent}"));
        served.end();
        std::fs::remove_dir_all(rig.path("s")).unwrap();
        let sessions = rig.json("sessions");
        let id = sessions[0]["id"].as_str().unwrap().to_owned();
        rig.ok(&format!("sessions --forget {id}"));
    }
    image
}

fn stored(rig: &Rig) -> u64 {
    let of = |dir| {
        let files = std::fs::read_dir(rig.store().join(dir)).unwrap();
        files
            .map(|f| f.unwrap().metadata().unwrap().len())
            .sum::<u64>()
    };
    of("layers") + of("headers")
}

#[test]
fn a_store_is_as_small_as_what_is_needed() {
    let rig = Rig::new();
    let image = chain(&rig, 6);
    for n in 0..6 {
        rig.ok(&format!("rm n{n}"));
    }
    let before = rig.inspect("n6");
    assert_eq!(rig.json("verify")["compaction"]["due"], true);
    let text = rig.ok("verify");
    assert!(text.contains("compaction is due"), "{text}");
    let dry = rig.json("compact --dry-run");
    assert_eq!(dry["due"], true);
    let old = stored(&rig);
    let done = rig.json("compact");
    assert!(done["removed_bytes"].as_u64().unwrap() > 0, "{done}");
    assert!(stored(&rig) < 9 * MIB as u64 && stored(&rig) < old);
    assert_eq!(done["after"]["object_bytes"], stored(&rig));
    assert_same(&rig.export("n6"), &image, "n6");
    rig.ok("verify n6");
    // It is the same snapshot.
    let after = rig.inspect("n6");
    for field in [
        "id",
        "parent",
        "generation",
        "created_unix_ms",
        "dirty_blocks",
    ] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_ne!(after["header"], before["header"]);
    assert!(after["layers"].as_array().unwrap().len() <= 4, "{after}");
    // And there is nothing more to do.
    let verified = rig.json("verify");
    assert_eq!(verified["compaction"]["due"], false, "{verified}");
    assert_eq!(rig.json("compact --auto --dry-run")["due"], false);
    assert_eq!(rig.json("compact --auto")["copied_bytes"], 0);
}

#[test]
fn served_sessions_and_sessions_at_rest_go_over() {
    let rig = Rig::new();
    let image = chain(&rig, 4);
    rig.serve("n4 --session s").end();
    let served = rig.serve_at(
        &format!("n4 --session {}", rig.path("t").display()),
        "t.sock",
    );
    let mut client = served.client();
    client.write(0, &noise(7, MIB)).unwrap();
    for n in 0..5 {
        rig.ok(&format!("rm n{n}"));
    }
    let done = rig.json("compact");
    assert_eq!(done["swapped"], 2, "{done}");
    // Nothing waits for anybody: what is stored is what the two sessions need.
    assert_eq!(done["after"]["object_bytes"], stored(&rig), "{done}");
    assert_eq!(
        rig.json("gc --dry-run")["removed"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    let mut want = image.clone();
    want[..MIB].copy_from_slice(&noise(7, MIB));
    let mut bytes = vec![0; want.len()];
    client.read(0, &mut bytes).unwrap();
    assert_same(&bytes, &want, "the session");
    drop(client);
    served.end();
    rig.ok("snapshot t t");
    assert_same(&rig.export("t"), &want, "t");
    rig.ok("snapshot s s");
    assert_same(&rig.export("s"), &image, "s");
}

#[test]
fn a_compaction_that_is_killed_or_interrupted_is_done_by_the_next() {
    let rig = Rig::new();
    let image = chain(&rig, 3);
    rig.ok("rm n0");
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let child = rig.command(["compact"]).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        std::thread::yield_now();
        // It may have ended.
        let _ = kill_process(pid, signal);
        let output = child.wait_with_output().unwrap();
        // It may have been faster.
        let code = output.status.code();
        assert!(code.is_none_or(|c| c < 2), "{}", said(&output));
        rig.ok("verify n3");
        assert_same(&rig.export("n3"), &image, "n3");
    }
    rig.ok("compact");
    rig.ok("gc");
    assert_same(&rig.export("n3"), &image, "n3");
    assert_eq!(
        std::fs::read_dir(rig.store().join("tmp")).unwrap().count(),
        0
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let rig = Rig::new();
    rig.import("n", &noise(1, MIB));
    let why = rig.fails(3, "compact nobody");
    assert!(why.contains("nobody"), "{why}");
    let text = rig.ok("compact --auto");
    assert!(text.contains("copied 0"), "{text}");
}

/// As `cp -a` does it, of what has no sockets in it.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&from, &to),
            kind if kind.is_file() => drop(std::fs::copy(from, to).unwrap()),
            _ => {}
        }
    }
}

#[test]
fn copies_of_stores_and_of_sessions_do_each_other_no_harm() {
    let rig = Rig::new();
    let image = chain(&rig, 2);
    rig.serve("n2 --session s").end();
    for n in 0..3 {
        rig.ok(&format!("rm n{n}"));
    }
    // The copy of the store knows the session, and has no say in it.
    let second = rig.path("second");
    copy(&rig.store(), &second);
    let mut compact = rig.command(["compact"]);
    let done = compact.arg("--store").arg(&second).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    // Two copies of the session: both are served, and go over, and are opened again.
    copy(&rig.path("s"), &rig.path("t"));
    let at = |session: &str| format!("--session {}", rig.path(session).display());
    let one = rig.serve_at(&at("s"), "s.sock");
    let other = rig.serve_at(&at("t"), "t.sock");
    rig.ok("compact");
    rig.ok("gc");
    assert_same(&one.read_all(), &image, "s");
    assert_same(&other.read_all(), &image, "t");
    let sessions = rig.json("sessions");
    let sessions = sessions.as_array().unwrap();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    for session in sessions {
        assert_eq!(session["state"], "served", "{session}");
        let id = session["id"].as_str().unwrap();
        let why = rig.fails(1, &format!("sessions --forget {id}"));
        assert!(why.contains("is being served"), "{why}");
    }
    one.end();
    other.end();
    rig.ok("snapshot s s");
    rig.ok("snapshot t t");
    assert_same(&rig.export("s"), &image, "s");
    assert_same(&rig.export("t"), &image, "t");
}
