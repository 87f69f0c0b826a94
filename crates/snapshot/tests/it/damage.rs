//! Damage to a small store that has one of everything: each byte of each object flipped, each object
//! cut at each length, any two of one kind exchanged. It is noticed, by verify and by whoever reads;
//! nobody gets wrong bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cowslip_block::files::{Access, Dir, RealDir, read_all};
use cowslip_block::{ByteOffset, Device};
use cowslip_snapshot::Image;
use cowslip_snapshot::gc::collect;
use uuid::Uuid;

use crate::made::{Made, Maker, Place, everything, text};

/// Verify finds it in one of `objects`, at a place.
#[track_caller]
fn is_found(place: &Place, objects: &[&str], what: &str) {
    let report = place.verify();
    let named = report
        .damage
        .iter()
        .any(|d| objects.contains(&d.object.as_str()) && !d.place.is_empty());
    assert!(named, "{what}: {:?}", report.damage);
}

/// Whoever reads all that there is gets the right bytes, or an error that names one of `objects`.
#[track_caller]
fn reads_right_or_fails(place: &Place, made: &Made, objects: &[&str], what: &str) {
    let named = |why: String| {
        let named = objects.iter().any(|object| why.contains(object));
        assert!(named, "{what}: {why}");
    };
    let store = match place.open() {
        Ok(store) => store,
        Err(error) => return named(error.to_string()),
    };
    if let Err(error) = store.sessions() {
        named(error.to_string());
    }
    for (name, want) in &made.images {
        let header = match store.resolve_image(&name.parse().unwrap()) {
            Ok(header) => header,
            Err(error) => {
                named(error.to_string());
                continue;
            }
        };
        let image: &dyn Device = &Image::new(Arc::clone(&store), header);
        let mut got = vec![0; want.len()];
        match image.read_at(ByteOffset(0), &mut got) {
            Ok(()) => assert!(got == *want, "{what}: {name} reads wrong bytes"),
            Err(error) => named(error.to_string()),
        }
    }
}

/// All of these, on all processors, each with a store of its own.
pub(crate) fn in_parallel<T: Sync>(made: &Made, cases: &[T], check: impl Fn(&Place, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let place = Place::of(&made.files);
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(&place, case);
                }
            });
        }
    });
}

/// Checks each of these changes of each object.
fn each_change(made: &Made, changes: impl Fn(&str, &[u8]) -> Vec<(String, Vec<u8>)> + Sync) {
    let objects: Vec<_> = made.files.iter().collect();
    in_parallel(made, &objects, |place, (path, whole)| {
        for (what, bytes) in changes(path, whole) {
            let what = format!("{path}: {what}");
            place.write(path, Some(&bytes));
            is_found(place, &[path], &what);
            reads_right_or_fails(place, made, &[path], &what);
        }
        place.write(path, Some(whole));
    });
}

#[test]
fn the_store_of_these_tests_is_whole_and_reads_right() {
    let made = everything();
    let place = Place::of(&made.files);
    let report = place.verify();
    assert!(report.is_whole(), "{:?}", report.damage);
    let counts = [
        report.names,
        report.sessions,
        report.headers,
        report.layers,
        report.frames,
    ];
    assert_eq!(counts, [9, 2, 10, 10, 11]);
    let stored = |dir: &str| -> usize {
        made.files
            .iter()
            .filter(|(p, _)| p.starts_with(dir))
            .map(|(_, b)| b.len())
            .sum()
    };
    let all = (stored("headers/") + stored("layers/")) as u64;
    assert_eq!(report.read_bytes, all, "each byte once");
    reads_right_or_fails(&place, &made, &[], "nothing is damaged");
    assert_eq!(report.foreign, [""; 0]);
}

