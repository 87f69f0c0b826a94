//! Compaction: every image reads the same, what nobody needs is gone, and nothing is taken from
//! anybody who reads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use cowslip_block::files::RealDir;
use cowslip_block::{BlockSize, ByteOffset, Device};
use cowslip_snapshot::compact::{Around, Compacted, Options, Policy, Progress, compact, survey};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{
    Header, HeaderSpec, Image, MapRun, SnapshotName, Store, StoreError, Target,
};

use crate::gc::open_objects;
use crate::rig::{CountingHost, Rig, SMALL, noise, run, spec};
use crate::session_world::BLOCK;

/// Everything that can be left is left.
const TIGHT: Policy = Policy {
    garbage_percent: 0,
    garbage_bytes_min: 0,
    layers_max: 1,
    layers_after: 1,
};

fn options(policy: Policy) -> Options {
    Options {
        policy,
        names: Vec::new(),
        step_bytes: u64::MAX,
    }
}

fn around<'a>(progress: &'a dyn Fn(Progress) -> bool) -> Around<'a> {
    Around {
        moved: &|_| {},
        progress,
    }
}

pub(crate) fn tight(store: &Store) -> Result<Compacted, StoreError> {
    compact(store, &options(TIGHT), &around(&|_| true))
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

const BLOCKS: u64 = 8_000;

/// Images of [`BLOCKS`] blocks, each a small number from which its bytes are made; 0 is zeros.
struct Fleet {
    rig: Rig,
    images: BTreeMap<SnapshotName, (Arc<Header>, Vec<u32>)>,
    next: u32,
    random: u64,
}

fn block_of(seed: u32) -> Vec<u8> {
    match seed {
        0 => vec![0; BLOCK],
        seed => noise(u64::from(seed), BLOCK),
    }
}

impl Fleet {
    fn new() -> Self {
        Self {
            rig: Rig::new(),
            images: BTreeMap::new(),
            next: 1,
            random: 42,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// A snapshot in which so many places changed, each of a few blocks, some of them to zeros.
    fn snapshot(&mut self, parent: Option<&str>, text: &str, places: u64) {
        let parent = parent.map(|p| self.images[&name(p)].clone());
        let (parent, mut image) = match parent {
            Some((header, image)) => (Some(header), image),
            None => (None, vec![0; usize::try_from(BLOCKS).unwrap()]),
        };
        let mut starts: Vec<u64> = (0..places).map(|_| self.random(BLOCKS / 8) * 8).collect();
        starts.sort_unstable();
        starts.dedup();
        let store = Arc::clone(&self.rig.store);
        let lease = store.lease().unwrap();
        let mut writer = store.layer_writer(&lease, BlockSize::DISK).unwrap();
        let mut changes: Vec<MapRun> = Vec::new();
        for start in starts {
            let count = 1 + self.random(8);
            let is_zero = self.random(5) == 0;
            let mut to = Target::Zero;
            for block in start..start + count {
                let seed = if is_zero { 0 } else { self.next };
                image[usize::try_from(block).unwrap()] = seed;
                if !is_zero {
                    self.next += 1;
                    let at = writer.push(&block_of(seed)).unwrap();
                    if block == start {
                        let id = writer.id();
                        to = Target::Layer { id, at };
                    }
                }
            }
            changes.push(run(start, start + count, to));
        }
        let layer = (writer.blocks().0 > 0).then(|| writer.finish().unwrap());
        let spec = HeaderSpec {
            layer,
            ..spec(parent.as_deref(), BLOCKS * 4096, &changes)
        };
        let header = store.put_header(&lease, &spec).unwrap();
        store.commit(&lease, &name(text), &header, false).unwrap();
        self.images.insert(name(text), (header, image));
    }

    fn remove(&mut self, text: &str) {
        self.rig.store.remove(&name(text)).unwrap();
        self.images.remove(&name(text)).unwrap();
    }

    /// Reads every image from a store that has cached nothing.
    fn check(&self) {
        let store = self.rig.reopened();
        for (name, (before, image)) in &self.images {
            let header = store.resolve(name).unwrap();
            let report = verify(&store, &header, &mut |_, _| ()).unwrap();
            assert!(report.is_whole(), "{name}: {:?}", report.damage);
            let (now, old) = (header.meta(), before.meta());
            assert_eq!(
                (now.origin, now.parent, now.generation, now.created_unix_ms),
                (old.origin, old.parent, old.generation, old.created_unix_ms)
            );
            assert_eq!(now.figures, old.figures);
            let device: &dyn Device = &Image::new(Arc::clone(&store), header);
            let mut bytes = vec![0xee; BLOCK * 250];
            for (n, seeds) in image.chunks(250).enumerate() {
                let bytes = &mut bytes[..seeds.len() * BLOCK];
                let at = ByteOffset((n * 250 * BLOCK) as u64);
                device.read_at(at, bytes).unwrap();
                let want: Vec<u8> = seeds.iter().flat_map(|seed| block_of(*seed)).collect();
                assert!(bytes == want, "{name}, from block {}", n * 250);
            }
        }
    }

    fn layers_of(&self, text: &str) -> usize {
        let header = self.rig.reopened().resolve(&name(text)).unwrap();
        header.layers().unwrap().len()
    }

    fn object_bytes(&self, dir: &str) -> u64 {
        let files = std::fs::read_dir(self.rig.path(dir)).unwrap();
        files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
    }
}

#[test]
fn images_read_the_same_and_what_nobody_needs_is_gone() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 400);
    let chain: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let mut parent = "base";
    for text in &chain {
        fleet.snapshot(Some(parent), text, 40);
        parent = text;
    }
    fleet.snapshot(Some("s7"), "fork", 60);
    fleet.remove("base");
    for text in &chain[..18] {
        if text != "s9" {
            fleet.remove(text);
        }
    }
    let looked = survey(&fleet.rig.store, &options(TIGHT), &|_| true).unwrap();
    let done = tight(&fleet.rig.store).unwrap();
    assert_eq!(
        (done.before, done.copied_bytes > 0),
        (looked.before, looked.copied_bytes > 0)
    );
    assert!(done.before.garbage_bytes() > 1 << 20, "{done:?}");
    assert_eq!(done.swapped, fleet.images.len() as u64);
    fleet.check();
    // All of it is one layer now, without a block that nobody needs.
    for text in ["s9", "s19", "fork"] {
        assert_eq!(fleet.layers_of(text), 1, "{text}");
    }
    let again = survey(&fleet.rig.reopened(), &options(TIGHT), &|_| true).unwrap();
    assert_eq!(
        again.before.garbage_bytes(),
        again.before.object_bytes - again.before.live_bytes
    );
    let stored = fleet.object_bytes("layers") + fleet.object_bytes("headers");
    assert_eq!(stored, again.before.object_bytes);
    let garbage = again.before.garbage_bytes();
    assert!(garbage < stored / 100, "{garbage} of {stored}");
    assert!(fleet.rig.tmp_is_empty());
}

#[test]
fn images_that_share_go_on_sharing() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 2000);
    for n in 0..30 {
        fleet.snapshot(Some("base"), &format!("fork-{n}"), 1);
    }
    let (layers, headers) = (fleet.object_bytes("layers"), fleet.object_bytes("headers"));
    tight(&fleet.rig.store).unwrap();
    fleet.check();
    assert!(fleet.object_bytes("layers") < layers + layers / 50);
    assert!(fleet.object_bytes("headers") < headers + headers / 5);
}

