//! Four connections write parts of the same blocks while snapshots are taken: no byte is lost, and
//! each snapshot is a consistent cut.
//!
//! The device is cut into *units*, each of which one connection alone writes, always as a whole: blocks
//! in four parts, one for each connection, with bounds that are aligned to nothing, and whole blocks.
//! What is written is the number of the request (see `history`), so that everything that is found
//! tells when it was submitted, and the record of that request when it was answered. Nothing is
//! judged by the time on a clock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cowslip_block::ByteOffset;
use cowslip_nbd::client::Command;
use cowslip_nbd::{Client, Cookie};

use crate::bytes::{BLOCK, Seeded, noise};
use crate::history::{Clock, Op};
use crate::rig::{Rig, said, until};

const WRITERS: usize = 4;
/// Blocks that the four share, then as many that each belong to one of them.
const BLOCKS: usize = 96;
/// The four parts of a shared block; the bytes from the last bound on are nobody's.
const BOUNDS: [usize; WRITERS + 1] = [0, 700, 1501, 3003, 4090];
const IN_FLIGHT: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Unit {
    block: usize,
    writer: usize,
}

impl Unit {
    /// All of them.
    fn all() -> impl Iterator<Item = Self> {
        let shared =
            (0..BLOCKS).flat_map(|block| (0..WRITERS).map(move |w| Self { block, writer: w }));
        let whole = (BLOCKS..2 * BLOCKS).map(|block| Self {
            block,
            writer: block % WRITERS,
        });
        shared.chain(whole)
    }

    fn bytes(self) -> std::ops::Range<usize> {
        let at = self.block * BLOCK;
        if self.block < BLOCKS {
            at + BOUNDS[self.writer]..at + BOUNDS[self.writer + 1]
        } else {
            at..at + BLOCK
        }
    }
}

/// What the request of this number leaves in a unit: never zeros, never noise.
fn content(number: u64, unit: Unit) -> Vec<u8> {
    let mut word = number.to_le_bytes();
    word[7] = 0xc5;
    word.iter()
        .copied()
        .cycle()
        .take(unit.bytes().len())
        .collect()
}

/// The request that left this; nothing where it is what was there in the beginning.
fn number_in(found: &[u8], unit: Unit, base: &[u8]) -> u64 {
    if found == &base[unit.bytes()] {
        return 0;
    }
    let mut word: [u8; 8] = found[..8].try_into().unwrap();
    word[7] = 0;
    let number = u64::from_le_bytes(word);
    assert!(
        found == content(number, unit),
        "{unit:?} is of no one request"
    );
    number
}

/// Writes until told to stop; all that it wrote, with the moments.
fn write(
    mut client: Client,
    writer: usize,
    clock: &Clock,
    done: &AtomicUsize,
    stop: &AtomicBool,
) -> Vec<(Unit, Op)> {
    let mine: Vec<Unit> = Unit::all().filter(|u| u.writer == writer).collect();
    let mut random = Seeded(writer as u64);
    let mut pending: HashMap<Cookie, (Unit, u64)> = HashMap::new();
    let mut log = Vec::new();
    loop {
        while !stop.load(Ordering::Relaxed) && pending.len() < IN_FLIGHT {
            let unit = mine[random.below(mine.len())];
            let number = clock.tick();
            let data = content(number, unit);
            let offset = ByteOffset(unit.bytes().start as u64);
            let command = Command::Write {
                offset,
                data: &data,
                fua: false,
            };
            pending.insert(client.submit(command).unwrap(), (unit, number));
        }
        if pending.is_empty() {
            return log;
        }
        let (cookie, answer) = client.complete().unwrap();
        answer.unwrap();
        let answered = clock.tick();
        let (unit, submitted) = pending.remove(&cookie).unwrap();
        log.push((
            unit,
            Op {
                submitted,
                answered,
            },
        ));
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// All requests, by unit and by number.
struct Record {
    of_unit: HashMap<Unit, Vec<Op>>,
    by_number: HashMap<u64, Op>,
}

impl Record {
    fn new(log: Vec<(Unit, Op)>) -> Self {
        let mut of_unit: HashMap<Unit, Vec<Op>> = HashMap::new();
        let mut by_number: HashMap<u64, Op> = [(0, Op::FIRST)].into();
        for (unit, op) in log {
            of_unit.entry(unit).or_default().push(op);
            by_number.insert(op.submitted, op);
        }
        Self { of_unit, by_number }
    }

    /// What each unit holds.
    fn held(&self, image: &[u8], base: &[u8]) -> HashMap<Unit, Op> {
        let op = |u: Unit| self.by_number[&number_in(&image[u.bytes()], u, base)];
        Unit::all().map(|u| (u, op(u))).collect()
    }

    /// No request answered before `moment` is missing: its place holds it, or something that is not
    /// older.
    fn assert_holds_all_before(&self, moment: u64, held: &HashMap<Unit, Op>, what: &str) {
        for (unit, ops) in &self.of_unit {
            let is = held[unit];
            let lost = ops
                .iter()
                .find(|a| a.answered < moment && a.is_newer_than(is));
            assert_eq!(lost, None, "{what}: {unit:?} holds {is:?}, before {moment}");
        }
    }
}

#[test]
fn four_writers_lose_no_byte_and_snapshots_are_consistent_cuts() {
    let rig = Rig::new();
    let base = noise(1, 2 * BLOCKS * BLOCK);
    rig.import("base", &base);
    let served = rig.serve("base --session s");
    let (clock, stop, done) = (
        Clock::default(),
        AtomicBool::new(false),
        AtomicUsize::new(0),
    );
    let mut asked = Vec::new();
    let log = std::thread::scope(|scope| {
        let start = |w| {
            let (client, clock, done, stop) = (served.client(), &clock, &done, &stop);
            scope.spawn(move || write(client, w, clock, done, stop))
        };
        let writers: Vec<_> = (0..WRITERS).map(start).collect();
        let more = |count| {
            let wanted = done.load(Ordering::Relaxed) + count;
            until("the writers", || {
                (done.load(Ordering::Relaxed) >= wanted).then_some(())
            });
        };
        for name in ["one", "two", "three"] {
            more(2000);
            let before = clock.tick();
            let output = rig.run(&format!("snapshot s {name}"));
            asked.push((name, before, clock.tick(), output));
        }
        more(2000);
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    let record = Record::new(log);
    let end = record.held(&served.read_all(), &base);
    record.assert_holds_all_before(u64::MAX, &end, "at the end");
    for (name, before, after, output) in asked {
        assert!(output.status.success(), "{}", said(&output));
        rig.ok(&format!("verify {name}"));
        let image = rig.export(name);
        let held = record.held(&image, &base);
        // It holds B: then also every A that was answered before B was submitted.
        let newest = held.values().map(|op| op.submitted).max().unwrap();
        assert!(
            newest > 0 && newest < after,
            "{name}: {newest} was submitted after {after}"
        );
        record.assert_holds_all_before(newest, &held, name);
        record.assert_holds_all_before(before, &held, name);
        for block in 0..BLOCKS {
            let nobodys = block * BLOCK + BOUNDS[WRITERS]..(block + 1) * BLOCK;
            assert!(
                image[nobodys.clone()] == base[nobodys],
                "{name}: block {block}"
            );
        }
    }
}
