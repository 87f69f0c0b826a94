//! Going over to another base: the one that a seal made, or the one that a compaction made of the old.
//!
//! ```text
//! compaction:  the store's record lists old and new, and says that the old one was moved
//! session:     manifest names the new base -> new requests read it -> record lists the new one only
//! ```
//!
//! A crash between any two leaves a manifest that names a header which the record lists. What was
//! moved reads the same, so it makes no difference when a session goes over; the store keeps the old
//! header until it has, and until the last request that reads it has ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::Dir;
use cowslip_block::planted::{Bug, planted};

use super::directory::take_lock;
use super::manifest::Manifest;
use super::{Session, SessionError, State, image_of, locked};
use crate::error::StoreError;
use crate::header::Header;
use crate::ids::{DirId, HeaderId};
use crate::roots::SessionRecord;
use crate::store::Store;

/// A request that began on the old base has ended by then, as a rule.
const PATIENCE: Duration = Duration::from_secs(5);

impl Session {
    /// Goes over to what a compaction made of the base, if it did. A seal that runs goes on over the
    /// old one, which its lease protects.
    ///
    /// # Errors
    /// [`SessionError`]; the session stays where it is.
    pub fn go_over(&self) -> Result<bool, SessionError> {
        let one = locked(&self.changing);
        let Some(record) = self.store.session(self.record.id) else {
            return Ok(false);
        };
        let old = Arc::clone(&locked(&self.state).base);
        let Some(header) = moved(&self.store, &record, &old)? else {
            return Ok(false);
        };
        let manifest = self.manifest();
        let new = Manifest {
            base: header.id(),
            ..manifest.clone()
        };
        self.replace_manifest(&manifest, new)?;
        self.rebase(&header, 0);
        drop(one);
        self.let_go();
        Ok(true)
    }

    /// Puts `header` in the place of the base and the oldest `count` frozen caches. The manifest
    /// names it, and the store's record lists both.
    pub(super) fn rebase(&self, header: &Arc<Header>, count: usize) {
        let old = std::mem::replace(&mut locked(&self.state).base, Arc::clone(header));
        let device = self.overlay.retire(count, image_of(&self.store, header));
        locked(&self.state).left.push((device, old.id()));
    }

    /// Gives the requests that read an earlier base a moment to end, and tells the store what is needed
    /// then. What is too slow, or fails, is done later: by whoever calls [`Session::settle`].
    pub(super) fn let_go(&self) {
        let give_up = Instant::now() + PATIENCE;
        let is_read = || {
            let state = locked(&self.state);
            state
                .left
                .iter()
                .any(|(device, _)| device.strong_count() > 0)
        };
        while is_read() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(self.settle());
    }

    /// Tells the store which bases are needed, if it knows of others: the last requests that read them have
    /// ended.
    ///
    /// # Errors
    /// [`StoreError`]; they are kept, and it can be tried again.
    pub fn settle(&self) -> Result<(), StoreError> {
        let _one = locked(&self.changing);
        // The manifest on disk may name another base than we know of.
        if self.health.reason().is_some() {
            return Ok(());
        }
        let needed = {
            let mut state = locked(&self.state);
            state.left.retain(|(device, _)| device.strong_count() > 0);
            state.bases()
        };
        if needed == locked(&self.state).noted {
            return Ok(());
        }
        self.note_bases(needed)
    }

    /// Tells the store what this session needs.
    pub(super) fn note_bases(&self, headers: Vec<HeaderId>) -> Result<(), StoreError> {
        if !planted(Bug::BaseUnnoted) {
            self.store.put_session(&SessionRecord {
                headers: headers.clone(),
                moved: None,
                ..self.record.clone()
            })?;
        }
        locked(&self.state).noted = headers;
        Ok(())
    }
}

impl State {
    /// What is read, by the requests that come and by those that have not ended.
    pub(super) fn bases(&self) -> Vec<HeaderId> {
        let left = self.left.iter().map(|(_, id)| *id);
        left.chain([self.base.id()]).collect()
    }
}

/// What became of a session that should go over while nobody serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It has.
    Done,
    /// Somebody has it open, who will see to it.
    InUse,
    /// It has nothing to go over to; or what is in the directory is not that session, or not known for
    /// certain to be it: it goes over when it is opened.
    Not,
}

/// Makes a session that nobody serves go over.
///
/// # Errors
/// [`SessionError`]; the session stays where it is.
pub fn go_over(dir: &dyn Dir, store: &Store, record: &SessionRecord) -> Result<Over, SessionError> {
    // Another's: no lock file is left there.
    if manifest_of(dir, store, record)?.is_none() {
        return Ok(Over::Not);
    }
    let _lock = match take_lock(dir) {
        Err(SessionError::InUse) => return Ok(Over::InUse),
        other => other?,
    };
    let Some(mut manifest) = manifest_of(dir, store, record)? else {
        return Ok(Over::Not);
    };
    let Some(record) = store.session(manifest.id) else {
        return Ok(Over::Not);
    };
    let Some(header) = moved(store, &record, &*store.open_header(manifest.base)?)? else {
        return Ok(Over::Not);
    };
    manifest.base = header.id();
    manifest
        .write(dir)
        .map_err(|e| SessionError::io("writing session.json", e))?;
    store.settle_session(record.id, header.id())?;
    Ok(Over::Done)
}

/// The manifest, if this is the record's directory, and the session's store: a copy of either is another's,
/// and says nothing about what that needs.
fn manifest_of(
    dir: &dyn Dir,
    store: &Store,
    record: &SessionRecord,
) -> Result<Option<Manifest>, SessionError> {
    let here =
        DirId::of(dir).map_err(|e| SessionError::io("looking at the session directory", e))?;
    if record.directory != Some(here) {
        return Ok(None);
    }
    let is_it =
        |m: &Manifest| m.id == record.id && m.store_directory.as_ref() == Some(store.directory());
    Ok(Manifest::read(dir)?.filter(is_it))
}

/// What a compaction made of `base`.
fn moved(
    store: &Store,
    record: &SessionRecord,
    base: &Header,
) -> Result<Option<Arc<Header>>, SessionError> {
    let Some(id) = record.moved.filter(|_| record.headers.contains(&base.id())) else {
        return Ok(None);
    };
    let header = store.open_header(id)?;
    let is_same = header.meta().origin == base.meta().origin
        && header.size_bytes() == base.size_bytes()
        && header.block_size() == base.block_size();
    if !is_same {
        let why = format!("headers/{id} is not the image that the session stands on");
        return Err(SessionError::Damaged(why));
    }
    Ok(Some(header).filter(|h| h.id() != base.id()))
}
