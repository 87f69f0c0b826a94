//! The superblock: how a file system is laid out.
//!
//! 1024 bytes at byte 1024, and copies at the start of some groups. What is read here has been checked: the sizes fit each
//! other and the source, so that no arithmetic on them overflows or divides by zero.
//!
//! A *group* is [`Superblock::blocks_per_group`] blocks from [`Superblock::first_block`] on. It may begin with a copy of the
//! superblock, one of the descriptors, and blocks reserved for more of them ([`Superblock::head_of`]).
//!
//! Left out: all that only matters to a writer (mount options, times, error records).

use std::ops::Range;

use crate::checksum::crc32c;
use crate::error::Ext4Error;
use crate::features::{Feature, Features};
use crate::fields::Fields;
use crate::limits::GROUPS_MAX;
use crate::problems::{Problem, Problems};
use crate::source::Source;

pub(crate) const BYTES: usize = 1024;
/// Where the first one lies.
pub(crate) const AT: u64 = 1024;
const MAGIC: u16 = 0xef53;
const CHECKSUM_AT: usize = 0x3fc;
const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;
const STATE_ORPHANS: u16 = 4;

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes in a block: 1, 2, 4, 8, 16, 32 or 64 KiB.
    pub block_bytes: u32,
    /// Blocks in a cluster, the unit of allocation: 1 without bigalloc.
    pub cluster_blocks: u32,
    /// Blocks of the file system.
    pub blocks: u64,
    /// Where the first group starts: 1 where blocks have 1 KiB, else 0.
    pub first_block: u64,
    /// Blocks in each group but the last.
    pub blocks_per_group: u64,
    /// Inodes of the file system.
    pub inodes: u32,
    /// Inodes in each group.
    pub inodes_per_group: u32,
    /// Bytes in an inode.
    pub inode_bytes: u32,
    /// The first inode that is not reserved.
    pub first_inode: u32,
    /// Bytes in a group descriptor.
    pub descriptor_bytes: u32,
    /// Blocks kept in each group with a superblock for more descriptors.
    pub reserved_descriptor_blocks: u32,
    /// The first block of descriptors that lies in its own groups (meta_bg).
    pub first_meta_group: u32,
    /// The two groups with copies (sparse_super2).
    pub backup_groups: [u32; 2],
    /// Whether it was unmounted, and whether errors were found: see [`Superblock::is_clean`].
    pub state: u16,
    /// What it can.
    pub features: Features,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its label, without the zeros at the end.
    pub label: Vec<u8>,
    /// The mount options that it carries, without the zeros at the end.
    pub mount_options: Vec<u8>,
    /// Free blocks, as the superblock says; a mounted kernel writes that seldom.
    pub free_blocks: u64,
    /// The journal's inode, 0 without one.
    pub journal_inode: u32,
    /// The first of the list of inodes to be deleted, 0 for none.
    pub last_orphan: u32,
    /// The file that holds such inodes as well, 0 for none.
    pub orphan_file_inode: u32,
    /// The files of user, group and project quota, 0 for none.
    pub quota_inodes: [u32; 3],
    /// The block that keeps two machines from mounting it, 0 for none.
    pub mmp_block: u64,
    /// What checksums of metadata start from.
    pub checksum_seed: u32,
    /// The group that this copy lies in, as it says itself.
    pub group: u32,
    /// Its checksum, if it has one, matches.
    pub checksum_matches: bool,
}

/// What a group may begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHead {
    /// The superblock, or a copy.
    pub superblock: Option<u64>,
    /// Descriptors, and blocks reserved for more of them.
    pub descriptors: Range<u64>,
}

impl Superblock {
    /// Checks all that it says, against itself and against the source's size.
    pub(crate) fn parse(raw: &[u8; BYTES], source_bytes: u64) -> Result<Self, Ext4Error> {
        let f = Fields(raw);
        if f.le16(0x38) != MAGIC {
            let why = "there is no magic number where its superblock should be".into();
            return Err(Ext4Error::NotExt4 { why });
        }
        let features = Features::parse(f);
        features.check()?;
        let superblock = Self::read(f, features)?;
        superblock.check(f)?;
        let needs_bytes = superblock.size_bytes();
        if needs_bytes > source_bytes {
            let has_bytes = source_bytes;
            return Err(Ext4Error::Truncated {
                needs_bytes,
                has_bytes,
            });
        }
        Ok(superblock)
    }

