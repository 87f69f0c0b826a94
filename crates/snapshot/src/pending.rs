//! [`Pending`]: an object on its way into the store.
//!
//! Invariant 6: its bytes are synced before it gets its name, and the name's directory is synced
//! before anybody is told. Until then it is a file in `tmp/` under a name that nobody else takes;
//! dropping it removes that. A crash leaves the file behind, which harms nothing, and which a
//! collection removes: its name is that of the lease it was written under.

use std::sync::Arc;

use cowslip_block::files::{Dir, File};
use cowslip_block::planted::{Bug, planted};

use crate::error::StoreError;
use crate::roots::Lease;

/// A file in `tmp/` that is being written from its start to its end.
#[derive(Debug)]
pub(crate) struct Pending {
    tmp: Arc<dyn Dir>,
    name: String,
    file: Arc<dyn File>,
    len: u64,
    named: bool,
}

impl Pending {
    pub(crate) fn create(tmp: &Arc<dyn Dir>, lease: &Lease) -> Result<Self, StoreError> {
        let name = lease.pending_name();
        let file = tmp
            .create(&name)
            .map_err(|e| StoreError::io(format!("creating tmp/{name}"), e))?;
        Ok(Self {
            tmp: Arc::clone(tmp),
            name,
            file,
            len: 0,
            named: false,
        })
    }

    /// How much has been written.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_at(bytes, self.len)
            .map_err(|e| self.failed("writing", e))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Gives it its name, which must be free: of two at once, one gets
    /// [`StoreError::AlreadyExists`].
    pub(crate) fn commit_new(mut self, into: &dyn Dir, to: &str) -> Result<(), StoreError> {
        self.sync()?;
        match self.tmp.rename_new(&self.name, into, to) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let name = to.to_owned();
                Err(StoreError::AlreadyExists { name })
            }
            other => self.named_as(into, to, other).inspect_err(|_| {
                // What is said to have failed is not to be found there later: the name is ours
                // alone, and nobody was told of it.
                if self.named {
                    drop(into.remove(to));
                }
            }),
        }
    }

    /// Gives it its name, whether that is free or not.
    pub(crate) fn commit_over(mut self, into: &dyn Dir, to: &str) -> Result<(), StoreError> {
        self.sync()?;
        let renamed = self.tmp.rename_into(&self.name, into, to);
        self.named_as(into, to, renamed)
    }

    /// What the bugs do that [`cowslip_block::planted`] lists, and nobody else.
    pub(crate) fn commit_unsynced(mut self, into: &dyn Dir, to: &str) -> Result<(), StoreError> {
        let renamed = self.tmp.rename_into(&self.name, into, to);
        renamed.map_err(|e| StoreError::io(format!("naming {to}"), e))?;
        self.named = true;
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync().map_err(|e| self.failed("syncing", e))
    }

    fn named_as(
        &mut self,
        into: &dyn Dir,
        to: &str,
        renamed: std::io::Result<()>,
    ) -> Result<(), StoreError> {
        renamed.map_err(|e| StoreError::io(format!("naming {to}"), e))?;
        self.named = true;
        if planted(Bug::NameUnsynced) {
            return Ok(());
        }
        into.sync()
            .map_err(|e| StoreError::io(format!("syncing the directory of {to}"), e))
    }

    fn failed(&self, what: &str, error: std::io::Error) -> StoreError {
        StoreError::io(format!("{what} tmp/{}", self.name), error)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.named {
            // Whatever the reason, what stays behind is an orphan in tmp/ and nothing worse.
            drop(self.tmp.remove(&self.name));
        }
    }
}
