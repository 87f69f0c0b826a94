//! Repair: what can be had again is, bit for bit; the rest is listed, and nothing else is touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowslip_block::files::{Access, Dir, read_all};
use cowslip_sim::{Call, EIO, Faults, FaultyDir, Forget, MemoryFs, Rule};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::host::Host;
use cowslip_snapshot::repair::{RepairOptions, RepairReport, repair};
use cowslip_snapshot::{SnapshotName, Store};

use crate::damage::in_parallel;
use crate::made::{Made, Maker, Place, everything, text};
use crate::rig::{CountingHost, noise};

const BLOCK: usize = 512;

fn mend_with(place: &Place, options: RepairOptions<'_>) -> RepairReport {
    let host: Arc<dyn Host> = CountingHost::from(1 << 50);
    repair(&*place.root, &host, options, &mut |done, all| {
        assert!(done <= all)
    })
    .unwrap()
}

fn mend(place: &Place) -> RepairReport {
    mend_with(place, RepairOptions::default())
}

fn from(store: &Store) -> RepairOptions<'_> {
    RepairOptions {
        from: Some(store),
        ..RepairOptions::default()
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes
}

/// What is damaged of one object: a byte flipped, cut short, or gone.
#[derive(Debug)]
enum Harm {
    Flip(usize),
    Cut(usize),
    Gone,
}

/// Harm to each object, all over it.
fn harms(made: &Made) -> Vec<(&str, Harm)> {
    let mut all = Vec::new();
    for (path, bytes) in &made.files {
        let step = if path.starts_with("layers/") { 31 } else { 5 };
        all.extend(
            (0..bytes.len())
                .step_by(step)
                .map(|at| (path.as_str(), Harm::Flip(at))),
        );
        all.extend(
            (0..bytes.len())
                .step_by(61)
                .map(|len| (path.as_str(), Harm::Cut(len))),
        );
        all.push((path, Harm::Gone));
    }
    all
}

fn harm(place: &Place, whole: &[u8], path: &str, harm: &Harm) {
    let bytes = match harm {
        Harm::Flip(at) => Some(flipped(whole, *at)),
        Harm::Cut(len) => Some(whole[..*len].to_vec()),
        Harm::Gone => None,
    };
    place.write(path, bytes.as_deref());
}

#[test]
fn all_that_another_store_has_comes_back_bit_for_bit() {
    let made = everything();
    in_parallel(&made, &harms(&made), |place, (path, what)| {
        // A name or a session that is gone is no damage.
        let none = path.starts_with("snapshots/") || path.starts_with("sessions/");
        if none && matches!(what, Harm::Gone) {
            return;
        }
        let other = Place::of(&made.files).open().unwrap();
        harm(place, &made.files[*path], path, what);
        let report = mend_with(place, from(&other));
        let context = format!("{path}, {what:?}: {report:?}");
        if path.starts_with("sessions/") {
            // The session itself knows what it needs.
            assert_eq!(report.left_count, 1, "{context}");
            assert!(report.left[0].advice.as_ref().unwrap().contains("--forget"));
            place.write(path, Some(&made.files[*path]));
        } else {
            assert!(report.is_whole() && report.lost.is_empty(), "{context}");
            assert!(report.mended.iter().all(|m| m.object == *path), "{context}");
        }
        assert!(place.files() == made.files, "{context}");
        assert!(place.tmp_is_empty());
    });
}

#[test]
fn without_another_store_an_object_comes_back_or_stays_as_it_is() {
    let made = everything();
    in_parallel(&made, &harms(&made), |place, (path, what)| {
        let whole = &made.files[*path];
        harm(place, whole, path, what);
        let before = place.files();
        let dry = mend_with(
            place,
            RepairOptions {
                dry_run: true,
                ..RepairOptions::default()
            },
        );
        assert!(
            place.files() == before && place.tmp_is_empty(),
            "{path}, {what:?}"
        );
        let report = mend(place);
        let context = format!("{path}, {what:?}: {report:?}");
        assert_eq!(dry.mended, report.mended, "{context}");
        assert_eq!(dry.left_count, report.left_count, "{context}");
        assert_eq!(report.is_whole(), place.verify().is_whole(), "{context}");
        match report.mended.is_empty() {
            true => assert!(place.files() == before, "{context}"),
            // All of it here: each has one place that is damaged.
            false => assert!(place.files() == made.files, "{context}"),
        }
        place.write(path, Some(whole));
    });
}