    fn read(f: Fields<'_>, features: Features) -> Result<Self, Ext4Error> {
        let (log_block, log_cluster) = (f.le32(0x18), f.le32(0x1c));
        let ratio_log = match features.has(Feature::BIGALLOC) {
            true => log_cluster.checked_sub(log_block),
            false => Some(0),
        };
        let (Some(ratio_log), 0..=6, 0..=19) = (ratio_log, log_block, log_cluster) else {
            return Err(refuse(format!(
                "block size 2^{log_block} KiB, cluster size 2^{log_cluster} KiB"
            )));
        };
        let wide = features.has(Feature::BITS64);
        let high = |at| if wide { u64::from(f.le32(at)) << 32 } else { 0 };
        let (is_old, csum) = (f.le32(0x4c) == 0, features.has(Feature::METADATA_CSUM));
        let uuid = f.array(0x68);
        let per_group = if features.has(Feature::BIGALLOC) {
            f.le32(0x24)
        } else {
            f.le32(0x20)
        };
        let if_has = |feature, value| if features.has(feature) { value } else { 0 };
        Ok(Self {
            block_bytes: 1024 << log_block,
            cluster_blocks: 1 << ratio_log,
            blocks: u64::from(f.le32(0x04)) | high(0x150),
            first_block: u64::from(f.le32(0x14)),
            blocks_per_group: u64::from(per_group) << ratio_log,
            inodes: f.le32(0x00),
            inodes_per_group: f.le32(0x28),
            inode_bytes: if is_old { 128 } else { f.le16(0x58).into() },
            first_inode: if is_old { 11 } else { f.le32(0x54) },
            descriptor_bytes: if wide { f.le16(0xfe).into() } else { 32 },
            reserved_descriptor_blocks: f.le16(0xce).into(),
            first_meta_group: if_has(Feature::META_BG, f.le32(0x104)),
            backup_groups: [f.le32(0x24c), f.le32(0x250)],
            state: f.le16(0x3a),
            features,
            uuid,
            label: f
                .array::<16>(0x78)
                .into_iter()
                .take_while(|b| *b != 0)
                .collect(),
            mount_options: f
                .array::<64>(0x200)
                .into_iter()
                .take_while(|b| *b != 0)
                .collect(),
            free_blocks: u64::from(f.le32(0x0c)) | high(0x158),
            journal_inode: if_has(Feature::HAS_JOURNAL, f.le32(0xe0)),
            last_orphan: f.le32(0xe8),
            orphan_file_inode: if_has(Feature::ORPHAN_FILE, f.le32(0x280)),
            quota_inodes: [f.le32(0x240), f.le32(0x244), f.le32(0x26c)]
                .map(|inode| if_has(Feature::QUOTA, inode)),
            mmp_block: if features.has(Feature::MMP) {
                f.le64(0x168)
            } else {
                0
            },
            checksum_seed: match features.has(Feature::CSUM_SEED) {
                true => f.le32(0x270),
                false => crc32c(!0, &uuid),
            },
            group: f.le16(0x5a).into(),
            checksum_matches: !csum || f.le32(CHECKSUM_AT) == crc32c(!0, f.slice(0, CHECKSUM_AT)),
        })
    }

