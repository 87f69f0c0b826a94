//! Transmission: clients that no library would be, and the bounds that hold them.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::ram::Ram;
use super::raw::{Raw, Simple, request};
use super::rig::{MIB, Rig, pattern};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const DF: u16 = 4;

fn ok(cookie: u64) -> Simple {
    Simple { error: 0, cookie }
}

#[test]
fn a_client_that_never_reads_stalls_only_itself() {
    let rig = Rig::of_bytes(64 << 20);
    rig.client().write(0, &pattern(MIB, 1)).unwrap();
    let mut greedy = Raw::transmission(rig.socket(), true);
    let requests: Vec<u8> = (0..1000)
        .flat_map(|cookie| request(0, READ, cookie, 0, 1 << 20))
        .collect();
    greedy.put(&requests);
    // It is served up to its bound, and no further.
    let reads = &rig.server.counters().reads;
    while reads.load(Ordering::Relaxed) < 50 {
        std::thread::yield_now();
    }
    let mut other = rig.client();
    for _ in 0..100 {
        other.write(4096, &[7; 4096]).unwrap();
        other.flush().unwrap();
    }
    let mut buf = vec![0; 4096];
    other.read(4096, &mut buf).unwrap();
    assert_eq!(buf, [7; 4096]);
    let served = reads.load(Ordering::Relaxed) - 1;
    assert!(
        served <= 65,
        "{served} MiB are owed, beyond the bound of 64"
    );
    // Once it reads, it gets them all.
    for cookie in 0..1000 {
        let chunk = greedy.chunk();
        assert_eq!((chunk.cookie, chunk.payload.len()), (cookie, MIB + 8));
    }
}

#[test]
fn many_large_reads_before_the_first_reply_is_read() {
    let rig = Rig::of_bytes(64 << 20);
    let data = pattern(64 * MIB, 2);
    let mut writer = rig.client();
    for (at, part) in data.chunks(16 * MIB).enumerate() {
        writer.write((at * 16 * MIB) as u64, part).unwrap();
    }
    let mut raw = Raw::transmission(rig.socket(), true);
    for cookie in 0..64u64 {
        raw.put(&request(0, READ, cookie, cookie << 20, 1 << 20));
    }
    for cookie in 0..64usize {
        let chunk = raw.chunk();
        assert_eq!(chunk.cookie, cookie as u64);
        assert!(chunk.payload[8..] == data[cookie * MIB..][..MIB]);
    }
}

#[test]
fn writes_and_reads_that_cross_do_not_deadlock() {
    let rig = Rig::of_bytes(16 << 20);
    let data = pattern(4 * MIB, 3);
    let mut raw = Raw::transmission(rig.socket(), false);
    // 48 MiB of replies are owed while 48 MiB more are being sent: all from one thread.
    for cookie in 0..12u64 {
        raw.put(&request(0, WRITE, 2 * cookie, 0, 4 << 20));
        raw.put(&data);
        raw.put(&request(0, READ, 2 * cookie + 1, 0, 4 << 20));
    }
    for cookie in 0..12 {
        assert_eq!(raw.simple(), ok(2 * cookie));
        assert_eq!(raw.simple(), ok(2 * cookie + 1));
        assert!(raw.take(4 * MIB) == data);
    }
}

#[test]
fn exact_sizes_pass_and_one_byte_more_is_refused_in_step() {
    let rig = Rig::of_bytes(40 << 20);
    for structured in [false, true] {
        let mut raw = Raw::transmission(rig.socket(), structured);
        for len in [4 * MIB, 4 * MIB + 4096, 32 * MIB] {
            let data = pattern(len, len as u64);
            raw.put(&request(0, WRITE, 1, 0, u32::try_from(len).unwrap()));
            raw.put(&data);
            assert_eq!(raw.simple(), ok(1));
            raw.put(&request(0, READ, 2, 0, u32::try_from(len).unwrap()));
            if structured {
                assert!(raw.chunk().payload[8..] == data);
            } else {
                assert_eq!(raw.simple(), ok(2));
                assert!(raw.take(len) == data);
            }
        }
        let before = rig.ram.bytes();
        raw.put(&request(0, WRITE, 3, 0, (32 << 20) + 1));
        raw.put(&vec![0x25; 32 * MIB + 1]);
        raw.put(&request(0, READ, 4, 0, (32 << 20) + 1));
        raw.put(&request(
            DF * u16::from(structured),
            READ,
            5,
            0,
            (32 << 20) + 1,
        ));
        if structured {
            let errors: Vec<_> = (0..3).map(|_| raw.chunk().error()).collect();
            assert_eq!(errors, [22, 22, 75]);
        } else {
            for cookie in 3..6 {
                assert_eq!(raw.simple(), Simple { error: 22, cookie });
            }
        }
        raw.assert_in_step(structured);
        assert!(rig.ram.bytes() == before);
    }
}

