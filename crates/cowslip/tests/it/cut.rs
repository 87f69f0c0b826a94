//! Four connections write parts of the same blocks while snapshots are taken: no byte is lost, and
//! each snapshot is a consistent cut.
//!
//! The device is cut into *units*, each of which one connection alone writes, always as a whole:
//!
//! | from block | unit                                     | written            |
//! |------------|------------------------------------------|--------------------|
//! | 0          | a block in four, one for each connection | one at a time      |
//! | 16         | a block                                  | one at a time      |
//! | 32         | 256 KiB from the middle of a block to the middle of another, cut at blocks | all in one request |
//!
//! The long ones are written by all connections in the order in which they lie, so that neighbours, who
//! share a block, are often on their way together.
//!
//! What is written is the number of the request (see `history`), so that everything that is found
//! tells when it was submitted, and the record of that request when it was answered. Nothing is
//! judged by the time on a clock.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cowslip_block::ByteOffset;
use cowslip_nbd::client::Command;
use cowslip_nbd::{Client, Cookie};

use crate::bytes::{BLOCK, Seeded, noise};
use crate::history::{Clock, History, Op};
use crate::rig::{Rig, said, until};

const WRITERS: usize = 4;
const BLOCKS: usize = 16;
/// The four parts of a shared block; the bytes from the last bound on are nobody's.
const BOUNDS: [usize; WRITERS + 1] = [0, 700, 1501, 3003, 4090];
const SPANS: usize = 32;
const SPAN_BYTES: usize = 256 << 10;
/// Where the first span begins in its block.
const SPAN_AT: usize = 1234;
const SIZE: usize = (2 * BLOCKS + 1) * BLOCK + SPANS * SPAN_BYTES;
const IN_FLIGHT: usize = 6;
const SNAPSHOTS: usize = 4;

/// The units, as bytes, and the requests that there are, as runs of units.
struct Layout {
    units: Vec<Range<usize>>,
    requests: [Vec<Range<usize>>; WRITERS],
}

impl Layout {
    fn new() -> Self {
        let mut layout = Self {
            units: Vec::new(),
            requests: Default::default(),
        };
        for block in 0..BLOCKS {
            let at = block * BLOCK;
            for writer in 0..WRITERS {
                layout.add(writer, at + BOUNDS[writer]..at + BOUNDS[writer + 1]);
            }
        }
        for block in BLOCKS..2 * BLOCKS {
            layout.add(block % WRITERS, block * BLOCK..(block + 1) * BLOCK);
        }
        for span in 0..SPANS {
            let start = 2 * BLOCKS * BLOCK + SPAN_AT + span * SPAN_BYTES;
            layout.add(span % WRITERS, start..start + SPAN_BYTES);
        }
        layout
    }

    /// A request of these bytes: a unit for each block that it touches.
    fn add(&mut self, writer: usize, bytes: Range<usize>) {
        let first = self.units.len();
        let mut at = bytes.start;
        while at < bytes.end {
            let end = bytes.end.min((at / BLOCK + 1) * BLOCK);
            self.units.push(at..end);
            at = end;
        }
        self.requests[writer].push(first..self.units.len());
    }

    /// A writer's next request, its `turn`th: every 16th is the next of the long ones.
    fn pick(&self, writer: usize, turn: usize, random: &mut Seeded) -> Range<usize> {
        let mine = &self.requests[writer];
        let (short, long) = mine.split_at(mine.len() - SPANS / WRITERS);
        match turn % 16 {
            0 => long[turn / 16 % long.len()].clone(),
            _ => short[random.below(short.len())].clone(),
        }
    }

    /// What the request of this number leaves in a unit: never zeros, never noise.
    fn content(&self, number: u64, unit: usize) -> impl Iterator<Item = u8> {
        let mut word = number.to_le_bytes();
        word[7] = 0xc5;
        word.into_iter().cycle().take(self.units[unit].len())
    }

