//! [`MapRun`] and [`Target`]: what blocks of an image are mapped to; merging and overlaying runs.
//!
//! Two neighbours are merged only where one look-up formula serves both: zeros beside zeros, or
//! the same layer with the blocks one after the other *in the layer*.

use cowslip_block::{BlockIndex, BlockRange};

use crate::ids::LayerId;

/// What a block reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Zeros.
    Zero,
    /// A block of a layer.
    Layer {
        /// Which layer; never the nil one.
        id: LayerId,
        /// Which block of the layer.
        at: u64,
    },
}

/// Blocks of an image that are mapped together: the first to `to`, the next to the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// The blocks of the image.
    pub blocks: BlockRange,
    /// What the first of them reads as.
    pub to: Target,
}

impl Target {
    /// What the block `by` later reads as.
    #[must_use]
    pub fn after(self, by: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Layer { id, at } => Self::Layer { id, at: at + by },
        }
    }
}

impl MapRun {
    /// The part of it within `range`, if any.
    #[must_use]
    pub(crate) fn clip(self, range: BlockRange) -> Option<Self> {
        let blocks = self.blocks.intersect(range);
        if blocks.is_empty() {
            return None;
        }
        let skipped = blocks.start.0 - self.blocks.start.0;
        let to = self.to.after(skipped);
        Some(Self { blocks, to })
    }

    /// Does `next` go on where this one ends, on the device and in the layer?
    pub(crate) fn goes_on_in(self, next: Self) -> bool {
        self.blocks.end == next.blocks.start && self.to.after(self.blocks.count().0) == next.to
    }
}

/// Runs in order, neighbours merged.
#[derive(Debug, Default)]
pub struct Merged(pub(crate) Vec<MapRun>);

impl Merged {
    /// So far.
    pub fn runs(&self) -> &[MapRun] {
        &self.0
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        (self.0.capacity() * size_of::<MapRun>()) as u64
    }

    /// The next one.
    pub fn push(&mut self, run: MapRun) {
        match self.0.last_mut() {
            Some(last) if last.goes_on_in(run) => last.blocks.end = run.blocks.end,
            _ => self.0.push(run),
        }
    }
}

/// `old` with `changes` laid over it, within `span`. Both are sorted and disjoint; gaps in `old`
/// read as zeros, gaps in `changes` leave it as it was. The result leaves zeros out.
pub(crate) fn overlay(old: &[MapRun], changes: &[MapRun], span: BlockRange) -> Vec<MapRun> {
    let mut out = Merged::default();
    let mut old = old;
    let mut done = span.start;
    let past_the_end = MapRun {
        blocks: BlockRange::new(span.end.0, span.end.0),
        to: Target::Zero,
    };
    let clipped = changes.iter().filter_map(|c| c.clip(span));
    for change in clipped.chain([past_the_end]) {
        let gap = BlockRange::new(done.0, change.blocks.start.0);
        old = &old[old.partition_point(|r| r.blocks.end <= gap.start)..];
        let reach = old.iter().take_while(|r| r.blocks.start < gap.end);
        reach.filter_map(|r| r.clip(gap)).for_each(|r| out.push(r));
        if change.to != Target::Zero {
            out.push(change);
        }
        done = change.blocks.end;
    }
    out.0
}

/// The changes that touch `span`.
pub(crate) fn within(changes: &[MapRun], span: BlockRange) -> &[MapRun] {
    let from = changes.partition_point(|c| c.blocks.end <= span.start);
    let to = changes.partition_point(|c| c.blocks.start < span.end);
    &changes[from..to.max(from)]
}

/// The blocks below a node at `base`.
pub(crate) fn span_at(level: u8, base: BlockIndex) -> BlockRange {
    BlockRange::new(base.0, base.0 + crate::limits::span(level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn layer(n: u128, at: u64) -> Target {
        let id = LayerId(Uuid::from_u128(n));
        Target::Layer { id, at }
    }

    fn run(start: u64, end: u64, to: Target) -> MapRun {
        let blocks = BlockRange::new(start, end);
        MapRun { blocks, to }
    }

    #[test]
    fn neighbours_of_one_layer_are_merged_only_where_they_lie_side_by_side_in_it() {
        let mut merged = Merged::default();
        merged.push(run(0, 2, layer(1, 10)));
        merged.push(run(2, 3, layer(1, 12)));
        merged.push(run(3, 4, layer(1, 40)));
        merged.push(run(4, 5, layer(2, 41)));
        merged.push(run(6, 7, layer(2, 42)));
        let want = [
            run(0, 3, layer(1, 10)),
            run(3, 4, layer(1, 40)),
            run(4, 5, layer(2, 41)),
            run(6, 7, layer(2, 42)),
        ];
        assert_eq!(merged.0, want);
    }

    fn sorted_runs() -> impl Strategy<Value = Vec<MapRun>> {
        let one = (0u64..4, 1u64..6, 0u128..3, 0u64..4);
        proptest::collection::vec(one, 0..12).prop_map(|parts| {
            let mut start = 0;
            let mut runs = Vec::new();
            for (gap, count, id, at) in parts {
                start += gap;
                let to = if id == 0 { Target::Zero } else { layer(id, at) };
                runs.push(run(start, start + count, to));
                start += count;
            }
            runs
        })
    }

    /// The stupid twin: one target a block.
    fn spread(runs: &[MapRun], into: &mut [Target]) {
        for r in runs {
            for block in r.blocks.iter() {
                if let Some(slot) = into.get_mut(usize::try_from(block.0).unwrap()) {
                    *slot = r.to.after(block.0 - r.blocks.start.0);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn overlay_is_a_loop_over_blocks(old in sorted_runs(), changes in sorted_runs(), end in 1u64..64) {
            let span = BlockRange::new(0, end);
            let mut want = vec![Target::Zero; usize::try_from(end).unwrap()];
            spread(&old, &mut want);
            spread(&changes, &mut want);
            let old: Vec<_> = old.into_iter().filter(|r| r.to != Target::Zero).collect();
            let got = overlay(&old, &changes, span);
            let mut spread_got = vec![Target::Zero; want.len()];
            spread(&got, &mut spread_got);
            prop_assert_eq!(spread_got, want);
            for pair in got.windows(2) {
                prop_assert!(pair[0].blocks.end <= pair[1].blocks.start);
                prop_assert!(!pair[0].goes_on_in(pair[1]));
            }
        }
    }
}
