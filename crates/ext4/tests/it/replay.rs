//! The replayed view, compared with what debugfs makes of a copy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use cowslip_ext4::{Owner, Problem, State};

use super::rig::{Image, have, in_words, owners, run, skip, tree, try_run};

const TOOLS: [&str; 2] = ["mkfs.ext4", "debugfs"];

/// Owners in words.
fn words(image: &Image, state: State) -> Vec<String> {
    let fs = image.open(state);
    assert!(fs.problems().is_empty(), "{:?}", fs.problems());
    in_words(&owners(&fs))
}

/// Without the runs of the journal: which of its blocks are live is what a replay changes.
fn without_journal(words: &[String]) -> Vec<&String> {
    words
        .iter()
        .filter(|line| !line.contains("Journal"))
        .collect()
}

fn assert_same(found: &[String], wanted: &[String]) {
    let (found, wanted) = (without_journal(found), without_journal(wanted));
    let differ = found.iter().zip(&wanted).find(|(a, b)| a != b);
    assert!(
        found == wanted,
        "{} and {} runs, the first that differs: {differ:?}",
        found.len(),
        wanted.len()
    );
}

/// A copy in which debugfs has replayed the journal, and done nothing else (e2fsck deletes orphans as well).
fn replayed(image: &Image) -> Image {
    let copy = image.copy();
    copy.debugfs(true, "jr\n");
    copy
}

/// Blocks in which the second image differs, in its own contents.
fn changed(image: &Image, other: &Image, unit: usize) -> BTreeMap<u64, Vec<u8>> {
    let (old, new) = (image.bytes(), other.bytes());
    let blocks = old.chunks(unit).zip(new.chunks(unit)).enumerate();
    let differ = blocks.filter(|(_, (old, new))| old != new);
    differ
        .map(|(at, (_, new))| (at as u64, new.to_vec()))
        .collect()
}

/// Writes the difference as one transaction into the journal of the image.
fn log(image: &Image, blocks: &BTreeMap<u64, Vec<u8>>, open: &str, revoke: &str) {
    let contents = image.dir.path().join("contents");
    File::create(&contents)
        .unwrap()
        .write_all(&blocks.values().flatten().copied().collect::<Vec<u8>>())
        .unwrap();
    let mut commands = format!("{open}\n");
    if !revoke.is_empty() {
        writeln!(commands, "jw -r {revoke}").unwrap();
    }
    let list: Vec<String> = blocks.keys().map(u64::to_string).collect();
    writeln!(
        commands,
        "jw -b {} {}\njc",
        list.join(","),
        contents.display()
    )
    .unwrap();
    let said = image.debugfs(true, &commands);
    assert!(!said.contains("rror"), "{said}");
}

#[test]
fn a_log_is_seen_as_if_it_had_been_replayed() {
    let test = "a_log_is_seen_as_if_it_had_been_replayed";
    if !have(test, &TOOLS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree(&root);
    let root = root.to_str().unwrap();
    for (unit, options, open) in [
        (4096, &["-b", "4096"][..], "jo"),
        (1024, &["-b", "1024"], "jo -c"),
        (1024, &["-b", "1024", "-O", "^64bit,^metadata_csum"], "jo"),
    ] {
        let image = Image::mkfs(48 << 10, &[options, &["-d", root]].concat());
        let before = words(&image, State::Replayed);
        let after = image.copy();
        let changes = "rm dir1/file1\nrm dir2/file2\nrm holes\nmkdir new\nwrite tiny new/file\nkill_file dir3/file4\n";
        after.debugfs(true, &format!("lcd {root}\n{changes}"));
        let blocks = changed(&image, &after, unit);
        log(&image, &blocks, open, "");
        let wanted = words(&replayed(&image), State::OnDisk);
        assert_same(&words(&image, State::Replayed), &wanted);
        assert_same(&wanted, &words(&after, State::OnDisk));
        assert!(
            without_journal(&words(&image, State::OnDisk)) != without_journal(&wanted),
            "{test}"
        );
        let fs = image.open(State::Replayed);
        let journal = fs.journal().unwrap();
        assert_eq!(journal.commits.len(), 1, "{journal:?}");
        assert_eq!(
            (fs.replayed_blocks(), journal.replayed_blocks),
            (blocks.len() as u64, blocks.len() as u64)
        );
        // Superblock, descriptor blocks, copies, commit.
        assert!(
            journal.live_blocks() >= blocks.len() as u64 + 3,
            "{journal:?}"
        );
        let live = owners(&fs);
        let all = cowslip_block::ByteRange::new(0, live.size_bytes());
        let live_bytes: u64 = live
            .runs(all)
            .filter(|run| run.owner == Owner::Journal { live: true })
            .map(|run| run.range.len())
            .sum();
        assert_eq!(live_bytes, journal.live_blocks() * unit as u64);
        // All of it revoked by a second transaction: as if it had never been.
        let list: Vec<String> = blocks.keys().map(u64::to_string).collect();
        let said = image.debugfs(true, &format!("{open}\njw -r {}\njc\n", list.join(",")));
        assert!(!said.contains("rror"), "{said}");
        let revoked = image.open(State::Replayed);
        let journal = revoked.journal().unwrap();
        assert_eq!(
            (journal.commits.len(), journal.replayed_blocks),
            (2, 0),
            "{journal:?}"
        );
        assert_eq!(journal.void_copies, blocks.len() as u64);
        assert_same(&words(&image, State::Replayed), &before);
        assert_same(&before, &words(&replayed(&image), State::OnDisk));
        println!(
            "{test}: {options:?}: {} blocks replayed, and revoked",
            blocks.len()
        );
    }
}

#[test]
fn a_log_with_a_damaged_block_ends_there() {
    let test = "a_log_with_a_damaged_block_ends_there";
    if !have(test, &TOOLS) {
        return;
    }
    let image = Image::mkfs(16 << 10, &["-b", "1024"]);
    let block = |fill: u8| BTreeMap::from([(9000u64, vec![fill; 1024])]);
    log(&image, &block(1), "jo -c", "");
    log(&image, &block(2), "jo -c", "");
    let fs = image.open(State::Replayed);
    assert_eq!(fs.journal().unwrap().commits.len(), 2);
    let place = |wanted: &[u8]| {
        let bytes = image.bytes();
        bytes
            .chunks(1024)
            .position(|found| found.starts_with(wanted))
            .unwrap()
    };
    // Descriptor, copy and commit of the second transaction, one after the other.
    let second = place(&[2; 1024]);
    for (shift, commits, replayed, problems) in [(0, 2, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1)] {
        let at = if shift == 0 {
            second
        } else {
            second - 2 + shift + usize::from(shift == 2)
        };
        let mut bytes = image.bytes();
        bytes[at * 1024 + 700] ^= 1;
        let fs = cowslip_ext4::FileSystem::open(bytes, State::Replayed).unwrap();
        let journal = fs.journal().unwrap();
        let found = (
            journal.commits.len(),
            journal.replayed_blocks,
            fs.problems().count(Problem::Journal),
        );
        assert_eq!(
            found,
            (commits, replayed, problems),
            "block {shift}: {:?}",
            fs.problems()
        );
    }
}

/// A mounted image.
struct Mount<'i> {
    at: tempfile::TempDir,
    _image: &'i Image,
}

