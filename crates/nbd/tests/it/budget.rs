//! Large requests take turns: what many greedy clients may hold together, and what becomes of those who let it lie.

use std::io::Write;

use super::raw::{Raw, Simple, request};
use super::rig::{MIB, Rig, pattern};
use cowslip_nbd::limits::{CONNECTIONS_MAX, LARGE_BYTES_MAX, PAYLOAD_BYTES_MAX};

const READ: u16 = 0;
const WRITE: u16 = 1;

/// Clients that announce the largest write, and then send nothing of it.
fn announcers(rig: &Rig, count: usize) -> Vec<Raw> {
    let announce = |_| {
        let mut raw = Raw::transmission(rig.socket(), false);
        raw.put(&request(0, WRITE, 1, 0, PAYLOAD_BYTES_MAX));
        raw
    };
    (0..count).map(announce).collect()
}

fn told_off(rig: &Rig) -> usize {
    let said = rig.said.lock().unwrap();
    assert!(
        said.iter().all(|line| line.contains("lay still")),
        "{said:?}"
    );
    said.len()
}

#[test]
fn who_lets_its_turn_lie_loses_it_to_those_who_wait() {
    let rig = Rig::of_bytes(u64::from(PAYLOAD_BYTES_MAX));
    let turns = LARGE_BYTES_MAX / PAYLOAD_BYTES_MAX as usize;
    let _idle = announcers(&rig, turns + 1);
    // Small requests need no turn, and neither does a refused payload.
    let mut good = Raw::transmission(rig.socket(), false);
    for round in 0..100 {
        good.put(&request(0, WRITE, round, 4096, 4096));
        good.put(&[7; 4096]);
        good.put(&request(0, WRITE, round, 1 << 40, 3 << 20));
        good.put(&vec![7; 3 * MIB]);
        assert_eq!(good.simple().error, 0);
        assert_eq!(good.simple().error, 28);
    }
    assert_eq!(told_off(&rig), 0);
    // A large one comes to its turn, and to the next: by then those who had theirs have been sent away.
    let data = pattern(PAYLOAD_BYTES_MAX as usize, 1);
    for cookie in 1..3 {
        good.put(&request(0, WRITE, cookie, 0, PAYLOAD_BYTES_MAX));
        good.put(&data);
        assert_eq!(good.simple(), Simple { error: 0, cookie });
    }
    good.put(&request(0, READ, 3, 0, PAYLOAD_BYTES_MAX));
    assert_eq!(good.simple().error, 0);
    assert!(good.take(data.len()) == data);
    assert!((1..=turns + 1).contains(&told_off(&rig)));
    good.assert_in_step(false);
}

#[test]
fn nobody_is_sent_away_while_nobody_waits() {
    let rig = Rig::of_bytes(u64::from(PAYLOAD_BYTES_MAX));
    let turns = LARGE_BYTES_MAX / PAYLOAD_BYTES_MAX as usize;
    let data = pattern(PAYLOAD_BYTES_MAX as usize, 2);
    let mut slow = announcers(&rig, turns);
    slow.iter_mut().for_each(|raw| raw.put(&data));
    for raw in &mut slow {
        assert_eq!(raw.simple().error, 0);
    }
    assert_eq!(told_off(&rig), 0);
}

/// More than the budget has, from clients that all send and read as they should: each has its turn.
#[test]
fn many_large_requests_at_once_are_all_served() {
    let rig = Rig::of_bytes(u64::from(PAYLOAD_BYTES_MAX));
    let turns = LARGE_BYTES_MAX / PAYLOAD_BYTES_MAX as usize;
    let data = pattern(PAYLOAD_BYTES_MAX as usize, 3);
    std::thread::scope(|scope| {
        for _ in 0..2 * turns {
            scope.spawn(|| {
                let mut raw = Raw::transmission(rig.socket(), false);
                for _ in 0..2 {
                    raw.put(&request(0, WRITE, 1, 0, PAYLOAD_BYTES_MAX));
                    raw.put(&data);
                    raw.put(&request(0, READ, 2, 0, PAYLOAD_BYTES_MAX));
                    raw.put(&request(0, READ, 3, 0, PAYLOAD_BYTES_MAX));
                    assert_eq!(raw.simple().error, 0);
                    for _ in 0..2 {
                        assert_eq!(raw.simple().error, 0);
                        assert!(raw.take(data.len()) == data);
                    }
                }
            });
        }
    });
    assert_eq!(told_off(&rig), 0);
}

/// A server that is told to stop does not wait for those who wait.
#[test]
fn the_end_comes_for_those_who_wait_as_well() {
    let rig = Rig::of_bytes(u64::from(PAYLOAD_BYTES_MAX));
    let mut all = announcers(&rig, CONNECTIONS_MAX);
    assert_eq!(rig.server.stop(), 0);
    all[CONNECTIONS_MAX - 1].assert_closed();
    assert!(all[0].0.write_all(&[0; MIB]).is_err());
}
