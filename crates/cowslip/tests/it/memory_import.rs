//! `memory import`: snapshots of disk, memory and state, beside an oracle that knows each page.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use serde_json::Value;

use crate::bytes::{BLOCK, MIB, Seeded, assert_same, noise};
use crate::rig::{Rig, until};

/// Pages of a memory.
const PAGES: usize = 1024;
const FRAME: usize = 16 * BLOCK;

fn page(bytes: &[u8], n: usize) -> &[u8] {
    &bytes[n * BLOCK..(n + 1) * BLOCK]
}

fn number(json: &Value, field: &str) -> u64 {
    let number = json[field].as_u64();
    number.unwrap_or_else(|| panic!("no {field}: {json}"))
}

/// What the pages of a memory have to become, counted by comparing each with all.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    zero: u64,
    same: u64,
    disk: u64,
    payload: u64,
}

impl Figures {
    fn oracle(now: &[u8], before: Option<&[u8]>, disk: &[u8]) -> Self {
        let blocks: BTreeSet<&[u8]> = disk.chunks(BLOCK).collect();
        let mut figures = Self {
            zero: 0,
            same: 0,
            disk: 0,
            payload: 0,
        };
        for (n, bytes) in now.chunks(BLOCK).enumerate() {
            let count = match bytes {
                _ if bytes.iter().all(|b| *b == 0) => &mut figures.zero,
                _ if before.is_some_and(|before| page(before, n) == bytes) => &mut figures.same,
                _ if blocks.contains(bytes) => &mut figures.disk,
                _ => &mut figures.payload,
            };
            *count += 1;
        }
        figures
    }

    fn said(json: &Value) -> Self {
        Self {
            zero: number(json, "zero_pages"),
            same: number(json, "same_pages"),
            disk: number(json, "disk_pages"),
            payload: number(json, "payload_pages") + number(json, "delta_pages"),
        }
    }
}

/// A memory made over another one: some pages zeroed, some from the disk, some edited, some new.
fn next_memory(random: &mut Seeded, before: &[u8], disk: &[u8]) -> Vec<u8> {
    let mut memory = before.to_vec();
    for _ in 0..200 {
        let at = random.below(PAGES);
        let len = 1 + random.below(4.min(PAGES - at));
        for n in at..at + len {
            let to = &mut memory[n * BLOCK..(n + 1) * BLOCK];
            match random.below(5) {
                0 => to.fill(0),
                1 => to[random.below(BLOCK)] ^= 1,
                2 | 3 => to.copy_from_slice(page(disk, random.below(disk.len() / BLOCK))),
                _ => to.copy_from_slice(&noise(random.next() >> 40, BLOCK)),
            }
        }
    }
    memory
}

