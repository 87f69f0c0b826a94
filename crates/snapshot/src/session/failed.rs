//! A note in the session's directory that the disk under it failed.
//!
//! What the kernel could not write it forgets, or goes on to show as if it were on the disk: nothing that no
//! flush covers can be believed from then on, by whoever opens the session next. The boot id does not tell,
//! as it does after a power cut; so this does. It is left as soon as writes are refused, or as soon as the
//! disk takes it, and removed when the session has been opened again and all that is believed of it is on
//! the disk.

use std::io;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir};
use cowslip_block::health::Health;

pub(super) const FAILED: &str = "failed";

/// A health that leaves the note.
pub(super) fn health(dir: &Arc<dyn Dir>, say: Box<dyn Fn(&str) + Send + Sync>) -> Arc<Health> {
    let dir = Arc::clone(dir);
    Health::new(move |reason| {
        // On a disk that does not take it just now: again, by `Session::tidy`.
        drop(leave(&*dir));
        say(reason);
    })
}

/// Leaves it, if it is not there.
pub(super) fn leave(dir: &dyn Dir) -> io::Result<()> {
    if !is_left(dir)? {
        dir.create(FAILED)?.sync()?;
    }
    dir.sync()
}

pub(super) fn is_left(dir: &dyn Dir) -> io::Result<bool> {
    match dir.open(FAILED, Access::Read) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// What is believed is on the disk.
pub(super) fn remove(dir: &dyn Dir) -> io::Result<()> {
    dir.remove(FAILED)?;
    dir.sync()
}
