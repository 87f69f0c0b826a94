//! [`Target`]: what a front end serves, a snapshot or a session, from the opening to the last flush.
//!
//! In order: the store, the session (opened, begun, or a temporary one), its two worker threads and its control
//! socket. The end goes the other way round: a running seal is interrupted (the session takes it up when it
//! is served again), what was written is flushed, within a bound.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use cowslip_block::Device;
use cowslip_block::files::RealDir;
use cowslip_block::read_only::ReadOnly;
use cowslip_snapshot::ids::{ImageName, SnapshotName};
use cowslip_snapshot::image::Image;
use cowslip_snapshot::parts::Part;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::session::{
    Manifest, Session, SessionError, SnapshotOptions, Surroundings, Workers,
};
use cowslip_snapshot::store::{Caches, Store};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Context, open_store, surroundings};
use crate::args::DeviceOptions;
use crate::control::{self, Answer, Control, ItsGuest, Patience};
use crate::failure::Failure;
use crate::report::{Taken, bytes, complain};
use crate::run::Guest;

/// What was written survives the end of the process without a flush; a disk that hangs must not
/// hold up the end for longer than this.
const CLOSE_WITHIN: Duration = Duration::from_millis(2500);

/// What the user wants to be served.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Where there is none there is a session.
    pub(super) name: Option<&'a ImageName>,
    pub(super) options: &'a DeviceOptions,
}

/// SIGTERM and SIGINT, asked for before anything is begun: one that comes early ends it just as well.
pub(super) fn signals() -> Result<Signals, Failure> {
    Signals::new([SIGTERM, SIGINT])
        .map_err(|e| Failure::failed(format!("waiting for signals: {e}")))
}

/// Sends a word on the first signal.
pub(super) fn on_signal(mut signals: Signals, end: mpsc::Sender<()>) {
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = end.send(());
        }
    });
}

/// What is being served.
pub(super) struct Target {
    pub(super) name: ImageName,
    pub(super) store: Arc<Store>,
    what: What,
}

enum What {
    Session(Live),
    /// Read-only; the lease keeps it, whatever becomes of its name.
    Image {
        image: Arc<dyn Device>,
        _lease: Lease,
    },
}