#[test]
fn a_policy_that_is_content_changes_nothing() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 400);
    fleet.snapshot(Some("base"), "next", 20);
    let headers = fleet.object_bytes("headers");
    let done = compact(&fleet.rig.store, &options(Policy::AUTO), &around(&|_| true));
    let done = done.unwrap();
    assert_eq!(
        (done.copied_bytes, done.swapped, done.left_objects),
        (0, 0, 0)
    );
    assert_eq!(fleet.object_bytes("headers"), headers);
}

#[test]
fn steps_are_as_small_as_they_are_asked_to_be() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 100);
    let mut parent = "base".to_owned();
    for n in 0..12 {
        let text = format!("s{n}");
        fleet.snapshot(Some(&parent), &text, 100);
        parent = text;
    }
    for n in 0..11 {
        fleet.remove(&format!("s{n}"));
    }
    let most = Cell::new(0);
    let progress = |p| {
        if let Progress::Copied(done, _) = p {
            most.set(most.get().max(done));
        }
        true
    };
    let step_bytes = 256 << 10;
    let policy = Policy {
        layers_max: u64::MAX,
        ..TIGHT
    };
    let options = Options {
        step_bytes,
        ..options(policy)
    };
    let done = compact(&fleet.rig.store, &options, &around(&progress)).unwrap();
    assert!(done.copied_bytes > 4 * step_bytes, "{done:?}");
    // One layer more than fits, at most.
    assert!(most.get() < step_bytes + (4 << 20), "{}", most.get());
    assert!(most.get() < done.copied_bytes / 2, "{}", most.get());
    fleet.check();
}

