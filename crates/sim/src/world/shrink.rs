//! The shortest history that still fails: operations are left out, many at a time and then one by one, as long as
//! something is found without them.

use super::explore::Finding;
use super::operation::Operation;

/// Shrinks what was found. `look` looks at a shorter history.
pub fn shrink(finding: Finding, look: impl Fn(&[Operation]) -> Option<Box<Finding>>) -> Finding {
    let mut best = finding;
    let mut step = best.history.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < best.history.len() {
            let mut shorter = best.history.clone();
            shorter.drain(at..(at + step).min(shorter.len()));
            match look(&shorter) {
                Some(found) => best = *found,
                None => at += step,
            }
        }
        step /= 2;
    }
    best
}
