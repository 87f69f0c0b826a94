//! `cowslip memory snapshot`: of a guest that `cowslip memory serve` serves. The server takes it; this side has the guest paused, and let go.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

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

pub(super) fn run(context: &Context, args: &MemorySnapshot) -> Result<(), Failure> {
    let socket = path(&args.server);
    // Nobody is paused for a server that is not there; and a server does not wait for as long as it may take to pause somebody.
    drop(connect(&socket)?);
    let pause = Pause::begin(args.hold.before.as_deref(), args.hold.after.as_deref())?;
    let stream = connect(&socket)?;
    // Here, with the rights of who asks; what becomes of the name later is all the same. A pipe is not waited for: the server refuses it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |path: &Path| match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(File::from(file)),
        Err(error) => Err(Failure::file(path, &error.into())),
    };
    let state = args.state.as_deref().map(open).transpose()?;
    let request = Request {
        name: args.name.clone(),
        replace: args.replace,
        pid: args.pid,
        disk: args.disk.clone(),
        disk_frames: args.disk_frames,
        state: state.is_some(),
    };
    let patience = args.hold.pause_timeout;
    let give_up = Instant::now() + patience;
    let lost = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::failed(format!(
            "the server said nothing for {patience:?}; unless the guest had gone on before, nothing is stored"
        )),
        _ => Failure::failed(format!("the server went away: {e}")),
    };
    // A server that has turned us away has said why.
    let _ = send(&stream, &line(&request), state.as_ref());
    let left = give_up
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left)).map_err(lost)?;
    let mut reader = BufReader::new(&stream);
    let mut pause = Some(pause);
    let mut bar: Option<(bool, ProgressBar)> = None;
    let done = loop {
        let said = read_line(&mut reader).map_err(lost)?;
        let answer = serde_json::from_slice(&said).map_err(|e| lost(e.into()))?;
        match answer {
            Answer::GoesOn => {
                // It was paused until now: said before it is not any more.
                if let Some(pause) = &pause {
                    pause.while_held(|| {
                        // That it cannot be said, the next read tells.
                        let _ = say(&stream, &"paused");
                    });
                }
                stream.set_read_timeout(Some(SILENCE)).map_err(lost)?;
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

fn connect(socket: &Path) -> Result<UnixStream, Failure> {
    cowslip_nbd::connect_unix(socket).map_err(|e| {
        Failure::new(Kind::NotFound, format!("no server answers: {e}"))
            .hint("--server is the PATH of `cowslip memory serve --uffd unix:PATH`")
    })
}