/// The room of what a step left is there for the next one.
#[test]
fn what_a_step_removed_is_not_open_in_the_next() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 100);
    for n in 0..4 {
        fleet.snapshot(Some("base"), &format!("s{n}"), 100);
    }
    fleet.remove("base");
    let store = fleet.rig.temp.path().to_str().unwrap();
    let (steps, open) = (Cell::new(0), Cell::new(0));
    let progress = |p| {
        if p == Progress::Surveyed(1, 4) {
            steps.set(steps.get() + 1);
            let objects = open_objects(store);
            let removed = objects.iter().filter(|o| o.ends_with(" (deleted)"));
            open.set(open.get() + removed.count());
        }
        true
    };
    let options = Options {
        step_bytes: 1,
        ..options(Policy {
            layers_max: u64::MAX,
            ..TIGHT
        })
    };
    compact(&fleet.rig.store, &options, &around(&progress)).unwrap();
    assert!(steps.get() > 2, "{steps:?}");
    assert_eq!(open.get(), 0);
}

#[test]
fn only_what_the_named_images_use() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "a", 200);
    fleet.snapshot(None, "b", 200);
    fleet.snapshot(Some("a"), "a2", 150);
    fleet.snapshot(Some("b"), "b2", 150);
    fleet.remove("a");
    fleet.remove("b");
    let id = |text: &str| fleet.rig.reopened().resolve(&name(text)).unwrap().id();
    let (a, b) = (id("a2"), id("b2"));
    let mut options = options(TIGHT);
    options.names = vec![name("a2")];
    compact(&fleet.rig.store, &options, &around(&|_| true)).unwrap();
    assert_ne!(id("a2"), a);
    assert_eq!(id("b2"), b);
    fleet.check();
    options.names = vec![name("nobody")];
    let error = compact(&fleet.rig.store, &options, &around(&|_| true)).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

#[test]
fn it_can_be_interrupted_anywhere_and_goes_on_later() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 60);
    for n in 0..4 {
        fleet.snapshot(Some("base"), &format!("s{n}"), 30);
    }
    fleet.remove("base");
    let mut stop = 0;
    loop {
        stop += 1 + stop / 2;
        let told = Cell::new(0);
        let progress = |_| {
            told.set(told.get() + 1);
            told.get() <= stop
        };
        let done = compact(&fleet.rig.store, &options(TIGHT), &around(&progress)).unwrap();
        assert!(fleet.rig.tmp_is_empty());
        if !done.interrupted {
            assert!(stop > 20);
            break;
        }
        let store = fleet.rig.reopened();
        for name in fleet.images.keys() {
            let header = store.resolve(name).unwrap();
            let report = verify(&store, &header, &mut |_, _| ()).unwrap();
            assert!(report.is_whole(), "{name}: {:?}", report.damage);
        }
    }
    fleet.check();
    assert_eq!(fleet.layers_of("s3"), 1);
}

#[test]
fn what_is_being_read_is_not_taken_away() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 60);
    fleet.snapshot(Some("base"), "next", 60);
    let reader = fleet.rig.reopened();
    let (header, lease) = reader.resolve_leased(&name("next")).unwrap();
    let before = header.id();
    tight(&fleet.rig.store).unwrap();
    assert_ne!(reader.resolve(&name("next")).unwrap().id(), before);
    assert!(verify(&reader, &header, &mut |_, _| ()).unwrap().is_whole());
    drop(lease);
    collect(&fleet.rig.store, false, &mut |_, _| ()).unwrap();
    assert!(fleet.rig.reopened().find_header(before).unwrap().is_none());
    fleet.check();
}

