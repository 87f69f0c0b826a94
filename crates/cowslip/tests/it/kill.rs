//! kill -9: nothing that was acknowledged is lost, whatever the moment.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;

use cowslip_block::{ByteOffset, ByteRange, Room};
use cowslip_nbd::client::Command;
use cowslip_nbd::{Client, Cookie};

use crate::bytes::{BLOCK, MIB, Seeded, assert_same, cache_room, noise, sum};
use crate::history::{Clock, History, Op};
use crate::rig::{Rig, until};

const SECTOR: usize = 512;
const SIZE: usize = 4 * MIB;
const IN_FLIGHT: usize = 16;

/// What one request leaves in a sector: its number, over and over. A request that zeroes leaves zeros.
fn content(number: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes
        .chunks_mut(8)
        .for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
    bytes
}

/// A device, as its client knows it.
struct Oracle {
    clock: Clock,
    random: Seeded,
    sectors: Vec<History>,
    /// Those that leave zeros, by number.
    zeroing: HashSet<u64>,
}

struct Pending {
    number: u64,
    sectors: std::ops::Range<usize>,
}

impl Oracle {
    fn new(seed: u64) -> Self {
        Self {
            clock: Clock::default(),
            random: Seeded(seed),
            sectors: vec![History::default(); SIZE / SECTOR],
            zeroing: [0].into(),
        }
    }

    /// Puts one request on its way: parts of blocks, whole ones, zeroes to the sector, trims.
    fn submit(&mut self, client: &mut Client) -> (Cookie, Pending) {
        let number = self.clock.tick();
        let kind = self.random.below(8);
        let per_block = BLOCK / SECTOR;
        let longest = [3, 8, 24, 200][self.random.below(4)];
        let mut len = 1 + self.random.below(longest);
        let mut start = self.random.below(SIZE / SECTOR - 300);
        if kind == 0 {
            (start, len) = (
                start / per_block * per_block,
                len.next_multiple_of(per_block),
            );
        }
        let sectors = start..start + len;
        let range = ByteRange::new((start * SECTOR) as u64, ((start + len) * SECTOR) as u64);
        let data = content(number).repeat(len);
        let command = match kind {
            0 => Command::Trim { range, fua: false },
            1 => Command::WriteZeroes {
                range,
                room: Room::Free,
                fast: false,
                fua: false,
            },
            _ => {
                let fua = self.random.below(50) == 0;
                Command::Write {
                    offset: ByteOffset(range.start.0),
                    data: &data,
                    fua,
                }
            }
        };
        if kind < 2 {
            self.zeroing.insert(number);
        }
        sectors
            .clone()
            .for_each(|s| self.sectors[s].submit(Op::unanswered(number)));
        (client.submit(command).unwrap(), Pending { number, sectors })
    }

    fn answered(&mut self, pending: &Pending) {
        let at = self.clock.tick();
        pending
            .sectors
            .clone()
            .for_each(|s| self.sectors[s].answer(pending.number, at));
    }

    /// Every sector holds something that it may hold; from now on, it is that.
    fn check(&mut self, device: &[u8], when: &str) {
        for (i, sector) in device.chunks(SECTOR).enumerate() {
            let word = u64::from_le_bytes(sector[..8].try_into().unwrap());
            assert!(
                sector == content(word),
                "{when}: sector {i} is torn: {sector:?}"
            );
            let leaves = |n: &u64| if self.zeroing.contains(n) { 0 } else { *n };
            let Some(number) = self.sectors[i].candidates().find(|n| leaves(n) == word) else {
                panic!("{when}: sector {i} holds {word}, but {:?}", self.sectors[i]);
            };
            self.sectors[i].settle(number);
        }
    }
}

/// Keeps 16 requests on their way until so many have been answered, and leaves 16 on their way.
fn write_for_a_while(oracle: &mut Oracle, client: &mut Client, answers: usize) {
    let mut pending: HashMap<Cookie, Pending> = HashMap::new();
    for _ in 0..answers {
        while pending.len() < IN_FLIGHT {
            pending.extend([oracle.submit(client)]);
        }
        // Sends what was gathered.
        let (cookie, answer) = client.complete().unwrap();
        answer.unwrap();
        oracle.answered(&pending.remove(&cookie).unwrap());
    }
}

