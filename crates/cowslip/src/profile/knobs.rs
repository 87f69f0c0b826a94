//! [`KNOBS`]: all that can be set about an ext4 that bears on what is written, each with one line of why.
//!
//! A risk is what somebody may lose who did nothing wrong: a guest that synced its files, a host that took its
//! snapshot while the guest ran.

/// One thing that can be set.
#[derive(Debug)]
pub(crate) struct Knob {
    pub(crate) name: &'static str,
    /// What one hopes of it.
    pub(crate) why: &'static str,
    /// For mkfs.ext4: option letter and value.
    pub(crate) mkfs: &'static [(char, &'static str)],
    /// For mount, separated by commas.
    pub(crate) mount: &'static str,
    /// What may be lost by it; nothing where it is as safe as ext4 is without it.
    pub(crate) risk: Option<&'static str>,
}

/// A knob of mkfs.ext4.
const fn mkfs(
    name: &'static str,
    mkfs: &'static [(char, &'static str)],
    why: &'static str,
) -> Knob {
    Knob {
        name,
        why,
        mkfs,
        mount: "",
        risk: None,
    }
}

/// A knob of mount.
const fn mount(name: &'static str, mount: &'static str, why: &'static str) -> Knob {
    Knob {
        name,
        why,
        mkfs: &[],
        mount,
        risk: None,
    }
}

impl Knob {
    const fn risky(self, risk: &'static str) -> Self {
        Self {
            risk: Some(risk),
            ..self
        }
    }
}

/// The features of ext4 as e2fsprogs 1.47 and Debian 12 make it, said one by one: newer ones say others.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
    large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// All there are.
pub(crate) const KNOBS: &[Knob] = &[
    // What mkfs.ext4 writes, and what it leaves to the first mount.
    mkfs("features", &[('O', FEATURES), ('i', "16384"), ('I', "256")], "the same file system, whichever e2fsprogs makes it"),
    mkfs("lazy-init", &[('E', "lazy_itable_init=1,lazy_journal_init=1,discard")], "the inode tables and the journal are zeroed by the guest, after its first mount: writes of zeros"),
    mkfs("no-lazy-init", &[('E', "lazy_itable_init=0,lazy_journal_init=0,discard")], "they are zeroed at once, which in a sparse file is a hole: the guest has nothing left to do"),
    mount("noinit-itable", "noinit_itable", "the guest never zeroes the rest of the inode tables"),
    // The journal.
    mkfs("journal=4M", &[('J', "size=4")], "the journal goes round in 4 MiB, so a diff holds at most those"),
    mkfs("journal=16M", &[('J', "size=16")], "the same with 16 MiB, for guests that write much metadata at once"),
    mkfs("journal=64M", &[('J', "size=64")], "more room, fewer checkpoints: metadata is written in place less often"),
    mkfs("no-journal", &[('O', "^has_journal")], "no copy of the metadata in a journal")
        .risky("after a crash, or in a snapshot taken without a freeze, the file system may be damaged beyond what e2fsck mends"),
    mkfs("fast-commit", &[('O', "fast_commit")], "an fsync writes what changed, not whole blocks of metadata"),
    mount("commit=1", "commit=1", "the journal commits each second: less to lose, more blocks written"),
    mount("commit=30", "commit=30", "the journal commits each 30 seconds: what is rewritten meanwhile is written once")
        .risky("what was not synced for 30 seconds is lost with a crash, instead of 5"),
    mount("commit=300", "commit=300", "the same with five minutes")
        .risky("what was not synced for five minutes is lost with a crash, instead of 5 seconds"),
    mount("data=writeback", "data=writeback", "data need not be written before the metadata that points at it")
        .risky("after a crash a file may hold what its blocks held before: zeros, or what another file deleted"),
    mount("data=journal", "data=journal", "data go through the journal as well"),
    mount("journal-async-commit", "journal_async_commit,data=writeback", "a commit does not wait for the blocks that it commits; not possible with data=ordered")
        .risky("as data=writeback; and damage in the middle of the journal can pass for its end"),
    mkfs("orphan-file", &[('O', "orphan_file")], "deleted files that are still open are listed in a file, not through the superblock"),
    // Where things lie.
    mkfs("packed-meta", &[('E', "packed_meta_blocks=1")], "bitmaps, inode tables and journal lie side by side at the start"),
    mkfs("flex-bg=64", &[('G', "64")], "the metadata of 64 groups lie side by side, instead of 16"),
    mkfs("bigalloc", &[('O', "bigalloc"), ('C', "16384")], "room is handed out by 16 KiB: fewer bitmaps and extents"),
    mkfs("block=1K", &[('b', "1024")], "blocks of 1 KiB: small files share a block of the device"),
    mkfs("sparse-super2", &[('O', "sparse_super2")], "two copies of the superblock and the descriptors, not one in every few groups"),
    mkfs("no-resize-inode", &[('O', "^resize_inode")], "no room kept for descriptors of a larger device"),
    mkfs("reserved=0", &[('m', "0")], "no room kept for root: nobody else is in a sandbox"),
    // What an inode is.
    mkfs("inline-data", &[('O', "inline_data")], "files and directories of some 100 bytes lie in their inode"),
    mkfs("inode=128", &[('I', "128")], "32 inodes in a block instead of 16; times in whole seconds, until 2038, no attributes in the inode"),
    mkfs("inode=1K+inline-data", &[('I', "1024"), ('O', "inline_data")], "files of up to some 900 bytes lie in their inode"),
    mkfs("inode-ratio=4K", &[('i', "4096")], "an inode for each 4 KiB: many small files fit, the tables are four times as large"),
    mkfs("inode-ratio=64K", &[('i', "65536")], "an inode for each 64 KiB: small tables"),
    // Other features.
    mkfs("no-64bit", &[('O', "^64bit")], "group descriptors of 32 bytes instead of 64"),
    mkfs("no-dir-index", &[('O', "^dir_index,^dir_nlink")], "directories without a tree of hashes"),
    mkfs("no-metadata-csum", &[('O', "^metadata_csum")], "no checksums in the metadata: a change of one word is a change of one word")
        .risky("damage of the metadata passes unnoticed"),
    // How it is mounted.
    mount("discard", "discard", "the device is told what is freed, as it is freed"),
    mount("nodiscard", "nodiscard", "it is told by fstrim alone"),
    mount("noatime", "noatime", "reading writes nothing"),
    mount("lazytime", "lazytime", "times alone are written when the inode is, or once a day"),
    mount("nodelalloc", "nodelalloc", "room is found when a file is written, not when it is written out: what is deleted soon has had its blocks"),
    mount("noauto-da-alloc", "noauto_da_alloc", "a file that takes another's name is not written out with it")
        .risky("after a crash a file that was replaced without fsync may be empty"),
];
