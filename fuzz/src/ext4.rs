//! An ext4 file system: opened, and asked whose each block is, what it is called, and what is in its files.
//!
//! ```text
//! input  0 look: 0 as it is on disk, else replayed   1 size in units of 32 KiB, at most 8 MiB
//!        then parts: number of a block of 1 KiB, 16 bits; length, 16 bits; what it begins with, the rest is zeros
//! ```
//!
//! Most of a file system is zeros, and a fuzzer works on short inputs. Checksums do not stop it: what does not match is told and read
//! all the same, but for the journal's, which the seeds do without.

use cowslip_block::ByteRange;
use cowslip_ext4::{FileSystem, Owners, Paths, State};

use crate::input::{Input, push_part};

const UNIT: usize = 1024;
/// The unit of sizes.
const CHUNK: usize = 32 << 10;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Opens, and asks everything.
pub fn run(input: &[u8]) {
    let (image, state) = image(input);
    let Ok(fs) = FileSystem::open(&image[..], state) else {
        return;
    };
    let end = fs.superblock().size_bytes();
    assert!(end <= image.len() as u64);
    if let Ok(owners) = Owners::read(&fs, &mut |_| {}) {
        // Every byte has one owner, whatever the image says.
        let mut at = 0;
        for run in owners.runs(ByteRange::new(0, end + 1)) {
            assert!(run.range.start.0 == at && !run.range.is_empty());
            at = run.range.end.0;
        }
        assert_eq!(at, end + 1);
    }
    let inodes = || 1..=fs.superblock().inodes.min(256);
    if let Ok(paths) = Paths::read(&fs, inodes(), &mut |_| {}) {
        for path in inodes().filter_map(|number| paths.get(number)) {
            drop(fs.look_up(&String::from_utf8_lossy(&path.path)));
        }
    }
    for inode in inodes().filter_map(|number| fs.inode(number).ok()) {
        drop(fs.xattrs(&inode));
        drop(fs.link_target(&inode));
        drop(fs.read_directory(&inode, &mut |_| {}));
        drop(fs.names(&inode));
        if let Ok(bytes) = fs.read_file(&inode, FILE_BYTES_MAX) {
            assert_eq!(bytes.len() as u64, inode.size_bytes);
        }
    }
}

fn image(input: &[u8]) -> (Vec<u8>, State) {
    let mut input = Input(input);
    let state = if input.byte() == 0 {
        State::OnDisk
    } else {
        State::Replayed
    };
    let mut image = vec![0; (usize::from(input.byte()) + 1) * CHUNK];
    while !input.0.is_empty() {
        let block = input.short();
        let part = input.part();
        let part = &part[..part.len().min(UNIT)];
        if let Some(place) = image
            .get_mut(block * UNIT..)
            .and_then(|rest| rest.get_mut(..part.len()))
        {
            place.copy_from_slice(part);
        }
    }
    (image, state)
}

/// An image as an input: its blocks that are not zero.
pub fn input_of(image: &[u8], replayed: bool) -> Vec<u8> {
    let chunks = (image.len() / CHUNK).clamp(1, 256) - 1;
    let mut input = vec![
        u8::from(replayed),
        u8::try_from(chunks).expect("at most 255"),
    ];
    for (number, block) in image.chunks(UNIT).enumerate() {
        let len = block
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        if len > 0 {
            let number = u16::try_from(number).expect("at most 8 MiB");
            input.extend(number.to_le_bytes());
            push_part(&mut input, &block[..len]);
        }
    }
    input
}

/// Small file systems, made by e2fsprogs: with extents and without, with data in inodes, with clusters, with a log to be replayed. They are
/// kept as inputs, so that fuzzing needs no programs of others.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        &include_bytes!("../seeds/ext4/0")[..],
        include_bytes!("../seeds/ext4/1"),
        include_bytes!("../seeds/ext4/2"),
        include_bytes!("../seeds/ext4/3"),
        include_bytes!("../seeds/ext4/4"),
    ]
    .map(<[u8]>::to_vec)
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_file_systems() {
        let mut replayed = 0;
        for seed in seeds() {
            let (image, state) = image(&seed);
            let fs = FileSystem::open(&image[..], state).unwrap();
            let owners = Owners::read(&fs, &mut |_| {}).unwrap();
            assert!(
                fs.problems().is_empty() && owners.problems().is_empty(),
                "{:?}",
                owners.problems()
            );
            replayed += fs.replayed_blocks();
            let root = fs.look_up("/").unwrap().unwrap();
            assert!(fs.names(&root).unwrap().contains(&b"lost+found".to_vec()));
            assert_eq!(input_of(&image, state == State::Replayed), seed);
        }
        assert!(replayed > 0);
    }
}
