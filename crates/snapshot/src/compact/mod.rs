//! Compaction: images that depend on few layers, and layers that hold little that nobody needs.
//!
//! ```text
//! 1. survey   what the images of all names and sessions reach          (survey.rs, mentions.rs)
//! 2. plan     which layers and header objects are left                 (plan.rs: the policy)
//! 3. copy     what is needed of those layers, into new ones            (copy.rs)
//! 4. rewrite  the headers of the images that mention them              (header/relocate.rs)
//! 5. swap     each name, each session, to its new header
//! 6. collect  what nothing needs any more, when sessions have gone over (gc.rs)
//! ```
//!
//! Steps of bounded size follow each other until the policy is content.
//!
//! Invariants:
//! - 6: new layers, then new headers, then names; each durable before the next. A compaction that is
//!   killed has swapped some names, and leaves orphans for the next collection.
//! - Nothing is taken from a reader: it removes nothing by itself. What somebody still reads is kept
//!   by what keeps it: a lease, or the session that has not gone over to the new header yet.
//! - A name is swapped only if it still stands for the header that was rewritten, and keeps its other parts; it stays the same
//!   snapshot (its origin, parent, generation, time and figures).
//! - A damaged layer, also one that is not there, is left as it is, and said. A damaged header ends it: what it needs is not known.
//!
//! One at a time in a store: `leases/compact.lock`.

mod copy;
mod mentions;
mod plan;
mod survey;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use roaring::RoaringBitmap;
use uuid::Uuid;

pub use self::plan::Policy;
pub use self::survey::Reach;

use self::copy::{Copier, CopyError};
use self::mentions::Mentions;
use self::plan::{Choice, Done, Plan};
use self::survey::Survey;
use crate::error::StoreError;
use crate::gc::{self, Collected};
use crate::header::{Header, Relocation};
use crate::ids::{HeaderId, SnapshotName};
use crate::layer::LayerSummary;
use crate::roots::lease::Protected;
use crate::roots::{Lease, RootLock, SessionRecord};
use crate::store::{StandsFor, Store};

pub(crate) const LOCK: &str = "compact.lock";

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// How far it goes.
    pub policy: Policy,
    /// Only objects that these images use; all where there is none.
    pub names: Vec<SnapshotName>,
    /// What is copied at one go: about as much room is needed besides.
    pub step_bytes: u64,
}

/// What happens, for whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Maps walked, and how many there are.
    Surveyed(u64, u64),
    /// Bytes copied in this step, and how many are to be.
    Copied(u64, u64),
    /// Headers rewritten, or found to be as they should, and how many there are.
    Rewritten(u64, u64),
}

/// What surrounds a store.
pub struct Around<'a> {
    /// Told, once, of each session that has a new header, by this compaction or by an earlier one: those that nobody serves can be made to go over to it
    /// ([`crate::session::go_over`]); those that are served do so by themselves.
    pub moved: &'a dyn Fn(&[SessionRecord]),
    /// Told what happens; ends the compaction by answering false.
    pub progress: &'a dyn Fn(Progress) -> bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Compacted {
    /// Of all that images reach, before.
    pub before: Reach,
    /// The same, after; as before for a dry run.
    pub after: Reach,
    /// What was copied, or would be in a first step: payload, as it was stored.
    pub copied_bytes: u64,
    /// New objects, in bytes.
    pub written_bytes: u64,
    /// Layers and header objects that were left, or would be in a first step.
    pub left_objects: u64,
    /// Names and sessions that have a new header.
    pub swapped: u64,
    /// What was removed.
    pub removed_objects: u64,
    /// The same, in bytes.
    pub removed_bytes: u64,
    /// Layers that are damaged and were left as they are.
    pub damaged: Vec<String>,
    /// It was ended before it was done.
    pub interrupted: bool,
}

/// Compacts the store.
///
/// # Errors
/// `NotFound` for a name, `Invalid` where another compaction runs, `Corrupt` where a root is damaged, `NoSpace`,
/// `Io`. The store is whole then, and what was done so far stands.
pub fn compact(
    store: &Store,
    options: &Options,
    around: &Around<'_>,
) -> Result<Compacted, StoreError> {
    let _one = lock(store)?;
    let mut run = Run {
        store,
        options,
        around,
        result: Compacted::default(),
        done: Done::default(),
        told: HashSet::new(),
    };
    run.collect()?;
    let mut is_first = true;
    loop {
        let more = run.step(is_first);
        // Also where it failed: what it has written, and nothing needs, must not stay on a full disk.
        let collected = run.collect();
        let more = more?;
        collected?;
        if !more {
            return Ok(run.result);
        }
        is_first = false;
    }
}

