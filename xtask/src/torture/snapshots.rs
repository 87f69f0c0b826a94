//! [`Snapshots`]: those that were asked for, in the middle of everything, and what each must hold: the
//! device as it was, since its client held still.
//!
//! | the command says                   | afterwards                                                        |
//! |------------------------------------|-------------------------------------------------------------------|
//! | done                               | the name is there                                                 |
//! | taken, not stored yet              | the name comes, unless a disk failed, then or later               |
//! | failed, or nothing                 | the name may be there                                             |
//!
//! A name that is there holds what it must, every byte.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::victim::Victim;
use crate::rig::oracle::{Cut, Version};
use crate::rig::server::wait_within;
use crate::run::output;

/// The exit code of a snapshot that was taken and not stored in time.
const NOT_YET: i32 = 6;
/// As many as a small disk has room for.
const MANY: usize = 6;
/// For a snapshot that was promised.
const COMES_WITHIN: Duration = Duration::from_secs(90);

struct Asked {
    name: String,
    versions: Vec<Version>,
    promised: bool,
    /// It was not there yet when that was said.
    waits: bool,
}

struct Running {
    child: Child,
    said: PathBuf,
}

/// See the module.
#[derive(Default)]
pub(super) struct Snapshots {
    asked: Vec<Asked>,
    running: Option<Running>,
    number: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Snapshots {
    pub(super) fn next(&mut self) -> String {
        self.number += 1;
        format!("n{}", self.number)
    }

    /// Are there so many that the store may be full of them?
    pub(super) fn are_many(&self) -> bool {
        self.asked.len() > MANY
    }

    /// Starts the command.
    pub(super) fn take(
        &mut self,
        name: String,
        versions: Vec<Version>,
        mut command: Command,
        said: PathBuf,
    ) -> Result<()> {
        let err = File::create(&said)?;
        command.stdout(err.try_clone()?).stderr(err);
        let child = command.spawn().context("starting `cowslip snapshot`")?;
        self.running = Some(Running { child, said });
        self.asked.push(Asked {
            name,
            versions,
            promised: false,
            waits: false,
        });
        Ok(())
    }

    /// What waits to be stored may never be, from now on.
    pub(super) fn disk_fails(&mut self) {
        for asked in self.asked.iter_mut().filter(|asked| asked.waits) {
            asked.promised = false;
        }
    }

    /// Waits for the command's end. It may fail only where something was done to it (`excuse`); what it
    /// promises may not come true where a disk failed.
    pub(super) fn answered(
        &mut self,
        excuse: bool,
        failed: bool,
        within: Duration,
    ) -> Result<String> {
        let mut running = self.running.take().context("one was started")?;
        let asked = self.asked.last_mut().context("one was asked for")?;
        let status = wait_within(&mut running.child, within)?;
        let said = std::fs::read_to_string(&running.said)?;
        let said = said.trim();
        let Some(status) = status else {
            bail!("`cowslip snapshot` hangs: {said}");
        };
        asked.waits = status.code() == Some(NOT_YET);
        asked.promised = match status.code() {
            Some(0) => true,
            Some(NOT_YET) => !failed,
            Some(_) if excuse && !said.is_empty() && !said.contains("panicked") => false,
            _ => bail!("`cowslip snapshot` ended badly ({status}): {said}"),
        };
        let last = said.lines().last().unwrap_or("");
        Ok(format!("snapshot {}: {status}: {last}", asked.name))
    }

    /// Looks at all that is there; all but `keep` are removed.
    pub(super) fn check(&mut self, victim: &mut Victim<'_>, keep: usize) -> Result<()> {
        let give_up = Instant::now() + COMES_WITHIN;
        let listed = loop {
            let listed = victim.json("ls")?;
            let names = listed.as_array().context("ls prints a list")?;
            let listed: Vec<String> = names
                .iter()
                .filter_map(|row| Some(row["name"].as_str()?.to_owned()))
                .collect();
            let missing = |asked: &&Asked| asked.promised && !listed.contains(&asked.name);
            match self.asked.iter().find(missing) {
                None => break listed,
                Some(asked) if Instant::now() > give_up => {
                    bail!("snapshot {} was promised, and is not there", asked.name)
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        for asked in self.asked.iter().filter(|a| listed.contains(&a.name)) {
            let to = victim.rig.path(&format!("{}.raw", victim.plan.name));
            let mut export = victim.command(["export", &asked.name, "--quiet", "--replace"]);
            output(export.arg(&to))?;
            let image = std::fs::read(&to)?;
            std::fs::remove_file(&to)?;
            let judged = Cut::new(asked.versions.clone(), Vec::new()).judge(&image);
            judged.map_err(|why| anyhow::anyhow!("lost: snapshot {}: {why}", asked.name))?;
            victim.tally().snapshots += 1;
        }
        self.remove_all_but(keep, victim, &listed)
    }

    fn remove_all_but(
        &mut self,
        keep: usize,
        victim: &Victim<'_>,
        listed: &[String],
    ) -> Result<()> {
        // One that is not there may come; it is given up.
        let session = victim.session_dir();
        while self.asked.len() > keep {
            let asked = self.asked.remove(0);
            let mut command = match listed.contains(&asked.name) {
                true => victim.command(["rm", &asked.name]),
                false => {
                    let mut command = victim.command(["snapshot", "--cancel"]);
                    command.arg(&session).arg(&asked.name);
                    command
                }
            };
            let done = command.output()?;
            if listed.contains(&asked.name) && !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                bail!("`cowslip rm {}`: {said}", asked.name);
            }
            if !done.status.success() {
                // It has come meanwhile; or it never will, and there is nothing to remove.
                victim.command(["rm", &asked.name]).output()?;
            }
        }
        output(&mut victim.command(["gc", "--quiet"]))?;
        Ok(())
    }
}
