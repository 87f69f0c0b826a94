//! Whose is what in a session's directory.

use cowslip_block::BlockSize;
use cowslip_block::cache::Cache;
use cowslip_block::files::{Dir, Lock};

use super::SessionError;
use super::failed::FAILED;
use super::manifest::CacheEntry;

const LOCK: &str = "lock";

pub(super) fn take_lock(dir: &dyn Dir) -> Result<Box<dyn Lock>, SessionError> {
    let lock = dir
        .try_lock(LOCK)
        .map_err(|e| SessionError::io("locking the session", e))?;
    lock.ok_or(SessionError::InUse)
}

/// Whose is a file of a session directory?
fn cache_of(file: &str) -> Option<&str> {
    let (stem, _) = file.split_once('.')?;
    stem.strip_prefix("cache-")?
        .parse::<u64>()
        .ok()
        .map(|_| stem)
}

pub(super) fn refuse_foreign(dir: &dyn Dir) -> Result<(), SessionError> {
    let names = dir
        .list()
        .map_err(|e| SessionError::io("listing the session directory", e))?;
    let ours = |n: &str| {
        matches!(
            n,
            LOCK | FAILED | "control.sock" | "nbd.sock" | "session.json.new"
        ) || cache_of(n).is_some()
    };
    match names.into_iter().find(|n| !ours(n)) {
        Some(foreign) => Err(SessionError::Foreign(foreign)),
        None => Ok(()),
    }
}

/// Removes the files of caches that the manifest does not list: a crash left them.
pub(super) fn remove_unlisted(
    dir: &dyn Dir,
    listed: &[CacheEntry],
    block_size: BlockSize,
) -> Result<(), SessionError> {
    let names = dir
        .list()
        .map_err(|e| SessionError::io("listing the session directory", e))?;
    for stem in names.iter().filter_map(|n| cache_of(n)) {
        if !listed.iter().any(|c| c.name == stem) {
            Cache::remove(dir, stem, block_size)
                .map_err(|e| SessionError::io(format!("removing what is left of {stem}"), e))?;
        }
    }
    Ok(())
}