struct Forks {
    place: Place,
    made: Made,
}

impl Forks {
    fn layer(&self, name: &str) -> String {
        let store = self.place.open().unwrap();
        let header = store.resolve(&name.parse().unwrap()).unwrap();
        format!("layers/{}", header.meta().own_layer.unwrap())
    }

    fn header(&self, name: &str) -> String {
        let store = self.place.open().unwrap();
        let header = store.resolve(&name.parse().unwrap()).unwrap();
        format!("headers/{}", header.id())
    }

    /// Flips a byte; says what repair gave for a source, where it mended.
    #[track_caller]
    fn mends(&self, path: &str, at: usize) -> Option<String> {
        self.place
            .write(path, Some(&flipped(&self.made.files[path], at)));
        let report = mend(&self.place);
        let whole = self.place.files() == self.made.files;
        self.place.write(path, Some(&self.made.files[path]));
        let source = report.mended.first().map(|mended| mended.source.clone());
        assert_eq!(
            (report.is_whole(), whole),
            (source.is_some(), source.is_some())
        );
        source
    }
}

/// From which block on, and what.
type Write = (u64, Vec<u8>);

/// Snapshots of a template, which each write these at these blocks.
fn forks(writes: &[(&str, &[Write])]) -> Forks {
    let place = Place::of(&BTreeMap::new());
    let mut maker = Maker::new(&place);
    maker.take(None, "template", 1000, &[(900, Some(text(9, 1)))]);
    for (name, writes) in writes {
        let writes: Vec<_> = writes
            .iter()
            .map(|(at, bytes)| (*at, Some(bytes.clone())))
            .collect();
        maker.take(Some("template"), name, 1000, &writes);
    }
    let made = maker.done(&place);
    Forks { place, made }
}

#[test]
fn a_fork_that_wrote_the_same_heals_its_sibling() {
    // Stored as it is, and compressed; with other blocks between.
    for bytes in [noise(3, 5 * BLOCK), text(3, 5)] {
        let both = forks(&[
            ("a", &[(10, bytes.clone()), (40, noise(4, BLOCK))]),
            (
                "b",
                &[
                    (9, text(1, 1)),
                    (10, bytes.clone()),
                    (40, noise(4, BLOCK)),
                    (77, text(2, 2)),
                ],
            ),
        ]);
        assert_eq!(both.mends(&both.layer("a"), 100).as_deref(), Some("b"));
        // What the other fork has not is lost: a block of it alone is not to be found anywhere.
        let report_of = both.mends(&both.layer("b"), 0);
        assert_eq!(report_of, None);
    }
}

#[test]
fn a_frame_is_put_together_from_several_images() {
    let [one, two, other] = [1, 2, 3].map(|seed| text(seed, 2));
    let three = forks(&[
        ("a", &[(10, one.clone()), (20, two.clone())]),
        ("b", &[(10, one.clone()), (20, other.clone())]),
        ("c", &[(10, other), (20, two)]),
    ]);
    let source = three.mends(&three.layer("a"), 3).unwrap();
    assert_eq!(source, "b, c");
}

#[test]
fn of_a_frame_that_is_stored_as_it_is_only_the_damaged_block_is_wanted() {
    let noise = noise(5, 6 * BLOCK);
    let two = forks(&[
        ("a", &[(10, noise.clone())]),
        ("b", &[(12, noise[2 * BLOCK..3 * BLOCK].to_vec())]),
    ]);
    let layer = two.layer("a");
    assert_eq!(
        two.mends(&layer, 2 * BLOCK + 7).as_deref(),
        Some("b, what is left of it")
    );
    assert_eq!(two.mends(&layer, 3 * BLOCK + 7), None);
}

