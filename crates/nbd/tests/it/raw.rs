//! A client of bare bytes, written from the specification, to say what no proper client says.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

pub(crate) struct Raw(pub(crate) UnixStream);

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Simple {
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// The errno of an error chunk.
    pub(crate) fn error(&self) -> u32 {
        assert_eq!(self.kind, 0x8001, "{self:?}");
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

pub(crate) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A name, and information requests.
pub(crate) fn go_data(name: &str, asked: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(asked.len()).unwrap().to_be_bytes());
    asked
        .iter()
        .for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// A name, and queries.
pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

impl Raw {
    /// Reads the greeting and answers with these client flags.
    pub(crate) fn greet(stream: UnixStream, flags: u32) -> Self {
        let mut raw = Self(stream);
        assert_eq!(raw.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        raw.put(&flags.to_be_bytes());
        raw
    }

    /// In transmission, with or without structured replies and contexts.
    pub(crate) fn transmission(stream: UnixStream, structured: bool) -> Self {
        let mut raw = Self::greet(stream, 3);
        if structured {
            raw.put(&option(8, &[]));
            assert_eq!(raw.option_reply(8).0, 1);
            raw.put(&option(
                10,
                &context_data("", &["base:allocation", "cowslip:dirty"]),
            ));
            while raw.option_reply(10).0 != 1 {}
        }
        raw.put(&option(7, &go_data("", &[])));
        assert_eq!(raw.option_reply(7).0, 3);
        assert_eq!(raw.option_reply(7).0, 1);
        raw
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server has closed, and has nothing more to say.
    pub(crate) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest, b""),
            // It closed with bytes of ours unread.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    pub(crate) fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(head[8..12], option.to_be_bytes());
        let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(head[16..].try_into().unwrap());
        (kind, self.take(len as usize))
    }

    /// Sends an option and reads replies up to the final one.
    pub(crate) fn ask(&mut self, code: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.put(&option(code, data));
        let mut replies = Vec::new();
        loop {
            replies.push(self.option_reply(code));
            let kind = replies.last().unwrap().0;
            if kind == 1 || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    pub(crate) fn simple(&mut self) -> Simple {
        let head = self.take(16);
        assert_eq!(head[..4], [0x67, 0x44, 0x66, 0x98]);
        Simple {
            error: u32::from_be_bytes(head[4..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..].try_into().unwrap()),
        }
    }

    pub(crate) fn chunk(&mut self) -> Chunk {
        let head = self.take(20);
        assert_eq!(head[..4], [0x66, 0x8e, 0x33, 0xef]);
        let len = u32::from_be_bytes(head[16..].try_into().unwrap());
        Chunk {
            flags: u16::from_be_bytes(head[4..6].try_into().unwrap()),
            kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
            payload: self.take(len as usize),
        }
    }

    /// Reads one reply, or one chunk of one. Says whose it was, where it was the last.
    pub(crate) fn answered(&mut self) -> Option<u64> {
        let mut magic = [0; 4];
        let peeked = rustix::net::recv(&self.0, &mut magic[..], rustix::net::RecvFlags::PEEK);
        assert!(peeked.unwrap().1 > 0, "the server has closed");
        if magic[0] == 0x67 {
            return Some(self.simple().cookie);
        }
        let chunk = self.chunk();
        (chunk.flags & 1 == 1).then_some(chunk.cookie)
    }

    /// The connection is in step: a read of one byte is answered.
    pub(crate) fn assert_in_step(&mut self, structured: bool) {
        self.put(&request(0, 0, 4711, 0, 1));
        if structured {
            let chunk = self.chunk();
            assert_eq!((chunk.cookie, chunk.flags), (4711, 1));
        } else {
            assert_eq!(
                self.simple(),
                Simple {
                    error: 0,
                    cookie: 4711
                }
            );
            self.take(1);
        }
    }
}
