//! Fast commits: small changes in words of their own, in the room after the ring.
//!
//! A row of tags (kind and length, both little-endian, then the value), over as many blocks as it takes; none crosses the end of a block.
//! A commit begins with a head, which names the transaction that the log would have next, and ends with a tail, which
//! has a checksum of all before it. Here they are counted; what they change is not applied.

use std::ops::Range;

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::fields::Fields;
use crate::file_system::FileSystem;
use crate::journal::Layout;

const TAG_BYTES: usize = 4;
const LAST_CHANGE: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;

/// Fast commits that the next mount would apply.
pub(super) struct Found {
    pub(super) commits: u64,
    /// The blocks of the journal that hold them.
    pub(super) live: Range<u64>,
}

/// Counts the commits that go with transaction `sequence`.
pub(super) fn scan(
    fs: &FileSystem<'_>,
    layout: &Layout,
    sequence: u32,
) -> Result<Found, Ext4Error> {
    // The kernel leaves out the first block of the room.
    let first = layout.end.saturating_add(1);
    let mut found = Found {
        commits: 0,
        live: first.into()..first.into(),
    };
    let mut crc = 0;
    for number in first..layout.blocks {
        let block = layout.read(fs, number)?;
        let before = found.commits;
        let goes_on = take_block(
            &block,
            number == first,
            sequence,
            &mut crc,
            &mut found.commits,
        );
        if found.commits > before {
            found.live.end = u64::from(number) + 1;
        }
        if !goes_on {
            break;
        }
    }
    Ok(found)
}

/// Takes the tags of one block. Does the next block go on from it?
fn take_block(
    block: &[u8],
    is_first: bool,
    sequence: u32,
    crc: &mut u32,
    commits: &mut u64,
) -> bool {
    let mut at = 0;
    while at + TAG_BYTES <= block.len() {
        let f = Fields(block).from(at);
        let (kind, len) = (f.le16(0), usize::from(f.le16(2)));
        let (is_start, value) = (is_first && at == 0, f.from(TAG_BYTES));
        if at + TAG_BYTES + len > block.len() || (is_start && kind != HEAD) {
            return false;
        }
        match kind {
            HEAD if value.le32(4) != sequence || value.le32(0) != 0 => return false,
            HEAD | 1..=LAST_CHANGE => *crc = crc32c(*crc, f.slice(0, TAG_BYTES + len)),
            TAIL => {
                let whole = crc32c(*crc, f.slice(0, TAG_BYTES + 4));
                if value.le32(0) != sequence || value.le32(4) != whole {
                    return false;
                }
                *commits += 1;
                *crc = 0;
            }
            _ => return false,
        }
        at += TAG_BYTES + len;
    }
    true
}
