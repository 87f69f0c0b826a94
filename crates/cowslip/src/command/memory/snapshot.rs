//! `cowslip memory snapshot`: of a guest that `cowslip memory serve` serves. The server takes it; this side has the guest paused, and let go.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;
use rustix::fs::{Mode, OFlags};

use super::super::Context;
use super::control::{Answer, Request, line, path, say};
use super::passed::send;
use crate::args::MemorySnapshot;
use crate::control::read_line;
use crate::failure::{Failure, Kind};
use crate::pause::Pause;
use crate::report::{Unit, advance};

/// Whoever stores says something at least so often.
const SILENCE: Duration = Duration::from_secs(600);
/// No patience at all is told so; a socket takes it for patience without end.
const LEAST: Duration = Duration::from_millis(1);

pub(super) fn run(context: &Context, args: &MemorySnapshot) -> Result<(), Failure> {
    let stream = connect(&path(&args.server))?;
    let hold = &args.hold;
    let request = Request {
        name: args.name.clone(),
        replace: args.replace,
        pid: args.pid,
        disk: args.disk.clone(),
        disk_frames: args.disk_frames,
        state: args.state.is_some(),
        is_paused: hold.before.is_none(),
    };
    // A server that has turned us away has said why.
    let _ = send(&stream, &line(&request), None);
    let patience = Cell::new(SILENCE);
    let wait = |most: Duration| {
        patience.set(most);
        stream.set_read_timeout(Some(most))
    };
    let lost = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::failed(format!(
            "the server said nothing for {:?}; unless the guest had gone on before, nothing is stored",
            patience.get()
        )),
        _ => Failure::failed(format!("the server went away: {e}")),
    };
    wait(SILENCE).map_err(lost)?;
    let mut reader = BufReader::new(&stream);
    let mut pause = None;
    let mut bar: Option<(bool, ProgressBar)> = None;
    let done = loop {
        let said = read_line(&mut reader).map_err(lost)?;
        let answer = serde_json::from_slice(&said).map_err(|e| lost(e.into()))?;
        match answer {
            Answer::Pause => {
                let held = Pause::begin(hold.before.as_deref(), hold.after.as_deref())?;
                pause = Some(held);
                wait(hold.pause_timeout.max(LEAST)).map_err(lost)?;
                let state = args.state.as_deref().map(open).transpose()?;
                // That it cannot be said, the next read tells.
                let _ = send(&stream, &line(&"paused"), state.as_ref());
            }
            Answer::GoesOn => {
                // It was paused until now: said before it is not any more.
                if let Some(pause) = &pause {
                    pause.while_held(|| {
                        // That it cannot be said, the next read tells.
                        let _ = say(&stream, &"paused");
                    });
                }
                wait(SILENCE).map_err(lost)?;
                pause.take().map_or(Ok(()), Pause::end)?;
            }
            Answer::Progress {
                storing,
                done_bytes,
                total_bytes,
            } => {
                if bar.as_ref().is_none_or(|(before, _)| *before != storing) {
                    let what = if storing { "storing" } else { "comparing" };
                    bar = Some((storing, context.report.progress(what, Unit::Bytes)));
                }
                if let Some((_, bar)) = &bar {
                    advance(bar, done_bytes, total_bytes);
                }
            }
            Answer::Done { report, text } => break Ok((report, text)),
            Answer::Failed(failure) => break Err(failure),
        }
    };
    if let Some((_, bar)) = bar {
        bar.finish_and_clear();
    }
    let (report, text) = done?;
    context.report.result(&report, || text)
}

/// Here, with the rights of who asks; what becomes of the name later is all the same. A pipe is not waited for: the server refuses it.
fn open(path: &Path) -> Result<File, Failure> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(File::from(file)),
        Err(error) => Err(Failure::file(path, &error.into())),
    }
}

fn connect(socket: &Path) -> Result<UnixStream, Failure> {
    cowslip_nbd::connect_unix(socket).map_err(|e| {
        Failure::new(Kind::NotFound, format!("no server answers: {e}"))
            .hint("--server is the PATH of `cowslip memory serve --uffd unix:PATH`")
    })
}
