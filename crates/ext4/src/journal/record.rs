//! The blocks that the log is made of.
//!
//! Each begins with magic, kind and sequence number. With checksums of version 2 or 3, a descriptor and a revoke block end with
//! theirs, and a commit block has its own at 0x10.
//!
//! A tag of a descriptor, one for each block that follows it in the log:
//!
//! | | block | flags | high half of the block | checksum of its contents |
//! |---|---|---|---|---|
//! | version 3, 16 bytes | 0 | 4, 32 bits | 8 | 12, 32 bits |
//! | version 2, 14 bytes, or 10 | 0 | 6, 16 bits | 8, if blocks have 64 bits | 4, 16 bits |
//! | without, 12 bytes, or 8 | 0 | 6, 16 bits | 8, if blocks have 64 bits | |
//!
//! A tag that does not share the last one's UUID is followed by one.

use crate::checksum::crc32c;
use crate::fields::Fields;
use crate::journal::{BITS64, CSUM_V2, CSUM_V3, Layout};

pub(super) const DESCRIPTOR: u32 = 1;
pub(super) const COMMIT: u32 = 2;
pub(super) const REVOKE: u32 = 5;

const HEAD_BYTES: usize = 12;
const COMMIT_CHECKSUM_AT: usize = 0x10;
const COMMIT_TIME_AT: usize = 0x30;
const UUID_BYTES: usize = 16;

const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

/// What a descriptor says of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) block: u64,
    pub(super) escaped: bool,
    pub(super) checksum: u32,
}

impl Layout {
    fn tag_bytes(&self) -> usize {
        if self.has(CSUM_V3) {
            return 16;
        }
        let narrow = if self.has(BITS64) { 12 } else { 8 };
        narrow + if self.has(CSUM_V2) { 2 } else { 0 }
    }

    /// What lies before the checksum at a block's end.
    fn body<'b>(&self, block: &'b [u8]) -> &'b [u8] {
        let tail = if self.has_checksums() { 4 } else { 0 };
        &block[..block.len() - tail]
    }

    /// The tags of a descriptor.
    pub(super) fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let (body, len) = (self.body(block), self.tag_bytes());
        let mut tags = Vec::new();
        let mut at = HEAD_BYTES;
        while at + len <= body.len() {
            let f = Fields(&body[at..at + len]);
            let v3 = self.has(CSUM_V3);
            let flags = if v3 { f.be32(4) } else { f.be16(6).into() };
            let high = if self.has(BITS64) { f.be32(8) } else { 0 };
            tags.push(Tag {
                block: u64::from(f.be32(0)) | u64::from(high) << 32,
                escaped: flags & ESCAPED != 0,
                checksum: if v3 { f.be32(12) } else { f.be16(4).into() },
            });
            at += len
                + if flags & SAME_UUID != 0 {
                    0
                } else {
                    UUID_BYTES
                };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    /// The blocks that a revoke block lists; nothing where its length cannot be.
    pub(super) fn revoked(&self, block: &[u8]) -> Option<Vec<u64>> {
        let body = self.body(block);
        let end = Fields(body).be32(HEAD_BYTES) as usize;
        let listed = body.get(HEAD_BYTES + 4..end)?;
        let len = if self.has(BITS64) { 8 } else { 4 };
        let number = |raw| match self.has(BITS64) {
            true => Fields(raw).be64(0),
            false => Fields(raw).be32(0).into(),
        };
        Some(listed.chunks_exact(len).map(number).collect())
    }

    /// Does the checksum of a descriptor or a revoke block match, if there is one?
    pub(super) fn block_is_whole(&self, block: &[u8]) -> bool {
        let (body, tail) = block.split_at(block.len() - 4);
        let crc = || crc32c(crc32c(self.checksum_seed, body), &[0; 4]);
        !self.has_checksums() || Fields(tail).be32(0) == crc()
    }

    /// Does that of a commit block?
    pub(super) fn commit_is_whole(&self, block: &[u8]) -> bool {
        let f = Fields(block);
        let after = f.from(COMMIT_CHECKSUM_AT + 4).0;
        let parts = [f.slice(0, COMMIT_CHECKSUM_AT), &[0; 4], after];
        let crc = || {
            parts
                .iter()
                .fold(self.checksum_seed, |crc, part| crc32c(crc, part))
        };
        !self.has_checksums() || f.be32(COMMIT_CHECKSUM_AT) == crc()
    }

    /// Are these the contents that the tag was written with?
    pub(super) fn copy_is_whole(&self, tag: Tag, sequence: u32, contents: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let crc = crc32c(
            crc32c(self.checksum_seed, &sequence.to_be_bytes()),
            contents,
        );
        tag.checksum == if self.has(CSUM_V3) { crc } else { crc & 0xffff }
    }
}

/// When a commit block was written: seconds since 1970.
pub(super) fn commit_time(block: &[u8]) -> u64 {
    Fields(block).be64(COMMIT_TIME_AT)
}

/// Does a commit block have this checksum of version 1, or none?
pub(super) fn v1_matches(block: &[u8], crc: u32) -> bool {
    /// CRC-32 in 4 bytes.
    const KIND: u16 = 0x0104;
    let found = (
        Fields(block).be16(0x0c),
        Fields(block).be32(COMMIT_CHECKSUM_AT),
    );
    found == (KIND, crc) || found == (0, 0)
}

/// CRC-32, most significant bit first, not inverted: the checksum of version 1.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
            (crc << 1) ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_be_of_the_usual_bytes() {
        // CRC-32/MPEG-2 is this one with all bits set at first.
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
    }
}
