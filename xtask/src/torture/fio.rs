//! [`Fio`]: somebody else's client: fio over NBD. It writes with checksums and flushes at the end; after
//! that, whatever is done to the server, fio must find all of it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::client::{Settled, Shared, Trouble, Work};
use super::fault::Break;
use super::place::tool;
use crate::rig::random::Random;
use crate::rig::server::wait_within;

const BYTES: u64 = 12 << 20;
const REQUESTS: u64 = BYTES >> 14;
/// Longer, and it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Fio {
    said: PathBuf,
    /// What was written whole, and flushed: the seed of it.
    there: Option<u64>,
    random: Random,
}

impl Fio {
    pub(super) fn new(said: PathBuf, random: Random) -> Self {
        Self {
            said,
            there: None,
            random,
        }
    }

    fn run(&self, seed: u64, verify: bool, shared: &Shared) -> Result<(), Trouble> {
        let broken = |why: &dyn std::fmt::Display| Trouble::Finding(format!("fio: {why}"));
        let mut fio = tool("fio").map_err(|error| broken(&error))?;
        let socket = shared.address();
        fio.args([
            "--name=torture",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=16k",
        ]);
        fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--iodepth=8"]);
        // It would be written where this was started.
        fio.arg("--verify_state_save=0");
        fio.arg(format!("--size={BYTES}"))
            .arg(format!("--randseed={seed}"));
        match verify {
            true => fio.arg("--verify_only"),
            false => fio.args(["--do_verify=0", "--end_fsync=1"]),
        };
        let out = File::create(&self.said).and_then(|out| Ok((out.try_clone()?, out)));
        let (out, err) = out.map_err(|error| broken(&error))?;
        let started = fio.stdout(Stdio::from(out)).stderr(err).spawn();
        let mut child = started.map_err(|error| broken(&error))?;
        shared.client_pid.store(child.id(), Ordering::SeqCst);
        let ended = wait_within(&mut child, HANGS_AFTER);
        shared.client_pid.store(0, Ordering::SeqCst);
        if !matches!(ended, Ok(Some(_))) {
            drop(child.kill());
            drop(child.wait());
        }
        let said = std::fs::read_to_string(&self.said).unwrap_or_default();
        match ended {
            Ok(Some(status)) if status.success() => {
                shared.done(REQUESTS);
                let compared = if verify { BYTES } else { 0 };
                shared.compared_bytes.fetch_add(compared, Ordering::Relaxed);
                return Ok(());
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err(broken(&format!("it hangs: {said}"))),
            Err(error) => return Err(broken(&error)),
        }
        shared.told_error();
        if said.contains("verify failed") || said.contains("bad magic header") {
            return Err(broken(&format!("lost: {said}")));
        }
        let first = said
            .lines()
            .find(|line| line.contains("fio") || line.contains("nbd"));
        let why = format!("fio: {}", first.unwrap_or("killed"));
        Err(match said {
            said if said.contains("No space left") => Trouble::NoRoom(why),
            said if said.contains("Input/output error") => Trouble::Failed(why),
            _ => Trouble::Gone(why),
        })
    }

    fn write(&mut self, shared: &Shared) -> Result<(), Trouble> {
        self.there = None;
        let seed = self.random.next() >> 40;
        self.run(seed, false, shared)?;
        self.there = Some(seed);
        Ok(())
    }
}

impl Work for Fio {
    fn some(&mut self, shared: &Shared) -> Result<(), Trouble> {
        match self.there {
            Some(seed) if !self.random.once_in(4) => self.run(seed, true, shared),
            _ => self.write(shared),
        }
    }

    fn leave(&mut self, _: Break, _: &Shared) -> Result<(), Trouble> {
        // It has just ended by itself.
        Ok(())
    }

    fn settle(&mut self, shared: &Shared) -> Result<Settled, Trouble> {
        if let Some(seed) = self.there {
            self.run(seed, true, shared)?;
        }
        self.write(shared)?;
        let well_at = Instant::now();
        let seed = self.there.unwrap_or_default();
        self.run(seed, true, shared)?;
        shared.tell("fio has found all of it");
        let versions = Vec::new();
        Ok(Settled { well_at, versions })
    }

    fn end(&mut self, _: &Shared) -> Result<()> {
        drop(std::fs::remove_file(&self.said));
        Ok(())
    }
}
