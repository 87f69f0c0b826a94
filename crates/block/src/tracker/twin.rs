//! The tracker beside a stupid twin: one byte per block, in windows of the device where its trees
//! have their borders. Every range that is set starts and ends in a window, and may run over
//! everything between.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Untouched,
    Dirty,
    Zero,
    Removed,
}
use State::*;

const OTHERS: [State; 3] = [Dirty, Zero, Removed];
const STATES: [State; 4] = [Untouched, Dirty, Zero, Removed];

#[derive(Clone, Debug)]
struct Window {
    start: u64,
    states: Vec<State>,
}

impl Window {
    fn range(&self) -> BlockRange {
        BlockRange::new(self.start, self.start + self.states.len() as u64)
    }

    fn part(&mut self, range: BlockRange) -> &mut [State] {
        let part = self.range().intersect(range);
        let at = |block: u64| usize::try_from(block - self.start).unwrap();
        match part.is_empty() {
            true => &mut [],
            false => &mut self.states[at(part.start.0)..at(part.end.0)],
        }
    }

    fn runs(&self) -> Vec<(BlockRange, State)> {
        let mut at = self.start;
        let runs = self.states.chunk_by(|a, b| a == b).map(|run| {
            let range = BlockRange::new(at, at + run.len() as u64);
            at = range.end.0;
            (range, run[0])
        });
        runs.collect()
    }
}

