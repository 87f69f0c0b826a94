//! QEMU's tools against a served session.

use std::path::Path;

use serde_json::Value;

use crate::bytes::{MIB, assert_same, noise};
use crate::rig::{Rig, Served};
use crate::tools::{have, run};

/// Data, a hole, data.
fn image() -> Vec<u8> {
    let mut image = noise(1, 8 * MIB);
    image[2 * MIB..6 * MIB].fill(0);
    image
}

fn img(line: &[&str], uri: &str, file: &Path) -> String {
    let file = file.to_str().unwrap();
    run(
        "qemu-img",
        line.iter().map(|w| match *w {
            "URI" => uri,
            "FILE" => file,
            word => word,
        }),
    )
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !have("qemu_img_converts_compares_and_maps", &["qemu-img"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &image());
    let served = rig.serve("base --session s");
    let uri = served.uri();
    let qcow2 = rig.path("out.qcow2");
    img(
        &["convert", "-f", "raw", "-O", "qcow2", "URI", "FILE"],
        &uri,
        &qcow2,
    );
    img(
        &["compare", "-f", "raw", "-F", "qcow2", "URI", "FILE"],
        &uri,
        &qcow2,
    );
    let raw = rig.path("out.raw");
    img(
        &["convert", "-f", "raw", "-O", "raw", "URI", "FILE"],
        &uri,
        &raw,
    );
    assert_same(
        &std::fs::read(&raw).unwrap(),
        &image(),
        "converted from the export",
    );
    let map = img(&["map", "--output=json", "-f", "raw", "URI"], &uri, &raw);
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let seen: Vec<(u64, u64, bool)> = map
        .iter()
        .map(|e| {
            (
                e["start"].as_u64().unwrap(),
                e["length"].as_u64().unwrap(),
                e["zero"] == true,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (0, 2 << 20, false),
            (2 << 20, 4 << 20, true),
            (6 << 20, 2 << 20, false)
        ]
    );
    // Into the export: zeros where there was data, data where there was a hole.
    let mut other = noise(2, 8 * MIB);
    other[..3 * MIB].fill(0);
    let from = rig.file("in.raw", &other);
    img(
        &["convert", "-n", "-f", "raw", "-O", "raw", "FILE", "URI"],
        &uri,
        &from,
    );
    img(
        &["compare", "-f", "raw", "-F", "raw", "FILE", "URI"],
        &uri,
        &from,
    );
    assert_same(&served.read_all(), &other, "converted into the export");
}

fn io(served: &Served, commands: &[&str]) {
    let uri = served.uri();
    let flags = commands.iter().flat_map(|c| ["-c", *c]);
    let output = run(
        "qemu-io",
        ["-f", "raw"].into_iter().chain(flags).chain([uri.as_str()]),
    );
    // It ends well whatever happens.
    let bad = ["failed", "rror", "verification"]
        .iter()
        .any(|word| output.contains(word));
    assert!(!bad, "{output}");
}

#[test]
fn qemu_io_discards_and_zeroes() {
    if !have("qemu_io_discards_and_zeroes", &["qemu-io"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &image());
    let served = rig.serve("base --session s");
    io(
        &served,
        &[
            "write -P 0x55 0 1M",
            "discard 64k 64k",
            "read -P 0x55 0 64k",
            "read -P 0 64k 64k",
            "read -P 0x55 128k 896k",
            "write -z 256k 64k",
            "write -z -u 320k 64k",
            "read -P 0 256k 128k",
            "write -z -u 513k 1k",
            "read -P 0x55 512k 1k",
            "read -P 0 513k 1k",
            "read -P 0x55 514k 2k",
            "write -f -P 0x77 3M 512",
            "read -P 0x77 3M 512",
            "read -P 0 3146240 512",
            "flush",
        ],
    );
    let mut wanted = image();
    wanted[..MIB].fill(0x55);
    let k = 1024;
    for zero in [64 * k..128 * k, 256 * k..384 * k, 513 * k..514 * k] {
        wanted[zero].fill(0);
    }
    wanted[3 * MIB..3 * MIB + 512].fill(0x77);
    rig.ok("snapshot s after");
    assert_same(&rig.export("after"), &wanted, "after qemu-io");
}
