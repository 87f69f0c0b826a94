//! Claims, sorted, into spans that do not overlap: each block to the claim that wins it.
//!
//! Also finds the blocks that two inodes claim, and, with clusters, what the gaps at either end of a claim are likely to be.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::Ext4Error;
use crate::owners::claims::{Claim, Code};

/// What is known of a span without the bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Somebody says that it is theirs.
    Claimed(Code),
    /// Nobody does; if it is in use, it is the rest of a cluster of this one.
    Rest(Code),
    /// Nobody does.
    Nobody,
}

/// A run of blocks, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) by: By,
}

/// Hands spans to `take`, in order, without gaps, from block 0 to `blocks`. Claims are sorted and lie within. How many blocks
/// are claimed by more than one inode, each counted once for every claim but the first.
pub(super) fn resolve(
    claims: &[Claim],
    blocks: u64,
    cluster: u64,
    take: &mut dyn FnMut(Span) -> Result<(), Ext4Error>,
) -> Result<u64, Ext4Error> {
    let mut active: BinaryHeap<Reverse<(Code, u64)>> = BinaryHeap::new();
    let (mut claims, mut at, mut last) = (claims.iter().peekable(), 0, None);
    let (mut reach, mut twice) = (0, 0);
    while at < blocks {
        while active.peek().is_some_and(|Reverse((_, end))| *end <= at) {
            active.pop();
        }
        while let Some(claim) = claims.next_if(|claim| claim.start <= at) {
            active.push(Reverse((claim.owner, claim.end)));
            if !claim.owner.is_layout() {
                twice += claim.end.min(reach).saturating_sub(claim.start);
                reach = reach.max(claim.end);
            }
        }
        let next = claims.peek().map_or(blocks, |claim| claim.start);
        let Some(Reverse((owner, end))) = active.peek() else {
            let after = claims.peek().map(|claim| claim.owner);
            gap(at, next, cluster, (last, after), take)?;
            at = next;
            continue;
        };
        let end = next.min(*end);
        take(Span {
            start: at,
            end,
            by: By::Claimed(*owner),
        })?;
        (at, last) = (end, Some(*owner));
    }
    Ok(twice)
}

/// A gap between two claims: the rest of the first one's cluster, what is nobody's, the beginning of the second one's.
fn gap(
    start: u64,
    end: u64,
    cluster: u64,
    (before, after): (Option<Code>, Option<Code>),
    take: &mut dyn FnMut(Span) -> Result<(), Ext4Error>,
) -> Result<(), Ext4Error> {
    let rest_end = if before.is_some() {
        start.next_multiple_of(cluster).min(end)
    } else {
        start
    };
    let head_start = if after.is_some() {
        (end - end % cluster).max(rest_end)
    } else {
        end
    };
    let rest = |of: Option<Code>| of.map_or(By::Nobody, By::Rest);
    let parts = [
        (start, rest_end, rest(before)),
        (rest_end, head_start, By::Nobody),
        (head_start, end, rest(after)),
    ];
    for (start, end, by) in parts.into_iter().filter(|(start, end, _)| start < end) {
        take(Span { start, end, by })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::Owner;
    use proptest::prelude::*;

    const BLOCKS: u64 = 64;

    fn claim() -> impl Strategy<Value = Claim> {
        let owner = prop_oneof![
            Just(Owner::Bitmap),
            Just(Owner::Journal { live: false }),
            (1u32..6).prop_map(|inode| Owner::File { inode }),
        ];
        (0..BLOCKS, 1..24u64, owner).prop_map(|(start, len, owner)| Claim {
            start,
            end: (start + len).min(BLOCKS),
            owner: Code::of(owner),
        })
    }

    /// The same, block by block.
    fn stupid(claims: &[Claim], cluster: u64) -> (Vec<By>, u64) {
        let on = |block: u64| {
            claims
                .iter()
                .filter(move |c| (c.start..c.end).contains(&block))
        };
        let winner = |block: u64| on(block).map(|c| c.owner).min();
        let by = |block: u64| {
            if let Some(owner) = winner(block) {
                return By::Claimed(owner);
            }
            let first = block - block % cluster;
            let end = (first + cluster).min(BLOCKS);
            let before = (first..block).rev().find_map(winner);
            let after = (block..end).find_map(winner);
            // What starts just at the next cluster claims nothing of this one.
            before.or(after).map_or(By::Nobody, By::Rest)
        };
        let twice =
            |block| (on(block).filter(|c| !c.owner.is_layout()).count() as u64).saturating_sub(1);
        ((0..BLOCKS).map(by).collect(), (0..BLOCKS).map(twice).sum())
    }

    proptest! {
        #[test]
        fn every_block_goes_to_the_claim_that_wins_it(
            claims in proptest::collection::vec(claim(), 0..12),
            cluster in prop_oneof![Just(1u64), Just(4), Just(16)],
        ) {
            let mut claims = claims;
            claims.sort_unstable();
            let mut found = Vec::new();
            let twice = resolve(&claims, BLOCKS, cluster, &mut |span| {
                assert!(span.start == found.len() as u64 && span.start < span.end);
                found.extend((span.start..span.end).map(|_| span.by));
                Ok(())
            }).unwrap();
            prop_assert_eq!((found, twice), stupid(&claims, cluster));
        }
    }
}
