//! A store in which somebody has changed objects, by accident or with every checksum made right again: served all the
//! same, as far as it can be. Who reads what is healthy is never wrong, also in the same image, while somebody else
//! reads what is not; nothing crashes, and nothing takes more memory than it should.
//!
//! The image is half and half: its first half lies in the layer of `base`, its second in that of `top`, which is the
//! one that is changed. (`crates/snapshot/tests/it/damage.rs` changes each byte of everything, below the server.)

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use cowslip_nbd::Client;

use crate::bytes::{MIB, Seeded, assert_same, noise};
use crate::hostile::{At, memory_peak, step};
use crate::rig::{Rig, Served, said};

const SIZE: usize = 8 * MIB;
const HALF: usize = SIZE / 2;
const FRAME: usize = 64 << 10;
/// Of a server of this image, whatever its store holds.
const MEMORY_BYTES_MAX: usize = 96 * MIB;

/// A store with `base`, `top` made from it, and `other`, which has nothing to do with them.
struct World {
    rig: Rig,
    image: Vec<u8>,
    layer: PathBuf,
    header: PathBuf,
    record: PathBuf,
    /// Of `other`.
    foreign: PathBuf,
}

/// CRC-32C, as the format has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn number(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

impl World {
    fn new() -> Self {
        let rig = Rig::new();
        let mut image = noise(1, SIZE);
        rig.import("base", &image);
        let served = rig.serve("base --session s");
        let data = noise(2, HALF);
        served.client().write(HALF as u64, &data).unwrap();
        image[HALF..].copy_from_slice(&data);
        rig.ok("snapshot s top");
        served.end();
        rig.import("other", &noise(3, HALF));
        let path =
            |kind: &str, id: &serde_json::Value| rig.store().join(kind).join(id.as_str().unwrap());
        let (top, other) = (rig.inspect("top"), rig.inspect("other"));
        let own = top["layers"].as_array().unwrap();
        let base = rig.inspect("base")["layers"][0]["id"].clone();
        let own = own.iter().map(|l| &l["id"]).find(|id| **id != base);
        let layer = path("layers", own.unwrap());
        let header = path("headers", &top["header"]);
        let foreign = path("layers", &other["layers"][0]["id"]);
        let record = rig.store().join("snapshots/top");
        Self {
            rig,
            image,
            layer,
            header,
            record,
            foreign,
        }
    }

    /// The image cannot be served, and that is said; or it can, and then nobody reads anything wrong. Says which, and
    /// whether all of the second half could be read. What an attacker wrote with all checksums right is not wrong.
    fn serve(&self, what: &str, crafted: bool) -> Option<bool> {
        if !self.rig.run("inspect top").status.success() {
            let output = self.rig.run("serve top --nbd unix:v.sock");
            let text = said(&output);
            // A version that is not known is no damage that can be told.
            let version = text.contains("is written in version");
            let wanted = if version { 1 } else { 4 };
            assert_eq!(output.status.code(), Some(wanted), "{what}: {text}");
            return None;
        }
        let served = self.rig.serve_at("top", "v.sock");
        let at = At::of(&served);
        let end = AtomicBool::new(false);
        let whole = std::thread::scope(|scope| {
            let good = scope.spawn(|| self.first_half(at.connect().unwrap(), &end, what));
            let whole = self.second_half(&at, what, crafted);
            end.store(true, Ordering::Relaxed);
            good.join().unwrap();
            whole
        });
        let peak = memory_peak(&at);
        assert!(peak < MEMORY_BYTES_MAX, "{what}: {} MiB", peak / MIB);
        let said = served.end();
        assert!(!said.contains("panic"), "{what}: {said}");
        Some(whole)
    }

    fn first_half(&self, mut client: Client, end: &AtomicBool, what: &str) {
        let mut oracle = self.image[..HALF].to_vec();
        let (mut seeded, mut read) = (Seeded(5), Vec::new());
        let mut at_least = 20;
        while at_least > 0 || !end.load(Ordering::Relaxed) {
            step(&mut client, &mut oracle, &mut seeded, &mut read);
            at_least -= i32::from(at_least > 0);
        }
        let mut all = vec![0; HALF];
        client.read(0, &mut all).unwrap();
        assert_same(&all, &oracle, what);
    }

    /// Reads all of it, a frame at a time and as a whole, and writes where a read comes first.
    fn second_half(&self, at: &At, what: &str, crafted: bool) -> bool {
        let mut client = at.connect().unwrap();
        let mut frame = vec![0; FRAME];
        let mut whole = true;
        for place in (HALF..SIZE).step_by(FRAME) {
            match client.read(place as u64, &mut frame) {
                Ok(()) if crafted => {}
                Ok(()) => assert_same(&frame, &self.image[place..place + FRAME], what),
                Err(error) => {
                    assert!(error.to_string().contains("EIO"), "{what}: {error}");
                    whole = false;
                }
            }
        }
        let mut all = vec![0; HALF];
        let read = client.read(HALF as u64, &mut all).is_ok();
        assert_eq!(read, whole, "{what}");
        // A part of a block needs the rest of it; a whole one does not.
        drop(client.write((HALF + 100) as u64, b"part"));
        client.write((HALF + FRAME) as u64, &[9; 4096]).unwrap();
        whole
    }

