//! [`MemoryFs`]: an in-memory file system that forgets what was not synced.
//!
//! One `MemoryFs` is one disk; it implements [`cowslip_block::files`] as a sparse POSIX file system
//! would. It keeps what a running process sees apart from what a power cut leaves:
//!
//! | of     | seen by the process | durable   | between them                 |
//! |--------|---------------------|-----------|------------------------------|
//! | a file | `content::File` now | `durable` | changes, until a file's sync |
//! | a name | `names::Names` now  | `durable` | changes, until a `Dir::sync` |
//!
//! ```text
//! MemoryFs::root -> handles (Dir, File) -> disk: one lock, counts operations, knows the cut
//!                                            -> content: one file's pages
//!                                            -> names: all directories' entries
//! ```
//!
//! Rules:
//! 1. Every call that can change something, a sync and a lock too, is one operation, numbered from
//!    0 in the order of arrival, whether it succeeds or not (one with arguments that no file can
//!    have does not arrive).
//! 2. With [`MemoryFs::cut_after`]`(n)`, operations below `n` happen. Operation `n` does not; it and
//!    every later call of any kind fail with EIO.
//! 3. [`MemoryFs::after_cut`] is the disk that the next boot finds; it does not touch this one, so
//!    one cut can be looked at under many seeds.
//! 4. Room is counted by pages of 4 KiB, of files that have a name or are open.
//!
//! 5. While [`MemoryFs::record`] is on, the disk is kept as it is before each operation.
//!
//! Not here: calls that fail on a sound disk ([`crate::faulty`]); permissions, times, links; room for names.

mod content;
mod disk;
mod handles;
mod names;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowslip_block::files::Dir;

use crate::choose::Odometer;
use crate::seeded::Seeded;
use disk::{Disk, End, Interrupt};

/// The unit of room, and of what a cut keeps or loses.
pub const PAGE_BYTES: usize = 4096;
/// What a disk writes wholly or not at all: a write to a page may be torn between two.
pub const SECTOR_BYTES: usize = 512;

/// What a cut does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// All of it is lost.
    Unsynced,
    /// Nothing is lost: the process was killed, the machine goes on. What was not synced is
    /// still not synced, and a later cut may lose it.
    Nothing,
    /// The seed decides:
    /// - each write and each punch, page by page, is kept or lost on its own, a later one also
    ///   without an earlier one of the same page; of a write, its first or its last sectors may be kept;
    /// - changes of a file's length are kept up to some point, in order;
    /// - so are the changes of a directory's names; a rename between two directories happens in
    ///   both or in neither.
    Some(u64),
}

/// One disk in memory. A clone is the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryFs(Arc<Mutex<Disk>>);

impl MemoryFs {
    /// An empty disk without end.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk with room for so many bytes, in whole pages.
    pub fn with_capacity(bytes: u64) -> Self {
        let fs = Self::new();
        fs.disk().capacity = Some(bytes / PAGE_BYTES as u64);
        fs
    }

    /// The root directory.
    pub fn root(&self) -> Arc<dyn Dir> {
        handles::root(self.clone())
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// The power goes off at operation `n` (rule 2). A number that has passed already cuts at
    /// the next operation.
    pub fn cut_after(&self, n: u64) {
        self.disk().cut_at = Some(n);
    }

    /// Is the power off?
    pub fn is_cut(&self) -> bool {
        self.disk().off
    }

    /// The room in use, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.disk().used_pages() * PAGE_BYTES as u64
    }

    /// The disk as the next boot finds it: nothing open, no lock held, operations from 0.
    pub fn after_cut(&self, forget: Forget) -> Self {
        let disk = self.disk();
        Self::holding(match forget {
            Forget::Unsynced => disk.after(End::Cut(None)),
            Forget::Nothing => disk.after(End::Kill),
            Forget::Some(seed) => disk.after(End::Cut(Some(&mut Seeded::new(seed)))),
        })
    }

    /// Every disk that a cut may leave, one after the other, some of them more than once; at most so many.
    /// Says whether those were all.
    pub fn every_cut(&self, most: usize, each: &mut dyn FnMut(Self)) -> bool {
        let disk = self.disk();
        let mut odometer = Odometer::default();
        for _ in 0..most {
            each(Self::holding(disk.after(End::Cut(Some(&mut odometer)))));
            if !odometer.advance() {
                return true;
            }
        }
        false
    }

    /// Keeps the disk as it is before each operation from now on.
    pub fn record(&self) {
        self.disk().moments = Some(Vec::new());
    }

    /// The disks that were kept, as they would be for a process that was killed then and there; goes on
    /// keeping.
    pub fn moments(&self) -> Vec<Self> {
        let mut disk = self.disk();
        let moments = disk.moments.as_mut().map(std::mem::take);
        moments.into_iter().flatten().map(Self::holding).collect()
    }

    /// Has something run once so many more operations have begun, between two of them, until it answers that
    /// it has done what it wanted. It may use the disk itself.
    pub fn interrupt(&self, what: Option<(u64, Box<dyn FnMut() -> bool + Send>)>) {
        let mut disk = self.disk();
        let due = |after| disk.operations + after;
        disk.interrupt = what.map(|(after, run)| Interrupt {
            at: due(after),
            run,
        });
    }

    /// Other threads have their turns before each call to a file of this disk.
    #[cfg(feature = "shuttle")]
    pub(crate) fn be_slow(&self) {
        self.disk().is_slow = true;
    }

    fn take_time(&self) {
        #[cfg(feature = "shuttle")]
        if self.disk().is_slow {
            crate::schedules::turn();
        }
    }

    /// The disk, for one more operation.
    fn operate(&self) -> io::Result<MutexGuard<'_, Disk>> {
        self.take_time();
        let mut disk = self.disk();
        let now = disk.operations;
        if let Some(mut interrupt) = disk.interrupt.take_if(|i| i.at <= now) {
            drop(disk);
            let is_done = (interrupt.run)();
            disk = self.disk();
            if !is_done {
                disk.interrupt = Some(interrupt);
            }
        }
        disk.operation()?;
        Ok(disk)
    }

    /// Is the lock taken that a file of this name, in any directory, stands for?
    pub fn is_locked(&self, name: &str) -> bool {
        let disk = self.disk();
        let mut named = disk.names.all().iter().filter(|((_, n), _)| n == name);
        named.any(|(_, inode)| disk.locked.contains(inode))
    }

    /// A number for all that a process would see on it.
    pub fn digest(&self) -> u64 {
        self.disk().digest()
    }

    fn holding(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    /// The one lock. Nothing that holds it can panic halfway through a change that matters.
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