/// A session, and what works behind it. Dropped in this order.
struct Live {
    control: Control,
    _workers: Workers,
    guest: ItsGuest,
    session: Arc<Session>,
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Target {
    pub(super) fn open(context: &Context, args: &Wanted<'_>) -> Result<Self, Failure> {
        let caches = Caches {
            frame_bytes: args.options.frame_cache.0,
            ..Caches::default()
        };
        let Some(path) = &args.options.session else {
            let name = args.name.cloned().expect("clap wants a name or a session");
            let store_path = context.store_path()?;
            let store = open_told(&store_path, caches)?;
            return Self::without_session(args, name, &store, &store_path);
        };
        let dir = match RealDir::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A session that cannot begin leaves no directory behind.
                let store = open_store(&context.store_path()?, caches)?;
                disk_of(&store, begin_from(args)?)?;
                RealDir::open_or_create(path)
            }
            there => there,
        };
        let dir = Arc::new(dir.map_err(|e| Failure::file(path, &e))?);
        let known = Manifest::read(&*dir)?;
        let store_path = match (&context.global.store, &known) {
            (None, Some(manifest)) => manifest.store.clone(),
            _ => context.store_path()?,
        };
        let store = open_told(&store_path, caches)?;
        let around = || surroundings(&dir, path, false, &store, &store_path);
        let session = match known {
            Some(manifest) => {
                check_same(args, &manifest)?;
                open_patiently(&dir, &around)?
            }
            None => {
                let disk = disk_of(&store, begin_from(args)?)?;
                Session::create(around()?, &disk, args.options.size.map(|s| s.0))
            }
        };
        let session = session.map_err(|e| Failure::from(e).about(path.display()))?;
        Self::live(session, &dir, store, path.clone(), None)
    }

    /// Read-only needs no session; a writable device without one gets one for as long as it lives.
    fn without_session(
        args: &Wanted<'_>,
        name: ImageName,
        store: &Arc<Store>,
        store_path: &Path,
    ) -> Result<Self, Failure> {
        if args.options.read_only && args.options.size.is_none() {
            let (header, _lease) = store.resolve_image_leased(&name)?;
            let image = Arc::new(Image::new(Arc::clone(store), header));
            let what = What::Image { image, _lease };
            let store = Arc::clone(store);
            return Ok(Self { name, store, what });
        }
        let disk = disk_of(store, &name)?;
        let failed = |e: io::Error| Failure::failed(format!("making a temporary session: {e}"));
        let temporary = tempfile::Builder::new()
            .prefix("cowslip-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(failed)?;
        let path = temporary.path().to_owned();
        let dir = Arc::new(RealDir::open(&path).map_err(failed)?);
        let around = surroundings(&dir, &path, true, store, store_path)?;
        let session = Session::create(around, &disk, args.options.size.map(|s| s.0))?;
        Self::live(session, &dir, Arc::clone(store), path, Some(temporary))
    }

    fn live(
        session: Session,
        dir: &Arc<RealDir>,
        store: Arc<Store>,
        path: PathBuf,
        temporary: Option<tempfile::TempDir>,
    ) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::failed(format!("{}: {e}", path.display()));
        let session = Arc::new(session);
        let name = (&session.manifest().began_from).into();
        let workers = Workers::start(&session, complain).map_err(failed)?;
        let guest = ItsGuest::default();
        let control = Control::listen(
            Arc::clone(dir),
            Arc::clone(&session),
            Arc::clone(&store),
            Arc::clone(&guest),
        );
        let live = Live {
            control: control.map_err(failed)?,
            _workers: workers,
            guest,
            session,
            path,
            temporary,
        };
        let what = What::Session(live);
        Ok(Self { name, store, what })
    }

    /// From now on snapshots hold this guest.
    pub(super) fn has_guest(&self, guest: Arc<Guest>) {
        if let What::Session(live) = &self.what {
            // There is one guest, once.
            let _ = live.guest.set(guest);
        }
    }

    /// A snapshot by who serves it; none of what is only read.
    pub(super) fn snapshot(
        &self,
        name: &SnapshotName,
        replace: bool,
        say: &dyn Fn(&Answer),
    ) -> Result<Taken, Failure> {
        let What::Session(live) = &self.what else {
            return Err(Failure::usage("what is only read has no snapshots"));
        };
        let options = SnapshotOptions {
            replace,
            ..SnapshotOptions::default()
        };
        control::take(
            &live.session,
            &self.store,
            None,
            name,
            &options,
            || true,
            say,
        )
    }

    /// Gives up a snapshot that is being stored: its blocks are the session's again. One that is all but stored is.
    pub(super) fn cancel(&self, name: &SnapshotName) {
        if let What::Session(live) = &self.what {
            let _ = live.session.cancel(name);
        }
    }

    /// Is what is written dropped at the end?
    pub(super) fn is_temporary(&self) -> bool {
        matches!(&self.what, What::Session(live) if live.temporary.is_some())
    }

    pub(super) fn device(&self, read_only: bool) -> Arc<dyn Device> {
        match &self.what {
            What::Session(live) if read_only => Arc::new(ReadOnly(live.session.device())),
            What::Session(live) => live.session.device(),
            What::Image { image, .. } => Arc::clone(image),
        }
    }

    fn remark(&self) -> String {
        let What::Session(live) = &self.what else {
            return String::new();
        };
        let path = live.path.display();
        match live.temporary {
            Some(_) => {
                format!(", temporary session {path}: what is written is dropped at the end")
            }
            None => format!(", session {path}"),
        }
    }

    /// The session's directory, where what is written is kept.
    pub(super) fn session(&self) -> Option<&Path> {
        match &self.what {
            What::Session(live) => Some(&live.path),
            What::Image { .. } => None,
        }
    }

    /// One line: what is there for clients now, and what becomes of what they write. `way` says how they
    /// come to it.
    pub(super) fn say_ready(&self, device: &dyn Device, way: &str) {
        let geometry = device.geometry();
        let read_only = if geometry.read_only {
            ", read-only"
        } else {
            ""
        };
        complain(&format!(
            "ready: serving {} ({}{read_only}) {way}{}",
            self.name,
            bytes(geometry.size_bytes),
            self.remark(),
        ));
    }

    /// Flushes, and ends the session with all that works behind it; or says, after a while, that the disk takes
    /// too long for that.
    pub(super) fn close(self, device: Arc<dyn Device>) {
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            self.close_in_time(&*device);
            let _ = end.send(());
        });
        if ended.recv_timeout(CLOSE_WITHIN).is_err() {
            complain("the disk takes long to flush; what was written is kept all the same");
        }
    }

    /// The same for a server that could not take over what its session's last one had left: it is there for the next one, who knows it
    /// by the control socket.
    pub(super) fn close_for_the_next(mut self, device: Arc<dyn Device>) {
        if let What::Session(live) = &mut self.what {
            live.control.leave_socket();
        }
        self.close(device);
    }

    fn close_in_time(self, device: &dyn Device) {
        let What::Session(live) = self.what else {
            return;
        };
        let ended = match live.temporary {
            Some(_) => live.session.forget().map_err(Failure::from),
            None => device.flush().map_err(Failure::from),
        };
        if let Err(failure) = ended {
            complain(&format!("ending the session: {}", failure.message));
        }
    }
}

