//! [`History`]: what each unit of a device may hold, by what was written and what of it was promised.
//!
//! A unit has the version that a flush made durable, and all that was submitted to it since, in order:
//! no two requests to one unit are on their way at a time.
//!
//! | grade  | after                                     | a unit holds                                                  |
//! |--------|-------------------------------------------|---------------------------------------------------------------|
//! | killed | kill -9, a full disk, a lost connection   | the last version that was answered, or one submitted after it |
//! | cut    | a disk below that failed                  | the durable version, or any that was submitted after it       |

use std::collections::BTreeMap;
use std::ops::Range;

use crate::rig::oracle::{UNIT, Version, content};

/// How much may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grade {
    Killed,
    Cut,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    version: Version,
    submitted: u32,
    answered: Option<u32>,
}

/// See the module.
pub(super) struct History {
    durable: Vec<Version>,
    /// The number of the request that made it so; 0 for a comparison.
    by: Vec<u32>,
    since: BTreeMap<usize, Vec<Entry>>,
}

impl History {
    pub(super) fn new(durable: Vec<Version>) -> Self {
        Self {
            by: vec![0; durable.len()],
            durable,
            since: BTreeMap::new(),
        }
    }

    pub(super) fn units(&self) -> usize {
        self.durable.len()
    }

    /// What they hold, where nothing was flushed since that was not answered as well.
    pub(super) fn versions(&self) -> &[Version] {
        &self.durable
    }

    /// A request is about to be sent.
    pub(super) fn submitted(&mut self, units: Range<usize>, version: Version, number: u32) {
        let entry = Entry {
            version,
            submitted: number,
            answered: None,
        };
        for unit in units {
            self.since.entry(unit).or_default().push(entry);
        }
    }

    /// Its answer came, and it is good.
    pub(super) fn answered(&mut self, units: Range<usize>, number: u32, at: u32, fua: bool) {
        for unit in units {
            let Some(entries) = self.since.get_mut(&unit) else {
                continue;
            };
            let Some(place) = entries.iter().position(|e| e.submitted == number) else {
                continue;
            };
            entries[place].answered = Some(at);
            if fua {
                self.durable[unit] = entries[place].version;
                self.by[unit] = number;
                entries.drain(..=place);
            }
        }
        self.since.retain(|_, entries| !entries.is_empty());
    }

    /// A flush that was submitted then was answered.
    pub(super) fn flushed(&mut self, submitted: u32) {
        for (unit, entries) in &mut self.since {
            let before = |e: &Entry| e.answered.is_some_and(|at| at < submitted);
            if let Some(place) = entries.iter().rposition(before) {
                self.durable[*unit] = entries[place].version;
                self.by[*unit] = submitted;
                entries.drain(..=place);
            }
        }
        self.since.retain(|_, entries| !entries.is_empty());
    }

    /// What a unit holds, if that is certain.
    pub(super) fn certain(&self, unit: usize) -> Option<Version> {
        match self.since.get(&unit).and_then(|entries| entries.last()) {
            None => Some(self.durable[unit]),
            Some(last) => last.answered.map(|_| last.version),
        }
    }

    /// What it may hold, the newest last.
    pub(super) fn may_hold(&self, unit: usize, grade: Grade) -> Vec<Version> {
        let entries = self.since.get(&unit).map_or(&[][..], Vec::as_slice);
        let answered = entries.iter().rposition(|e| e.answered.is_some());
        let versions = |from: usize| entries[from..].iter().map(|e| e.version);
        match (grade, answered) {
            (Grade::Killed, Some(last)) => versions(last).collect(),
            _ => [self.durable[unit]]
                .into_iter()
                .chain(versions(0))
                .collect(),
        }
    }

    /// Are these the bytes of one of them?
    pub(super) fn check(&self, unit: usize, bytes: &[u8], grade: Grade) -> Result<Version, String> {
        let may = self.may_hold(unit, grade);
        let fits = |version: &&Version| bytes == content(**version, unit);
        if let Some(version) = may.iter().rev().find(fits) {
            return Ok(*version);
        }
        let is = match bytes.iter().all(|b| *b == 0) {
            true => "zeros".to_owned(),
            false => format!("{:02x?}...", &bytes[..16]),
        };
        Err(format!(
            "unit {unit} (byte {}) holds {is}, none of the versions {may:?} ({grade:?}); durable: {} by request {}, since then: {:?}",
            unit * UNIT,
            self.durable[unit],
            self.by[unit],
            self.since.get(&unit)
        ))
    }

