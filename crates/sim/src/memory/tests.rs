//! Each rule of the disk by itself; then the disk beside the real one, and beside a twin that
//! copies everything at each sync.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

use cowslip_block::files::{Access, File, RealDir, read_all, replace_file};

use super::*;
use crate::choose::Choose as _;
use crate::seeded::Seeded;

const PAGE: u64 = PAGE_BYTES as u64;

fn bytes(dir: &dyn Dir, name: &str) -> Option<Vec<u8>> {
    match dir.open(name, Access::Read) {
        Ok(file) => Some(read_all(&*file, 1 << 30).unwrap()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound);
            None
        }
    }
}

fn put(dir: &dyn Dir, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = dir.create(name).unwrap();
    file.write_at(bytes, 0).unwrap();
    file
}

fn put_synced(dir: &dyn Dir, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = put(dir, name, bytes);
    file.sync().unwrap();
    dir.sync().unwrap();
    file
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_file_is_sparse() {
    let fs = MemoryFs::new();
    let file = put(&*fs.root(), "f", b"");
    file.write_at(&[1; 6000], 3 * PAGE + 100).unwrap();
    assert_eq!(file.len().unwrap(), 3 * PAGE + 6100);
    assert_eq!(file.allocated_bytes().unwrap(), 2 * PAGE);
    assert_eq!(
        file.next_data(0).unwrap(),
        Some((3 * PAGE, 3 * PAGE + 6100))
    );
    assert_eq!(
        file.next_data(4 * PAGE + 1).unwrap(),
        Some((4 * PAGE + 1, 3 * PAGE + 6100))
    );
    assert_eq!(file.next_data(3 * PAGE + 6100).unwrap(), None);
    // Room that is only reserved is a hole, and so is a page that was punched whole.
    file.allocate(0, PAGE).unwrap();
    assert_eq!(
        file.next_data(0).unwrap(),
        Some((3 * PAGE, 3 * PAGE + 6100))
    );
    file.punch(2 * PAGE + 5, 2 * PAGE).unwrap();
    assert_eq!(
        file.next_data(0).unwrap(),
        Some((4 * PAGE, 3 * PAGE + 6100))
    );
    assert_eq!(file.allocated_bytes().unwrap(), 2 * PAGE);
    let mut page = [7; PAGE_BYTES];
    file.read_at(&mut page[..2004], 4 * PAGE).unwrap();
    assert!(page[..5].iter().all(|b| *b == 0) && page[5..2004].iter().all(|b| *b == 1));
    assert_eq!(
        kind(file.read_at(&mut page, 4 * PAGE)),
        Some(ErrorKind::UnexpectedEof)
    );
    // What was cut off does not come back.
    file.set_len(4 * PAGE + 10).unwrap();
    file.set_len(5 * PAGE).unwrap();
    file.read_at(&mut page, 4 * PAGE).unwrap();
    assert!(page[..5].iter().all(|b| *b == 0) && page[10..].iter().all(|b| *b == 0));
    assert_eq!(page[5..10], [1; 5]);
}

#[test]
fn bytes_and_names_survive_a_cut_once_synced() {
    let fs = MemoryFs::new();
    let root = fs.root();
    let file = put_synced(&*root, "synced", b"one");
    file.write_at(b"two, and longer", 0).unwrap();
    put(&*root, "not synced", b"x").sync().unwrap();
    let after = fs.after_cut(Forget::Unsynced);
    assert_eq!(bytes(&*after.root(), "synced").unwrap(), b"one");
    assert_eq!(after.root().list().unwrap(), ["synced"]);
    // A name without its bytes.
    root.sync().unwrap();
    put(&*root, "empty", b"y");
    root.sync().unwrap();
    let after = fs.after_cut(Forget::Unsynced).root();
    assert_eq!(bytes(&*after, "not synced").unwrap(), b"x");
    assert_eq!(bytes(&*after, "empty").unwrap(), b"");
}

#[test]
fn a_punch_and_a_removal_are_undone_unless_synced() {
    let fs = MemoryFs::new();
    let root = fs.root();
    let file = put_synced(&*root, "f", &[1; 2 * PAGE_BYTES]);
    file.punch(0, PAGE).unwrap();
    root.remove("f").unwrap();
    assert_eq!(file.len().unwrap(), 2 * PAGE);
    let after = fs.after_cut(Forget::Unsynced).root();
    assert_eq!(bytes(&*after, "f").unwrap(), [1; 2 * PAGE_BYTES]);
    file.sync().unwrap();
    let after = fs.after_cut(Forget::Unsynced).root();
    assert_eq!(bytes(&*after, "f").unwrap()[..PAGE_BYTES], [0; PAGE_BYTES]);
    root.sync().unwrap();
    assert_eq!(bytes(&*fs.after_cut(Forget::Unsynced).root(), "f"), None);
    assert_eq!(bytes(&*fs.after_cut(Forget::Nothing).root(), "f"), None);
}

#[test]
fn a_kill_keeps_all_and_makes_nothing_durable() {
    let fs = MemoryFs::new();
    let file = put_synced(&*fs.root(), "f", b"one");
    file.write_at(b"two", 0).unwrap();
    put(&*fs.root(), "g", b"three");
    let killed = fs.after_cut(Forget::Nothing);
    assert_eq!(bytes(&*killed.root(), "f").unwrap(), b"two");
    assert_eq!(bytes(&*killed.root(), "g").unwrap(), b"three");
    let cut = killed.after_cut(Forget::Unsynced);
    assert_eq!(bytes(&*cut.root(), "f").unwrap(), b"one");
    assert_eq!(bytes(&*cut.root(), "g"), None);
}

#[test]
fn the_operation_that_is_cut_does_not_happen_nor_anything_after() {
    let fs = MemoryFs::new();
    let root = fs.root();
    let file = put(&*root, "f", b"0");
    assert_eq!(fs.operations(), 2);
    fs.cut_after(3);
    file.write_at(b"1", 0).unwrap();
    assert!(!fs.is_cut());
    assert_eq!(
        file.write_at(b"2", 0).unwrap_err().raw_os_error(),
        Some(crate::EIO)
    );
    assert!(fs.is_cut());
    assert_eq!(fs.operations(), 3);
    for result in [
        root.list().map(drop),
        file.len().map(drop),
        file.sync(),
        root.sync(),
    ] {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(crate::EIO));
    }
    let after = fs.after_cut(Forget::Nothing);
    assert_eq!(bytes(&*after.root(), "f").unwrap(), b"1");
    assert_eq!(after.operations(), 0);
}

