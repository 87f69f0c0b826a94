//! [`faults`]: each operation on a file of a history meets a fault, once, and what is left is held against what was
//! promised. What was asked for then may fail; after it the world goes on, or refuses because it is poisoned.
//!
//! | [`Wrong`]   | what is wrong                                                      | what is promised still                           |
//! |-------------|--------------------------------------------------------------------|--------------------------------------------------|
//! | `Refused`   | an operation fails, and nothing was done                           | all: what was acknowledged, or flushed, is found |
//! | `Late`      | it fails, and it was done                                          | the same                                         |
//! | `Twice`     | it is done twice, and answered the second time                     | the same                                         |
//! | `Slow`      | another process collects, compacts or removes a name in the middle | the same, and nothing fails but what that explains |
//! | `Forgotten` | the store says that it is done, and it is not                      | never wrong bytes: see `forgetting.rs`           |
//! | `Dropped`   | the store loses an object that was durable                         | the same                                         |
//!
//! The first three are for every file, the session's own as well; the others for the store's.

use std::collections::{BTreeMap, BTreeSet};

use super::beside::Other;
use super::explore::{Finding, caught};
use super::forgetting;
use super::operation::{Operation, SessionNumber};
use super::{End, Session, World};
use crate::faulty::{EIO, ENOSPC, Fault, Rule};
use crate::memory::Forget;

/// What is wrong: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the module has them in a table")]
pub enum Wrong {
    Refused,
    Late,
    Twice,
    Slow,
    Forgotten,
    Dropped,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Refused,
        Self::Late,
        Self::Twice,
        Self::Slow,
        Self::Forgotten,
        Self::Dropped,
    ];
}

/// How often each was met.
pub type Met = BTreeMap<Wrong, u64>;

/// What goes wrong, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    pub(super) wrong: Wrong,
    /// Which operation meets it.
    pub(super) at: usize,
    /// At which of its operations on files; of what is dropped, which object.
    pub(super) after: u64,
    errno: i32,
}

/// Runs a history once for each fault that an operation on a file in it can meet, or, of `one_in` so many, for one.
///
/// # Errors
/// The first promise that was not kept.
pub fn faults(operations: &[Operation], seed: u64, one_in: u64) -> Result<Met, Box<Finding>> {
    let mut met = Met::new();
    for (at, wrong) in (0..operations.len()).flat_map(|at| Wrong::ALL.map(|wrong| (at, wrong))) {
        for after in (seed % one_in..).step_by(usize::try_from(one_in).expect("a few")) {
            let trouble = Trouble {
                wrong,
                at,
                after,
                errno: [EIO, ENOSPC][usize::from((seed + after).is_multiple_of(2))],
            };
            let hit = caught(|| run(operations, trouble)).map_err(|what| {
                let end = format!("{trouble:?}");
                let history = operations.to_vec();
                Box::new(Finding { history, end, what })
            })?;
            if !hit {
                break;
            }
            *met.entry(wrong).or_default() += 1;
        }
    }
    Ok(met)
}

/// Says whether the fault was met: an operation may have fewer operations on files.
fn run(operations: &[Operation], trouble: Trouble) -> Result<bool, String> {
    let (before, rest) = operations.split_at(trouble.at);
    let mut world = World::new()?;
    for operation in before {
        world.apply(operation)?;
    }
    let (first, rest) = rest.split_first().expect("it is one of them");
    let hit = match trouble.wrong {
        Wrong::Refused => world.under(Rule::any(Fault::Refused(trouble.errno)), first, trouble)?,
        Wrong::Late => world.under(Rule::any(Fault::Late(trouble.errno)), first, trouble)?,
        Wrong::Twice => world.under(Rule::any(Fault::Twice), first, trouble)?,
        Wrong::Slow => world.in_the_middle_of(first, trouble.after)?,
        Wrong::Forgotten | Wrong::Dropped => {
            return forgetting::run(world, first, rest, trouble);
        }
    };
    if hit {
        world.goes_on(rest, trouble.at)?;
    }
    Ok(hit)
}

