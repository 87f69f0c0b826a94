//! `cowslip attach`: a snapshot, or a session, as a block device of the kernel, until a signal ends it, or
//! somebody clears the device.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use cowslip_block::Device;
use cowslip_fuse::{AttachError, Attached, attached};
use serde::Serialize;

use super::Context;
use super::target::{Target, Wanted, on_signal, signals};
use crate::args::{Attach, RunDir, Via};
use crate::failure::{Failure, Kind};
use crate::report::complain;

/// Its field names are a contract.
#[derive(Debug, Serialize)]
struct Line<'a> {
    device: &'a Path,
    name: String,
    session: Option<&'a Path>,
    size_bytes: u64,
    read_only: bool,
    pid: u32,
}

pub(super) fn run(context: &Context, args: &Attach) -> Result<(), Failure> {
    let signals = signals()?;
    let Via::Fuse = args.via;
    let wanted = Wanted {
        name: args.name.as_ref(),
        options: &args.device,
    };
    let live = Live::begin(context, &wanted, &args.run)?;
    let told = live.tell(context);
    if told.is_ok() {
        let path = live.attached.device().display().to_string();
        live.target.say_ready(&*live.device, &format!("as {path}"));
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
    /// A word for the end: of a signal, or because the kernel has let go.
    pub(super) end: mpsc::Sender<()>,
    pub(super) ended: mpsc::Receiver<()>,
}

impl Live {
    pub(super) fn begin(
        context: &Context,
        wanted: &Wanted<'_>,
        run: &RunDir,
    ) -> Result<Self, Failure> {
        // Before a session is begun.
        attached::check_machine()?;
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
            &run.path,
            &target.name.to_string(),
            session.as_deref(),
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
                end,
                ended,
            }),
            Err(error) => {
                target.close(device);
                Err(error.into())
            }
        }
    }

    fn tell(&self, context: &Context) -> Result<(), Failure> {
        let geometry = self.device.geometry();
        let line = Line {
            device: self.attached.device(),
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

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        let failure = Self::new(Kind::Failed, error.to_string());
        match error {
            AttachError::Missing(_) => failure.hint(
                "without it: `cowslip serve`, and QEMU or nbdfuse as its client, need no root and no kernel driver",
            ),
            _ => failure,
        }
    }
}