    /// Puts these bytes there, sees what becomes of it, and puts the old ones back.
    fn with(&self, path: &PathBuf, bytes: &[u8], what: &str, crafted: bool) -> Option<bool> {
        let before = std::fs::read(path).unwrap();
        std::fs::write(path, bytes).unwrap();
        let found = self.serve(what, crafted);
        std::fs::write(path, before).unwrap();
        found
    }
}

/// Bytes flipped in every part of an object, and the object cut in every part.
fn changes(bytes: &[u8], flips: usize) -> Vec<(String, Vec<u8>)> {
    let len = bytes.len();
    let (mut all, mut seeded) = (Vec::new(), Seeded(len as u64));
    // The end has index, metadata and footer, where most is decided.
    let ends = (1..=64).step_by(5).map(|back| len - back.min(len));
    let spread = (0..flips).map(|_| seeded.below(len)).collect::<Vec<_>>();
    for at in ends.chain(spread) {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        all.push((format!("byte {at} flipped"), flipped));
    }
    for cut in [0, 1, len / 2, len - 65.min(len), len - 1] {
        all.push((format!("cut to {cut}"), bytes[..cut].to_vec()));
    }
    all.push(("one byte more".into(), [bytes, &[0]].concat()));
    all
}

#[test]
fn every_kind_of_object_flipped_cut_or_exchanged() {
    let world = World::new();
    assert_eq!(world.serve("a healthy store", false), Some(true));
    let bytes = std::fs::read(&world.layer).unwrap();
    let (mut broken, mut served) = (0, 0);
    let mut count = |found: Option<bool>, what: &str| {
        assert_ne!(found, Some(true), "{what}: nobody noticed");
        broken += usize::from(found.is_none());
        served += usize::from(found.is_some());
    };
    for (what, changed) in changes(&bytes, 8) {
        let what = format!("the layer, {what}");
        count(world.with(&world.layer, &changed, &what, false), &what);
    }
    for path in [&world.header, &world.record] {
        let bytes = std::fs::read(path).unwrap();
        for (what, changed) in changes(&bytes, 6) {
            let what = format!("{}, {what}", path.display());
            count(world.with(path, &changed, &what, false), &what);
        }
    }
    // Each in the place of another whole one of its kind.
    let store = world.rig.store();
    let header = world.rig.inspect("other")["header"].clone();
    for (path, other) in [
        (&world.layer, world.foreign.clone()),
        (
            &world.header,
            store.join("headers").join(header.as_str().unwrap()),
        ),
        (&world.record, store.join("snapshots/other")),
    ] {
        let what = format!("{}, exchanged", path.display());
        let other = std::fs::read(other).unwrap();
        count(world.with(path, &other, &what, false), &what);
    }
    assert!(
        broken > 20 && served > 15,
        "{broken} refused, {served} served"
    );
    assert_eq!(world.serve("all put back", false), Some(true));
}

