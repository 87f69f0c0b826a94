//! [`FaultyDir`]: any directory, whose calls fail as a shared [`Faults`] says.
//!
//! A call is matched against the rules before it goes on to the directory below; one that is told
//! to fail does not reach it. Rules may be added and dropped while other threads call.
//!
//! | rule                                         | fails                                         |
//! |----------------------------------------------|-----------------------------------------------|
//! | `Rule::every(Call::Write, ENOSPC)`           | each write                                    |
//! | `Rule::once(Call::Sync, EIO)`                | the next sync of a file                       |
//! | `Rule::once(Call::Sync, EIO).after(2)`       | the third from now                            |
//! | `Rule::every(Call::Write, EIO).on("cache")`  | each write to a file with "cache" in its name |
//!
//! A file's name is the one that it was opened or created by; it does not follow renames. A
//! directory's is the one that it was opened by; the outermost has none.
//!
//! Not here: calls that do half their work; [`crate::MemoryFs`] with a capacity has short writes.

use std::any::Any;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowslip_block::files::{Access, Dir, File, Identity, Lock};

/// The disk is broken.
pub const EIO: i32 = 5;
/// The disk is full.
pub const ENOSPC: i32 = 28;

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

/// Which calls fail, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    call: Call,
    errno: i32,
    name: String,
    /// Matching calls that go through before the first that fails.
    skip: u64,
    /// Calls that fail.
    left: u64,
}

impl Rule {
    /// One call of a kind fails.
    pub fn once(call: Call, errno: i32) -> Self {
        Self {
            call,
            errno,
            name: String::new(),
            skip: 0,
            left: 1,
        }
    }

    /// All calls of a kind fail.
    pub fn every(call: Call, errno: i32) -> Self {
        let left = u64::MAX;
        Self {
            left,
            ..Self::once(call, errno)
        }
    }

    /// So many matching calls go through first.
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Only where the name contains this.
    pub fn on(self, name: &str) -> Self {
        let name = name.to_owned();
        Self { name, ..self }
    }

    /// Counts a call; does it fail?
    fn hits(&mut self, call: Call, names: &[&str]) -> bool {
        let named = names.iter().any(|name| name.contains(&self.name));
        if call != self.call || !named {
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
    failed: u64,
}

impl Faults {
    /// No rule: nothing fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule. It counts calls from now on.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Drops all rules: nothing fails any more.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// How many calls were made to fail so far.
    pub fn failed(&self) -> u64 {
        self.state().failed
    }

    fn check(&self, call: Call, names: &[&str]) -> io::Result<()> {
        let mut state = self.state();
        // Every rule counts the call, also where another makes it fail.
        let mut errno = None;
        for rule in &mut state.rules {
            if rule.hits(call, names) {
                errno.get_or_insert(rule.errno);
            }
        }
        match errno {
            Some(errno) => {
                state.failed += 1;
                Err(io::Error::from_raw_os_error(errno))
            }
            None => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory whose calls fail as told; so do those of what is opened through it.
#[derive(Debug)]
pub struct FaultyDir {
    inner: Arc<dyn Dir>,
    name: String,
    faults: Faults,
}

impl FaultyDir {
    /// Puts faults over a directory.
    pub fn new(inner: Arc<dyn Dir>, faults: &Faults) -> Self {
        Self {
            inner,
            name: String::new(),
            faults: faults.clone(),
        }
    }

    fn file(&self, name: &str, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile {
            inner,
            name: name.to_owned(),
            faults: self.faults.clone(),
        })
    }
}

/// The directory below, if this is one of ours.
fn below(dir: &dyn Dir) -> &dyn Dir {
    match dir.as_any().downcast_ref::<FaultyDir>() {
        Some(faulty) => &*faulty.inner,
        None => dir,
    }
}

impl Dir for FaultyDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.faults.check(Call::Create, &[name])?;
        Ok(self.file(name, self.inner.create(name)?))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.faults.check(Call::Open, &[name])?;
        Ok(self.file(name, self.inner.open(name, access)?))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        self.faults.check(Call::CreateDir, &[name])?;
        self.inner.create_dir(name)
    }

    fn open_dir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        self.faults.check(Call::OpenDir, &[name])?;
        Ok(Arc::new(Self {
            inner: self.inner.open_dir(name)?,
            name: name.to_owned(),
            faults: self.faults.clone(),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.check(Call::Rename, &[from, to])?;
        self.inner.rename(from, to)
    }

    fn rename_new(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        self.faults.check(Call::Rename, &[from, to])?;
        self.inner.rename_new(from, below(into), to)
    }

    fn rename_into(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        self.faults.check(Call::Rename, &[from, to])?;
        self.inner.rename_into(from, below(into), to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.faults.check(Call::Remove, &[name])?;
        self.inner.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.faults.check(Call::List, &[&self.name])?;
        self.inner.list()
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.check(Call::SyncDir, &[&self.name])?;
        self.inner.sync()
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn Lock>>> {
        self.faults.check(Call::Lock, &[name])?;
        self.inner.try_lock(name)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn File>,
    name: String,
    faults: Faults,
}

impl FaultyFile {
    fn check(&self, call: Call) -> io::Result<()> {
        self.faults.check(call, &[&self.name])
    }
}

impl File for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(Call::Read)?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check(Call::Write)?;
        self.inner.write_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.check(Call::Len)?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check(Call::SetLen)?;
        self.inner.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(Call::Allocate)?;
        self.inner.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(Call::Punch)?;
        self.inner.punch(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.check(Call::NextData)?;
        self.inner.next_data(offset)
    }

    fn next_written(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.check(Call::NextData)?;
        self.inner.next_written(offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.check(Call::Sync)?;
        self.inner.sync()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.check(Call::AllocatedBytes)?;
        self.inner.allocated_bytes()
    }
}

#[cfg(test)]
mod tests;
