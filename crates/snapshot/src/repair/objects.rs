//! [`Pass`]: one round of repair, object by object.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, File};

use super::Mended;
use super::frames::{Frames, Image};
use super::patch::Patch;
use crate::codec::Hash;
use crate::error::StoreError;
use crate::header::{NodePtr, UncheckedHeader, node_bytes, object_name};
use crate::ids::{HeaderId, LayerId};
use crate::layer::Remaker;
use crate::pending::Pending;
use crate::record;
use crate::roots::Lease;
use crate::roots::lease::Protected;
use crate::store::{MARKER, Store};
use crate::verify::{Checked, Damage, Impact, Root, Spot, is_bad_disk, own_nodes};

/// Copies of one node that are looked at.
const COPIES_MAX: usize = 8;
const THE_OTHER_STORE: &str = "the other store";

pub(super) struct Pass<'a> {
    dir: &'a dyn Dir,
    store: &'a Store,
    checked: &'a Checked,
    from: Option<&'a Store>,
    /// None in a dry run.
    lease: Option<&'a Lease>,
    marker: Option<&'a Damage>,
    layers: BTreeMap<LayerId, Vec<&'a Damage>>,
    headers: BTreeMap<HeaderId, Vec<&'a Damage>>,
    images: OnceCell<Vec<Image>>,
    mended: Vec<(Spot, Mended)>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        dir: &'a dyn Dir,
        store: &'a Store,
        checked: &'a Checked,
        from: Option<&'a Store>,
        lease: Option<&'a Lease>,
    ) -> Self {
        Self {
            dir,
            store,
            checked,
            from,
            lease,
            marker: None,
            layers: BTreeMap::new(),
            headers: BTreeMap::new(),
            images: OnceCell::new(),
            mended: Vec::new(),
        }
    }

    /// This is to be mended.
    pub(super) fn take(&mut self, damage: &'a Damage) {
        match &damage.spot {
            Spot::Marker => self.marker = Some(damage),
            Spot::Layer(id) | Spot::Frame(id, _) => {
                self.layers.entry(*id).or_default().push(damage);
            }
            Spot::Header(id) => self.headers.entry(*id).or_default().push(damage),
            Spot::Node(ptr) => self.headers.entry(ptr.header).or_default().push(damage),
            // Nothing else says what these were.
            Spot::Record(_) | Spot::Session(_) | Spot::Gap(_) | Spot::Map(_) => {}
        }
    }

    /// Mends what it can, and says what that was.
    pub(super) fn run(mut self) -> Result<Vec<(Spot, Mended)>, StoreError> {
        if let Some(damage) = self.marker {
            self.mend_marker(damage)?;
        }
        for (id, damage) in std::mem::take(&mut self.headers) {
            unless_bad_disk(self.mend_header(id, &damage))?;
        }
        for (id, damage) in std::mem::take(&mut self.layers) {
            unless_bad_disk(self.mend_layer(id, &damage))?;
        }
        Ok(self.mended)
    }

    fn is_mended(&mut self, damage: &Damage, source: impl Into<String>) {
        let mended = Mended {
            object: damage.object.clone(),
            place: damage.place.clone(),
            source: source.into(),
        };
        self.mended.push((damage.spot.clone(), mended));
    }

    fn protect(&self, what: Protected) -> Result<(), StoreError> {
        self.lease.map_or(Ok(()), |lease| lease.protect(what))
    }

    fn mend_marker(&mut self, damage: &Damage) -> Result<(), StoreError> {
        let file = self.dir.open(MARKER, Access::Read);
        if file.is_ok_and(|file| record::is_newer_marker(&*file)) {
            return Ok(());
        }
        if let Some(lease) = self.lease {
            let mut pending = Pending::create(self.store.dirs().tmp, lease)?;
            pending.append(&record::encode_marker())?;
            pending.commit_over(self.dir, MARKER)?;
        }
        self.is_mended(damage, "what every marker is");
        Ok(())
    }

    fn mend_layer(&mut self, id: LayerId, damage: &[&Damage]) -> Result<(), StoreError> {
        let Ok(layer) = self.store.open_layer_stored(id) else {
            return self.copy_layer(id, damage);
        };
        let other = self.from.and_then(|from| from.open_layer_stored(id).ok());
        let other = other.filter(|other| other.is_copy_of(&layer));
        let broken: BTreeMap<u64, &Damage> = damage
            .iter()
            .filter_map(|damage| match damage.spot {
                Spot::Frame(_, n) => Some((n, *damage)),
                _ => None,
            })
            .collect();
        let numbers: BTreeSet<u64> = broken.keys().copied().collect();
        let mut impact = Impact::new(&self.checked.findings);
        let frames = Frames::new(self.store, &layer, &numbers, self.images(), &mut impact);
        let zstd = Remaker::new();
        let mut zstd = zstd.map_err(|e| StoreError::io("starting zstd", e))?;
        let tmp = self.store.dirs().tmp;
        let mut patch = Patch::of(&**layer.file(), tmp, self.lease);
        let mut mended = Vec::new();
        for (n, damage) in broken {
            let place = layer.frame_place(n).expect("a frame that was checked");
            let candidates = frames.candidates(n);
            let made = candidates
                .of_one(&layer, n, &mut zstd)
                .map(|made| (made.stored, joined(&made.of)))
                .or_else(|| {
                    let stored = other.as_ref()?.stored_frame(n).ok()?;
                    Some((stored, THE_OTHER_STORE.to_owned()))
                })
                .or_else(|| {
                    let made = candidates.of_many(&layer, n, &mut zstd)?;
                    Some((made.stored, joined(&made.of)))
                });
            match made {
                None => patch.give_up(place),
                Some((stored, source)) => {
                    if mended.is_empty() {
                        self.protect(Protected::Layer(id))?;
                    }
                    patch.put(place.start, &stored)?;
                    mended.push((damage, source));
                }
            }
        }
        if !mended.is_empty() {
            patch.finish(&**self.store.dirs().layers, &id.to_string())?;
        }
        for (damage, source) in mended {
            self.is_mended(damage, source);
        }
        Ok(())
    }

    /// All images of the store, with their names where they have any.
    fn images(&self) -> &[Image] {
        self.images.get_or_init(|| {
            let mut names: HashMap<HeaderId, String> = HashMap::new();
            for (root, _) in self.checked.roots.iter().rev() {
                names.insert(root.header(), root.label());
            }
            let headers = self.checked.headers.iter();
            let opened = headers.filter_map(|id| self.store.open_header(*id).ok());
            opened
                .map(|header| {
                    let named = names.get(&header.id()).cloned();
                    (named.unwrap_or_else(|| object_name(header.id())), header)
                })
                .collect()
        })
    }

    /// All of a layer, where the other store's is whole.
    fn copy_layer(&mut self, id: LayerId, damage: &[&Damage]) -> Result<(), StoreError> {
        let other = self.from.map(|from| from.open_layer_stored(id));
        let Some(Ok(other)) = other else {
            return Ok(());
        };
        if (0..other.frames()).any(|n| other.check_frame(n, false).is_err()) {
            return Ok(());
        }
        self.protect(Protected::Layer(id))?;
        let patch = Patch::of(&**other.file(), self.store.dirs().tmp, self.lease);
        patch.finish(&**self.store.dirs().layers, &id.to_string())?;
        for damage in damage {
            self.is_mended(damage, THE_OTHER_STORE);
        }
        Ok(())
    }

    fn mend_header(&mut self, id: HeaderId, damage: &[&Damage]) -> Result<(), StoreError> {
        let tail_is_damaged = damage.iter().any(|d| matches!(d.spot, Spot::Header(_)));
        let file = self
            .store
            .dirs()
            .headers
            .open(&id.to_string(), Access::Read);
        let Some(file) = file.ok().filter(|_| !tail_is_damaged) else {
            return self.copy_header(id, damage);
        };
        let mut nodes: Vec<(NodePtr, &Damage)> = damage
            .iter()
            .filter_map(|damage| match damage.spot {
                Spot::Node(ptr) => Some((ptr, *damage)),
                _ => None,
            })
            .collect();
        nodes.sort_by_key(|(ptr, _)| ptr.offset);
        let wanted = nodes.iter().map(|(ptr, _)| ptr.hash).collect();
        let copies = self.copies(&wanted);
        let mut patch = Patch::of(&*file, self.store.dirs().tmp, self.lease);
        let mut mended = Vec::new();
        let mut end = 0;
        for (ptr, damage) in nodes {
            let place = ptr.offset..ptr.offset + u64::from(ptr.len);
            let found = self.node(&ptr, copies.get(&ptr.hash));
            match found.filter(|_| place.start >= end) {
                None => patch.give_up(place),
                Some((bytes, source)) => {
                    end = place.end;
                    if mended.is_empty() {
                        self.protect(Protected::Header(id))?;
                    }
                    patch.put(ptr.offset, &bytes)?;
                    mended.push((damage, source));
                }
            }
        }
        if !mended.is_empty() {
            patch.finish(&**self.store.dirs().headers, &id.to_string())?;
        }
        for (damage, source) in mended {
            self.is_mended(damage, source);
        }
        Ok(())
    }

    /// A node's bytes, by their hash, and whose they are.
    fn node(&self, ptr: &NodePtr, copies: Option<&Vec<NodePtr>>) -> Option<(Vec<u8>, String)> {
        let read = |store: &Store, ptr: &NodePtr| {
            let read = store
                .nodes()
                .read_in(ptr.header, |file| node_bytes(file, ptr));
            read.ok()
        };
        let here = copies
            .into_iter()
            .flatten()
            .find_map(|copy| Some((read(self.store, copy)?, object_name(copy.header))));
        here.or_else(|| Some((read(self.from?, ptr)?, THE_OTHER_STORE.to_owned())))
    }

    /// Where else nodes of these hashes lie.
    fn copies(&self, wanted: &HashSet<Hash>) -> HashMap<Hash, Vec<NodePtr>> {
        let mut copies: HashMap<Hash, Vec<NodePtr>> = HashMap::new();
        for (_, header) in self.images() {
            let visited = header.nodes().read_in(header.id(), |file| {
                own_nodes(file, header, &mut |ptr, node| {
                    let copies = copies.entry(ptr.hash);
                    if node.is_ok() && wanted.contains(&ptr.hash) {
                        let copies = copies.or_default();
                        if copies.len() < COPIES_MAX {
                            copies.push(ptr);
                        }
                    }
                    Ok(())
                })
            });
            // One that cannot be read has none.
            drop(visited);
        }
        copies
    }

    /// All of a header object, where the other store's is whole, and is the one that the names here
    /// were committed with.
    fn copy_header(&mut self, id: HeaderId, damage: &[&Damage]) -> Result<(), StoreError> {
        let Some(file) = self.from.and_then(|from| self.whole_header(from, id)) else {
            return Ok(());
        };
        self.protect(Protected::Header(id))?;
        let patch = Patch::of(&*file, self.store.dirs().tmp, self.lease);
        patch.finish(&**self.store.dirs().headers, &id.to_string())?;
        for damage in damage {
            self.is_mended(damage, THE_OTHER_STORE);
        }
        Ok(())
    }

    fn whole_header(&self, from: &Store, id: HeaderId) -> Option<Arc<dyn File>> {
        let file = from
            .dirs()
            .headers
            .open(&id.to_string(), Access::Read)
            .ok()?;
        let nodes = Arc::clone(from.nodes());
        let header = UncheckedHeader::read(&*file, id, nodes)
            .ok()?
            .check()
            .ok()?;
        own_nodes(&*file, &header, &mut |_, node| node).ok()?;
        let is_it = self.checked.roots.iter().all(|(root, _)| match root {
            Root::Name(_, record, part) | Root::Wanted(_, record, part) if root.header() == id => {
                record.is_of(*part, &header)
            }
            _ => true,
        });
        is_it.then_some(file)
    }
}

/// An object of which the disk does not give what was not known to be damaged stays as it is. The others need
/// not.
fn unless_bad_disk(done: Result<(), StoreError>) -> Result<(), StoreError> {
    match done {
        Err(StoreError::Io { source, .. }) if is_bad_disk(&source) => Ok(()),
        other => other,
    }
}

/// Some names of those that took part.
fn joined(of: &BTreeSet<String>) -> String {
    const SHOWN: usize = 3;
    let mut text = of
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if of.len() > SHOWN {
        text += &format!(" and {} more", of.len() - SHOWN);
    }
    text
}
