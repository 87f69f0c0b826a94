//! Every planted bug that one thread can show is found. The others: `schedules.rs`.

use std::time::Duration;

use cowslip_sim::planted::missed;
use cowslip_sim::world::hunt::{bugs, hunt};

#[test]
fn crashes_give_planted_bugs_away() {
    // The seeds are always the same, and find each much sooner.
    let hunt = |bug| hunt(bug, 1, Duration::from_secs(300));
    assert_eq!(missed(&bugs(), hunt), [""; 0]);
}
