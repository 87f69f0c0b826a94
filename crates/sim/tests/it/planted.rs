//! Every planted bug is found.

use std::time::Duration;

use cowslip_block::planted::Bug;
use cowslip_sim::planted::{Hunted, hunt_all};

/// The seeds are always the same, and find each much sooner.
const AT_MOST: Duration = Duration::from_secs(120);

#[track_caller]
fn all_are_found(bugs: &[Bug], hunt: impl Fn(Bug) -> Hunted + Sync) {
    let mut missed = Vec::new();
    hunt_all(bugs, hunt, |hunted| {
        if hunted.found.is_none() {
            missed.push(hunted.bug.name());
        }
    });
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn crashes_give_planted_bugs_away() {
    use cowslip_sim::world::hunt::{bugs, hunt};
    all_are_found(&bugs(), |bug| hunt(bug, 1, AT_MOST));
}
