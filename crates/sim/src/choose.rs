//! [`Choose`]: whoever decides what a power cut keeps: a seed, or one after the other all there is.

use crate::seeded::Seeded;

/// Decides.
pub(crate) trait Choose {
    /// One of `0..=most`.
    fn up_to(&mut self, most: u64) -> u64;

    fn coin(&mut self) -> bool {
        self.up_to(1) == 1
    }
}

impl Choose for Seeded {
    fn up_to(&mut self, most: u64) -> u64 {
        Self::up_to(self, most)
    }
}

/// Every way to decide, one after the other, also where one decision depends on those before it:
/// digits with a most each, the last of which that is not at its most goes up for the next way.
#[derive(Debug, Default)]
pub(crate) struct Odometer {
    /// What was decided, and the most that it could have been.
    digits: Vec<(u64, u64)>,
    at: usize,
}

impl Odometer {
    /// The next way. False where all have been.
    pub(crate) fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((digit, most)) = self.digits.pop() {
            if digit < most {
                self.digits.push((digit + 1, most));
                return true;
            }
        }
        false
    }
}

impl Choose for Odometer {
    fn up_to(&mut self, most: u64) -> u64 {
        if self.at == self.digits.len() {
            self.digits.push((0, most));
        }
        self.at += 1;
        self.digits[self.at - 1].0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_odometer_goes_every_way_once() {
        let mut ways = BTreeSet::new();
        let mut odometer = Odometer::default();
        loop {
            // The second decision is there only after some of the first.
            let first = odometer.up_to(2);
            let second = (first > 0).then(|| odometer.up_to(first));
            let last = odometer.coin();
            assert!(ways.insert((first, second, last)), "twice");
            if !odometer.advance() {
                break;
            }
        }
        assert_eq!(ways.len(), 2 + 2 * 2 + 3 * 2);
    }
}
