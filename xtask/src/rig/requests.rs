//! Requests at random, of each kind that changes a device, over units of the oracle
//! ([`crate::rig::oracle`]).

use std::ops::Range;

use cowslip_block::{ByteOffset, ByteRange, Room};
use cowslip_nbd::client::Command;

use super::oracle::{PER_BLOCK, UNIT, Version, contents};
use super::random::Random;

/// What is done to some units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    /// What is there already.
    Same,
    /// Zeros, by a plain write.
    Zeros,
    WriteZeroes,
    Trim,
    Flush,
}

const KINDS: &[(Kind, usize)] = &[
    (Kind::Write, 20),
    (Kind::Same, 3),
    (Kind::Zeros, 2),
    (Kind::WriteZeroes, 3),
    (Kind::Trim, 4),
    (Kind::Flush, 1),
];

/// One request, not numbered yet.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) kind: Kind,
    pub(crate) units: Range<usize>,
    pub(crate) fua: bool,
}

impl Wish {
    /// What it leaves, if it changes anything: its own number, or zeros.
    pub(crate) fn leaves(&self, number: Version) -> Option<Version> {
        match self.kind {
            Kind::Write => Some(number),
            Kind::Zeros | Kind::WriteZeroes | Kind::Trim => Some(0),
            Kind::Same | Kind::Flush => None,
        }
    }

    /// What it carries; `there` is what its units hold.
    pub(crate) fn data(&self, number: Version, there: &[Version]) -> Vec<u8> {
        match self.kind {
            Kind::Write => contents(&vec![number; self.units.len()], self.units.start),
            Kind::Same => contents(there, self.units.start),
            Kind::Zeros => vec![0; self.units.len() * UNIT],
            Kind::WriteZeroes | Kind::Trim | Kind::Flush => Vec::new(),
        }
    }

    /// The request, with its data.
    pub(crate) fn command<'a>(&self, data: &'a [u8]) -> Command<'a> {
        let at = |unit: usize| (unit * UNIT) as u64;
        let range = ByteRange::new(at(self.units.start), at(self.units.end));
        let fua = self.fua;
        match self.kind {
            Kind::Flush => Command::Flush,
            Kind::Trim => Command::Trim { range, fua },
            Kind::WriteZeroes => Command::WriteZeroes {
                range,
                room: Room::Free,
                fast: false,
                fua,
            },
            Kind::Write | Kind::Same | Kind::Zeros => Command::Write {
                offset: ByteOffset(range.start.0),
                data,
                fua,
            },
        }
    }
}

/// Some wishes, around one place or anywhere among so many units.
pub(crate) fn burst(random: &mut Random, units: usize) -> Vec<Wish> {
    let (most, longest) = [(64, 16), (16, 64), (8, 512), (2, 4096)][random.below(4)];
    let base = random.below(units);
    let reach = [2048, units][random.below(2)];
    let mut wishes = Vec::new();
    for _ in 0..1 + random.below(most) {
        let kind = random.weighted(KINDS);
        let start = (base + random.below(reach)) % units;
        let end = units.min(start + 1 + random.below(longest));
        let mut touched = start..end;
        if kind == Kind::Trim || random.once_in(2) {
            let up = |unit: usize| unit.next_multiple_of(PER_BLOCK);
            touched = start / PER_BLOCK * PER_BLOCK..up(end).min(units);
        }
        wishes.push(Wish {
            kind,
            units: touched,
            fua: random.once_in(40),
        });
    }
    wishes
}