#[test]
fn every_flipped_byte_is_noticed() {
    each_change(&everything(), |path, whole| {
        let masks: &[u8] = match path.starts_with("layers/") {
            true => &[0x10],
            false => &[0x01, 0x03, 0x80, 0xff],
        };
        let flip = |at: usize, mask: u8| {
            let mut bytes = whole.to_vec();
            bytes[at] ^= mask;
            (format!("byte {at} ^ {mask:#x}"), bytes)
        };
        (0..whole.len())
            .flat_map(|at| masks.iter().map(move |mask| flip(at, *mask)))
            .collect()
    });
}

#[test]
fn every_cut_and_every_byte_more_is_noticed() {
    each_change(&everything(), |_, whole| {
        let cut = |len: usize| (format!("cut to {len}"), whole[..len].to_vec());
        let mut all: Vec<_> = (0..whole.len()).map(cut).collect();
        for more in [0, 0xff] {
            all.push((format!("{more} more"), [whole, &[more]].concat()));
        }
        all
    });
}

/// What older releases wrote.
#[test]
fn every_flipped_byte_of_version_1_is_noticed() {
    let mut made = Made::default();
    let root = RealDir::open(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/v1"
    )));
    let root = root.unwrap();
    let mut read = |dir: &dyn Dir, prefix: &str, name: &str| {
        let file = dir.open(name, Access::Read).unwrap();
        let bytes = read_all(&*file, 1 << 20).unwrap();
        made.files.insert(format!("{prefix}{name}"), bytes);
    };
    read(&root, "", "store");
    for kind in ["headers", "layers", "snapshots"] {
        let dir = root.open_dir(kind).unwrap();
        for name in dir.list().unwrap() {
            read(&*dir, &format!("{kind}/"), &name);
        }
    }
    assert_eq!(made.files.len(), 7);
    assert!(Place::of(&made.files).verify().is_whole());
    each_change(&made, |_, whole| {
        let flip = |at: usize| {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 3;
            (format!("byte {at}"), bytes)
        };
        (0..whole.len()).map(flip).collect()
    });
}

#[test]
fn two_objects_that_were_exchanged_are_noticed() {
    let made = everything();
    let paths: Vec<&String> = made.files.keys().collect();
    let kind = |path: &str| path.split('/').next().unwrap().to_owned();
    let mut pairs = Vec::new();
    for (i, a) in paths.iter().enumerate() {
        pairs.extend(
            paths[i + 1..]
                .iter()
                .filter(|b| kind(a) == kind(b))
                .map(|b| (*a, *b)),
        );
    }
    assert!(pairs.len() > 40);
    in_parallel(&made, &pairs, |place, (a, b)| {
        place.write(a, Some(&made.files[*b]));
        place.write(b, Some(&made.files[*a]));
        for one in [a, b] {
            is_found(place, &[one], &format!("{a} and {b} exchanged"));
        }
        reads_right_or_fails(place, &made, &[a, b], &format!("{a} and {b} exchanged"));
        place.write(a, Some(&made.files[*a]));
        place.write(b, Some(&made.files[*b]));
    });
}

#[test]
fn what_is_needed_and_not_there_is_noticed() {
    let made = everything();
    let place = Place::of(&made.files);
    for (path, bytes) in &made.files {
        place.write(path, None);
        // A name or a session that is not there is none.
        let gone = path.starts_with("snapshots/") || path.starts_with("sessions/");
        match gone {
            true => assert!(place.verify().is_whole(), "{path}"),
            false => is_found(&place, &[path], &format!("without {path}")),
        }
        if !gone {
            reads_right_or_fails(&place, &made, &[path, "it has no file `store`"], path);
        }
        place.write(path, Some(bytes));
    }
}

