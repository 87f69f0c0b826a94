//! It is really copy-on-write: what a large image costs is what changed in it.
//!
//! 64 GiB with 256 MiB of data in it here; the promise is given for 1 GiB.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::bytes::{MIB, noise, sum};
use crate::rig::Rig;

#[test]
fn a_large_image_costs_what_changed() {
    let rig = Rig::new();
    let file = File::create(rig.path("large.raw")).unwrap();
    file.set_len(64 << 30).unwrap();
    let data = noise(1, 16 * MIB);
    for i in 0..16 {
        // Each piece differs, and they lie far apart.
        let mut piece = data.clone();
        piece.rotate_left(i * 4097 + 1);
        file.write_all_at(&piece, (i as u64) << 32).unwrap();
    }
    rig.ok("import large.raw base");
    let served = rig.serve("base --session s");
    let in_session = || sum(&rig.path("s"), &|m| m.blocks() * 512);
    assert!(
        in_session() < 1 << 20,
        "{} bytes in a new session",
        in_session()
    );
    let mut client = served.client();
    assert_eq!(client.info().size_bytes, 64 << 30);
    client.write((7 << 32) + 40960, &noise(9, 4096)).unwrap();
    assert!(
        in_session() < 1 << 20,
        "{} bytes after one write",
        in_session()
    );
    let before = rig.store_bytes();
    let taken = rig.json("snapshot s one");
    let added = rig.store_bytes() - before;
    assert!(added < 64 << 10, "{added} bytes for one block");
    // What the figures say is what there is, to the byte.
    let info = rig.inspect("one");
    assert_eq!(info["stored_bytes"], added);
    assert_eq!(taken["stored_bytes"], added);
    let n = |what: &str| info[what].as_u64().unwrap();
    assert_eq!(n("payload_bytes") + n("header_bytes"), added);
    assert_eq!(
        (n("dirty_blocks"), n("zero_blocks"), n("same_blocks")),
        (1, 0, 0)
    );
    assert_eq!(info["layers"].as_array().unwrap().len(), 2);
    // Nothing written, nothing but a header and a name.
    let before = rig.store_bytes();
    rig.ok("snapshot s two");
    let info = rig.inspect("two");
    assert_eq!(
        (&info["payload_bytes"], &info["generation"]),
        (&0.into(), &2.into())
    );
    assert_eq!(info["stored_bytes"], rig.store_bytes() - before);
    // All of it can go at once.
    client.trim(0, u64::from(u32::MAX - 4095)).unwrap();
    let mut piece = [1; 4096];
    client.read(40960, &mut piece).unwrap();
    assert_eq!(piece, [0; 4096]);
    client.read((7 << 32) + 40960, &mut piece).unwrap();
    assert!(piece[..] == noise(9, 4096));
}
