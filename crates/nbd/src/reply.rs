//! Replies, built at the end of the output buffer.
//!
//! [`ReadReply`] is the sink that a device reads into: the bytes land where they are sent from.
//!
//! ```text
//! Simple     header, bytes                                  zeros written out
//! Chunks     OFFSET_DATA or OFFSET_HOLE ..., the last DONE  a run of zeros is a hole
//! OneChunk   OFFSET_DATA DONE                               zeros written out (the DF flag)
//! ```
//!
//! Invariants:
//! 1. Nothing of a reply is sent before it is complete, so a read that fails half way is taken back
//!    ([`ReadReply::abandon`]) and answered with an error alone, in every shape.
//! 2. A read reply covers its range exactly, in order, and no chunk is empty.

use cowslip_block::{ByteRange, ReadSink};

use crate::buffer::Buffer;
use crate::errno::Errno;
use crate::limits::{ERROR_TEXT_BYTES_MAX, HOLE_BYTES_MIN};
use crate::wire::{ChunkHeader, SIMPLE_REPLY_BYTES, chunk, simple_reply};

/// How a READ is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Simple,
    Chunks,
    OneChunk,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Hole,
}

/// The chunk that is being written.
struct Open {
    kind: Kind,
    /// Of its header, in the buffer.
    at: usize,
    /// Bytes of the device that it stands for.
    len: u64,
}

/// The reply to one READ, while the device fills it.
pub(crate) struct ReadReply<'a> {
    out: &'a mut Buffer,
    shape: Shape,
    cookie: u64,
    /// Where the reply begins in the buffer.
    begun: usize,
    /// Where in the device the next byte comes from.
    next: u64,
    left: u64,
    open: Option<Open>,
}

/// Bytes before the data of an OFFSET_DATA chunk: its header and the offset.
const DATA_HEAD_BYTES: usize = ChunkHeader::BYTES + 8;
const HOLE_BYTES: usize = DATA_HEAD_BYTES + 4;
const PAYLOAD_FITS: &str = "a payload is at most 32 MiB";

impl<'a> ReadReply<'a> {
    pub(crate) fn begin(out: &'a mut Buffer, shape: Shape, cookie: u64, range: ByteRange) -> Self {
        let begun = out.len();
        if shape == Shape::Simple {
            out.append(&simple_reply(0, cookie));
        }
        let (next, left) = (range.start.0, range.len());
        Self {
            out,
            shape,
            cookie,
            begun,
            next,
            left,
            open: None,
        }
    }

    /// Completes the reply; or says by how many bytes the device has fallen short.
    pub(crate) fn finish(&mut self) -> Result<(), u64> {
        if self.left > 0 {
            return Err(self.left);
        }
        if self.shape == Shape::Simple {
            return Ok(());
        }
        if self.open.is_some() {
            self.close(chunk::DONE);
        } else {
            done_chunk(self.out, self.cookie);
        }
        Ok(())
    }

    /// Takes back whatever was written.
    pub(crate) fn abandon(&mut self) {
        self.out.truncate(self.begun);
    }

    /// Writes the header of the open chunk, now that its length is known.
    fn close(&mut self, flags: u16) {
        let Some(open) = self.open.take() else { return };
        let len = u32::try_from(open.len).expect(PAYLOAD_FITS);
        let (kind, payload) = match open.kind {
            Kind::Data => (chunk::OFFSET_DATA, len + 8),
            Kind::Hole => (chunk::OFFSET_HOLE, 12),
        };
        let header = ChunkHeader {
            flags,
            kind,
            cookie: self.cookie,
            len: payload,
        };
        self.out.patch(open.at, &header.encode());
        self.out.patch(
            open.at + ChunkHeader::BYTES,
            &(self.next - open.len).to_be_bytes(),
        );
        if open.kind == Kind::Hole {
            self.out
                .patch(open.at + DATA_HEAD_BYTES, &len.to_be_bytes());
        }
    }

    /// The next `len` bytes go to a chunk of this kind: to the open one if it is.
    fn go_on(&mut self, kind: Kind, len: u64) {
        assert!(
            len <= self.left,
            "a device hands out no more than was asked for"
        );
        if self.shape != Shape::Simple && self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.close(0);
            let at = self.out.len();
            self.out.claim(match kind {
                Kind::Data => DATA_HEAD_BYTES,
                Kind::Hole => HOLE_BYTES,
            });
            self.open = Some(Open { kind, at, len: 0 });
        }
        if let Some(open) = &mut self.open {
            open.len += len;
        }
        self.next += len;
        self.left -= len;
    }
}

