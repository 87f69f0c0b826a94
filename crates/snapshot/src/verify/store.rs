//! [`verify_store`]: everything in a store.
//!
//! ```text
//! 1. list the names, then the sessions, then the objects       2. check each object by itself
//! 3. walk the maps that names and sessions need                4. say who needs what is damaged
//! ```
//!
//! Step 3 finds what no object can say of itself: that something is not there, or is not what a map
//! takes it for. A collection may remove objects meanwhile; so what is not there is a finding only
//! if, looked at again, the name or the session still stands for what needed it. Names are listed before
//! objects, so that what a name needs was complete when it was listed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, REPLACING};

use super::Depth;
use super::findings::{Damage, Findings, Spot};
use super::impact::{DamagedObject, who_needs};
use super::objects::Objects;
use super::roots::{Root, Rooted, check_roots};
use crate::error::StoreError;
use crate::host::Host;
use crate::ids::{HeaderId, LayerId, SnapshotName, canonical};
use crate::record::Record;
use crate::roots::SessionRecord;
use crate::roots::lease::Lease;
use crate::store::{Caches, STORE_ENTRIES, Store};

/// Is it a file in `leases/` that stands for a lock?
fn is_lock(name: &str) -> bool {
    name == crate::roots::LOCK
        || name == crate::compact::LOCK
        || crate::roots::collecting::LOCKS.contains(&name)
}
/// Files that are listed as none of ours.
const FOREIGN_LISTED_MAX: usize = 1000;

/// What a store holds, and what is wrong with it.
#[derive(Debug, Default)]
pub struct StoreReport {
    /// Names of snapshots.
    pub names: u64,
    /// Sessions that the store keeps something for.
    pub sessions: u64,
    /// Header objects, named or not.
    pub headers: u64,
    /// Nodes in them.
    pub nodes: u64,
    /// Layer objects.
    pub layers: u64,
    /// Frames in them.
    pub frames: u64,
    /// The bytes of headers and layers that were read.
    pub read_bytes: u64,
    /// Files that no cowslip wrote, at most 1000 of them. They are no damage.
    pub foreign: Vec<String>,
    /// Damaged places: at most [`DAMAGE_LISTED_MAX`](super::DAMAGE_LISTED_MAX) of them.
    pub damage: Vec<Damage>,
    /// All damaged places.
    pub damaged: u64,
    /// The objects that the list of damage names, in order.
    pub objects: Vec<DamagedObject>,
}

impl StoreReport {
    /// Is all as it was stored?
    pub fn is_whole(&self) -> bool {
        self.damaged == 0
    }
}

