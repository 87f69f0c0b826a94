//! The client against servers that lie.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use cowslip_block::ByteRange;
use cowslip_nbd::client::Command;
use cowslip_nbd::{Client, ClientError, Errno, Reply};

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A handshake that agrees to everything, with context ids of its own, for 1 MiB.
fn agreeable() -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    bytes.extend(option_reply(8, 1, &[]));
    bytes.extend(option_reply(10, 4, b"\0\0\0\x2abase:allocation"));
    bytes.extend(option_reply(10, 1, &[]));
    bytes.extend(option_reply(7, 3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1]));
    bytes.extend(option_reply(7, 1, &[]));
    bytes
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(flags: u16, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut payload = offset.to_be_bytes().to_vec();
    payload.extend(bytes);
    chunk(flags, 1, 1, &payload)
}

fn hole(flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut payload = offset.to_be_bytes().to_vec();
    payload.extend(len.to_be_bytes());
    chunk(flags, 2, 1, &payload)
}

/// A client at the other end of these bytes; the server swallows what it is sent.
fn client_of(bytes: Vec<u8>) -> Result<Client, ClientError> {
    let (here, mut there) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let _ = there.write_all(&bytes);
        let _ = there.shutdown(std::net::Shutdown::Write);
        let _ = there.read_to_end(&mut Vec::new());
    });
    Client::over(here.into(), "")
}

/// The answer to a read of 16 bytes at 100.
fn read(replies: &[Vec<u8>]) -> Result<Vec<u8>, ClientError> {
    let mut client = client_of([agreeable(), replies.concat()].concat()).unwrap();
    let mut buf = vec![0xee; 16];
    client.read(100, &mut buf).map(|()| buf)
}

#[test]
fn pieces_in_any_order_make_a_read() {
    let mut expected = [0; 16];
    expected[4..8].copy_from_slice(b"abcd");
    let chunks = [
        hole(0, 108, 8),
        data(0, 104, b"abcd"),
        hole(0, 100, 4),
        chunk(1, 0, 1, &[]),
    ];
    assert_eq!(read(&chunks).unwrap(), expected);
}

#[test]
fn lies_about_a_read_are_noticed() {
    let lies: [(&str, Vec<Vec<u8>>); 15] = [
        ("not asked for", vec![data(1, 99, &[1; 16])]),
        ("not asked for", vec![data(1, 101, &[1; 16])]),
        ("not asked for", vec![data(1, u64::MAX, &[1; 16])]),
        ("not asked for", vec![hole(1, 100, 17)]),
        ("not asked for", vec![hole(1, 100, 0)]),
        ("not asked for", vec![chunk(1, 1, 1, &100u64.to_be_bytes())]),
        ("come twice", vec![data(0, 100, &[1; 8]), hole(1, 107, 9)]),
        ("before its range", vec![data(1, 100, &[1; 15])]),
        ("before its range", vec![chunk(1, 0, 1, &[])]),
        ("not asked", vec![chunk(1, 0, 2, &[])]),
        ("type 0x7 with", vec![chunk(1, 7, 1, &[0; 4])]),
        ("type 0x0", vec![chunk(0, 0, 1, &[])]),
        ("should begin", vec![vec![0x12; 64]]),
        (
            "simple reply",
            vec![vec![
                0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            ]],
        ),
        (
            "longer than",
            vec![chunk(1, 0x8001, 1, &[0, 0, 0, 5, 0, 9, b'x'])],
        ),
    ];
    for (what, replies) in lies {
        match read(&replies) {
            Err(ClientError::Protocol(text)) => assert!(text.contains(what), "{what}: {text}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    // A chunk that announces 4 GiB is refused at its header.
    let mut huge = chunk(1, 5, 1, &[]);
    huge[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(read(&[huge]), Err(ClientError::Protocol(_))));
    // Errors of a kind we do not know are errors all the same; the first one counts.
    let unknown = chunk(0, 0x8077, 1, &[0, 0, 0, 28, 0, 2, b'n', b'o', 1, 2, 3]);
    let replies = [unknown, chunk(1, 0x8001, 1, &[0, 0, 0, 5, 0, 0])];
    match read(&replies) {
        Err(ClientError::Refused {
            errno: Errno::NoSpc,
            text,
        }) => assert_eq!(text, "no"),
        other => panic!("{other:?}"),
    }
    // And one that goes in the middle has gone.
    match read(&[data(1, 100, &[1; 16])[..30].to_vec()]) {
        Err(ClientError::Io(error)) => {
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_status_is_known_by_the_servers_own_id() {
    let status = |replies: &[Vec<u8>]| {
        let mut client = client_of([agreeable(), replies.concat()].concat()).unwrap();
        let range = ByteRange::at(0, 100).unwrap();
        client
            .submit(Command::BlockStatus { range, one: false })
            .unwrap();
        client.complete()
    };
    let good = [0, 0, 0, 0x2a, 0, 0, 0, 100, 0, 0, 0, 3];
    match status(&[chunk(1, 5, 1, &good)]) {
        Ok((_, Ok(Reply::Status(status)))) => {
            assert_eq!((status.allocation.len(), status.dirty.len()), (1, 0));
            assert_eq!(
                (status.allocation[0].len, status.allocation[0].flags),
                (100, 3)
            );
        }
        other => panic!("{other:?}"),
    }
    let lies = [
        vec![chunk(1, 5, 1, &[0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0, 3])],
        vec![chunk(1, 5, 1, &good[..4])],
        vec![chunk(1, 5, 1, &good[..10])],
        vec![chunk(1, 5, 1, &[0, 0, 0, 0x2a, 0, 0, 0, 0, 0, 0, 0, 3])],
        vec![chunk(0, 5, 1, &good), chunk(1, 5, 1, &good)],
        vec![chunk(1, 0, 1, &[])],
    ];
    for lie in lies {
        assert!(
            matches!(status(&lie), Err(ClientError::Protocol(_))),
            "{lie:?}"
        );
    }
}

#[test]
fn a_handshake_that_is_none() {
    let mut endless = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    endless.extend(option_reply(8, 7, &[]).repeat(100));
    let mut huge = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    huge.extend(&option_reply(8, 1, &[])[..16]);
    huge.extend(u32::MAX.to_be_bytes());
    let mut silent = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    silent.extend(option_reply(8, 1, &[]));
    silent.extend(option_reply(10, 1, &[]));
    silent.extend(option_reply(7, 1, &[]));
    for lie in [
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
        endless,
        huge,
        silent,
    ] {
        assert!(matches!(client_of(lie), Err(ClientError::Protocol(_))));
    }
    let oldstyle = b"NBDMAGICIHAVEOPT\0\0".to_vec();
    assert!(matches!(
        client_of(oldstyle),
        Err(ClientError::Handshake(_))
    ));
    let mut unknown = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    unknown.extend(option_reply(8, 0x8000_0001, &[]));
    unknown.extend(option_reply(7, 0x8000_0006, b"no such export"));
    match client_of(unknown) {
        Err(ClientError::Handshake(text)) => assert!(text.starts_with("no such export"), "{text}"),
        other => panic!("{:?}", other.map(drop)),
    }
}
