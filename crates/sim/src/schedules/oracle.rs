//! [`Oracle`]: what each read may see while others write: of each cell of the device, all that was written to it, and
//! when each of these requests began and ended.
//!
//! A cell is half a block, and no request covers a part of one, so it is a register: what is read of it was written by
//! a request that had begun, and that no other follows which had ended when the read began. Every request writes a value
//! that no other writes, but for zeros.

use std::fmt::Write as _;
use std::ops::Range;

/// Half a block.
pub(super) const CELL: usize = 256;
/// When: requests begin and end one after the other.
pub(super) type Time = u64;

struct Written {
    cells: Range<usize>,
    value: u64,
    begun: Time,
    /// The end of time, while it goes on.
    ended: Time,
}

impl Written {
    fn is_before(&self, other: &Self) -> bool {
        self.ended < other.begun
    }
}

/// A read, or what was read for one: a snapshot stands for the moment when it was asked for, what a power cut
/// leaves for the moment of the flush.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) begun: Time,
    pub(super) ended: Time,
    pub(super) first_cell: usize,
    pub(super) bytes: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Oracle {
    now: Time,
    written: Vec<Written>,
    reads: Vec<Seen>,
}

/// The bytes of a cell.
pub(super) fn bytes_of(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(CELL / 8)
}

impl Oracle {
    pub(super) fn now(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    /// A request that writes begins; says how it is called when it ends.
    pub(super) fn begin(&mut self, cells: Range<usize>, value: u64) -> usize {
        let begun = self.now();
        self.written.push(Written {
            cells,
            value,
            begun,
            ended: Time::MAX,
        });
        self.written.len() - 1
    }

    pub(super) fn end(&mut self, request: usize) {
        self.written[request].ended = self.now();
    }

    /// A client has read.
    pub(super) fn read(&mut self, seen: Seen) -> Result<(), String> {
        self.check(&seen)?;
        for (cell, value) in cells(&seen) {
            let earlier = self.reads.iter().filter(|read| read.ended < seen.begun);
            for (_, before) in earlier.flat_map(cells).filter(|(c, _)| *c == cell) {
                if let (Some(before), Some(now)) = (self.of(cell, before), self.of(cell, value))
                    && now.is_before(before)
                {
                    let (old, new) = (now.value, before.value);
                    return Err(format!("cell {cell} was {new}, and is {old} again"));
                }
            }
        }
        self.reads.push(seen);
        Ok(())
    }

    /// Could this be seen?
    pub(super) fn check(&self, seen: &Seen) -> Result<(), String> {
        for (cell, value) in cells(seen) {
            let all = || self.written.iter().filter(|w| w.cells.contains(&cell));
            let is_gone = |w: &Written| all().any(|w2| w.is_before(w2) && w2.ended < seen.begun);
            let mut may_be = all().filter(|w| w.value == value && w.begun < seen.ended);
            if !may_be.any(|w| !is_gone(w)) {
                let mut why = format!(
                    "cell {cell} is {value:#x} from {} to {}: ",
                    seen.begun, seen.ended
                );
                for w in all() {
                    let _ = write!(why, "{:#x} [{}..{}] ", w.value, w.begun, w.ended);
                }
                return Err(why);
            }
        }
        Ok(())
    }

    /// Is this a consistent cut? If it holds a request that began after another had ended, it holds the other, or
    /// what came later.
    pub(super) fn check_cut(&self, seen: &Seen) -> Result<(), String> {
        self.check(seen)?;
        for (cell, value) in cells(seen) {
            let Some(held) = self.of(cell, value) else {
                continue;
            };
            for (other, value) in cells(seen) {
                let Some(here) = self.of(other, value) else {
                    continue;
                };
                let missed = |w: &&Written| {
                    w.cells.contains(&other) && w.is_before(held) && here.is_before(w)
                };
                if let Some(missed) = self.written.iter().find(missed) {
                    let (held, missed) = (held.value, missed.value);
                    return Err(format!(
                        "a snapshot holds {held}, and not {missed}, which ended before that began"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The one request that wrote this; none of zeros.
    fn of(&self, cell: usize, value: u64) -> Option<&Written> {
        let mut all = self.written.iter();
        all.find(|w| value != 0 && w.value == value && w.cells.contains(&cell))
    }
}

/// Its cells, and their values: that of what nobody writes, where the bytes are of more than one.
fn cells(seen: &Seen) -> impl Iterator<Item = (usize, u64)> {
    let value = |bytes: &[u8]| {
        let value = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        match bytes_of(value) == bytes {
            true => value,
            false => u64::MAX,
        }
    };
    (seen.first_cell..).zip(seen.bytes.chunks(CELL).map(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(begun: Time, ended: Time, values: &[u64]) -> Seen {
        Seen {
            begun,
            ended,
            first_cell: 0,
            bytes: values.iter().flat_map(|v| bytes_of(*v)).collect(),
        }
    }

    #[test]
    fn a_register_holds_what_was_written_last_or_is_being_written() {
        let mut oracle = Oracle::default();
        let first = oracle.begin(0..1, 10);
        oracle.end(first);
        let second = oracle.begin(0..1, 20);
        oracle.end(second);
        oracle.begin(0..1, 30);
        let now = oracle.now();
        assert!(oracle.check(&seen(now, now, &[20])).is_ok());
        assert!(oracle.check(&seen(now, now, &[30])).is_ok());
        assert!(oracle.check(&seen(now, now, &[10])).is_err());
        assert!(oracle.check(&seen(3, now, &[10])).is_ok());
        assert!(oracle.check(&seen(2, 2, &[30])).is_err());
        oracle.read(seen(now, now, &[30])).unwrap();
        assert!(oracle.read(seen(now + 1, now + 1, &[20])).is_err());
    }

    #[test]
    fn a_cut_misses_nothing_that_came_before_what_it_holds() {
        let mut oracle = Oracle::default();
        for (cell, value) in [(0, 1), (1, 2), (0, 3), (1, 4)] {
            let request = oracle.begin(cell..cell + 1, value);
            oracle.end(request);
        }
        let ends = oracle.now();
        assert!(oracle.check_cut(&seen(5, ends, &[3, 2])).is_ok());
        assert!(oracle.check_cut(&seen(3, ends, &[1, 4])).is_err());
    }
}