    fn check(&self, f: Fields<'_>) -> Result<(), Ext4Error> {
        let bits = u64::from(self.block_bytes) * 8;
        let clusters = self.blocks_per_group / u64::from(self.cluster_blocks);
        let first_wanted = u64::from(self.block_bytes == 1024 && self.cluster_blocks == 1);
        let blocks_max = cowslip_block::units::SIZE_BYTES_MAX / u64::from(self.block_bytes);
        let rules = [
            (
                self.first_block == first_wanted,
                "the first group does not start where it should",
            ),
            (
                (1..=bits).contains(&clusters),
                "more blocks in a group than its bitmap has bits",
            ),
            (self.first_block < self.blocks, "it has no blocks"),
            (self.blocks <= blocks_max, "it is larger than 1 PiB"),
            (
                (1..=bits).contains(&u64::from(self.inodes_per_group)),
                "more inodes in a group than its bitmap has bits",
            ),
            (
                self.inode_bytes.is_power_of_two()
                    && (128..=self.block_bytes).contains(&self.inode_bytes),
                "its inodes have no possible size",
            ),
            (
                self.descriptor_bytes.is_power_of_two()
                    && (32..=1024).contains(&self.descriptor_bytes)
                    && (self.descriptor_bytes >= 64 || !self.features.has(Feature::BITS64)),
                "its group descriptors have no possible size",
            ),
            (
                self.reserved_descriptor_blocks <= self.block_bytes / 4,
                "it reserves more descriptors than one block can list",
            ),
        ];
        if let Some((_, why)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(refuse(*why));
        }
        self.check_groups()?;
        if self.features.has(Feature::HAS_JOURNAL) && self.journal_inode == 0 {
            let device = f.le32(0xe4);
            let what = format!("its journal is on another device ({device:#x})");
            return Err(Ext4Error::unsupported(what));
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), Ext4Error> {
        let groups = (self.blocks - self.first_block).div_ceil(self.blocks_per_group);
        if groups > GROUPS_MAX {
            let (what, max) = (format!("{groups} groups"), GROUPS_MAX);
            return Err(Ext4Error::Limit { what, max });
        }
        if groups * u64::from(self.inodes_per_group) != u64::from(self.inodes) {
            return Err(refuse(format!(
                "{groups} groups of {} inodes are not {} inodes",
                self.inodes_per_group, self.inodes
            )));
        }
        if u64::from(self.descriptor_blocks()) >= self.blocks - self.first_block
            || self.first_meta_group > self.descriptor_blocks()
        {
            return Err(refuse("its group descriptors do not fit into it"));
        }
        Ok(())
    }

    /// Does it say that it was unmounted (or is under a journal), has no errors, and deletes no orphans just now?
    pub fn is_clean(&self) -> bool {
        self.state & (STATE_VALID | STATE_ERRORS | STATE_ORPHANS) == STATE_VALID
    }

    /// Bytes of the file system.
    pub fn size_bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }

    /// How many groups.
    pub fn groups(&self) -> u32 {
        let groups = (self.blocks - self.first_block).div_ceil(self.blocks_per_group);
        u32::try_from(groups).expect("checked against GROUPS_MAX")
    }

    /// The blocks of a group. The last may be shorter.
    pub fn group_blocks(&self, group: u32) -> Range<u64> {
        let start = self.first_block + u64::from(group) * self.blocks_per_group;
        start.min(self.blocks)..(start + self.blocks_per_group).min(self.blocks)
    }

    /// Blocks of one group's inode table.
    pub fn inode_table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * u64::from(self.inode_bytes))
            .div_ceil(self.block_bytes.into())
    }

    /// Is this a block of the file system, other than its first?
    pub fn has_block(&self, block: u64) -> bool {
        (self.first_block.max(1)..self.blocks).contains(&block)
    }

    /// Are all of these blocks of the file system?
    pub fn has_blocks(&self, start: u64, count: u64) -> bool {
        count > 0 && self.has_block(start) && count <= self.blocks - start
    }

    pub(crate) fn descriptors_per_block(&self) -> u32 {
        self.block_bytes / self.descriptor_bytes
    }

    /// Blocks that the descriptors of all groups take.
    pub(crate) fn descriptor_blocks(&self) -> u32 {
        self.groups().div_ceil(self.descriptors_per_block())
    }

    /// Does this group begin with a superblock?
    pub fn has_superblock(&self, group: u32) -> bool {
        if group == 0 {
            true
        } else if self.features.has(Feature::SPARSE_SUPER2) {
            self.backup_groups.contains(&group)
        } else {
            let is_power_of = |base: u32| {
                std::iter::successors(Some(base), |power| power.checked_mul(base))
                    .take_while(|power| *power <= group)
                    .any(|power| power == group)
            };
            group == 1
                || !self.features.has(Feature::SPARSE_SUPER)
                || [3, 5, 7].into_iter().any(is_power_of)
        }
    }

    /// Where a superblock in this group lies; block 0 may be the boot sector's.
    pub(crate) fn superblock_of(&self, group: u32) -> u64 {
        let start = self.first_block + u64::from(group) * self.blocks_per_group;
        if start == 0 && self.block_bytes == 1024 {
            1
        } else {
            start
        }
    }

    /// What this group begins with.
    pub fn head_of(&self, group: u32) -> GroupHead {
        let start = self.superblock_of(group);
        let superblock = self.has_superblock(group).then_some(start);
        let per_block = self.descriptors_per_block();
        let is_meta = self.features.has(Feature::META_BG);
        let own_block = group / per_block >= self.first_meta_group;
        let (at, count) = if is_meta && own_block {
            let has_descriptors = [0, 1, per_block - 1].contains(&(group % per_block));
            (
                start + u64::from(superblock.is_some()),
                u64::from(has_descriptors),
            )
        } else {
            let all = match is_meta {
                true => self.first_meta_group,
                false => self.descriptor_blocks() + self.reserved_descriptor_blocks,
            };
            (start + 1, if superblock.is_some() { all.into() } else { 0 })
        };
        GroupHead {
            superblock,
            descriptors: at..(at + count).min(self.blocks).max(at),
        }
    }

    /// Where block `number` of the descriptors lies, or its copy that goes with the superblock of group `copy`.
    pub(crate) fn descriptor_block(&self, number: u32, copy: u32) -> u64 {
        if !self.features.has(Feature::META_BG) || number < self.first_meta_group {
            return self.superblock_of(copy) + 1 + u64::from(number);
        }
        let group = number * self.descriptors_per_block();
        let group = if copy != 0 && group + 1 < self.groups() {
            group + 1
        } else {
            group
        };
        self.superblock_of(group) + u64::from(self.has_superblock(group))
    }

    /// The same layout? What a journal's copy of it must not change.
    pub(crate) fn lies_as(&self, other: &Self) -> bool {
        let layout = |s: &Self| {
            let sizes = (
                s.block_bytes,
                s.cluster_blocks,
                s.blocks,
                s.first_block,
                s.blocks_per_group,
            );
            (
                sizes,
                s.inodes,
                s.inodes_per_group,
                s.inode_bytes,
                s.descriptor_bytes,
            )
        };
        layout(self) == layout(other)
    }
}