#[test]
fn a_node_comes_back_from_its_copy_in_another_header() {
    let place = Place::of(&BTreeMap::new());
    let mut maker = Maker::new(&place);
    maker.take(
        None,
        "template",
        1000,
        &[(3, Some(text(9, 9))), (600, Some(text(1, 9)))],
    );
    // The same change, so the same nodes, each in an object of its own.
    for name in ["a", "b"] {
        maker.take(Some("template"), name, 1000, &[(5, None), (603, None)]);
    }
    let made = maker.done(&place);
    let twins = Forks { place, made };
    let (a, b) = (twins.header("a"), twins.header("b"));
    assert_eq!(twins.mends(&a, 0), Some(b.clone()));
    assert_eq!(twins.mends(&b, 0), Some(a.clone()));
    // Both leaves at once.
    let whole = &twins.made.files[&a];
    let nodes = u64::from_le_bytes(whole[whole.len() - 32..][..8].try_into().unwrap());
    let nodes = usize::try_from(nodes).unwrap();
    let damaged = |end: usize| {
        let mut bytes = whole.clone();
        bytes[..end]
            .iter_mut()
            .step_by(10)
            .for_each(|byte| *byte ^= 1);
        bytes
    };
    twins.place.write(&a, Some(&damaged(nodes / 3)));
    let report = mend(&twins.place);
    assert!(report.is_whole() && report.mended.len() == 2, "{report:?}");
    assert!(twins.place.files() == twins.made.files);
    // The root says where its own leaves are, so it has no copy; those below it come to light when it
    // is mended.
    twins.place.write(&a, Some(&damaged(nodes)));
    let report = mend(&twins.place);
    assert_eq!(
        (report.mended.len(), report.left_count),
        (0, 1),
        "{report:?}"
    );
    let other = Place::of(&twins.made.files).open().unwrap();
    let report = mend_with(&twins.place, from(&other));
    assert!(report.is_whole(), "{report:?}");
    let sources: Vec<_> = report.mended.iter().map(|m| m.source.as_str()).collect();
    assert_eq!(sources, ["the other store", b.as_str(), b.as_str()]);
    assert!(twins.place.files() == twins.made.files);
    // Its tail has no copy.
    assert_eq!(twins.mends(&a, twins.made.files[&a].len() - 60), None);
}

#[test]
fn what_is_left_is_listed_with_what_it_costs() {
    let two = forks(&[
        ("a", &[(10, text(3, 4)), (700, text(4, 1))]),
        ("b", &[(10, text(5, 4))]),
    ]);
    let layer = two.layer("a");
    two.place
        .write(&layer, Some(&flipped(&two.made.files[&layer], 3)));
    let report = mend(&two.place);
    assert_eq!((report.left_count, report.mended.len()), (1, 0));
    assert_eq!(report.left[0].damage.object, layer);
    let lost: Vec<_> = report
        .lost
        .iter()
        .map(|l| (l.image.as_str(), l.whole, l.more))
        .collect();
    assert_eq!(lost, [("a", false, false)]);
    let ranges: Vec<_> = report.lost[0]
        .ranges
        .iter()
        .map(|r| (r.start.0, r.end.0))
        .collect();
    let block = BLOCK as u64;
    assert_eq!(
        ranges,
        [(10 * block, 14 * block), (700 * block, 701 * block)]
    );
    // Only what b needs: that is whole.
    let names: [SnapshotName; 1] = ["b".parse().unwrap()];
    let only = RepairOptions {
        names: &names,
        ..RepairOptions::default()
    };
    assert!(mend_with(&two.place, only).is_whole());
    two.place.write(&layer, Some(&two.made.files[&layer]));
    // A name is lost as a whole, and so is one whose header is gone. Damage that nobody needs is said to be that.
    two.place.write("snapshots/a", Some(b"cowslipN"));
    let header = two.header("b");
    two.place.write(&header, None);
    two.place.write(&two.layer("template"), None);
    let report = mend(&two.place);
    let lost: Vec<_> = report
        .lost
        .iter()
        .map(|l| (l.image.as_str(), l.whole))
        .collect();
    assert_eq!(lost, [("b", true), ("template", false), ("a", true)]);
    assert!(report.left.iter().any(|l| {
        l.advice
            .as_ref()
            .is_some_and(|a| a.contains("cowslip rm a"))
    }));
}

