//! Repair: what is damaged and can be had again is put in its place; the rest is listed with what it
//! costs.
//!
//! | damaged                | had again from                                                        |
//! |------------------------|-----------------------------------------------------------------------|
//! | the marker             | nothing: it is always the same                                        |
//! | a frame                | what other images have at its blocks' places; another store           |
//! | a node of a map        | a node with the same hash in any other header object; another store   |
//! | a whole header, layer  | another store, where it is whole there                                |
//! | a name                 | the headers whose record has its checksum; another store, once the headers that it stands for are here |
//!
//! Invariants:
//! - Nothing is guessed: what is put in is bit for bit what was written, by the checksum or the hash
//!   that the store itself holds of it. A whole object that has none left here is taken from another
//!   store only if it is whole there, and the one that the names here were committed with.
//! - An object is replaced in one step, under a lease, synced before and after; what a crash leaves
//!   is the old object or the new one. Who has the old one open reads on.
//! - It may be ended at any time, and run again.
//!
//! It goes round until nothing more can be had: below a node that is mended there may be damage that
//! could not be seen before.
//!
//! Left out: footers and indexes of layers, which nothing else holds.

mod frames;
mod names;
mod objects;
mod patch;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use cowslip_block::ByteRange;
use cowslip_block::files::Dir;

use self::names::{put_names, wanted_names};
use self::objects::Pass;
use crate::error::StoreError;
use crate::host::Host;
use crate::ids::SnapshotName;
use crate::store::{Caches, Store, record_name};
use crate::verify::{Checked, Damage, Depth, Impact, Root, Rooted, Spot, check_store, who_needs};

/// Ranges that are listed for one image.
const RANGES_MAX: usize = 100;
/// Images whose ranges are listed.
const LOST_MAX: usize = 1000;

/// What to repair, and with what.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairOptions<'a> {
    /// Only what these need; all where there are none. One that is not there is taken from `from`.
    pub names: &'a [SnapshotName],
    /// Another copy of the store.
    pub from: Option<&'a Store>,
    /// Nothing is written. What would come to light behind what is mended is not looked at.
    pub dry_run: bool,
}

/// What was mended, and what was not.
#[derive(Debug, Default)]
pub struct RepairReport {
    /// What is, or would be, as it was written again.
    pub mended: Vec<Mended>,
    /// The damage that is left: as much as [`verify_store`](crate::verify::verify_store) lists.
    pub left: Vec<Left>,
    /// All of it.
    pub left_count: u64,
    /// What it costs: images that cannot be read wholly.
    pub lost: Vec<Lost>,
}

/// A place that is whole again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Which object: its path in the store.
    pub object: String,
    /// Where in it.
    pub place: String,
    /// Where its bytes were had from.
    pub source: String,
}

/// A place that is not.
#[derive(Debug)]
pub struct Left {
    /// What is wrong.
    pub damage: Damage,
    /// What can be done about it, where that is something.
    pub advice: Option<String>,
}

/// What cannot be read of one image.
#[derive(Debug)]
pub struct Lost {
    /// A name, or `session <id>`.
    pub image: String,
    /// None of it.
    pub whole: bool,
    /// These of its bytes, at most 100 ranges.
    pub ranges: Vec<ByteRange>,
    /// And others.
    pub more: bool,
}

impl RepairReport {
    /// Is there no damage left?
    pub fn is_whole(&self) -> bool {
        self.left_count == 0
    }
}

