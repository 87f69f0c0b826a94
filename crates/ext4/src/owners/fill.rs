//! Spans and block bitmaps into runs: what nobody claims is free, or unknown.

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::features::Feature;
use crate::file_system::FileSystem;
use crate::owners::claims::Code;
use crate::owners::resolve::{By, Span};
use crate::owners::{Disagreements, Owner, Run};
use crate::problems::{Problem, Problems};

/// A group's block bitmap.
enum Bits {
    /// It was never written: nothing but the group's own metadata is in use.
    Unwritten,
    /// It cannot be read.
    Lost,
    Known(Vec<u8>),
}

/// Makes runs of spans, which come in order.
pub(super) struct Fill<'f, 'a> {
    fs: &'f FileSystem<'a>,
    disagreements: &'f mut Disagreements,
    problems: &'f mut Problems,
    /// The group whose bitmap is at hand.
    at_hand: Option<(u32, Bits)>,
    runs: Vec<Run>,
}

impl<'f, 'a> Fill<'f, 'a> {
    pub(super) fn new(
        fs: &'f FileSystem<'a>,
        disagreements: &'f mut Disagreements,
        problems: &'f mut Problems,
    ) -> Self {
        Self {
            fs,
            disagreements,
            problems,
            at_hand: None,
            runs: Vec::new(),
        }
    }

    /// Takes the next span.
    pub(super) fn take(&mut self, span: Span) -> Result<(), Ext4Error> {
        let sb = self.fs.superblock();
        let mut start = span.start;
        if start < sb.first_block {
            // Before the first group: the boot sector.
            self.push(start, Code::of(Owner::Superblock));
            start = sb.first_block;
        }
        while start < span.end {
            let group =
                u32::try_from((start - sb.first_block) / sb.blocks_per_group).expect("a group");
            let blocks = sb.group_blocks(group);
            let end = span.end.min(blocks.end);
            self.in_group(
                group,
                blocks.start,
                Span {
                    start,
                    end,
                    by: span.by,
                },
            )?;
            start = end;
        }
        Ok(())
    }

    /// All runs.
    pub(super) fn finish(mut self) -> Vec<Run> {
        self.runs.shrink_to_fit();
        self.runs
    }

    fn in_group(&mut self, group: u32, first: u64, span: Span) -> Result<(), Ext4Error> {
        let bits = match self.at_hand.take() {
            Some((at_hand, bits)) if at_hand == group => bits,
            _ => self.read_bits(group)?,
        };
        let cluster = u64::from(self.fs.superblock().cluster_blocks);
        let mut at = span.start;
        while at < span.end {
            let (used, end) = match &bits {
                Bits::Known(bits) => {
                    let bit = (at - first) / cluster;
                    let last = (span.end - first).div_ceil(cluster);
                    let (used, after) = run_of_bits(bits, bit, last);
                    (Some(used), (first + after * cluster).min(span.end))
                }
                Bits::Unwritten => (Some(false), span.end),
                Bits::Lost => (None, span.end),
            };
            let count = end - at;
            match span.by {
                By::Claimed(owner) => {
                    self.push(at, owner);
                    let is_own = owner.is_layout() && matches!(bits, Bits::Unwritten);
                    if used == Some(false) && !is_own {
                        self.disagreements.owned_but_free_blocks += count;
                    }
                }
                _ if used == Some(false) => self.push(at, Code::of(Owner::Free)),
                By::Rest(owner) if used == Some(true) => self.push(at, owner),
                _ => {
                    self.push(at, Code::of(Owner::Unknown));
                    self.disagreements.used_but_unowned_blocks +=
                        if used.is_some() { count } else { 0 };
                }
            }
            at = end;
        }
        self.at_hand = Some((group, bits));
        Ok(())
    }

    fn push(&mut self, start: u64, owner: Code) {
        if self.runs.last().is_none_or(|last| last.owner != owner) {
            self.runs.push(Run { start, owner });
        }
    }

    fn read_bits(&mut self, group: u32) -> Result<Bits, Ext4Error> {
        let (sb, descriptor) = (self.fs.superblock(), self.fs.descriptor(group));
        if !descriptor.has_block_bitmap {
            return Ok(Bits::Unwritten);
        }
        let at = descriptor.block_bitmap;
        if !sb.has_block(at) {
            self.problems.note(Problem::Descriptor, || {
                format!("the block bitmap of group {group} lies outside the file system, at {at}")
            });
            return Ok(Bits::Lost);
        }
        let bits = self.fs.view().block(at)?;
        let clusters = sb.blocks_per_group / u64::from(sb.cluster_blocks);
        let whole = bitmap_is_whole(self.fs, &bits, clusters, descriptor.block_bitmap_checksum);
        if !whole {
            self.problems.note(Problem::BitmapChecksum, || {
                format!("the checksum of the block bitmap of group {group} does not match")
            });
        }
        Ok(Bits::Known(bits))
    }
}

/// Does a bitmap of so many bits match the checksum in its group's descriptor?
pub(super) fn bitmap_is_whole(fs: &FileSystem<'_>, bits: &[u8], count: u64, wanted: u32) -> bool {
    let sb = fs.superblock();
    if !sb.features.has(Feature::METADATA_CSUM) {
        return true;
    }
    let bytes = usize::try_from(count / 8)
        .unwrap_or(usize::MAX)
        .min(bits.len());
    let crc = crc32c(sb.checksum_seed, &bits[..bytes]);
    // Short descriptors have room for half of it.
    if sb.descriptor_bytes >= 64 {
        crc == wanted
    } else {
        crc & 0xffff == wanted & 0xffff
    }
}

/// Is this bit set? Past the end of the bitmap none is.
pub(super) fn bit(bits: &[u8], at: u64) -> bool {
    let byte = usize::try_from(at / 8).ok().and_then(|byte| bits.get(byte));
    byte.is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// What bit `from` is, and where the bits that are the same end; at most at `to`.
fn run_of_bits(bits: &[u8], from: u64, to: u64) -> (bool, u64) {
    let is = bit(bits, from);
    let all_same = if is { 0xff } else { 0 };
    let mut at = from + 1;
    while at < to && bit(bits, at) == is {
        let byte = usize::try_from(at / 8).ok().and_then(|byte| bits.get(byte));
        at += if at.is_multiple_of(8) && byte == Some(&all_same) {
            8
        } else {
            1
        };
    }
    (is, at.min(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_of_bits_are_those_that_a_walk_finds(
            bits in proptest::collection::vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 1..20),
            from in 0u64..100,
            len in 1u64..200,
        ) {
            let to = from + len;
            let (is, end) = run_of_bits(&bits, from, to);
            let wanted = (from..to).find(|at| bit(&bits, *at) != is).unwrap_or(to);
            prop_assert_eq!((is, end), (bit(&bits, from), wanted));
        }
    }
}
