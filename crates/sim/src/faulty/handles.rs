//! [`FaultyDir`], and the files that are opened through it: each call goes by the rules.

use std::any::Any;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, File, Identity, Lock};

use super::{Call, Faults};

/// A directory whose calls go by the rules; so do those of what is opened through it.
#[derive(Debug)]
pub struct FaultyDir {
    inner: Arc<dyn Dir>,
    path: String,
    faults: Faults,
}

impl FaultyDir {
    /// Puts rules over a directory.
    pub fn new(inner: Arc<dyn Dir>, faults: &Faults) -> Self {
        Self {
            inner,
            path: String::new(),
            faults: faults.clone(),
        }
    }

    fn path_of(&self, name: &str) -> String {
        match &*self.path {
            "" => name.to_owned(),
            path => format!("{path}/{name}"),
        }
    }

    fn file(&self, name: &str, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile {
            inner,
            path: self.path_of(name),
            faults: self.faults.clone(),
        })
    }

    /// A call that is about one name.
    fn named<T>(&self, call: Call, name: &str, make: impl FnMut() -> io::Result<T>) -> io::Result<T>
    where
        T: Default,
    {
        let pretend = || Ok(T::default());
        self.faults
            .call(call, &[&self.path_of(name)], make, pretend)
    }

    /// A rename. The directory below the other, and its path, if that is one of ours.
    fn rename_to(
        &self,
        (from, into, to): (&str, &dyn Dir, &str),
        mut rename: impl FnMut(&dyn Dir) -> io::Result<()>,
    ) -> io::Result<()> {
        let (below, to) = match into.as_any().downcast_ref::<Self>() {
            Some(other) => (&*other.inner, other.path_of(to)),
            None => (into, to.to_owned()),
        };
        let paths = [&*self.path_of(from), &*to];
        self.faults
            .call(Call::Rename, &paths, || rename(below), || Ok(()))
    }
}

impl Dir for FaultyDir {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        // It is open, and has no name.
        let pretend = || {
            let file = self.inner.create(name)?;
            self.inner.remove(name).map(|()| file)
        };
        let make = || self.inner.create(name);
        let created = self
            .faults
            .call(Call::Create, &[&self.path_of(name)], make, pretend);
        Ok(self.file(name, created?))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.named(Call::Open, name, || Ok(()))?;
        Ok(self.file(name, self.inner.open(name, access)?))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        self.named(Call::CreateDir, name, || self.inner.create_dir(name))
    }

    fn open_dir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        self.named(Call::OpenDir, name, || Ok(()))?;
        Ok(Arc::new(Self {
            inner: self.inner.open_dir(name)?,
            path: self.path_of(name),
            faults: self.faults.clone(),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_to((from, self, to), |_| self.inner.rename(from, to))
    }

    fn rename_new(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        let mut done = false;
        self.rename_to((from, into, to), |into| {
            if done {
                // Where it is sent again it is a hard link, which finds the name taken.
                return Err(ErrorKind::AlreadyExists.into());
            }
            let renamed = self.inner.rename_new(from, into, to);
            done = renamed.is_ok();
            renamed
        })
    }

    fn rename_into(&self, from: &str, into: &dyn Dir, to: &str) -> io::Result<()> {
        self.rename_to((from, into, to), |into| {
            self.inner.rename_into(from, into, to)
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.named(Call::Remove, name, || self.inner.remove(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.faults
            .call(Call::List, &[&self.path], || self.inner.list(), nothing)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults
            .call(Call::SyncDir, &[&self.path], || self.inner.sync(), nothing)
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn Lock>>> {
        let pretend = || Ok(Some(Box::new(NoLock) as Box<dyn Lock>));
        let make = || self.inner.try_lock(name);
        self.faults
            .call(Call::Lock, &[&self.path_of(name)], make, pretend)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A lock that was forgotten.
#[derive(Debug)]
struct NoLock;

impl Lock for NoLock {}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn File>,
    path: String,
    faults: Faults,
}

fn nothing<T: Default>() -> io::Result<T> {
    Ok(T::default())
}

impl FaultyFile {
    fn call<T: Default>(&self, call: Call, make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.faults.call(call, &[&self.path], make, nothing)
    }
}

impl File for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.call(Call::Read, || self.inner.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.call(Call::Write, || self.inner.write_at(buf, offset))
    }

    fn len(&self) -> io::Result<u64> {
        self.call(Call::Len, || self.inner.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(Call::SetLen, || self.inner.set_len(len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Allocate, || self.inner.allocate(offset, len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Punch, || self.inner.punch(offset, len))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.call(Call::NextData, || self.inner.next_data(offset))
    }

    fn next_written(&self, offset: u64) -> io::Result<Vec<(u64, u64)>> {
        self.call(Call::NextData, || self.inner.next_written(offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.call(Call::Sync, || self.inner.sync())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.call(Call::AllocatedBytes, || self.inner.allocated_bytes())
    }
}
