//! What changed in blocks of inode tables: only when somebody looked, only when something was touched, or more.
//!
//! Two versions of a block are compared inode by inode. Which bytes of an inode are what is on top of the ext4
//! crate's `inode.rs`; the times, their parts of nanoseconds and the number that goes up with them are added here. The checksum goes
//! with whatever changed.

use std::ops::Range;

/// What is different between two versions of some inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stamps {
    /// When it was read.
    ReadTime,
    /// When it was read, written, or changed; and the number that counts changes.
    Times,
    /// Something else.
    More,
}

/// Blocks of inode tables whose difference is only of this kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableChanges {
    pub(crate) read_time_blocks: u64,
    pub(crate) times_blocks: u64,
}

const CHECKSUM: [Range<usize>; 2] = [0x7c..0x7e, 0x82..0x84];
const READ_TIME: [Range<usize>; 2] = [0x08..0x0c, 0x8c..0x90];
/// Of change, of writing, of both the nanoseconds; the number, and its high half.
const TIMES: [Range<usize>; 6] = [
    0x0c..0x10,
    0x10..0x14,
    0x84..0x88,
    0x88..0x8c,
    0x24..0x28,
    0x98..0x9c,
];

impl TableChanges {
    /// Counts a block of a table: two versions of it, which are different. `tables` are the bytes of it that
    /// hold inodes.
    pub(crate) fn add(&mut self, before: &[u8], now: &[u8], tables: &[Range<usize>], inode: usize) {
        match stamps(before, now, tables, inode) {
            Stamps::ReadTime => self.read_time_blocks += 1,
            Stamps::Times => self.times_blocks += 1,
            Stamps::More => {}
        }
    }
}

/// What is different in a block.
fn stamps(before: &[u8], now: &[u8], tables: &[Range<usize>], inode: usize) -> Stamps {
    let mut all = Stamps::ReadTime;
    for (at, _) in before
        .iter()
        .zip(now)
        .enumerate()
        .filter(|(_, (a, b))| a != b)
    {
        let table = tables.iter().find(|table| table.contains(&at));
        let here = table.map_or(Stamps::More, |table| stamp((at - table.start) % inode));
        all = all.max(here);
    }
    all
}

/// What a byte of an inode is.
fn stamp(at: usize) -> Stamps {
    let is_in = |ranges: &[Range<usize>]| ranges.iter().any(|range| range.contains(&at));
    match () {
        () if is_in(&READ_TIME) || is_in(&CHECKSUM) => Stamps::ReadTime,
        () if is_in(&TIMES) => Stamps::Times,
        () => Stamps::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_what_the_most_of_its_changes_is() {
        let before = vec![0u8; 4096];
        // Of the second and the last inode of 256 bytes; the first KiB is no table.
        let table = 1024..4096;
        let after = |changes: &[usize]| {
            let mut now = before.clone();
            for at in changes {
                now[*at] = 1;
            }
            stamps(&before, &now, std::slice::from_ref(&table), 256)
        };
        let (second, last) = (1024 + 256, 4096 - 256);
        let look = [second + 0x08, second + 0x7d, last + 0x8f, last + 0x83];
        assert_eq!(after(&look), Stamps::ReadTime);
        for time in [0x0c, 0x13, 0x84, 0x8b, 0x24, 0x9b] {
            assert_eq!(
                after(&[second + 0x08, last + time]),
                Stamps::Times,
                "{time:#x}"
            );
        }
        // Mode, size, links, generation, the time of birth, and what lies before the table.
        for more in [
            second,
            second + 0x04,
            last + 0x1a,
            last + 0x64,
            last + 0x90,
            8,
        ] {
            assert_eq!(after(&[second + 0x08, more]), Stamps::More, "{more:#x}");
        }
    }
}
