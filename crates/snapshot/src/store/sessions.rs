//! The sessions that a store knows: their records, and what happens to them.
//!
//! | who                                  | changes the record                                        |
//! |--------------------------------------|-----------------------------------------------------------|
//! | a session that begins, or goes on    | it lists the base ([`Store::put_session`], [`Store::admit_session`]) |
//! | a compaction                         | lists what it made of the base as well ([`Store::move_session`]) |
//! | a session that has gone over         | lists only that ([`Store::settle_session`])               |
//! | the user                             | forgets it ([`Store::forget_session`])                    |
//!
//! Invariant: a record is that of one directory. A copy of a session's directory is another session, with
//! an id and a record of its own: what either of them does is no reason to take the other's base away.

use std::io;

use cowslip_block::files::Access;
use uuid::Uuid;

use super::{Store, layer_name};
use crate::error::{ObjectError, StoreError};
use crate::ids::{HeaderId, LayerId, canonical};
use crate::roots::{Collecting, Lease, RootLock, SessionRecord};

impl Store {
    /// The sessions that need something of this store, as far as they are known to it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn sessions(&self) -> Result<Vec<SessionRecord>, StoreError> {
        SessionRecord::list(&*self.sessions)
    }

    /// What is noted of one session; nothing where that cannot be read, to be noted again.
    pub(crate) fn session(&self, id: Uuid) -> Option<SessionRecord> {
        SessionRecord::read(&*self.sessions, &id.to_string()).ok()?
    }

    /// Takes in a session that is opened in a directory, which nobody else has open. `wanted` names its
    /// base alone; what is in force comes back: with what a compaction made of the base, and under another
    /// id where the record of this id is that of another directory.
    ///
    /// # Errors
    /// `BaseGone`, `Corrupt` where the base is damaged, `Busy`, `NoSpace`, `Io`. What the store knew stays.
    pub(crate) fn admit_session(&self, wanted: SessionRecord) -> Result<SessionRecord, StoreError> {
        let base = wanted.headers[0];
        let roots = RootLock::take(&self.leases)?;
        let known = self.session(wanted.id);
        let is_copy = known
            .as_ref()
            .is_some_and(|known| known.directory.is_some() && known.directory != wanted.directory);
        let is_kept = known.as_ref().is_some_and(|k| k.headers.contains(&base));
        let known_moved = known.as_ref().filter(|_| is_kept).and_then(|k| k.moved);
        let moved = known_moved.filter(|moved| *moved != base);
        let record = SessionRecord {
            id: if is_copy {
                self.id_for(&wanted)?
            } else {
                wanted.id
            },
            headers: [base].into_iter().chain(moved).collect(),
            moved,
            ..wanted
        };
        if known.as_ref() == Some(&record) {
            return Ok(record);
        }
        let gone = || {
            let why = match &known {
                Some(known) if is_copy => format!(
                    "this directory is a copy of the session in {}, which has gone on since",
                    known.path.display()
                ),
                Some(_) => "this directory is an older state of the session".into(),
                None => "the store does not know the session, or was told to forget it".into(),
            };
            StoreError::BaseGone { base, why }
        };
        if self.find_header(base)?.is_none() && !is_kept {
            return Err(gone());
        }
        let before = self.session(record.id);
        match record.put(&roots, &self.sessions) {
            // It says less than it could, and keeps what has to be kept.
            Err(StoreError::NoSpace { .. }) if is_kept && !is_copy => return Ok(record),
            other => other?,
        }
        drop(roots);
        if is_kept {
            return Ok(record);
        }
        // Nothing may have kept the base until now: a collection that runs has not seen that something does.
        let whole = Collecting::wait_for_all(&self.leases).and_then(|()| self.has_layers_of(base));
        if let Ok(true) = whole {
            return Ok(record);
        }
        let roots = RootLock::take(&self.leases)?;
        match before {
            Some(before) => before.put(&roots, &self.sessions)?,
            None => SessionRecord::remove(record.id, &roots, &self.sessions)?,
        }
        whole?;
        Err(gone())
    }

    /// An id for a session that has none of its own yet: that of the record that was made for this directory
    /// before, by a process that was killed before it could say so there; or a new one. Whoever asks has
    /// the directory locked.
    pub(crate) fn id_for(&self, wanted: &SessionRecord) -> Result<Uuid, StoreError> {
        let names = self.sessions.list();
        let names = names.map_err(|e| StoreError::io("listing sessions/", e))?;
        let known = names
            .iter()
            .filter_map(|name| self.session(canonical(name)?));
        let half_made = |record: &SessionRecord| {
            record.id != wanted.id
                && record.path == wanted.path
                && record.directory.is_some()
                && record.directory == wanted.directory
        };
        let found = known.filter(half_made).map(|record| record.id).next();
        Ok(found.unwrap_or_else(|| self.host.new_uuid()))
    }

    /// Is there what an image consists of? Its header, the nodes of its map, its layers, and what their deltas are made against.
    fn has_layers_of(&self, header: HeaderId) -> Result<bool, StoreError> {
        // Not what was read before it was removed.
        self.let_go_of_removed();
        let Some(header) = self.find_header(header)? else {
            return Ok(false);
        };
        let mut needed: Vec<LayerId> = header.layers()?.into_keys().collect();
        for layer in needed.clone() {
            // Damage is the business of who reads it.
            let bases = self.bases_of(layer).ok().flatten();
            needed.extend(bases.unwrap_or_default());
        }
        for layer in &needed {
            match self.layers.open(&layer.to_string(), Access::Read) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other.map_err(|e| ObjectError::from(e).of(layer_name(*layer)))?,
            };
        }
        Ok(true)
    }

    /// What is noted of one session, if it is there.
    pub(crate) fn session_record(&self, id: Uuid) -> Result<Option<SessionRecord>, StoreError> {
        SessionRecord::read(&*self.sessions, &id.to_string())
    }

    /// Notes what a session needs, durably.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn put_session(&self, record: &SessionRecord) -> Result<(), StoreError> {
        record.put(&RootLock::take(&self.leases)?, &self.sessions)
    }

    /// Tells a session that `new` is the same image as `old`, which it stands on; both are kept until it
    /// has gone over. Nothing where it does not stand on that any more.
    pub(crate) fn move_session(
        &self,
        id: Uuid,
        old: HeaderId,
        new: HeaderId,
    ) -> Result<Option<SessionRecord>, StoreError> {
        let roots = RootLock::take(&self.leases)?;
        let found = SessionRecord::read(&*self.sessions, &id.to_string())?;
        let Some(mut record) = found.filter(|r| r.headers == [old] && r.moved.is_none()) else {
            return Ok(None);
        };
        record.headers.push(new);
        record.moved = Some(new);
        record.put(&roots, &self.sessions)?;
        Ok(Some(record))
    }

    /// A session has gone over to what it was moved to. One that was forgotten meanwhile stays so.
    pub(crate) fn settle_session(&self, id: Uuid, base: HeaderId) -> Result<(), StoreError> {
        let roots = RootLock::take(&self.leases)?;
        match SessionRecord::read(&*self.sessions, &id.to_string())? {
            Some(record) if record.moved == Some(base) => SessionRecord {
                headers: vec![base],
                moved: None,
                ..record
            }
            .put(&roots, &self.sessions),
            _ => Ok(()),
        }
    }

    /// The life of a temporary session: its record counts as long as this is held, whatever can be
    /// seen of its directory.
    pub(crate) fn lease_session(&self, id: Uuid) -> Result<Lease, StoreError> {
        Lease::take(&self.leases, id)
    }

    /// Forgets a session: nothing is kept for it any more.
    ///
    /// # Errors
    /// `NoSession`, `Io`.
    pub fn forget_session(&self, id: Uuid) -> Result<(), StoreError> {
        SessionRecord::remove(id, &RootLock::take(&self.leases)?, &self.sessions)
    }
}