/// A store whose damage is said when a client comes by it: once, while each read of it fails.
pub(super) fn open_told(path: &Path, caches: Caches) -> Result<Arc<Store>, Failure> {
    let store = open_store(path, caches)?;
    store.on_damage(|what| {
        complain(&format!(
            "{what}; reads of it fail. `cowslip verify` lists all damage, `cowslip repair` mends what can be had again"
        ));
    });
    Ok(store)
}

/// Opens a session once whoever has it open for a moment has done with it. A server that answers is
/// not waited for.
fn open_patiently(
    dir: &RealDir,
    around: &dyn Fn() -> Result<Surroundings, Failure>,
) -> Result<Result<Session, SessionError>, Failure> {
    let patience = Patience::begin();
    loop {
        match Session::open(around()?) {
            Err(SessionError::InUse) if patience.tries_again(dir) => {}
            other => return Ok(other),
        }
    }
}

/// The snapshot that a new session begins from.
fn begin_from<'a>(args: &Wanted<'a>) -> Result<&'a ImageName, Failure> {
    args.name.ok_or_else(|| {
        let failure = Failure::from(SessionError::NotASession)
            .hint("name the snapshot that a new session begins from");
        args.options
            .session
            .iter()
            .fold(failure, |failure, path| failure.about(path.display()))
    })
}

/// The snapshot whose disk this is: what is written is a disk's, and the other parts are only read.
fn disk_of(store: &Store, image: &ImageName) -> Result<SnapshotName, Failure> {
    if let Some(part) = image.part.filter(|part| *part != Part::Disk) {
        let message = format!("{image} is no disk: its {part} can be read, and not written");
        return Err(Failure::usage(message).hint("--read-only, without --session or --size"));
    }
    store.resolve_image(&ImageName::part(&image.name, Part::Disk))?;
    Ok(image.name.clone())
}

/// A session that is there goes on as it was; what was typed must not say otherwise.
fn check_same(args: &Wanted<'_>, manifest: &Manifest) -> Result<(), Failure> {
    if let Some(name) = args.name.filter(|n| n.name != manifest.began_from) {
        let began = &manifest.began_from;
        let message = format!("the session is there already, and began from {began}, not {name}");
        return Err(Failure::usage(message).hint("leave the name out, or take another directory"));
    }
    if let Some(size) = args.options.size.filter(|s| s.0 != manifest.size_bytes) {
        let (is, wanted) = (manifest.size_bytes, size.0);
        let message = format!("the session is there already, with {is} bytes, not {wanted}");
        return Err(Failure::usage(message).hint("a size is chosen when a session begins"));
    }
    Ok(())
}
