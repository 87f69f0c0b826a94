//! `cowslip snapshot`: asks the server of a session for a snapshot, or takes it from a session at
//! rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::RealDir;
use cowslip_snapshot::header::Header;
use cowslip_snapshot::session::{Manifest, Seal, Session, SessionError, SnapshotOptions, Workers};
use cowslip_snapshot::store::Caches;

use super::{Context, open_store, surroundings};
use crate::args::Snapshot;
use crate::control::{self, Request};
use crate::failure::Failure;
use crate::report::{Taken, Unit, advance, bytes, complain, duration};

/// A session that is locked, with no server that answers, is being opened or closed: for so long.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(context: &Context, args: &Snapshot) -> Result<(), Failure> {
    let dir = RealDir::open(&args.session).map_err(|e| Failure::file(&args.session, &e))?;
    let dir = Arc::new(dir);
    let request = Request::Snapshot {
        name: args.name.to_string(),
        replace: args.replace,
        dedup: !args.no_dedup,
    };
    let bar = context.report.progress("sealing", Unit::Blocks);
    let give_up = Instant::now() + PATIENCE;
    let taken = loop {
        let asked = control::ask(&dir, &request, &mut |p| {
            advance(&bar, p.done_blocks, p.total_blocks);
        });
        if let Some(taken) = asked {
            break taken;
        }
        match at_rest(context, args, &dir) {
            Err(SessionOr::InUse) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(SessionOr::InUse) => {
                break Err(Failure::from(SessionError::InUse)
                    .hint("another process has it open, and is no server that answers"));
            }
            Err(SessionOr::Other(failure)) => break Err(failure),
            Ok(taken) => break Ok(taken),
        }
    };
    bar.finish_and_clear();
    let taken = taken.map_err(|f| f.about(args.session.display()))?;
    context.report.result(&taken, || {
        let held = Duration::from_secs_f64(taken.held_us / 1e6);
        let all = Duration::from_secs_f64(taken.seconds);
        format!(
            "snapshot {} ({}): {}; device held for {}, committed after {}",
            taken.info.name,
            bytes(taken.info.size_bytes),
            taken.info.diff(),
            duration(held),
            duration(all),
        )
    })
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

fn at_rest(context: &Context, args: &Snapshot, dir: &Arc<RealDir>) -> Result<Taken, SessionOr> {
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
    let workers = Workers::start(&session, complain).map_err(|e| Failure::failed(e.to_string()))?;
    // What was asked for before and interrupted comes first; how it ends was somebody else's business.
    for seal in session.pending() {
        drop(end_of(&seal));
    }
    let begun = Instant::now();
    let options = SnapshotOptions {
        replace: args.replace,
        dedup: !args.no_dedup,
    };
    let seal = session.freeze(&args.name, &options)?;
    let header = end_of(&seal)?;
    drop(workers);
    let taken = Taken::new(&store, &args.name, &header, seal.held(), begun.elapsed())?;
    Ok(taken)
}

fn end_of(seal: &Seal) -> Result<Arc<Header>, SessionError> {
    loop {
        if let Some(outcome) = seal.wait(Duration::from_millis(100)) {
            return outcome;
        }
    }
}
