//! The power is cut, or the process killed, at every single operation of a history of writes,
//! zeroes, trims, flushes, overlapping freezes and seals; on every disk that this may leave (of the
//! chosen kinds) the session opens, holds what was promised, and goes on (invariants 2 and 6).

use cowslip_block::Room;
use cowslip_sim::{Forget, MemoryFs};

use crate::session_world::{BLOCK, Oracle, SIZE_BYTES, Step, World, fresh};

const FREE: Room = Room::Free;

pub(crate) fn write(at: usize, len: usize) -> Step {
    Step::Write {
        at,
        len,
        fua: false,
    }
}

fn history() -> Vec<Step> {
    vec![
        write(0, 3 * BLOCK),
        write(5 * BLOCK + 10, 100),
        Step::Flush,
        write(BLOCK, BLOCK),
        Step::Mixed {
            block: 6,
            blocks: 6,
        },
        Step::Trim { at: 0, len: BLOCK },
        write(0, BLOCK),
        Step::Freeze("first"),
        write(2 * BLOCK + 5, 4096),
        Step::Zero {
            at: 7 * BLOCK - 3,
            len: BLOCK + 6,
            room: FREE,
        },
        Step::Tidy,
        Step::Write {
            at: 9 * BLOCK,
            len: 50,
            fua: true,
        },
        write(4 * BLOCK, BLOCK),
        Step::Freeze("second"),
        write(4 * BLOCK, BLOCK),
        write(SIZE_BYTES - 200, 200),
        Step::Flush,
        Step::Seal,
        Step::Trim {
            at: 3 * BLOCK,
            len: SIZE_BYTES - 3 * BLOCK,
        },
        Step::Tidy,
        write(8 * BLOCK, 2 * BLOCK),
        Step::Checkpoint,
        write(8 * BLOCK, BLOCK),
        Step::Seal,
        Step::Zero {
            at: 0,
            len: 2 * BLOCK,
            room: Room::Provision,
        },
        write(0, 10),
        Step::Flush,
        write(12 * BLOCK, BLOCK),
        Step::Freeze("third"),
        Step::Seal,
        write(0, BLOCK),
    ]
}

/// Runs the history on a disk whose power goes at operation `n`. What the client knows then.
fn run_until(n: u64) -> (MemoryFs, Oracle, bool) {
    let (disk, mut world) = fresh();
    disk.cut_after(n);
    let mut oracle = Oracle::new();
    for step in &history() {
        if !world.step(step, &mut oracle) {
            return (disk, oracle, false);
        }
    }
    (disk, oracle, true)
}

/// What the next start finds, and what becomes of it.
pub(crate) fn check_after(disk: &MemoryFs, mut oracle: Oracle, kill: bool, what: &str) {
    let root = disk.root();
    let boot = if kill { 1 } else { 2 };
    let mut world = World::open(&*root, boot).unwrap_or_else(|e| panic!("{what}: {e}"));
    world.check_names(&oracle, what);
    let found = world.read();
    oracle.accept(&found, kill, what);
    // What was being sealed is finished, and the bytes stay the same.
    while world.session.next_seal().is_some() {
        assert!(
            world.step(&Step::Seal, &mut oracle),
            "{what}: a seal is taken up"
        );
    }
    world.check_names(&oracle, what);
    assert!(world.read() == found, "{what}: sealing changed the device");
    // What was reported stays, also what the run before had named and not made durable.
    let cut = disk.after_cut(Forget::Unsynced);
    let later = World::open(&*cut.root(), 9).unwrap_or_else(|e| panic!("{what}: {e}"));
    later.check_names(&oracle, &format!("{what}, and a power cut after the seals"));
    for step in [
        write(3, BLOCK),
        Step::Trim {
            at: 0,
            len: 9 * BLOCK,
        },
        write(BLOCK, 9),
        Step::Flush,
    ] {
        assert!(world.step(&step, &mut oracle), "{what}: goes on");
    }
    for step in [Step::Freeze("after"), Step::Seal, write(0, 77), Step::Flush] {
        assert!(world.step(&step, &mut oracle), "{what}: goes on");
    }
    world.check_names(&oracle, what);
    assert!(world.read() == oracle.image(), "{what}: goes on");
    // And all of that is there at the start after.
    drop(world);
    let world = World::open(&*root, boot).unwrap();
    oracle.accept(&world.read(), true, what);
}

fn first_and_last_operation() -> (u64, u64) {
    let (disk, _world) = fresh();
    let (all, _, finished) = run_until(u64::MAX);
    assert!(finished, "without a cut the history runs to its end");
    (disk.operations(), all.operations())
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing_that_was_flushed() {
    let (first, last) = first_and_last_operation();
    for n in first..=last {
        let (disk, oracle, _) = run_until(n);
        let seeds = (0..6).map(|seed| Forget::Some(n * 100 + seed));
        for forget in seeds.chain([Forget::Unsynced, Forget::Nothing]) {
            let what = format!("power cut at operation {n}, {forget:?}");
            check_after(&disk.after_cut(forget), oracle.clone(), false, &what);
        }
    }
}

#[test]
fn a_kill_at_every_operation_loses_nothing_that_was_acknowledged() {
    let (first, last) = first_and_last_operation();
    for n in first..=last {
        let (disk, oracle, _) = run_until(n);
        let what = format!("kill at operation {n}");
        check_after(&disk.after_cut(Forget::Nothing), oracle, true, &what);
    }
}

/// A second cut while the session is being opened after the first: recovery is itself safe.
#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    let (first, last) = first_and_last_operation();
    for n in (first..=last).step_by(7) {
        let (disk, oracle, _) = run_until(n);
        for seed in [1, 2] {
            let once = disk.after_cut(Forget::Some(seed));
            // How long the recovery takes, to cut it everywhere.
            let probe = once.after_cut(Forget::Nothing);
            let begun = probe.operations();
            drop(World::open(&*probe.root(), 2).unwrap());
            for cut in begun..probe.operations() {
                let twice = once.after_cut(Forget::Nothing);
                twice.cut_after(cut);
                assert!(World::open(&*twice.root(), 2).is_err(), "the power is off");
                let what = format!("cut at {n} with seed {seed}, then at {cut} of the recovery");
                let found = twice.after_cut(Forget::Some(seed + 7));
                check_after_second(&found, 3, oracle.clone(), &what);
                // Or the recovery is killed: the boot is the same at the third start, and what the second had
                // judged must not look whole to it.
                let found = twice.after_cut(Forget::Nothing);
                check_after_second(&found, 2, oracle.clone(), &format!("{what}, killed"));
            }
        }
    }
}

fn check_after_second(disk: &MemoryFs, boot: u8, mut oracle: Oracle, what: &str) {
    let mut world = World::open(&*disk.root(), boot).unwrap_or_else(|e| panic!("{what}: {e}"));
    while world.session.next_seal().is_some() {
        let sealed = world.step(&Step::Seal, &mut oracle);
        assert!(sealed, "{what}: a seal is taken up");
    }
    world.check_names(&oracle, what);
    oracle.accept(&world.read(), false, what);
}