    /// All of the device was read from a new server, which may have lost what no flush covers. What is there
    /// is what was last written, and is not durable yet.
    pub(super) fn adopt(&mut self, image: &[u8], grade: Grade, now: u32) -> Result<(), String> {
        let held = self.judge(image, grade)?;
        for (unit, entries) in &mut self.since {
            entries.push(Entry {
                version: held[*unit],
                submitted: now,
                answered: Some(now),
            });
        }
        Ok(())
    }

    /// All of the device was read after a flush that was answered: what is there is so from now on.
    pub(super) fn settle(&mut self, image: &[u8], grade: Grade) -> Result<(), String> {
        self.durable = self.judge(image, grade)?;
        self.by.fill(0);
        self.since.clear();
        Ok(())
    }

    fn judge(&self, image: &[u8], grade: Grade) -> Result<Vec<Version>, String> {
        let (wanted, found) = (self.durable.len() * UNIT, image.len());
        if found != wanted {
            return Err(format!("{found} bytes, not {wanted}"));
        }
        let mut held = self.durable.clone();
        let mut wrong = Vec::new();
        for (unit, bytes) in image.chunks_exact(UNIT).enumerate() {
            match self.check(unit, bytes, grade) {
                Ok(version) => held[unit] = version,
                Err(why) => wrong.push(why),
            }
        }
        if let Some(first) = wrong.first() {
            return Err(format!("{} units are wrong; {first}", wrong.len()));
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let mut history = History::new(vec![1; 2]);
        history.submitted(0..1, 5, 5);
        history.answered(0..1, 5, 6, false);
        history.submitted(0..1, 7, 7);
        history
    }

    #[test]
    fn a_kill_keeps_what_was_answered_and_a_cut_what_was_flushed() {
        let mut history = history();
        assert_eq!(history.may_hold(0, Grade::Killed), [5, 7]);
        assert_eq!(history.may_hold(0, Grade::Cut), [1, 5, 7]);
        assert_eq!((history.certain(0), history.certain(1)), (None, Some(1)));
        // A flush that was on its way when the answer came promises nothing.
        history.flushed(6);
        assert_eq!(history.may_hold(0, Grade::Cut), [1, 5, 7]);
        history.flushed(8);
        assert_eq!(history.may_hold(0, Grade::Cut), [5, 7]);
        history.answered(0..1, 7, 9, true);
        assert_eq!(history.may_hold(0, Grade::Cut), [7]);
        assert_eq!(history.certain(0), Some(7));
    }

    #[test]
    fn what_is_there_is_one_of_what_may_be() {
        let image = |versions: [Version; 2]| {
            let units = versions.into_iter().enumerate();
            units
                .flat_map(|(unit, version)| content(version, unit))
                .collect::<Vec<u8>>()
        };
        for (versions, killed, cut) in [
            ([7, 1], true, true),
            ([5, 1], true, true),
            ([1, 1], false, true),
            ([0, 1], false, false),
            ([5, 5], false, false),
        ] {
            let judge = |grade| history().settle(&image(versions), grade).is_ok();
            assert_eq!((judge(Grade::Killed), judge(Grade::Cut)), (killed, cut));
        }
        // A new server lost it: a flush makes durable what it has, not what was answered before.
        let mut history = self::history();
        history.adopt(&image([1, 1]), Grade::Cut, 10).unwrap();
        assert_eq!(history.may_hold(0, Grade::Killed), [1]);
        assert_eq!(history.may_hold(0, Grade::Cut), [1, 5, 7, 1]);
        history.flushed(11);
        assert_eq!(history.may_hold(0, Grade::Cut), [1]);
        let mut history = self::history();
        history.settle(&image([5, 1]), Grade::Killed).unwrap();
        assert_eq!(history.may_hold(0, Grade::Cut), [5]);
    }
}