#[test]
fn pages_are_kept_or_lost_each_by_itself_and_lengths_in_order() {
    let fs = MemoryFs::new();
    let file = put_synced(&*fs.root(), "f", &[0; 2 * PAGE_BYTES]);
    file.write_at(&[1; 2 * PAGE_BYTES], 0).unwrap();
    file.write_at(&[2], 9).unwrap();
    file.set_len(3 * PAGE).unwrap();
    file.set_len(4 * PAGE).unwrap();
    let mut seen = BTreeMap::new();
    for seed in 0..200 {
        let left = bytes(&*fs.after_cut(Forget::Some(seed)).root(), "f").unwrap();
        let what = (left[0], left[9], left[PAGE_BYTES], left.len() as u64 / PAGE);
        let again = bytes(&*fs.after_cut(Forget::Some(seed)).root(), "f").unwrap();
        assert_eq!(left, again, "a seed has one answer");
        *seen.entry(what).or_insert(0) += 1;
    }
    let firsts: Vec<_> = seen.keys().map(|(a, b, c, _)| (*a, *b, *c)).collect();
    for kept in [
        (0, 2, 0),
        (0, 2, 1),
        (1, 1, 0),
        (0, 0, 1),
        (1, 2, 1),
        (0, 0, 0),
    ] {
        assert!(firsts.contains(&kept), "{kept:?} is never left");
    }
    let lengths: Vec<_> = seen.keys().map(|(.., pages)| *pages).collect();
    assert!([2, 3, 4].iter().all(|pages| lengths.contains(pages)));
}

