//! What a device, and what a snapshot of it, may hold.
//!
//! A device is cut into units of 1 KiB, four to a block. Its oracle is one number a unit: 0 reads as
//! zeros, any other is the number of the request that wrote it, from which, with the unit's place, its
//! bytes are made. Requests have numbers from one clock, which also stamps their answers. No two requests
//! to one unit are on their way at a time: so the requests to a unit have one order.
//!
//! A [`Cut`] is what a snapshot may hold: what the device held, for certain, when it was asked for, and
//! the requests that were on their way by then or came before it was answered. The image
//! - holds in each unit the certain version, or that of one of these requests;
//! - is consistent: where it holds B, it holds, or has something newer than, each A that was answered
//!   before B was submitted.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use crate::rig::random::Random;

/// Bytes.
pub(crate) const UNIT: usize = 1024;
/// Units in a block.
pub(crate) const PER_BLOCK: usize = 4;

/// The number of a request, or 0 for zeros.
pub(crate) type Version = u32;

/// The bytes of a unit. Every fourth version is of a kind that compresses.
pub(crate) fn content(version: Version, unit: usize) -> [u8; UNIT] {
    let mut bytes = [0; UNIT];
    if version != 0 {
        let mut random = Random((u64::from(version) << 32) ^ unit as u64);
        // Never zero, so that no unit that was written reads as one that was not.
        let mut word = random.next() | 1;
        for place in bytes.chunks_exact_mut(8) {
            place.copy_from_slice(&word.to_le_bytes());
            if !version.is_multiple_of(4) {
                word = random.next() | 1;
            }
        }
    }
    bytes
}

/// The bytes of a run of units.
pub(crate) fn contents(versions: &[Version], first: usize) -> Vec<u8> {
    let units = (first..).zip(versions);
    units
        .flat_map(|(unit, version)| content(*version, unit))
        .collect()
}

/// Moments and numbers.
#[derive(Clone, Default)]
pub(crate) struct Clock(Cell<u32>);

impl Clock {
    pub(crate) fn tick(&self) -> u32 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

/// One request that changes something.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) units: Range<usize>,
    pub(crate) submitted: u32,
    /// What it leaves: its own number, or 0.
    pub(crate) version: Version,
    /// `u32::MAX` until it is.
    pub(crate) answered: Cell<u32>,
}

/// What a snapshot may hold: see the module.
#[derive(Debug)]
pub(crate) struct Cut {
    certain: Vec<Version>,
    writes: RefCell<Vec<Rc<Write>>>,
}

impl Cut {
    pub(crate) fn new(certain: Vec<Version>, on_their_way: Vec<Rc<Write>>) -> Rc<Self> {
        let writes = RefCell::new(on_their_way);
        Rc::new(Self { certain, writes })
    }

    /// One more, submitted before the snapshot was answered.
    pub(crate) fn add(&self, write: &Rc<Write>) {
        self.writes.borrow_mut().push(Rc::clone(write));
    }

    /// The size of the image.
    pub(crate) fn units(&self) -> usize {
        self.certain.len()
    }

    /// What it holds, if that is certain.
    pub(crate) fn exact(&self) -> Option<&[Version]> {
        self.writes.borrow().is_empty().then_some(&self.certain)
    }

