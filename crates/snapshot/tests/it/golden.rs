//! The stored format does not change by accident, and `docs/format.md` is enough to read it.
//!
//! `tests/golden/vN` is a store that version N wrote. Each must be readable for ever, and the newest
//! must come out byte for byte as long as that version is written. (A new zstd may pack the same
//! payload otherwise: then only [`NEWEST`]'s frames may differ, and it is written again.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cowslip_block::files::{Dir, RealDir};
use cowslip_block::{BlockSize, ByteOffset, Device};
use cowslip_snapshot::export::export;
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{Header, HeaderSpec, Image, LayerId, MapRun, Part, Parts, Store, Target};

use crate::rig::{CountingHost, Rig, SMALL, noise, run, spec, temp_dir};

const GOLDEN: [&str; 4] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2"),
    V3,
    NEWEST,
];
const V3: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v3");
const NEWEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v4");
/// What each of them has; what version 3 brought, snapshots of several parts; and what the fourth did: a memory with deltas.
const DISKS: [&str; 2] = ["template", "snapshot-1"];
const PARTS: [&str; 2] = ["vm:memory", "vm:state"];
const DELTAS: [&str; 2] = ["early:memory", "late:memory"];
const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader.py");

/// A template of 700 blocks and a bit, and a snapshot of it that is larger. Both kinds of frames,
/// all kinds of slots, and nodes in both header objects. And a snapshot of three parts, its memory
/// with a block of the disk's layer. And two memories, the later with deltas. Returns the bytes of the images.
fn write_golden(store: &Store) -> [Vec<u8>; 6] {
    let size = BlockSize::new(512).unwrap();
    let mut template = vec![0; 700 * 512 + 100];
    template[3 * 512..5 * 512].copy_from_slice(&noise(1, 1024));
    for (i, block) in template[256 * 512..600 * 512].chunks_mut(512).enumerate() {
        block.fill(u8::try_from(i / 10 + 1).unwrap());
    }
    template[700 * 512..].fill(b'!');
    let mut writer = store.layer_writer(&store.lease().unwrap(), size).unwrap();
    let long = writer.push(&template[256 * 512..600 * 512]).unwrap();
    let short = writer.push(&template[3 * 512..5 * 512]).unwrap();
    let mut last = template[700 * 512..].to_vec();
    last.resize(512, 0);
    let end = writer.push(&last).unwrap();
    let layer = writer.finish().unwrap();
    let to = |at| Target::Layer { id: layer.id, at };
    let changes = [
        run(3, 5, to(short)),
        run(256, 600, to(long)),
        run(700, 701, to(end)),
    ];
    let parent = store
        .put_header(
            &store.lease().unwrap(),
            &HeaderSpec {
                layer: Some(layer),
                block_size: size,
                made_by: "cowslip golden",
                ..spec(None, template.len() as u64, &changes)
            },
        )
        .unwrap();
    store
        .commit(
            &store.lease().unwrap(),
            &"template".parse().unwrap(),
            &parent,
            false,
        )
        .unwrap();

    let mut child = template.clone();
    child.resize(10_000 * 512 + 7, 0);
    child[4 * 512..5 * 512].fill(b'4');
    child[580 * 512..590 * 512].fill(0);
    child[9999 * 512..10_000 * 512].copy_from_slice(&noise(2, 512));
    let mut writer = store.layer_writer(&store.lease().unwrap(), size).unwrap();
    writer.push(&child[9999 * 512..10_000 * 512]).unwrap();
    writer.push(&child[4 * 512..5 * 512]).unwrap();
    let layer = writer.finish().unwrap();
    let to = |at| Target::Layer { id: layer.id, at };
    let changes = [
        run(4, 5, to(1)),
        run(580, 590, Target::Zero),
        run(9999, 10_000, to(0)),
    ];
    let snapshot = store
        .put_header(
            &store.lease().unwrap(),
            &HeaderSpec {
                layer: Some(layer),
                block_size: size,
                made_by: "cowslip golden",
                ..spec(Some(&parent), child.len() as u64, &changes)
            },
        )
        .unwrap();
    store
        .commit(
            &store.lease().unwrap(),
            &"snapshot-1".parse().unwrap(),
            &snapshot,
            false,
        )
        .unwrap();
    let [memory, state] = write_parts(store, &snapshot, layer.id, &child);
    let [early, late] = write_deltas(store);
    [template, child, memory, state, early, late]
}

