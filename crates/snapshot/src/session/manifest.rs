//! The session's list of what it is made of: `session.json`.
//!
//! In the form of `checked_json.rs`. It is always replaced as a whole and synced, file and
//! directory, before anything relies on it; so a flush need not think of it (invariant 2).

use std::io;
use std::path::PathBuf;

use cowslip_block::files::{Access, Dir, REPLACING, read_all, replace_file};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SessionError;
use crate::checked_json;
use crate::ids::{DirId, HeaderId, SnapshotName};
use crate::limits::{FROZEN_CACHES_MAX, SESSION_MANIFEST_BYTES_MAX};
use crate::seal::SealRequest;

pub(super) const FILE: &str = "session.json";
const VERSION: u32 = 1;

/// What a session is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file's format.
    pub version: u32,
    /// The session's own id.
    pub id: Uuid,
    /// Where the store was when the session was last opened.
    pub store: PathBuf,
    /// Which directory that is: a copy of a store has the same paths in it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store_directory: Option<DirId>,
    /// The name of the snapshot that it began from.
    pub began_from: SnapshotName,
    /// The header that everything below the caches is read from.
    pub base: HeaderId,
    /// The snapshot that `base` was committed as, when it was.
    pub base_name: SnapshotName,
    /// The device's size; at least that of the base.
    pub size_bytes: u64,
    /// The device's block size, which is the base's.
    pub block_size_bytes: u32,
    /// Oldest first; the last one is written, the others are frozen.
    pub caches: Vec<CacheEntry>,
    /// Number of the next cache.
    pub next_cache: u64,
}

/// One cache of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// The stem of its files' names.
    pub name: String,
    /// What it is to become, if it was frozen for a snapshot that is not committed yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seal: Option<SealRequest>,
}

impl Manifest {
    pub(super) const VERSION: u32 = VERSION;

    /// Reads the manifest of a session directory; nothing where there is none.
    ///
    /// # Errors
    /// [`SessionError::Damaged`], or the file system's own.
    pub fn read(dir: &dyn Dir) -> Result<Option<Self>, SessionError> {
        let bytes = bytes_of(dir, FILE)?;
        bytes.map(|bytes| Self::parse(&bytes)).transpose()
    }