#[test]
fn a_name_that_is_gone_is_taken_from_another_store_with_all_that_it_needs() {
    let made = everything();
    let place = Place::of(&made.files);
    let store = place.open().unwrap();
    for listed in store.list().unwrap() {
        store.remove(&listed.name).unwrap();
    }
    for id in store.sessions().unwrap() {
        store.forget_session(id.id).unwrap();
    }
    collect(&store, false, &mut |_, _| {}).unwrap();
    assert_eq!(place.files().len(), 1);
    let other = Place::of(&made.files).open().unwrap();
    // A chain of disks; and all parts of a snapshot.
    let names: [SnapshotName; 2] = ["three", "vm"].map(|name| name.parse().unwrap());
    let options = RepairOptions {
        names: &names,
        ..from(&other)
    };
    let report = mend_with(&place, options);
    assert!(report.is_whole(), "{report:?}");
    let files = place.files();
    assert!(files.contains_key("snapshots/three") && !files.contains_key("snapshots/one"));
    place.open().unwrap().resolve_snapshot(&names[1]).unwrap();
    assert!(files.iter().all(|(path, bytes)| made.files[path] == *bytes));
    assert!(place.verify().is_whole());
    // One that nobody has.
    let names: [SnapshotName; 1] = ["nobody".parse().unwrap()];
    let options = RepairOptions {
        names: &names,
        ..from(&other)
    };
    let host: Arc<dyn Host> = CountingHost::from(1 << 50);
    let error = repair(&*place.root, &host, options, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
}

/// Whole by its checksums, under the right name, and another one: a restored backup of an older store.
#[test]
fn an_object_of_another_history_is_not_taken() {
    let made = everything();
    let place = Place::of(&made.files);
    let mut wrong = made.files.clone();
    // The other store's headers are of this id, and were made at another time.
    let header = place
        .open()
        .unwrap()
        .resolve(&"one".parse().unwrap())
        .unwrap()
        .id();
    let path = format!("headers/{header}");
    wrong.insert(path.clone(), recreated(&made.files[&path]));
    let other = Place::of(&wrong);
    let other_store = other.open().unwrap();
    assert!(other_store.open_header(header).is_ok());
    place.write(&path, None);
    let report = mend_with(&place, from(&other_store));
    assert!(!report.is_whole());
    assert!(place.read(&path).is_none());
}

/// The ids are the same here, as they never are.
#[test]
fn a_frame_of_another_layer_of_the_same_id_is_not_taken() {
    let [ours, theirs] = [3, 4].map(|seed| forks(&[("a", &[(10, noise(seed, 4 * BLOCK))])]));
    let layer = ours.layer("a");
    assert_eq!(theirs.layer("a"), layer);
    let damaged = flipped(&ours.made.files[&layer], 3);
    ours.place.write(&layer, Some(&damaged));
    let report = mend_with(&ours.place, from(&theirs.place.open().unwrap()));
    assert!(report.mended.is_empty() && !report.is_whole(), "{report:?}");
    assert!(ours.place.read(&layer).unwrap() == damaged);
}

/// The same header object, created a millisecond later.
fn recreated(object: &[u8]) -> Vec<u8> {
    const FOOTER: usize = 32;
    let mut object = object.to_vec();
    let footer_at = object.len() - FOOTER;
    let nodes = usize::try_from(u64::from_le_bytes(
        object[footer_at..][..8].try_into().unwrap(),
    ));
    let nodes = nodes.unwrap();
    object[nodes + 56] ^= 1;
    let crc = crc32c::crc32c(&object[nodes..footer_at]);
    object[footer_at + 12..][..4].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&object[footer_at..][..20]);
    object[footer_at + 20..][..4].copy_from_slice(&crc.to_le_bytes());
    object
}

/// A store on a disk that forgets, everything synced; and what it should be.
fn damaged_disk() -> (MemoryFs, BTreeMap<String, Vec<u8>>) {
    let fs = MemoryFs::new();
    let place = Place { root: fs.root() };
    let mut maker = Maker::new(&place);
    maker.take(None, "template", 1000, &[(3, Some(text(9, 9)))]);
    for name in ["a", "b"] {
        maker.take(Some("template"), name, 1000, &[(10, Some(text(3, 4)))]);
        let twin = format!("{name}-twin");
        maker.take(Some("template"), &twin, 1000, &[(5, None)]);
    }
    let made = maker.done(&place);
    let both = Forks { place, made };
    let places = [
        (both.layer("a"), 3),
        (both.header("a-twin"), 0),
        ("snapshots/b".to_owned(), 20),
        ("store".to_owned(), 13),
    ];
    for (path, at) in places {
        let (dir, name) = both.place.dir(&path);
        let file = dir.open(name, Access::ReadWrite).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ 1], at).unwrap();
        file.sync().unwrap();
    }
    (fs, both.made.files)
}