/// What a first step would do.
///
/// # Errors
/// As [`compact`].
pub fn survey(
    store: &Store,
    options: &Options,
    progress: &dyn Fn(Progress) -> bool,
) -> Result<Compacted, StoreError> {
    let lease = store.lease()?;
    let images = images(store, &lease)?;
    let mut result = Compacted::default();
    let looked = look(store, options, &images, &Done::default(), progress)?;
    let Some((survey, plan)) = looked else {
        result.interrupted = true;
        return Ok(result);
    };
    result.before = survey.total();
    result.after = result.before;
    result.copied_bytes = plan.copy_bytes;
    result.damaged = survey.damaged.values().map(ToString::to_string).collect();
    result.left_objects = (plan.layers.len() + plan.headers.len()) as u64;
    Ok(result)
}

fn lock(store: &Store) -> Result<Box<dyn cowslip_block::files::Lock>, StoreError> {
    let lock = store.dirs().leases.try_lock(LOCK);
    lock.map_err(|e| StoreError::io("locking the store for a compaction", e))?
        .ok_or_else(|| StoreError::Invalid("another compaction of this store is running".into()))
}

/// One header that names and sessions stand on.
struct RootImage {
    header: Arc<Header>,
    names: Vec<SnapshotName>,
    sessions: Vec<Uuid>,
}

/// All of them, protected, newest first: what a new image shares with older ones is then put in its
/// order.
fn images(store: &Store, lease: &Lease) -> Result<Vec<RootImage>, StoreError> {
    let roots = RootLock::take(store.dirs().leases)?;
    let mut found: BTreeMap<HeaderId, (Vec<SnapshotName>, Vec<Uuid>)> = BTreeMap::new();
    for listed in store.list()? {
        let StandsFor { parts, .. } = listed.stands_for?;
        for (_, header) in parts.iter() {
            let (names, _) = found.entry(*header).or_default();
            names.push(listed.name.clone());
        }
    }
    for record in store.sessions()? {
        match (record.moved, record.headers.as_slice()) {
            // It will go over, and needs nothing but that from then on.
            (Some(moved), _) => {
                found.entry(moved).or_default();
            }
            (None, [only]) => found.entry(*only).or_default().1.push(record.id),
            // It is going over to a snapshot just now.
            (None, several) => {
                for header in several {
                    found.entry(*header).or_default();
                }
            }
        }
    }
    for header in found.keys() {
        lease.protect(Protected::Header(*header))?;
    }
    drop(roots);
    let mut images = Vec::with_capacity(found.len());
    for (id, (names, sessions)) in found {
        images.push(RootImage {
            header: store.open_header(id)?,
            names,
            sessions,
        });
    }
    images.sort_by_key(|image| {
        let meta = image.header.meta();
        std::cmp::Reverse((meta.generation, meta.created_unix_ms, meta.id))
    });
    Ok(images)
}

fn look(
    store: &Store,
    options: &Options,
    images: &[RootImage],
    done: &Done,
    progress: &dyn Fn(Progress) -> bool,
) -> Result<Option<(Survey, Plan)>, StoreError> {
    for name in &options.names {
        if !images.iter().any(|image| image.names.contains(name)) {
            let name = name.to_string();
            return Err(StoreError::NotFound { name });
        }
    }
    let headers: Vec<_> = images.iter().map(|i| Arc::clone(&i.header)).collect();
    let survey = Survey::take(store, &headers, &mut |n, all| {
        progress(Progress::Surveyed(n, all))
    })?;
    let Some(survey) = survey else {
        return Ok(None);
    };
    let asked = |image: &RootImage| {
        options.names.is_empty() || image.names.iter().any(|n| options.names.contains(n))
    };
    let asked: Vec<&Header> = images
        .iter()
        .filter(|image| asked(image))
        .map(|image| &*image.header)
        .collect();
    let plan = choose(&survey, options, &asked, done)?;
    Ok(Some((survey, plan)))
}

fn choose(
    survey: &Survey,
    options: &Options,
    asked: &[&Header],
    done: &Done,
) -> Result<Plan, StoreError> {
    let (policy, step) = (options.policy, options.step_bytes);
    let damaged: RoaringBitmap = survey.damaged.keys().collect();
    let mut candidates = (all(survey.layers.len()), all(survey.headers.len()));
    if !options.names.is_empty() {
        let mut used = (RoaringBitmap::new(), RoaringBitmap::new());
        let mut mentions = Mentions::new(survey);
        for image in asked {
            mentions.go_to(image)?;
            used.0 |= mentions.layers.any();
            used.1 |= mentions.headers.any();
        }
        candidates = used;
    }
    candidates.0 -= damaged;
    let mut choice = Choice::new(survey, policy, candidates, done, step);
    // No image depends on more layers than there are.
    if survey.layers.len() as u64 > policy.layers_max {
        let mut mentions = Mentions::new(survey);
        for image in asked {
            mentions.go_to(image)?;
            choice.image(mentions.layers.any());
        }
    }
    Ok(choice.plan())
}