impl ReadSink for ReadReply<'_> {
    fn data(&mut self, len: usize) -> &mut [u8] {
        if len == 0 {
            return &mut [];
        }
        self.go_on(Kind::Data, len as u64);
        self.out.claim(len)
    }

    fn zeroes(&mut self, len: u64) {
        let in_hole = self
            .open
            .as_ref()
            .is_some_and(|open| open.kind == Kind::Hole);
        if self.shape == Shape::Chunks && len > 0 && (in_hole || len >= HOLE_BYTES_MIN) {
            return self.go_on(Kind::Hole, len);
        }
        self.data(usize::try_from(len).expect(PAYLOAD_FITS)).fill(0);
    }
}

/// A success without data.
pub(crate) fn done(out: &mut Buffer, cookie: u64) {
    out.append(&simple_reply(0, cookie));
}

/// A success without data where the protocol wants a chunk.
fn done_chunk(out: &mut Buffer, cookie: u64) {
    let header = ChunkHeader {
        flags: chunk::DONE,
        kind: chunk::NONE,
        cookie,
        len: 0,
    };
    out.append(&header.encode());
}

/// An error; its text, cut to bounds, travels where replies are structured.
pub(crate) fn error(out: &mut Buffer, structured: bool, cookie: u64, errno: Errno, text: &str) {
    if !structured {
        out.append(&simple_reply(errno.code(), cookie));
        return;
    }
    let text = cut(text);
    let text_len = u16::try_from(text.len()).expect("cut before");
    let len = u32::from(text_len) + 6;
    let header = ChunkHeader {
        flags: chunk::DONE,
        kind: chunk::ERROR,
        cookie,
        len,
    };
    out.append(&header.encode());
    out.append(&errno.code().to_be_bytes());
    out.append(&text_len.to_be_bytes());
    out.append(text);
}

