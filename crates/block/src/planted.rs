//! Bugs that the tests plant, to see that they would be found. Not in any release: without the feature `planted`, which
//! only `cowslip-sim` asks for, [`planted`] is a constant `false`, and the command refuses to be built with it.
//!
//! A bug is one `if planted(Bug::...)` beside the line that is right. `cargo xtask crashes --planted` switches them on
//! one after the other, and says how long each took to be found.

/// Is the feature on?
pub const IS_POSSIBLE: bool = cfg!(feature = "planted");

/// The list: what is wrong with each, and its name.
macro_rules! bugs {
    ($(#[doc = $what:literal] $bug:ident = $name:literal,)*) => {
        /// What can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $bug,)*
        }

        #[cfg(feature = "planted")]
        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// What it is called.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$bug => $what.trim_ascii(),)*
                }
            }
        }
    };
}

bugs! {
    // A cache.
    /// The journal says that a block is written before its bytes are in the file.
    MarkBeforeBytes = "mark-before-bytes",
    /// A write to part of a zeroed block takes the stale bytes under it for the rest.
    StaleUnderZero = "stale-under-zero",
    /// A write to part of a block reads the rest before it has the block's lock.
    PartBeforeLock = "part-before-lock",
    /// A trim takes the blocks that it touches, not only those inside it.
    TrimOutward = "trim-outward",
    /// A hole is punched where a block was zeroed when somebody last looked.
    LateHole = "late-hole",
    /// A flush syncs the bytes, and not the journal.
    JournalUnsynced = "journal-unsynced",
    /// A flush syncs the journal, which says that the bytes are on disk, and not the bytes.
    BytesUnsynced = "bytes-unsynced",
    /// A flush notes at its end, not at its beginning, that there is nothing left to flush.
    FlushNotedLate = "flush-noted-late",
    /// A flush vouches for marks that came after it had synced the bytes.
    FlushVouchesLate = "flush-vouches-late",
    /// A flush forgets the segment of the journal that a killed process left in a checkpoint.
    SegmentForgotten = "segment-forgotten",
    /// A checkpoint calls blocks written whose bytes are not on disk yet.
    CheckpointBeforeBytes = "checkpoint-before-bytes",
    /// After a power cut, marks are believed without a look at the bytes.
    MarksBelieved = "marks-believed",
    /// A frozen cache is called whole before it is flushed.
    ClosedBeforeFlush = "closed-before-flush",
    /// A frozen cache is called whole while a request is inside.
    FinishUndrained = "finish-undrained",
    // The stack.
    /// A flush forgets the caches that are frozen and not sealed.
    FlushForgetsFrozen = "flush-forgets-frozen",
    /// A read uses the stack that was loaded for its batch, before the last freeze.
    StackPerBatch = "stack-per-batch",
    /// A copy-up does not wait for who is inside a frozen cache.
    CopyUpUndrained = "copy-up-undrained",
    /// Who waits for those inside a frozen cache may come before it is closed, and does not close it.
    DrainLeavesOpen = "drain-leaves-open",
    /// A request that loaded the stack before a freeze gets into the frozen cache after it.
    WriteIntoFrozen = "write-into-frozen",
    // A session.
    /// A file that took another's place is not synced into its directory.
    ReplaceUnsynced = "replace-unsynced",
    /// What a killed process renamed is acted upon without a sync.
    RenameReliedOn = "rename-relied-on",
    /// A recovery makes a torn cache look whole before it says that its snapshot is dropped.
    TornLooksWhole = "torn-looks-whole",
    /// The list names a cache whose files are not there yet.
    ListBeforeCache = "list-before-cache",
    /// A sealed cache's files go before the list does without them.
    FilesBeforeList = "files-before-list",
    /// A seal does not put the new base in the list: the second generation is made over the first's.
    SecondGeneration = "second-generation",
    /// The store is not told which base the session needs from now on.
    BaseUnnoted = "base-unnoted",
    /// A seal that is taken up does not look whether it was committed.
    CommittedTwice = "committed-twice",
    // A store.
    /// A header is stored before the layer that it points at is on disk.
    HeaderBeforeData = "header-before-data",
    /// A name is put in place before its header is on disk.
    NameBeforeHeader = "name-before-header",
    /// A name's directory is not synced.
    NameUnsynced = "name-unsynced",
    /// The removal of a name is not synced.
    RemovalUnsynced = "removal-unsynced",
    /// A collection acts upon removals that are not synced.
    CollectionUnsynced = "collection-unsynced",
    /// A layer that is being sealed is under no lease.
    LayerUnleased = "layer-unleased",
    /// A compaction drops one run that a map reaches.
    RunDropped = "run-dropped",
    /// Frames are cached by their layer's place in the store, which another gets when one is removed.
    StaleFrame = "stale-frame",
}

/// Is this bug planted, in this thread?
#[cfg(not(feature = "planted"))]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use self::thread::{plant, planted, spare};

#[cfg(feature = "planted")]
mod thread {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Is this bug planted, in this thread?
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug in this thread until the answer is dropped.
    #[must_use]
    pub fn plant(bug: Bug) -> Planted {
        Planted(PLANTED.replace(Some(bug)))
    }

    /// Plants none for as long.
    #[must_use]
    pub fn spare() -> Planted {
        Planted(PLANTED.take())
    }

    /// Puts back what was planted before.
    #[derive(Debug)]
    pub struct Planted(Option<Bug>);

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(self.0);
        }
    }
}