/// A layer of raw or zstd frames of these stored bytes, with all checksums right; each says that it decodes to 64 KiB.
fn layer(id: &[u8], frames: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out: Vec<u8> = frames
        .iter()
        .flat_map(|(_, stored)| stored.to_vec())
        .collect();
    let index_at = out.len();
    for (kind, stored) in frames {
        let len = u32::try_from(stored.len()).unwrap();
        out.extend((u32::from(*kind) << 24 | len).to_le_bytes());
        out.extend(crc32c(stored).to_le_bytes());
    }
    let index_crc = crc32c(&out[index_at..]);
    let footer = out.len();
    out.extend(id);
    out.extend((frames.len() as u64 * 16).to_le_bytes());
    out.extend(4096u32.to_le_bytes());
    out.extend(16u32.to_le_bytes());
    out.extend((index_at as u64).to_le_bytes());
    out.extend(index_crc.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    let crc = crc32c(&out[footer..]);
    out.extend(crc.to_le_bytes());
    out.extend(b"cowslipL");
    out
}

/// A frame of zstd: this header, and 16,000 times 128 KiB of one byte, which is 2 GB.
fn bomb(header: &[u8]) -> Vec<u8> {
    let block = |last: u32| (last | 1 << 1 | (128 << 10) << 3).to_le_bytes();
    let mut out = [&[0x28, 0xb5, 0x2f, 0xfd][..], header].concat();
    for n in 0..16_000 {
        out.extend(&block(u32::from(n == 15_999))[..3]);
        out.push(b'b');
    }
    out
}

#[test]
fn frames_that_decode_to_gigabytes() {
    let world = World::new();
    let id = std::fs::read(&world.layer).unwrap();
    let id = &id[id.len() - 64..id.len() - 48];
    let fine = noise(4, FRAME);
    // No size is said; the right one is said, and 2 GB; the largest window there is; a size of 2^62.
    let headers: [&[u8]; 5] = [
        &[0x00, 0x58],
        &[0xa0, 0, 0, 1, 0],
        &[0xa0, 0, 0, 0, 0x7d],
        &[0x00, 0xff],
        &[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40],
    ];
    for header in headers {
        let bomb = bomb(header);
        let mut frames = vec![(0, &fine[..]); HALF / FRAME];
        for n in [0, 5, HALF / FRAME - 1] {
            frames[n] = (1, &bomb);
        }
        let object = layer(id, &frames);
        let what = format!("a bomb with {header:02x?}");
        let found = world.with(&world.layer, &object, &what, true);
        assert_eq!(found, Some(false), "{what}");
    }
    // The rig is right: the same layer without a bomb is served.
    let object = layer(id, &vec![(0, &fine[..]); HALF / FRAME]);
    let found = world.with(&world.layer, &object, "a layer of our making", true);
    assert_eq!(found, Some(true));
    // One that holds less than the header maps.
    let short = layer(id, &[(0, &fine[..])]);
    let found = world.with(&world.layer, &short, "a short layer", true);
    assert_eq!(found, Some(false));
}

/// A header is bound to its layers by name alone: one whose checksums are all right may name any layer of its store, as a
/// fork does. Then its bytes are read, as far as there are any; and nobody else's image is another for it.
#[test]
fn a_header_that_points_at_the_layer_of_another_snapshot() {
    let world = World::new();
    let own = std::fs::read(&world.layer).unwrap();
    let foreign = std::fs::read(&world.foreign).unwrap();
    let id = |layer: &[u8]| layer[layer.len() - 64..layer.len() - 48].to_vec();
    let mut header = std::fs::read(&world.header).unwrap();
    let footer = header.len() - 32;
    let nodes = number(&header, footer);
    let root = nodes + 108;
    assert_eq!(header[root], 2, "the root is a node");
    let (at, len) = (
        number(&header, root + 17),
        number(&header, root + 25) & 0xffff_ffff,
    );
    assert_eq!((at, len), (0, nodes), "and the only one");
    let place = header[..nodes]
        .windows(16)
        .position(|w| w == id(&own))
        .unwrap();
    put(&mut header, place, &id(&foreign));
    // What the attacker makes right: the node's hash, the metadata's checksum, the footer's, and the record.
    let hash = blake3::hash(&header[..nodes]);
    put(&mut header, root + 29, &hash.as_bytes()[..16]);
    let crc = crc32c(&header[nodes..footer]);
    put(&mut header, footer + 12, &crc.to_le_bytes());
    let crc = crc32c(&header[footer..footer + 20]);
    put(&mut header, footer + 20, &crc.to_le_bytes());
    let mut record = std::fs::read(&world.record).unwrap();
    let hash = blake3::hash(&header[nodes..]);
    put(&mut record, 36, &hash.as_bytes()[..16]);
    let crc = crc32c(&[&record[..68], b"top"].concat());
    put(&mut record, 68, &crc.to_le_bytes());
    std::fs::write(&world.header, &header).unwrap();
    std::fs::write(&world.record, &record).unwrap();
    assert_eq!(world.serve("another's layer", true), Some(true));
    assert!(world.rig.export("top")[HALF..] == noise(3, HALF));
    assert!(world.rig.export("base") == noise(1, SIZE));
    assert!(world.rig.export("other") == noise(3, HALF));
    // The other's layer goes with nobody's name, as long as this one needs it.
    world.rig.ok("rm other");
    world.rig.ok("gc");
    assert_eq!(world.serve("another's layer, kept", true), Some(true));
    std::fs::remove_file(&world.foreign).unwrap();
    assert_eq!(world.serve("a layer of nobody", true), Some(false));
}

/// Its server is another process: what happens to a store happens to nobody who reads other images of it.
#[test]
fn another_server_of_the_same_store_goes_on() {
    let world = World::new();
    let served: Served = world.rig.serve_at("other", "o.sock");
    let mut client = served.client();
    let mut oracle = noise(3, HALF);
    let (mut seeded, mut read) = (Seeded(8), Vec::new());
    let objects = [&world.layer, &world.header, &world.record];
    for path in objects {
        std::fs::write(path, noise(6, 10_000)).unwrap();
        for _ in 0..100 {
            step(&mut client, &mut oracle, &mut seeded, &mut read);
        }
    }
    drop(client);
    served.end();
}
