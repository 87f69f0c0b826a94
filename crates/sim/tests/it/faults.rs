//! Faults that a store, or the disk under a session, can have: one at a time, in some histories.
//!
//! `cargo xtask crashes --faults` does the same for as long as one likes.

use cowslip_sim::world::operation::history;
use cowslip_sim::world::{Met, Wrong, faults};

/// Refused, late, twice, slow: nothing is lost. Forgotten or dropped: never wrong bytes, and `verify` finds it.
#[test]
fn a_fault_loses_nothing_and_a_store_that_lies_is_found_out() {
    let mut met = Met::new();
    for seed in 1..=60 {
        let more = faults(&history(seed, 10), seed, 5);
        let more = more.unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
        for (wrong, count) in more {
            *met.entry(wrong).or_default() += count;
        }
    }
    for wrong in Wrong::ALL {
        assert!(
            met[&wrong] > 300,
            "{wrong:?} was only met so often: {met:?}"
        );
    }
}