/// The memory's block 2 is the disk's block 4.
fn write_parts(store: &Store, disk: &Header, layer: LayerId, disk_bytes: &[u8]) -> [Vec<u8>; 2] {
    let lease = store.lease().unwrap();
    let size = BlockSize::new(512).unwrap();
    let put = |bytes: &[u8], block: u64, more: &[MapRun]| {
        let mut writer = store.layer_writer(&lease, size).unwrap();
        let at = usize::try_from(block).unwrap() * 512;
        let mut one = bytes[at..].to_vec();
        one.resize(512, 0);
        writer.push(&one).unwrap();
        let layer = writer.finish().unwrap();
        let id = layer.id;
        let own = run(block, block + 1, Target::Layer { id, at: 0 });
        let changes: Vec<MapRun> = [own].iter().chain(more).copied().collect();
        let spec = HeaderSpec {
            layer: Some(layer),
            block_size: size,
            made_by: "cowslip golden",
            ..spec(None, bytes.len() as u64, &changes)
        };
        store.put_header(&lease, &spec).unwrap()
    };
    let mut memory = vec![0; 4 * 512];
    memory[..512].copy_from_slice(&noise(3, 512));
    memory[2 * 512..3 * 512].copy_from_slice(&disk_bytes[4 * 512..5 * 512]);
    let to = Target::Layer { id: layer, at: 1 };
    let memory_header = put(&memory, 0, &[run(2, 3, to)]);
    let state = b"the state of a virtual machine monitor".to_vec();
    let state_header = put(&state, 0, &[]);
    let parts = Parts::one(Part::Disk, disk)
        .with(Part::Memory, &*memory_header)
        .with(Part::State, &*state_header);
    let name = "vm".parse().unwrap();
    store.commit_parts(&lease, &name, &parts, false).unwrap();
    [memory, state]
}

/// A frame that stands alone and one of three deltas, one of which has no base.
fn write_deltas(store: &Store) -> [Vec<u8>; 2] {
    let lease = store.lease().unwrap();
    let size = BlockSize::new(512).unwrap();
    let mut early = vec![0; 200 * 512];
    early[180 * 512..].copy_from_slice(&noise(4, 20 * 512));
    let mut writer = store.layer_writer(&lease, size).unwrap();
    writer.push(&early[180 * 512..]).unwrap();
    let layer = writer.finish().unwrap();
    let to = Target::Layer {
        id: layer.id,
        at: 0,
    };
    let put = |name: &str, parent: Option<&Header>, layer, changes: &[MapRun]| {
        let spec = HeaderSpec {
            layer: Some(layer),
            block_size: size,
            made_by: "cowslip golden",
            ..spec(parent, 200 * 512, changes)
        };
        let header = store.put_header(&lease, &spec).unwrap();
        let parts = Parts::one(Part::Memory, &*header);
        let name = name.parse().unwrap();
        store.commit_parts(&lease, &name, &parts, false).unwrap();
        header
    };
    let parent = put("early", None, layer, &[run(180, 200, to)]);

    let mut late = early.clone();
    for (i, block) in late[..128 * 512].chunks_mut(512).enumerate() {
        block.fill(u8::try_from(i + 1).unwrap());
    }
    late[182 * 512 + 5..182 * 512 + 9].fill(b'5');
    late[183 * 512..184 * 512].copy_from_slice(&noise(5, 512));
    late[187 * 512 + 300..187 * 512 + 310].fill(b'7');
    let mut writer = store.layer_writer(&lease, size).unwrap();
    writer.push(&late[..128 * 512]).unwrap();
    let mut push = |block: usize, base: Option<u64>| {
        let bytes = &late[block * 512..][..512];
        match base.map(|at| store.base_of(layer.id, at, size).unwrap().unwrap()) {
            Some(base) => writer.push_over(bytes, &base).unwrap(),
            None => writer.push(bytes).unwrap(),
        }
    };
    push(182, Some(2));
    push(183, None);
    push(187, Some(7));
    let layer = writer.finish().unwrap();
    assert_eq!(layer.delta_blocks.0, 2);
    let to = |at| Target::Layer { id: layer.id, at };
    let changes = [
        run(0, 128, to(0)),
        run(182, 184, to(128)),
        run(187, 188, to(130)),
    ];
    put("late", Some(&parent), layer, &changes);
    [early, late]
}

