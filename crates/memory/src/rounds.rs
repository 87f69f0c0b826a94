//! [`Rounds`]: what a guest wrote, taken from it in rounds: while it runs, and then once while it is paused.
//!
//! ```text
//! runs     harvest, copy      all that it wrote since the last snapshot
//! runs     harvest, copy      what it wrote again meanwhile; and so on, while that is much, but not for ever
//! paused   harvest            what it wrote since
//! ```
//!
//! So the pause is as long as what was written last takes to be found, whatever was written before. Each round is copied into the same file, over the earlier
//! ones: a page that is not in a later round has not been written since it was copied, or that would have been noticed.
//!
//! Invariants:
//! 1. What was taken, and is not [committed](Rounds::committed), counts as dirty again.
//! 2. A round before the pause that fails takes nothing: what it was to have is in the next one.
//! 3. A page that the guest gave back after it was copied is zeros, and has no bytes in the file.

use std::fs::File;
use std::io;

use cowslip_block::{BlockIndex, BlockRange};
use rustix::fs::{FallocateFlags, fallocate};

use crate::guest::{CaptureError, Guest, Harvest, Tracking};
use crate::process::Process;

/// Rounds before the pause, at most: a guest that writes faster than it is copied is not waited for.
const AHEAD_MAX: usize = 3;
/// What takes a millisecond or less to be protected, and to be copied, is left to the pause.
const ENOUGH_PAGES: u64 = 256;
const ENOUGH_BYTES: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Rounds<'a> {
    guest: &'a Guest,
    process: &'a Process,
    all: Vec<Harvest>,
    is_committed: bool,
}

impl<'a> Rounds<'a> {
    /// Nothing is taken yet.
    pub(crate) fn new(guest: &'a Guest, process: &'a Process) -> Self {
        Self {
            guest,
            process,
            all: Vec::new(),
            is_committed: false,
        }
    }

    /// Those while it runs, copied into this file, which is empty.
    pub(crate) fn ahead(&mut self, spool: &File) {
        if self.guest.tracking() == Tracking::None {
            return;
        }
        for _ in 0..AHEAD_MAX {
            // Why it cannot be, the pause tells, if it still is so.
            let Ok(harvest) = self.guest.harvest(self.process, spool) else {
                return;
            };
            let is_copied = self.guest.copy(self.process, &harvest).is_ok();
            let pages: u64 = harvest.dirty.iter().map(|run| run.count().0).sum();
            if !is_copied {
                self.guest.lose(&harvest);
            }
            self.all.push(harvest);
            let is_enough =
                pages <= ENOUGH_PAGES && pages * self.guest.page_bytes() <= ENOUGH_BYTES;
            if !is_copied || is_enough {
                return;
            }
        }
    }

    /// The last one, to be copied into the same file: it is paused.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub(crate) fn last(&mut self, spool: &File) -> Result<(), CaptureError> {
        self.all.push(self.guest.harvest(self.process, spool)?);
        Ok(())
    }

    /// Copies what the last one found.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub(crate) fn copy_last(&self) -> Result<(), CaptureError> {
        self.all
            .last()
            .map_or(Ok(()), |harvest| self.guest.copy(self.process, harvest))
    }

    /// All of them as one: what the file has, and what is zeros.
    ///
    /// # Errors
    /// Where the file cannot be told that a page has no bytes.
    pub(crate) fn merged(&self, spool: &File) -> io::Result<Harvest> {
        let Some((last, earlier)) = self.all.split_last() else {
            return Ok(Harvest::default());
        };
        let mut merged = last.clone();
        if earlier.iter().all(|harvest| harvest.dirty.is_empty()) {
            return Ok(merged);
        }
        let dirty = || self.all.iter().map(|harvest| &harvest.dirty[..]);
        let (kept, stale) = parted(union(dirty()), &last.zeros);
        merged.dirty = kept;
        let (page, how) = (
            self.guest.page_bytes(),
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        );
        for run in stale {
            let (at, bytes) = (run.start.0 * page, run.count().0 * page);
            fallocate(spool, how, at, bytes)?;
        }
        Ok(merged)
    }

    /// It is in a snapshot that has its name.
    pub(crate) fn committed(mut self) {
        self.is_committed = true;
    }
}

impl Drop for Rounds<'_> {
    fn drop(&mut self) {
        if !self.is_committed {
            self.all.iter().for_each(|harvest| self.guest.lose(harvest));
        }
    }
}

/// Pages that are in any of these, in order.
fn union<'a>(of: impl Iterator<Item = &'a [BlockRange]>) -> Vec<BlockRange> {
    let mut all: Vec<BlockRange> = of.flatten().copied().collect();
    all.sort_unstable_by_key(|run| run.start);
    let mut runs: Vec<BlockRange> = Vec::with_capacity(all.len());
    for run in all {
        match runs.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => runs.push(run),
        }
    }
    runs
}

/// Of runs, what is not in others and what is; each in order, as both are.
fn parted(runs: Vec<BlockRange>, others: &[BlockRange]) -> (Vec<BlockRange>, Vec<BlockRange>) {
    let (mut apart, mut shared) = (Vec::new(), Vec::new());
    let put = |to: &mut Vec<BlockRange>, start: BlockIndex, end: BlockIndex| {
        if start < end {
            to.push(BlockRange { start, end });
        }
    };
    let mut others = others.iter().peekable();
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            // Those that end before are met by no later run either.
            while others.next_if(|other| other.end <= at).is_some() {}
            let other = others.peek().filter(|other| other.start < run.end);
            let Some(other) = other else {
                put(&mut apart, at, run.end);
                break;
            };
            let (from, to) = (other.start.max(at), other.end.min(run.end));
            put(&mut apart, at, from);
            put(&mut shared, from, to);
            at = to;
        }
    }
    (apart, shared)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Pages = BTreeSet<u64>;

    fn runs(pages: &Pages) -> Vec<BlockRange> {
        let each: Vec<_> = pages
            .iter()
            .map(|page| [BlockRange::one(BlockIndex(*page))])
            .collect();
        union(each.iter().map(|run| &run[..]))
    }

    fn pages(runs: &[BlockRange]) -> Pages {
        assert!(runs.is_sorted_by(|a, b| a.end <= b.start), "{runs:?}");
        runs.iter().flat_map(|run| run.start.0..run.end.0).collect()
    }

    fn some() -> impl Strategy<Value = Pages> {
        proptest::collection::btree_set(0..40_u64, 0..30)
    }

    proptest! {
        #[test]
        fn runs_are_sets(a in some(), b in some(), c in some()) {
            let all = [runs(&a), runs(&b), runs(&c)];
            prop_assert_eq!(pages(&all[0]), a.clone());
            let any = union(all.iter().map(Vec::as_slice));
            let united: Pages = a.iter().chain(&b).chain(&c).copied().collect();
            prop_assert_eq!(pages(&any), united);
            let (apart, shared) = parted(runs(&a), &runs(&b));
            prop_assert_eq!(pages(&apart), a.difference(&b).copied().collect::<Pages>());
            prop_assert_eq!(pages(&shared), a.intersection(&b).copied().collect::<Pages>());
        }
    }
}
