//! [`Problems`]: what is wrong inside a file system that can be read all the same.
//!
//! Every one is counted; the first few are told in words. Nothing here ends a pass.

use std::collections::BTreeMap;
use std::fmt;

use crate::limits::EXAMPLES_MAX;

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Problem {
    /// The superblock at the start cannot be used, or its checksum does not match.
    Superblock,
    /// A feature that a reader need not know, and this one does not.
    UnknownFeature,
    /// The checksum of a group descriptor does not match.
    DescriptorChecksum,
    /// A group descriptor points outside the file system, or at another's inode table.
    Descriptor,
    /// The checksum of a bitmap does not match.
    BitmapChecksum,
    /// The checksum of an inode does not match.
    InodeChecksum,
    /// An inode that cannot be, or blocks of one that are outside the file system.
    Inode,
    /// The checksum of a block of an extent tree does not match.
    ExtentChecksum,
    /// A block of an extent tree, or an indirect block, that cannot be, or that two point at.
    Tree,
    /// A directory block that cannot be, or that two directories have.
    Directory,
    /// Extended attributes that cannot be.
    Xattr,
    /// The list of orphans leads in a circle, or to an inode that is not there.
    Orphans,
    /// The journal cannot be read, or not in whole.
    Journal,
    /// The journal holds fast commits, which the replayed view does not apply.
    FastCommit,
}

/// What is wrong, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    counts: BTreeMap<Problem, u64>,
    examples: Vec<String>,
}

impl Problems {
    /// Nothing at all?
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many of one kind.
    pub fn count(&self, problem: Problem) -> u64 {
        self.counts.get(&problem).copied().unwrap_or(0)
    }

    /// Each kind that there is, with its number.
    pub fn iter(&self) -> impl Iterator<Item = (Problem, u64)> + '_ {
        self.counts
            .iter()
            .map(|(problem, count)| (*problem, *count))
    }

    /// The first few, in words.
    pub fn examples(&self) -> &[String] {
        &self.examples
    }

    /// All of these as well.
    pub fn merge(&mut self, other: Self) {
        for (problem, count) in other.counts {
            *self.counts.entry(problem).or_default() += count;
        }
        let room = EXAMPLES_MAX - self.examples.len();
        self.examples.extend(other.examples.into_iter().take(room));
    }

    pub(crate) fn note(&mut self, problem: Problem, what: impl FnOnce() -> String) {
        *self.counts.entry(problem).or_default() += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what());
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::UnknownFeature => "unknown feature",
            Self::DescriptorChecksum => "group descriptor checksum",
            Self::Descriptor => "group descriptor",
            Self::BitmapChecksum => "bitmap checksum",
            Self::InodeChecksum => "inode checksum",
            Self::Inode => "inode",
            Self::ExtentChecksum => "extent block checksum",
            Self::Tree => "block tree",
            Self::Directory => "directory",
            Self::Xattr => "extended attributes",
            Self::Orphans => "orphans",
            Self::Journal => "journal",
            Self::FastCommit => "fast commits",
        })
    }
}
