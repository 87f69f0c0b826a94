//! [`Rig`]: what the long runs stand on: a directory with a store in it, the built command, servers of
//! it ([`server`]), what the kernel says of a process and of files ([`usage`]), and one way to choose
//! at random ([`random`]).
//!
//! A rig goes with its directory when dropped, unless it is kept for somebody to look at.

pub(crate) mod oracle;
pub(crate) mod random;
pub(crate) mod requests;
pub(crate) mod server;
pub(crate) mod story;
pub(crate) mod table;
pub(crate) mod usage;
pub(crate) mod watch;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::run::{cargo, output, step, target_dir};

/// See the module.
pub(crate) struct Rig {
    dir: TempDir,
    program: PathBuf,
}

impl Rig {
    /// Builds the command, and makes the directory: below TMPDIR, as all temporary files. `quiet`
    /// keeps standard output for a result.
    pub(crate) fn build(prefix: &str, quiet: bool) -> Result<Self> {
        Self::build_as(prefix, quiet, true)
    }

    /// The same, of the command as users have it (`release`), or as tests have it.
    pub(crate) fn build_as(prefix: &str, quiet: bool, release: bool) -> Result<Self> {
        let mut build = cargo(["build", "-p", "cowslip"]);
        build.args(release.then_some("--release"));
        let built = if release {
            "release/cowslip"
        } else {
            "debug/cowslip"
        };
        match quiet {
            true => drop(output(&mut build)?),
            false => step("building cowslip", &mut build)?,
        }
        let dir = tempfile::Builder::new().prefix(prefix).tempdir();
        let dir = dir.context("a temporary directory")?;
        std::fs::create_dir(dir.path().join("tmp"))?;
        // What is built later is another command.
        let program = dir.path().join("cowslip");
        std::fs::copy(target_dir().join(built), &program)?;
        Ok(Self { dir, program })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The command, not started, on this rig's store. What it keeps in TMPDIR it keeps in `tmp`.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .current_dir(self.dir())
            .stdin(Stdio::null());
        command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        command.env("TMPDIR", self.path("tmp"));
        command.env("COWSLIP_STORE", self.store());
        command
    }

    /// Runs a command that must succeed; its standard output.
    pub(crate) fn ok(&self, line: &str) -> Result<String> {
        output(&mut self.command(line.split_whitespace()))
    }

    /// The same, with `--json`.
    pub(crate) fn json(&self, line: &str) -> Result<Value> {
        let text = self.ok(&format!("{line} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("what `cowslip {line} --json` printed"))
    }

    /// Keeps the directory, and says where it is.
    pub(crate) fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}