/// The text's first [`ERROR_TEXT_BYTES_MAX`] bytes or a little fewer, never half a character.
fn cut(text: &str) -> &[u8] {
    let mut end = text.len().min(ERROR_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

/// The extents of one metadata context: (length, flags), at least one.
pub(crate) fn status(
    out: &mut Buffer,
    cookie: u64,
    context: u32,
    extents: &[(u32, u32)],
    last: bool,
) {
    let len = u32::try_from(4 + 8 * extents.len()).expect("extents are bounded");
    let flags = if last { chunk::DONE } else { 0 };
    out.append(
        &ChunkHeader {
            flags,
            kind: chunk::BLOCK_STATUS,
            cookie,
            len,
        }
        .encode(),
    );
    out.append(&context.to_be_bytes());
    for (len, flags) in extents {
        out.append(&len.to_be_bytes());
        out.append(&flags.to_be_bytes());
    }
}

const _: () = assert!(SIMPLE_REPLY_BYTES < DATA_HEAD_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes a reply of chunks, checking that they are in order and whole: the pieces, in order.
    fn chunks(mut bytes: &[u8], mut next: u64) -> Vec<(u16, u16, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[..4], 0x668e_33ef_u32.to_be_bytes());
            let flags = u16::from_be_bytes(bytes[4..6].try_into().unwrap());
            let kind = u16::from_be_bytes(bytes[6..8].try_into().unwrap());
            let len = u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize;
            let payload = &bytes[20..20 + len];
            bytes = &bytes[20 + len..];
            assert_eq!(
                flags == 1,
                bytes.is_empty(),
                "DONE is on the last chunk alone"
            );
            let data = match kind {
                chunk::OFFSET_DATA => payload[8..].to_vec(),
                chunk::OFFSET_HOLE => {
                    vec![0; u32::from_be_bytes(payload[8..].try_into().unwrap()) as usize]
                }
                _ => vec![],
            };
            if kind != chunk::NONE {
                assert_eq!(payload[..8], next.to_be_bytes());
                assert!(!data.is_empty());
            }
            next += data.len() as u64;
            found.push((flags, kind, data));
        }
        found
    }

    #[test]
    fn neighbours_join_and_zeros_are_holes() {
        let mut out = Buffer::default();
        let range = ByteRange::at(1 << 40, 4096 * 4).unwrap();
        let mut reply = ReadReply::begin(&mut out, Shape::Chunks, 7, range);
        reply.data(4000).fill(1);
        reply.data(96).fill(2);
        reply.zeroes(4096);
        reply.zeroes(1);
        reply.zeroes(4095);
        reply.data(4096).fill(3);
        reply.finish().unwrap();
        let kinds: Vec<_> = chunks(out.held(), 1 << 40)
            .into_iter()
            .map(|c| (c.1, c.2.len()))
            .collect();
        assert_eq!(kinds, [(1, 4096), (2, 8192), (1, 4096)]);
    }

    #[test]
    fn a_short_run_of_zeros_is_cheaper_as_data() {
        let mut out = Buffer::default();
        let range = ByteRange::at(0, 1 + HOLE_BYTES_MIN - 1).unwrap();
        let mut reply = ReadReply::begin(&mut out, Shape::Chunks, 7, range);
        reply.data(1).fill(1);
        reply.zeroes(HOLE_BYTES_MIN - 1);
        reply.finish().unwrap();
        let kinds: Vec<_> = chunks(out.held(), 0).into_iter().map(|c| c.1).collect();
        assert_eq!(kinds, [chunk::OFFSET_DATA]);
    }

    #[test]
    fn a_read_of_nothing_is_a_reply_all_the_same() {
        let range = ByteRange::at(0, 0).unwrap();
        let mut out = Buffer::default();
        ReadReply::begin(&mut out, Shape::Chunks, 7, range)
            .finish()
            .unwrap();
        assert_eq!(chunks(out.held(), 0), [(1, chunk::NONE, vec![])]);
        let mut out = Buffer::default();
        ReadReply::begin(&mut out, Shape::Simple, 7, range)
            .finish()
            .unwrap();
        assert_eq!(out.held(), simple_reply(0, 7));
    }

    #[test]
    fn an_abandoned_read_leaves_nothing_behind() {
        let mut out = Buffer::default();
        out.append(b"before");
        let mut reply = ReadReply::begin(&mut out, Shape::Chunks, 7, ByteRange::at(0, 9).unwrap());
        reply.data(4).fill(1);
        assert_eq!(reply.finish(), Err(5));
        reply.abandon();
        assert_eq!(out.held(), b"before");
    }

    #[test]
    fn an_error_is_these_bytes_and_its_text_is_cut() {
        let mut out = Buffer::default();
        error(&mut out, true, 7, Errno::Inval, "no");
        let mut golden = vec![
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 7,
        ];
        golden.extend([0, 0, 0, 8, 0, 0, 0, 22, 0, 2, b'n', b'o']);
        assert_eq!(out.held(), golden);
        let mut out = Buffer::default();
        error(&mut out, true, 7, Errno::Io, &"\u{20ac}".repeat(1000));
        assert_eq!(out.len(), 26 + 510, "cut between characters");
        let mut out = Buffer::default();
        error(&mut out, false, 7, Errno::Io, "no");
        assert_eq!(out.held(), simple_reply(5, 7));
    }

    #[test]
    fn a_status_is_these_bytes() {
        let mut out = Buffer::default();
        status(&mut out, 7, 2, &[(512, 3), (1, 0)], true);
        let mut golden = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7];
        golden.extend([
            0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0,
        ]);
        assert_eq!(out.held(), golden);
    }

    proptest! {
        #[test]
        fn every_shape_carries_the_same_bytes(
            pieces in proptest::collection::vec((any::<bool>(), 1usize..2000, any::<u8>()), 0..20),
            stale in any::<u8>(),
        ) {
            let expected: Vec<u8> = pieces
                .iter()
                .flat_map(|&(hole, len, byte)| vec![if hole { 0 } else { byte }; len])
                .collect();
            for shape in [Shape::Simple, Shape::Chunks, Shape::OneChunk] {
                let mut out = Buffer::default();
                out.append(&[stale; 5000]);
                out.truncate(0);
                let range = ByteRange::at(99, expected.len() as u64).unwrap();
                let mut reply = ReadReply::begin(&mut out, shape, 7, range);
                for &(hole, len, byte) in &pieces {
                    if hole { reply.zeroes(len as u64) } else { reply.data(len).fill(byte) }
                }
                prop_assert_eq!(reply.finish(), Ok(()));
                if shape == Shape::Simple {
                    prop_assert_eq!(&out.held()[16..], &expected[..]);
                    continue;
                }
                let chunks = chunks(out.held(), 99);
                prop_assert!(shape == Shape::Chunks || chunks.len() == 1);
                let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.2).collect();
                prop_assert_eq!(&bytes, &expected);
            }
        }
    }
}
