//! `cowslip attach`: a snapshot, or a session, as a block device of the kernel, until a signal ends it, or
//! somebody clears the device.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use cowslip_attach::{AttachError, Attached, Found, Options, Waiting, Way};
use cowslip_block::Device;
use serde::Serialize;

use super::Context;
use super::target::{Target, Wanted, on_signal, signals};
use crate::args::{Attach, How, RunDir, Via};
use crate::control;
use crate::failure::{Failure, Kind};
use crate::report::complain;

/// Its field names are a contract.
#[derive(Debug, Serialize)]
struct Line<'a> {
    device: &'a Path,
    via: &'a str,
    taken_over: bool,
    name: String,
    session: Option<&'a Path>,
    size_bytes: u64,
    read_only: bool,
    pid: u32,
}

pub(super) fn run(context: &Context, args: &Attach) -> Result<(), Failure> {
    let signals = signals()?;
    let wanted = Wanted {
        name: args.name.as_ref(),
        options: &args.device,
    };
    let live = Live::begin(context, &wanted, &args.how, &args.run)?;
    let told = live.tell(context);
    if told.is_ok() {
        let path = live.attached.device().display().to_string();
        let way = format!("as {path} {}", live.by_way_of);
        live.target.say_ready(&*live.device, &way);
        on_signal(signals, live.end.clone());
        let _ = live.ended.recv();
    }
    live.end();
    told
}

/// A target, attached.
pub(super) struct Live {
    pub(super) target: Target,
    pub(super) session: Option<PathBuf>,
    pub(super) device: Arc<dyn Device>,
    pub(super) attached: Attached,
    pub(super) way: Way,
    /// Which way it is, and why.
    pub(super) by_way_of: String,
    /// From a server that was killed.
    pub(super) is_taken_over: bool,
    /// A word for the end: of a signal, or because the kernel has let go.
    pub(super) end: mpsc::Sender<()>,
    pub(super) ended: mpsc::Receiver<()>,
}

impl Live {
    pub(super) fn begin(
        context: &Context,
        wanted: &Wanted<'_>,
        how: &How,
        run: &RunDir,
    ) -> Result<Self, Failure> {
        // Before a session is begun.
        let (way, by_way_of) = choose(how.via)?;
        let waits = waiting(wanted, way, run)?;
        let is_taken_over = waits.is_some();
        let target = Target::open(context, wanted)?;
        let device = target.device(wanted.options.read_only);
        // As others find it who stand elsewhere.
        let session = target
            .session()
            .map(|path| path.canonicalize().unwrap_or_else(|_| path.to_owned()));
        let (end, ended) = mpsc::channel();
        let on_end = end.clone();
        let attached = Attached::new(
            Arc::clone(&device),
            &cowslip_attach::Wanted {
                way,
                nbd: options(how),
                run_dir: &run.path,
                name: &target.name.to_string(),
                session: session.as_deref(),
                served_as: session.as_deref().and_then(served_as).as_deref(),
            },
            waits,
            complain,
            move || {
                let _ = on_end.send(());
            },
        );
        match attached {
            Ok(attached) => Ok(Self {
                target,
                session,
                device,
                attached,
                way,
                by_way_of,
                is_taken_over,
                end,
                ended,
            }),
            Err(error) => {
                if is_taken_over {
                    target.close_for_the_next(device);
                } else {
                    target.close(device);
                }
                Err(error.into())
            }
        }
    }

    fn tell(&self, context: &Context) -> Result<(), Failure> {
        let geometry = self.device.geometry();
        let line = Line {
            device: self.attached.device(),
            via: self.way.name(),
            taken_over: self.is_taken_over,
            name: self.target.name.to_string(),
            session: self.session.as_deref(),
            size_bytes: geometry.size_bytes,
            read_only: geometry.read_only,
            pid: std::process::id(),
        };
        let path = || line.device.display().to_string();
        context.report.result(&line, path)
    }

    /// Ends it; says whether nobody is cut off.
    pub(super) fn end(self) -> bool {
        let is_gone = self.attached.end();
        self.target.close(self.device);
        is_gone
    }
}

/// The way, and what is to be said of it.
fn choose(via: Via) -> Result<(Way, String), Failure> {
    let chosen = |way: Way| (way, format!("by way of {}", way.name()));
    match via {
        Via::Fuse => Way::Fuse.check().map(|()| chosen(Way::Fuse)),
        Via::Nbd => {
            return Way::Nbd.check().map(|()| chosen(Way::Nbd)).map_err(|lacks| {
                if Way::Fuse.check().is_err() {
                    return Failure::from(lacks);
                }
                Failure::new(Kind::Failed, lacks.to_string()).hint(
                    "`--via fuse` needs FUSE and loop devices instead, which are there; `cowslip serve`, and QEMU or nbdfuse as its client, neither root nor a driver",
                )
            });
        }
        Via::Auto => Way::best().map(|(way, lacks)| match lacks {
            None => chosen(way),
            Some(lacks) => (way, format!("by way of {} (not nbd: {lacks})", way.name())),
        }),
    }
    .map_err(Failure::from)
}

fn options(how: &How) -> Options {
    Options {
        connections: how.connections.into(),
        dead_timeout: how.dead_timeout,
    }
}

/// A device of the session that waits for its next server. To be asked before there is one.
fn waiting(wanted: &Wanted<'_>, way: Way, run: &RunDir) -> Result<Option<Waiting>, Failure> {
    let session = wanted.options.session.as_deref();
    let Some(session) = session.and_then(|path| path.canonicalize().ok()) else {
        return Ok(None);
    };
    let found = Waiting::find(&run.path, &session, served_as(&session).as_deref())?;
    let (left, why) = match (found, way) {
        (Found::None, _) => return Ok(None),
        (Found::Waiting(waiting), Way::Nbd) => {
            waiting.check(None, wanted.options.read_only)?;
            return Ok(Some(waiting));
        }
        (Found::Waiting(waiting), Way::Fuse) => (
            waiting.device().to_owned(),
            "it could be by way of nbd, and this is by way of fuse",
        ),
        (Found::Outdated(device), _) => (device, "others have served the session, or do now"),
    };
    complain(&format!(
        "{} was this session's, and its server was killed; it is not taken over: {why}. `cowslip detach --stale` ends it",
        left.display()
    ));
    Ok(None)
}

/// What tells a server of a session from those before and after it: its control socket, which stays when it is killed.
fn served_as(session: &Path) -> Option<String> {
    let socket = session.join(control::SOCKET).symlink_metadata().ok()?;
    let (seconds, nanoseconds) = (socket.ctime(), socket.ctime_nsec());
    Some(format!("{}-{seconds}.{nanoseconds:09}", socket.ino()))
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        let failure = Self::new(Kind::Failed, error.to_string());
        match error {
            AttachError::Missing(_) => failure.hint(
                "without it: `cowslip serve`, and QEMU or nbdfuse as its client, need no root and no kernel driver",
            ),
            AttachError::Unlike(_) => failure.hint(
                "attach it as it was, with or without --read-only; or end it with `cowslip detach --stale`",
            ),
            _ => failure,
        }
    }
}
