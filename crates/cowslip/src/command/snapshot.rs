//! `cowslip snapshot`: asks the server of a session for a snapshot, or takes it from a session at
//! rest.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::RealDir;
use cowslip_snapshot::header::Header;
use cowslip_snapshot::session::{Manifest, Seal, Session, SessionError, SnapshotOptions, Workers};
use cowslip_snapshot::store::{Caches, Store};
use indicatif::ProgressBar;

use super::{Context, open_store, surroundings};
use crate::args::Snapshot;
use crate::control::{self, Answer, Request, Sealing};
use crate::failure::{Failure, Kind};
use crate::pause::Pause;
use crate::report::{Taken, Unit, advance, bytes, duration};

/// A session that is locked, with no server that answers, is being opened or closed: for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// A bar moves so often.
const TICK: Duration = Duration::from_millis(100);

pub(super) fn run(context: &Context, args: &Snapshot) -> Result<(), Failure> {
    let dir = RealDir::open(&args.session).map_err(|e| Failure::file(&args.session, &e))?;
    let dir = Arc::new(dir);
    let mut held = Held::new(args);
    let bar = context.report.progress("sealing", Unit::Blocks);
    let answer = ask_or_do(context, args, &dir, &mut held, &bar);
    bar.finish_and_clear();
    // Where it was not taken the guest goes on now.
    held.go_on();
    let Held { failed, .. } = held;
    let done = match answer.map_err(|f| f.about(args.session.display()))? {
        Answer::Done(taken) => context.report.result(&taken, || describe(&taken)),
        Answer::Cancelled => {
            let name = &args.name;
            context
                .report
                .result(&serde_json::json!({ "cancelled": name }), || {
                    format!("{name} is given up; what was written stays, for the next snapshot")
                })
        }
        _ => Err(Failure::failed("the server answered something else")),
    };
    done.and(failed.map_or(Ok(()), Err))
}

/// A guest that is held until the snapshot is taken, if one is.
struct Held<'a> {
    before: Option<&'a str>,
    after: Option<&'a str>,
    pause: Option<Pause>,
    /// How letting it go failed: told when the snapshot is stored.
    failed: Option<Failure>,
}

impl<'a> Held<'a> {
    fn new(args: &'a Snapshot) -> Self {
        Self {
            before: args.hold.before.as_deref(),
            after: args.hold.after.as_deref(),
            pause: None,
            failed: None,
        }
    }

    fn is_wanted(&self) -> bool {
        self.before.is_some() || self.after.is_some()
    }

    /// As late as can be: nobody is held while something else is waited for.
    fn hold(&mut self) -> Result<(), Failure> {
        if self.is_wanted() {
            self.pause = Some(Pause::begin(self.before, self.after)?);
        }
        Ok(())
    }

    /// It was held until now, which is said while it is.
    fn was_held(&self, say: &mut dyn Write) {
        if let Some(pause) = &self.pause {
            pause.while_held(|| {
                // That it cannot be said, the next read tells.
                drop(say.write_all(b"held\n"));
            });
        }
    }

    fn go_on(&mut self) {
        if let Some(Err(failure)) = self.pause.take().map(Pause::end) {
            self.failed = Some(failure);
        }
    }
}

/// The server does it; where there is none, we do.
fn ask_or_do(
    context: &Context,
    args: &Snapshot,
    dir: &Arc<RealDir>,
    held: &mut Held<'_>,
    bar: &ProgressBar,
) -> Result<Answer, Failure> {
    let name = args.name.to_string();
    let request = match args.cancel {
        true => Request::Cancel { name },
        false => Request::Snapshot {
            name,
            replace: args.replace,
            dedup: !args.no_dedup,
            fs_aware: args.fs_aware,
            held: held.is_wanted(),
        },
    };
    let held_for = held.is_wanted().then_some(args.hold.pause_timeout);
    let give_up = Instant::now() + PATIENCE;
    loop {
        let mut patience = Patience {
            context,
            args,
            bar,
            failed_first: None,
        };
        let is_served = !held.is_wanted() || control::is_served(dir);
        if is_served {
            held.hold()?;
            let mut hear = |answer, say: &mut dyn Write| match answer {
                Answer::GoesOn => {
                    held.was_held(say);
                    held.go_on();
                    Ok(())
                }
                other => patience.hear(other),
            };
            if let Some(answer) = control::ask(dir, &request, held_for, &mut hear) {
                return answer;
            }
            if held.is_wanted() {
                return Err(Failure::failed("the server went away; nothing is stored"));
            }
        }
        match at_rest(context, args, dir, held, bar) {
            Err(SessionOr::InUse) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(SessionOr::InUse) => {
                return Err(Failure::from(SessionError::InUse)
                    .hint("another process has it open, and is no server that answers"));
            }
            Err(SessionOr::Other(failure)) => return Err(failure),
            Ok(answer) => return Ok(answer),
        }
    }
}

pub(super) fn describe(taken: &Taken) -> String {
    let held = Duration::from_secs_f64(taken.held_us / 1e6);
    let all = Duration::from_secs_f64(taken.seconds);
    let unneeded = taken.unneeded_blocks.map_or_else(String::new, |n| {
        format!(", {n} that the file system does not need")
    });
    let guest = taken.guest.as_deref();
    let guest = guest.map_or_else(String::new, |how| format!("guest {how}, "));
    format!(
        "snapshot {} ({}): {}{unneeded}; {guest}device held for {}, committed after {}",
        taken.info.name,
        bytes(taken.info.size_bytes),
        taken.info.diff(),
        duration(held),
        duration(all),
    )
}

