//! Garbage collection: removes the objects that no root reaches.
//!
//! ```text
//! 1. list the objects             2. read the roots, under their lock
//! 3. mark: walk the map of each header that is a root; each node once; then the bases of the layers
//! 4. sweep: what was listed in 1 and not marked in 3
//! ```
//!
//! Invariants:
//! - What is not in the list of step 1 is not touched: it is younger than the collection, and its
//!   writer's lease would not have been read.
//! - A root that cannot be walked wholly ends the collection before anything is removed: what it
//!   needs is not known.
//! - A header object is kept for any node in it that a root reaches, a layer for any block.
//! - A layer that a map reaches keeps those that its deltas are made against, one level deep: those are read for frames that stand alone, so that nobody wants
//!   the bases of theirs. Where a layer that is needed cannot tell its bases, no layer is removed, and that is said.
//!
//! A collection that is killed has removed a part of the garbage. Two at once do no harm: both
//! keep what is needed, and each ignores what the other was faster to remove. What one of them read as
//! a root may be none any more when it comes there, and gone by the other's hand: then it begins
//! again with the roots as they are by now.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir};
use cowslip_block::planted::{Bug, planted};
use uuid::Uuid;

use crate::codec::Hash;
use crate::error::StoreError;
use crate::header::{Header, Node, Slot};
use crate::ids::{HeaderId, LayerId, canonical};
use crate::roots::lease::Protected;
use crate::roots::{Collecting, Lease, RootLock, SessionRecord};
use crate::store::{Store, layer_name};
use crate::verify::damage;

/// With roots that change under its hands each time.
const ATTEMPTS: usize = 10;

/// What a collection removed, or would remove.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Paths in the store, and their sizes in bytes.
    pub removed: Vec<(String, u64)>,
    /// Objects that are needed.
    pub kept_layers: u64,
    /// Objects that are needed.
    pub kept_headers: u64,
    /// What is wrong with layers that are needed, and cannot tell which others they need: no layer was removed.
    pub damaged: Vec<String>,
}

