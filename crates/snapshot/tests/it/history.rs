//! A long history of one session: each snapshot costs what changed since the one before, holds what it
//! held, and is read as cheaply as the first.
//!
//! 200 snapshots here; `cargo xtask history` has 10,000, the same load on a disk of 1 GiB.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, RealDir};
use cowslip_block::{BlockSize, ByteOffset, Device};
use cowslip_sim::load::{self, BLOCK, Load};
use cowslip_snapshot::host::{Host, RealHost};
use cowslip_snapshot::image::Image;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::reads::StoreReads;
use cowslip_snapshot::session::{Session, SnapshotOptions, Surroundings};
use cowslip_snapshot::{Caches, SnapshotName, Store, StoredBytes};
use tempfile::TempDir;

use crate::rig::temp_dir;

const SNAPSHOTS: usize = 200;
/// Two levels of map over the leaves, as a disk of 1 GiB has.
const BLOCKS: usize = 10_000;
/// Blocks that are looked up.
const LOOKED_UP: usize = 300;

fn name(number: usize) -> SnapshotName {
    format!("s{number}").parse().unwrap()
}

fn open(temp: &TempDir) -> Arc<Store> {
    let dir = RealDir::open_or_create(&temp.path().join("store")).unwrap();
    let store = Store::open_or_create(&dir, Arc::new(RealHost), Caches::default());
    Arc::new(store.unwrap())
}

/// The template, as snapshot 0.
fn import_template(temp: &TempDir, store: &Store, load: &Load) {
    let path = temp.path().join("template.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((BLOCKS * BLOCK) as u64).unwrap();
    for (block, version) in load.after(0).into_iter().enumerate() {
        if version != 0 {
            let bytes = load::content(version, block);
            file.write_all_at(&bytes, (block * BLOCK) as u64).unwrap();
        }
    }
    let dir = RealDir::open(temp.path()).unwrap();
    let file = dir.open("template.raw", Access::Read).unwrap();
    let options = ImportOptions {
        block_size: BlockSize::DISK,
        made_by: "a test".into(),
    };
    let lease = store.lease().unwrap();
    let size = (BLOCKS * BLOCK) as u64;
    let header = import(store, &lease, &*file, size, &options, &mut |_, _| ()).unwrap();
    store.commit(&lease, &name(0), &header, false).unwrap();
}

fn begin(temp: &TempDir, store: &Arc<Store>) -> Session {
    let path = temp.path().join("session");
    let around = Surroundings {
        dir: Arc::new(RealDir::open_or_create(&path).unwrap()),
        path,
        temporary: false,
        store: Arc::clone(store),
        store_path: temp.path().join("store"),
        host: Arc::new(RealHost) as Arc<dyn Host>,
        unneeded: None,
        say: Box::new(|text| panic!("{text}")),
    };
    Session::create(around, &name(0), None).unwrap()
}

/// What it takes to open a snapshot and read one block of it, nothing cached, over some hundred
/// blocks.
fn look_up(temp: &TempDir, number: usize, blocks: &[usize]) -> StoreReads {
    let mut all = StoreReads::default();
    for block in blocks {
        let store = open(temp);
        let header = store.resolve(&name(number)).unwrap();
        let image = Image::new(Arc::clone(&store), header);
        let mut bytes = [0; BLOCK];
        let at = ByteOffset((block * BLOCK) as u64);
        (&image as &dyn Device).read_at(at, &mut bytes).unwrap();
        all += store.reads();
    }
    all
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of[of.len() / 2]
}

#[test]
fn a_long_history_costs_what_changed_and_reads_as_cheaply_as_a_short_one() {
    let temp = temp_dir();
    let store = open(&temp);
    let mut load = Load::new(7, BLOCKS);
    import_template(&temp, &store, &load);
    let session = begin(&temp, &store);
    let mut added: Vec<StoredBytes> = Vec::new();
    for number in 1..=SNAPSHOTS {
        load.round(&*session.device()).unwrap();
        session
            .freeze(&name(number), &SnapshotOptions::default())
            .unwrap();
        assert!(session.seal_next());
        let header = store.resolve(&name(number)).unwrap();
        added.push(store.stored_bytes(&header));
    }
    drop((session, store));

    // Flat, header included.
    let tenth = SNAPSHOTS / 10;
    let of = |part: &[StoredBytes]| median(part.iter().map(|b| b.total()).collect());
    let (first, last) = (of(&added[..tenth]), of(&added[SNAPSHOTS - tenth..]));
    assert!(
        last * 5 <= first * 6,
        "{first} bytes a snapshot, and then {last}"
    );

    // Every byte of every one.
    let fresh = open(&temp);
    for number in 0..=SNAPSHOTS {
        let header = fresh.resolve(&name(number)).unwrap();
        let image = Image::new(Arc::clone(&fresh), header);
        load::compare(&image, &load.after(number)).unwrap_or_else(|why| panic!("{number}: {why}"));
    }

    let blocks = load::some_with_data(&load.after(SNAPSHOTS), LOOKED_UP);
    let (first, last) = (
        look_up(&temp, 1, &load::some_with_data(&load.after(1), LOOKED_UP)),
        look_up(&temp, SNAPSHOTS, &blocks),
    );
    assert!(first.frames >= LOOKED_UP as u64 && last.frames >= LOOKED_UP as u64);
    assert!(
        last.total() * 5 <= first.total() * 6,
        "{first:?}, and then {last:?}"
    );
}
