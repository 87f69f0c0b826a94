//! Forgetting a session: the store keeps nothing for it any more.

use std::path::Path;
use std::sync::Arc;

use cowslip_block::files::Dir;
use uuid::Uuid;

use super::SessionError;
use super::directory::take_lock;
use super::manifest::Manifest;
use crate::ids::DirId;
use crate::roots::SessionRecord;
use crate::store::Store;

/// Forgets a session that nobody has open. `open` opens a directory, if it is there: the one where the session
/// was last seen is held meanwhile.
///
/// # Errors
/// [`SessionError::InUse`]: what it reads would be taken away. As [`Store::forget_session`].
pub fn forget(
    store: &Store,
    id: Uuid,
    open: impl FnOnce(&Path) -> Option<Arc<dyn Dir>>,
) -> Result<(), SessionError> {
    // A record that cannot be read names no directory.
    let known = store.session(id);
    let dir = known.as_ref().and_then(|known| open(&known.path));
    let dir = dir.filter(|dir| known.as_ref().is_some_and(|k| is_in(k, &**dir)));
    let _lock = dir.map(|dir| take_lock(&*dir)).transpose()?;
    Ok(store.forget_session(id)?)
}

/// Is this session in the directory? A copy of it is not.
pub fn is_in(record: &SessionRecord, dir: &dyn Dir) -> bool {
    let is_here = record.directory.is_none() || record.directory == DirId::of(dir).ok();
    is_here && matches!(Manifest::read(dir), Ok(Some(m)) if m.id == record.id)
}
