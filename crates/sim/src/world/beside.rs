//! What another process does to the store in the middle of an operation: it begins between two operations on files. A
//! store that is slow does nothing else to who waits for it: time passes for others.

use std::sync::{Arc, Mutex, PoisonError};

use cowslip_snapshot::Store;
use cowslip_snapshot::gc::collect;

use super::{World, compact_all, done, name, open_store};
use crate::memory::MemoryFs;

/// What the other process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Other {
    Collect,
    Compact,
    /// Of this name.
    Remove(String),
}

impl Other {
    fn act(&self, store: &Store) -> Result<(), String> {
        match self {
            Self::Collect => done(collect(store, false, &mut |_, _| ())).map(drop),
            Self::Compact => compact_all(store),
            Self::Remove(text) => done(store.remove(&name(text))),
        }
    }

    /// It would wait for whoever was interrupted.
    fn would_wait(&self, disk: &MemoryFs) -> bool {
        disk.is_locked("roots.lock") || *self == Self::Compact && disk.is_locked("compact.lock")
    }
}

type Went = Arc<Mutex<Option<Result<(), String>>>>;

/// The other's turn, which comes or does not.
pub(super) struct Turn {
    disk: MemoryFs,
    went: Went,
}

impl Turn {
    /// No turn from here on; how it went, if it came.
    pub(super) fn ended(self) -> Option<Result<(), String>> {
        self.disk.interrupt(None);
        let mut went = self.went.lock().unwrap_or_else(PoisonError::into_inner);
        went.take()
    }
}

impl World {
    /// Lets another process have its turn, once so many operations on files were made.
    pub(super) fn beside(&self, after: u64, other: Other) -> Turn {
        let (disk, went) = (self.disk.clone(), Went::default());
        let turn = Turn {
            disk: disk.clone(),
            went: Arc::clone(&went),
        };
        let (root, host) = (Arc::clone(&self.root), Arc::clone(&self.host));
        let run = move || {
            if other.would_wait(&disk) {
                return false;
            }
            let done = open_store(&*root, &host).and_then(|store| other.act(&store));
            *went.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
            true
        };
        self.disk.interrupt(Some((after, Box::new(run))));
        turn
    }
}
