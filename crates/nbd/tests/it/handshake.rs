//! The handshake, byte by byte.

use super::ram::Ram;
use super::raw::{Raw, context_data, go_data, option};
use super::rig::Rig;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;
const ERR_TOO_BIG: u32 = (1 << 31) + 9;

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|reply| reply.0).collect()
}

#[test]
fn export_name_with_and_without_zeroes() {
    let rig = Rig::of_bytes(12345);
    for name in ["", "disk"] {
        for (flags, zeroes) in [(3, 0), (1, 124), (0, 124)] {
            let mut raw = Raw::greet(rig.socket(), flags);
            raw.put(&option(1, name.as_bytes()));
            assert_eq!(raw.take(8), 12345u64.to_be_bytes());
            assert_eq!(raw.take(2), 0b1101_0110_1101_u16.to_be_bytes());
            assert_eq!(raw.take(zeroes), vec![0; zeroes]);
            raw.assert_in_step(false);
        }
    }
}

#[test]
fn an_unknown_export_name_ends_the_connection() {
    let rig = Rig::of_bytes(4096);
    let mut raw = Raw::greet(rig.socket(), 3);
    raw.put(&option(1, b"other"));
    raw.assert_closed();
    drop(rig.server);
    assert_eq!(
        *rig.said.lock().unwrap(),
        ["a handshake failed: there is no export \"other\""]
    );
}

#[test]
fn list_info_and_go() {
    let rig = Rig::of_bytes(1 << 20);
    let mut raw = Raw::greet(rig.socket(), 3);
    let list = raw.ask(3, &[]);
    assert_eq!(kinds(&list), [2, ACK]);
    assert_eq!(list[0].1, b"\0\0\0\x04diska test's disk");
    assert_eq!(kinds(&raw.ask(3, b"x")), [ERR_INVALID]);
    assert_eq!(kinds(&raw.ask(6, &go_data("nope", &[]))), [ERR_UNKNOWN]);
    assert_eq!(kinds(&raw.ask(7, &go_data("nope", &[]))), [ERR_UNKNOWN]);
    assert_eq!(kinds(&raw.ask(6, &[0xff; 9])), [ERR_INVALID]);
    assert_eq!(kinds(&raw.ask(8, &[])), [ACK]);

    // An unknown information request is ignored.
    let info = raw.ask(6, &go_data("disk", &[1, 2, 3, 99]));
    let mut export = vec![0, 0];
    export.extend((1u64 << 20).to_be_bytes());
    export.extend(0b1101_1110_1101_u16.to_be_bytes());
    let sizes = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0];
    assert_eq!(kinds(&info), [3, 3, 3, 3, ACK]);
    assert_eq!(info[0].1, export);
    assert_eq!(info[1].1, b"\0\x01disk");
    assert_eq!(info[2].1, b"\0\x02a test's disk");
    assert_eq!(info[3].1, sizes);
    assert_eq!(
        raw.ask(7, &go_data("", &[3])),
        [(3, export), (3, sizes.to_vec()), (ACK, vec![])]
    );
    raw.assert_in_step(true);
}

#[test]
fn a_read_only_export_offers_no_changes() {
    let rig = Rig::new(Ram::new(4096).read_only());
    let mut raw = Raw::greet(rig.socket(), 3);
    let info = raw.ask(6, &go_data("", &[]));
    assert_eq!(info[0].1[10..], 0b0101_0000_1111_u16.to_be_bytes());
}