#[test]
fn two_at_once_are_one_too_many() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 60);
    let other = fleet.rig.reopened();
    let refused = Cell::new(false);
    let progress = |_| {
        let error = tight(&other).unwrap_err();
        refused.set(error.to_string().contains("another compaction"));
        true
    };
    compact(&fleet.rig.store, &options(TIGHT), &around(&progress)).unwrap();
    assert!(refused.get());
}

#[test]
fn a_name_that_was_replaced_meanwhile_is_left_alone() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 60);
    fleet.snapshot(Some("base"), "one", 60);
    fleet.snapshot(Some("base"), "two", 60);
    let two = fleet.images[&name("two")].clone();
    let store = Arc::clone(&fleet.rig.store);
    let mid = Cell::new(true);
    let progress = |p| {
        if matches!(p, Progress::Copied(..)) && mid.replace(false) {
            let lease = store.lease().unwrap();
            store.commit(&lease, &name("one"), &two.0, true).unwrap();
            store.remove(&name("base")).unwrap();
        }
        true
    };
    compact(&fleet.rig.store, &options(TIGHT), &around(&progress)).unwrap();
    assert!(!mid.get());
    fleet.images.remove(&name("base"));
    fleet.images.insert(name("one"), two);
    fleet.check();
    assert!(!fleet.rig.store.has(&name("base")).unwrap());
}

#[test]
fn a_damaged_layer_is_left_as_it_is() {
    // In a frame, in the footer, cut short, and not there at all.
    for damage in 0..4 {
        let mut fleet = Fleet::new();
        fleet.snapshot(None, "base", 60);
        for n in 0..3 {
            fleet.snapshot(Some("base"), &format!("s{n}"), 30);
        }
        let bad = fleet.images[&name("s1")].0.meta().own_layer.unwrap();
        let path = fleet.rig.path(&format!("layers/{bad}"));
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        match damage {
            0 => flipped[5] ^= 1,
            1 => flipped[good.len() - 30] ^= 1,
            2 => flipped.truncate(good.len() / 2),
            _ => {}
        }
        match damage {
            3 => std::fs::remove_file(&path).unwrap(),
            _ => std::fs::write(&path, &flipped).unwrap(),
        }
        let store = fleet.rig.reopened();
        if damage > 0 {
            let looked = survey(&store, &options(TIGHT), &|_| true).unwrap();
            assert_eq!(looked.damaged.len(), 1, "{:?}", looked.damaged);
        }
        let done = tight(&store).unwrap();
        assert_eq!(done.damaged.len(), 1, "{:?}", done.damaged);
        assert!(
            done.damaged[0].contains(&bad.to_string()),
            "{:?}",
            done.damaged
        );
        // The others were compacted, and nothing of it is lost.
        assert_eq!(fleet.layers_of("s0"), 1);
        std::fs::write(&path, &good).unwrap();
        fleet.check();
    }
}

/// Compactions one after the other beside readers, on real files.
#[test]
fn compactions_beside_readers_and_removals() {
    let mut fleet = Fleet::new();
    fleet.snapshot(None, "base", 300);
    for n in 0..8 {
        fleet.snapshot(Some("base"), &format!("s{n}"), 30);
    }
    let dir = RealDir::open(fleet.rig.temp.path()).unwrap();
    let other = Store::open(&dir, CountingHost::from(1 << 40), SMALL).unwrap();
    std::thread::scope(|scope| {
        let compacting = scope.spawn(|| {
            for n in 0..8 {
                tight(&other).unwrap();
                other.remove(&name(&format!("s{n}"))).unwrap();
            }
        });
        while !compacting.is_finished() {
            let store = fleet.rig.reopened();
            let (header, _lease) = store.resolve_leased(&name("base")).unwrap();
            let report = verify(&store, &header, &mut |_, _| ()).unwrap();
            assert!(report.is_whole(), "{:?}", report.damage);
        }
        compacting.join().unwrap();
    });
    for n in 0..8 {
        fleet.images.remove(&name(&format!("s{n}")));
    }
    fleet.check();
}