impl<'i> Mount<'i> {
    fn new(test: &str, image: &'i Image) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let paths = [image.path.as_os_str(), at.path().as_os_str()];
        let options = ["-t", "ext4", "-o", "loop"].map(std::ffi::OsStr::new);
        let (code, _) = try_run("mount", options.into_iter().chain(paths));
        if code != 0 {
            skip(test, "loop mounts of ext4");
            return None;
        }
        Some(Self { at, _image: image })
    }

    fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        try_run("umount", [self.path()]);
    }
}

#[test]
fn a_mounted_file_system_copied_while_it_is_in_use() {
    let test = "a_mounted_file_system_copied_while_it_is_in_use";
    if !have(test, &["mkfs.ext4", "debugfs", "mount", "umount"]) {
        return;
    }
    for options in [
        &["-b", "4096"][..],
        &["-b", "1024"],
        &["-b", "4096", "-O", "orphan_file"],
    ] {
        let image = Image::mkfs(64 << 10, options);
        let Some(mount) = Mount::new(test, &image) else {
            return;
        };
        for number in 0..300 {
            std::fs::create_dir_all(mount.path().join(format!("d{}", number % 7))).unwrap();
            let path = mount.path().join(format!("d{}/f{number}", number % 7));
            std::fs::write(&path, vec![1; 100 * number]).unwrap();
        }
        run("sync", ["-f", mount.path().to_str().unwrap()]);
        for number in (0..300).step_by(3) {
            std::fs::remove_file(mount.path().join(format!("d{}/f{number}", number % 7))).unwrap();
        }
        let gone = mount.path().join("open-and-gone");
        let mut open = File::create(&gone).unwrap();
        open.write_all(&vec![7; 90_000]).unwrap();
        open.sync_all().unwrap();
        std::fs::remove_file(&gone).unwrap();
        let last = File::create(mount.path().join("last")).unwrap();
        (&last).write_all(b"last").unwrap();
        last.sync_all().unwrap();
        let copy = image.copy();
        drop((open, last, mount));
        let fs = copy.open(State::Replayed);
        let journal = fs.journal().unwrap().clone();
        assert!(
            fs.replayed_blocks() > 0 && !journal.commits.is_empty(),
            "{options:?}: {journal:?}"
        );
        let found = owners(&fs);
        assert!(found.problems().is_empty(), "{:?}", found.problems());
        assert_eq!(found.disagreements(), Default::default(), "{options:?}");
        let orphan = in_words(&found)
            .into_iter()
            .filter(|line| line.contains("Orphan"))
            .count();
        assert!(orphan > 0, "{options:?}");
        let wanted = words(&replayed(&copy), State::OnDisk);
        assert_same(&words(&copy, State::Replayed), &wanted);
        println!(
            "{test}: {options:?}: {} commits, {} blocks replayed, {} live of {}",
            journal.commits.len(),
            fs.replayed_blocks(),
            journal.live_blocks(),
            journal.blocks
        );
    }
}