#[test]
fn each_part_comes_back_as_it_was() {
    for seed in 1..4 {
        let rig = Rig::new();
        let mut random = Seeded(seed);
        let mut disk = noise(seed, 2 * MIB);
        disk[..MIB / 4].fill(0);
        rig.import("disk-0", &disk);
        let mut memory = next_memory(&mut random, &vec![0; PAGES * BLOCK], &disk);
        rig.file("memory", &memory);
        let first = rig.json("memory import memory vm-0 --disk disk-0");
        let want = Figures::oracle(&memory, None, &disk);
        assert_eq!(Figures::said(&first), want, "{first}");
        assert_eq!(number(&first, "changed_pages"), want.disk + want.payload);
        // A disk that went on, and a memory and a state that did.
        let served = rig.serve("disk-0 --session s");
        let new = noise(seed + 50, 16 * BLOCK);
        served.client().write((MIB / 2) as u64, &new).unwrap();
        disk[MIB / 2..][..new.len()].copy_from_slice(&new);
        rig.ok("snapshot s disk-1");
        served.end();
        let room = rig.store_bytes();
        let before = memory.clone();
        memory = next_memory(&mut random, &before, &disk);
        rig.file("memory", &memory);
        let state = noise(seed + 90, 10_001);
        rig.file("state", &state);
        let line = "memory import memory vm-1 --parent vm-0 --disk disk-1 --state state";
        let second = rig.json(line);
        let want = Figures::oracle(&memory, Some(&before), &disk);
        assert_eq!(Figures::said(&second), want, "{second}");
        // The same counts from the maps alone, later.
        let explained = rig.json("explain vm-1:memory");
        assert_eq!(explained["against"], "vm-0:memory", "{explained}");
        let counts = ["zero", "same", "disk", "delta", "new"].map(|class| {
            let field = format!("{class}_pages");
            number(&explained, &field)
        });
        let stored = ["delta_pages", "payload_pages"].map(|field| number(&second, field));
        assert_eq!(counts[..3], [want.zero, want.same, want.disk]);
        assert_eq!(counts[3..], stored);
        assert!(stored[0] > 0, "{second}");
        assert_eq!(number(&explained, "older_pages"), 0);
        let newly_zero = (0..PAGES).filter(|n| {
            let is_zero = |bytes| page(bytes, *n).iter().all(|b| *b == 0);
            is_zero(&memory) && !is_zero(&before)
        });
        assert_eq!(
            number(&explained, "zeroed_pages"),
            newly_zero.count() as u64
        );
        rig.fails(2, "explain vm-1:memory --html page.html");
        // To the byte: memory, state and the record, which is said of the disk as the first part. The disk was there.
        let stored = |json: &Value| number(json, "stored_bytes");
        let parts: Vec<u64> = second["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(stored)
            .collect();
        let there = stored(&rig.inspect("disk-1")) - 72;
        assert_eq!(rig.store_bytes() - room, parts.iter().sum::<u64>() - there);
        assert_eq!(number(&second, "stored_bytes"), parts[1]);
        let frames = number(&second, "disk_frames");
        assert!(frames > 0 && frames <= (disk.len() / FRAME) as u64);
        assert!(number(&second, "payload_bytes") < (want.payload + 4) * BLOCK as u64);
        // All of it, also when what it was made from has no names any more, and when it is stored otherwise.
        let check = |when: &str| {
            for (image, bytes) in [
                ("vm-1", &disk),
                ("vm-1:disk", &disk),
                ("vm-1:memory", &memory),
                ("vm-1:state", &state),
            ] {
                assert_same(&rig.export(image), bytes, &format!("{image} {when}"));
            }
            rig.ok("verify --deep");
        };
        check("at first");
        assert_same(&rig.export("vm-0:memory"), &before, "vm-0:memory");
        for name in ["disk-0", "disk-1", "vm-0"] {
            rig.ok(&format!("rm {name}"));
        }
        let id = rig.json("sessions")[0]["id"].as_str().unwrap().to_owned();
        rig.ok(&format!("sessions --forget {id}"));
        let removed = rig.json("gc")["removed_bytes"].as_u64();
        assert!(removed > Some(0), "vm-0's header, at least");
        check("after a collection");
        rig.ok("compact");
        check("after a compaction");
        rig.ok("rm vm-1");
        rig.ok("gc");
        let left = ["layers", "headers", "tmp"].map(|dir| rig.store().join(dir));
        let left = left.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
        assert_eq!(left.count(), 0);
    }
}

/// A disk, a memory over it and a state; the bytes of the first two.
fn vm() -> (Rig, Vec<u8>, Vec<u8>) {
    let rig = Rig::new();
    let disk = noise(1, MIB);
    rig.import("disk", &disk);
    let mut memory = vec![0; 64 * BLOCK];
    memory[..4 * BLOCK].copy_from_slice(&noise(2, 4 * BLOCK));
    memory[10 * BLOCK..12 * BLOCK].copy_from_slice(&disk[20 * BLOCK..22 * BLOCK]);
    rig.file("memory", &memory);
    rig.file("state", b"the state");
    rig.ok("memory import memory vm --disk disk --state state");
    (rig, disk, memory)
}

#[test]
fn what_is_shown_of_parts() {
    let (rig, disk, memory) = vm();
    let info = rig.inspect("vm");
    let base = rig.inspect("disk");
    assert_eq!(
        (&info["id"], &info["size_bytes"]),
        (&base["id"], &disk.len().into())
    );
    assert_eq!(info["name"], "vm");
    let parts = info["parts"].as_array().unwrap();
    let names: Vec<_> = parts
        .iter()
        .map(|part| part["part"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["disk", "memory", "state"]);
    assert_eq!(parts[1]["size_bytes"], memory.len());
    assert_eq!(parts[0]["id"], base["id"]);
    let info = rig.inspect("vm:memory");
    assert_eq!(info["name"], "vm:memory");
    let pages = &info["pages"];
    let classes = ["own_pages", "disk_pages", "zero_pages", "older_pages"];
    assert_eq!(classes.map(|class| number(pages, class)), [4, 2, 58, 0]);
    assert_eq!(rig.inspect("vm:disk")["pages"], Value::Null);
    let text = rig.ok("inspect vm:memory");
    assert!(text.contains("4 stored with it, 2 on the disk"), "{text}");
    assert!(text.contains("state: 9 B"), "{text}");
    let list = rig.json("ls");
    assert_eq!(list[1]["parts"].as_array().unwrap().len(), 3);
    assert_eq!(list[0]["parts"][0]["part"], "disk");
    assert!(rig.ok("ls").lines().nth(2).unwrap().contains("memory"));
    let verified = rig.json("verify vm");
    assert_eq!(verified["parts"].as_array().unwrap().len(), 3);
    assert_eq!(rig.json("verify vm:state")["parts"][0]["part"], "state");
    // Two names of one disk; the memory has one.
    let log = rig.json("log vm");
    assert_eq!(log["chain"][0]["names"], serde_json::json!(["disk", "vm"]));
    let log = rig.json("log vm:memory");
    assert_eq!(log["chain"][0]["names"], serde_json::json!(["vm:memory"]));
    let differs = rig.json("diff vm:memory vm:disk");
    assert_eq!(
        differs["size_bytes"],
        serde_json::json!([memory.len(), disk.len()])
    );
    rig.ok("diff vm:disk disk --quiet");
    assert_eq!(rig.json("explain vm:memory")["name"], "vm:memory");
    // Memory is read over NBD as any image, and not written.
    let served = rig.serve_at("vm:memory --read-only", "memory.sock");
    assert_same(&served.read_all(), &memory, "served");
    served.end();
    for line in [
        "serve vm:memory --session s",
        "serve vm:state --nbd unix:s.sock",
    ] {
        let said = rig.fails(2, line);
        assert!(
            said.contains("is no disk") && said.contains("--read-only"),
            "{said}"
        );
    }
    assert!(!rig.path("s").exists(), "nothing is left of it");
    // The disk is; and the next snapshot of it has no memory.
    let served = rig.serve("vm --session s");
    served.client().write(0, &[7; BLOCK]).unwrap();
    rig.ok("snapshot s next");
    served.end();
    assert_eq!(rig.inspect("next")["parent_name"], "disk");
    let said = rig.fails(3, "export next:memory out");
    assert!(said.contains("next has no memory: it has disk"), "{said}");
}

#[test]
fn damage_is_said_of_the_part_that_has_it() {
    let (rig, disk, _) = vm();
    let layer = rig.inspect("vm:memory")["layers"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = rig.store().join("layers").join(layer);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let said = rig.fails(4, "verify vm");
    assert!(said.contains("memory: layers/"), "{said}");
    let output = rig.run("verify vm --json");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ok = json["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["ok"].as_bool().unwrap());
    assert_eq!(ok.collect::<Vec<_>>(), [true, false, true]);
    assert!(rig.fails(4, "verify").contains("is needed by vm:memory"));
    rig.fails(4, "export vm:memory out");
    assert_same(&rig.export("vm"), &disk, "the disk");
}

#[test]
fn the_holes_of_a_diff_file_are_the_parents() {
    let rig = Rig::new();
    let mut memory = noise(3, 64 * BLOCK);
    rig.file("memory", &memory);
    rig.ok("memory import memory one");
    let diff = File::create(rig.path("diff")).unwrap();
    diff.set_len(memory.len() as u64).unwrap();
    let mut put = |n: usize, bytes: &[u8]| {
        diff.write_all_at(bytes, (n * BLOCK) as u64).unwrap();
        memory[n * BLOCK..][..bytes.len()].copy_from_slice(bytes);
    };
    put(3, &[1; BLOCK]);
    put(20, &noise(9, 2 * BLOCK));
    put(40, &[0; BLOCK]);
    let same = noise(3, 64 * BLOCK);
    put(50, page(&same, 50));
    diff.sync_all().unwrap();
    let taken = rig.json("memory import diff two --parent one --diff-file");
    let fields = [
        "pages",
        "looked_at_pages",
        "changed_pages",
        "zero_pages",
        "same_pages",
    ];
    assert_eq!(fields.map(|field| number(&taken, field)), [64, 5, 4, 1, 1]);
    assert_same(
        &rig.export("two"),
        &memory,
        "the parent's, and what changed",
    );
    assert_eq!(rig.inspect("two")["parent_name"], "one");
    let pages = rig.inspect("two:memory")["pages"].clone();
    assert_eq!(
        (number(&pages, "own_pages"), number(&pages, "older_pages")),
        (3, 60)
    );
    // The same file as a whole memory: its holes are zeros.
    rig.ok("memory import diff three --parent one");
    assert_same(
        &rig.export("three"),
        &std::fs::read(rig.path("diff")).unwrap(),
        "all of it",
    );
    rig.fails(2, "memory import diff four --diff-file");
}

#[test]
fn a_memfd_is_read_from_its_process() {
    let rig = Rig::new();
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(8 * MIB as u64).unwrap();
    let bytes = noise(4, 3 * BLOCK);
    file.write_all_at(&bytes, 5 * MIB as u64).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let taken = rig.json(&format!("memory import {path} vm"));
    assert_eq!(
        (number(&taken, "payload_pages"), number(&taken, "pages")),
        (3, 2048)
    );
    let mut want = vec![0; 8 * MIB];
    want[5 * MIB..][..bytes.len()].copy_from_slice(&bytes);
    assert_same(&rig.export("vm:memory"), &want, "the memfd");
}

#[test]
fn a_budget_bounds_the_frames_of_the_disk() {
    let rig = Rig::new();
    let disk = noise(5, 4 * FRAME);
    rig.import("disk", &disk);
    // Of frame 0 one page, of frame 1 two, of frame 2 four.
    let blocks = [3, 20, 21, 32, 33, 34, 47];
    let memory: Vec<u8> = blocks
        .iter()
        .flat_map(|n| page(&disk, *n))
        .copied()
        .collect();
    rig.file("memory", &memory);
    for (frames, pages) in [(0, 0), (1, 4), (2, 6), (3, 7), (9, 7)] {
        let line = format!("memory import memory vm --disk disk --replace --disk-frames {frames}");
        let taken = rig.json(&line);
        assert_eq!(
            number(&taken, "disk_pages"),
            pages,
            "{frames} frames: {taken}"
        );
        assert_eq!(number(&taken, "disk_frames"), frames.min(3));
        assert_same(&rig.export("vm:memory"), &memory, "whatever they are");
    }
}

#[test]
fn what_cannot_be_imported_is_refused() {
    let (rig, ..) = vm();
    rig.file("odd", &[1; 5000]);
    rig.file("short", &[1; BLOCK]);
    rig.file("empty", &[]);
    let refused = [
        (1, "odd new", "odd: 5000 bytes are no memory"),
        (1, "empty new", "0 bytes"),
        (
            1,
            "short new --parent vm",
            "4096 bytes in pages of 4096 is not made over one of 262144",
        ),
        (1, "short vm", "already"),
        (1, "short new --state empty", "empty: "),
        (1, ". new", "no file"),
        (3, "nothing new", "nothing"),
        (3, "short new --state nothing", "nothing"),
        (3, "short new --parent nothing", "nothing"),
        (3, "short new --parent disk", "disk has no memory"),
        (3, "short new --disk nothing", "nothing"),
        (2, "short new --disk vm:memory", "cannot name a snapshot"),
        (2, "short vm:memory", "cannot name a snapshot"),
    ];
    for (code, line, why) in refused {
        let said = rig.fails(code, &format!("memory import {line}"));
        assert!(said.contains(why), "{line}: {said}");
    }
    let names = rig.json("ls");
    assert_eq!(names.as_array().unwrap().len(), 2, "{names}");
    // One that had a disk alone becomes one of memory alone.
    rig.ok("memory import short disk --replace");
    assert_eq!(rig.inspect("disk")["parts"][0]["part"], "memory");
    let said = rig.fails(3, "serve disk --session s");
    assert!(said.contains("disk has no disk"), "{said}");
}

/// Whatever the moment: there is the whole snapshot, or none.
#[test]
fn kill_9_leaves_no_name_or_all_of_it() {
    let rig = Rig::new();
    let disk = noise(6, MIB);
    rig.import("disk", &disk);
    let mut memory = noise(7, 48 * MIB);
    memory[..MIB].copy_from_slice(&disk);
    rig.file("memory", &memory);
    rig.file("state", b"the state");
    let objects = |dir: &str| std::fs::read_dir(rig.store().join(dir)).unwrap().count();
    let in_tmp = || {
        let files = std::fs::read_dir(rig.store().join("tmp")).unwrap();
        let len = |file: std::io::Result<std::fs::DirEntry>| file.ok()?.metadata().ok();
        files.filter_map(len).map(|m| m.len()).sum::<u64>()
    };
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("it begins to write", &|| objects("tmp") > 0),
        ("a part is written", &|| in_tmp() > 20 * MIB as u64),
        ("the memory's layer is there", &|| objects("layers") > 1),
        ("the memory's header is there", &|| objects("headers") > 1),
    ];
    for (what, is_it) in moments {
        let line = "memory import memory vm --disk disk --state state --quiet";
        let mut command = rig.command(line.split_whitespace());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        until(what, || {
            (is_it() || child.try_wait().unwrap().is_some()).then_some(())
        });
        drop(child.kill());
        let status = child.wait().unwrap();
        let is_there = rig.json("ls").as_array().unwrap().len() == 2;
        assert!(is_there || status.signal() == Some(9), "{what}: {status}");
        rig.ok("verify");
        if is_there {
            assert_same(&rig.export("vm:memory"), &memory, what);
            assert_same(&rig.export("vm:state"), b"the state", what);
            rig.ok("rm vm");
        } else {
            rig.fails(3, "inspect vm");
        }
        rig.ok("gc");
        assert_eq!(
            ["layers", "headers", "tmp"].map(objects),
            [1, 1, 0],
            "{what}"
        );
    }
}