/// A device's size, and its windows.
fn worlds() -> impl Strategy<Value = (u64, Vec<Window>)> {
    let around = |blocks: u64, borders: &[u64], reach: u64| {
        let windows = borders.iter().map(|border| {
            let start = border.saturating_sub(reach);
            let len = usize::try_from((border + reach).min(blocks) - start).unwrap();
            Window {
                start,
                states: vec![Untouched; len],
            }
        });
        (blocks, windows.collect())
    };
    let (leaf, node, half) = (1 << 16, 1 << 22, 1 << 32);
    let large = (1 << 34) - 5;
    prop_oneof![
        Just(around(1, &[0], 2)),
        Just(around(300, &[0], 300)),
        Just(around(leaf, &[0, leaf], 100)),
        // Wide enough that sets grow past what an array container holds.
        Just(around(2 * leaf, &[leaf], 9000)),
        Just(around(
            node + leaf + 100,
            &[0, leaf, node, node + leaf],
            100
        )),
        Just(around(large, &[0, leaf, node, 1 << 28, half, large], 50)),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Set(Index, Index, State),
    Single(Index, State),
    /// Every so many blocks of a window, one by one.
    Scatter(Index, u64, State),
    Replace(Index, Index, State, State),
    /// Keep a clone; it must not change any more.
    Clone,
    /// Go on with what `decode(encode())` gives.
    Recode,
    Whole(State),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let state = || proptest::sample::select(&STATES);
    let op = prop_oneof![
        6 => (any::<Index>(), any::<Index>(), state()).prop_map(|(a, b, s)| Op::Set(a, b, s)),
        6 => (any::<Index>(), state()).prop_map(|(a, s)| Op::Single(a, s)),
        2 => (any::<Index>(), 1u64..4, state()).prop_map(|(w, n, s)| Op::Scatter(w, n, s)),
        4 => (any::<Index>(), any::<Index>(), state(), state())
            .prop_filter("two states", |(_, _, from, to)| from != to)
            .prop_map(|(a, b, from, to)| Op::Replace(a, b, from, to)),
        1 => Just(Op::Clone),
        1 => Just(Op::Recode),
        1 => state().prop_map(Op::Whole),
    ];
    proptest::collection::vec(op, 1..40)
}

#[derive(Clone, Debug)]
struct Pair {
    tracker: StateTracker<State>,
    windows: Vec<Window>,
}

impl Pair {
    /// Any border between blocks that lies in a window.
    fn border(&self, at: Index) -> u64 {
        let borders: usize = self.windows.iter().map(|w| w.states.len() + 1).sum();
        let mut at = at.index(borders);
        for window in &self.windows {
            if at <= window.states.len() {
                return window.start + at as u64;
            }
            at -= window.states.len() + 1;
        }
        unreachable!("an index within the borders")
    }

    fn range(&self, a: Index, b: Index) -> BlockRange {
        let (a, b) = (self.border(a), self.border(b));
        BlockRange::new(a.min(b), a.max(b))
    }

    fn set(&mut self, range: BlockRange, state: State) {
        self.tracker.set_range(range, state).unwrap();
        for window in &mut self.windows {
            window.part(range).fill(state);
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Set(a, b, state) => self.set(self.range(a, b), state),
            Op::Single(at, state) => {
                let at = self.border(at);
                let last = self.tracker.count_blocks().0 - 1;
                self.set(BlockRange::one(BlockIndex(at.min(last))), state);
            }
            Op::Scatter(window, step, state) => {
                let range = self.windows[window.index(self.windows.len())].range();
                for block in (range.start.0..range.end.0).step_by(usize::try_from(step).unwrap()) {
                    self.tracker
                        .set_range(BlockRange::one(BlockIndex(block)), state)
                        .unwrap();
                    for window in &mut self.windows {
                        window.part(BlockRange::one(BlockIndex(block))).fill(state);
                    }
                }
            }
            Op::Replace(a, b, from, to) => {
                let range = self.range(a, b);
                self.tracker.replace(range, from, to).unwrap();
                for window in &mut self.windows {
                    for state in window.part(range) {
                        if *state == from {
                            *state = to;
                        }
                    }
                }
            }
            Op::Clone => {}
            Op::Recode => {
                let (bytes, blocks) = (self.tracker.encode(), self.tracker.count_blocks());
                let decoded = StateTracker::decode(&bytes, blocks, Untouched, &OTHERS).unwrap();
                assert_eq!(decoded.tree, self.tracker.tree);
                self.tracker = decoded;
            }
            Op::Whole(state) => self.set(BlockRange::new(0, self.tracker.count_blocks().0), state),
        }
    }

    fn check(&self) {
        let tracker = &self.tracker;
        tracker.tree.check(tracker.height);
        for window in &self.windows {
            let range = window.range();
            for (block, state) in range.iter().zip(&window.states) {
                assert_eq!(tracker.get(block).unwrap(), *state, "{block:?}");
            }
            let runs = window.runs();
            assert_eq!(tracker.runs(range).collect::<Vec<_>>(), runs);
            for (range, state) in runs {
                assert!(tracker.has_range(range, &[state]).unwrap());
            }
            for state in STATES {
                let count = window.states.iter().filter(|s| **s == state).count() as u64;
                assert_eq!(
                    tracker.count_in(range, state).unwrap().0,
                    count,
                    "{state:?}"
                );
                let has_other = count < range.count().0;
                assert_eq!(tracker.has_range(range, &[state]).unwrap(), !has_other);
                let others: Vec<_> = STATES.into_iter().filter(|s| *s != state).collect();
                assert_eq!(tracker.has_range(range, &others).unwrap(), count == 0);
            }
        }
    }

    /// What takes a while, once at the end.
    fn check_sets(&self) {
        let tracker = &self.tracker;
        let counts = STATES.map(|state| tracker.count(state).unwrap().0);
        assert_eq!(counts.iter().sum::<u64>(), tracker.count_blocks().0);
        for (state, count) in STATES.into_iter().zip(counts) {
            let ranges: Vec<_> = tracker.blocks_in(state).unwrap().collect();
            assert_eq!(ranges.iter().map(|r| r.count().0).sum::<u64>(), count);
            // Longest runs, in order: none touches the next.
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let set = tracker.export(state).unwrap();
            assert_eq!(set.len(), count);
            for window in &self.windows {
                for (block, is) in window.range().iter().zip(&window.states) {
                    assert_eq!(set.contains(block.0), *is == state, "{block:?}");
                    let after = ranges.partition_point(|range| range.start <= block);
                    let listed = after > 0 && ranges[after - 1].contains(block);
                    assert_eq!(listed, *is == state, "{block:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn agrees_with_a_byte_per_block((blocks, windows) in worlds(), ops in ops()) {
        let tracker = StateTracker::new(BlockCount(blocks), Untouched, &OTHERS).unwrap();
        let mut now = Pair { tracker, windows };
        let mut clones = Vec::new();
        for op in &ops {
            now.apply(op);
            now.check();
            if matches!(op, Op::Clone) {
                clones.push(now.clone());
            }
        }
        now.check_sets();
        for clone in clones {
            clone.check();
            clone.check_sets();
        }
    }

    #[test]
    fn any_bytes_decode_to_a_tracker_or_to_an_error(
        (blocks, windows) in worlds(),
        ops in ops(),
        edits in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        cut in any::<Option<Index>>(),
    ) {
        let tracker = StateTracker::new(BlockCount(blocks), Untouched, &OTHERS).unwrap();
        let mut pair = Pair { tracker, windows };
        ops.iter().for_each(|op| pair.apply(op));
        let mut bytes = pair.tracker.encode();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        match StateTracker::decode(&bytes, BlockCount(blocks), Untouched, &OTHERS) {
            Ok(tracker) => {
                tracker.tree.check(tracker.height);
                let counts = STATES.map(|state| tracker.count(state).unwrap().0);
                prop_assert_eq!(counts.iter().sum::<u64>(), blocks);
            }
            Err(TrackerError::Corrupt { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn noise_decodes_to_an_error_or_a_tracker(
        bytes in proptest::collection::vec(
            prop_oneof![0u8..4, Just(0x10), Just(0x20), any::<u8>()],
            0..200,
        ),
        blocks in prop_oneof![Just(100u64), Just(1 << 20), Just(1 << 34)],
    ) {
        if let Ok(tracker) = StateTracker::decode(&bytes, BlockCount(blocks), Untouched, &OTHERS) {
            tracker.tree.check(tracker.height);
        }
    }
}

#[test]
fn states_that_are_equal_or_not_tracked_are_errors() {
    let twice = |text: &str| TrackerError::StatesEqual(text.to_owned());
    let blocks = BlockCount(100);
    let new = |others: &[State]| StateTracker::new(blocks, Untouched, others).unwrap_err();
    assert_eq!(new(&[Untouched]), twice("Untouched"));
    assert_eq!(new(&[Dirty, Zero, Dirty]), twice("Dirty"));
    assert_eq!(
        StateTracker::new(blocks, 0, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap_err(),
        TrackerError::TooManyStates(9)
    );
    let mut tracker = StateTracker::new(blocks, Untouched, &[Dirty]).unwrap();
    let (all, one) = (BlockRange::new(0, 100), BlockRange::new(7, 8));
    let not = TrackerError::NotTracked("Zero".to_owned());
    assert_eq!(tracker.set_range(all, Zero), Err(not.clone()));
    assert_eq!(tracker.replace(all, Dirty, Zero), Err(not.clone()));
    assert_eq!(tracker.replace(all, Zero, Dirty), Err(not.clone()));
    assert_eq!(tracker.replace(all, Dirty, Dirty), Err(twice("Dirty")));
    assert_eq!(tracker.count(Zero), Err(not.clone()));
    assert_eq!(tracker.count_in(one, Zero), Err(not.clone()));
    assert_eq!(tracker.has_range(one, &[Dirty, Zero]), Err(not.clone()));
    assert_eq!(tracker.export(Zero), Err(not.clone()));
    assert_eq!(tracker.blocks_in(Zero).err(), Some(not));
    assert_eq!(tracker.count(Untouched), Ok(blocks));
}

#[test]
fn ranges_past_the_end_are_errors_and_change_nothing() {
    let mut tracker = StateTracker::new(BlockCount(100), Untouched, &OTHERS).unwrap();
    let past = BlockRange::new(99, 101);
    let error = TrackerError::OutOfRange {
        range: past,
        blocks: BlockCount(100),
    };
    assert_eq!(tracker.set_range(past, Dirty), Err(error.clone()));
    assert_eq!(tracker.replace(past, Untouched, Dirty), Err(error.clone()));
    assert_eq!(tracker.count_in(past, Dirty), Err(error.clone()));
    assert_eq!(tracker.has_range(past, &[Untouched]), Err(error));
    assert!(tracker.get(BlockIndex(100)).is_err());
    assert!(tracker.get(BlockIndex(u64::MAX)).is_err());
    assert_eq!(tracker.count(Dirty), Ok(BlockCount(0)));
    let over = StateTracker::new(BlockCount(BLOCKS_MAX.0 + 1), Untouched, &OTHERS);
    assert!(matches!(over, Err(TrackerError::TooManyBlocks(_))));
}

#[test]
fn an_empty_range_is_within_any_device_and_changes_nothing() {
    let mut tracker = StateTracker::new(BlockCount(0), Untouched, &OTHERS).unwrap();
    let nothing = BlockRange::new(0, 0);
    tracker.set_range(nothing, Dirty).unwrap();
    tracker.replace(nothing, Dirty, Zero).unwrap();
    assert!(tracker.has_range(nothing, &[]).unwrap());
    assert_eq!(tracker.runs(nothing).count(), 0);
    assert_eq!(tracker.export(Untouched).unwrap().len(), 0);
    assert!(tracker.get(BlockIndex(0)).is_err());
}

#[test]
fn the_largest_device_is_one_piece_whatever_was_on_it() {
    let mut tracker = StateTracker::new(BLOCKS_MAX, Untouched, &OTHERS).unwrap();
    let all = BlockRange::new(0, BLOCKS_MAX.0);
    for block in (0..BLOCKS_MAX.0).step_by(1 << 36) {
        tracker
            .set_range(BlockRange::new(block + 5, block + 9), Dirty)
            .unwrap();
    }
    let before = tracker.clone();
    assert_eq!(tracker.blocks_in(Dirty).unwrap().count(), 32);
    tracker.set_range(all, Zero).unwrap();
    assert_eq!(tracker.encode().len(), 1);
    assert_eq!(tracker.runs(all).collect::<Vec<_>>(), [(all, Zero)]);
    assert_eq!(before.count(Dirty).unwrap(), BlockCount(32 * 4));
    tracker.replace(all, Zero, Removed).unwrap();
    assert_eq!(tracker.count(Removed).unwrap(), BLOCKS_MAX);
}

#[test]
fn a_leaf_filled_block_by_block_becomes_uniform_again() {
    let mut tracker = StateTracker::new(BlockCount(1 << 17), Untouched, &OTHERS).unwrap();
    for block in 0..1 << 17 {
        tracker
            .set_range(BlockRange::one(BlockIndex(block)), Dirty)
            .unwrap();
    }
    assert_eq!(tracker.encode(), [1]);
}

#[test]
fn overlapping_sets_of_one_leaf_do_not_decode() {
    let set = |tracker: &mut StateTracker<State>, start, end, state| {
        tracker
            .set_range(BlockRange::new(start, end), state)
            .unwrap();
    };
    let mut tracker = StateTracker::new(BlockCount(1000), Untouched, &OTHERS).unwrap();
    set(&mut tracker, 10, 11, Dirty);
    set(&mut tracker, 20, 21, Zero);
    let mut bytes = tracker.encode();
    let at = bytes.iter().rposition(|byte| *byte == 20).unwrap();
    bytes[at] = 10;
    let decoded = StateTracker::decode(&bytes, BlockCount(1000), Untouched, &OTHERS);
    let why = "a block in two states";
    assert!(matches!(decoded, Err(TrackerError::Corrupt { why: w, .. }) if w == why));
}

mod invariants {
    use super::super::leaf::{LEAF_BLOCKS, Leaf};
    use super::super::tree::Tree;

    impl Tree {
        pub(in super::super) fn check(&self, height: u32) {
            match self {
                Self::Uniform(_) => {}
                Self::Leaf(leaf) => {
                    assert_eq!(height, 0);
                    leaf.check();
                }
                Self::Node(children) => {
                    children.iter().for_each(|child| child.check(height - 1));
                    let uniform = matches!(children[0], Self::Uniform(_));
                    let equal = children.iter().all(|child| *child == children[0]);
                    assert!(!(uniform && equal), "a node that should be uniform");
                }
            }
        }
    }

    impl Leaf {
        fn check(&self) {
            assert!(
                self.sets[usize::from(self.base)].is_empty(),
                "the base has a set"
            );
            let mut sum = 0;
            for (at, set) in self.sets.iter().enumerate() {
                assert!(set.len() < LEAF_BLOCKS, "a full set");
                assert_eq!(set.statistics().n_run_containers, 0, "a run container");
                assert!(self.sets[..at].iter().all(|other| other.is_disjoint(set)));
                if let (Some(min), Some(max)) = (set.min(), set.max()) {
                    assert_eq!(min >> 16, max >> 16, "not of one leaf");
                }
                sum += set.len();
            }
            assert!(sum > 0, "a leaf that should be uniform");
        }
    }
}
