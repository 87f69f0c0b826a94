//! From a name to what it stands for, whatever happens to the name meanwhile.

use std::sync::Arc;

use super::Store;
use crate::error::{ObjectError, StoreError};
use crate::header::{Header, object_name};
use crate::ids::{HeaderId, ImageName, SnapshotName};
use crate::parts::{Part, Parts};
use crate::record::{Record, Stored};
use crate::roots::lease::Protected;
use crate::roots::{Lease, RootLock};

/// What a name stands for, open.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Which snapshot, however it is stored.
    pub origin: HeaderId,
    /// Its parts.
    pub parts: Parts<Arc<Header>>,
}

impl Snapshot {
    /// The image that is meant; `image` has the snapshot's name.
    ///
    /// # Errors
    /// `NoPart`.
    pub fn image(&self, image: &ImageName) -> Result<&Arc<Header>, StoreError> {
        let part = part_of(image, &self.parts)?;
        Ok(self.parts.get(part).expect("it was just found"))
    }
}

impl Store {
    /// The image that a snapshot's name means: its disk, or the first part that there is.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where record or header are damaged, `Version`, `Io`.
    pub fn resolve(&self, name: &SnapshotName) -> Result<Arc<Header>, StoreError> {
        self.resolve_image(&name.into())
    }

    /// One image of a snapshot.
    ///
    /// # Errors
    /// As [`Store::resolve`]; `NoPart`.
    pub fn resolve_image(&self, image: &ImageName) -> Result<Arc<Header>, StoreError> {
        self.opened(&image.name, |record| {
            self.open_part(record, part_of(image, &record.parts)?)
        })
    }

    /// All parts of a snapshot.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn resolve_snapshot(&self, name: &SnapshotName) -> Result<Snapshot, StoreError> {
        self.opened(name, |record| self.open_parts(record))
    }

    /// What `open` makes of the record; of another one where the name was replaced under its hands.
    fn opened<T>(
        &self,
        name: &SnapshotName,
        open: impl Fn(&Record) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut record = self.record(name)?;
        loop {
            let damage = match open(&record) {
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

    /// A part that the record has.
    pub(crate) fn open_part(&self, record: &Record, part: Part) -> Result<Arc<Header>, StoreError> {
        let id = record.parts.get(part).expect("the record has it").header;
        let header = self.open_header(id)?;
        if !record.is_of(part, &header) {
            self.nodes.forget(id);
            let why = "the header is not the one that was committed under this name";
            return Err(ObjectError::damaged("the metadata", why).of(object_name(id)));
        }
        Ok(header)
    }

    pub(crate) fn open_parts(&self, record: &Record) -> Result<Snapshot, StoreError> {
        let parts = record
            .parts
            .try_map(|part, _| self.open_part(record, part))?;
        let origin = record.origin;
        Ok(Snapshot { origin, parts })
    }

    /// The image that a name means, protected until the lease is dropped, whatever becomes of the name.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`Store::lease`].
    pub fn resolve_leased(&self, name: &SnapshotName) -> Result<(Arc<Header>, Lease), StoreError> {
        self.resolve_image_leased(&name.into())
    }

    /// The same, of one image of a snapshot; its other parts are not kept.
    ///
    /// # Errors
    /// As [`Store::resolve_image`], and [`Store::lease`].
    pub fn resolve_image_leased(
        &self,
        image: &ImageName,
    ) -> Result<(Arc<Header>, Lease), StoreError> {
        let (record, lease) = self.record_leased(&image.name, |record| {
            let part = part_of(image, &record.parts)?;
            Ok(record.parts.only(part).expect("it was just found"))
        })?;
        Ok((
            self.open_part(&record, part_of(image, &record.parts)?)?,
            lease,
        ))
    }

    /// The same, of all parts.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`Store::lease`].
    pub fn resolve_snapshot_leased(
        &self,
        name: &SnapshotName,
    ) -> Result<(Snapshot, Lease), StoreError> {
        let (record, lease) = self.record_leased(name, |record| Ok(record.parts))?;
        Ok((self.open_parts(&record)?, lease))
    }

    fn record_leased(
        &self,
        name: &SnapshotName,
        kept: impl FnOnce(&Record) -> Result<Parts<Stored>, StoreError>,
    ) -> Result<(Record, Lease), StoreError> {
        let roots = RootLock::take(&self.leases)?;
        let record = self.record(name)?;
        let kept = kept(&record)?;
        let lease = Lease::take_under(&roots, &self.leases, self.host.new_uuid())?;
        for (_, stored) in kept.iter() {
            lease.protect(Protected::Header(stored.header))?;
        }
        Ok((record, lease))
    }
}

/// Which part is meant.
fn part_of<T>(image: &ImageName, parts: &Parts<T>) -> Result<Part, StoreError> {
    let Some(part) = image.part else {
        return Ok(parts.main().0);
    };
    match parts.get(part) {
        Some(_) => Ok(part),
        None => Err(StoreError::NoPart {
            name: image.name.to_string(),
            part,
            has: parts.to_string(),
        }),
    }
}
