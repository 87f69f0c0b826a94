//! The features of a file system: which there are, and which are known here.
//!
//! Three words of bits. An unknown *compatible* one does not matter, an unknown *read-only compatible* one does not
//! matter to a reader (it is told), an unknown *incompatible* one is refused.

use std::fmt;

use crate::error::Ext4Error;
use crate::fields::Fields;

/// The three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features {
    /// What need not be known.
    pub compat: u32,
    /// What must be known.
    pub incompat: u32,
    /// What a writer must know.
    pub ro_compat: u32,
}

/// One feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// In the compatible word.
    Compat(u32),
    /// In the incompatible word.
    Incompat(u32),
    /// In the read-only compatible word.
    RoCompat(u32),
}

macro_rules! features {
    ($($name:ident = $word:ident($bit:literal), $text:literal;)*) => {
        impl Feature {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Self = Self::$word($bit);)*
        }

        /// All that are known here, with the names that e2fsprogs gives them.
        pub const KNOWN: &[(Feature, &str)] = &[$((Feature::$name, $text),)*];
    };
}

features! {
    DIR_PREALLOC = Compat(0x1), "dir_prealloc";
    IMAGIC_INODES = Compat(0x2), "imagic_inodes";
    HAS_JOURNAL = Compat(0x4), "has_journal";
    EXT_ATTR = Compat(0x8), "ext_attr";
    RESIZE_INODE = Compat(0x10), "resize_inode";
    DIR_INDEX = Compat(0x20), "dir_index";
    SPARSE_SUPER2 = Compat(0x200), "sparse_super2";
    FAST_COMMIT = Compat(0x400), "fast_commit";
    STABLE_INODES = Compat(0x800), "stable_inodes";
    ORPHAN_FILE = Compat(0x1000), "orphan_file";
    FILETYPE = Incompat(0x2), "filetype";
    RECOVER = Incompat(0x4), "needs_recovery";
    META_BG = Incompat(0x10), "meta_bg";
    EXTENTS = Incompat(0x40), "extent";
    BITS64 = Incompat(0x80), "64bit";
    MMP = Incompat(0x100), "mmp";
    FLEX_BG = Incompat(0x200), "flex_bg";
    EA_INODE = Incompat(0x400), "ea_inode";
    CSUM_SEED = Incompat(0x2000), "metadata_csum_seed";
    LARGEDIR = Incompat(0x4000), "large_dir";
    INLINE_DATA = Incompat(0x8000), "inline_data";
    ENCRYPT = Incompat(0x1_0000), "encrypt";
    CASEFOLD = Incompat(0x2_0000), "casefold";
    SPARSE_SUPER = RoCompat(0x1), "sparse_super";
    LARGE_FILE = RoCompat(0x2), "large_file";
    BTREE_DIR = RoCompat(0x4), "btree_dir";
    HUGE_FILE = RoCompat(0x8), "huge_file";
    GDT_CSUM = RoCompat(0x10), "uninit_bg";
    DIR_NLINK = RoCompat(0x20), "dir_nlink";
    EXTRA_ISIZE = RoCompat(0x40), "extra_isize";
    QUOTA = RoCompat(0x100), "quota";
    BIGALLOC = RoCompat(0x200), "bigalloc";
    METADATA_CSUM = RoCompat(0x400), "metadata_csum";
    READONLY = RoCompat(0x1000), "read-only";
    PROJECT = RoCompat(0x2000), "project";
    SHARED_BLOCKS = RoCompat(0x4000), "shared_blocks";
    VERITY = RoCompat(0x8000), "verity";
    ORPHAN_PRESENT = RoCompat(0x1_0000), "orphan_present";
}

/// Incompatible ones that are refused with a reason of their own.
const REFUSED: &[(u32, &str)] = &[
    (0x1, "it is compressed (the feature never came to Linux)"),
    (
        0x8,
        "it is the journal of another file system, not a file system",
    ),
    (0x1000, "its directories carry data of Lustre (dirdata)"),
];

impl Features {
    pub(crate) fn parse(superblock: Fields<'_>) -> Self {
        Self {
            compat: superblock.le32(0x5c),
            incompat: superblock.le32(0x60),
            ro_compat: superblock.le32(0x64),
        }
    }

    /// Does it have this one?
    pub fn has(self, feature: Feature) -> bool {
        match feature {
            Feature::Compat(bit) => self.compat & bit != 0,
            Feature::Incompat(bit) => self.incompat & bit != 0,
            Feature::RoCompat(bit) => self.ro_compat & bit != 0,
        }
    }

    /// The bits that are not known here.
    pub fn unknown(self) -> Self {
        KNOWN.iter().fold(self, |mut left, (feature, _)| {
            match feature {
                Feature::Compat(bit) => left.compat &= !bit,
                Feature::Incompat(bit) => left.incompat &= !bit,
                Feature::RoCompat(bit) => left.ro_compat &= !bit,
            }
            left
        })
    }

    /// Group descriptors have a checksum, and their hints about what is not initialised count.
    pub fn has_descriptor_checksums(self) -> bool {
        self.has(Feature::GDT_CSUM) || self.has(Feature::METADATA_CSUM)
    }

    pub(crate) fn check(self) -> Result<(), Ext4Error> {
        for (bit, why) in REFUSED {
            if self.incompat & bit != 0 {
                return Err(Ext4Error::unsupported(*why));
            }
        }
        let unknown = self.unknown().incompat;
        if unknown != 0 {
            let what = format!("incompatible features {unknown:#x} are not known to this version");
            return Err(Ext4Error::unsupported(what));
        }
        Ok(())
    }
}

/// Their names, as `dumpe2fs` lists them.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = KNOWN.iter().filter(|(feature, _)| self.has(*feature));
        for (number, (_, name)) in names.enumerate() {
            let space = if number == 0 { "" } else { " " };
            write!(f, "{space}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ones_are_refused_only_where_they_must_be() {
        let mut features = Features {
            compat: 0x8000_0004,
            incompat: 0x46,
            ro_compat: 0x4000_0001,
        };
        assert!(features.check().is_ok());
        assert_eq!(features.unknown().ro_compat, 0x4000_0000);
        assert_eq!(
            features.to_string(),
            "has_journal filetype needs_recovery extent sparse_super"
        );
        for (bit, why) in [
            (0x8, "journal of another"),
            (0x1000, "Lustre"),
            (0x4_0000, "0x40000"),
        ] {
            features.incompat = bit;
            let said = features.check().unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
