//! What becomes of zeros, of trims, of partial blocks and of what is written again as it was.

use cowslip_block::{ByteRange, Room};
use cowslip_nbd::client::Command;
use serde_json::Value;

use crate::bytes::{BLOCK, MIB, assert_same, cache_room, noise};
use crate::rig::{Rig, Served, until};

fn served() -> (Rig, Served) {
    let rig = Rig::new();
    rig.import("base", &noise(1, 16 * MIB));
    let served = rig.serve("base --session s");
    (rig, served)
}

fn figures(info: &Value) -> [u64; 3] {
    ["dirty_blocks", "zero_blocks", "same_blocks"].map(|f| info[f].as_u64().unwrap())
}

#[test]
fn a_write_of_zeros_and_data_is_eight_of_each() {
    let (rig, served) = served();
    let mut buffer = noise(2, 65536);
    buffer
        .chunks_mut(BLOCK)
        .step_by(2)
        .for_each(|zero| zero.fill(0));
    served.client().write(1 << 20, &buffer).unwrap();
    rig.ok("snapshot s mixed");
    let info = rig.inspect("mixed");
    assert_eq!(figures(&info), [8, 8, 0]);
    let mut wanted = noise(1, 16 * MIB);
    wanted[MIB..MIB + 65536].copy_from_slice(&buffer);
    assert_same(&rig.export("mixed"), &wanted, "the snapshot");
    // Noise does not shrink: eight blocks, and what is around them.
    let payload = info["payload_bytes"].as_u64().unwrap();
    assert!((32768..36864).contains(&payload), "{payload} bytes");
}

#[test]
fn zeroes_and_trims_over_dirty_blocks_give_their_room_back() {
    let (rig, served) = served();
    let mut client = served.client();
    let room = || cache_room(&rig.path("s"));
    let mib = MIB as u64;
    type Free = fn(&mut cowslip_nbd::Client, u64, u64);
    let ways: [(&str, Free); 3] = [
        ("WRITE_ZEROES", |c, at, len| {
            c.write_zeroes(at, len).unwrap();
        }),
        ("TRIM", |c, at, len| {
            c.trim(at, len).unwrap();
        }),
        ("a write of zeros", |c, at, len| {
            c.write(at, &vec![0; usize::try_from(len).unwrap()])
                .unwrap();
        }),
    ];
    for (what, free) in ways {
        client.write(0, &noise(3, 8 * MIB)).unwrap();
        assert!(room() >= 8 * mib, "{what}");
        free(&mut client, mib, 6 * mib);
        until(&format!("{what} to give room back"), || {
            (room() <= 2 * mib + 65536).then_some(())
        });
        let mut bytes = vec![1; 8 * MIB];
        client.read(0, &mut bytes).unwrap();
        let mut wanted = noise(3, 8 * MIB);
        wanted[MIB..7 * MIB].fill(0);
        assert_same(&bytes, &wanted, what);
    }
    // Provisioned room stays.
    client.write(0, &noise(3, 8 * MIB)).unwrap();
    let range = ByteRange::new(0, 8 << 20);
    let keep = Command::WriteZeroes {
        range,
        room: Room::Provision,
        fast: false,
        fua: false,
    };
    client.submit(keep).unwrap();
    client.complete().unwrap().1.unwrap();
    client.flush().unwrap();
    assert!(room() >= 8 * mib);
    rig.ok("snapshot s zero");
    assert_eq!(figures(&rig.inspect("zero")), [0, 2048, 0]);
}

#[test]
fn unaligned_zeroes_leave_their_neighbours_alone() {
    let (rig, served) = served();
    let mut client = served.client();
    let mut wanted = noise(1, 16 * MIB);
    // Over untouched blocks, dirty ones and zero ones; within a block, across one boundary, across
    // many.
    client.write(0, &noise(4, MIB)).unwrap();
    wanted[..MIB].copy_from_slice(&noise(4, MIB));
    client.trim(1 << 20, 1 << 20).unwrap();
    wanted[MIB..2 * MIB].fill(0);
    for area in [0, MIB, 2 * MIB] {
        for (at, len) in [
            (1, 1),
            (5000, 100),
            (20479, 2),
            (30001, 50000),
            (100_000, 4096),
        ] {
            client.write_zeroes((area + at) as u64, len as u64).unwrap();
            wanted[area + at..area + at + len].fill(0);
        }
    }
    assert_same(&served.read_all(), &wanted, "served");
    rig.ok("snapshot s after");
    assert_same(&rig.export("after"), &wanted, "in the snapshot");
}

#[test]
fn what_is_written_again_as_it_was_costs_nothing() {
    let (rig, served) = served();
    let mut client = served.client();
    client.write(0, &noise(1, 4 * MIB)).unwrap();
    rig.ok("snapshot s same");
    let info = rig.inspect("same");
    assert_eq!(figures(&info), [0, 0, 1024]);
    assert_eq!(info["payload_bytes"], 0);
    assert_eq!(info["layers"].as_array().unwrap().len(), 1);
    // Also a block whose bytes were others in between, and one of which a part was written.
    client.write(0, &noise(5, 8192)).unwrap();
    client.write(0, &noise(1, 8192)).unwrap();
    client.write(100, &noise(1, 200)[100..]).unwrap();
    rig.ok("snapshot s again");
    assert_eq!(figures(&rig.inspect("again")), [0, 0, 2]);
    client.write(0, &noise(1, 4 * MIB)).unwrap();
    rig.ok("snapshot s kept --no-dedup");
    let info = rig.inspect("kept");
    assert_eq!(figures(&info), [1024, 0, 0]);
    assert!(info["payload_bytes"].as_u64().unwrap() > 4 << 20);
    assert_same(&rig.export("kept"), &noise(1, 16 * MIB), "the snapshot");
}

#[test]
fn zeros_over_zeros_are_no_change() {
    let rig = Rig::new();
    rig.import("base", &vec![0; 4 * MIB]);
    let served = rig.serve("base --session s --size 8M");
    let mut client = served.client();
    client.write_zeroes(0, 8 << 20).unwrap();
    client.trim(0, 8 << 20).unwrap();
    client.write(100, &[0; 5000]).unwrap();
    rig.ok("snapshot s zero");
    assert_eq!(figures(&rig.inspect("zero")), [0, 0, 0]);
}
