//! Opening a store, and making one.

use std::io;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir};

use super::{Caches, HEADERS, LAYERS, LEASES, MARKER, SESSIONS, SNAPSHOTS, Store, TMP};
use crate::caches;
use crate::complaints::Complaints;
use crate::error::{ObjectError, StoreError};
use crate::header::Nodes;
use crate::host::Host;
use crate::ids::DirId;
use crate::pending::Pending;
use crate::reads::Reads;
use crate::record;
use crate::roots::Lease;

impl Store {
    /// Opens the store in `dir`.
    ///
    /// # Errors
    /// `NotAStore` with a hint, `Version`, `Corrupt` for a damaged marker, `Io`.
    pub fn open(dir: &dyn Dir, host: Arc<dyn Host>, caches: Caches) -> Result<Self, StoreError> {
        check_marker(dir)?;
        Self::open_unmarked(dir, host, caches)
    }

    /// The same, whatever is wrong with the marker, which comes back. Without one, only a directory
    /// that holds all that a store needs is taken for one.
    pub(crate) fn open_damaged(
        dir: &dyn Dir,
        host: Arc<dyn Host>,
        caches: Caches,
    ) -> Result<(Self, Option<StoreError>), StoreError> {
        let mut marker = check_marker(dir).err();
        if let Some(StoreError::NotAStore { .. }) = marker {
            let needed = [LAYERS, HEADERS, SNAPSHOTS];
            if needed.iter().any(|name| dir.open_dir(name).is_err()) {
                return Err(marker.expect("it was just looked at"));
            }
            let why = "the file is not there";
            marker = Some(ObjectError::damaged("all of it", why).of(MARKER));
        }
        Ok((Self::open_unmarked(dir, host, caches)?, marker))
    }

    fn open_unmarked(
        dir: &dyn Dir,
        host: Arc<dyn Host>,
        caches: Caches,
    ) -> Result<Self, StoreError> {
        let open_dir = |name: &str| {
            dir.open_dir(name)
                .map_err(|e| ObjectError::from(e).of(format!("{name}/")))
        };
        let headers = open_dir(HEADERS)?;
        let directory = DirId::of(dir).map_err(|e| StoreError::io("looking at the store", e))?;
        let reads = Arc::<Reads>::default();
        Ok(Self {
            host,
            directory,
            layers: open_dir(LAYERS)?,
            nodes: Arc::new(Nodes::new(
                Arc::clone(&headers),
                caches.node_bytes,
                Arc::clone(&reads),
            )),
            reads,
            headers,
            snapshots: open_dir(SNAPSHOTS)?,
            tmp: open_kept(dir, TMP)?,
            leases: open_kept(dir, LEASES)?,
            sessions: open_kept(dir, SESSIONS)?,
            open_layers: caches::open_layers(),
            frames: caches::frames(caches.frame_bytes),
            complaints: Complaints::default(),
        })
    }

    /// The same; an empty directory becomes a store first.
    ///
    /// # Errors
    /// As [`Store::open`]; `NotAStore` for a directory that holds other things.
    pub fn open_or_create(
        dir: &dyn Dir,
        host: Arc<dyn Host>,
        caches: Caches,
    ) -> Result<Self, StoreError> {
        let failed = |e| StoreError::io("making a store", e);
        let names = dir.list().map_err(failed)?;
        if !names.iter().any(|name| name == MARKER) {
            let ours = [LAYERS, HEADERS, SNAPSHOTS, TMP, LEASES, SESSIONS];
            if let Some(other) = names.iter().find(|n| !ours.contains(&n.as_str())) {
                let why = format!("it holds {other:?}; a new store wants an empty directory");
                return Err(StoreError::NotAStore { why });
            }
            for name in ours {
                match dir.create_dir(name) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
                    _ => {}
                }
            }
            dir.sync().map_err(failed)?;
            let leases = dir.open_dir(LEASES).map_err(failed)?;
            let lease = Lease::take(&leases, host.new_uuid())?;
            let mut marker = Pending::create(&dir.open_dir(TMP).map_err(failed)?, &lease)?;
            marker.append(&record::encode_marker())?;
            // Whoever was faster wrote the same.
            marker.commit_over(dir, MARKER)?;
        }
        Self::open(dir, host, caches)
    }
}

/// Opens a directory that is often empty, and so is often lost when a store is copied.
fn open_kept(store: &dyn Dir, name: &str) -> Result<Arc<dyn Dir>, StoreError> {
    let failed = |e| StoreError::io(format!("opening {name}/"), e);
    match store.open_dir(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            match store.create_dir(name) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
                _ => {}
            }
            store.sync().map_err(failed)?;
            store.open_dir(name).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

fn check_marker(dir: &dyn Dir) -> Result<(), StoreError> {
    let marker = dir.open(MARKER, Access::Read).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => StoreError::NotAStore {
            why: "it has no file `store`; a first import makes one".to_owned(),
        },
        _ => StoreError::io("opening the file `store`", e),
    })?;
    record::check_marker(marker.as_ref()).map_err(|e| e.of(MARKER))
}
