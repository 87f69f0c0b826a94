//! [`hunt`]: how long it takes until the crashes of histories give a planted bug away.

use std::time::{Duration, Instant};

use cowslip_block::planted::{Bug, plant};

use super::operation::history;
use super::{Effort, Seen, explore};
use crate::planted::{Hunted, RACES};

/// Those that one thread shows.
pub fn bugs() -> Vec<Bug> {
    let all = Bug::ALL.iter().copied();
    all.filter(|bug| !RACES.contains(bug)).collect()
}

/// Many short histories rather than few long ones: by turns with much looked at behind few crashes, and with more
/// crashes, of recoveries as well.
const EFFORTS: [Effort; 2] = [
    Effort {
        disks: 2,
        again_every: 251,
        go_on_every: 1,
    },
    Effort {
        disks: 8,
        again_every: 31,
        go_on_every: 3,
    },
];

/// Plants a bug in this thread, and explores histories, from the seed on, until it is found or the time is up.
pub fn hunt(bug: Bug, seed: u64, at_most: Duration) -> Hunted {
    let _planted = plant(bug);
    let begun = Instant::now();
    let seen = Seen::default();
    let mut found = None;
    for seed in seed.. {
        let turn = usize::try_from(seed % 6).expect("one of six");
        let operations = history(seed, [4, 8, 12][turn % 3]);
        let explored = explore(&operations, seed, EFFORTS[turn / 3], &seen);
        found = explored.err().map(|found| found.to_string());
        if found.is_some() || begun.elapsed() >= at_most {
            break;
        }
    }
    Hunted {
        bug,
        found,
        tried: seen.len() as u64,
        took: begun.elapsed(),
    }
}
