//! Damage in the store: exit code 4, the object named, and nothing else taken down with it.

use std::path::PathBuf;

use serde_json::Value;

use crate::bytes::{MIB, noise};
use crate::rig::{Rig, said};

fn rig() -> Rig {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    rig
}

/// The one file in a directory of the store.
fn object(rig: &Rig, kind: &str) -> PathBuf {
    let mut all = std::fs::read_dir(rig.store().join(kind)).unwrap();
    let object = all.next().unwrap().unwrap().path();
    assert!(all.next().is_none());
    object
}

fn flip(path: &PathBuf, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_layer_is_4_and_named() {
    let rig = rig();
    let layer = object(&rig, "layers");
    let name = format!("layers/{}", layer.file_name().unwrap().to_str().unwrap());
    flip(&layer, 70_000);
    let said = rig.fails(4, "verify base");
    assert!(said.contains(&name), "{said}");
    let output = rig.run("verify base --json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["ok"], &report["damage"][0]["object"]),
        (&false.into(), &name.as_str().into())
    );
    let said = rig.fails(4, "export base out.raw");
    assert!(said.contains(&name), "{said}");
    let left = std::fs::read_dir(rig.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["store"], "no half of an export");
    // It can still be served: what is damaged fails, what is not is there, and so is the client.
    let served = rig.serve("base --session s");
    let mut client = served.client();
    let mut bytes = vec![0; 4096];
    let refused = client.read(70_000 / 4096 * 4096, &mut bytes).unwrap_err();
    assert!(refused.to_string().contains("EIO"), "{refused}");
    for neighbour in [65_536 - 4096, 131_072, 512 << 10] {
        client.read(neighbour, &mut bytes).unwrap();
        let at = usize::try_from(neighbour).unwrap();
        assert!(bytes == noise(1, MIB)[at..][..4096]);
    }
    // A part of a damaged block cannot be written; all of it can.
    client.write(70_001, b"x").unwrap_err();
    client.write(0, &noise(2, 256 << 10)).unwrap();
    rig.ok("snapshot s healed");
    rig.ok("verify healed");
    // Cut short, and gone.
    let bytes = std::fs::read(&layer).unwrap();
    std::fs::write(&layer, &bytes[..bytes.len() - 1]).unwrap();
    for _ in 0..2 {
        let said = rig.fails(4, "verify base");
        assert!(said.contains(&name), "{said}");
        rig.fails(4, "export base out.raw");
        drop(std::fs::remove_file(&layer));
    }
}

#[test]
fn a_damaged_header_or_record_is_4_and_named() {
    for kind in ["headers", "snapshots"] {
        let rig = rig();
        let object = object(&rig, kind);
        let name = format!("{kind}/{}", object.file_name().unwrap().to_str().unwrap());
        let len = std::fs::metadata(&object).unwrap().len();
        rig.file("b.raw", &noise(3, 8192));
        rig.ok("import b.raw other");
        for at in [0, 20, usize::try_from(len).unwrap() - 1] {
            flip(&object, at);
            for line in [
                "inspect base",
                "verify base",
                "export base out.raw",
                "serve base --session s",
            ] {
                let output = rig.run(line);
                // A version that is not known is no damage that can be told.
                assert_eq!(
                    output.status.code(),
                    Some(4),
                    "{line}, byte {at}: {}",
                    said(&output)
                );
                assert!(
                    said(&output).contains(&name),
                    "{line}, byte {at}: {}",
                    said(&output)
                );
            }
            let output = rig.run("ls --json");
            assert_eq!(output.status.code(), Some(4), "{}", said(&output));
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            let row = |i: usize| (&list[i]["name"], list[i]["error"].is_string());
            assert_eq!(
                (row(0), row(1)),
                ((&"base".into(), true), (&"other".into(), false))
            );
            rig.fails(4, "ls");
            flip(&object, at);
        }
        rig.ok("verify base");
        // A damaged snapshot can be taken off the list.
        flip(&object, 20);
        rig.ok("rm base");
        rig.ok("ls");
        rig.ok("verify other");
    }
}

#[test]
fn a_whole_store_is_verified() {
    let rig = rig();
    rig.import("other", &noise(2, MIB));
    let report = rig.json("verify");
    let count = |field: &str| report[field].as_u64().unwrap();
    let counts = [
        "names", "sessions", "headers", "layers", "frames", "damaged",
    ]
    .map(count);
    assert_eq!(counts, [2, 0, 2, 2, 32, 0], "{report}");
    assert!(count("read_bytes") > 2 << 20 && count("nodes") == 0 && report["ok"] == true);
    assert_eq!(report["foreign"], Value::Array(Vec::new()));
    assert!(
        rig.ok("verify --deep")
            .contains("the store is whole: 2 names")
    );
    assert!(rig.ok("verify base --deep").contains("base is whole"));
    // Somebody else's file is shown, without what a terminal would act on.
    std::fs::write(rig.store().join("layers/\u{1b}[31mred"), "x").unwrap();
    let shown = rig.ok("verify");
    assert!(
        shown.contains("not cowslip's: layers/\\u{1b}[31mred"),
        "{shown}"
    );
    // Damage, and who needs it.
    let header = rig.inspect("other");
    let layer = header["layers"][0]["id"].as_str().unwrap();
    let layer = rig.store().join(format!("layers/{layer}"));
    flip(&layer, 70_000);
    let said = rig.fails(4, "verify");
    assert!(
        said.contains("frame 1 at byte 65536") && said.contains("is needed by other"),
        "{said}"
    );
    let output = rig.run("verify --json");
    assert_eq!(output.status.code(), Some(4));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["objects"][0]["needed_by"],
        serde_json::json!(["other"])
    );
    assert_eq!(
        report["objects"][0]["object"],
        report["damage"][0]["object"]
    );
    rig.ok("verify base");
    // Without its marker it is a damaged store; a directory of other things is none.
    std::fs::remove_file(rig.store().join("store")).unwrap();
    let said = rig.fails(4, "verify");
    assert!(said.contains("store is damaged: all of it"), "{said}");
    std::fs::remove_dir_all(rig.store().join("layers")).unwrap();
    rig.fails(3, "verify");
}

