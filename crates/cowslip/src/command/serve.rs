//! `cowslip serve`: a snapshot, or a session, as an NBD device, until a signal ends it.
//!
//! In order: the store, the session (opened, begun, or a temporary one), its two worker threads and
//! its control socket, the NBD server, and one line that says that it is ready. The end goes the
//! other way round, and takes less than five seconds: clients are told to go, a running seal is
//! interrupted (the session takes it up when it is served again), what was written is flushed.

use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use cowslip_block::Device;
use cowslip_block::files::RealDir;
use cowslip_block::read_only::ReadOnly;
use cowslip_nbd::{Bound, Export, Listen, ListenError, Served, Server};
use cowslip_snapshot::ids::SnapshotName;
use cowslip_snapshot::image::Image;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::session::{Manifest, Session, SessionError, Surroundings, Workers};
use cowslip_snapshot::store::{Caches, Store};
use listenfd::ListenFd;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Context, open_store, surroundings};
use crate::args::{Address, Serve};
use crate::control::{self, Control};
use crate::failure::{Failure, Kind};
use crate::report::{bytes, complain};

/// What was written survives the end of the process without a flush; a disk that hangs must not
/// hold up the end for longer than this.
const CLOSE_WITHIN: Duration = Duration::from_millis(2500);
/// A compaction has a session at rest open for a moment; a command that takes a snapshot of one, for as
/// long as that takes.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(context: &Context, args: &Serve) -> Result<(), Failure> {
    // Asked for before anything is begun: a signal that comes early ends it just as well.
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|e| Failure::failed(format!("waiting for signals: {e}")))?;
    let served = Target::open(context, args)?;
    let device = served.device(args);
    let name = served.name.to_string();
    let description = format!("{name}, served by {}", cowslip_snapshot::MADE_BY);
    let export = Export {
        name,
        description,
        device: Arc::clone(&device),
    };
    let server = Server::new(export, Box::new(complain))
        .map_err(|e| Failure::failed(format!("starting the server: {e}")))?;
    let (at, one_client) = listen(args, &server, &served)?;
    complain(&format!(
        "ready: serving {} ({}{}) {at}{}",
        served.name,
        bytes(device.geometry().size_bytes),
        if device.geometry().read_only {
            ", read-only"
        } else {
            ""
        },
        served.remark(),
    ));
    let (end, ended) = mpsc::channel();
    if let Some(one_client) = one_client {
        let end = end.clone();
        thread::spawn(move || {
            one_client.wait();
            let _ = end.send(());
        });
    }
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = end.send(());
        }
    });
    // Either of the two; both threads have gone only if both have spoken.
    let _ = ended.recv();
    server.stop();
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        served.close(&*device);
        let _ = end.send(());
    });
    if ended.recv_timeout(CLOSE_WITHIN).is_err() {
        complain("the disk takes long to flush; what was written is kept all the same");
    }
    Ok(())
}

/// What is being served.
struct Target {
    name: SnapshotName,
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
    _control: Control,
    _workers: Workers,
    session: Arc<Session>,
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Target {
    fn open(context: &Context, args: &Serve) -> Result<Self, Failure> {
        let caches = Caches {
            frame_bytes: args.frame_cache.0,
            ..Caches::default()
        };
        let Some(path) = &args.session else {
            let name = args.name.clone().expect("clap wants a name or a session");
            let store_path = context.store_path()?;
            let store = open_told(&store_path, caches)?;
            return Self::without_session(args, name, &store, &store_path);
        };
        let dir = match RealDir::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A session that cannot begin leaves no directory behind.
                open_store(&context.store_path()?, caches)?.resolve(begin_from(args)?)?;
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
            None => Session::create(around()?, begin_from(args)?, args.size.map(|s| s.0)),
        };
        let session = session.map_err(|e| Failure::from(e).about(path.display()))?;
        Self::live(session, &dir, store, path.clone(), None)
    }

