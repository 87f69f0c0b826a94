//! The client against the server against a plain vector.

use std::collections::HashMap;

use cowslip_block::{ByteOffset, ByteRange, Room};
use cowslip_nbd::client::{Answer, Command, Cookie, StatusExtent};
use cowslip_nbd::{Client, Errno, Reply};
use proptest::prelude::*;

use super::rig::{Rig, pattern};

/// No multiple of the block.
const SIZE: usize = 256 * 1024 + 777;

#[derive(Clone, Debug)]
enum Op {
    Read {
        at: usize,
        len: usize,
        whole: bool,
    },
    Write {
        at: usize,
        len: usize,
        seed: u64,
        fua: bool,
    },
    Zero {
        at: usize,
        len: usize,
        keep: bool,
    },
    Trim {
        at: usize,
        len: usize,
    },
    Flush,
    Status {
        at: usize,
        len: usize,
        one: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    // Some end past the device.
    let place = || {
        (
            0..SIZE,
            prop_oneof![1usize..20, 1usize..9000, 1usize..70_000],
        )
    };
    prop_oneof![
        (place(), any::<bool>()).prop_map(|((at, len), whole)| Op::Read { at, len, whole }),
        (place(), any::<u64>(), any::<bool>()).prop_map(|((at, len), seed, fua)| Op::Write {
            at,
            len,
            seed,
            fua
        }),
        (place(), any::<bool>()).prop_map(|((at, len), keep)| Op::Zero { at, len, keep }),
        place().prop_map(|(at, len)| Op::Trim { at, len }),
        Just(Op::Flush),
        (place(), any::<bool>()).prop_map(|((at, len), one)| Op::Status { at, len, one }),
    ]
}

fn range(at: usize, len: usize) -> ByteRange {
    ByteRange::at(at as u64, len as u64).unwrap()
}

/// What the answer must be, and the change to the twin.
fn expect(op: &Op, twin: &mut [u8]) -> Result<Option<Vec<u8>>, Errno> {
    let outside = |at, len, errno| if at + len > SIZE { Err(errno) } else { Ok(()) };
    match *op {
        Op::Read { at, len, .. } => {
            outside(at, len, Errno::Inval)?;
            return Ok(Some(twin[at..at + len].to_vec()));
        }
        Op::Write { at, len, seed, .. } => {
            outside(at, len, Errno::NoSpc)?;
            twin[at..at + len].copy_from_slice(&pattern(len, seed));
        }
        Op::Zero { at, len, .. } => {
            outside(at, len, Errno::NoSpc)?;
            twin[at..at + len].fill(0);
        }
        Op::Trim { at, len } => {
            outside(at, len, Errno::Inval)?;
            let (start, end) = (at.next_multiple_of(4096), (at + len) / 4096 * 4096);
            if start < end {
                twin[start..end].fill(0);
            }
        }
        Op::Flush => {}
        Op::Status { at, len, .. } => outside(at, len, Errno::Inval)?,
    }
    Ok(None)
}

fn submit(client: &mut Client, op: &Op) -> Cookie {
    let data;
    let command = match *op {
        Op::Read { at, len, whole } => Command::Read {
            range: range(at, len),
            whole,
        },
        Op::Write { at, len, seed, fua } => {
            data = pattern(len, seed);
            Command::Write {
                offset: ByteOffset(at as u64),
                data: &data,
                fua,
            }
        }
        Op::Zero { at, len, keep } => {
            let room = if keep { Room::Provision } else { Room::Free };
            Command::WriteZeroes {
                range: range(at, len),
                room,
                fast: !keep,
                fua: false,
            }
        }
        Op::Trim { at, len } => Command::Trim {
            range: range(at, len),
            fua: false,
        },
        Op::Flush => Command::Flush,
        Op::Status { at, len, one } => Command::BlockStatus {
            range: range(at, len),
            one,
        },
    };
    client.submit(command).unwrap()
}

fn check(op: &Op, expected: Result<Option<Vec<u8>>, Errno>, answer: Answer, twin: &[u8]) {
    match (expected, answer) {
        (Ok(Some(data)), Ok(Reply::Data(got))) => assert!(got == data, "{op:?}"),
        (Ok(None), Ok(Reply::Status(status))) => {
            let Op::Status { at, len, one } = *op else {
                panic!("{op:?}")
            };
            check_status(&status.allocation, at, len, one, twin);
            check_status(&status.dirty, at, len, one, &[0; SIZE]);
        }
        (Ok(None), Ok(Reply::Done)) => assert!(!matches!(op, Op::Status { .. })),
        (Err(expected), Err(got)) => assert_eq!(expected, got, "{op:?}"),
        (expected, got) => panic!("{op:?}: {expected:?} but {got:?}"),
    }
}

/// Covers the range, neighbours differ, and holes are zero.
fn check_status(extents: &[StatusExtent], at: usize, len: usize, one: bool, twin: &[u8]) {
    let total: usize = extents.iter().map(|extent| extent.len as usize).sum();
    if one {
        assert!(extents.len() == 1 && total <= len);
    } else {
        assert_eq!(total, len);
    }
    assert!(
        extents
            .windows(2)
            .all(|pair| pair[0].flags != pair[1].flags)
    );
    let mut next = at;
    for extent in extents {
        let part = &twin[next..next + extent.len as usize];
        assert!(extent.flags & 2 == 0 || part.iter().all(|byte| *byte == 0));
        next += extent.len as usize;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_random_stream_of_requests_equals_the_oracle(
        ops in proptest::collection::vec(op(), 1..150),
        depth in 1usize..24,
    ) {
        let rig = Rig::of_bytes(SIZE as u64);
        let mut client = rig.client();
        let mut twin = vec![0; SIZE];
        let mut asked = HashMap::new();
        // One connection carries requests out in order (all but flushes), so the twin may too.
        // A status is judged by the twin of its moment, hence the copy.
        for op in &ops {
            let expected = expect(op, &mut twin);
            let cookie = submit(&mut client, op);
            let copy = if matches!(op, Op::Status { .. }) { twin.clone() } else { Vec::new() };
            asked.insert(cookie, (op, expected, copy));
            while client.in_flight() >= depth {
                let (cookie, answer) = client.complete().unwrap();
                let (op, expected, copy) = asked.remove(&cookie).unwrap();
                check(op, expected, answer, &copy);
            }
        }
        while client.in_flight() > 0 {
            let (cookie, answer) = client.complete().unwrap();
            let (op, expected, copy) = asked.remove(&cookie).unwrap();
            check(op, expected, answer, &copy);
        }
        prop_assert!(asked.is_empty());
        prop_assert!(rig.ram.bytes() == twin);
    }
}

#[test]
fn the_client_sends_much_before_it_reads_anything() {
    let rig = Rig::of_bytes(64 << 20);
    let mut client = rig.client();
    let data = pattern(1 << 20, 9);
    for number in 0..48u64 {
        let offset = ByteOffset(number << 20);
        client
            .submit(Command::Write {
                offset,
                data: &data,
                fua: false,
            })
            .unwrap();
        let range = ByteRange::at(number << 20, 1 << 20).unwrap();
        client
            .submit(Command::Read {
                range,
                whole: number % 2 == 0,
            })
            .unwrap();
    }
    let mut reads = 0;
    while client.in_flight() > 0 {
        if let Reply::Data(got) = client.complete().unwrap().1.unwrap() {
            assert!(got == data);
            reads += 1;
        }
    }
    assert_eq!(reads, 48);
}

#[test]
fn waiting_calls_and_requests_in_flight_mix() {
    let rig = Rig::of_bytes(1 << 20);
    let mut client = rig.client();
    let range = ByteRange::at(0, 4).unwrap();
    let before = client
        .submit(Command::Read {
            range,
            whole: false,
        })
        .unwrap();
    client.write(0, b"cow!").unwrap();
    let mut buf = [0; 4];
    client.read(0, &mut buf).unwrap();
    assert_eq!(&buf, b"cow!");
    assert_eq!(
        client.complete().unwrap(),
        (before, Ok(Reply::Data(vec![0; 4])))
    );
    assert!(matches!(
        client.complete(),
        Err(cowslip_nbd::ClientError::NothingInFlight)
    ));
    let error = client.trim(1 << 20, 1).unwrap_err();
    let said = "invalid request (EINVAL): 1 bytes at 1048576 end past the device of 1048576 bytes";
    assert_eq!(error.to_string(), said);
    let error = client.write(0, &vec![0; (32 << 20) + 1]).unwrap_err();
    assert!(matches!(error, cowslip_nbd::ClientError::TooLong(_)));
}