#[test]
fn a_write_past_a_length_that_was_lost_is_lost() {
    let fs = MemoryFs::new();
    let file = put_synced(&*fs.root(), "f", b"abc");
    file.write_at(b"defg", 3).unwrap();
    for seed in 0..50 {
        let after = fs.after_cut(Forget::Some(seed)).root();
        let left = bytes(&*after, "f").unwrap();
        assert!(
            [&b"abc"[..], b"abcdefg", b"abc\0\0\0\0"].contains(&&left[..]),
            "{left:?}"
        );
        // What lies past the end stays zero when the file grows again.
        let file = after.open("f", Access::ReadWrite).unwrap();
        file.set_len(10).unwrap();
        assert_eq!(bytes(&*after, "f").unwrap()[7..], [0; 3]);
        if left.len() == 3 {
            assert_eq!(bytes(&*after, "f").unwrap()[3..], [0; 7]);
        }
    }
}

#[test]
fn a_rename_between_directories_happens_in_both_or_in_neither() {
    let fs = MemoryFs::new();
    let root = fs.root();
    root.create_dir("a").unwrap();
    root.create_dir("b").unwrap();
    root.sync().unwrap();
    let (a, b) = (root.open_dir("a").unwrap(), root.open_dir("b").unwrap());
    put_synced(&*a, "f", b"1");
    put(&*a, "before", b"");
    a.rename_new("f", &*b, "g").unwrap();
    put(&*b, "after", b"");
    let mut moved = 0;
    for seed in 0..100 {
        let root = fs.after_cut(Forget::Some(seed)).root();
        let (a, b) = (root.open_dir("a").unwrap(), root.open_dir("b").unwrap());
        let is_there = |dir: &dyn Dir, name: &str| bytes(dir, name).is_some();
        let is_moved = is_there(&*b, "g");
        assert_ne!(is_there(&*a, "f"), is_moved, "seed {seed}");
        // In order, per directory.
        assert!(!is_moved || is_there(&*a, "before"), "seed {seed}");
        assert!(is_moved || !is_there(&*b, "after"), "seed {seed}");
        moved += u32::from(is_moved);
    }
    assert!((1..100).contains(&moved), "{moved}");
    // The other directory's sync makes the rename durable, with what came before it.
    b.sync().unwrap();
    let root = fs.after_cut(Forget::Unsynced).root();
    assert_eq!(root.open_dir("a").unwrap().list().unwrap(), ["before"]);
    assert_eq!(root.open_dir("b").unwrap().list().unwrap(), ["after", "g"]);
}

#[test]
fn a_new_directory_needs_its_parents_sync() {
    let fs = MemoryFs::new();
    fs.root().create_dir("d").unwrap();
    put_synced(&*fs.root().open_dir("d").unwrap(), "f", b"1");
    let after = fs.after_cut(Forget::Unsynced).root();
    assert_eq!(kind(after.open_dir("d")), Some(ErrorKind::NotFound));
    fs.root().sync().unwrap();
    let after = fs.after_cut(Forget::Unsynced).root();
    assert_eq!(bytes(&*after.open_dir("d").unwrap(), "f").unwrap(), b"1");
}

#[test]
fn a_full_disk_refuses_until_room_is_given_back() {
    let fs = MemoryFs::with_capacity(4 * PAGE);
    let root = fs.root();
    let full = Some(ErrorKind::StorageFull);
    let file = put(&*root, "f", &[1; 3 * PAGE_BYTES]);
    assert_eq!(kind(file.allocate(3 * PAGE, 2 * PAGE)), full);
    file.allocate(4 * PAGE, PAGE).unwrap();
    assert_eq!(fs.used_bytes(), 4 * PAGE);
    assert_eq!(kind(file.write_at(&[2], 3 * PAGE)), full);
    // What is reserved or there already can be written.
    file.write_at(&[2; PAGE_BYTES], 4 * PAGE).unwrap();
    file.write_at(&[2; PAGE_BYTES], PAGE).unwrap();
    file.punch(0, PAGE).unwrap();
    let other = put(&*root, "g", &[3]);
    // A name that is gone gives room back once nobody has the file open.
    root.remove("g").unwrap();
    assert_eq!(kind(file.write_at(&[4], 0)), full);
    drop(other);
    file.write_at(&[4], 0).unwrap();
    drop(file);
    root.remove("f").unwrap();
    assert_eq!(fs.used_bytes(), 0);
    // A part of a write that finds no room may be there.
    let file = put(&*root, "h", b"");
    assert_eq!(kind(file.write_at(&[1; 5 * PAGE_BYTES], 0)), full);
    assert_eq!(file.len().unwrap(), 4 * PAGE);
}

