//! [`advise`]: what would have made a diff smaller.

use cowslip_block::{BlockCount, BlockSize};
use cowslip_ext4::Class;
use serde::Serialize;

use super::{Counted, TableChanges, Tally};

/// One way to have a smaller diff. Its field names are a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Advice {
    /// What is in the diff and need not be.
    pub(crate) what: &'static str,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// How to be without.
    pub(crate) how: &'static str,
}

/// What there is to say of what changed, and of what became zero; the most first.
pub(crate) fn advise(
    size: BlockSize,
    changed: &Tally,
    zeroed: &Tally,
    tables: TableChanges,
) -> Vec<Advice> {
    let of_blocks = |blocks| Counted {
        blocks,
        bytes: size.bytes_in(BlockCount(blocks)),
    };
    let shadow = changed.shadow();
    let lazy = of_blocks(
        [Class::InodeTable, Class::JournalLive, Class::JournalDead]
            .iter()
            .map(|class| zeroed.class(*class).blocks)
            .sum(),
    );
    let all = [
        (
            "free",
            of_blocks(shadow.free_blocks),
            "deleted data: mount with -o discard, or run fstrim or `cowslip quiesce` in the guest before the snapshot",
        ),
        (
            "dead_journal",
            of_blocks(shadow.dead_journal_blocks),
            "a journal that is written back already: run `cowslip quiesce` in the guest before the snapshot",
        ),
        (
            "read_times",
            of_blocks(tables.read_time_blocks),
            "inodes that were only read: mount with -o noatime",
        ),
        (
            "times",
            of_blocks(tables.times_blocks),
            "inodes of which only the times are new: mount with -o lazytime",
        ),
        (
            "lazy_init",
            lazy,
            "tables and journal zeroed after the first mount: make the file system on a block device, or wait for it before the template's snapshot",
        ),
    ];
    let mut advice: Vec<Advice> = all
        .into_iter()
        .filter(|(_, counted, _)| counted.blocks > 0)
        .map(|(what, Counted { blocks, bytes }, how)| Advice {
            what,
            blocks,
            bytes,
            how,
        })
        .collect();
    advice.sort_by_key(|advice| std::cmp::Reverse(advice.blocks));
    advice
}

#[cfg(test)]
mod tests {
    use cowslip_block::ByteRange;
    use cowslip_ext4::{Owned, Owner};

    use super::*;

    #[test]
    fn only_what_there_is_is_said_and_the_most_first() {
        let size = BlockSize::DISK;
        let tally = |owners: &[(Owner, u64)]| {
            let mut tally = Tally::new(size);
            for (owner, blocks) in owners {
                let range = ByteRange::new(0, blocks * 4096);
                let owner = *owner;
                tally.add(range, std::iter::once(Owned { range, owner }), &mut |_| {});
            }
            tally
        };
        let none = tally(&[(Owner::File { inode: 12 }, 9), (Owner::InodeTable, 3)]);
        assert_eq!(
            advise(size, &none, &tally(&[]), TableChanges::default()),
            []
        );
        let changed = tally(&[(Owner::Free, 2), (Owner::Journal { live: false }, 5)]);
        let zeroed = tally(&[(Owner::InodeTable, 3), (Owner::Free, 99)]);
        let tables = TableChanges {
            read_time_blocks: 1,
            times_blocks: 0,
        };
        let said: Vec<_> = advise(size, &changed, &zeroed, tables)
            .iter()
            .map(|advice| (advice.what, advice.blocks, advice.bytes))
            .collect();
        let wanted = [
            ("dead_journal", 5, 5 * 4096),
            ("lazy_init", 3, 3 * 4096),
            ("free", 2, 2 * 4096),
            ("read_times", 1, 4096),
        ];
        assert_eq!(said, wanted);
    }
}
