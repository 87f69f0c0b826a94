//! [`Server`]: the FUSE file system mounted, and the threads that answer it.
//!
//! It lives until the kernel lets go of it: when it is mounted nowhere and nobody has its file open. There
//! is no way to end it from here: whoever has the file open decides, or the end of the process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cowslip_block::Device;
use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{configure_io_flusher_behavior, getegid, geteuid};

use crate::disk::{Disk, Say};
use crate::ended::Ended;
use crate::error::AttachError;

/// The kind of file system, as mountinfo tells it.
pub(crate) const KIND: &str = "fuse.cowslip";
/// A read that misses waits for the store, a flush for the disk; the others go on meanwhile.
const THREADS: usize = 6;

/// See the module.
pub(crate) struct Server(Arc<Ended>);

impl Server {
    /// Mounts the device as the file `name` of a file system at `at`, and answers from now on. `on_end` is told when the
    /// kernel has let go.
    pub(crate) fn start(
        device: Arc<dyn Device>,
        at: &Path,
        name: String,
        say: Say,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, AttachError> {
        let fuse = mount(at).map_err(AttachError::io("mounting a FUSE file system"))?;
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        // The kernel lets nobody in but whoever mounted it.
        config.acl = SessionACL::All;
        let disk = Disk::new(device, name, say);
        let started = Session::from_fd(disk, fuse, SessionACL::All, config).and_then(|session| {
            let server = Self(Arc::new(Ended::new(on_end)));
            let ended = Arc::clone(&server.0);
            thread::Builder::new().name("fuse".into()).spawn(move || {
                // Those that write back to free memory come through these threads: that they free memory by
                // writing back must not be waited for. It needs a privilege, and is worth having without.
                let _ = configure_io_flusher_behavior(true);
                // However it ends, there is nobody left to answer.
                drop(session.run());
                ended.tell();
            })?;
            Ok(server)
        });
        started.map_err(|error| {
            let _ = let_go(at);
            AttachError::io("answering the kernel's FUSE requests")(error)
        })
    }

    /// Has the kernel let go, after so long at most?
    pub(crate) fn ends_within(&self, within: Duration) -> bool {
        self.0.within(within)
    }
}

/// mount(2): returns at once, what the kernel asks first is answered later.
fn mount(at: &Path) -> io::Result<OwnedFd> {
    let fuse = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let options = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group}",
        fuse.as_raw_fd()
    );
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("cowslip", at, KIND, flags, &*options)?;
    Ok(fuse)
}

/// Takes a FUSE file system out of the tree. It lives on while its file is open.
pub(crate) fn let_go(at: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(
        at,
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    )?)
}
