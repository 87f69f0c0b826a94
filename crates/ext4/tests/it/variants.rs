//! Owners and paths, compared with debugfs and dumpe2fs, of images of many kinds.

use std::collections::BTreeSet;

use cowslip_block::ByteRange;
use cowslip_ext4::{FileSystem, Owner, Owners, Paths, Problem, State};

use super::oracle::Oracle;
use super::rig::{Image, Random, finish, have, owners, tree};

const SAMPLES: usize = 1000;
const TOOLS: [&str; 4] = ["mkfs.ext4", "debugfs", "dumpe2fs", "e2fsck"];

/// Blocks at random, and at the edges of runs, where a mistake would be.
fn sample(owners: &Owners, blocks: u64) -> BTreeSet<u64> {
    let unit = u64::from(owners.block_bytes());
    let all: Vec<_> = owners
        .runs(ByteRange::new(0, owners.size_bytes()))
        .collect();
    let mut random = Random(blocks);
    let mut sample = BTreeSet::new();
    while sample.len() < SAMPLES {
        let run = all[usize::try_from(random.below(all.len() as u64)).unwrap()];
        let (first, last) = (run.range.start.0 / unit, run.range.end.0 / unit - 1);
        let within = first + random.below(last - first + 1);
        sample.extend([random.below(blocks), first, last, within]);
    }
    sample
}