/// Repairs the store in `dir`. `progress` is told how many bytes of this round are checked, and of how
/// many.
///
/// # Errors
/// `NotAStore`; `NotFound` for a name that neither store has; `NoSpace` and `Io`: what was mended
/// before stays.
pub fn repair(
    dir: &dyn Dir,
    host: &Arc<dyn Host>,
    options: RepairOptions<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<RepairReport, StoreError> {
    let open = || Store::open_damaged(dir, Arc::clone(host), Caches::default());
    let (store, _) = open()?;
    let mut wanted = wanted_names(&store, &options)?;
    let lease = match options.dry_run {
        true => None,
        false => Some(store.lease()?),
    };
    let mut report = RepairReport::default();
    // What is damaged again after it was mended is not what this can mend.
    let mut tried = HashSet::new();
    loop {
        // Fresh eyes: nothing is in its caches.
        let (store, marker) = open()?;
        let records: Vec<_> = wanted.iter().map(|w| (w.name.clone(), w.record)).collect();
        let mut checked = check_store(dir, &store, marker, &records, Depth::Stored, progress)?;
        let only = only_of(&checked, options.names);
        let mut pass = Pass::new(dir, &store, &checked, options.from, lease.as_ref());
        for damage in &checked.report.damage {
            if is_meant(only.as_ref(), damage) && !tried.contains(&damage.spot) {
                pass.take(damage);
            }
        }
        let mended = pass.run()?;
        let mut again = !mended.is_empty();
        let spots: HashSet<Spot> = mended.iter().map(|(spot, _)| spot.clone()).collect();
        report
            .mended
            .extend(mended.into_iter().map(|(_, mended)| mended));
        no_more(&mut checked, &spots);
        tried.extend(spots);
        if !again || options.dry_run {
            again = put_names(
                &store,
                &mut wanted,
                &mut checked,
                lease.as_ref(),
                &mut report,
            )?;
        }
        if !again || options.dry_run {
            rest(&checked, only.as_ref(), &mut report);
            return Ok(report);
        }
    }
}

/// These are damaged no more.
fn no_more(checked: &mut Checked, mended: &HashSet<Spot>) {
    mended.iter().for_each(|spot| checked.findings.mended(spot));
    let listed = &mut checked.report.damage;
    let before = listed.len();
    listed.retain(|damage| !mended.contains(&damage.spot));
    checked.report.damaged -= (before - listed.len()) as u64;
}

/// The objects that the names need, of those that are damaged. All where there are no names.
fn only_of(checked: &Checked, names: &[SnapshotName]) -> Option<BTreeSet<String>> {
    if names.is_empty() {
        return None;
    }
    let is_one = |root: &Root| matches!(root, Root::Name(name, ..) | Root::Wanted(name, ..) if names.contains(name));
    let roots = checked.roots.iter().filter(|(root, _)| is_one(root));
    let roots: Vec<Rooted> = roots.cloned().collect();
    let objects = who_needs(&checked.findings, &roots).into_iter();
    let needed = objects.filter(|object| object.needed_by_count > 0);
    let records = names.iter().map(record_name);
    Some(needed.map(|o| o.object).chain(records).collect())
}

fn is_meant(only: Option<&BTreeSet<String>>, damage: &Damage) -> bool {
    damage.spot == Spot::Marker || only.is_none_or(|only| only.contains(&damage.object))
}

/// What is left, and what that costs.
fn rest(checked: &Checked, only: Option<&BTreeSet<String>>, report: &mut RepairReport) {
    let all = &checked.report.damage;
    let left = all.iter().filter(|damage| is_meant(only, damage));
    report.left = left.map(|damage| left_of(checked, damage)).collect();
    let places = report.left.iter().map(|left| &left.damage);
    let places: HashSet<_> = places.map(|d| (&d.object, &d.place)).collect();
    report
        .mended
        .retain(|mended| !places.contains(&(&mended.object, &mended.place)));
    report.left_count = match only {
        None => checked.report.damaged,
        Some(_) => report.left.len() as u64,
    };
    let mut impact = Impact::new(&checked.findings);
    for (root, header) in &checked.roots {
        let mut lost = Lost {
            image: root.label(),
            whole: header.is_none(),
            ranges: Vec::new(),
            more: false,
        };
        if let Some(header) = header {
            let ranges = impact.lost(header, RANGES_MAX);
            (lost.ranges, lost.more) = (ranges.listed, ranges.more);
        }
        if lost.whole || !lost.ranges.is_empty() {
            report.lost.push(lost);
        }
    }
    for damage in all {
        if let Spot::Record(name) = &damage.spot {
            let image = name.to_string();
            report.lost.retain(|lost| lost.image != image);
            report.lost.push(Lost {
                image,
                whole: true,
                ranges: Vec::new(),
                more: false,
            });
        }
    }
    report.lost.truncate(LOST_MAX);
}

fn left_of(checked: &Checked, damage: &Damage) -> Left {
    let objects = &checked.report.objects;
    let object = objects.iter().find(|object| object.object == damage.object);
    let unneeded = object.is_some_and(|object| object.needed_by_count == 0);
    let advice = match &damage.spot {
        Spot::Session(id) => Some(format!(
            "serving the session writes it again; `cowslip sessions --forget {id}` if its directory is gone for good"
        )),
        Spot::Record(name) => Some(format!(
            "`cowslip repair {name} --from STORE` takes it from another store; `cowslip rm {name}` takes the name off the list"
        )),
        Spot::Marker => Some("it is of a later version of the format".to_owned()),
        _ if unneeded => Some("nothing needs it; `cowslip gc` or `compact` drops it".to_owned()),
        _ => None,
    };
    Left {
        damage: damage.clone(),
        advice,
    }
}
