//! From a name to its header, whatever happens to the name meanwhile.

use std::sync::Arc;

use super::Store;
use crate::error::{ObjectError, StoreError};
use crate::header::{Header, object_name};
use crate::ids::SnapshotName;
use crate::record::Record;
use crate::roots::lease::Protected;
use crate::roots::{Lease, RootLock};

impl Store {
    /// The header that a name stands for.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where record or header are damaged, `Version`, `Io`.
    pub fn resolve(&self, name: &SnapshotName) -> Result<Arc<Header>, StoreError> {
        let mut record = self.record(name)?;
        loop {
            let damage = match self.open_recorded(&record) {
                Err(error @ StoreError::Corrupt { .. }) => error,
                other => return other,
            };
            // Replaced or removed since, what it stood for may have been collected.
            let now = self.record(name)?;
            if now == record {
                return Err(damage);
            }
            record = now;
        }
    }

    pub(crate) fn open_recorded(&self, record: &Record) -> Result<Arc<Header>, StoreError> {
        let header = self.open_header(record.header)?;
        if Record::of(&header) != *record {
            self.nodes.forget(record.header);
            let why = "the header is not the one that was committed under this name";
            return Err(ObjectError::damaged("the metadata", why).of(object_name(record.header)));
        }
        Ok(header)
    }

    /// The header that a name stands for, protected until the lease is dropped, whatever becomes of
    /// the name.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`Store::lease`].
    pub fn resolve_leased(&self, name: &SnapshotName) -> Result<(Arc<Header>, Lease), StoreError> {
        let roots = RootLock::take(&self.leases)?;
        let record = self.record(name)?;
        let lease = Lease::take_under(&roots, &self.leases, self.host.new_uuid())?;
        lease.protect(Protected::Header(record.header))?;
        drop(roots);
        Ok((self.open_recorded(&record)?, lease))
    }
}
