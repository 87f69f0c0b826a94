//! [`Disk`]: everything on one disk, its operation counter, and its power switch.
//!
//! Who may change what: the handles, under the one lock around this; each call starts with
//! [`Disk::operation`] or [`Disk::look`], which say EIO once the power is off.
//!
//! Invariants:
//! 1. Every inode that a name stands for, now or after a cut, is in `files` or `dirs`.
//! 2. An inode's `open` token is held by its handles alone, so its count says whether it is open.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;

use super::content::File;
use super::names::{Inode, Names};
use crate::choose::Choose;
use crate::faulty::EIO;

pub(super) const ROOT: Inode = Inode(0);

/// Held by every handle of an inode.
pub(super) type Open = Arc<()>;

/// What runs between two operations.
pub(super) struct Interrupt {
    /// Once so many have begun.
    pub(super) at: u64,
    pub(super) run: Box<dyn FnMut() -> bool + Send>,
}

impl Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an interrupt at operation {}", self.at)
    }
}

/// How whatever used the disk came to its end.
pub(super) enum End<'a> {
    /// It was killed, and the machine goes on.
    Kill,
    /// The power went: of what was not synced there is left what is chosen, or nothing.
    Cut(Option<&'a mut dyn Choose>),
}

fn reborrow<'a>(choose: &'a mut Option<&mut dyn Choose>) -> Option<&'a mut dyn Choose> {
    match choose {
        Some(choose) => Some(&mut **choose),
        None => None,
    }
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<Inode, (File, Open)>,
    pub(super) dirs: BTreeSet<Inode>,
    pub(super) names: Names,
    pub(super) locked: BTreeSet<Inode>,
    /// In pages.
    pub(super) capacity: Option<u64>,
    pub(super) operations: u64,
    /// The disk before each operation, if somebody wants to know.
    pub(super) moments: Option<Vec<Disk>>,
    pub(super) interrupt: Option<Interrupt>,
    #[cfg(feature = "shuttle")]
    pub(super) is_slow: bool,
    pub(super) cut_at: Option<u64>,
    pub(super) off: bool,
    inodes: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            dirs: BTreeSet::from([ROOT]),
            names: Names::default(),
            locked: BTreeSet::new(),
            capacity: None,
            operations: 0,
            moments: None,
            interrupt: None,
            #[cfg(feature = "shuttle")]
            is_slow: false,
            cut_at: None,
            off: false,
            inodes: ROOT.0,
        }
    }
}

impl Disk {
    /// The start of a call that can change something.
    pub(super) fn operation(&mut self) -> io::Result<()> {
        self.off |= self.cut_at.is_some_and(|n| self.operations >= n);
        self.look()?;
        self.operations += 1;
        if let Some(mut moments) = self.moments.take() {
            moments.push(self.after(End::Kill));
            self.moments = Some(moments);
        }
        Ok(())
    }

    /// The start of a call that changes nothing.
    pub(super) fn look(&self) -> io::Result<()> {
        match self.off {
            true => Err(io::Error::from_raw_os_error(EIO)),
            false => Ok(()),
        }
    }

    pub(super) fn new_inode(&mut self) -> Inode {
        self.inodes += 1;
        Inode(self.inodes)
    }

    pub(super) fn new_file(&mut self) -> Inode {
        let inode = self.new_inode();
        self.files.insert(inode, (File::default(), Open::default()));
        inode
    }

    pub(super) fn used_pages(&self) -> u64 {
        let alive =
            |inode: Inode, open: &Open| Arc::strong_count(open) > 1 || self.names.has(inode);
        let files = self
            .files
            .iter()
            .filter(|(inode, (_, open))| alive(**inode, open));
        files.map(|(_, (file, _))| file.pages()).sum()
    }

    pub(super) fn free_pages(&self) -> u64 {
        self.capacity
            .map_or(u64::MAX, |all| all.saturating_sub(self.used_pages()))
    }

    /// Forgets the files that nothing can reach any more.
    pub(super) fn collect(&mut self) {
        let names = &self.names;
        self.files
            .retain(|inode, (_, open)| Arc::strong_count(open) > 1 || names.may_have(*inode));
    }

    pub(super) fn after(&self, end: End<'_>) -> Self {
        let (kill, mut choose) = match end {
            End::Kill => (true, None),
            End::Cut(choose) => (false, choose),
        };
        let names = match kill {
            true => self.names.clone(),
            false => self.names.after_cut(reborrow(&mut choose)),
        };
        let reachable = self
            .files
            .iter()
            .filter(|(inode, _)| names.may_have(**inode));
        let mut left = |file: &File| match kill {
            true => file.clone(),
            false => file.after_cut(reborrow(&mut choose)),
        };
        let files = reachable.map(|(inode, (file, _))| (*inode, (left(file), Open::default())));
        Self {
            files: files.collect(),
            // Directories that no name leads to are no harm.
            dirs: self.dirs.clone(),
            capacity: self.capacity,
            inodes: self.inodes,
            names,
            ..Self::default()
        }
    }

    /// What a process would see of it.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (place, inode) in self.names.all() {
            place.hash(&mut hasher);
            inode.hash(&mut hasher);
            if let Some((file, _)) = self.files.get(inode) {
                file.digest(&mut hasher);
            }
        }
        hasher.finish()
    }
}