#[test]
fn a_power_cut_at_any_operation_leaves_the_old_object_or_the_new_one() {
    let ids = AtomicU64::new(1 << 50);
    let run = |root: &dyn Dir| {
        let host: Arc<dyn Host> = CountingHost::from(ids.fetch_add(1000, Ordering::Relaxed));
        repair(root, &host, RepairOptions::default(), &mut |_, _| {})
    };
    let (fs, whole) = damaged_disk();
    let damaged = Place { root: fs.root() }.files();
    assert_eq!(
        damaged
            .iter()
            .filter(|(path, bytes)| whole[*path] != **bytes)
            .count(),
        4
    );
    let before = fs.operations();
    let report = run(&*fs.root()).unwrap();
    assert!(report.is_whole() && report.mended.len() == 4, "{report:?}");
    assert!(Place { root: fs.root() }.files() == whole);
    let operations = fs.operations() - before;
    assert!(operations > 20, "{operations}");
    for cut in 0..operations {
        let (fs, _) = damaged_disk();
        fs.cut_after(fs.operations() + cut);
        drop(run(&*fs.root()));
        for forget in [
            Forget::Unsynced,
            Forget::Nothing,
            Forget::Some(1),
            Forget::Some(2),
        ] {
            let after = fs.after_cut(forget);
            let place = Place { root: after.root() };
            for (path, bytes) in place.files() {
                let is_one = bytes == damaged[&path] || bytes == whole[&path];
                assert!(is_one, "cut {cut}, {forget:?}: {path}");
            }
            let report = run(&*after.root()).unwrap();
            assert!(report.is_whole(), "cut {cut}, {forget:?}: {report:?}");
            assert!(place.files() == whole, "cut {cut}, {forget:?}");
        }
    }
}

#[test]
fn what_the_disk_does_not_give_is_damage() {
    let made = everything();
    let place = Place::of(&made.files);
    let other = Place::of(&made.files).open().unwrap();
    for path in made.files.keys().filter(|path| path.contains('/')) {
        let faults = Faults::new();
        let name = path.split_once('/').unwrap().1;
        faults.add(Rule::every(Call::Read, EIO).on(name));
        let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(Arc::clone(&place.root), &faults));
        let faulty = Place { root };
        let report = faulty.verify();
        assert!(
            report.damage.iter().all(|d| d.object == *path),
            "{path}: {report:?}"
        );
        assert!(!report.is_whole(), "{path}");
        let dry_run = RepairOptions {
            dry_run: true,
            ..from(&other)
        };
        let mended = mend_with(&faulty, dry_run);
        assert_eq!(
            mended.is_whole(),
            !path.starts_with("sessions/"),
            "{path}: {mended:?}"
        );
    }
}

/// The disk gives less of one layer than it did when that was checked: the other one is mended all the same.
#[test]
fn an_object_that_cannot_be_copied_ends_nothing_but_its_own_repair() {
    let made = everything();
    let other = Place::of(&made.files).open().unwrap();
    let layers: Vec<&String> = made
        .files
        .keys()
        .filter(|p| p.starts_with("layers/"))
        .collect();
    let (bad, good) = (layers[0], layers[1]);
    let mut files = made.files.clone();
    for path in [bad, good] {
        files.get_mut(path).unwrap()[3] ^= 1;
    }
    for after in 0.. {
        let place = Place::of(&files);
        let faults = Faults::new();
        let name = bad.split_once('/').unwrap().1;
        faults.add(Rule::every(Call::Read, EIO).on(name).after(after));
        let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(Arc::clone(&place.root), &faults));
        mend_with(&Place { root }, from(&other));
        let read = |path: &str| {
            let (dir, name) = place.dir(path);
            read_all(&*dir.open(name, Access::Read).unwrap(), u64::MAX).unwrap()
        };
        assert!(read(good) == made.files[good], "after {after}");
        if faults.met() == 0 {
            assert!(after > 5, "{after}");
            break;
        }
    }
}
