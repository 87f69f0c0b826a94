//! Bytes: what is written, how two images are compared, how much room files take.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const MIB: usize = 1 << 20;

/// Choices that one number decides (SplitMix64).
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// Bytes that no compression shrinks and no two blocks of which are equal.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut seeded = Seeded(seed << 32);
    let words = (0..len.div_ceil(8)).flat_map(|_| seeded.next().to_le_bytes());
    words.take(len).collect()
}

/// Where two images differ first.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: lengths");
    if found != wanted {
        let at = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
        panic!(
            "{what}: byte {at} (block {}) is {}, not {}",
            at / BLOCK,
            found[at],
            wanted[at]
        );
    }
}

/// Sums over all files below a directory.
pub(crate) fn sum(dir: &Path, of: &dyn Fn(&Metadata) -> u64) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let each = entries.map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => sum(&entry.path(), of),
        Ok(m) => of(&m),
        // It went while we looked.
        Err(_) => 0,
    });
    each.sum()
}

/// The room that the caches of a session take on disk.
pub(crate) fn cache_room(session: &Path) -> u64 {
    let is_data = |p: &Path| p.extension().is_some_and(|e| e == "data");
    let entries = std::fs::read_dir(session)
        .unwrap()
        .map(|e| e.unwrap().path());
    let room = |p: PathBuf| p.metadata().map_or(0, |m| m.blocks() * 512);
    entries.filter(|p| is_data(p)).map(room).sum()
}
