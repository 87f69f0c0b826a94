//! Every crash of some histories: of those that once lost something, and of a few that seeds decide.
//!
//! `cargo xtask crashes` does the same for as long as one likes.

use cowslip_block::Room;
use cowslip_sim::world::operation::{Operation, history};
use cowslip_sim::world::{Effort, Seen, World, explore};

const FEW: Effort = Effort {
    disks: 12,
    again_every: 5,
    go_on_every: 3,
};

#[track_caller]
fn holds(operations: &[Operation], seed: u64) {
    if let Err(finding) = explore(operations, seed, FEW, &Seen::default()) {
        panic!("seed {seed}: {finding}");
    }
}

fn write(at: usize, len: usize) -> Operation {
    Operation::Write {
        session: 0,
        at,
        len,
        fua: false,
    }
}

/// A recovery that was killed had made a cache look whole that a power cut had not left whole: a snapshot
/// was stored that nobody had asked for.
#[test]
fn a_recovery_that_is_killed_makes_nothing_look_whole() {
    holds(&[write(23040, 1024), Operation::Freeze(0)], 2);
}

/// The last rename of a killed process was acted upon, flushes were acknowledged, and a power cut brought
/// back the old name.
#[test]
fn what_a_killed_process_renamed_is_synced_before_it_is_relied_on() {
    let session = 1;
    holds(&[Operation::Fork { session, pick: 0 }, write(0, 5000)], 1);
}

/// A process was killed in the middle of a checkpoint; the next one's flush did not sync the older segment.
#[test]
fn a_flush_covers_segments_that_a_killed_process_left() {
    let operations = [
        write(12288, 512),
        write(31232, 1024),
        Operation::Checkpoint(0),
    ];
    holds(&operations, 102);
}

/// A session's record that was being replaced was left over for ever.
#[test]
fn with_all_removed_nothing_is_left() {
    let operations = [
        Operation::Fork {
            session: 1,
            pick: 0,
        },
        Operation::Freeze(1),
        Operation::SealAndCollect(1, 9),
        Operation::Forget(1),
    ];
    holds(&operations, 3);
}

#[test]
fn a_few_histories() {
    let fewer = Effort {
        again_every: 97,
        ..FEW
    };
    for seed in 1..=3 {
        if let Err(finding) = explore(&history(seed, 10), seed, fewer, &Seen::default()) {
            panic!("seed {seed}: {finding}");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let run = || {
        let mut world = World::new().unwrap();
        let digests = history(7, 60).into_iter().map(|operation| {
            world.apply(&operation).unwrap();
            world.digest()
        });
        digests.collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// The rig itself: what nobody promised is no finding, and what was promised is missed.
#[test]
fn zeros_and_trims_are_writes_like_others() {
    let zero = |at, len, room| Operation::Zero {
        session: 0,
        at,
        len,
        room,
    };
    let operations = [
        write(4718, 3678),
        Operation::Flush(0),
        zero(3111, 6189, Room::Provision),
        Operation::Trim {
            session: 0,
            at: 0,
            len: 16384,
        },
        Operation::Tidy(0),
    ];
    holds(&operations, 3);
}
