//! [`Results`]: a line of JSON for each cell that has ended, in a file that is only appended to. A lab that goes on
//! reads it first, and runs no cell again that ended well. Of a line that a crash cut off nothing is taken.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::crash::Crashed;
use super::measure::Measured;
use super::plan::Variant;

/// Of one cell. Its field names are a contract.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) variant: String,
    pub(crate) workload: String,
    pub(crate) mkfs_args: Vec<String>,
    pub(crate) mount_options: String,
    /// What the workload really changed.
    pub(crate) floor_blocks: u64,
    pub(crate) stages: Vec<StageRow>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) crash: Option<Crashed>,
    pub(crate) seconds: f64,
    /// Why there is nothing else.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) error: Option<String>,
}

/// Of one stage of a cell. Its field names are a contract.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StageRow {
    pub(crate) stage: String,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

impl Row {
    pub(crate) fn new(variant: &Variant, workload: &str) -> Self {
        Self {
            variant: variant.name.clone(),
            workload: workload.to_owned(),
            mkfs_args: variant.mkfs.clone(),
            mount_options: variant.mount.clone(),
            floor_blocks: 0,
            stages: Vec::new(),
            crash: None,
            seconds: 0.0,
            error: None,
        }
    }

    pub(crate) fn stage(&self, name: &str) -> Option<&Measured> {
        self.stages
            .iter()
            .find(|s| s.stage == name)
            .map(|s| &s.measured)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Results {
    file: File,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let rows = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Row>(line).ok());
        let rows = rows.filter(|row| row.error.is_none()).collect();
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, rows })
    }

    pub(crate) fn add(&mut self, row: Row) -> io::Result<()> {
        let mut line = serde_json::to_vec(&row).map_err(io::Error::other)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.rows.push(row);
        Ok(())
    }

    pub(crate) fn has(&self, variant: &str, workload: &str) -> bool {
        self.rows
            .iter()
            .any(|r| r.variant == variant && r.workload == workload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(variant: &str) -> Row {
        let variant = Variant {
            name: variant.to_owned(),
            mkfs: Vec::new(),
            mount: String::new(),
            is_profile: true,
            risk: None,
        };
        Row::new(&variant, "idle")
    }

    #[test]
    fn what_ended_well_is_there_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        let mut results = Results::open(&path).unwrap();
        results.add(row("a")).unwrap();
        let failed = Row {
            error: Some("no".into()),
            ..row("b")
        };
        results.add(failed).unwrap();
        drop(results);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"variant":"c","workl"#);
        std::fs::write(&path, text).unwrap();
        let mut again = Results::open(&path).unwrap();
        assert!(again.has("a", "idle") && !again.has("b", "idle") && !again.has("c", "idle"));
        again.add(row("d")).unwrap();
        drop(again);
        let last = Results::open(&path).unwrap();
        assert!(last.has("a", "idle") && last.has("d", "idle"));
        assert_eq!(last.rows.len(), 2);
    }
}
