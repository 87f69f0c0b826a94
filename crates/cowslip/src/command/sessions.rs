//! `cowslip sessions`: the sessions that a store keeps something for, and the snapshots on their way
//! in those that are being served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cowslip_block::files::{Dir, RealDir};
use cowslip_snapshot::roots::SessionRecord;
use cowslip_snapshot::session::{SessionError, forget, is_in};
use cowslip_snapshot::store::Store;
use serde::Serialize;
use uuid::Uuid;

use super::Context;
use crate::args::Sessions;
use crate::control::{self, Live, Patience, Sealing};
use crate::failure::Failure;
use crate::report::{bytes, table};

/// What became of a session's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// A process has it open.
    Served,
    /// It is there, and nobody has it open.
    AtRest,
    /// It is not where it was. It may have been moved: what it needs is kept.
    Missing,
}

#[derive(Serialize)]
struct Row {
    id: Uuid,
    path: PathBuf,
    temporary: bool,
    state: State,
    /// What its server says, if one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

pub(super) fn run(context: &Context, args: &Sessions) -> Result<(), Failure> {
    let store = context.store()?;
    if let Some(id) = args.forget {
        forget_patiently(&store, id).map_err(|error| match error {
            SessionError::InUse => Failure::failed(format!("session {id} is being served"))
                .hint("end its server first: a collection would take away what it reads"),
            other => other.into(),
        })?;
        return context
            .report
            .result(&serde_json::json!({ "forgotten": id }), || {
                format!("forgot {id}: `cowslip gc` removes what only it needed")
            });
    }
    let rows: Vec<Row> = store.sessions()?.into_iter().map(row).collect();
    context.report.result(&rows, || text(&rows))
}

/// Once whoever has it open for a moment has done with it.
fn forget_patiently(store: &Store, id: Uuid) -> Result<(), SessionError> {
    let patience = Patience::begin();
    loop {
        let mut seen = None;
        let open = |path: &Path| {
            let dir = Arc::new(RealDir::open(path).ok()?);
            seen = Some(Arc::clone(&dir));
            Some(dir as Arc<dyn Dir>)
        };
        let forgotten = forget(store, id, open);
        match (forgotten, seen) {
            (Err(SessionError::InUse), Some(dir)) if patience.tries_again(&dir) => {}
            (forgotten, _) => return forgotten,
        }
    }
}

fn text(rows: &[Row]) -> String {
    let head = [
        "SESSION",
        "STATE",
        "DIRTY",
        "ZERO",
        "ON DISK",
        "MEMORY",
        "SEALING",
        "DIRECTORY",
    ];
    let sessions = table(&head, &[2, 3, 4, 5, 6], rows.iter().map(cells).collect());
    let on_their_way: Vec<_> = rows
        .iter()
        .filter_map(|row| row.live.as_ref())
        .flat_map(|live| live.sealing.iter())
        .map(way_cells)
        .collect();
    if on_their_way.is_empty() {
        return sessions;
    }
    let head = ["ON ITS WAY", "BLOCKS", "FAILED", "NEXT TRY", "LAST ERROR"];
    format!("{sessions}\n\n{}", table(&head, &[1, 2, 3], on_their_way))
}

fn row(record: SessionRecord) -> Row {
    let state = state_of(&record);
    let dir = RealDir::open(&record.path)
        .ok()
        .filter(|_| state == State::Served);
    Row {
        id: record.id,
        temporary: record.temporary,
        state,
        live: dir.and_then(|dir| control::status(&dir)),
        path: record.path,
    }
}

fn cells(row: &Row) -> Vec<String> {
    let state = match row.state {
        State::Served => "served",
        State::AtRest => "at rest",
        State::Missing => "missing",
    };
    let of = |value: &dyn Fn(&Live) -> String| row.live.as_ref().map_or("-".into(), value);
    vec![
        row.id.to_string(),
        if row.temporary {
            format!("{state}, temporary")
        } else {
            state.into()
        },
        of(&|live| bytes(live.dirty_blocks * live.block_size_bytes)),
        of(&|live| bytes(live.zero_blocks * live.block_size_bytes)),
        of(&|live| bytes(live.cache_bytes + live.journal_bytes)),
        of(&|live| bytes(live.state_memory_bytes + live.seal_memory_bytes)),
        of(&|live| live.sealing.len().to_string()),
        row.path.display().to_string(),
    ]
}

fn way_cells(sealing: &Sealing) -> Vec<String> {
    let next_try = |ms| format!("in {} s", Duration::from_millis(ms).as_secs());
    vec![
        sealing.name.to_string(),
        format!("{}/{}", sealing.done_blocks, sealing.total_blocks),
        sealing.failed_attempts.to_string(),
        sealing.next_try_ms.map_or("-".into(), next_try),
        sealing.last_error.clone().unwrap_or_else(|| "-".into()),
    ]
}

fn state_of(record: &SessionRecord) -> State {
    match RealDir::open(&record.path) {
        Ok(dir) if is_in(record, &dir) => match dir.try_lock("lock") {
            Ok(None) => State::Served,
            _ => State::AtRest,
        },
        _ => State::Missing,
    }
}
