//! [`faults`]: each operation on a file of a history fails once, with EIO or for want of room. What was asked for then may
//! fail; after it the world goes on, or refuses because it is poisoned, and a kill or a power cut at its end finds all
//! that was acknowledged, or flushed.

use super::explore::{Finding, caught};
use super::operation::Operation;
use super::{End, Session, World};
use crate::faulty::{EIO, ENOSPC};
use crate::memory::Forget;

/// Runs a history once for each operation on a file in it, or, of `one_in` so many, for one; says how many failed.
///
/// # Errors
/// The first promise that was not kept.
pub fn faults(operations: &[Operation], seed: u64, one_in: u64) -> Result<u64, Box<Finding>> {
    // A collection in the middle of a seal is for the crashes: it would meet the fault in the seal's place.
    let alone = |operation: &Operation| match operation {
        Operation::SealAndCollect(session, _) => Operation::Seal(*session),
        other => other.clone(),
    };
    let operations: &[Operation] = &operations.iter().map(alone).collect::<Vec<_>>();
    let mut failed = 0;
    for at in 0..operations.len() {
        for after in (seed % one_in..).step_by(usize::try_from(one_in).expect("a few")) {
            let errno = [EIO, ENOSPC][usize::from((seed + after).is_multiple_of(2))];
            let run = caught(|| run(operations, at, after, errno));
            let hit = run.map_err(|what| {
                let end = format!("operation {at}, error {errno} at its file operation {after}");
                let history = operations.to_vec();
                Box::new(Finding { history, end, what })
            })?;
            if !hit {
                break;
            }
            failed += 1;
        }
    }
    Ok(failed)
}

/// Says whether the fault was met: an operation may have fewer operations on files.
fn run(operations: &[Operation], at: usize, after: u64, errno: i32) -> Result<bool, String> {
    let mut world = World::new()?;
    for operation in &operations[..at] {
        world.apply(operation)?;
    }
    world.disk.fail_after(Some((after, errno)));
    // It may fail, or do without what failed.
    let asked = world.apply(&operations[at]);
    let hit = world.disk.fail_after(None).is_none();
    if !hit {
        return asked.map(|()| false);
    }
    world.settle()?;
    if at.is_multiple_of(2) && !world.is_poisoned() {
        // What failed to be flushed is not forgotten.
        world.flush_all()?;
    }
    let mut distrusted = world.is_poisoned();
    for operation in &operations[at + 1..] {
        let before = world.is_poisoned();
        match world.apply(operation) {
            Err(_) if before => world.settle()?,
            other => other?,
        }
        if before && matches!(operation, Operation::Restart(_)) {
            world.accept()?;
        }
        distrusted |= before || world.is_poisoned();
    }
    for (forget, end) in [(Forget::Nothing, End::Kill), (Forget::Unsynced, End::Cut)] {
        let disk = world.disk.after_cut(forget);
        let promised = if distrusted { End::Cut } else { end };
        let next = World::after(disk, end, promised, &world, world.oracle.clone());
        next.and_then(World::check_end)?;
    }
    Ok(true)
}

impl World {
    fn is_poisoned(&self) -> bool {
        let reason = |s: &Session| s.status().is_ok_and(|status| status.poisoned.is_some());
        self.sessions.values().any(reason)
    }

    /// A session whose disk failed believes only what was flushed when it is opened again.
    fn accept(&mut self) -> Result<(), String> {
        let numbers: Vec<_> = self.sessions.keys().copied().collect();
        for number in numbers {
            let now = self.read(number)?;
            let known = self.oracle.sessions.get_mut(&number);
            let accepted = known.expect("it is open").accept(&now, End::Cut);
            accepted.map_err(|e| format!("session {number} opened after a failure: {e}"))?;
        }
        Ok(())
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
