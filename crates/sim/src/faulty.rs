//! [`Faults`]: what becomes of calls to files and directories, other than what they ask for; and [`FaultyDir`], any
//! directory, under such rules.
//!
//! | fault                | below it            | the caller is told                                  |
//! |----------------------|---------------------|-----------------------------------------------------|
//! | [`Fault::Refused`]   | nothing is done     | an error                                            |
//! | [`Fault::Late`]      | it is done          | an error: the answer came too late                  |
//! | [`Fault::Twice`]     | it is done twice    | the second answer, as where the first one was lost  |
//! | [`Fault::Forgotten`] | nothing is done     | that it is done                                     |
//!
//! | rule                                         | befalls                                       |
//! |----------------------------------------------|-----------------------------------------------|
//! | `Rule::every(Call::Write, ENOSPC)`           | each write                                    |
//! | `Rule::once(Call::Sync, EIO)`                | the next sync of a file                       |
//! | `Rule::once(Call::Sync, EIO).after(2)`       | the third from now                            |
//! | `Rule::every(Call::Write, EIO).on("cache")`  | each write to a file with "cache" in its path |
//! | `Rule::any(Fault::Twice).on("store/")`       | the next call of any kind that it can, there  |
//!
//! A call is matched against the rules before it goes on to the directory below. Rules may be added and dropped while
//! other threads call. A path is that from the outermost directory, by which something was opened or created; it does
//! not follow renames. The outermost directory's own is empty.
//!
//! Not here: calls that do half their work; [`crate::MemoryFs`] with a capacity has short writes.

mod handles;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::handles::FaultyDir;

/// The disk is broken.
pub const EIO: i32 = 5;
/// The disk is full.
pub const ENOSPC: i32 = 28;

/// What becomes of a call: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With this errno.
    Refused(i32),
    /// With this errno.
    Late(i32),
    /// By whoever carries calls to a store that is far away.
    Twice,
    /// By a store that lies.
    Forgotten,
}

/// The kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after the call")]
pub enum Call {
    // Of a directory.
    Create,
    Open,
    CreateDir,
    OpenDir,
    /// All three; either name counts.
    Rename,
    Remove,
    List,
    SyncDir,
    Lock,
    // Of a file.
    Read,
    Write,
    Len,
    SetLen,
    Allocate,
    Punch,
    NextData,
    Sync,
    AllocatedBytes,
}

impl Call {
    /// Can it change something?
    fn changes(self) -> bool {
        use Call::{AllocatedBytes, Len, List, NextData, Open, OpenDir, Read};
        !matches!(
            self,
            Open | OpenDir | List | Read | Len | NextData | AllocatedBytes
        )
    }
}

/// Which calls something befalls, and what.
#[derive(Clone, Debug)]
pub struct Rule {
    /// All kinds, where none is said.
    call: Option<Call>,
    fault: Fault,
    path: String,
    /// Matching calls that go through before the first that it befalls.
    skip: u64,
    /// Calls that it befalls.
    left: u64,
}

impl Rule {
    /// One call of a kind is refused.
    pub fn once(call: Call, errno: i32) -> Self {
        Self {
            call: Some(call),
            ..Self::any(Fault::Refused(errno))
        }
    }

    /// All calls of a kind are refused.
    pub fn every(call: Call, errno: i32) -> Self {
        let left = u64::MAX;
        Self {
            left,
            ..Self::once(call, errno)
        }
    }

    /// One call of any kind that this can befall: what only looks is not done late or twice, nor refused for want of room.
    pub fn any(fault: Fault) -> Self {
        Self {
            call: None,
            fault,
            path: String::new(),
            skip: 0,
            left: 1,
        }
    }

    /// So many matching calls go through first.
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Only where the path contains this.
    pub fn on(self, path: &str) -> Self {
        let path = path.to_owned();
        Self { path, ..self }
    }

    /// Counts a call; does it befall this one?
    fn hits(&mut self, call: Call, paths: &[&str]) -> bool {
        let matches = match self.call {
            Some(wanted) => call == wanted,
            None => call.changes() || self.fault == Fault::Refused(EIO),
        };
        if !matches || !paths.iter().any(|path| path.contains(&self.path)) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let hit = self.left > 0;
        self.left = self.left.saturating_sub(1);
        hit
    }
}

/// The rules in force. A clone is the same set of rules.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    met: u64,
}

impl Faults {
    /// No rule: all goes well.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule. It counts calls from now on.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Drops all rules: all goes well from now on.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// How many calls something befell so far.
    pub fn met(&self) -> u64 {
        self.state().met
    }

    /// A call, and what the rules make of it. `pretend` answers where it is not made and said to be.
    fn call<T>(
        &self,
        call: Call,
        paths: &[&str],
        mut make: impl FnMut() -> io::Result<T>,
        pretend: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let error = io::Error::from_raw_os_error;
        match self.befalls(call, paths) {
            None => make(),
            Some(Fault::Refused(errno)) => Err(error(errno)),
            Some(Fault::Late(errno)) => make().and_then(|_| Err(error(errno))),
            Some(Fault::Twice) => {
                // What the first one gave is there while the second is made.
                let _first = make();
                make()
            }
            Some(Fault::Forgotten) => pretend(),
        }
    }

    fn befalls(&self, call: Call, paths: &[&str]) -> Option<Fault> {
        let mut state = self.state();
        // Every rule counts the call, also where it is another's.
        let mut fault = None;
        for rule in &mut state.rules {
            if rule.hits(call, paths) {
                fault.get_or_insert(rule.fault);
            }
        }
        state.met += u64::from(fault.is_some());
        fault
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