fn compare(test: &str, image: &Image) -> (FileSystem<'static>, Owners) {
    let fs = image.open(State::Replayed);
    assert!(fs.problems().is_empty(), "{test}: {:?}", fs.problems());
    let owners = owners(&fs);
    assert!(
        owners.problems().is_empty(),
        "{test}: {:?}",
        owners.problems()
    );
    assert_eq!(owners.disagreements(), Default::default(), "{test}");
    let sb = fs.superblock();
    let sample = sample(&owners, sb.blocks);
    let oracle = Oracle::ask(image, &sample);
    let cluster = u64::from(sb.cluster_blocks);
    let mut wrong = Vec::new();
    for &block in &sample {
        let owner = owners.of_block(block);
        let (inode, used) = oracle.blocks[&block];
        if cluster > 1 && inode.is_none() && used && !oracle.agrees(block, owner) {
            // The rest of a cluster: somebody of the same cluster must be its owner.
            let first = block - block % cluster;
            let others = (first..first + cluster).filter(|other| *other != block);
            if others
                .into_iter()
                .any(|other| owners.of_block(other) == owner)
                && owner != Owner::Free
            {
                continue;
            }
        }
        if !oracle.agrees(block, owner) {
            wrong.push(format!(
                "{block}: {owner:?}, debugfs: {inode:?}, in use: {used}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{test}: {} of {}:\n{}",
        wrong.len(),
        sample.len(),
        wrong.join("\n")
    );
    compare_paths(test, &fs, &oracle);
    println!(
        "{test}: {} blocks, {} inodes agree",
        sample.len(),
        oracle.inodes.len()
    );
    (fs, owners)
}

fn compare_paths(test: &str, fs: &FileSystem<'_>, oracle: &Oracle) {
    let named = oracle
        .inodes
        .iter()
        .filter(|(_, stat)| !stat.paths.is_empty());
    let paths = Paths::read(fs, oracle.inodes.keys().copied(), &mut |_| {}).unwrap();
    assert!(
        paths.problems().is_empty(),
        "{test}: {:?}",
        paths.problems()
    );
    for (inode, stat) in named {
        let found = paths
            .get(*inode)
            .unwrap_or_else(|| panic!("{test}: no path of {inode}: {stat:?}"));
        let path = String::from_utf8(found.path).unwrap();
        // debugfs goes up 32 directories, no further.
        let is_it = |said: &String| {
            said.strip_prefix("...")
                .map_or(*said == path, |end| path.ends_with(end))
        };
        assert!(
            stat.paths.iter().any(is_it),
            "{test}: {inode}: {path}, {stat:?}"
        );
        if stat.kind != "directory" {
            assert_eq!(found.names, stat.links, "{test}: {path}");
        }
    }
}

/// Makes an image of a tree, and compares.
#[track_caller]
fn variant(test: &str, size_kib: u64, options: &[&str]) -> Option<(FileSystem<'static>, Owners)> {
    if !have(test, &TOOLS) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    tree(&root);
    let with_tree = [options, &["-d", root.to_str().unwrap()]].concat();
    let image = Image::mkfs(size_kib, &with_tree);
    finish(&image, !options.concat().contains("^extent"));
    Some(compare(test, &image))
}

#[test]
fn blocks_of_4_kib() {
    let Some((fs, owners)) = variant("blocks_of_4_kib", 48 << 10, &["-b", "4096"]) else {
        return;
    };
    // Every class that can be there is.
    let all = ByteRange::new(0, owners.size_bytes() + 5);
    let classes: BTreeSet<_> = owners.runs(all).map(|run| run.owner.class()).collect();
    let wanted = "{Superblock, Descriptors, Bitmap, InodeTable, JournalLive, JournalDead, Directory, File, Xattr, ExtentTree, Special, Free, Outside}";
    assert_eq!(format!("{classes:?}"), wanted);
    // A range is answered exactly, wherever it starts and ends.
    let range = ByteRange::new(1000, owners.size_bytes() - 77);
    let runs: Vec<_> = owners.runs(range).collect();
    assert_eq!(
        (runs[0].range.start, runs[runs.len() - 1].range.end),
        (range.start, range.end)
    );
    assert!(
        runs.windows(2)
            .all(|w| w[0].range.end == w[1].range.start && w[0].owner != w[1].owner)
    );
    assert!(owners.runs(ByteRange::new(5, 5)).next().is_none());
    assert_eq!(fs.journal().unwrap().live_blocks(), 1);
}

#[test]
fn blocks_of_1_kib() {
    let Some((_, owners)) = variant("blocks_of_1_kib", 48 << 10, &["-b", "1024"]) else {
        return;
    };
    // Four blocks of the file system in one of the device.
    assert!(owners.runs(ByteRange::new(0, 4096)).count() >= 2);
}

#[test]
fn blocks_of_2_kib() {
    variant("blocks_of_2_kib", 48 << 10, &["-b", "2048"]);
}

#[test]
fn blocks_of_64_kib() {
    variant(
        "blocks_of_64_kib",
        192 << 10,
        &["-b", "65536", "-N", "4096"],
    );
}

#[test]
fn bigalloc() {
    variant(
        "bigalloc",
        96 << 10,
        &["-b", "4096", "-O", "bigalloc", "-C", "16384"],
    );
}

#[test]
fn inline_data() {
    variant(
        "inline_data",
        48 << 10,
        &["-b", "4096", "-O", "inline_data", "-I", "256"],
    );
}

#[test]
fn without_a_journal() {
    let options = ["-b", "4096", "-O", "^has_journal"];
    let Some((fs, _)) = variant("without_a_journal", 48 << 10, &options) else {
        return;
    };
    assert!(fs.journal().is_none());
}

#[test]
fn without_64_bits() {
    variant("without_64_bits", 48 << 10, &["-b", "4096", "-O", "^64bit"]);
}

#[test]
fn block_mapped() {
    variant(
        "block_mapped",
        48 << 10,
        &["-b", "1024", "-O", "^extent,^64bit"],
    );
}

#[test]
fn meta_bg() {
    variant(
        "meta_bg",
        256 << 10,
        &["-b", "1024", "-O", "meta_bg,^resize_inode"],
    );
}

#[test]
fn sparse_super2() {
    variant(
        "sparse_super2",
        64 << 10,
        &["-b", "1024", "-O", "sparse_super2"],
    );
}

#[test]
fn old_checksums_and_groups_on_their_own() {
    let options = ["-b", "1024", "-O", "^metadata_csum,uninit_bg,^flex_bg"];
    variant("old_checksums_and_groups_on_their_own", 64 << 10, &options);
}

#[test]
fn ext2_as_it_was() {
    let options = [
        "-t", "ext2", "-r", "0", "-b", "1024", "-O", "none", "-I", "128",
    ];
    let test = "ext2_as_it_was";
    if have(test, &TOOLS) {
        compare(test, &Image::mkfs(24 << 10, &options));
    }
}

#[test]
fn quota_orphan_file_mmp_and_casefold() {
    let options = [
        "-b",
        "4096",
        "-O",
        "quota,project,orphan_file,mmp,casefold,large_dir",
    ];
    let test = "quota_orphan_file_mmp_and_casefold";
    if !have(test, &TOOLS) {
        return;
    }
    let image = Image::mkfs(32 << 10, &options);
    let fs = image.open(State::Replayed);
    let owners = owners(&fs);
    assert!(
        fs.problems().is_empty() && owners.problems().is_empty(),
        "{:?}",
        owners.problems()
    );
    assert_eq!(owners.disagreements(), Default::default());
    let sb = fs.superblock();
    assert_eq!(owners.of_block(sb.mmp_block), Owner::Superblock);
    let special = |inode| Owner::Special { inode };
    let all: Vec<Owner> = owners
        .runs(ByteRange::new(0, sb.size_bytes()))
        .map(|r| r.owner)
        .collect();
    for inode in [3, 4, sb.quota_inodes[2], sb.orphan_file_inode] {
        assert!(inode != 0 && all.contains(&special(inode)), "{inode}");
    }
}

#[test]
fn large_attributes_in_inodes_of_their_own() {
    let test = "large_attributes_in_inodes_of_their_own";
    if !have(test, &TOOLS) {
        return;
    }
    let image = Image::mkfs(16 << 10, &["-b", "4096", "-O", "ea_inode"]);
    let value = image.dir.path().join("value");
    std::fs::write(&value, vec![b'v'; 30_000]).unwrap();
    let value = value.display();
    image.debugfs(
        true,
        &format!("write {value} file\nea_set -f {value} file user.huge\n"),
    );
    let (fs, owners) = compare(test, &image);
    let all: Vec<_> = owners
        .runs(ByteRange::new(0, owners.size_bytes()))
        .collect();
    let inode = 12;
    let bytes: u64 = all
        .iter()
        .filter(|r| r.owner == Owner::Xattr { inode })
        .map(|r| r.range.len())
        .sum();
    // debugfs takes as much of a value as fits in a block.
    assert_eq!(bytes, 4096, "the value, of {inode}: {all:?}");
    let xattrs = fs.xattrs(&fs.inode(inode).unwrap()).unwrap();
    assert_eq!(
        (&xattrs[0].name[..], xattrs[0].value_bytes),
        (&b"huge"[..], 4096)
    );
    assert!(xattrs[0].value_inode > inode);
}

#[test]
fn links_and_attributes_read_back() {
    let test = "links_and_attributes_read_back";
    if !have(test, &TOOLS) {
        return;
    }
    for options in [
        &["-b", "1024"][..],
        &["-O", "inline_data"],
        &["-O", "^extent,^64bit"],
    ] {
        let image = Image::mkfs(16 << 10, options);
        let long = "l".repeat(200);
        let middle = "m".repeat(59);
        let commands = format!(
            "symlink a short\nsymlink b {middle}\nsymlink c {long}\nwrite /dev/null f\nea_set f user.one two\n"
        );
        image.debugfs(true, &commands);
        let fs = image.open(State::Replayed);
        let mut names = std::collections::BTreeMap::new();
        let root = fs.inode(2).unwrap();
        fs.read_directory(&root, &mut |e| {
            names.insert(e.name.to_vec(), e.inode);
        })
        .unwrap();
        let link = |name: &str| {
            let inode = fs.inode(names[name.as_bytes()]).unwrap();
            String::from_utf8(fs.link_target(&inode).unwrap().unwrap()).unwrap()
        };
        assert_eq!(
            [link("a"), link("b"), link("c")],
            ["short", &middle, &long],
            "{options:?}"
        );
        let file = fs.inode(names[&b"f"[..]]).unwrap();
        assert_eq!(fs.link_target(&file).unwrap(), None);
        let xattrs = fs.xattrs(&file).unwrap();
        let named = xattrs.iter().find(|xattr| xattr.name == b"one").unwrap();
        assert_eq!((named.space, &named.value[..]), (1, &b"two"[..]));
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_a_reason() {
    let test = "what_cannot_be_read_is_refused_with_a_reason";
    if !have(test, &TOOLS) {
        return;
    }
    let open = |bytes: Vec<u8>| {
        FileSystem::open(bytes, State::Replayed)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let image = Image::mkfs(8 << 10, &["-b", "1024", "-O", "^metadata_csum"]);
    let mut bytes = image.bytes();
    assert!(open(bytes[..4 << 20].to_vec()).contains("8388608 bytes"));
    bytes[1024 + 0x62] |= 0x40;
    assert!(open(bytes.clone()).contains("0x400000"));
    assert!(open(vec![0; 1 << 20]).contains("no magic number"));
    assert!(open(vec![0; 100]).contains("too few"));
    let device = Image::mkfs(8 << 10, &["-b", "1024", "-O", "journal_dev"]);
    assert!(open(device.bytes()).contains("journal of another"));
    bytes = image.bytes();
    bytes[1024 + 0xe0] = 0;
    assert!(open(bytes).contains("on another device"));
}

#[test]
fn a_lost_superblock_is_replaced_by_a_copy() {
    let test = "a_lost_superblock_is_replaced_by_a_copy";
    if !have(test, &TOOLS) {
        return;
    }
    for options in [
        &["-b", "1024"][..],
        &["-b", "1024", "-O", "meta_bg,^resize_inode"],
    ] {
        let image = Image::mkfs(24 << 10, options);
        let whole = super::rig::in_words(&owners(&image.open(State::Replayed)));
        let mut bytes = image.bytes();
        bytes[1024..4096].fill(0);
        let fs = FileSystem::open(bytes, State::Replayed).unwrap();
        assert_eq!(fs.problems().count(Problem::Superblock), 1);
        assert_eq!(super::rig::in_words(&owners(&fs)), whole);
    }
}
