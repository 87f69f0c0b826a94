//! Recovery: from what a journal says to the states of the blocks.

use std::collections::VecDeque;
use std::io;

use super::BlockState::{Dirty, Untouched, Zero, ZeroHeld};
use super::journal::{Mark, Replay};
use super::{BlockState, TRACKED, apply, new_tracker};
use crate::device::Geometry;
use crate::files::File;
use crate::planted::{Bug, planted};
use crate::tracker::StateTracker;
use crate::units::{BlockRange, BlockSize, ByteRange};
use crate::zero::is_zero;

/// What a journal says, as far as it can be believed.
pub(super) struct Recovered {
    pub(super) states: StateTracker<BlockState>,
    /// The cache was closed.
    pub(super) closed: bool,
    /// The disk lost something since the machine was started: nothing of this is to be believed that no
    /// flush covers (see [`super::Cache::find_after_failure`]).
    pub(super) lost: bool,
}

/// See [`Recovered`].
pub(super) fn recover(
    replay: &Replay,
    geometry: &Geometry,
    file: &dyn File,
) -> io::Result<Recovered> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut states = new_tracker(geometry);
    let all = BlockRange::new(0, states.count_blocks().0);
    if let Some(bytes) = &replay.states {
        states = StateTracker::decode(
            bytes,
            states.count_blocks(),
            Untouched,
            &[Dirty, ZeroHeld, Zero],
        )
        .map_err(|e| invalid(format!("a checkpoint does not decode: {e}")))?;
    }
    let mut closed = false;
    for (mark, flushed) in &replay.marks {
        if let Mark::Dirty(blocks, _) | Mark::Zero(blocks) | Mark::Provisioned(blocks) = mark
            && (blocks.is_empty() || blocks.end > all.end)
        {
            return Err(invalid(format!(
                "the journal speaks of {blocks:?}: of none, or past the end"
            )));
        }
        match mark {
            Mark::Dirty(blocks, crcs)
                if !flushed && !replay.same_boot && !planted(Bug::MarksBelieved) =>
            {
                apply_what_is_there(&mut states, *blocks, crcs, geometry.block_size, file)?;
            }
            mark => apply(&mut states, mark),
        }
        closed = *mark == Mark::Closed;
    }
    let holes = holes_in_dirty(&states, geometry.block_size, file)?;
    let lost = replay.same_boot
        && (!holes.is_empty() || is_lost(replay, &states, geometry.block_size, file)?);
    if !replay.same_boot {
        // A block that was zeroed after the last flush, whose record is not there.
        for run in holes {
            states.set_range(run, Zero).expect(TRACKED);
        }
    }
    Ok(Recovered {
        states,
        closed,
        lost,
    })
}

/// Is a dirty block that no flush covers all zeros? None ever is that was written, also in place.
fn is_lost(
    replay: &Replay,
    states: &StateTracker<BlockState>,
    size: BlockSize,
    file: &dyn File,
) -> io::Result<bool> {
    let mut bytes = vec![0; size.bytes_usize()];
    for (mark, flushed) in &replay.marks {
        let Mark::Dirty(blocks, _) = mark else {
            continue;
        };
        let dirty = states.runs(*blocks).filter(|(_, state)| *state == Dirty);
        for block in dirty.flat_map(|(run, _)| run.iter()).filter(|_| !flushed) {
            file.read_at(&mut bytes, size.offset_of(block).0)?;
            if is_zero(&bytes) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Dirty blocks whose room was given back, or never written. A record of zeros is in the journal before a hole is in the file, so that after
/// a kill there are none; after a power cut, and on a disk that failed, the hole may be there and its record not.
fn holes_in_dirty(
    states: &StateTracker<BlockState>,
    size: BlockSize,
    file: &dyn File,
) -> io::Result<Vec<BlockRange>> {
    let mut holes: Vec<BlockRange> = Vec::new();
    let mut written = Written::of(file);
    let mut bytes = vec![0; size.bytes_usize()];
    for run in states.blocks_in(Dirty).expect(TRACKED) {
        let range = size.bytes_of(run);
        let mut at = range.start.0;
        while at < range.end.0 {
            let (data, end) = match written.next(at)? {
                Some((start, end)) if start < range.end.0 => (start.max(at), end),
                _ => (range.end.0, range.end.0),
            };
            for block in size.blocks_inside(ByteRange::new(at, data)).iter() {
                // The kernel may have it all the same, and not have written it yet.
                file.read_at(&mut bytes, size.offset_of(block).0)?;
                if !is_zero(&bytes) {
                    continue;
                }
                match holes.last_mut() {
                    Some(last) if last.end == block => last.end.0 += 1,
                    _ => holes.push(BlockRange::one(block)),
                }
            }
            at = end;
        }
    }
    Ok(holes)
}

/// What was written of a file, asked for from its start to its end: each extent is looked for once, however many runs lie in it.
struct Written<'a> {
    file: &'a dyn File,
    ahead: VecDeque<(u64, u64)>,
    /// There is nothing behind those.
    is_all: bool,
}

impl<'a> Written<'a> {
    fn of(file: &'a dyn File) -> Self {
        Self {
            file,
            ahead: VecDeque::new(),
            is_all: false,
        }
    }

    /// The extent that ends behind this offset, which no later one is before.
    fn next(&mut self, at: u64) -> io::Result<Option<(u64, u64)>> {
        loop {
            while self.ahead.front().is_some_and(|(_, end)| *end <= at) {
                self.ahead.pop_front();
            }
            if self.is_all || !self.ahead.is_empty() {
                return Ok(self.ahead.front().copied());
            }
            self.ahead.extend(self.file.next_written(at)?);
            self.is_all = self.ahead.is_empty();
        }
    }
}

/// Invariant 2, after a power cut: a mark without its bytes does not count.
fn apply_what_is_there(
    states: &mut StateTracker<BlockState>,
    blocks: BlockRange,
    crcs: &[u32],
    size: BlockSize,
    file: &dyn File,
) -> io::Result<()> {
    let mut bytes = vec![0; size.bytes_usize()];
    for (block, crc) in blocks.iter().zip(crcs) {
        file.read_at(&mut bytes, size.offset_of(block).0)?;
        if crc32c::crc32c(&bytes) == *crc {
            states
                .set_range(BlockRange::one(block), Dirty)
                .expect(TRACKED);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::files::RealFile;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// As if each were asked for by itself.
        #[test]
        fn what_was_written_is_found_from_wherever_it_is_asked_for(blocks in prop::collection::btree_set(0u64..600, 0..400), asked in prop::collection::btree_set(0u64..700, 0..100)) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(700 * 4096).unwrap();
            blocks.iter().for_each(|block| file.write_all_at(&[7; 4096], block * 4096).unwrap());
            file.sync_all().unwrap();
            let file = RealFile::from(std::os::fd::OwnedFd::from(file));
            let mut written = Written::of(&file);
            for at in asked {
                let found = written.next(at * 4096).unwrap();
                let first = blocks.range(at..).next();
                prop_assert_eq!(found.is_some(), first.is_some());
                if let (Some((start, end)), Some(first)) = (found, first) {
                    prop_assert!((start..end).contains(&(first * 4096)), "{start} {end} {first}");
                    prop_assert!(start.max(at * 4096) == first * 4096);
                }
            }
        }
    }
}
