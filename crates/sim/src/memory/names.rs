//! [`Names`]: the entries of all directories, as they are and as they would survive.
//!
//! All directories share one list of changes, in order, because a rename between two directories is
//! one change of both. Per directory, changes become durable in the order in which they were made.
//!
//! Invariant: `durable`, with `unsynced` applied in order, is `now`.

use std::collections::{BTreeMap, BTreeSet};

use crate::choose::Choose;

/// A file or a directory, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Inode(pub(super) u64);

/// Where a name stands.
pub(super) type Place = (Inode, String);

/// Names that get, or lose, what they stand for, in one step.
#[derive(Clone, Debug)]
pub(super) struct Change(pub(super) Vec<(Place, Option<Inode>)>);

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    now: BTreeMap<Place, Inode>,
    durable: BTreeMap<Place, Inode>,
    unsynced: Vec<Change>,
}

impl Names {
    pub(super) fn get(&self, dir: Inode, name: &str) -> Option<Inode> {
        self.now.get(&(dir, name.to_owned())).copied()
    }

    pub(super) fn list(&self, dir: Inode) -> Vec<String> {
        let all = self.now.range((dir, String::new())..);
        let here = all.take_while(|((of, _), _)| *of == dir);
        here.map(|((_, name), _)| name.clone()).collect()
    }

    /// Has any name, as the process sees it?
    pub(super) fn has(&self, inode: Inode) -> bool {
        self.now.values().any(|named| *named == inode)
    }

    /// Could have a name again, whatever happens?
    pub(super) fn may_have(&self, inode: Inode) -> bool {
        let changed = self.unsynced.iter().flat_map(|change| &change.0);
        self.has(inode)
            || self.durable.values().any(|named| *named == inode)
            || changed.into_iter().any(|(_, named)| *named == Some(inode))
    }

    /// All names, as the process sees them.
    pub(super) fn all(&self) -> &BTreeMap<Place, Inode> {
        &self.now
    }

    pub(super) fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.unsynced.push(change);
    }

    /// Makes the changes of one directory durable; and, where one of them is a rename from or to
    /// another, what came before it there.
    pub(super) fn sync(&mut self, dir: Inode) {
        let mut dirs = BTreeSet::from([dir]);
        let mut keep: Vec<bool> = Vec::new();
        for change in self.unsynced.iter().rev() {
            let kept = change.dirs().any(|dir| dirs.contains(&dir));
            if kept {
                dirs.extend(change.dirs());
            }
            keep.push(kept);
        }
        for change in std::mem::take(&mut self.unsynced) {
            match keep.pop() {
                Some(true) => apply(&mut self.durable, &change),
                _ => self.unsynced.push(change),
            }
        }
    }

    /// The names after a power cut that lost all, or what is chosen, of what was not synced.
    pub(super) fn after_cut(&self, choose: Option<&mut dyn Choose>) -> Self {
        let mut left = self.durable.clone();
        if let Some(choose) = choose {
            for change in self.prefixes(choose) {
                apply(&mut left, change);
            }
        }
        Self {
            now: left.clone(),
            durable: left,
            unsynced: Vec::new(),
        }
    }

    /// As many of each directory's changes, from the first, as is chosen. One that is lost
    /// ends the prefix of every directory that it would have changed.
    fn prefixes(&self, choose: &mut dyn Choose) -> Vec<&Change> {
        let mut counts = BTreeMap::<Inode, u64>::new();
        for dir in self.unsynced.iter().flat_map(Change::dirs) {
            *counts.entry(dir).or_default() += 1;
        }
        let mut rest: BTreeMap<_, _> = counts
            .into_iter()
            .map(|(dir, count)| (dir, choose.up_to(count)))
            .collect();
        let mut kept = Vec::new();
        for change in &self.unsynced {
            if change.dirs().all(|dir| rest[&dir] > 0) {
                change
                    .dirs()
                    .for_each(|dir| *rest.entry(dir).or_default() -= 1);
                kept.push(change);
            } else {
                change.dirs().for_each(|dir| {
                    rest.insert(dir, 0);
                });
            }
        }
        kept
    }
}

impl Change {
    /// The directories that it changes, each once.
    fn dirs(&self) -> impl Iterator<Item = Inode> {
        let dirs: BTreeSet<_> = self.0.iter().map(|((dir, _), _)| *dir).collect();
        dirs.into_iter()
    }
}

fn apply(names: &mut BTreeMap<Place, Inode>, change: &Change) {
    for (place, inode) in &change.0 {
        match inode {
            Some(inode) => names.insert(place.clone(), *inode),
            None => names.remove(place),
        };
    }
}
