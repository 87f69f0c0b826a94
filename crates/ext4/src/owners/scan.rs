//! The pass over layout and inode tables that collects claims.
//!
//! An inode is in use if it has names, or is an orphan, or is one of those that never have names: the list
//! of bad blocks and the journal. What inodes not in use still list means nothing.

use std::collections::HashMap;
use std::ops::Range;

use roaring::RoaringBitmap;

use crate::error::Ext4Error;
use crate::features::Feature;
use crate::file_system::FileSystem;
use crate::inode::{self, BAD_BLOCKS, Flag, Inode, Kind, ROOT};
use crate::inode_table::Raw;
use crate::mapping::{Piece, Seen, Walk};
use crate::owners::claims::Claims;
use crate::owners::fill::{bit, bitmap_is_whole};
use crate::owners::{Disagreements, Owner};
use crate::problems::{Problem, Problems};
use crate::xattr;

pub(super) struct Scan<'f, 'a> {
    fs: &'f FileSystem<'a>,
    orphans: RoaringBitmap,
    /// Of each inode that holds a large attribute, the first that has the attribute.
    holders: HashMap<u32, u32>,
    seen: Seen,
    pub(super) claims: Claims,
    pub(super) disagreements: Disagreements,
    pub(super) problems: Problems,
}

impl<'f, 'a> Scan<'f, 'a> {
    pub(super) fn new(fs: &'f FileSystem<'a>) -> Result<Self, Ext4Error> {
        let mut problems = Problems::default();
        let orphans = fs.orphans(&mut problems)?;
        Ok(Self {
            fs,
            orphans,
            holders: HashMap::new(),
            seen: Seen::default(),
            claims: Claims::default(),
            disagreements: Disagreements::default(),
            problems,
        })
    }

    pub(super) fn all(&mut self, progress: &mut dyn FnMut(u32)) -> Result<(), Ext4Error> {
        let sound = self.fs.sound_tables(&mut self.problems);
        for (group, sound) in (0..self.fs.superblock().groups()).zip(sound) {
            self.layout(group, sound)?;
            if sound {
                self.inodes(group)?;
            }
            progress(group + 1);
        }
        let holders = &self.holders;
        self.claims.hand_over(&|owner| match owner {
            Owner::Xattr { inode } => holders.get(&inode).map(|&inode| Owner::Xattr { inode }),
            _ => None,
        });
        Ok(())
    }

    /// What a group is made of.
    fn layout(&mut self, group: u32, has_table: bool) -> Result<(), Ext4Error> {
        let (sb, descriptor) = (self.fs.superblock(), self.fs.descriptor(group));
        let head = sb.head_of(group);
        if let Some(at) = head.superblock {
            self.claims.push(at..at + 1, Owner::Superblock)?;
        }
        if group == 0 {
            // The boot sector, and what may lie behind it.
            self.claims
                .push(0..sb.superblock_of(0), Owner::Superblock)?;
            if sb.has_block(sb.mmp_block) {
                self.claims
                    .push(sb.mmp_block..sb.mmp_block + 1, Owner::Superblock)?;
            }
        }
        self.claims.push(head.descriptors, Owner::Descriptors)?;
        for bitmap in [descriptor.block_bitmap, descriptor.inode_bitmap] {
            if sb.has_block(bitmap) {
                self.claims.push(bitmap..bitmap + 1, Owner::Bitmap)?;
            }
        }
        if has_table {
            let at = descriptor.inode_table;
            self.claims
                .push(at..at + sb.inode_table_blocks(), Owner::InodeTable)?;
        }
        Ok(())
    }

