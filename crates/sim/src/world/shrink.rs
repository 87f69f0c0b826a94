//! The shortest history that still fails: operations are left out, many at a time and then one by one, as long as
//! something is found without them.

use super::explore::{Effort, Finding, Seen, explore};
use super::operation::Operation;

/// Shrinks what was found.
pub fn shrink(finding: Finding, seed: u64, effort: Effort) -> Finding {
    let mut best = finding;
    let mut step = best.history.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < best.history.len() {
            match without(&best.history, at, step, seed, effort) {
                Some(shorter) => best = shorter,
                None => at += step,
            }
        }
        step /= 2;
    }
    best
}

fn without(
    history: &[Operation],
    at: usize,
    count: usize,
    seed: u64,
    effort: Effort,
) -> Option<Finding> {
    let mut history = history.to_vec();
    history.drain(at..(at + count).min(history.len()));
    let found = explore(&history, seed, effort, &Seen::default());
    found.err().map(|finding| *finding)
}