/// How long to wait for a server that fails to store.
struct Patience<'a> {
    context: &'a Context,
    args: &'a Snapshot,
    bar: &'a ProgressBar,
    /// When the first failure was heard of, and what it was.
    failed_first: Option<(Instant, Sealing)>,
}

impl Patience<'_> {
    /// Fails when it has run out.
    fn hear(&mut self, answer: Answer) -> Result<(), Failure> {
        match answer {
            Answer::Progress {
                done_blocks,
                total_blocks,
            } => advance(self.bar, done_blocks, total_blocks),
            Answer::Retrying(sealing) if self.failed_first.is_none() => {
                let said = format!("{}; it is tried again", why(&sealing));
                self.bar.suspend(|| self.context.report.remark(&said));
                self.failed_first = Some((Instant::now(), sealing));
            }
            _ => {}
        }
        match &self.failed_first {
            Some((at, sealing)) if at.elapsed() >= self.args.timeout && !self.args.cancel => {
                let name = &self.args.name;
                let message = format!(
                    "snapshot {name} is taken, is not stored yet, and will be: {}",
                    why(sealing)
                );
                Err(Failure::new(Kind::Pending, message)
                    .hint("`cowslip sessions` shows how it goes; --cancel gives it up"))
            }
            _ => Ok(()),
        }
    }
}

fn why(sealing: &Sealing) -> String {
    let error = sealing.last_error.as_deref().unwrap_or("no reason given");
    format!("storing {} failed: {error}", sealing.name)
}

/// Why a session at rest could not be snapshotted.
enum SessionOr {
    InUse,
    Other(Failure),
}

impl<E: Into<Failure>> From<E> for SessionOr {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

fn at_rest(
    context: &Context,
    args: &Snapshot,
    dir: &Arc<RealDir>,
    held: &mut Held<'_>,
    bar: &ProgressBar,
) -> Result<Answer, SessionOr> {
    let manifest = Manifest::read(&**dir)?.ok_or(SessionError::NotASession)?;
    let store_path = context.global.store.clone().unwrap_or(manifest.store);
    let store = open_store(&store_path, Caches::default())?;
    // The session remembers it, for whoever opens it from another directory.
    let store_path = store_path
        .canonicalize()
        .map_err(|e| Failure::file(&store_path, &e))?;
    let around = surroundings(dir, &args.session, false, &store, &store_path)?;
    let session = match Session::open(around) {
        Err(SessionError::InUse) => return Err(SessionOr::InUse),
        other => Arc::new(other?),
    };
    if args.cancel {
        let seal = session.cancel(&args.name)?;
        // The first in line is given up by whoever seals: by us.
        session.seal_next();
        let outcome = seal.wait(Duration::ZERO);
        control::cancelled(&seal, outcome.unwrap_or(Err(SessionError::InUse)))?;
        return Ok(Answer::Cancelled);
    }
    Ok(Answer::Done(take_at_rest(
        &session, &store, args, held, bar,
    )?))
}

/// There is no server that would try again: what fails, fails.
fn take_at_rest(
    session: &Arc<Session>,
    store: &Arc<Store>,
    args: &Snapshot,
    held: &mut Held<'_>,
    bar: &ProgressBar,
) -> Result<Taken, Failure> {
    let _workers = Workers::start(session, |_| {}).map_err(|e| Failure::failed(e.to_string()))?;
    // What was asked for before and is not stored comes first. That it ended otherwise was
    // somebody else's business; that it cannot be stored yet is ours as well, since we are behind it.
    for seal in session.pending() {
        if let Err(NotStored::Yet(failure)) = end_of(&seal, bar) {
            let name = seal.name();
            return Err(failure
                .about(format!(
                    "{name}, which was asked for before, cannot be stored yet"
                ))
                .hint("make room and try again, or give it up with --cancel"));
        }
    }
    let begun = Instant::now();
    let options = SnapshotOptions {
        replace: args.replace,
        dedup: !args.no_dedup,
        fs_aware: args.fs_aware,
        unconfirmed: false,
    };
    let over = session.newest();
    held.hold()?;
    let seal = session.freeze(&args.name, &options)?;
    held.go_on();
    let taken = |header: &Header| {
        let taken = Taken::new(store, header, &over, &seal, begun.elapsed());
        taken.fs_aware(args.fs_aware, &seal)
    };
    match end_of(&seal, bar) {
        Ok(header) => Ok(taken(&header)),
        Err(NotStored::Ever(error)) => Err(error.into()),
        Err(NotStored::Yet(failure)) => {
            session.cancel(&args.name)?;
            // It may have been stored at the last moment.
            while seal.wait(TICK).is_none() {}
            match seal.wait(Duration::ZERO) {
                Some(Ok(header)) => Ok(taken(&header)),
                _ => Err(failure),
            }
        }
    }
}

/// Why a seal has not ended well, or has not ended.
enum NotStored {
    Ever(SessionError),
    Yet(Failure),
}

/// Waits for the end of a seal, or for its first attempt to fail.
fn end_of(seal: &Seal, bar: &ProgressBar) -> Result<Arc<Header>, NotStored> {
    loop {
        if let Some(outcome) = seal.wait(TICK) {
            return outcome.map_err(NotStored::Ever);
        }
        if let Some(error) = seal.attempts().last_error {
            return Err(NotStored::Yet(SessionError::Seal(error).into()));
        }
        let progress = seal.progress();
        advance(bar, progress.done_blocks, progress.total_blocks);
    }
}
