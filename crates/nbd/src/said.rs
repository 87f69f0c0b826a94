//! [`Said`]: the lines about connections that went wrong, [`REPORTS_MAX`] in [`REPORTS_WITHIN`] at most: a client
//! that comes back a thousand times a second fills nobody's log. What was left out is counted, and the count is said with
//! the next line.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::limits::{REPORTS_MAX, REPORTS_WITHIN};
use crate::server::Report;

/// See the module.
pub(crate) struct Said {
    report: Report,
    window: Mutex<Window>,
}

struct Window {
    began: Instant,
    said: u32,
    left_out: u64,
}

impl Said {
    pub(crate) fn to(report: Report) -> Self {
        let window = Window {
            began: Instant::now(),
            said: 0,
            left_out: 0,
        };
        Self {
            report,
            window: Mutex::new(window),
        }
    }

    pub(crate) fn line(&self, text: &str) {
        if let Some(left_out) = self.may_say(Instant::now()) {
            if left_out > 0 {
                (self.report)(&format!("{left_out} more connections ended badly"));
            }
            (self.report)(text);
        }
    }

    /// May one more line be said, and how many were not since the last one?
    fn may_say(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.began) >= REPORTS_WITHIN {
            (window.began, window.said) = (now, 0);
        }
        if window.said == REPORTS_MAX {
            window.left_out += 1;
            return None;
        }
        window.said += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_while_and_then_their_number() {
        let said = Said::to(Box::new(|_| {}));
        let now = Instant::now();
        for _ in 0..REPORTS_MAX {
            assert_eq!(said.may_say(now), Some(0));
        }
        assert_eq!(said.may_say(now), None);
        assert_eq!(said.may_say(now + REPORTS_WITHIN / 2), None);
        let later = now + 2 * REPORTS_WITHIN;
        assert_eq!(said.may_say(later), Some(2));
        assert_eq!(said.may_say(later), Some(0));
    }
}