    /// The same, for whoever opens the session. A disk that failed may have lost the bytes of the list, and have those of the one that was to take its
    /// place and could not: that takes it now. It is what the session was about to be: what it lists is there, or the session does not open.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub(super) fn take(dir: &dyn Dir) -> Result<Option<Self>, SessionError> {
        let is_whole = |bytes: &Option<Vec<u8>>| {
            let bytes = bytes.as_deref();
            bytes.is_none_or(checked_json::is_whole)
        };
        let next = format!("{FILE}{REPLACING}");
        if !is_whole(&bytes_of(dir, FILE)?)
            && let Some(bytes) = bytes_of(dir, &next)?
            && let Ok(manifest) = Self::parse(&bytes)
        {
            let renamed = dir.rename(&next, FILE).and_then(|()| dir.sync());
            renamed.map_err(|e| SessionError::io("putting session.json in its place", e))?;
            return Ok(Some(manifest));
        }
        Self::read(dir)
    }

    fn parse(bytes: &[u8]) -> Result<Self, SessionError> {
        let damaged = |why: String| SessionError::Damaged(format!("session.json {why}"));
        let manifest: Self = checked_json::decode(bytes).map_err(damaged)?;
        if manifest.version != VERSION {
            let version = manifest.version;
            return Err(damaged(format!(
                "has version {version}; this release reads {VERSION}"
            )));
        }
        if manifest.next_cache >= 1 << 62 {
            return Err(damaged("numbers its caches as nobody gets to".into()));
        }
        if manifest.caches.is_empty() {
            return Err(damaged("lists no cache".into()));
        }
        let (frozen, max) = (manifest.caches.len() - 1, 2 * FROZEN_CACHES_MAX);
        if frozen > max {
            return Err(damaged(format!(
                "lists {frozen} frozen caches; at most {max}"
            )));
        }
        Ok(manifest)
    }

    /// Puts it on disk, durable when this returns.
    pub(super) fn write(&self, dir: &dyn Dir) -> io::Result<()> {
        let bytes = checked_json::encode(self)?;
        if bytes.len() as u64 > SESSION_MANIFEST_BYTES_MAX {
            let why = format!(
                "{} bytes; at most {SESSION_MANIFEST_BYTES_MAX}",
                bytes.len()
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        replace_file(dir, FILE, &bytes)
    }
}

fn bytes_of(dir: &dyn Dir, name: &str) -> Result<Option<Vec<u8>>, SessionError> {
    let file = match dir.open(name, Access::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| SessionError::io("opening session.json", e))?,
    };
    let bytes = read_all(&*file, SESSION_MANIFEST_BYTES_MAX);
    let bytes = bytes.map_err(|e| SessionError::io("reading session.json", e))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_a_disk_lost_is_replaced_by_the_one_that_was_to_be() {
        let temp = tempfile::tempdir().unwrap();
        let dir = cowslip_block::files::RealDir::open(temp.path()).unwrap();
        let (old, new) = (with_caches(1), with_caches(2));
        let put = |name: &str, bytes: &[u8]| std::fs::write(temp.path().join(name), bytes).unwrap();
        let encoded = |manifest| checked_json::encode(manifest).unwrap();
        let (next, zeros) = ("session.json.new", [0; 500]);
        assert_eq!(Manifest::take(&dir).unwrap(), None);
        // One that is whole counts, whatever was to be.
        put(FILE, &encoded(&old));
        put(next, &encoded(&new));
        assert_eq!(Manifest::take(&dir).unwrap(), Some(old.clone()));
        // Also where a later release wrote it.
        let later = Manifest {
            version: VERSION + 1,
            ..old.clone()
        };
        put(FILE, &encoded(&later));
        let why = Manifest::take(&dir).unwrap_err().to_string();
        assert!(why.contains("version"), "{why}");
        put(FILE, &zeros);
        assert_eq!(Manifest::take(&dir).unwrap(), Some(new.clone()));
        assert_eq!(
            Manifest::read(&dir).unwrap(),
            Some(new.clone()),
            "it is in its place"
        );
        put(FILE, &zeros);
        put(next, &encoded(&old)[..20]);
        let why = Manifest::take(&dir).unwrap_err().to_string();
        assert!(why.contains("does not match its checksum"), "{why}");
    }

    fn with_caches(count: usize) -> Manifest {
        let name: SnapshotName = "base".parse().unwrap();
        let cache = |n| CacheEntry {
            name: format!("cache-{n}"),
            seal: None,
        };
        Manifest {
            version: VERSION,
            id: Uuid::from_u128(1),
            store: "store".into(),
            store_directory: None,
            began_from: name.clone(),
            base: HeaderId(Uuid::from_u128(2)),
            base_name: name,
            size_bytes: 10,
            block_size_bytes: 4096,
            caches: (0..count).map(cache).collect(),
            next_cache: 1000,
        }
    }

    #[test]
    fn more_caches_than_a_session_gets_to_are_refused() {
        let parse = |count| Manifest::parse(&checked_json::encode(&with_caches(count)).unwrap());
        let most = 2 * FROZEN_CACHES_MAX + 1;
        assert_eq!(parse(most).unwrap(), with_caches(most));
        let why = parse(most + 1).unwrap_err().to_string();
        assert!(why.contains("129 frozen caches; at most 128"), "{why}");
        assert!(parse(0).is_err());
    }

    #[test]
    fn a_list_that_is_too_long_is_not_written_and_not_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = cowslip_block::files::RealDir::open(temp.path()).unwrap();
        let of = |len: usize| Manifest {
            store: "s".repeat(len).into(),
            ..with_caches(1)
        };
        let beside = checked_json::encode(&of(0)).unwrap().len();
        let most = usize::try_from(SESSION_MANIFEST_BYTES_MAX).unwrap() - beside;
        of(most).write(&dir).unwrap();
        assert_eq!(Manifest::read(&dir).unwrap(), Some(of(most)));
        let why = of(most + 1).write(&dir).unwrap_err().to_string();
        assert!(why.contains("1048577 bytes; at most 1048576"), "{why}");
        let bytes = checked_json::encode(&of(most + 1)).unwrap();
        std::fs::write(temp.path().join(FILE), bytes).unwrap();
        let why = Manifest::read(&dir).unwrap_err().to_string();
        assert!(why.contains("at most 1048576 are read"), "{why}");
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let manifest = with_caches(1);
        let temp = tempfile::tempdir().unwrap();
        let dir = cowslip_block::files::RealDir::open(temp.path()).unwrap();
        assert_eq!(Manifest::read(&dir).unwrap(), None);
        manifest.write(&dir).unwrap();
        assert_eq!(Manifest::read(&dir).unwrap(), Some(manifest));
        let good = std::fs::read(temp.path().join(FILE)).unwrap();
        assert!(Manifest::parse(&good).is_ok());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Manifest::parse(&bad).is_err(), "byte {at}");
            assert!(Manifest::parse(&good[..at]).is_err(), "cut at {at}");
        }
    }
}
