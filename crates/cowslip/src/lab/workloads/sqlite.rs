//! Transactions of a database, by the sqlite3 program as it comes: a journal that is deleted at each commit, full syncs.

use std::fmt::Write as _;

use super::super::Scale;
use super::super::hand::Hand;
use super::super::programs;
use crate::failure::Failure;

const DATABASE: &str = "data/base.db";

pub(super) fn run(hand: &mut Hand, scale: Scale) -> Result<(), Failure> {
    let mut script = String::from(
        "PRAGMA synchronous=FULL;\nCREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, n INTEGER);\n\
         CREATE INDEX by_name ON item(name);\nBEGIN;\n",
    );
    let rows = scale.of(8000);
    for id in 0..rows {
        let name = hand.random.next();
        let _ = writeln!(script, "INSERT INTO item VALUES({id}, 'name-{name:x}', 0);");
    }
    script.push_str("COMMIT;\n");
    for i in 0..scale.of(150) {
        let (id, name) = (hand.random.below(rows), hand.random.next());
        let _ = writeln!(
            script,
            "BEGIN; UPDATE item SET n=n+1 WHERE id={id}; INSERT INTO item VALUES({}, 'name-{name:x}', 1); COMMIT;",
            rows + i
        );
    }
    let database = hand.touch(DATABASE);
    hand.touch("data/base.db-journal");
    programs::fed(
        "sqlite3",
        &["-batch".as_ref(), database.as_os_str()],
        &script,
    )
    .map(drop)
}