/// All numbers below `count`.
fn all(count: usize) -> RoaringBitmap {
    (0..u32::try_from(count).unwrap_or(u32::MAX)).collect()
}

struct Run<'a> {
    store: &'a Store,
    options: &'a Options,
    around: &'a Around<'a>,
    result: Compacted,
    done: Done,
    /// Of these sessions, that they have a new header.
    told: HashSet<(Uuid, HeaderId)>,
}

impl Run<'_> {
    /// False when there is nothing more to do.
    fn step(&mut self, is_first: bool) -> Result<bool, StoreError> {
        let progress = self.around.progress;
        let lease = self.store.lease()?;
        let images = images(self.store, &lease)?;
        let looked = look(self.store, self.options, &images, &self.done, progress)?;
        let Some((survey, plan)) = looked else {
            self.result.interrupted = true;
            return Ok(false);
        };
        let total = survey.total();
        if is_first {
            self.done.begin(&survey);
        }
        for (number, error) in survey.damaged {
            // Said once.
            if self.done.layers.insert(survey.layers[number as usize].0) {
                self.result.damaged.push(error.to_string());
            }
        }
        if is_first {
            self.result.before = total;
        }
        self.result.after = total;
        if plan.is_empty() {
            return Ok(false);
        }
        match self.copy_and_swap(&lease, &images, &plan) {
            Ok(()) => {}
            Err(CopyError::Store(error)) => return Err(error),
            Err(CopyError::Damaged(layer, error)) => {
                self.result.damaged.push(error.to_string());
                self.done.layers.insert(layer);
                return Ok(true);
            }
            Err(CopyError::Interrupted) => {
                self.result.interrupted = true;
                return Ok(false);
            }
        }
        self.result.left_objects += (plan.layers.len() + plan.headers.len()) as u64;
        self.done.layers.extend(plan.layers);
        self.done.headers.extend(plan.headers);
        Ok(true)
    }

    fn copy_and_swap(
        &mut self,
        lease: &Lease,
        images: &[RootImage],
        plan: &Plan,
    ) -> Result<(), CopyError> {
        let progress = self.around.progress;
        let mut copied = 0;
        let mut tell = |bytes| {
            copied = bytes;
            progress(Progress::Copied(bytes, plan.copy_bytes.max(bytes)))
        };
        let mut copier = Copier::new(self.store, lease, &plan.layers, &mut tell);
        for image in images {
            copier.image(&image.header)?;
        }
        let (moves, layers) = copier.finish()?;
        self.result.copied_bytes += copied;
        for LayerSummary {
            id, stored_bytes, ..
        } in layers
        {
            self.result.written_bytes += stored_bytes;
            self.done.layers.insert(id);
        }
        let mut relocation = Relocation::new(&moves, &plan.headers);
        for (n, image) in (1..).zip(images) {
            if let Some(header) = self
                .store
                .put_relocated(lease, &image.header, &mut relocation)?
            {
                self.result.written_bytes += header.object_bytes();
                self.done.headers.insert(header.id());
                self.swap(lease, image, &header)?;
            }
            if !progress(Progress::Rewritten(n, images.len() as u64)) {
                return Err(CopyError::Interrupted);
            }
        }
        Ok(())
    }

    fn swap(&mut self, lease: &Lease, image: &RootImage, new: &Header) -> Result<(), StoreError> {
        for name in &image.names {
            let swapped = self.store.exchange(lease, name, image.header.id(), new)?;
            self.result.swapped += u64::from(swapped);
        }
        for session in &image.sessions {
            let record = self
                .store
                .move_session(*session, image.header.id(), new.id())?;
            self.result.swapped += u64::from(record.is_some());
        }
        Ok(())
    }

    /// Sessions go over to their new headers, those also that an earlier run left behind; then what nobody
    /// needs any more is removed.
    fn collect(&mut self) -> Result<(), StoreError> {
        let mut moved = self.store.sessions()?;
        moved.retain(|r| r.moved.is_some_and(|to| self.told.insert((r.id, to))));
        if !moved.is_empty() {
            (self.around.moved)(&moved);
        }
        let nothing = &mut |_, _| {};
        let collected: Collected = gc::collect(self.store, false, nothing)?;
        self.result.removed_objects += collected.removed.len() as u64;
        self.result.removed_bytes += collected.removed_bytes();
        // Their room is free when nobody has them open, which we do.
        self.store.let_go_of_removed();
        Ok(())
    }
}