    /// The request that left these bytes in this unit; 0 where they are what was there in the beginning.
    fn number_in(&self, unit: usize, found: &[u8], base: &[u8]) -> u64 {
        if found == &base[self.units[unit].clone()] {
            return 0;
        }
        let mut word: [u8; 8] = found[..8].try_into().unwrap();
        word[7] = 0;
        let number = u64::from_le_bytes(word);
        let whole = found.iter().copied().eq(self.content(number, unit));
        assert!(whole, "what is in unit {unit} is of no one request");
        number
    }
}

/// What all writers share.
struct Shared {
    layout: Layout,
    base: Vec<u8>,
    clock: Clock,
    answered: AtomicUsize,
    stop: AtomicBool,
}

impl Shared {
    /// Writes until told to stop, and looks at every unit before it writes it again; all that it
    /// wrote, with the moments.
    fn write(&self, mut client: Client, writer: usize) -> Vec<(Range<usize>, Op)> {
        let mut random = Seeded(writer as u64);
        let mut mine: HashMap<usize, History> = HashMap::new();
        let mut pending: HashMap<Cookie, (Range<usize>, u64)> = HashMap::new();
        let mut log = Vec::new();
        let mut turn = 0;
        loop {
            while !self.stop.load(Ordering::Relaxed) && pending.len() < IN_FLIGHT {
                let units = self.layout.pick(writer, turn, &mut random);
                turn += 1;
                self.look(&mut client, &units, &mine);
                let number = self.clock.tick();
                for unit in units.clone() {
                    mine.entry(unit).or_default().submit(Op::unanswered(number));
                }
                let content = |unit| self.layout.content(number, unit);
                let data: Vec<u8> = units.clone().flat_map(content).collect();
                let offset = ByteOffset(self.layout.units[units.start].start as u64);
                let command = Command::Write {
                    offset,
                    data: &data,
                    fua: false,
                };
                pending.insert(client.submit(command).unwrap(), (units, number));
            }
            if pending.is_empty() {
                return log;
            }
            let (cookie, answer) = client.complete().unwrap();
            answer.unwrap();
            let answered = self.clock.tick();
            let (units, submitted) = pending.remove(&cookie).unwrap();
            for unit in units.clone() {
                mine.get_mut(&unit).unwrap().answer(submitted, answered);
            }
            log.push((
                units,
                Op {
                    submitted,
                    answered,
                },
            ));
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is in a writer's own units may be there. Of a long run, the ends, which others share.
    fn look(&self, client: &mut Client, units: &Range<usize>, mine: &HashMap<usize, History>) {
        for unit in [units.start, units.end - 1] {
            let Some(history) = mine.get(&unit) else {
                continue;
            };
            let bytes = &self.layout.units[unit];
            let mut found = vec![0; bytes.len()];
            client.read(bytes.start as u64, &mut found).unwrap();
            let number = self.layout.number_in(unit, &found, &self.base);
            let may_be = history.candidates().any(|n| n == number);
            assert!(may_be, "{bytes:?} hold {number}, but {history:?}");
        }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + count;
        let enough = || (self.answered.load(Ordering::Relaxed) >= wanted).then_some(());
        until("the writers", enough);
    }
}

/// All requests, by unit and by number.
struct Record {
    layout: Layout,
    base: Vec<u8>,
    of_unit: Vec<Vec<Op>>,
    by_number: HashMap<u64, Op>,
}

impl Record {
    fn new(layout: Layout, base: Vec<u8>, log: Vec<(Range<usize>, Op)>) -> Self {
        let mut of_unit = vec![Vec::new(); layout.units.len()];
        let mut by_number: HashMap<u64, Op> = [(0, Op::FIRST)].into();
        for (units, op) in log {
            units.for_each(|unit| of_unit[unit].push(op));
            by_number.insert(op.submitted, op);
        }
        Self {
            layout,
            base,
            of_unit,
            by_number,
        }
    }

    /// What each unit holds.
    fn held(&self, image: &[u8]) -> Vec<Op> {
        let found = |unit: usize| &image[self.layout.units[unit].clone()];
        let number = |unit| self.layout.number_in(unit, found(unit), &self.base);
        (0..self.of_unit.len())
            .map(|unit| self.by_number[&number(unit)])
            .collect()
    }

    /// No request answered before `moment` is missing: its place holds it, or something that is not
    /// older.
    fn assert_holds_all_before(&self, moment: u64, held: &[Op], what: &str) {
        for (unit, (ops, is)) in self.of_unit.iter().zip(held).enumerate() {
            let lost = ops
                .iter()
                .find(|a| a.answered < moment && a.is_newer_than(*is));
            let bytes = &self.layout.units[unit];
            assert_eq!(lost, None, "{what}: {bytes:?} hold {is:?}, before {moment}");
        }
    }

    /// The bytes that belong to nobody are what they were.
    fn assert_rest_is_untouched(&self, image: &[u8], what: &str) {
        let mut at = 0;
        for unit in &self.layout.units {
            let gap = at..unit.start;
            assert!(
                image[gap.clone()] == self.base[gap.clone()],
                "{what}: {gap:?}"
            );
            at = unit.end;
        }
        assert!(image[at..] == self.base[at..], "{what}: from {at}");
    }
}

#[test]
fn four_writers_lose_no_byte_and_snapshots_are_consistent_cuts() {
    let rig = Rig::new();
    let shared = Shared {
        layout: Layout::new(),
        base: noise(1, SIZE),
        clock: Clock::default(),
        answered: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    rig.import("base", &shared.base);
    let served = rig.serve("base --session s");
    let mut asked = Vec::new();
    let log = std::thread::scope(|scope| {
        let start = |writer| {
            let (client, shared) = (served.client(), &shared);
            scope.spawn(move || shared.write(client, writer))
        };
        let writers: Vec<_> = (0..WRITERS).map(start).collect();
        for i in 0..SNAPSHOTS {
            shared.wait_for_more(1500);
            let (name, before) = (format!("cut-{i}"), shared.clock.tick());
            let output = rig.run(&format!("snapshot s {name}"));
            asked.push((name, before, shared.clock.tick(), output));
        }
        shared.wait_for_more(1500);
        shared.stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    let record = Record::new(shared.layout, shared.base, log);
    let end = served.read_all();
    record.assert_holds_all_before(u64::MAX, &record.held(&end), "at the end");
    record.assert_rest_is_untouched(&end, "at the end");
    for (name, before, after, output) in asked {
        assert!(output.status.success(), "{}", said(&output));
        let image = rig.export(&name);
        let held = record.held(&image);
        // It holds B: then also every A that was answered before B was submitted.
        let newest = held.iter().map(|op| op.submitted).max().unwrap();
        assert!(
            newest > 0 && newest < after,
            "{name}: {newest} was submitted after {after}"
        );
        record.assert_holds_all_before(newest, &held, &name);
        record.assert_holds_all_before(before, &held, &name);
        record.assert_rest_is_untouched(&image, &name);
    }
    rig.ok(&format!("verify cut-{}", SNAPSHOTS - 1));
}

#[test]
fn the_judge_notices_an_inconsistent_cut() {
    let layout = Layout::new();
    let (a, b) = (
        Op {
            submitted: 1,
            answered: 2,
        },
        Op {
            submitted: 3,
            answered: 6,
        },
    );
    let c = Op {
        submitted: 4,
        answered: 5,
    };
    let log = vec![(0..1, a), (1..2, b), (2..3, c)];
    let record = Record::new(layout, noise(1, SIZE), log);
    let judged = |held: [Op; 3]| {
        let newest = held.iter().map(|op| op.submitted).max().unwrap();
        std::panic::catch_unwind(|| record.assert_holds_all_before(newest, &held, "")).is_ok()
    };
    // B and C were on their way together: one without the other is a cut; one without A is none.
    assert!(judged([Op::FIRST; 3]));
    assert!(judged([a, b, Op::FIRST]) && judged([a, Op::FIRST, c]) && judged([a, b, c]));
    assert!(!judged([Op::FIRST, b, Op::FIRST]) && !judged([Op::FIRST, Op::FIRST, c]));
}
