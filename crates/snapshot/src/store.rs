//! [`Store`]: where layers, headers and snapshots live. A directory of ours.
//!
//! ```text
//! store              the marker: this is a store, of this version
//! layers/<uuid>      layer objects       headers/<uuid>    header objects
//! snapshots/<name>   records: name -> a header for each part   tmp/   what is being written
//! leases/, sessions/ what keeps objects besides names: see `roots/`
//! ```
//!
//! Invariants:
//! - 6: an object is synced, named, and its directory synced, before anything mentions it. A name
//!   is committed last.
//! - 7: a record holds the hash of its header's metadata, which holds the hash of the root node:
//!   from a name on, everything is verified.
//! - Objects are immutable. Only names change, each in one step.
//!
//! - Nothing is written but under a [`Lease`], and a name that stood for something is taken away only
//!   under the lock of the roots: that is what a collection relies on. (A name that could not be made durable
//!   is taken back at once, by who gave it: nobody was told, and the lease still protects what it stood for.)
//!
//! Left out: which objects are still needed (`gc.rs`).

mod frames;
mod open;
mod removed;
mod resolve;
mod sessions;

use std::fmt;
use std::io;
use std::sync::Arc;

use cowslip_block::BlockSize;
use cowslip_block::files::{Access, Dir};
use cowslip_block::planted::{Bug, planted};
use uuid::Uuid;

use crate::caches::{Frames, OpenLayers};
use crate::complaints::Complaints;
use crate::error::{ObjectError, StoreError};
use crate::header::{self, Header, HeaderSpec, Nodes, Relocation, UncheckedHeader, object_name};
use crate::host::Host;
use crate::ids::{DirId, HeaderId, LayerId, SnapshotName};
use crate::layer::{Layer, LayerWriter};
use crate::parts::{Part, Parts};
use crate::pending::Pending;
use crate::reads::{Reads, StoreReads};
use crate::record::{self, Record, Stored};
use crate::roots::lease::Protected;
use crate::roots::{Lease, RootLock};

pub use self::resolve::Snapshot;
pub use crate::caches::Caches;

pub(crate) const MARKER: &str = "store";
const LAYERS: &str = "layers";
const HEADERS: &str = "headers";
const SNAPSHOTS: &str = "snapshots";
const TMP: &str = "tmp";
const LEASES: &str = "leases";
const SESSIONS: &str = "sessions";

/// All that a store's directory holds.
pub(crate) const STORE_ENTRIES: [&str; 7] =
    [MARKER, LAYERS, HEADERS, SNAPSHOTS, TMP, LEASES, SESSIONS];

/// What one snapshot added to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBytes {
    /// Its layer object.
    pub payload: u64,
    /// Its header object, and the record of its name.
    pub header: u64,
}

impl StoredBytes {
    /// Both.
    pub fn total(self) -> u64 {
        self.payload.saturating_add(self.header)
    }
}

/// A snapshot in a list.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: SnapshotName,
    /// What it stands for, or why that cannot be said.
    pub stands_for: Result<StandsFor, StoreError>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandsFor {
    /// The snapshot: the id that its last part's header had when it was committed.
    pub origin: HeaderId,
    /// The headers that hold the maps of its parts now.
    pub parts: Parts<HeaderId>,
}

/// A store, open. Everything may be called from any thread.
pub struct Store {
    host: Arc<dyn Host>,
    directory: DirId,
    layers: Arc<dyn Dir>,
    headers: Arc<dyn Dir>,
    snapshots: Arc<dyn Dir>,
    tmp: Arc<dyn Dir>,
    leases: Arc<dyn Dir>,
    sessions: Arc<dyn Dir>,
    nodes: Arc<Nodes>,
    reads: Arc<Reads>,
    open_layers: OpenLayers,
    frames: Frames,
    complaints: Complaints,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("snapshots", &self.snapshots)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The machine below.
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// Which directory the store is.
    pub fn directory(&self) -> &DirId {
        &self.directory
    }