impl Collected {
    /// All that was removed, in bytes.
    pub fn removed_bytes(&self) -> u64 {
        self.removed.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Removes what no root reaches; with `dry_run`, says only what that is.
///
/// A temporary session whose server is gone will never be opened again, and is forgotten. `progress` is told how many headers have been marked.
///
/// # Errors
/// `Corrupt` where a root is damaged: nothing has been removed then. `Io`.
pub fn collect(
    store: &Store,
    dry_run: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Collected, StoreError> {
    let dirs = store.dirs();
    let _here = match dry_run {
        true => None,
        false => Some(Collecting::begin(dirs.leases)?),
    };
    let listed = [
        (Kind::Layer, list(dirs.layers, "layers")?),
        (Kind::Header, list(dirs.headers, "headers")?),
        (Kind::Pending, list(dirs.tmp, "tmp")?),
    ];
    let (roots, marked) = mark_all(store, &mut || read_roots(store, dry_run), progress)?;
    let mut collected = Collected {
        damaged: marked.damaged.clone(),
        ..Collected::default()
    };
    for (kind, names) in listed {
        let (dir, label) = match kind {
            Kind::Layer => (dirs.layers, "layers"),
            Kind::Header => (dirs.headers, "headers"),
            Kind::Pending => (dirs.tmp, "tmp"),
        };
        let mut removed = false;
        for name in names {
            if marked.needs(kind, &name, &roots) {
                match kind {
                    Kind::Layer => collected.kept_layers += 1,
                    Kind::Header => collected.kept_headers += 1,
                    Kind::Pending => {}
                }
                continue;
            }
            let bytes = match dir.open(&name, Access::Read).and_then(|f| f.len()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => {
                    other.map_err(|e| StoreError::io(format!("looking at {label}/{name}"), e))?
                }
            };
            if !dry_run {
                match dir.remove(&name) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    other => {
                        other.map_err(|e| StoreError::io(format!("removing {label}/{name}"), e))?
                    }
                }
                removed = true;
            }
            collected.removed.push((format!("{label}/{name}"), bytes));
        }
        if removed {
            dir.sync()
                .map_err(|e| StoreError::io(format!("syncing {label}/"), e))?;
        }
    }
    Ok(collected)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Layer,
    Header,
    Pending,
}

/// Everything that keeps objects, as of one moment.
#[derive(Default, PartialEq, Eq)]
struct Roots {
    /// Headers that are walked: they must be whole.
    headers: HashSet<HeaderId>,
    /// What leases list: it may not be there yet.
    leased: HashSet<Protected>,
    /// Leases that somebody holds.
    alive: HashSet<Uuid>,
}

fn read_roots(store: &Store, dry_run: bool) -> Result<Roots, StoreError> {
    let dirs = store.dirs();
    let lock = RootLock::take(dirs.leases)?;
    let mut roots = Roots::default();
    let leases = list(dirs.leases, "leases")?;
    for name in &leases {
        let Some(id) = canonical(name) else {
            continue;
        };
        let held = dirs.leases.try_lock(name);
        if held
            .map_err(|e| StoreError::io(format!("looking at leases/{name}"), e))?
            .is_some()
        {
            // Its owner is gone; nobody takes it up, as ids are not used twice.
            drop(dirs.leases.remove(name));
        } else {
            roots.alive.insert(id);
            roots.leased.extend(Lease::read(&**dirs.leases, name)?);
        }
    }
    for name in &leases {
        match Lease::of_marker(name) {
            Some((id, what)) if roots.alive.contains(&id) => drop(roots.leased.insert(what)),
            Some(_) => drop(dirs.leases.remove(name)),
            None => {}
        }
    }
    for listed in store.list()? {
        let parts = listed.stands_for?.parts;
        roots
            .headers
            .extend(parts.iter().map(|(_, header)| *header));
    }
    if !dry_run {
        SessionRecord::sweep(&lock, &**dirs.sessions)?;
        // A name that a killed process removed or replaced, and did not sync, would come back with a power
        // cut, and what it needs would be gone.
        for (dir, label) in [(dirs.snapshots, "snapshots"), (dirs.sessions, "sessions")] {
            if planted(Bug::CollectionUnsynced) {
                continue;
            }
            let synced = dir.sync();
            synced.map_err(|e| StoreError::io(format!("syncing {label}/"), e))?;
        }
    }
    for record in SessionRecord::list(&**dirs.sessions)? {
        // Its server holds a lease of the same id from before the record is there.
        if record.temporary && !roots.alive.contains(&record.id) {
            if !dry_run {
                SessionRecord::remove(record.id, &lock, dirs.sessions)?;
            }
        } else {
            roots.headers.extend(record.headers);
        }
    }
    Ok(roots)
}

/// What the roots reach.
#[derive(Default)]
struct Marked {
    headers: HashSet<HeaderId>,
    layers: HashSet<LayerId>,
    nodes: HashSet<Hash>,
    /// Layers whose bases are known, and all of those.
    asked: HashSet<LayerId>,
    bases: HashSet<LayerId>,
    /// What is wrong with layers that cannot tell their bases.
    damaged: Vec<String>,
    /// A layer that a map leads to, and that is not there.
    gone: Option<LayerId>,
}

/// Reads the roots, and marks what they reach.
fn mark_all(
    store: &Store,
    read: &mut dyn FnMut() -> Result<Roots, StoreError>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Roots, Marked), StoreError> {
    let mut roots = read()?;
    for _ in 1..ATTEMPTS {
        let marked = match mark(store, &roots, progress) {
            Err(error @ StoreError::Corrupt { .. }) => Err(error),
            other => Ok(other?),
        };
        if marked.as_ref().is_ok_and(|marked| marked.gone.is_none()) {
            return marked.map(|marked| (roots, marked));
        }
        let now = read()?;
        if now == roots {
            return marked.map(|marked| (roots, marked));
        }
        roots = now;
    }
    let mut marked = mark(store, &roots, progress)?;
    if let Some(id) = marked.gone {
        let why = "it was removed while it was needed";
        marked.damaged.push(format!("{}: {why}", layer_name(id)));
    }
    Ok((roots, marked))
}

fn mark(
    store: &Store,
    roots: &Roots,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Marked, StoreError> {
    let mut marked = Marked::default();
    let total = roots.headers.len() as u64;
    for (done, id) in (1..).zip(&roots.headers) {
        marked.walk(&*store.open_header(*id)?)?;
        progress(done, total);
    }
    marked.gone = marked.bases(store)?;
    for what in &roots.leased {
        match what {
            Protected::Layer(id) => drop(marked.layers.insert(*id)),
            Protected::Header(id) => {
                marked.headers.insert(*id);
                // One that is being read is walked. One that is not there yet is built from
                // nodes that its parent keeps, and its parent is a root of its own.
                if let Some(header) = store.find_header(*id)? {
                    marked.walk(&header)?;
                }
            }
        }
    }
    // A leased layer may not be there yet.
    marked.bases(store)?;
    Ok(marked)
}

impl Marked {
    fn walk(&mut self, header: &Header) -> Result<(), StoreError> {
        self.headers.insert(header.id());
        self.slot(header, &header.root(), header.height())
    }

    fn slot(&mut self, header: &Header, slot: &Slot, level: u8) -> Result<(), StoreError> {
        match slot {
            Slot::Nil => {}
            Slot::Run { layer, .. } => drop(self.layers.insert(*layer)),
            Slot::Node(ptr) => {
                self.headers.insert(ptr.header);
                if !self.nodes.insert(ptr.hash) {
                    return Ok(());
                }
                match &*header.nodes().get(ptr, level)? {
                    Node::Leaf(runs) => self.layers.extend(runs.iter().map(|run| run.layer)),
                    Node::Inner { slots, .. } => {
                        for slot in slots.iter() {
                            self.slot(header, slot, level - 1)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What the layers that are reached are made against; and one that is not there. That has none: whoever brings it back brings them along. But if another
    /// collection was faster to remove it, what is made over the same bases may be younger than our roots.
    fn bases(&mut self, store: &Store) -> Result<Option<LayerId>, StoreError> {
        let reached: Vec<LayerId> = self.layers.difference(&self.asked).copied().collect();
        let mut gone = None;
        for id in reached {
            self.asked.insert(id);
            match store.bases_of(id).map_err(damage) {
                Ok(None) => gone = Some(id),
                Ok(Some(bases)) => self.bases.extend(bases),
                Err(Ok(damage)) => self.damaged.push(damage.to_string()),
                Err(Err(other)) => return Err(other),
            }
        }
        Ok(gone)
    }

    fn needs(&self, kind: Kind, name: &str, roots: &Roots) -> bool {
        let id = canonical(name);
        match kind {
            // A name that is none of ours is left alone.
            Kind::Layer if !self.damaged.is_empty() => true,
            Kind::Layer => id
                .map(LayerId)
                .is_none_or(|id| self.layers.contains(&id) || self.bases.contains(&id)),
            Kind::Header => id.is_none_or(|id| self.headers.contains(&HeaderId(id))),
            Kind::Pending => Lease::of_pending(name).is_some_and(|id| roots.alive.contains(&id)),
        }
    }
}

fn list(dir: &Arc<dyn Dir>, label: &str) -> Result<Vec<String>, StoreError> {
    let mut names = dir
        .list()
        .map_err(|e| StoreError::io(format!("listing {label}/"), e))?;
    names.sort();
    Ok(names)
}
