//! [`Orders`]: one `cowslip memory snapshot`, whose commands pause a guest and let it go by way of two pipes.
//!
//! ```text
//! --before   "p" ──> paused, shadow copied ──> a line back
//! --after    "r" ──> at work again
//! ```

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::life::Guest;
use crate::rig::Rig;
use crate::rig::server::wait_within;

/// A snapshot that takes longer hangs.
const WITHIN: Duration = Duration::from_secs(120);

/// The pipes, open at both ends all the time: nobody waits for the other to come.
pub(super) struct Orders {
    asked: File,
    told: File,
}

/// How a snapshot was taken.
pub(super) struct Frozen {
    pub(super) output: Output,
    /// From when the guest may be looked at until it may go on, with the ends of both commands.
    pub(super) pause: Duration,
}

impl Orders {
    pub(super) fn new(rig: &Rig) -> Result<Self> {
        let pipe = |name| {
            let path = rig.path(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            File::options()
                .read(true)
                .write(true)
                .open(&path)
                .context(name)
        };
        Ok(Self {
            asked: pipe("asked")?,
            told: pipe("told")?,
        })
    }

    /// Runs the command; the oracle is the guest's memory as it was when it was paused.
    pub(super) fn freeze(
        &mut self,
        mut command: Command,
        guest: &mut Guest,
        oracle: &Path,
    ) -> Result<Frozen> {
        command.args([
            "--before",
            "echo p > asked; read x < told",
            "--after",
            "echo r > asked",
        ]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let give_up = Instant::now() + WITHIN;
        let (mut paused, mut pause) = (None, None);
        loop {
            match self.next()? {
                Some(b'p') => {
                    guest.tell("pause")?;
                    fs::copy(&guest.shadow, oracle)?;
                    paused = Some(Instant::now());
                    self.told.write_all(b"\n")?;
                }
                Some(b'r') => {
                    pause = paused.map(|from| from.elapsed());
                    guest.tell("resume")?;
                    break;
                }
                Some(_) => {}
                None if child.try_wait()?.is_some() => break,
                None if Instant::now() > give_up => {
                    bail!("a snapshot did not let its guest go within {WITHIN:?}")
                }
                None => {}
            }
        }
        if wait_within(&mut child, WITHIN)?.is_none() {
            drop(child.kill());
            bail!("a snapshot was not stored within {WITHIN:?}");
        }
        let output = child.wait_with_output()?;
        let Some(pause) = pause else {
            bail!(
                "a snapshot did not pause its guest and let it go: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        Ok(Frozen { output, pause })
    }

    /// What is asked for, if something is soon.
    fn next(&mut self) -> Result<Option<u8>> {
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        let mut ready = [PollFd::new(&self.asked, PollFlags::IN)];
        if poll(&mut ready, Some(&soon))? == 0 {
            return Ok(None);
        }
        let mut letter = [0];
        self.asked.read_exact(&mut letter)?;
        Ok(Some(letter[0]))
    }
}