    /// What an image turns out to hold, or where it holds what it must not.
    pub(crate) fn judge(&self, image: &[u8]) -> Result<Vec<Version>, String> {
        let (wanted, found) = (self.certain.len() * UNIT, image.len());
        if found != wanted {
            return Err(format!("{found} bytes, not {wanted}"));
        }
        let writes = self.writes.borrow();
        let mut by_unit: HashMap<usize, Vec<&Write>> = HashMap::new();
        for write in writes.iter() {
            let units = write.units.clone();
            units.for_each(|unit| by_unit.entry(unit).or_default().push(write));
        }
        let mut held = self.certain.clone();
        // The newest request that shows, and the newest that may show in each unit.
        let mut newest = 0;
        let mut newest_of: HashMap<usize, u32> = HashMap::new();
        for (unit, bytes) in image.chunks_exact(UNIT).enumerate() {
            let Some(writes) = by_unit.get(&unit) else {
                if bytes != content(held[unit], unit) {
                    return Err(self.wrong(unit, bytes, &[]));
                }
                continue;
            };
            let certain = (0, self.certain[unit]);
            let all = writes
                .iter()
                .map(|w| (w.submitted, w.version))
                .chain([certain]);
            let fits: Vec<(u32, Version)> =
                all.filter(|(_, v)| bytes == content(*v, unit)).collect();
            let Some((submitted, version)) = fits.iter().max() else {
                return Err(self.wrong(unit, bytes, writes));
            };
            held[unit] = *version;
            newest_of.insert(unit, *submitted);
            if fits.len() == 1 {
                newest = newest.max(*submitted);
            }
        }
        for write in writes.iter().filter(|w| w.answered.get() < newest) {
            let mut units = write.units.clone();
            if let Some(unit) = units.find(|unit| newest_of[unit] < write.submitted) {
                return Err(format!(
                    "no consistent cut: unit {unit} (byte {}) holds {}, older than request {}, which was \
                     answered at {}, before request {newest} was submitted, which is there",
                    unit * UNIT,
                    newest_of[&unit],
                    write.submitted,
                    write.answered.get(),
                ));
            }
        }
        Ok(held)
    }

    fn wrong(&self, unit: usize, bytes: &[u8], writes: &[&Write]) -> String {
        let may: Vec<Version> = writes.iter().map(|w| w.version).collect();
        let is = match bytes.iter().all(|b| *b == 0) {
            true => "zeros".to_owned(),
            false => format!("{:02x?}...", &bytes[..16]),
        };
        format!(
            "unit {unit} (byte {}, block {}) holds {is}, not version {} nor one of {may:?}",
            unit * UNIT,
            unit / PER_BLOCK,
            self.certain[unit],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(units: Range<usize>, submitted: u32, answered: u32) -> Rc<Write> {
        let answered = Cell::new(answered);
        Rc::new(Write {
            units,
            submitted,
            version: submitted,
            answered,
        })
    }

    #[test]
    fn what_is_certain_is_compared_byte_by_byte() {
        let certain = vec![0, 3, 4, 3];
        let cut = Cut::new(certain.clone(), Vec::new());
        let mut image = contents(&certain, 0);
        assert_eq!(cut.judge(&image), Ok(certain));
        for at in [0, UNIT, 3 * UNIT - 1, 4 * UNIT - 1] {
            image[at] ^= 1;
            assert!(cut.judge(&image).is_err(), "byte {at}");
            image[at] ^= 1;
        }
        // The right version in the wrong place.
        image.copy_within(UNIT..2 * UNIT, 3 * UNIT);
        assert!(cut.judge(&image).is_err() && cut.judge(&image[1..]).is_err());
    }

    #[test]
    fn a_cut_that_holds_a_request_holds_all_that_came_before() {
        let (a, b, c) = (
            write(0..2, 10, 11),
            write(2..3, 12, 15),
            write(3..4, 13, 14),
        );
        let cut = Cut::new(vec![1; 4], vec![a, b]);
        cut.add(&c);
        let judged = |held: [Version; 4]| cut.judge(&contents(&held, 0)).is_ok();
        // B and C were on their way together: one without the other is a cut; one without A is none.
        assert!(judged([1; 4]) && judged([10, 10, 1, 1]) && judged([10, 10, 12, 1]));
        assert!(judged([10, 10, 1, 13]) && judged([10, 10, 12, 13]));
        // A alone may be torn: it was not answered before anything that shows was submitted.
        assert!(judged([10, 1, 1, 1]));
        assert!(!judged([1, 1, 12, 1]) && !judged([10, 1, 1, 13]) && !judged([1, 1, 1, 5]));
    }
}
