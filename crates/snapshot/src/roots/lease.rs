//! [`Lease`]: what one running operation writes or reads, safe from the collector for as long.
//!
//! A file of lines, `layer <uuid>` or `header <uuid>`, locked by its owner. A line is there before
//! the object is; a line that is cut short is one whose object is not there yet. The file needs no
//! sync: after a power cut its owner is dead, and so is the lease.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cowslip_block::files::{Access, Dir, File, Lock, read_all};
use uuid::Uuid;

use super::RootLock;
use crate::error::StoreError;
use crate::ids::{HeaderId, LayerId, canonical};
use crate::limits::LEASE_BYTES_MAX;

/// Something that must not be collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protected {
    Layer(LayerId),
    Header(HeaderId),
}

/// Protects what it lists until it is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<dyn Dir>,
    id: Uuid,
    file: Arc<dyn File>,
    len: Mutex<u64>,
    /// Files in `tmp/` so far.
    pending: AtomicU64,
    _lock: Box<dyn Lock>,
}

impl Lease {
    pub(crate) fn take(leases: &Arc<dyn Dir>, id: Uuid) -> Result<Self, StoreError> {
        let roots = RootLock::take(leases)?;
        Self::take_under(&roots, leases, id)
    }

    /// The collector removes leases that nobody has locked, under the same lock: it never sees one
    /// between its creation and its locking.
    pub(crate) fn take_under(
        _: &RootLock,
        leases: &Arc<dyn Dir>,
        id: Uuid,
    ) -> Result<Self, StoreError> {
        let failed = |e| StoreError::io(format!("taking leases/{id}"), e);
        let name = id.to_string();
        let lock = leases.try_lock(&name).map_err(failed)?;
        let lock = lock.ok_or_else(|| StoreError::Invalid(format!("leases/{id} is taken")))?;
        let file = leases.open(&name, Access::ReadWrite).map_err(failed)?;
        Ok(Self {
            leases: Arc::clone(leases),
            id,
            file,
            len: Mutex::new(0),
            pending: AtomicU64::new(0),
            _lock: lock,
        })
    }

    pub(crate) fn protect(&self, what: Protected) -> Result<(), StoreError> {
        let line = match what {
            Protected::Layer(id) => format!("layer {id}\n"),
            Protected::Header(id) => format!("header {id}\n"),
        };
        // One write a line, at the end: a line that failed is written over by the next.
        let mut len = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        if *len + line.len() as u64 > LEASE_BYTES_MAX {
            return Err(StoreError::limit("bytes of one lease", LEASE_BYTES_MAX));
        }
        let written = self.file.write_at(line.as_bytes(), *len);
        written.map_err(|e| StoreError::io(format!("writing leases/{}", self.id), e))?;
        *len += line.len() as u64;
        Ok(())
    }

    /// How much it lists, for [`Lease::rewind`].
    pub(crate) fn mark(&self) -> u64 {
        *self.len.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was listed since the mark is not wanted any more: the next lines are written over it. An
    /// owner that tries again and again does not fill its lease.
    pub(crate) fn rewind(&self, mark: u64) {
        *self.len.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// A name for a file in `tmp/` that lives no longer than this lease.
    pub(crate) fn pending_name(&self) -> String {
        format!(
            "{}.{}",
            self.id,
            self.pending.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Whose is a file in `tmp/`?
    pub(crate) fn of_pending(name: &str) -> Option<Uuid> {
        canonical(name.split_once('.')?.0)
    }

    /// What the lease `name` lists. Nothing where it has ended meanwhile: what it protected has a
    /// name or a session by then, and those are read later.
    pub(crate) fn read(leases: &dyn Dir, name: &str) -> Result<Vec<Protected>, StoreError> {
        let read = leases
            .open(name, Access::Read)
            .and_then(|file| read_all(&*file, LEASE_BYTES_MAX));
        let bytes = match read {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| StoreError::io(format!("reading leases/{name}"), e))?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        Ok(whole.lines().filter_map(parse).collect())
    }
}

fn parse(line: &str) -> Option<Protected> {
    let (kind, id) = line.split_once(' ')?;
    let id = Uuid::from_str(id).ok()?;
    match kind {
        "layer" => Some(Protected::Layer(LayerId(id))),
        "header" => Some(Protected::Header(HeaderId(id))),
        _ => None,
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A file that stays is a lease that nobody holds: the next collection removes it.
        drop(self.leases.remove(&self.id.to_string()));
    }
}
