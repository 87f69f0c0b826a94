//! [`Root`]: what names and sessions need, checked as a whole.
//!
//! Here is found what no object can say of itself: that something is not there, or is not what a map
//! takes it for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::bases::{Found, look_at_bases};
use super::findings::Spot;
use super::map::{MapWalk, Met, past_the_end};
use super::objects::{LayerFacts, Objects};
use crate::error::{ObjectError, StoreError};
use crate::header::Header;
use crate::ids::{HeaderId, ImageName, LayerId, SnapshotName};
use crate::parts::Part;
use crate::record::Record;
use crate::store::{Store, layer_name};

/// What keeps an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A part of what a name stands for.
    Name(SnapshotName, Record, Part),
    Session(Uuid, HeaderId),
    /// The same, of a name that is to be, and is not there yet.
    Wanted(SnapshotName, Record, Part),
}

impl Root {
    /// As it is typed: a snapshot that is a disk alone needs no part.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Name(name, record, part) | Self::Wanted(name, record, part) => {
                match (part, record.parts.count()) {
                    (Part::Disk, 1) => name.to_string(),
                    _ => ImageName::part(name, *part).to_string(),
                }
            }
            Self::Session(id, _) => format!("session {id}"),
        }
    }

    /// The roots of one name, or of one that is to be.
    pub(crate) fn of_parts(
        root: fn(SnapshotName, Record, Part) -> Self,
        name: &SnapshotName,
        record: Record,
    ) -> impl Iterator<Item = Self> {
        let parts = Part::ALL.into_iter();
        let there = parts.filter(move |part| record.parts.get(*part).is_some());
        let name = name.clone();
        there.map(move |part| root(name.clone(), record, part))
    }

    pub(crate) fn header(&self) -> HeaderId {
        match self {
            Self::Name(_, record, part) | Self::Wanted(_, record, part) => {
                record
                    .parts
                    .get(*part)
                    .expect("it is one of its parts")
                    .header
            }
            Self::Session(_, header) => *header,
        }
    }

    fn open(&self, store: &Store) -> Result<Arc<Header>, StoreError> {
        match self {
            Self::Name(_, record, part) | Self::Wanted(_, record, part) => {
                store.open_part(record, *part)
            }
            Self::Session(_, header) => store.open_header(*header),
        }
    }

    /// Is it still there, and the same?
    fn stands(&self, store: &Store) -> bool {
        match self {
            Self::Name(name, record, _) => match store.record(name) {
                Ok(now) => now == *record,
                Err(StoreError::NotFound { .. }) => false,
                Err(_) => true,
            },
            Self::Session(id, header) => match store.session_record(*id) {
                Ok(now) => now.is_some_and(|record| record.headers.contains(header)),
                Err(_) => true,
            },
            Self::Wanted(..) => true,
        }
    }
}

/// A root, and its header if that can be opened.
pub(crate) type Rooted = (Root, Option<Arc<Header>>);

/// Walks all maps, each node once. Roots that have gone meanwhile do not come back.
pub(super) fn check_roots(
    store: &Store,
    roots: Vec<Root>,
    objects: &mut Objects<'_>,
) -> Result<Vec<Rooted>, StoreError> {
    let mut walk = MapWalk::new(store.nodes());
    let mut checked = Vec::new();
    for root in roots {
        let mut found = Found::default();
        let header = match root.open(store) {
            Ok(header) => {
                check_map(store, &header, objects, &mut walk, &mut found)?;
                Some(header)
            }
            Err(error) => {
                found.damage.push((Spot::Header(root.header()), error));
                None
            }
        };
        if !found.damage.is_empty() && !root.stands(store) {
            walk.take_back();
            objects.based.retain(|id| !found.based.contains(id));
            continue;
        }
        for (spot, error) in found.damage {
            objects.findings.found(spot, error)?;
        }
        for (layer, frame, base) in found.lacking {
            objects.findings.lacks(layer, frame, base);
        }
        checked.push((root, header));
    }
    Ok(checked)
}

fn check_map(
    store: &Store,
    header: &Header,
    objects: &mut Objects<'_>,
    walk: &mut MapWalk<'_>,
    found: &mut Found,
) -> Result<(), StoreError> {
    // One finding for each layer of the map.
    let mut wrong: BTreeMap<LayerId, (Spot, StoreError)> = BTreeMap::new();
    let mut layers = BTreeSet::new();
    walk.image(header, &mut |met| {
        match met {
            Met::Node => {}
            Met::Broken(ptr, error) => found.damage.push((Spot::Node(ptr), error)),
            Met::Run { layer, at, count } => {
                if !wrong.contains_key(&layer)
                    && let Some(why) = wrong_run(store, header, objects, (layer, at, count))
                {
                    wrong.insert(layer, why);
                }
                if !wrong.contains_key(&layer) {
                    layers.insert(layer);
                }
            }
        }
        Ok(())
    })?;
    found.damage.extend(wrong.into_values());
    if let Err(error) = past_the_end(header) {
        found.damage.push((Spot::Map(header.id()), error));
    }
    for layer in layers {
        let facts = facts_of(store, objects, layer).ok().flatten();
        if facts.is_some_and(|facts| facts.has_bases) && objects.based.insert(layer) {
            found.based.push(layer);
            look_at_bases(store, objects, layer, found)?;
        }
    }
    Ok(())
}

/// Why a run cannot be; damage of the layer itself has been found before.
fn wrong_run(
    store: &Store,
    header: &Header,
    objects: &Objects<'_>,
    (id, at, count): (LayerId, u64, u64),
) -> Option<(Spot, StoreError)> {
    let facts = match facts_of(store, objects, id) {
        Ok(facts) => facts?,
        Err(error) => return Some((Spot::Layer(id), error)),
    };
    let (place, why) = if facts.block_size != header.block_size() {
        (
            "the footer",
            "its blocks are not of the image's size".to_owned(),
        )
    } else if at + count > facts.blocks {
        let (last, all) = (at + count - 1, facts.blocks);
        (
            "its end",
            format!("the map uses block {last}, and there are {all}"),
        )
    } else {
        return None;
    };
    let error = ObjectError::damaged(place, why).of(layer_name(id));
    Some((Spot::Map(header.id()), error))
}

/// Nothing where it is damaged, which has been found before.
fn facts_of(
    store: &Store,
    objects: &Objects<'_>,
    id: LayerId,
) -> Result<Option<LayerFacts>, StoreError> {
    match objects.layers.get(&id) {
        Some(facts) => Ok(*facts),
        // Not there when the objects were listed.
        None => store
            .open_layer_stored(id)
            .map(|layer| Some(LayerFacts::of(&layer))),
    }
}
