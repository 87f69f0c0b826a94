//! `cowslip ls`: the snapshots in the store.

use cowslip_snapshot::StoreError;
use cowslip_snapshot::ids::SnapshotName;
use cowslip_snapshot::store::{Listed, Snapshot, Store};
use serde::Serialize;

use super::Context;
use crate::failure::{Failure, Kind};
use crate::report::{self, Info, Names, PartInfo, bytes, table};

/// A row: a snapshot, or a name that cannot be read.
#[derive(Serialize)]
#[serde(untagged)]
enum Row {
    Whole(Box<Whole>),
    Damaged { name: SnapshotName, error: String },
}

#[derive(Serialize)]
struct Whole {
    /// Of the image that the name means.
    #[serde(flatten)]
    info: Info,
    parts: Vec<PartInfo>,
}

impl Whole {
    /// What its parts added, each when it was made.
    fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.stored_bytes).sum()
    }

    fn new(store: &Store, name: &SnapshotName, snapshot: &Snapshot, names: &Names) -> Self {
        let (_, header) = snapshot.parts.main();
        Self {
            info: Info::new(store, &name.into(), header, names),
            parts: PartInfo::all(store, snapshot),
        }
    }
}

pub(super) fn run(context: &Context) -> Result<(), Failure> {
    // No store yet is a store with nothing in it.
    let rows = match context.store() {
        Err(failure) if failure.kind == Kind::NotFound => Vec::new(),
        Err(failure) => return Err(failure),
        Ok(store) => {
            let names = Names::read(&store)?;
            let row = |Listed { name, .. }| match store.resolve_snapshot(&name) {
                Ok(snapshot) => {
                    let whole = Whole::new(&store, &name, &snapshot, &names);
                    Some(Row::Whole(Box::new(whole)))
                }
                // Removed since they were listed.
                Err(StoreError::NotFound { .. }) => None,
                Err(error) => Some(Row::Damaged {
                    name,
                    error: error.to_string(),
                }),
            };
            store.list()?.into_iter().filter_map(row).collect()
        }
    };
    context.report.result(&rows, || {
        let head = [
            "NAME",
            "SIZE",
            "GENERATION",
            "STORED",
            "DIRTY",
            "ZERO",
            "CREATED",
            "PARENT",
            "PARTS",
        ];
        table(&head, &[1, 2, 3, 4, 5], rows.iter().map(cells).collect())
    })?;
    let damaged = rows
        .iter()
        .filter(|r| matches!(r, Row::Damaged { .. }))
        .count();
    if damaged > 0 {
        let what = if damaged == 1 {
            "snapshot is"
        } else {
            "snapshots are"
        };
        return Err(Failure::new(
            Kind::Corrupt,
            format!("{damaged} {what} damaged"),
        ));
    }
    Ok(())
}

fn cells(row: &Row) -> Vec<String> {
    match row {
        Row::Whole(whole) => {
            let Whole { info, parts } = &**whole;
            let each = |part: &PartInfo| match parts.len() {
                1 => part.part.to_string(),
                _ => format!("{} {}", part.part, bytes(part.stored_bytes)),
            };
            let parts: Vec<_> = parts.iter().map(each).collect();
            vec![
                info.name.to_string(),
                bytes(info.size_bytes),
                info.generation.to_string(),
                bytes(whole.stored_bytes()),
                info.dirty_blocks.to_string(),
                info.zero_blocks.to_string(),
                report::time(info.created_unix_ms),
                match (&info.parent_name, info.parent) {
                    (Some(name), _) => name.to_string(),
                    (None, Some(id)) => id.to_string(),
                    (None, None) => "-".into(),
                },
                parts.join(", "),
            ]
        }
        Row::Damaged { name, error } => vec![name.to_string(), error.clone()],
    }
}