#[test]
fn contexts_are_listed_and_set() {
    let rig = Rig::of_bytes(4096);
    let mut raw = Raw::greet(rig.socket(), 3);
    let names = |replies: &[(u32, Vec<u8>)]| {
        assert_eq!(replies.last().unwrap().0, ACK, "{replies:?}");
        let named = &replies[..replies.len() - 1];
        named
            .iter()
            .map(|reply| String::from_utf8(reply.1[4..].to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let set = |name: &str, queries: &[&str]| context_data(name, queries);
    assert_eq!(
        kinds(&raw.ask(10, &set("", &["base:allocation"]))),
        [ERR_INVALID],
        "too early"
    );
    assert_eq!(kinds(&raw.ask(8, &[])), [ACK]);
    let both = ["base:allocation", "cowslip:dirty"];
    assert_eq!(names(&raw.ask(9, &set("", &[]))), both);
    assert_eq!(
        names(&raw.ask(9, &set("disk", &["cowslip:", "base:"]))),
        both
    );
    assert_eq!(
        names(&raw.ask(9, &set("", &["base:allocation"]))),
        both[..1]
    );
    assert_eq!(
        names(&raw.ask(9, &set("", &["qemu:", "nonsense"]))),
        [""; 0]
    );
    assert_eq!(kinds(&raw.ask(9, &set("nope", &[]))), [ERR_UNKNOWN]);
    assert_eq!(names(&raw.ask(10, &set("", &[]))), [""; 0]);
    assert_eq!(
        names(&raw.ask(10, &set("", &["base:", "cowslip:"]))),
        [""; 0],
        "no wildcards"
    );
    let twice = ["cowslip:dirty", "cowslip:dirty", "base:allocation"];
    assert_eq!(names(&raw.ask(10, &set("", &twice))), both);
    // A SET that fails clears what was set.
    assert_eq!(
        kinds(&raw.ask(10, &set("", &["base:allocation"])[..9])),
        [ERR_INVALID]
    );
    raw.ask(7, &go_data("", &[]));
    raw.put(&super::raw::request(0, 7, 1, 0, 1));
    assert_eq!(raw.chunk().error(), 22);
    raw.assert_in_step(true);
}

#[test]
fn what_is_not_known_is_refused_and_the_connection_goes_on() {
    let rig = Rig::of_bytes(4096);
    let mut raw = Raw::greet(rig.socket(), 3);
    for unknown in [0, 4, 5, 11, 12, 1 << 20, u32::MAX] {
        assert_eq!(
            kinds(&raw.ask(unknown, b"whatever")),
            [ERR_UNSUP],
            "{unknown}"
        );
    }
    assert_eq!(kinds(&raw.ask(8, b"x")), [ERR_INVALID]);
    assert_eq!(kinds(&raw.ask(3, &vec![0; 100_000])), [ERR_TOO_BIG]);
    assert_eq!(kinds(&raw.ask(2, b"ignored")), [ACK]);
    raw.assert_closed();
    drop(rig.server);
    assert_eq!(*rig.said.lock().unwrap(), [""; 0]);
}

#[test]
fn garbage_ends_the_connection_with_one_line() {
    let rig = Rig::of_bytes(4096);
    let mut endless = b"IHAVEOPT\0\0\0\x03".to_vec();
    endless.extend(u32::MAX.to_be_bytes());
    let many = option(99, &[]).repeat(300);
    let cases = [
        (3, b"GET / HTTP/1.1\r\n\r\n".to_vec(), "0x474554202f204854"),
        (3, endless, "an option of 4294967295 bytes"),
        (0x80, vec![], "client flags 0x80"),
        (3, many, "more than 256 options"),
    ];
    for (flags, bytes, _) in &cases {
        let mut raw = Raw::greet(rig.socket(), *flags);
        raw.put(bytes);
        // Whatever it answered before: it ends.
        let _ = std::io::copy(&mut raw.0, &mut std::io::sink());
    }
    // One that goes in the middle of an option is no error.
    let mut raw = Raw::greet(rig.socket(), 3);
    raw.put(b"IHAVE");
    drop(raw);
    drop(rig.server);
    let said = rig.said.lock().unwrap();
    for (_, _, line) in cases {
        assert!(
            said.iter().any(|said| said.contains(line)),
            "{line}: {said:?}"
        );
    }
    assert_eq!(said.len(), 4, "{said:?}");
}
