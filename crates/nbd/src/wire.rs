//! The bytes of the protocol: numbers, requests, reply headers. A codec; no I/O, no judgement.
//!
//! All integers are big-endian. The specification is `doc/proto.md` of the NetworkBlockDevice
//! project; names here are its names without the `NBD_` prefix.
//!
//! ```text
//! request       magic u32, flags u16, type u16, cookie u64, offset u64, length u32     28 bytes
//! simple reply  magic u32, error u32, cookie u64                                       16 bytes
//! chunk         magic u32, flags u16, type u16, cookie u64, length u32                 20 bytes
//! option        IHAVEOPT u64, option u32, length u32                                   16 bytes
//! option reply  magic u64, option u32, reply type u32, length u32                      20 bytes
//! ```

/// First eight bytes of a server.
pub(crate) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Newstyle, and the start of every option.
pub(crate) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags; the client's have the same bits.
pub(crate) mod hello {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub mod can {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is served.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is served.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is served.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is served.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is served.
    pub const SEND_DF: u16 = 1 << 7;
    /// A FLUSH covers all connections.
    pub const MULTI_CONN: u16 = 1 << 8;
    /// CACHE is served.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag is served.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

pub(crate) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERR + 1;
    pub(crate) const ERR_INVALID: u32 = ERR + 3;
    pub(crate) const ERR_UNKNOWN: u32 = ERR + 6;
    pub(crate) const ERR_TOO_BIG: u32 = ERR + 9;
}

pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

pub(crate) mod chunk {
    /// Flag: the last chunk of its reply.
    pub(crate) const DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    /// Set in the type of every error chunk.
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = ERROR_BIT + 1;
}

/// Flags of an extent.
pub mod state {
    /// `base:allocation`: takes no room.
    pub const HOLE: u32 = 1 << 0;
    /// `base:allocation`: reads as zeros.
    pub const ZERO: u32 = 1 << 1;
    /// `cowslip:dirty`: changed since the session's last snapshot.
    pub const DIRTY: u32 = 1 << 0;
}

/// The metadata contexts, in the order of their ids.
pub(crate) const CONTEXTS: [(u32, &str); 2] = [(1, "base:allocation"), (2, "cowslip:dirty")];

/// Reads integers off the front; `None` where the bytes end before.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length of 32 bits, then so many bytes.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(len as usize)
    }
}

/// A request as it stands on the wire, not yet judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    pub(crate) const BYTES: usize = 28;

    /// The front of `bytes`, which are at least [`Self::BYTES`]; or the magic that is none.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, u32> {
        const ENOUGH: &str = "the caller has 28 bytes";
        let mut fields = Fields(bytes);
        let magic = fields.u32().expect(ENOUGH);
        if magic != REQUEST_MAGIC {
            return Err(magic);
        }
        Ok(Self {
            flags: fields.u16().expect(ENOUGH),
            kind: fields.u16().expect(ENOUGH),
            cookie: fields.u64().expect(ENOUGH),
            offset: fields.u64().expect(ENOUGH),
            len: fields.u32().expect(ENOUGH),
        })
    }

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// The bytes that follow the request, whether it is served or refused.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.kind == cmd::WRITE { self.len } else { 0 }
    }
}

pub(crate) const SIMPLE_REPLY_BYTES: usize = 16;

/// A simple reply; error 0 is success.
pub(crate) fn simple_reply(error: u32, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of one chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) len: u32,
}

impl ChunkHeader {
    pub(crate) const BYTES: usize = 20;

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// Appends one option reply; `data` in pieces.
pub(crate) fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|piece| piece.len()).sum();
    let len = u32::try_from(len).expect("replies are built from bounded strings");
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(len.to_be_bytes());
    data.iter().for_each(|piece| out.extend(*piece));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_these_bytes() {
        let request = Request {
            flags: flag::FUA | flag::NO_HOLE,
            kind: cmd::WRITE_ZEROES,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1112_1314_1516_1718,
            len: 0x2122_2324,
        };
        let golden = [
            0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14,
            0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
        ];
        assert_eq!(request.encode(), golden);
        assert_eq!(Request::parse(&golden), Ok(request));
    }

    #[test]
    fn a_flag_does_not_leak_into_the_type() {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0xff, 0xff, 0, 1]);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.flags, request.kind), (0xffff, cmd::WRITE));
    }

    #[test]
    fn another_magic_is_named() {
        assert_eq!(Request::parse(&[0x12; 28]), Err(0x1212_1212));
    }

    #[test]
    fn only_a_write_has_a_payload() {
        let mut request = Request::parse(&[
            0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 9,
        ])
        .unwrap();
        for kind in 0..20 {
            request.kind = kind;
            let expected = if kind == 1 { 9 } else { 0 };
            assert_eq!(request.payload_bytes(), expected);
        }
    }

    #[test]
    fn replies_are_these_bytes() {
        assert_eq!(
            simple_reply(22, 0x0102_0304_0506_0708),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        let header = ChunkHeader {
            flags: chunk::DONE,
            kind: chunk::ERROR,
            cookie: 0x0102_0304_0506_0708,
            len: 0x2122_2324,
        };
        assert_eq!(
            header.encode(),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x21, 0x22, 0x23,
                0x24
            ]
        );
        let mut out = Vec::new();
        option_reply(&mut out, option::LIST, rep::ERR_UNSUP, &[b"no", b"!"]);
        assert_eq!(
            out,
            [
                0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0x80, 0, 0, 1, 0, 0, 0, 3, b'n',
                b'o', b'!'
            ]
        );
    }

    #[test]
    fn fields_end_without_a_panic() {
        assert_eq!(Fields(&[0, 0, 0]).u32(), None);
        assert_eq!(Fields(&[0, 0, 0, 9, 1]).string(), None);
        assert_eq!(Fields(&[0xff, 0xff, 0xff, 0xff]).string(), None);
        assert_eq!(Fields(&[0, 0, 0, 1, 7, 8]).string(), Some(&[7][..]));
    }
}
