//! [`Lease`]: what one running operation writes or reads, safe from the collector for as long.
//!
//! A file of lines, `layer <uuid>` or `header <uuid>`, locked by its owner. A line is there before
//! the object is; a line that is cut short is one whose object is not there yet. The file needs no
//! sync: after a power cut its owner is dead, and so is the lease.
//!
//! On a disk that has no room for a line, an empty file stands for it, `<lease>.layer.<uuid>` or
//! `<lease>.header.<uuid>`: what is on a full disk can be read, and what is in the way of room found.
//!
//! Where nothing can be written (a file system that is mounted read-only) there is no lease: nobody can remove
//! anything there either. Who collects what others see read-only, does so at their cost.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// How much a lease lists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseMark {
    pub(crate) len: u64,
    pub(crate) markers: usize,
}

/// As a line of a lease says it.
impl fmt::Display for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(id) => write!(f, "layer {id}"),
            Self::Header(id) => write!(f, "header {id}"),
        }
    }
}

/// Protects what it lists until it is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<dyn Dir>,
    id: Uuid,
    len: Mutex<u64>,
    /// Files in `tmp/` so far.
    pending: AtomicU64,
    /// Empty files that stand for lines.
    markers: Mutex<Vec<String>>,
    /// Nothing on a read-only file system.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    file: Arc<dyn File>,
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
        let held = match leases.try_lock(&name) {
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
            other => {
                let lock = other.map_err(failed)?;
                let lock =
                    lock.ok_or_else(|| StoreError::Invalid(format!("leases/{id} is taken")))?;
                let file = leases.open(&name, Access::ReadWrite).map_err(failed)?;
                Some(Held { file, _lock: lock })
            }
        };
        Ok(Self {
            leases: Arc::clone(leases),
            id,
            len: Mutex::new(0),
            pending: AtomicU64::new(0),
            markers: Mutex::default(),
            held,
        })
    }

    pub(crate) fn protect(&self, what: Protected) -> Result<(), StoreError> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let line = format!("{what}\n");
        // One write a line, at the end: a line that failed is written over by the next.
        let mut len = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        if *len + line.len() as u64 > LEASE_BYTES_MAX {
            return Err(StoreError::limit("bytes of one lease", LEASE_BYTES_MAX));
        }
        let written = held.file.write_at(line.as_bytes(), *len);
        let written = written.map_err(|e| StoreError::io(format!("writing leases/{}", self.id), e));
        match written {
            Err(error @ StoreError::NoSpace { .. }) => self.mark_by_name(what, error),
            other => {
                other?;
                *len += line.len() as u64;
                Ok(())
            }
        }
    }

    /// Where there is no room for a line. `why` is the error where there is no room for a name either.
    fn mark_by_name(&self, what: Protected, why: StoreError) -> Result<(), StoreError> {
        let name = format!("{}.{}", self.id, what.to_string().replace(' ', "."));
        match self.leases.create(&name) {
            Ok(_) => self.markers().push(name),
            // Listed before.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => return Err(why),
        }
        Ok(())
    }

    /// Whose is a file in `leases/` that stands for a line, and for which?
    pub(crate) fn of_marker(name: &str) -> Option<(Uuid, Protected)> {
        let (lease, what) = name.split_once('.')?;
        Some((canonical(lease)?, parse(&what.replacen('.', " ", 1))?))
    }

    /// How much it lists, for [`Lease::rewind`].
    pub(crate) fn mark(&self) -> LeaseMark {
        LeaseMark {
            len: *self.len.lock().unwrap_or_else(PoisonError::into_inner),
            markers: self.markers().len(),
        }
    }

    /// What was listed since the mark is not wanted any more: the next lines are written over it. An
    /// owner that tries again and again does not fill its lease.
    pub(crate) fn rewind(&self, mark: LeaseMark) {
        *self.len.lock().unwrap_or_else(PoisonError::into_inner) = mark.len;
        for name in self.markers().drain(mark.markers..) {
            drop(self.leases.remove(&name));
        }
    }

    fn markers(&self) -> MutexGuard<'_, Vec<String>> {
        self.markers.lock().unwrap_or_else(PoisonError::into_inner)
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
        if self.held.is_none() {
            return;
        }
        // A file that stays is a lease that nobody holds: the next collection removes it.
        let markers = self
            .markers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for name in markers.drain(..).chain([self.id.to_string()]) {
            drop(self.leases.remove(&name));
        }
    }
}