#[test]
fn a_lock_is_held_once_and_free_after_a_cut() {
    let fs = MemoryFs::new();
    let root = fs.root();
    let lock = root.try_lock("lock").unwrap();
    assert!(lock.is_some());
    assert!(fs.root().try_lock("lock").unwrap().is_none());
    assert!(root.try_lock("another").unwrap().is_some());
    assert!(
        fs.after_cut(Forget::Nothing)
            .root()
            .try_lock("lock")
            .unwrap()
            .is_some()
    );
    drop(lock);
    assert!(root.try_lock("lock").unwrap().is_some());
}

#[test]
fn a_directory_goes_on_under_another_name_and_other_disks_are_refused() {
    let fs = MemoryFs::new();
    let root = fs.root();
    root.create_dir("d").unwrap();
    let d = root.open_dir("d").unwrap();
    root.rename("d", "e").unwrap();
    put(&*d, "f", b"1");
    assert_eq!(bytes(&*root.open_dir("e").unwrap(), "f").unwrap(), b"1");
    let elsewhere = MemoryFs::new().root();
    let crossed = Some(ErrorKind::CrossesDevices);
    assert_eq!(kind(d.rename_new("f", &*elsewhere, "f")), crossed);
    assert_eq!(kind(d.rename_into("f", &*elsewhere, "f")), crossed);
}

/// Cut `replace_file`, or a `careless` one that does not sync the bytes first, everywhere: is there
/// ever anything but the old or the new file?
fn torn(careless: bool) -> bool {
    let (old, new) = ([1; 3 * PAGE_BYTES], [2; 2 * PAGE_BYTES]);
    for cut in 0.. {
        let fs = MemoryFs::new();
        let root = fs.root();
        put_synced(&*root, "f", &old);
        fs.cut_after(fs.operations() + cut);
        let result = match careless {
            false => replace_file(&*root, "f", &new),
            true => root
                .create("f.new")
                .and_then(|file| file.write_at(&new, 0))
                .and_then(|()| root.rename("f.new", "f"))
                .and_then(|()| root.sync()),
        };
        let some = (0..20).map(Forget::Some);
        for forget in some.chain([Forget::Unsynced, Forget::Nothing]) {
            let left = bytes(&*fs.after_cut(forget).root(), "f").unwrap();
            let (is_old, is_new) = (left == old, left == new);
            if !is_new && (result.is_ok() || !is_old) {
                return true;
            }
        }
        if result.is_ok() {
            return false;
        }
    }
    unreachable!("some cut lies past the last operation");
}

#[test]
fn replacing_a_file_is_whole_at_every_cut_if_it_syncs() {
    assert!(!torn(false));
    assert!(torn(true), "the disk does not catch a missing sync");
}

