//! The checker is checked: each bug of [`Bug`] is planted in turn, and hunted by the rig that is to find it.
//!
//! | rig                                        | what it finds                                    |
//! |--------------------------------------------|--------------------------------------------------|
//! | crashes ([`crate::world::hunt`])           | what one thread can do wrong, with crashes       |
//! | `schedules`, with the feature `shuttle`    | [`RACES`]: what needs another thread in between  |

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use cowslip_block::planted::Bug;

/// Of no harm to one thread alone.
pub const RACES: [Bug; 8] = [
    Bug::PartBeforeLock,
    Bug::LateHole,
    Bug::FlushNotedLate,
    Bug::FlushVouchesLate,
    Bug::FinishUndrained,
    Bug::CopyUpUndrained,
    Bug::DrainLeavesOpen,
    Bug::WriteIntoFrozen,
];

/// How a hunt ended.
#[derive(Clone, Debug)]
pub struct Hunted {
    /// What was hunted.
    pub bug: Bug,
    /// What gave it away, where something did.
    pub found: Option<String>,
    /// Distinct crash states, or schedules, until then.
    pub tried: u64,
    /// How long it took.
    pub took: Duration,
}

impl Hunted {
    /// One line, for `cargo xtask crashes --planted`. `tried` says what was tried.
    pub fn json(&self, tried: &str) -> String {
        let seconds = self.took.as_secs_f64();
        let mut line = format!(
            "{{\"bug\":\"{}\",\"what\":\"{}\",\"{tried}\":{},\"seconds\":{seconds:.2},\"found\":",
            self.bug.name(),
            self.bug.what(),
            self.tried,
        );
        let found = self.found.as_ref().map(|why| why.escape_default());
        let _ = match found {
            Some(why) => write!(line, "\"{}\"}}", why.to_string().replace("\\'", "'")),
            None => write!(line, "null}}"),
        };
        line
    }
}

/// Hunts one bug after the other in as many threads as there are cores; `each` is told how each hunt ended.
pub fn hunt_all(
    bugs: &[Bug],
    hunt: impl Fn(Bug) -> Hunted + Sync,
    each: impl FnMut(&Hunted) + Send,
) {
    let (next, each) = (Mutex::new(bugs.iter()), Mutex::new(each));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let bug = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(bug) = bug else {
                return;
            };
            let hunted = hunt(*bug);
            (each.lock().unwrap_or_else(PoisonError::into_inner))(&hunted);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(bugs.len()) {
            scope.spawn(work);
        }
    });
}

/// The names of those that were not found.
pub fn missed(bugs: &[Bug], hunt: impl Fn(Bug) -> Hunted + Sync) -> Vec<&'static str> {
    let mut missed = Vec::new();
    hunt_all(bugs, hunt, |hunted| {
        if hunted.found.is_none() {
            missed.push(hunted.bug.name());
        }
    });
    missed
}