fn refuse(why: impl Into<String>) -> Ext4Error {
    Ext4Error::damaged("the superblock", why)
}

/// The superblock to be used: the first, or else a copy that is whole.
pub(crate) fn find(source: &dyn Source, problems: &mut Problems) -> Result<Superblock, Ext4Error> {
    let read_error = |source| Ext4Error::Read {
        at: AT,
        bytes: BYTES as u64,
        source,
    };
    let source_bytes = source.size_bytes().map_err(read_error)?;
    if source_bytes < AT + BYTES as u64 {
        let why = format!("{source_bytes} bytes are too few for one");
        return Err(Ext4Error::NotExt4 { why });
    }
    let first = read_at(source, AT, source_bytes);
    match &first {
        Ok(superblock) if superblock.checksum_matches => return first,
        Ok(_) | Err(Ext4Error::NotExt4 { .. } | Ext4Error::Damaged { .. }) => {}
        Err(_) => return first,
    }
    let whole = |copy: &Superblock| copy.checksum_matches;
    if let Some(copy) = copies(source, source_bytes).find(whole) {
        let group = copy.group;
        problems.note(Problem::Superblock, || match &first {
            Ok(_) => format!(
                "the superblock's checksum does not match: the copy of group {group} is used"
            ),
            Err(error) => format!("{error}: the copy of group {group} is used"),
        });
        return Ok(copy);
    }
    if first.is_ok() {
        problems.note(Problem::Superblock, || {
            "the superblock's checksum does not match".into()
        });
    }
    first
}

fn read_at(source: &dyn Source, at: u64, source_bytes: u64) -> Result<Superblock, Ext4Error> {
    let mut raw = [0; BYTES];
    let read_error = |source| Ext4Error::Read {
        at,
        bytes: BYTES as u64,
        source,
    };
    source.read_at(at, &mut raw).map_err(read_error)?;
    Superblock::parse(&raw, source_bytes)
}

/// Copies where `mke2fs` puts them: at the start of groups as large as their bitmaps allow.
fn copies(source: &dyn Source, source_bytes: u64) -> impl Iterator<Item = Superblock> + '_ {
    let places = (0..=6).flat_map(|log| {
        let block_bytes = 1024u64 << log;
        let per_group = (block_bytes * 8).min(65528);
        [1, 3, 5, 7].map(|group| (block_bytes, group, u64::from(log == 0) + group * per_group))
    });
    places.filter_map(move |(block_bytes, group, block)| {
        let at = block * block_bytes;
        let there = at + BYTES as u64 <= source_bytes;
        let copy = there
            .then(|| read_at(source, at, source_bytes).ok())
            .flatten()?;
        let is_it = u64::from(copy.block_bytes) == block_bytes && u64::from(copy.group) == group;
        is_it.then_some(copy)
    })
}