#[test]
fn who_needs_what_is_damaged_is_said() {
    let made = everything();
    let place = Place::of(&made.files);
    let store = place.open().unwrap();
    let layer_of = |name: &str| {
        let header = store.resolve(&name.parse().unwrap()).unwrap();
        header.meta().own_layer.unwrap()
    };
    let needed = |path: &str, at: usize| {
        let mut bytes = made.files[path].clone();
        bytes[at] ^= 1;
        place.write(path, Some(&bytes));
        let objects = place.verify().objects;
        place.write(path, Some(&made.files[path]));
        assert_eq!((objects.len(), objects[0].object.as_str()), (1, path));
        assert_eq!(
            objects[0].needed_by_count,
            objects[0].needed_by.len() as u64
        );
        objects[0].needed_by.clone()
    };
    // A frame of the template: all of them, and the sessions. Of the fork: two names and a session.
    let [one, two] = [1, 2].map(|n| format!("session {}", Uuid::from_u128(n)));
    let all = [
        "again", "fork-a", "fork-b", "one", "template", "three", "vm:disk", &one, &two,
    ];
    assert_eq!(needed(&format!("layers/{}", layer_of("template")), 0), all);
    assert_eq!(
        needed(&format!("layers/{}", layer_of("fork-b")), 0),
        ["again", "fork-b", "vm:disk", &two]
    );
    // A header's tail is needed by who stands for it, a node by who comes by it.
    let header = store.resolve(&"one".parse().unwrap()).unwrap();
    let path = format!("headers/{}", header.id());
    let len = made.files[&path].len();
    assert_eq!(needed(&path, len - 1), ["one"]);
    assert_eq!(needed(&path, 0), ["one", "three"]);
    assert_eq!(needed("snapshots/one", 30), ["one"]);
    assert_eq!(needed("snapshots/vm", 100), ["vm"]);
    let state = store.resolve_image(&"vm:state".parse().unwrap()).unwrap();
    let layer = state.meta().own_layer.unwrap();
    assert_eq!(needed(&format!("layers/{layer}"), 0), ["vm:state"]);
}

#[test]
fn files_of_others_are_listed_and_are_no_damage() {
    let made = everything();
    let place = Place::of(&made.files);
    let id = Uuid::from_u128(77);
    let upper = format!(
        "layers/{}",
        Uuid::from_u128(0xabc << 100).to_string().to_uppercase()
    );
    let foreign = [
        "headers/notes",
        upper.as_str(),
        "leases/x",
        "lost+found",
        "sessions/y",
        "snapshots/.hidden",
        "tmp/z",
    ];
    for path in foreign {
        place.write(path, Some(b"?"));
    }
    place.write(&format!("tmp/{id}.3"), Some(b"half an object"));
    for lock in ["leases/roots.lock", "leases/compact.lock"] {
        place.write(lock, Some(b""));
    }
    place.write(&format!("leases/{id}"), Some(b"layer "));
    place.write(&format!("sessions/{id}.new"), Some(b"{"));
    let mut report = place.verify();
    assert!(report.is_whole());
    report.foreign.sort();
    let mut want = foreign;
    want.sort_unstable();
    assert_eq!(report.foreign, want);
}

/// Names and sessions come and go, and what they needed with them, while verify looks.
#[test]
fn what_is_collected_meanwhile_is_no_damage() {
    const ROUNDS: u64 = 150;
    let place = &Place::of(&BTreeMap::new());
    let mut maker = Maker::new(place);
    maker.take(None, "base", 10, &[(1, Some(text(1, 3)))]);
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..ROUNDS {
                let (one, two) = (format!("one-{round}"), format!("two-{round}"));
                maker.take(Some("base"), &one, 10, &[(2, Some(text(round, 1)))]);
                let header = maker.take(Some(&one), &two, 600, &[(300, Some(text(round, 2)))]);
                maker.session(7, &header);
                for name in [one, two] {
                    maker.store.remove(&name.parse().unwrap()).unwrap();
                }
                collect(&maker.store, false, &mut |_, _| {}).unwrap();
                maker.store.forget_session(Uuid::from_u128(7)).unwrap();
                collect(&maker.store, false, &mut |_, _| {}).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut runs = 0;
        while !done.load(Ordering::Relaxed) {
            let report = place.verify();
            assert!(report.is_whole(), "run {runs}: {:?}", report.damage);
            runs += 1;
        }
        assert!(runs > 10, "{runs}");
    });
}