    /// Read-only needs no session; a writable device without one gets one for as long as it lives.
    fn without_session(
        args: &Serve,
        name: SnapshotName,
        store: &Arc<Store>,
        store_path: &Path,
    ) -> Result<Self, Failure> {
        let (header, lease) = store.resolve_leased(&name)?;
        if args.read_only && args.size.is_none() {
            let image = Arc::new(Image::new(Arc::clone(store), header));
            let _lease = lease;
            let what = What::Image { image, _lease };
            return Ok(Self { name, what });
        }
        let failed = |e: io::Error| Failure::failed(format!("making a temporary session: {e}"));
        let temporary = tempfile::Builder::new()
            .prefix("cowslip-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(failed)?;
        let path = temporary.path().to_owned();
        let dir = Arc::new(RealDir::open(&path).map_err(failed)?);
        let around = surroundings(&dir, &path, true, store, store_path)?;
        let session = Session::create(around, &name, args.size.map(|s| s.0))?;
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
        let name = session.manifest().began_from;
        let workers = Workers::start(&session, complain).map_err(failed)?;
        let control =
            Control::listen(Arc::clone(dir), Arc::clone(&session), store).map_err(failed)?;
        let live = Live {
            _control: control,
            _workers: workers,
            session,
            path,
            temporary,
        };
        let what = What::Session(live);
        Ok(Self { name, what })
    }

    fn device(&self, args: &Serve) -> Arc<dyn Device> {
        match &self.what {
            What::Session(live) if args.read_only => Arc::new(ReadOnly(live.session.device())),
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

    /// Flushes, and ends the session with all that works behind it.
    fn close(self, device: &dyn Device) {
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
fn open_told(path: &Path, caches: Caches) -> Result<Arc<Store>, Failure> {
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
    let give_up = Instant::now() + OPEN_WITHIN;
    loop {
        match Session::open(around()?) {
            Err(SessionError::InUse)
                if Instant::now() < give_up && control::status(dir).is_none() =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            other => return Ok(other),
        }
    }
}

/// The snapshot that a new session begins from.
fn begin_from(args: &Serve) -> Result<&SnapshotName, Failure> {
    args.name.as_ref().ok_or_else(|| {
        let failure = Failure::from(SessionError::NotASession)
            .hint("name the snapshot that a new session begins from");
        args.session
            .iter()
            .fold(failure, |failure, path| failure.about(path.display()))
    })
}

/// A session that is there goes on as it was; what was typed must not say otherwise.
fn check_same(args: &Serve, manifest: &Manifest) -> Result<(), Failure> {
    if let Some(name) = args.name.as_ref().filter(|n| **n != manifest.began_from) {
        let began = &manifest.began_from;
        let message = format!("the session is there already, and began from {began}, not {name}");
        return Err(Failure::usage(message).hint("leave the name out, or take another directory"));
    }
    if let Some(size) = args.size.filter(|s| s.0 != manifest.size_bytes) {
        let (is, wanted) = (manifest.size_bytes, size.0);
        let message = format!("the session is there already, with {is} bytes, not {wanted}");
        return Err(Failure::usage(message).hint("a size is chosen when a session begins"));
    }
    Ok(())
}

/// Begins to listen; says where, and hands out the one client where there is only one.
fn listen(
    args: &Serve,
    server: &Server,
    target: &Target,
) -> Result<(String, Option<Served>), Failure> {
    if args.stdio {
        let clone = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let stdio = clone(io::stdin().as_fd())
            .and_then(|input| Ok((input, clone(io::stdout().as_fd())?)))
            .and_then(|(input, output)| server.serve_stdio(input, output));
        let client = stdio.map_err(|e| Failure::failed(format!("standard input: {e}")))?;
        return Ok(("on standard input and output".into(), Some(client)));
    }
    let mut places = Vec::new();
    for at in listeners(args, target)? {
        let bound = server.listen(at).map_err(|e| refused(&e))?;
        places.push(match bound {
            Bound::Unix(path) => {
                format!("nbd+unix:///{}?socket={}", target.name, in_uri(&path))
            }
            Bound::Tcp(at) => format!("nbd://{at}/{}", target.name),
        });
    }
    Ok((format!("at {}", places.join(", ")), None))
}

/// A path as a part of a URI (RFC 3986): other bytes than these are percent-encoded.
fn in_uri(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            other => text += &format!("%{other:02X}"),
        }
    }
    text
}

fn listeners(args: &Serve, target: &Target) -> Result<Vec<Listen>, Failure> {
    match &args.nbd {
        Some(Address::Unix(path)) => return Ok(vec![Listen::Unix(path.clone())]),
        Some(Address::Tcp(at)) => return Ok(vec![Listen::Tcp(tcp_address(args, at)?)]),
        None => {}
    }
    let inherited = inherited()?;
    match &target.what {
        _ if !inherited.is_empty() => Ok(inherited),
        What::Session(live) => Ok(vec![Listen::Unix(live.path.join("nbd.sock"))]),
        What::Image { .. } => Err(Failure::usage("nothing says where to listen").hint(
            "--nbd unix:PATH, --nbd tcp:HOST:PORT or --stdio; a --session has a socket of its own",
        )),
    }
}

/// Sockets that whoever started us listens on already (systemd's LISTEN_FDS, sd_listen_fds(3)).
fn inherited() -> Result<Vec<Listen>, Failure> {
    let mut fds = ListenFd::from_env();
    let failed = |e: io::Error| Failure::failed(format!("a socket of LISTEN_FDS: {e}"));
    let mut sockets = Vec::new();
    for index in 0..fds.len() {
        if let Ok(Some(unix)) = fds.take_unix_listener(index) {
            sockets.push(Listen::InheritedUnix(unix));
        } else if let Some(tcp) = fds.take_tcp_listener(index).map_err(failed)? {
            sockets.push(Listen::InheritedTcp(tcp));
        }
    }
    Ok(sockets)
}

fn tcp_address(args: &Serve, at: &str) -> Result<SocketAddr, Failure> {
    let found = at
        .to_socket_addrs()
        .map_err(|e| Failure::usage(format!("tcp:{at}: {e}")))?;
    let all: Vec<SocketAddr> = found.collect();
    let Some(first) = all.first() else {
        return Err(Failure::usage(format!("tcp:{at}: no such address")));
    };
    if !args.allow_remote && !all.iter().all(|a| a.ip().is_loopback()) {
        let message = format!("tcp:{at} can be reached from other machines");
        return Err(Failure::usage(message)
            .hint("there is no encryption yet: --allow-remote, if that is what you want"));
    }
    Ok(*first)
}

fn refused(error: &ListenError) -> Failure {
    let failure = Failure::new(Kind::Failed, error.to_string());
    match error {
        ListenError::InUse(_) => failure.hint("end that server, or take another path"),
        ListenError::NotASocket(_) => failure.hint("take another path: it is never overwritten"),
        _ => failure,
    }
}