    fn inodes(&mut self, group: u32) -> Result<(), Ext4Error> {
        let sb = self.fs.superblock();
        let first = group * sb.inodes_per_group + 1;
        let bits = self.inode_bits(group)?;
        self.fs.scan_table(group, &mut |raw: Raw<'_>| {
            let number = raw.number;
            let never_named = number == BAD_BLOCKS || number == sb.journal_inode;
            let in_use = inode::raw_links(raw.bytes) > 0 || self.orphans.contains(number);
            if number >= sb.first_inode
                && let Some(bits) = &bits
            {
                let says = bit(bits, (number - first).into());
                self.disagreements.live_but_free_inodes += u64::from(in_use && !says);
                self.disagreements.dead_but_used_inodes += u64::from(!in_use && says);
            }
            if in_use || never_named {
                self.inode(&Inode::parse(number, raw.bytes, sb))?;
            }
            Ok(())
        })
    }

    fn inode_bits(&mut self, group: u32) -> Result<Option<Vec<u8>>, Ext4Error> {
        let (sb, descriptor) = (self.fs.superblock(), self.fs.descriptor(group));
        let at = descriptor.inode_bitmap;
        if !descriptor.has_inode_bitmap || !sb.has_block(at) {
            if descriptor.has_inode_bitmap {
                self.problems.note(Problem::Descriptor, || {
                    format!(
                        "the inode bitmap of group {group} lies outside the file system, at {at}"
                    )
                });
            }
            return Ok(None);
        }
        let bits = self.fs.view().block(at)?;
        let count = sb.inodes_per_group.into();
        if !bitmap_is_whole(self.fs, &bits, count, descriptor.inode_bitmap_checksum) {
            self.problems.note(Problem::BitmapChecksum, || {
                format!("the checksum of the inode bitmap of group {group} does not match")
            });
        }
        Ok(Some(bits))
    }

    fn inode(&mut self, inode: &Inode) -> Result<(), Ext4Error> {
        let number = inode.number;
        if !inode.checksum_matches {
            self.problems.note(Problem::InodeChecksum, || {
                format!("the checksum of inode {number} does not match")
            });
        }
        let role = self.role(inode);
        self.attributes(inode, role)?;
        let (claims, journal) = (&mut self.claims, self.fs.journal());
        let is_journal = number == self.fs.superblock().journal_inode;
        let visit = &mut |piece| match piece {
            Piece::Tree { block } => {
                let owner = match role {
                    Owner::Orphan { .. } | Owner::Special { .. } => role,
                    _ => Owner::ExtentTree { inode: number },
                };
                claims.push(block..block + 1, owner)
            }
            Piece::Data {
                logical,
                start,
                count,
                ..
            } if is_journal => {
                let live = journal.map_or(&[][..], |journal| &journal.live);
                journal_run(claims, live, logical, start, count)
            }
            Piece::Data { start, count, .. } => claims.push(start..start + count, role),
        };
        let (seen, problems) = (&mut self.seen, &mut self.problems);
        Walk {
            fs: self.fs,
            inode,
            seen,
            problems,
            visit,
        }
        .run()
    }

    /// Whose the data of an inode is.
    fn role(&self, inode: &Inode) -> Owner {
        let (sb, number) = (self.fs.superblock(), inode.number);
        let is_special = (number < sb.first_inode && number != ROOT)
            || number == sb.orphan_file_inode
            || sb.quota_inodes.contains(&number);
        if is_special {
            Owner::Special { inode: number }
        } else if inode.links == 0 {
            Owner::Orphan { inode: number }
        } else if inode.has(Flag::EaInode) {
            Owner::Xattr { inode: number }
        } else if inode.kind() == Kind::Directory {
            Owner::Directory { inode: number }
        } else {
            Owner::File { inode: number }
        }
    }

    /// Its block of attributes, and the inodes that hold large ones.
    fn attributes(&mut self, inode: &Inode, role: Owner) -> Result<(), Ext4Error> {
        let sb = self.fs.superblock();
        let mut holders = Vec::new();
        let mut note = |entry: xattr::Entry<'_>| {
            if entry.value_inode != 0 && entry.value_inode <= sb.inodes {
                holders.push(entry.value_inode);
            }
        };
        if sb.features.has(Feature::EA_INODE) {
            xattr::in_inode(inode).for_each(&mut note);
        }
        let at = inode.xattr_block;
        if at != 0 {
            let is_first = !sb.has_block(at) || self.seen.first_time(at);
            let block = if is_first {
                self.fs.xattr_block(inode, &mut self.problems)?
            } else {
                None
            };
            if let Some(block) = block {
                let owner = match role {
                    Owner::Orphan { .. } => role,
                    _ => Owner::Xattr {
                        inode: inode.number,
                    },
                };
                self.claims.push(at..at + 1, owner)?;
                xattr::in_block(&block).for_each(&mut note);
            }
        }
        for holder in holders {
            self.holders.entry(holder).or_insert(inode.number);
        }
        Ok(())
    }
}

/// A run of the journal, cut where it goes from dead to live and back. `live` is in order.
fn journal_run(
    claims: &mut Claims,
    live: &[Range<u64>],
    logical: u64,
    start: u64,
    count: u64,
) -> Result<(), Ext4Error> {
    let (mut at, end) = (logical, logical.saturating_add(count));
    let shift = |at: u64| start + (at - logical);
    for range in live {
        let from = range.start.clamp(at, end);
        let to = range.end.clamp(from, end);
        claims.push(shift(at)..shift(from), Owner::Journal { live: false })?;
        claims.push(shift(from)..shift(to), Owner::Journal { live: true })?;
        at = to;
    }
    claims.push(shift(at)..shift(end), Owner::Journal { live: false })
}