impl World {
    /// An operation that may fail, or do without what failed. Says whether the rule was met.
    fn under(&mut self, rule: Rule, first: &Operation, trouble: Trouble) -> Result<bool, String> {
        self.faults.add(rule.after(trouble.after));
        let asked = self.apply(first);
        self.faults.clear();
        match self.faults.met() {
            0 => asked.map(|()| false),
            _ => Ok(true),
        }
    }

    /// An operation in the middle of which another process has its turn. Says whether it came.
    fn in_the_middle_of(&mut self, first: &Operation, after: u64) -> Result<bool, String> {
        let picked = self.pick(usize::try_from(after).unwrap_or(0))?;
        let other = match (after % 3, picked) {
            (0, Some(text)) => Other::Remove(text),
            (1, _) => Other::Compact,
            _ => Other::Collect,
        };
        if let Other::Remove(text) = &other {
            self.oracle.remove(text);
        }
        // It has one of its own.
        let alone = match first {
            Operation::SealAndCollect(session, _) => &Operation::Seal(*session),
            alone => alone,
        };
        let turn = self.beside(after, other.clone());
        let asked = self.apply(alone);
        let Some(went) = turn.ended() else {
            return asked.map(|()| false);
        };
        let Other::Remove(text) = other else {
            return asked.and(went).map(|()| true);
        };
        // Both may want the same name, and one of them finds it gone.
        if !matches!(first, Operation::Fork { .. } | Operation::Remove(_)) {
            asked?;
            went?;
            self.is_removed(&text)?;
        } else if went.is_ok() {
            self.is_removed(&text)?;
        }
        Ok(true)
    }

    /// Afterwards: what failed is settled, the rest of the history is asked for, and a kill and a power cut at its end
    /// leave all that they should.
    fn goes_on(&mut self, rest: &[Operation], at: usize) -> Result<(), String> {
        self.settle()?;
        if at.is_multiple_of(2) && self.poisoned().is_empty() {
            // What failed to be flushed is not forgotten.
            self.flush_all()?;
        }
        let mut distrusted = !self.poisoned().is_empty();
        for operation in rest {
            let before = self.poisoned();
            match self.apply(operation) {
                Err(_) if !before.is_empty() => self.settle()?,
                other => other?,
            }
            match operation {
                Operation::Restart(number) if before.contains(number) => self.accept(*number)?,
                _ => {}
            }
            distrusted |= !self.poisoned().is_empty();
        }
        for (forget, end) in [(Forget::Nothing, End::Kill), (Forget::Unsynced, End::Cut)] {
            let disk = self.disk.after_cut(forget);
            let promised = if distrusted { End::Cut } else { end };
            let next = World::after(disk, end, promised, self, self.oracle.clone());
            next.and_then(World::check_end)?;
        }
        Ok(())
    }

    /// The sessions that refuse to be written.
    pub(super) fn poisoned(&self) -> BTreeSet<SessionNumber> {
        let refuses = |s: &Session| s.status().is_ok_and(|status| status.poisoned.is_some());
        let sessions = self.sessions.iter().filter(|(_, s)| refuses(s));
        sessions.map(|(number, _)| *number).collect()
    }

    /// A session whose disk failed believes only what was flushed when it is opened again; what it believes is on the
    /// disk then.
    fn accept(&mut self, number: SessionNumber) -> Result<(), String> {
        if !self.sessions.contains_key(&number) {
            return Ok(());
        }
        let now = self.read(number)?;
        self.oracle.begin_again(number);
        let known = self.oracle.sessions.get_mut(&number);
        let accepted = known.expect("it is open").accept(&now, End::Cut);
        accepted.map_err(|e| format!("session {number} opened after a failure: {e}"))
    }

    /// A request that failed was done, or not, block by block: from here on it is what is read. Of a session that
    /// could not begin nothing is promised.
    fn settle(&mut self) -> Result<(), String> {
        let numbers: Vec<_> = self.sessions.keys().copied().collect();
        for number in numbers {
            let now = self.read(number)?;
            let known = self.oracle.sessions.get_mut(&number);
            let settled = known.expect("it is open").settle(&now);
            settled.map_err(|e| format!("session {number} after a failure: {e}"))?;
        }
        Ok(())
    }
}
