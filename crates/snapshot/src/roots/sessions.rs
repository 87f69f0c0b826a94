//! [`SessionRecord`]: how a store knows the sessions that were begun from it.
//!
//! `sessions/<uuid>`, in the form of `checked_json.rs`, replaced as a whole and durable. It lists
//! the headers that the session needs, so that these are kept without a look at its directory: a
//! directory that cannot be found may have been moved, and come back.

use std::path::PathBuf;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, REPLACING, read_all, replace_file};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::RootLock;
use crate::checked_json;
use crate::error::StoreError;
use crate::ids::{DirId, HeaderId, canonical};
use crate::limits::SESSION_RECORD_BYTES_MAX;

/// A session, as its store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Of this file's format.
    pub version: u32,
    /// The session.
    pub id: Uuid,
    /// Where its directory was when it was last opened.
    pub path: PathBuf,
    /// Which directory that is, wherever it is by now. A copy of it is another session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub directory: Option<DirId>,
    /// It goes with the server that began it.
    pub temporary: bool,
    /// What it needs.
    pub headers: Vec<HeaderId>,
    /// The one of them that a compaction made of the one that the session stands on: the same image.
    /// The session goes over to it when it can.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub moved: Option<HeaderId>,
}

impl SessionRecord {
    pub(crate) const VERSION: u32 = 1;

    /// Puts it in force.
    pub(crate) fn put(&self, _: &RootLock, sessions: &Arc<dyn Dir>) -> Result<(), StoreError> {
        let name = self.id.to_string();
        let failed = |e| StoreError::io(format!("writing sessions/{name}"), e);
        let bytes = checked_json::encode(self).map_err(failed)?;
        if bytes.len() as u64 > SESSION_RECORD_BYTES_MAX {
            let what = format!("sessions/{name} in bytes");
            return Err(StoreError::limit(what, SESSION_RECORD_BYTES_MAX));
        }
        replace_file(&**sessions, &name, &bytes).map_err(failed)
    }

    pub(crate) fn remove(
        id: Uuid,
        _: &RootLock,
        sessions: &Arc<dyn Dir>,
    ) -> Result<(), StoreError> {
        let name = id.to_string();
        match sessions.remove(&name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NoSession { id });
            }
            other => other.map_err(|e| StoreError::io(format!("removing sessions/{name}"), e))?,
        }
        sessions
            .sync()
            .map_err(|e| StoreError::io("syncing sessions/", e))
    }

    /// Removes what a crash left of one that was being put in force: whoever did so held the lock.
    pub(crate) fn sweep(_: &RootLock, sessions: &dyn Dir) -> Result<(), StoreError> {
        let failed = |e| StoreError::io("sweeping sessions/", e);
        for name in sessions.list().map_err(failed)? {
            let id = name.strip_suffix(REPLACING).map(Uuid::parse_str);
            if matches!(id, Some(Ok(_))) {
                sessions.remove(&name).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// All of them, by id. One that cannot be read is an error: what it needs is not known.
    pub(crate) fn list(sessions: &dyn Dir) -> Result<Vec<Self>, StoreError> {
        let names = sessions
            .list()
            .map_err(|e| StoreError::io("listing sessions/", e))?;
        let mut records = Vec::new();
        for name in names.iter().filter(|n| canonical(n).is_some()) {
            // One that is not there was forgotten since the directory was listed.
            records.extend(Self::read(sessions, name)?);
        }
        records.sort_by_key(|record| record.id);
        Ok(records)
    }

    /// One of them, if it is there.
    pub(crate) fn read(sessions: &dyn Dir, name: &str) -> Result<Option<Self>, StoreError> {
        let read = sessions
            .open(name, Access::Read)
            .and_then(|file| read_all(&*file, SESSION_RECORD_BYTES_MAX));
        let bytes = match read {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| StoreError::io(format!("reading sessions/{name}"), e))?,
        };
        let record = checked_json::decode::<Self>(&bytes).and_then(|record| match &record {
            Self { version, .. } if *version != Self::VERSION => Err(format!(
                "has version {version}; this release reads {}",
                Self::VERSION
            )),
            Self { id, .. } if id.to_string() != name => {
                Err(format!("is the record of {id}, under a wrong name"))
            }
            _ => Ok(record),
        });
        record.map(Some).map_err(|why| StoreError::Corrupt {
            object: format!("sessions/{name}"),
            place: "all of it".into(),
            why,
        })
    }
}
