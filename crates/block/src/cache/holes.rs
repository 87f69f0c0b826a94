//! Holes: the room of zeroed blocks is given back behind the requests (invariant 13).

use std::io;

use super::BlockState::{Zero, ZeroHeld};
use super::{Cache, SEGMENT_BLOCKS, TRACKED, locked};
use crate::planted::{Bug, planted};
use crate::sync::PoisonError;
use crate::units::BlockRange;

impl Cache {
    /// Gives back the room of some of the blocks that were zeroed; true where more are waiting.
    ///
    /// # Errors
    /// The file system's own; the blocks stay ZeroHeld.
    pub fn punch_some(&self) -> io::Result<bool> {
        const RUNS: usize = 64;
        let states = self.export();
        let held = states.blocks_in(ZeroHeld).expect(TRACKED);
        let waiting: Vec<BlockRange> = held.take(RUNS + 1).collect();
        for run in waiting.iter().take(RUNS) {
            let mut at = run.start.0;
            while at < run.end.0 {
                let end = run.end.0.min((at / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS);
                self.punch_segment(BlockRange::new(at, end))?;
                at = end;
            }
        }
        Ok(waiting.len() > RUNS)
    }

    /// Within one segment: what is still ZeroHeld becomes a hole (invariant 13).
    fn punch_segment(&self, blocks: BlockRange) -> io::Result<()> {
        let _stripe = locked(self.stripe(blocks.start));
        let still: Vec<_> = self
            .states()
            .runs(blocks)
            .filter(|(_, s)| *s == ZeroHeld || planted(Bug::LateHole))
            .map(|(b, _)| b)
            .collect();
        for run in still {
            let bytes = self.block_size().bytes_of(run);
            self.file.punch(bytes.start.0, bytes.len())?;
            let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
            states.set_range(run, Zero).expect(TRACKED);
        }
        Ok(())
    }
}
