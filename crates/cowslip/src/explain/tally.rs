//! [`Tally`]: how many blocks and bytes of a diff each owner has.
//!
//! Memory: one entry for each inode that has a block in the diff.

use std::collections::{BTreeMap, HashMap};

use cowslip_block::{BlockSize, ByteRange};
use cowslip_ext4::{Class, Owned, Owner};
use serde::Serialize;

use super::share::{Share, shares};

/// Blocks that count for somebody, and bytes that are theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

/// What a snapshot could have done without, had it been known that nobody needs it: whole blocks of free space and of
/// the dead journal. Of a file system that is in use this is no promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Shadow {
    pub(crate) free_blocks: u64,
    pub(crate) dead_journal_blocks: u64,
}

/// Totals by owner.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    size: BlockSize,
    owners: HashMap<Owner, Counted>,
    shadow: Shadow,
}

impl Tally {
    pub(crate) fn new(size: BlockSize) -> Self {
        Self {
            size,
            owners: HashMap::new(),
            shadow: Shadow::default(),
        }
    }

    /// Counts the blocks of `range`: see [`shares`]. `also` hears of each share.
    pub(crate) fn add(
        &mut self,
        range: ByteRange,
        owned: impl Iterator<Item = Owned>,
        also: &mut dyn FnMut(Share<'_>),
    ) {
        let (size, owners, shadow) = (self.size, &mut self.owners, &mut self.shadow);
        shares(size, range, owned, &mut |share| {
            match share {
                Share::Whole(blocks, owner) => {
                    let counted = owners.entry(owner).or_default();
                    counted.blocks += blocks.count().0;
                    counted.bytes += size.bytes_of(blocks).len();
                    shadow.add(owner, blocks.count().0);
                }
                Share::Split(_, parts) => {
                    for (owner, bytes) in parts {
                        owners.entry(*owner).or_default().bytes += bytes;
                    }
                    let owner = winner(parts);
                    owners.entry(owner).or_default().blocks += 1;
                    if parts.iter().all(|(owner, _)| is_nobodys(*owner)) {
                        shadow.add(owner, 1);
                    }
                }
            }
            also(share);
        });
    }

    /// Blocks and bytes of all.
    pub(crate) fn total(&self) -> Counted {
        self.owners.values().fold(Counted::default(), Counted::and)
    }

    /// By class, those with most bytes first.
    pub(crate) fn classes(&self) -> Vec<(Class, Counted)> {
        let mut classes: BTreeMap<Class, Counted> = BTreeMap::new();
        for (owner, counted) in &self.owners {
            let class = classes.entry(owner.class()).or_default();
            *class = class.and(counted);
        }
        let mut classes: Vec<_> = classes.into_iter().collect();
        classes.sort_by_key(|(class, counted)| (std::cmp::Reverse(counted.bytes), *class));
        classes
    }

    /// One class.
    pub(crate) fn class(&self, class: Class) -> Counted {
        let own = self.owners.iter().filter(|(o, _)| o.class() == class);
        own.fold(Counted::default(), |sum, (_, counted)| sum.and(counted))
    }

    /// The files, by inode, those with most blocks first.
    pub(crate) fn files(&self) -> Vec<(u32, Counted)> {
        let mut files: Vec<(u32, Counted)> = self
            .owners
            .iter()
            .filter_map(|(owner, counted)| match owner {
                Owner::File { inode } => Some((*inode, *counted)),
                _ => None,
            })
            .collect();
        let most = |(inode, c): &(u32, Counted)| (std::cmp::Reverse((c.blocks, c.bytes)), *inode);
        files.sort_by_key(most);
        files
    }

    pub(crate) fn shadow(&self) -> Shadow {
        self.shadow
    }
}

impl Counted {
    fn and(self, other: &Self) -> Self {
        Self {
            blocks: self.blocks + other.blocks,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Shadow {
    fn add(&mut self, owner: Owner, blocks: u64) {
        match owner {
            Owner::Free => self.free_blocks += blocks,
            Owner::Journal { live: false } => self.dead_journal_blocks += blocks,
            _ => {}
        }
    }
}

/// Does nobody who mounts the file system look at it?
pub(crate) fn is_nobodys(owner: Owner) -> bool {
    matches!(owner, Owner::Free | Owner::Journal { live: false })
}

/// The owner of the most bytes; of two with as many, the first.
pub(crate) fn winner(parts: &[(Owner, u64)]) -> Owner {
    let most = parts.iter().rev().max_by_key(|(_, bytes)| *bytes);
    most.map_or(Owner::Unknown, |(owner, _)| *owner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The unit of the twin.
    const SECTOR: u64 = 512;
    const SIZE: BlockSize = BlockSize::DISK;

    fn owner() -> impl Strategy<Value = Owner> {
        prop_oneof![
            Just(Owner::Bitmap),
            Just(Owner::Free),
            Just(Owner::Journal { live: false }),
            (1u32..4).prop_map(|inode| Owner::File { inode }),
            (1u32..3).prop_map(|inode| Owner::Directory { inode }),
        ]
    }

    /// Owners of sectors, and runs of blocks among them that changed.
    fn case() -> impl Strategy<Value = (Vec<Owner>, Vec<bool>)> {
        let runs = prop::collection::vec((owner(), 1usize..20), 1..30);
        runs.prop_flat_map(|runs| {
            let of = |(owner, n): (Owner, usize)| std::iter::repeat_n(owner, n);
            let sectors: Vec<Owner> = runs.into_iter().flat_map(of).collect();
            let blocks = sectors.len().div_ceil(8);
            (Just(sectors), prop::collection::vec(any::<bool>(), blocks))
        })
    }

    /// Each sector looked at by itself.
    fn stupid(sectors: &[Owner], changed: &[bool]) -> (HashMap<Owner, Counted>, Shadow) {
        let mut owners: HashMap<Owner, Counted> = HashMap::new();
        let mut shadow = Shadow::default();
        let blocks = sectors
            .chunks(8)
            .zip(changed)
            .filter(|(_, changed)| **changed);
        for (block, _) in blocks {
            let count = |owner| block.iter().filter(|o| **o == owner).count();
            let most = block.iter().map(|o| count(*o)).max().unwrap();
            let owner = *block.iter().find(|o| count(**o) == most).unwrap();
            owners.entry(owner).or_default().blocks += 1;
            for owner in block {
                owners.entry(*owner).or_default().bytes += SECTOR;
            }
            let nobodys = [Owner::Free, Owner::Journal { live: false }];
            if block.iter().all(|o| nobodys.contains(o)) {
                shadow.free_blocks += u64::from(owner == Owner::Free);
                shadow.dead_journal_blocks += u64::from(owner != Owner::Free);
            }
        }
        (owners, shadow)
    }

    /// Runs of sectors of one owner, as a file system tells them.
    fn owned(sectors: &[Owner], range: ByteRange) -> Vec<Owned> {
        let mut runs: Vec<Owned> = Vec::new();
        for at in range.start.0 / SECTOR..range.end.0 / SECTOR {
            let owner = sectors[usize::try_from(at).unwrap()];
            let range = ByteRange::new(at * SECTOR, (at + 1) * SECTOR);
            match runs.last_mut() {
                Some(last) if last.owner == owner => last.range.end = range.end,
                _ => runs.push(Owned { range, owner }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn a_tally_counts_as_a_walk_over_sectors_does((sectors, changed) in case()) {
            let mut tally = Tally::new(SIZE);
            let end = sectors.len() as u64 * SECTOR;
            let mut seen = 0;
            for run in changed.iter().enumerate().collect::<Vec<_>>().chunk_by(|a, b| a.1 == b.1) {
                let (first, last) = (run[0].0 as u64, run[run.len() - 1].0 as u64);
                let range = ByteRange::new(first * 4096, ((last + 1) * 4096).min(end));
                if *run[0].1 {
                    tally.add(range, owned(&sectors, range).into_iter(), &mut |share| {
                        seen += match share {
                            Share::Whole(blocks, _) => blocks.count().0,
                            Share::Split(..) => 1,
                        };
                    });
                }
            }
            let (owners, shadow) = stupid(&sectors, &changed);
            prop_assert_eq!(&tally.owners, &owners);
            prop_assert_eq!(tally.shadow(), shadow);
            prop_assert_eq!(tally.total().blocks, changed.iter().filter(|c| **c).count() as u64);
            prop_assert_eq!(tally.total().blocks, seen);
            let by_class = tally.classes().into_iter().fold(Counted::default(), |sum, (_, c)| sum.and(&c));
            prop_assert_eq!(by_class, tally.total());
        }
    }
}
