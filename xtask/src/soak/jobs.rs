//! [`Job`]: a command that runs beside everything else, and what its end must be.
//!
//! | command          | must                                                                      |
//! |------------------|---------------------------------------------------------------------------|
//! | snapshot         | succeed, unless it or its session's server is killed (see `names.rs`)     |
//! | gc, compact      | succeed                                                                   |
//! | verify           | succeed                                                                   |
//! | export           | succeed, with the bytes that the name holds                               |
//! | diff             | succeed, with as many blocks as differ, where both images are certain     |
//!
//! A command that was killed may have done anything. One that reads a name which is removed meanwhile
//! may say that there is no such name.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::names::Name;

use super::world::World;
use crate::rig::oracle::{PER_BLOCK, Version};

pub(super) const JOBS_MAX: usize = 5;
/// No command takes as long on any machine.
const HANGS_AFTER: Duration = Duration::from_secs(300);
/// A command that is to be killed lives so long at most, in microseconds.
const KILLED_WITHIN_US: usize = 60_000;
/// The exit code of a name that is not there.
const NOT_FOUND: i32 = 3;

/// What it does.
#[derive(Clone, Debug)]
pub(super) enum What {
    Snapshot {
        asked: usize,
    },
    Gc,
    Compact {
        name: Option<String>,
    },
    Verify {
        name: String,
    },
    /// Into a directory of its own.
    Export {
        name: String,
        holds: Name,
        to: PathBuf,
    },
    Diff {
        names: [String; 2],
        differ: Option<u64>,
    },
}

impl What {
    fn command(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Gc => "gc",
            Self::Compact { .. } => "compact",
            Self::Verify { .. } => "verify",
            Self::Export { .. } => "export",
            Self::Diff { .. } => "diff",
        }
    }

    fn killed(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "kill -9 snapshot",
            Self::Gc => "kill -9 gc",
            Self::Compact { .. } => "kill -9 compact",
            _ => "kill -9 reader",
        }
    }

    /// Removes what an export wrote, whole or not.
    fn clear(&self) -> Result<()> {
        match self {
            Self::Export { to, .. } => Ok(std::fs::remove_dir_all(to)?),
            _ => Ok(()),
        }
    }

    /// The names that it reads.
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Self::Snapshot { .. } | Self::Gc => Vec::new(),
            Self::Compact { name } => name.iter().map(String::as_str).collect(),
            Self::Verify { name } | Self::Export { name, .. } => vec![name],
            Self::Diff { names, .. } => names.iter().map(String::as_str).collect(),
        }
    }
}

/// See the module.
pub(super) struct Job {
    pub(super) what: What,
    child: Child,
    began: Instant,
    kill_at: Option<Instant>,
    killed: bool,
    /// Where its output goes, and its errors.
    out: [PathBuf; 2],
    /// A name that it reads was removed meanwhile.
    pub(super) name_removed: bool,
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// Starts a command, perhaps to be killed.
    pub(super) fn start(&mut self, what: What, mut command: Command, kill: bool) -> Result<()> {
        let number = self.next_number();
        let out = ["out", "err"].map(|kind| self.rig.path(&format!("job-{number}.{kind}")));
        command
            .stdout(File::create(&out[0])?)
            .stderr(File::create(&out[1])?);
        let child = command.spawn().context("starting a command")?;
        let began = Instant::now();
        let after = Duration::from_micros(self.random.below(KILLED_WITHIN_US) as u64);
        let kill_at = kill.then(|| began + after);
        let (killed, name_removed) = (false, false);
        self.jobs.push(Job {
            what,
            child,
            began,
            kill_at,
            killed,
            out,
            name_removed,
        });
        Ok(())
    }