/// Waits until every snapshot that the session was asked for is made, or given up.
fn sealed(rig: &Rig) {
    let manifest = rig.path("s/session.json");
    let waits = || {
        std::fs::read_to_string(&manifest)
            .unwrap()
            .contains("\"seal\"")
    };
    until("the seals to end", || (!waits()).then_some(()));
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let rig = Rig::new();
    rig.import("base", &vec![0; SIZE]);
    let mut oracle = Oracle::new(42);
    let mut served = rig.serve("base --session s");
    for round in 0..20 {
        // In every other round a snapshot is on its way as well.
        let asked = (round % 2 == 1).then(|| {
            let name = format!("half-{round}");
            let mut command = rig.command(["snapshot", "s", &name]);
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            (name, quiet.spawn().unwrap())
        });
        let mut client = served.client();
        let answers = 1 + oracle.random.below(800);
        write_for_a_while(&mut oracle, &mut client, answers);
        served.kill();
        drop(client);
        if let Some((_, mut child)) = asked {
            child.wait().unwrap();
        }
        served = rig.serve("--session s");
        oracle.check(&served.read_all(), &format!("round {round}"));
        // A snapshot that was on its way is whole, or not there.
        sealed(&rig);
        let names: Vec<_> = std::fs::read_dir(rig.store().join("snapshots"))
            .unwrap()
            .collect();
        for name in names {
            let name = name.unwrap().file_name().into_string().unwrap();
            if name.ends_with(&format!("-{round}")) {
                rig.ok(&format!("verify {name}"));
            }
        }
        rig.ok(&format!("snapshot s whole-{round}"));
        rig.ok(&format!("verify whole-{round}"));
        assert_same(
            &rig.export(&format!("whole-{round}")),
            &served.read_all(),
            "the snapshot",
        );
    }
    // The whole chain still reads.
    served.end();
    rig.ok("verify whole-19");
    rig.ok("ls");
}

const DIRTY: usize = 96 * MIB;

/// A session with so much to seal that the seal is not over before it is killed.
fn killed_while_sealing(rig: &Rig) -> Vec<u8> {
    rig.import("base", &noise(1, MIB));
    let served = rig.serve(&format!("base --session s --size {}", DIRTY));
    let mut client = served.client();
    let mut data = noise(2, DIRTY);
    for (i, part) in data.chunks(4 * MIB).enumerate() {
        client.write((i * 4 * MIB) as u64, part).unwrap();
    }
    let mut asked = rig.command(["snapshot", "s", "big"]);
    let mut asked = asked.stderr(Stdio::null()).spawn().unwrap();
    let tmp = rig.store().join("tmp");
    until("the seal to begin", || {
        (sum(&tmp, &|m| m.len()) > 0).then_some(())
    });
    // Acknowledged after the cut, in the middle of the seal.
    client.write(4096, b"after the cut").unwrap();
    served.kill();
    assert_eq!(
        asked.wait().unwrap().code(),
        Some(1),
        "the server went away"
    );
    assert!(
        !rig.store().join("snapshots/big").exists(),
        "the seal was over: make it longer"
    );
    data[4096..4109].copy_from_slice(b"after the cut");
    data
}

#[test]
fn a_seal_that_was_killed_is_finished_at_the_next_serve() {
    let rig = Rig::new();
    let mut data = killed_while_sealing(&rig);
    let served = rig.serve("--session s");
    assert_same(&served.read_all(), &data, "the session");
    sealed(&rig);
    rig.ok("verify big");
    assert_same(&served.read_all(), &data, "the session, after the seal");
    served.end();
    data[4096..4109].copy_from_slice(&noise(2, 4109)[4096..]);
    assert_same(&rig.export("big"), &data, "the snapshot");
    // The cache of the seal is gone.
    assert!(cache_room(&rig.path("s")) < MIB as u64);
}

#[test]
fn a_seal_that_was_killed_is_finished_by_a_snapshot_at_rest() {
    let rig = Rig::new();
    let data = killed_while_sealing(&rig);
    // The name is promised: it becomes the snapshot that was asked for first.
    rig.fails(1, "snapshot s big");
    rig.ok("verify big");
    rig.ok("snapshot s next");
    assert_same(&rig.export("next"), &data, "the snapshot at rest");
    assert_eq!(rig.inspect("next")["dirty_blocks"], 1);
    assert_eq!(rig.inspect("next")["parent_name"], "big");
}