    /// Protects what an operation is about to write, until it is dropped.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        Lease::take(&self.leases, self.host.new_uuid())
    }

    /// Begins a layer.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn layer_writer(
        &self,
        lease: &Lease,
        block_size: BlockSize,
    ) -> Result<LayerWriter, StoreError> {
        let id = LayerId(self.host.new_uuid());
        if !planted(Bug::LayerUnleased) {
            lease.protect(Protected::Layer(id))?;
        }
        let pending = Pending::create(&self.tmp, lease)?;
        LayerWriter::new(pending, Arc::clone(&self.layers), id, block_size)
    }

    /// Opens a layer, or finds it open.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged or not there, `Version`, `Io`.
    pub fn open_layer(&self, id: LayerId) -> Result<Arc<Layer>, StoreError> {
        let open = || {
            self.reads.layers.one();
            self.open_layer_stored(id).map(Arc::new)
        };
        self.open_layers.get_or_insert_with(&id, open)
    }

    /// Opens a layer from its stored bytes, whatever is cached.
    pub(crate) fn open_layer_stored(&self, id: LayerId) -> Result<Layer, StoreError> {
        let file = self.layers.open(&id.to_string(), Access::Read);
        file.map_err(ObjectError::from)
            .and_then(|file| Layer::open(file, id))
            .map_err(|e| e.of(layer_name(id)))
    }

    /// From now on damage that reads of images come by is said to `say`, once for each object and place.
    /// The first one that asks for it gets it.
    pub fn on_damage(&self, say: impl Fn(&str) + Send + Sync + 'static) {
        self.complaints.listen(Box::new(say));
    }

    /// A read of an image failed.
    pub(crate) fn complain(&self, error: &StoreError) {
        self.complaints.hear(error);
    }

    /// Builds a header and stores it, durably. Its layer must be finished.
    ///
    /// # Errors
    /// `Invalid` for a spec that makes no sense, `Limit`, `Corrupt` where the parent's map is
    /// damaged, `NoSpace`, `Io`.
    pub fn put_header(
        &self,
        lease: &Lease,
        spec: &HeaderSpec<'_>,
    ) -> Result<Arc<Header>, StoreError> {
        self.put_header_as(lease, HeaderId(self.host.new_uuid()), spec)
    }

    /// The same, under an id that was promised before. An object that has it already is what an
    /// earlier try of this process left: it is replaced, so no name may point at it.
    ///
    /// # Errors
    /// As [`Store::put_header`]; there is no such object then, unless it could not be removed.
    pub(crate) fn put_header_as(
        &self,
        lease: &Lease,
        id: HeaderId,
        spec: &HeaderSpec<'_>,
    ) -> Result<Arc<Header>, StoreError> {
        if spec
            .parent
            .is_some_and(|p| !Arc::ptr_eq(p.nodes(), &self.nodes))
        {
            let why = "the parent is a header of another store".to_owned();
            return Err(StoreError::Invalid(why));
        }
        let object = header::encode(spec, id, self.host.now_unix_ms(), &self.nodes)?;
        self.put_header_object(lease, id, &object)
    }

    /// Stores the same image, relocated; nothing where it stays as it is.
    pub(crate) fn put_relocated(
        &self,
        lease: &Lease,
        old: &Header,
        relocation: &mut Relocation<'_>,
    ) -> Result<Option<Arc<Header>>, StoreError> {
        let id = HeaderId(self.host.new_uuid());
        let object = relocation.encode(old, id)?;
        object
            .map(|object| self.put_header_object(lease, id, &object))
            .transpose()
    }

    fn put_header_object(
        &self,
        lease: &Lease,
        id: HeaderId,
        object: &[u8],
    ) -> Result<Arc<Header>, StoreError> {
        lease.protect(Protected::Header(id))?;
        let mut pending = Pending::create(&self.tmp, lease)?;
        pending.append(object)?;
        let name = id.to_string();
        let stored = match planted(Bug::NameBeforeHeader) {
            true => pending.commit_unsynced(self.headers.as_ref(), &name),
            false => pending.commit_over(self.headers.as_ref(), &name),
        };
        self.nodes.forget(id);
        stored.and_then(|()| self.open_header(id)).inspect_err(|_| {
            self.nodes.forget(id);
            drop(self.headers.remove(&name));
        })
    }

    /// Removes a layer that nothing points at, as far as that can be done: what stays is an orphan.
    pub(crate) fn discard_layer(&self, id: LayerId) {
        drop(self.layers.remove(&id.to_string()));
    }

    /// Opens a header: one read, whatever the image's size.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged or not there, `Version`, `Io`.
    pub fn open_header(&self, id: HeaderId) -> Result<Arc<Header>, StoreError> {
        self.nodes.read_in(id, |file| {
            UncheckedHeader::read(file, id, Arc::clone(&self.nodes))
                .and_then(UncheckedHeader::check)
                .map(Arc::new)
                .map_err(|e| e.of(object_name(id)))
        })
    }

    /// The same; nothing where there is no such object.
    ///
    /// # Errors
    /// `Corrupt`, `Version`, `Io`.
    pub fn find_header(&self, id: HeaderId) -> Result<Option<Arc<Header>>, StoreError> {
        match self.headers.open(&id.to_string(), Access::Read) {
            Ok(_) => self.open_header(id).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io(format!("opening {}", object_name(id)), e)),
        }
    }

    /// Gives a disk a name: the commit point of a snapshot.
    ///
    /// # Errors
    /// As [`Store::commit_parts`].
    pub fn commit(
        &self,
        lease: &Lease,
        name: &SnapshotName,
        header: &Header,
        replace: bool,
    ) -> Result<(), StoreError> {
        self.commit_parts(lease, name, &Parts::one(Part::Disk, header), replace)
    }

    /// Gives all parts of a snapshot their name, in one step. Leases protect each of them.
    ///
    /// # Errors
    /// `AlreadyExists` where the name stands for something else and `replace` is not wanted; `NoSpace`, `Io`.
    pub fn commit_parts(
        &self,
        lease: &Lease,
        name: &SnapshotName,
        parts: &Parts<&Header>,
        replace: bool,
    ) -> Result<(), StoreError> {
        let record = Record::of(parts);
        let record = record
            .ok_or_else(|| StoreError::Invalid("a snapshot that has a trace alone".to_owned()))?;
        let mut pending = Pending::create(&self.tmp, lease)?;
        pending.append(&record.encode(name))?;
        if replace {
            let _roots = RootLock::take(&self.leases)?;
            return pending.commit_over(self.snapshots.as_ref(), name.as_str());
        }
        match pending.commit_new(self.snapshots.as_ref(), name.as_str()) {
            // A store that is asked again, because its answer was lost, finds what it has done itself.
            Err(StoreError::AlreadyExists { .. })
                if self.record(name).is_ok_and(|there| there == record) =>
            {
                self.sync_names()
            }
            other => other,
        }
    }

    /// Gives a snapshot a trace, the first one or another; false where the name does not stand for that snapshot any more. The lease protects the trace.
    ///
    /// # Errors
    /// `Corrupt` where the record is damaged; `NoSpace`, `Io`.
    pub fn add_trace(
        &self,
        lease: &Lease,
        name: &SnapshotName,
        origin: HeaderId,
        trace: &Header,
    ) -> Result<bool, StoreError> {
        self.change_record(lease, name, |record| {
            record.parts = record.parts.with(Part::Trace, Stored::of(trace));
            record.origin == origin
        })
    }

    /// Makes the names that there are durable, whoever gave them.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn sync_names(&self) -> Result<(), StoreError> {
        let synced = self.snapshots.sync();
        synced.map_err(|e| StoreError::io("syncing snapshots/", e))
    }

    /// Lets a name stand for another header of the same image, and for its other parts as before; false
    /// where it does not stand for `old` any more.
    pub(crate) fn exchange(
        &self,
        lease: &Lease,
        name: &SnapshotName,
        old: HeaderId,
        new: &Header,
    ) -> Result<bool, StoreError> {
        self.change_record(lease, name, |record| {
            let mut found = false;
            record.parts = record.parts.map(|_, stored| {
                let is_it = stored.header == old;
                found |= is_it;
                if is_it { Stored::of(new) } else { *stored }
            });
            found
        })
    }

    /// Lets `change` alter what a name stands for, which says whether that is to be; false where it is not, or where there is no such name.
    fn change_record(
        &self,
        lease: &Lease,
        name: &SnapshotName,
        change: impl FnOnce(&mut Record) -> bool,
    ) -> Result<bool, StoreError> {
        let mut pending = Pending::create(&self.tmp, lease)?;
        let _roots = RootLock::take(&self.leases)?;
        let mut record = match self.record(name) {
            Err(StoreError::NotFound { .. }) => return Ok(false),
            other => other?,
        };
        if !change(&mut record) {
            return Ok(false);
        }
        pending.append(&record.encode(name))?;
        pending.commit_over(self.snapshots.as_ref(), name.as_str())?;
        Ok(true)
    }

    /// Is there a snapshot of this name, damaged or not?
    ///
    /// # Errors
    /// `Io`.
    pub fn has(&self, name: &SnapshotName) -> Result<bool, StoreError> {
        match self.snapshots.open(name.as_str(), Access::Read) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StoreError::io(format!("looking for {name}"), e)),
        }
    }

    /// All names, in order, and what each stands for. A damaged record is an error of its own, not
    /// of the list. Files that cannot be snapshots are left out.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let names = self.snapshots.list();
        let names = names.map_err(|e| StoreError::io("listing snapshots/", e))?;
        let mut names: Vec<SnapshotName> = names.iter().filter_map(|n| n.parse().ok()).collect();
        names.sort();
        Ok(names
            .into_iter()
            .map(|name| {
                let stands_for = self.record(&name).map(|record| StandsFor {
                    origin: record.origin,
                    parts: record.parts.map(|_, stored| stored.header),
                });
                Listed { name, stands_for }
            })
            // Removed since the directory was read.
            .filter(|listed| !matches!(listed.stands_for, Err(StoreError::NotFound { .. })))
            .collect())
    }

    /// Removes a name, durably. What it stood for stays until nothing needs it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        let _roots = RootLock::take(&self.leases)?;
        let removed = self.snapshots.remove(name.as_str());
        removed.map_err(|e| absent_or_io(name, "removing", e))?;
        if planted(Bug::RemovalUnsynced) {
            return Ok(());
        }
        self.sync_names()
    }

    /// What a snapshot that is this disk alone added to the store: the bytes of the files that came with it.
    pub fn stored_bytes(&self, header: &Header) -> StoredBytes {
        StoredBytes {
            payload: header.meta().payload_bytes,
            header: header.object_bytes() + record::RECORD_BYTES as u64,
        }
    }

    /// The same, of each part of a snapshot. The one record of all counts with the first.
    pub fn stored_parts(&self, snapshot: &Snapshot) -> Parts<StoredBytes> {
        let record = Record::bytes_of(&snapshot.parts);
        let (first, _) = snapshot.parts.main();
        snapshot.parts.map(|part, header| StoredBytes {
            payload: header.meta().payload_bytes,
            header: header.object_bytes() + if part == first { record } else { 0 },
        })
    }

    /// How often files were read since the store was opened, for want of what they hold in memory.
    pub fn reads(&self) -> StoreReads {
        self.reads.so_far()
    }

    /// The snapshot that has the name, nil where none has it. Nothing where damage hides it.
    pub(crate) fn origin_of(&self, name: &SnapshotName) -> Result<Option<HeaderId>, StoreError> {
        match self.record(name) {
            Ok(record) => Ok(Some(record.origin)),
            Err(StoreError::NotFound { .. }) => Ok(Some(HeaderId(Uuid::nil()))),
            Err(StoreError::Corrupt { .. } | StoreError::Version { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a name stands for, as it is written.
    pub(crate) fn record(&self, name: &SnapshotName) -> Result<Record, StoreError> {
        let file = self.snapshots.open(name.as_str(), Access::Read);
        let file = file.map_err(|e| absent_or_io(name, "opening", e))?;
        Record::read(file.as_ref(), name).map_err(|e| e.of(record_name(name)))
    }

    pub(crate) fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// The directories, for who looks at all that is there.
    pub(crate) fn dirs(&self) -> Dirs<'_> {
        Dirs {
            layers: &self.layers,
            headers: &self.headers,
            snapshots: &self.snapshots,
            tmp: &self.tmp,
            leases: &self.leases,
            sessions: &self.sessions,
        }
    }
}

/// The directories of objects and of roots.
pub(crate) struct Dirs<'a> {
    pub(crate) layers: &'a Arc<dyn Dir>,
    pub(crate) headers: &'a Arc<dyn Dir>,
    pub(crate) snapshots: &'a Arc<dyn Dir>,
    pub(crate) tmp: &'a Arc<dyn Dir>,
    pub(crate) leases: &'a Arc<dyn Dir>,
    pub(crate) sessions: &'a Arc<dyn Dir>,
}

/// A record's path in the store.
pub(crate) fn record_name(name: &SnapshotName) -> String {
    format!("{SNAPSHOTS}/{name}")
}

/// The path of what is noted of a session.
pub(crate) fn session_name(id: Uuid) -> String {
    format!("{SESSIONS}/{id}")
}

/// A layer object's path in the store.
pub(crate) fn layer_name(id: LayerId) -> String {
    format!("{LAYERS}/{id}")
}

fn absent_or_io(name: &SnapshotName, what: &str, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound {
            name: name.to_string(),
        },
        _ => StoreError::io(format!("{what} snapshots/{name}"), error),
    }
}