    /// Kills what is to be killed by now, and judges what has ended.
    pub(super) fn poll_jobs(&mut self) -> Result<()> {
        let now = Instant::now();
        for at in (0..self.jobs.len()).rev() {
            let job = &mut self.jobs[at];
            let Some(status) = job.child.try_wait()? else {
                if now.duration_since(job.began) > HANGS_AFTER {
                    bail!("`cowslip {}` hangs: {:?}", job.what.command(), job.what);
                }
                if !job.killed && job.kill_at.is_some_and(|at| at <= now) {
                    job.child.kill()?;
                    job.killed = true;
                }
                continue;
            };
            let job = self.jobs.swap_remove(at);
            let read = |path: &PathBuf| std::fs::read(path).context("a command's output");
            let (out, err) = (read(&job.out[0])?, read(&job.out[1])?);
            job.out.iter().try_for_each(std::fs::remove_file)?;
            let err = String::from_utf8_lossy(&err).trim().to_owned();
            // One that ended by itself just before it was to be killed has an exit code.
            let killed = job.killed && status.code().is_none();
            if killed {
                *self.counts.entry(job.what.killed()).or_default() += 1;
            } else if status.code().is_none() || err.contains("panicked") {
                bail!(
                    "`cowslip {}` ended by itself ({status}): {err}",
                    job.what.command()
                );
            }
            let ended = Ended {
                code: status.code(),
                killed,
                out,
                err,
            };
            self.judge_job(&job, &ended)?;
        }
        Ok(())
    }

    fn judge_job(&mut self, job: &Job, ended: &Ended) -> Result<()> {
        let command = job.what.command();
        let took = job.began.elapsed().as_millis();
        let how = ended
            .code
            .map_or("killed".to_owned(), |code| format!("exit code {code}"));
        self.remember(&format!(
            "`{command}` {:?} ends: {how}, {took} ms",
            job.what.names()
        ));
        if let What::Snapshot { asked } = job.what {
            let done = ended.code == Some(0);
            return self.answered(asked, done, ended.killed, &ended.err);
        }
        if ended.killed {
            return job.what.clear();
        }
        match ended.code {
            Some(0) => {}
            Some(NOT_FOUND) if job.name_removed => return job.what.clear(),
            _ => bail!(
                "`cowslip {command}` {:?} failed: {how}: {}",
                job.what.names(),
                ended.err
            ),
        }
        match &job.what {
            What::Export { name, holds, to } => {
                let image = std::fs::read(to.join("image.raw"))?;
                job.what.clear()?;
                self.compare_name(name, holds.clone(), &image, "exported")
            }
            What::Diff {
                names: [a, b],
                differ,
            } => {
                let found: Value = serde_json::from_slice(&ended.out)?;
                let blocks = |kind: &str| found[kind].as_u64().context("a number of blocks");
                let found = blocks("changed_blocks")? + blocks("zeroed_blocks")?;
                match differ {
                    Some(wanted) if *wanted != found => {
                        bail!("`cowslip diff {a} {b}` finds {found} blocks, and {wanted} differ")
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// An image that was read under a name is what the name holds.
    pub(super) fn compare_name(
        &mut self,
        name: &str,
        mut holds: Name,
        image: &[u8],
        how: &str,
    ) -> Result<()> {
        self.note("compare name", format!("{name}, {how}"));
        self.compared_bytes += image.len() as u64;
        if let Err(why) = holds.judge(image) {
            bail!("snapshot {name}, {how}: {why}");
        }
        // What it holds is certain by now. A name that is being read is not replaced.
        if let Some(known) = self.names.get_mut(name) {
            *known = holds;
        }
        Ok(())
    }
}

/// How many blocks of two images differ.
pub(super) fn blocks_that_differ(a: &[Version], b: &[Version]) -> u64 {
    let blocks = a.chunks(PER_BLOCK).zip(b.chunks(PER_BLOCK));
    blocks.filter(|(a, b)| a != b).count() as u64
}

struct Ended {
    code: Option<i32>,
    killed: bool,
    out: Vec<u8>,
    err: String,
}
