//! Names whose records are damaged, or that are missing and asked for.
//!
//! What they stand for is looked after as if they were there; they are put last, as ever, once the
//! header that they stand for is here.

use std::collections::{BTreeSet, HashSet};
use std::io;

use cowslip_block::files::{Access, read_all};

use super::{Mended, RepairOptions, RepairReport, no_more};
use crate::error::StoreError;
use crate::header::object_name;
use crate::ids::{HeaderId, SnapshotName, canonical};
use crate::pending::Pending;
use crate::record::{RECORD_BYTES_MAX, Record};
use crate::roots::{Lease, RootLock};
use crate::store::{Store, record_name};
use crate::verify::{Checked, Spot};

/// A name that is damaged here, or missing and asked for, as it was written.
pub(super) struct Wanted {
    pub(super) name: SnapshotName,
    pub(super) record: Record,
    bytes: Vec<u8>,
    source: &'static str,
}

pub(super) fn wanted_names(
    store: &Store,
    options: &RepairOptions<'_>,
) -> Result<Vec<Wanted>, StoreError> {
    let damaged = store.list()?.into_iter().filter(|l| l.stands_for.is_err());
    let mut names: BTreeSet<SnapshotName> = damaged.map(|listed| listed.name).collect();
    if !options.names.is_empty() {
        names.retain(|name| options.names.contains(name));
    }
    let mut wanted = Vec::new();
    for name in names.iter().chain(options.names) {
        let here = store.record(name);
        if here.is_ok() || wanted.iter().any(|w: &Wanted| w.name == *name) {
            continue;
        }
        let found = as_written(store, name).or_else(|| {
            let from = options.from?;
            let (record, bytes) = (from.record(name).ok()?, record_bytes(from, name).ok()?);
            Some((record, bytes, "the other store"))
        });
        match (found, here) {
            (Some((record, bytes, source)), _) => wanted.push(Wanted {
                name: name.clone(),
                record,
                bytes,
                source,
            }),
            (None, Err(error @ StoreError::NotFound { .. })) => return Err(error),
            _ => {}
        }
    }
    Ok(wanted)
}

/// A damaged record, by what its checksum says of the headers that are here.
fn as_written(store: &Store, name: &SnapshotName) -> Option<(Record, Vec<u8>, &'static str)> {
    let damaged = record_bytes(store, name).ok()?;
    let names = store.dirs().headers.list().ok()?;
    let ids = names.iter().filter_map(|id| canonical(id));
    let headers: Vec<_> = ids
        .filter_map(|id| store.open_header(HeaderId(id)).ok())
        .collect();
    let (record, bytes) = Record::was(&damaged, name, &headers)?;
    Some((record, bytes, "the headers that it stands for"))
}

/// The bytes of a record, whatever they are.
fn record_bytes(store: &Store, name: &SnapshotName) -> io::Result<Vec<u8>> {
    let file = store.dirs().snapshots.open(name.as_str(), Access::Read)?;
    read_all(&*file, RECORD_BYTES_MAX as u64)
}

/// Names come last, as ever: each once the header that it stands for is here. Says whether one was put.
pub(super) fn put_names(
    store: &Store,
    wanted: &mut Vec<Wanted>,
    checked: &mut Checked,
    lease: Option<&Lease>,
    report: &mut RepairReport,
) -> Result<bool, StoreError> {
    let mut put = false;
    let mut later = Vec::new();
    for name in wanted.drain(..) {
        let would_be = |record: &Record| {
            let mut parts = record.parts.iter();
            lease.is_none() && parts.all(|(_, stored)| is_copied(store, report, stored.header))
        };
        if store.open_parts(&name.record).is_err() && !would_be(&name.record) {
            later.push(name);
            continue;
        }
        if let Some(lease) = lease
            && !put_record(store, lease, &name)?
        {
            continue;
        }
        put = true;
        no_more(checked, &HashSet::from([Spot::Record(name.name.clone())]));
        report.mended.push(Mended {
            object: record_name(&name.name),
            place: "all of it".to_owned(),
            source: name.source.to_owned(),
        });
    }
    *wanted = later;
    Ok(put)
}

/// Is it here, or would it be, had this not been a dry run?
fn is_copied(store: &Store, report: &RepairReport, id: HeaderId) -> bool {
    let object = object_name(id);
    store.open_header(id).is_ok() || report.mended.iter().any(|m| m.object == object)
}

/// In the place of a damaged record or of none; not where somebody was faster.
fn put_record(store: &Store, lease: &Lease, wanted: &Wanted) -> Result<bool, StoreError> {
    let dirs = store.dirs();
    let (snapshots, name) = (&**dirs.snapshots, wanted.name.as_str());
    let mut pending = Pending::create(dirs.tmp, lease)?;
    pending.append(&wanted.bytes)?;
    let _roots = RootLock::take(dirs.leases)?;
    let put = match store.record(&wanted.name) {
        Ok(_) => return Ok(false),
        Err(StoreError::NotFound { .. }) => pending.commit_new(snapshots, name),
        Err(_) => pending.commit_over(snapshots, name),
    };
    match put {
        Err(StoreError::AlreadyExists { .. }) => Ok(false),
        put => put.map(|()| true),
    }
}