/// Checks everything in the store in `dir`: each object once, whatever number of names it has.
/// `progress` is told how many bytes are done, and of how many.
///
/// # Errors
/// `NotAStore`, `Io` where the store cannot be read; damage is no error, it is in the report.
pub fn verify_store(
    dir: &dyn Dir,
    host: Arc<dyn Host>,
    depth: Depth,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<StoreReport, StoreError> {
    let (store, marker) = Store::open_damaged(dir, host, Caches::default())?;
    check_store(dir, &store, marker, &[], depth, progress).map(|checked| checked.report)
}

/// A report, and what it was made from.
pub(crate) struct Checked {
    pub(crate) report: StoreReport,
    pub(crate) findings: Findings,
    pub(crate) roots: Vec<Rooted>,
    /// All header objects.
    pub(crate) headers: Vec<HeaderId>,
}

/// [`verify_store`] of an open store with nothing in its caches. `marker` is what is wrong with its
/// marker; `wanted` are names that are looked at as if they were there.
pub(crate) fn check_store(
    dir: &dyn Dir,
    store: &Store,
    marker: Option<StoreError>,
    wanted: &[(SnapshotName, Record)],
    depth: Depth,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Checked, StoreError> {
    let mut listing = Listing::default();
    let mut findings = Findings::default();
    if let Some(error) = marker {
        findings.found(Spot::Marker, error)?;
    }
    listing.roots(store, &mut findings)?;
    for (name, record) in wanted {
        let roots = Root::of_parts(Root::Wanted, name, *record);
        listing.roots.extend(roots);
    }
    listing.objects(dir, store)?;
    let mut objects = Objects {
        store,
        depth,
        findings,
        headers: 0,
        nodes: 0,
        frames: 0,
        read_bytes: 0,
        total_bytes: listing.total_bytes,
        progress,
        layers: HashMap::new(),
        based: HashSet::new(),
    };
    listing
        .headers
        .iter()
        .try_for_each(|id| objects.header(*id))?;
    listing
        .layers
        .iter()
        .try_for_each(|id| objects.layer(*id))?;
    let roots = check_roots(store, listing.roots, &mut objects)?;
    let mut report = StoreReport {
        names: listing.names,
        sessions: listing.sessions,
        headers: objects.headers,
        nodes: objects.nodes,
        layers: objects.layers.len() as u64,
        frames: objects.frames,
        read_bytes: objects.read_bytes,
        foreign: listing.foreign,
        damage: objects.findings.listed.clone(),
        damaged: objects.findings.count,
        objects: Vec::new(),
    };
    if !objects.findings.is_empty() {
        report.objects = who_needs(&objects.findings, &roots);
    }
    Ok(Checked {
        report,
        findings: objects.findings,
        roots,
        headers: listing.headers,
    })
}

/// What there is to check.
#[derive(Default)]
struct Listing {
    names: u64,
    sessions: u64,
    roots: Vec<Root>,
    headers: Vec<HeaderId>,
    layers: Vec<LayerId>,
    total_bytes: u64,
    foreign: Vec<String>,
}

impl Listing {
    fn roots(&mut self, store: &Store, findings: &mut Findings) -> Result<(), StoreError> {
        for name in names_in(&**store.dirs().snapshots, "snapshots")? {
            let Ok(name) = name.parse::<SnapshotName>() else {
                self.foreign(format!("snapshots/{name}"));
                continue;
            };
            match store.record(&name) {
                Ok(record) => self.roots.extend(Root::of_parts(Root::Name, &name, record)),
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => findings.found(Spot::Record(name), error)?,
            }
            self.names += 1;
        }
        for name in names_in(&**store.dirs().sessions, "sessions")? {
            let Some(id) = canonical(&name) else {
                // What is being replaced is under a name of its own for a moment.
                if name.strip_suffix(REPLACING).and_then(canonical).is_none() {
                    self.foreign(format!("sessions/{name}"));
                }
                continue;
            };
            match store.session_record(id) {
                Ok(Some(record)) => self.session(&record),
                Ok(None) => continue,
                Err(error) => findings.found(Spot::Session(id), error)?,
            }
            self.sessions += 1;
        }
        Ok(())
    }

    fn session(&mut self, record: &SessionRecord) {
        let headers = record.headers.iter();
        let roots = headers.map(|header| Root::Session(record.id, *header));
        self.roots.extend(roots);
    }

    fn objects(&mut self, dir: &dyn Dir, store: &Store) -> Result<(), StoreError> {
        let dirs = store.dirs();
        for name in names_in(&**dirs.headers, "headers")? {
            match canonical(&name) {
                Some(id) => self.headers.push(HeaderId(id)),
                None => self.foreign(format!("headers/{name}")),
            }
        }
        for name in names_in(&**dirs.layers, "layers")? {
            match canonical(&name) {
                Some(id) => self.layers.push(LayerId(id)),
                None => self.foreign(format!("layers/{name}")),
            }
        }
        let len = |dir: &dyn Dir, name: String| {
            let len = dir.open(&name, Access::Read).and_then(|file| file.len());
            len.unwrap_or(0)
        };
        let headers = self
            .headers
            .iter()
            .map(|id| len(&**dirs.headers, id.to_string()));
        let layers = self
            .layers
            .iter()
            .map(|id| len(&**dirs.layers, id.to_string()));
        self.total_bytes = headers.chain(layers).sum();
        for name in names_in(&**dirs.tmp, "tmp")? {
            if Lease::of_pending(&name).is_none() {
                self.foreign(format!("tmp/{name}"));
            }
        }
        for name in names_in(&**dirs.leases, "leases")? {
            let is_lease = canonical(&name).is_some() || Lease::of_marker(&name).is_some();
            if !is_lease && !is_lock(&name) {
                self.foreign(format!("leases/{name}"));
            }
        }
        for name in names_in(dir, "")? {
            if !STORE_ENTRIES.contains(&name.as_str()) {
                self.foreign(name);
            }
        }
        Ok(())
    }

    fn foreign(&mut self, path: String) {
        if self.foreign.len() < FOREIGN_LISTED_MAX {
            self.foreign.push(path);
        }
    }
}

fn names_in(dir: &dyn Dir, label: &str) -> Result<Vec<String>, StoreError> {
    let names = dir.list();
    let mut names = names.map_err(|e| StoreError::io(format!("listing {label}/"), e))?;
    names.sort();
    Ok(names)
}