/// The images of a golden store, with the bytes of each.
fn images_of(golden: &str) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let want = write_golden(&Rig::new().store);
    let parts = PARTS
        .into_iter()
        .filter(move |_| [V3, NEWEST].contains(&golden));
    let deltas = DELTAS.into_iter().filter(move |_| golden == NEWEST);
    DISKS.into_iter().chain(parts).chain(deltas).zip(want)
}

fn files_below(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // What leases leave is no part of what is stored.
            if path.is_dir() && !path.ends_with("leases") {
                dirs.push(path);
            } else if path.is_dir() {
                continue;
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn the_golden_store_comes_out_byte_for_byte() {
    let rig = Rig::new();
    write_golden(&rig.store);
    let got = files_below(rig.temp.path());
    let want = files_below(Path::new(NEWEST));
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        want.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in want {
        assert!(
            got[&name] == bytes,
            "{} is written otherwise now",
            name.display()
        );
    }
}

/// `cargo test -p cowslip-snapshot --test it -- --ignored write_the_golden_store`
#[test]
#[ignore = "writes tests/golden/v4: only for a new version of the format"]
fn write_the_golden_store() {
    let rig = Rig::new();
    write_golden(&rig.store);
    for (name, bytes) in files_below(rig.temp.path()) {
        let path = Path::new(NEWEST).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A copy: a checkout has no empty directories, and may be read-only.
fn copy_of(golden: &str) -> tempfile::TempDir {
    let temp = temp_dir();
    std::fs::create_dir(temp.path().join("tmp")).unwrap();
    for (name, bytes) in files_below(Path::new(golden)) {
        let path = temp.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    temp
}

#[test]
fn the_golden_stores_are_read() {
    for golden in GOLDEN {
        golden_is_read(golden);
    }
}

fn golden_is_read(golden: &str) {
    let temp = copy_of(golden);
    let dir = RealDir::open(temp.path()).unwrap();
    let store = Arc::new(Store::open(&dir, CountingHost::from(1000), SMALL).unwrap());
    for (name, want) in images_of(golden) {
        let header = store.resolve_image(&name.parse().unwrap()).unwrap();
        let report = verify(&store, &header, &mut |_, _| ()).unwrap();
        assert!(report.is_whole(), "{:?}", report.damage);
        let image = Image::new(Arc::clone(&store), header);
        let mut got = vec![0; want.len()];
        <dyn Device>::read_at(&image, ByteOffset(0), &mut got).unwrap();
        assert!(got == want, "{name}");
    }
}

/// A second reader, in Python, written from `docs/format.md`.
#[test]
fn another_reader_agrees() {
    for golden in GOLDEN {
        let temp = copy_of(golden);
        let dir = RealDir::open(temp.path()).unwrap();
        let store = Arc::new(Store::open(&dir, CountingHost::from(1000), SMALL).unwrap());
        for (name, _) in images_of(golden) {
            let header = store.resolve_image(&name.parse().unwrap()).unwrap();
            let ours = dir.create(&format!("{name}.raw")).unwrap();
            let image = Image::new(Arc::clone(&store), header);
            export(&image, ours.as_ref(), &mut |_, _| ()).unwrap();
            let ours = std::fs::read(temp.path().join(format!("{name}.raw"))).unwrap();
            let theirs = match read_by_python(temp.path(), name) {
                Ok(theirs) => theirs,
                Err(missing) => return eprintln!("skipped: {missing}"),
            };
            assert!(ours == theirs, "{golden}: {name}");
        }
    }
}

/// What it read, or what is missing here.
fn read_by_python(store: &Path, name: &str) -> Result<Vec<u8>, String> {
    let out = store.join("theirs.raw");
    let python = Command::new("python3")
        .arg(READER)
        .args([store, Path::new(name), &out])
        .output();
    let output = python.map_err(|error| format!("no python3: {error}"))?;
    if output.status.code() == Some(77) {
        return Err(format!(
            "no zstd for Python: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Ok(std::fs::read(&out).unwrap())
}