/// One random call on a directory and the files in it; what it said.
fn step(dir: &dyn Dir, open: &mut BTreeMap<u64, Arc<dyn File>>, seeded: &mut Seeded) -> String {
    let names = ["a", "b", "c"];
    let name = |n: u64| names[usize::try_from(n).unwrap()];
    let (one, two) = (name(seeded.up_to(2)), name(seeded.up_to(2)));
    let (slot, what) = (seeded.up_to(2), seeded.up_to(13));
    let (at, len) = (seeded.up_to(5 * PAGE), seeded.up_to(2 * PAGE) + 1);
    let fill = u8::try_from(seeded.up_to(255)).unwrap();
    let mut keep =
        |opened: io::Result<Arc<dyn File>>| opened.map(|file| drop(open.insert(slot, file)));
    let result = match what {
        0 => keep(dir.create(one)),
        1 => keep(dir.open(one, Access::ReadWrite)),
        2 => keep(dir.open(one, Access::Read)),
        3 => dir.rename(one, two),
        4 => dir.rename_new(one, dir, two),
        5 => dir.remove(one),
        _ => {
            let Some(file) = open.get(&slot) else {
                return String::new();
            };
            match what {
                6 | 7 => file.write_at(&vec![fill; usize::try_from(len).unwrap()], at),
                8 => file.punch(at, len),
                9 => file.set_len(at),
                10 => file.allocate(at, len),
                11 => file.sync(),
                12 => file.read_at(&mut vec![0; usize::try_from(len).unwrap()], at),
                _ => dir.sync(),
            }
        }
    };
    let result = result.map_err(|error| error.kind());
    let mut names = dir.list().unwrap();
    names.sort();
    let files: Vec<_> = names.iter().map(|name| bytes(dir, name).unwrap()).collect();
    let lens: Vec<_> = open.values().map(|file| file.len().unwrap()).collect();
    let sums: Vec<_> = files
        .iter()
        .map(|f| f.iter().map(|b| u64::from(*b)).sum::<u64>())
        .collect();
    let edges: Vec<_> = files
        .iter()
        .map(|f| f.iter().position(|b| *b != 0))
        .collect();
    format!("{what} {one} {two} {at} {len}: {result:?} {names:?} {lens:?} {sums:?} {edges:?}")
}

#[test]
fn it_answers_as_the_real_file_system_does() {
    for seed in 0..20 {
        let path = std::env::temp_dir().join(format!("cowslip-sim-{}-{seed}", std::process::id()));
        let real = RealDir::open_or_create(&path).unwrap();
        let memory = MemoryFs::new().root();
        let (mut real_open, mut memory_open) = (BTreeMap::new(), BTreeMap::new());
        let (mut real_seeded, mut memory_seeded) = (Seeded::new(seed), Seeded::new(seed));
        for _ in 0..150 {
            let said = step(&real, &mut real_open, &mut real_seeded);
            assert_eq!(
                step(&*memory, &mut memory_open, &mut memory_seeded),
                said,
                "seed {seed}"
            );
        }
        std::fs::remove_dir_all(path).unwrap();
    }
}

/// After any history, a cut that loses all leaves each name and each file as its last sync saw it.
#[test]
fn what_a_cut_leaves_is_what_the_last_sync_saw() {
    for seed in 0..50 {
        let mut seeded = Seeded::new(seed);
        let fs = MemoryFs::new();
        let root = fs.root();
        let names = ["a", "b", "c"];
        let files: Vec<_> = names
            .iter()
            .map(|name| put_synced(&*root, name, b""))
            .collect();
        // By file: the bytes at its last sync. By name: the file, at the last sync of names.
        let mut synced = vec![Vec::new(); 3];
        let mut now: Vec<Option<usize>> = vec![Some(0), Some(1), Some(2)];
        let mut durable = now.clone();
        for _ in 0..100 {
            let pick = |seeded: &mut Seeded| usize::try_from(seeded.up_to(2)).unwrap();
            let (one, two) = (pick(&mut seeded), pick(&mut seeded));
            let (at, len) = (seeded.up_to(3 * PAGE), seeded.up_to(2 * PAGE) + 1);
            match seeded.up_to(6) {
                0 | 1 => files[one]
                    .write_at(&vec![7; usize::try_from(len).unwrap()], at)
                    .unwrap(),
                2 => files[one].punch(at, len).unwrap(),
                3 => files[one].set_len(at).unwrap(),
                4 => {
                    files[one].sync().unwrap();
                    synced[one] = read_all(&*files[one], 1 << 20).unwrap();
                }
                5 if root.rename(names[one], names[two]).is_ok() && one != two => {
                    now[two] = now[one].take();
                }
                6 if seeded.coin() => {
                    root.sync().unwrap();
                    durable.clone_from(&now);
                }
                _ => {}
            }
            let after = fs.after_cut(Forget::Unsynced).root();
            for (name, file) in names.iter().zip(&durable) {
                assert_eq!(
                    bytes(&*after, name),
                    file.map(|file| synced[file].clone()),
                    "{seed}"
                );
            }
        }
    }
}