#[test]
fn a_server_says_once_what_is_damaged_and_reads_on_when_it_is_mended() {
    let rig = rig();
    let layer = object(&rig, "layers");
    let whole = std::fs::read(&layer).unwrap();
    flip(&layer, 70_000);
    for line in ["base --session s", "base --read-only --nbd unix:s/nbd.sock"] {
        let served = rig.serve(line);
        let mut client = served.client();
        let mut bytes = vec![0; 4096];
        for at in [65_536, 70_000, 100_000, 65_536] {
            let refused = client.read(at, &mut bytes).unwrap_err();
            assert!(refused.to_string().contains("EIO"), "{refused}");
        }
        let said = served.line_with("is damaged");
        let name = format!("layers/{}", layer.file_name().unwrap().to_str().unwrap());
        for part in [
            &name,
            "frame 1 at byte 65536",
            "checksum",
            "cowslip verify",
            "cowslip repair",
        ] {
            assert!(said.contains(part), "{said}");
        }
        // Another file takes its place, as a repair does it.
        let damaged = std::fs::read(&layer).unwrap();
        std::fs::rename(rig.file("mended", &whole), &layer).unwrap();
        client.read(65_536, &mut bytes).unwrap();
        assert!(bytes == whole[65_536..][..4096]);
        drop(client);
        let rest = served.end();
        assert!(!rest.contains("damaged"), "{rest}");
        std::fs::write(&layer, damaged).unwrap();
    }
}

#[test]
fn what_is_damaged_is_repaired_or_listed() {
    let rig = rig();
    rig.import("other", &noise(2, MIB));
    // A copy of the store, and damage: a frame, a name, the marker.
    let copy = rig.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for dir in ["layers", "headers", "snapshots"] {
        std::fs::create_dir(copy.join(dir)).unwrap();
        for entry in std::fs::read_dir(rig.store().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.join(dir).join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::copy(rig.store().join("store"), copy.join("store")).unwrap();
    let info = rig.inspect("other");
    let layer = format!("layers/{}", info["layers"][0]["id"].as_str().unwrap());
    let path = rig.store().join(&layer);
    let whole = std::fs::read(&path).unwrap();
    flip(&path, 70_000);
    flip(&rig.store().join("snapshots/base"), 20);
    flip(&rig.store().join("store"), 3);
    // Nothing else has the frame: the rest is mended, that is left, and what it costs is said.
    let dry = rig.run("repair --dry-run --json");
    assert_eq!(dry.status.code(), Some(4), "{}", said(&dry));
    rig.fails(4, "ls");
    let output = rig.run("repair --json");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(
        (&dry["mended"], &dry["lost"]),
        (&report["mended"], &report["lost"])
    );
    assert_eq!(
        (&report["ok"], &report["left_count"]),
        (&false.into(), &1.into())
    );
    let mended = report["mended"].as_array().unwrap();
    let objects: Vec<_> = mended
        .iter()
        .map(|m| m["object"].as_str().unwrap())
        .collect();
    assert_eq!(objects, ["store", "snapshots/base"]);
    assert_eq!(report["left"][0]["object"], layer.as_str());
    let lost = serde_json::json!([{ "image": "other", "whole": false, "more": false,
        "ranges": [{ "offset_bytes": 65_536, "len_bytes": 65_536 }] }]);
    assert_eq!(report["lost"], lost);
    assert!(rig.export("base") == noise(1, MIB));
    let said = rig.fails(4, "repair");
    for part in [
        layer.as_str(),
        "frame 1",
        "other: cannot be read",
        "at 65536",
        "--from",
    ] {
        assert!(said.contains(part), "{said}");
    }
    rig.ok("repair base");
    // From the copy.
    let text = rig.ok("repair --from copy");
    assert!(text.contains("mended, from the other store"), "{text}");
    assert!(std::fs::read(&path).unwrap() == whole);
    assert!(rig.ok("repair").contains("0 damaged places mended, 0 left"));
    // A name with all that it needs.
    rig.ok("rm other");
    rig.ok("gc");
    rig.fails(3, "repair other");
    rig.ok("repair other --from copy");
    assert!(rig.export("other") == noise(2, MIB));
    rig.ok("verify --deep");
    rig.fails(3, "repair nobody --from copy");
    rig.fails(3, "repair --from nowhere");
}