#[test]
fn a_refused_write_beyond_all_bounds_is_answered_and_then_the_end() {
    let rig = Rig::of_bytes(1 << 20);
    let mut raw = Raw::transmission(rig.socket(), false);
    raw.put(&request(0, WRITE, 9, 0, u32::MAX));
    assert_eq!(
        raw.simple(),
        Simple {
            error: 22,
            cookie: 9
        }
    );
    raw.assert_closed();
    drop(rig.server);
    let said = rig.said.lock().unwrap();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("4294967295"), "{said:?}");
}

#[test]
fn each_refusal_leaves_the_connection_alive() {
    let rig = Rig::of_bytes(1 << 20);
    let end = 1 << 20;
    // flags, type, offset, length -> errno
    let refused = [
        (0, READ, end, 1, 22),
        (0, READ, u64::MAX, 2, 22),
        (1 << 9, READ, 0, 1, 22),
        (0, WRITE, end, 8, 28),
        (0, WRITE, end - 4, 8, 28),
        (DF, WRITE, 0, 8, 22),
        (0, TRIM, end, 1, 22),
        (0, ZEROES, end, 1, 28),
        (2 | 16, ZEROES, 0, 1, 95),
        (0, FLUSH, 1, 0, 22),
        (0, STATUS, 0, 0, 22),
        (0, STATUS, end, 1, 22),
        (0, 8, 0, 0, 22),
        (0xffff, 0xffff, 0, 0, 22),
    ];
    for structured in [false, true] {
        let mut raw = Raw::transmission(rig.socket(), structured);
        for (flags, kind, offset, len, errno) in refused {
            raw.put(&request(flags, kind, 5, offset, len));
            if kind == WRITE {
                raw.put(&vec![1; len as usize]);
            }
            let got = if structured {
                raw.chunk().error()
            } else {
                raw.simple().error
            };
            assert_eq!(got, errno, "{flags:#x} {kind} {offset} {len}");
        }
        raw.assert_in_step(structured);
    }
    assert_eq!(rig.server.counters().errors.load(Ordering::Relaxed), 28);
    assert!(rig.ram.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn a_read_only_device_refuses_changes() {
    let rig = Rig::new(Ram::new(1 << 20).read_only());
    let mut raw = Raw::transmission(rig.socket(), false);
    for kind in [WRITE, TRIM, ZEROES] {
        raw.put(&request(0, kind, 5, 0, 4));
        if kind == WRITE {
            raw.put(b"data");
        }
        assert_eq!(
            raw.simple(),
            Simple {
                error: 1,
                cookie: 5
            }
        );
    }
    raw.put(&request(0, FLUSH, 6, 0, 0));
    assert_eq!(raw.simple(), ok(6));
    raw.assert_in_step(false);
}

#[test]
fn a_sender_of_single_bytes_is_served() {
    let rig = Rig::of_bytes(1 << 20);
    let mut raw = Raw::transmission(rig.socket(), true);
    let mut bytes = request(0, WRITE, 1, 4095, 3);
    bytes.extend(b"abc");
    bytes.extend(request(0, READ, 2, 4095, 3));
    for byte in bytes {
        raw.put(&[byte]);
    }
    assert_eq!(raw.simple(), ok(1));
    assert_eq!(raw.chunk().payload[8..], *b"abc");
}

#[test]
fn half_a_request_and_then_nothing() {
    let rig = Rig::of_bytes(1 << 20);
    let mut write = request(0, WRITE, 2, 0, 100);
    write.extend([1; 50]);
    for half in [&write[..10], &write[..]] {
        let mut raw = Raw::transmission(rig.socket(), false);
        raw.put(&request(0, READ, 1, 0, 1));
        raw.put(half);
        raw.0.shutdown(std::net::Shutdown::Write).unwrap();
        // What was whole is answered; the half is not carried out.
        assert_eq!(raw.simple(), ok(1));
        raw.take(1);
        raw.assert_closed();
    }
    drop(rig.server);
    assert_eq!(*rig.said.lock().unwrap(), [""; 0]);
    assert!(rig.ram.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn a_false_magic_ends_that_connection_alone_and_is_said_once() {
    let rig = Rig::of_bytes(1 << 20);
    let mut good = Raw::transmission(rig.socket(), false);
    let mut bad = Raw::transmission(rig.socket(), false);
    bad.put(&request(0, READ, 1, 0, 1));
    bad.put(&[0x11; 28]);
    assert_eq!(bad.simple(), ok(1));
    bad.take(1);
    bad.assert_closed();
    good.assert_in_step(false);
    drop((good, rig.server));
    let said = rig.said.lock().unwrap();
    let line = "a connection was ended: 0x11111111 stands where a request should begin";
    assert_eq!(*said, [line]);
}

#[test]
fn a_flush_holds_up_nothing_and_disc_waits_for_it() {
    let rig = Rig::of_bytes(1 << 20);
    rig.ram.set_gate(false);
    let mut raw = Raw::transmission(rig.socket(), false);
    raw.put(&request(0, FLUSH, 1, 0, 0));
    raw.put(&request(FUA, WRITE, 2, 0, 3));
    raw.put(b"abc");
    raw.put(&request(FUA, READ, 3, 0, 3));
    assert_eq!(
        raw.simple(),
        ok(3),
        "before the flush and the write that wait"
    );
    assert_eq!(raw.take(3), b"abc");
    raw.put(&request(0, DISC, 0, 0, 0));
    rig.ram.wait_for_flushes(1);
    rig.ram.set_gate(true);
    let mut cookies = [raw.simple(), raw.simple()];
    cookies.sort_by_key(|reply| reply.cookie);
    assert_eq!(cookies, [ok(1), ok(2)]);
    raw.assert_closed();
}

#[test]
fn flushes_that_wait_share_one() {
    let rig = Rig::of_bytes(1 << 20);
    rig.ram.set_gate(false);
    let mut raw = Raw::transmission(rig.socket(), false);
    raw.put(&request(0, FLUSH, 0, 0, 0));
    rig.ram.wait_for_flushes(1);
    raw.put(&request(0, FLUSH, 1, 0, 0));
    rig.ram.wait_for_flushes(2);
    for cookie in 2..100 {
        raw.put(&request(0, FLUSH, cookie, 0, 0));
    }
    raw.assert_in_step(false);
    rig.ram.set_gate(true);
    let mut cookies: Vec<_> = (0..100).map(|_| raw.simple().cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..100).collect::<Vec<_>>());
    let flushes = rig.ram.flushes.load(Ordering::SeqCst);
    assert!(flushes <= 4, "{flushes} flushes for 100 requests");
}

#[test]
fn a_device_that_fails_half_way_gives_an_error_alone() {
    let rig = Rig::of_bytes(1 << 20);
    rig.client().write(0, &pattern(MIB, 5)).unwrap();
    rig.ram.bad_bytes.lock().unwrap().insert(10_000);
    for (structured, flags) in [(false, 0), (true, 0), (true, DF)] {
        let mut raw = Raw::transmission(rig.socket(), structured);
        raw.put(&request(flags, READ, 1, 0, 1 << 20));
        if structured {
            let chunk = raw.chunk();
            assert_eq!((chunk.error(), chunk.flags), (5, 1));
            assert!(chunk.payload.ends_with(b"a bad byte"));
        } else {
            assert_eq!(
                raw.simple(),
                Simple {
                    error: 5,
                    cookie: 1
                }
            );
        }
        raw.assert_in_step(structured);
    }
    *rig.ram.full.lock().unwrap() = true;
    let mut raw = Raw::transmission(rig.socket(), false);
    raw.put(&request(0, WRITE, 1, 0, 1));
    raw.put(b"x");
    assert_eq!(
        raw.simple(),
        Simple {
            error: 28,
            cookie: 1
        }
    );
    raw.put(&request(0, TRIM, 2, 0, 8192));
    assert_eq!(raw.simple(), ok(2), "trims work on a full disk");
}

#[test]
fn holes_travel_as_holes_unless_they_may_not() {
    let rig = Rig::of_bytes(1 << 20);
    rig.client().write(8192, &[7; 4096]).unwrap();
    let mut raw = Raw::transmission(rig.socket(), true);
    raw.put(&request(0, READ, 1, 0, 16384));
    let chunks: Vec<_> = (0..3).map(|_| raw.chunk()).collect();
    let kinds: Vec<_> = chunks
        .iter()
        .map(|c| (c.kind, c.flags, c.payload.len()))
        .collect();
    assert_eq!(kinds, [(2, 0, 12), (1, 0, 4104), (2, 1, 12)]);
    raw.put(&request(DF, READ, 2, 0, 16384));
    let chunk = raw.chunk();
    assert_eq!((chunk.kind, chunk.flags), (1, 1));
    assert_eq!(chunk.payload[8..], rig.ram.bytes()[..16384]);
    // Nothing is asked, nothing is sent, all is well.
    raw.put(&request(0, READ, 3, 0, 0));
    let chunk = raw.chunk();
    assert_eq!((chunk.kind, chunk.flags, chunk.payload.len()), (0, 1, 0));
    raw.put(&request(0, WRITE, 4, 0, 0));
    assert_eq!(raw.simple(), ok(4));
}

#[test]
fn status_of_both_contexts() {
    let rig = Rig::of_bytes(1 << 20);
    let mut client = rig.client();
    client.write(8192, &[7; 4096]).unwrap();
    client.write_zeroes(65536, 4096).unwrap();
    let mut raw = Raw::transmission(rig.socket(), true);
    let decode = |payload: &[u8]| {
        let words: Vec<_> = payload
            .chunks(4)
            .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
            .collect();
        (
            words[0],
            words[1..]
                .chunks(2)
                .map(|pair| (pair[0], pair[1]))
                .collect::<Vec<_>>(),
        )
    };
    raw.put(&request(0, STATUS, 1, 100, (1 << 20) - 100));
    let (first, second) = (raw.chunk(), raw.chunk());
    assert_eq!(
        (first.flags, first.kind, second.flags, second.kind),
        (0, 5, 1, 5)
    );
    let (head, rest) = (8192 - 100, (1 << 20) - 12288);
    assert_eq!(
        decode(&first.payload),
        (1, vec![(head, 3), (4096, 0), (rest, 3)])
    );
    let dirty = vec![
        (head, 0),
        (4096, 1),
        (65536 - 12288, 0),
        (4096, 1),
        ((1 << 20) - 69632, 0),
    ];
    assert_eq!(decode(&second.payload), (2, dirty));
    raw.put(&request(8, STATUS, 2, 8192, 1 << 19));
    assert_eq!(decode(&raw.chunk().payload), (1, vec![(4096, 0)]));
    assert_eq!(decode(&raw.chunk().payload), (2, vec![(4096, 1)]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_asked_each_request_has_one_answer(
        asked in proptest::collection::vec(
            (
                prop_oneof![9 => 0u16..8, 1 => any::<u16>()],
                prop_oneof![3 => Just(0u16), 2 => 0u16..32, 1 => any::<u16>()],
                prop_oneof![9 => 0u64..(1 << 20), 1 => any::<u64>()],
                prop_oneof![9 => 0u32..70_000, 1 => any::<u32>()],
            ),
            1..60,
        ),
    ) {
        let rig = Rig::of_bytes(1 << 20);
        let mut raw = Raw::transmission(rig.socket(), true);
        let mut expected = Vec::new();
        for (cookie, (kind, flags, offset, len)) in (0u64..).zip(asked) {
            if kind == DISC {
                continue;
            }
            let len = if kind == WRITE { len % 70_000 } else { len };
            raw.put(&request(flags, kind, cookie, offset, len));
            if kind == WRITE {
                raw.put(&vec![0x25; len as usize]);
            }
            expected.push(cookie);
        }
        let mut answered = Vec::new();
        while answered.len() < expected.len() {
            answered.extend(raw.answered());
        }
        answered.sort_unstable();
        prop_assert_eq!(answered, expected);
        raw.assert_in_step(true);
        drop((raw, rig.server));
        prop_assert_eq!(&*rig.said.lock().unwrap(), &[""; 0]);
    }
}
