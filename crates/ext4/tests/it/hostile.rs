//! Damaged images: an error, a problem that is told, or the right answer; never a panic.

use cowslip_block::ByteRange;
use cowslip_ext4::{Class, Ext4Error, FileSystem, Owners, Paths, State};

use super::rig::{Image, Random, have, in_words, owners};

const TOOLS: [&str; 3] = ["mkfs.ext4", "debugfs", "e2fsck"];

/// A small image with every kind of metadata.
fn small(test: &str, options: &[&str]) -> Option<Image> {
    if !have(test, &TOOLS) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    std::fs::create_dir_all(root.join("many")).unwrap();
    for number in 0..30 {
        std::fs::write(
            root.join(format!("many/a name that takes its room {number}")),
            b"x",
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("s".repeat(100), root.join("link")).unwrap();
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    for block in 0..12 {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[1; 4096], block * 8192).unwrap();
    }
    let fixed = [
        "-b",
        "1024",
        "-N",
        "64",
        "-J",
        "size=1",
        "-d",
        root.to_str().unwrap(),
    ];
    let image = Image::mkfs(3 << 10, &[&fixed, options].concat());
    let value = image.dir.path().join("value");
    std::fs::write(&value, [b'v'; 600]).unwrap();
    let attribute = format!(
        "ea_set -f {} link user.a\nea_set holes user.b c\n",
        value.display()
    );
    image.debugfs(true, &attribute);
    image.fsck(&["-fyD"]);
    Some(image)
}

/// What is made of an image.
struct Answer {
    owners: Vec<String>,
    paths: Vec<String>,
    told: bool,
}

fn answer(bytes: &[u8]) -> Result<Answer, Ext4Error> {
    let fs = FileSystem::open(bytes, State::Replayed)?;
    let owners = Owners::read(&fs, &mut |_| {})?;
    let inodes = || 1..=fs.superblock().inodes.min(200);
    let paths = Paths::read(&fs, inodes(), &mut |_| {})?;
    for number in inodes() {
        let inode = fs.inode(number)?;
        // Neither may panic; what they say of an inode that is not in use means nothing.
        drop(fs.xattrs(&inode));
        drop(fs.link_target(&inode));
    }
    let quiet =
        fs.problems().is_empty() && owners.problems().is_empty() && paths.problems().is_empty();
    let agree = owners.disagreements() == Default::default();
    let all = |n| paths.get(n).map(|found| format!("{n}: {found:?}"));
    Ok(Answer {
        owners: in_words(&owners),
        paths: inodes().filter_map(all).collect(),
        told: !(quiet && agree),
    })
}

/// Blocks of metadata, of which there is something to misread.
fn metadata(image: &Image) -> Vec<u64> {
    let owners = owners(&image.open(State::Replayed));
    let unit = u64::from(owners.block_bytes());
    let plain = [Class::File, Class::Free, Class::JournalDead, Class::Unknown];
    let runs = owners.runs(ByteRange::new(0, owners.size_bytes()));
    let of_interest = runs.filter(|run| !plain.contains(&run.owner.class()));
    of_interest
        .flat_map(|run| run.range.start.0 / unit..run.range.end.0 / unit)
        .collect()
}

/// Of a block of metadata, the bytes that are changed: all that say something, and one of eight zeros.
fn bytes_of(image: &[u8], block: u64, random: &mut Random) -> Vec<usize> {
    let bytes = (block * 1024..(block + 1) * 1024).map(|at| usize::try_from(at).unwrap());
    bytes
        .filter(|at| image[*at] != 0 || random.below(8) == 0)
        .collect()
}

fn assert_same(place: &str, found: &[String], wanted: &[String]) {
    let differ = found
        .iter()
        .zip(wanted)
        .find(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{place}: {} and {}: {differ:?}",
        found.len(),
        wanted.len()
    );
}

#[test]
fn a_flipped_bit_is_told_or_does_not_matter() {
    let test = "a_flipped_bit_is_told_or_does_not_matter";
    let Some(image) = small(test, &["-O", "^resize_inode"]) else {
        return;
    };
    let mut bytes = image.bytes();
    let whole = answer(&bytes).unwrap();
    assert!(!whole.told && whole.paths.len() > 33, "{:?}", whole.paths);
    let mut random = Random(3);
    let (mut refused, mut told, mut same) = (0, 0, 0);
    for block in metadata(&image) {
        for at in bytes_of(&bytes, block, &mut random) {
            let bit = 1 << random.below(8);
            bytes[at] ^= bit;
            match answer(&bytes) {
                Err(_) => refused += 1,
                Ok(answer) if answer.told => told += 1,
                Ok(answer) => {
                    let place = format!("byte {:#x} of block {block}, bit {bit}", at % 1024);
                    assert_same(&place, &answer.owners, &whole.owners);
                    assert_same(&place, &answer.paths, &whole.paths);
                    same += 1;
                }
            }
            bytes[at] ^= bit;
        }
    }
    println!("{test}: {refused} refused, {told} told, {same} without effect");
    assert!(refused > 10 && told > 1000 && same > 1000);
}

#[test]
fn without_checksums_a_flipped_bit_harms_nobody() {
    let test = "without_checksums_a_flipped_bit_harms_nobody";
    for options in [
        &["-O", "^metadata_csum,^resize_inode"][..],
        &["-O", "^metadata_csum,^extent,^64bit"],
    ] {
        let Some(image) = small(test, options) else {
            return;
        };
        let mut bytes = image.bytes();
        let mut random = Random(5);
        for block in metadata(&image) {
            for at in bytes_of(&bytes, block, &mut random) {
                let old = bytes[at];
                bytes[at] = random.below(256).to_le_bytes()[0];
                drop(answer(&bytes));
                bytes[at] = old;
            }
        }
    }
}

#[test]
fn every_truncated_image_is_refused() {
    let test = "every_truncated_image_is_refused";
    let Some(image) = small(test, &[]) else {
        return;
    };
    let bytes = image.bytes();
    for len in (0..bytes.len()).step_by(512) {
        assert!(answer(&bytes[..len]).is_err(), "{len}");
    }
    answer(&bytes).unwrap();
}

#[test]
fn zeroed_blocks_are_told_or_do_not_matter() {
    let test = "zeroed_blocks_are_told_or_do_not_matter";
    let Some(image) = small(test, &["-O", "^resize_inode"]) else {
        return;
    };
    let bytes = image.bytes();
    let whole = answer(&bytes).unwrap();
    for block in metadata(&image) {
        let mut bytes = bytes.clone();
        bytes[usize::try_from(block * 1024).unwrap()..][..1024].fill(0);
        if let Ok(answer) = answer(&bytes) {
            let same = answer.owners == whole.owners && answer.paths == whole.paths;
            assert!(answer.told || same, "block {block}");
        }
    }
}
