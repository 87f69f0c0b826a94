//! [`Story`]: what was done, in a file for whoever looks into a failure, and the last of it in memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

/// See the module.
pub(crate) struct Story {
    begun: Instant,
    lines: VecDeque<String>,
    keep: usize,
    log: File,
}

impl Story {
    /// All of it goes to a file; `keep` lines are remembered.
    pub(crate) fn begin(path: &Path, keep: usize) -> Result<Self> {
        let log = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            begun: Instant::now(),
            lines: VecDeque::new(),
            keep,
            log,
        })
    }

    pub(crate) fn add(&mut self, line: &str) {
        let line = format!("{:9.3} {line}", self.begun.elapsed().as_secs_f64());
        drop(writeln!(self.log, "{line}"));
        self.lines.push_back(line);
        if self.lines.len() > self.keep {
            self.lines.pop_front();
        }
    }

    /// What was done last, a line each.
    pub(crate) fn last(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
