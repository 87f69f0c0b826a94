//! [`World`]: the snapshots that there are, with what each must hold, and what is done to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::freeze::Orders;
use super::life::{Kind, Life, MEMORY_BYTES, compare, first_memory};
use super::tally::Tally;
use crate::rig::Rig;
use crate::rig::random::Random;
use crate::rig::story::Story;
use crate::rig::usage::du;
use crate::rig::watch::left_in_store;

/// So many are kept; each has a file with what it must hold.
const NAMES: usize = 10;
/// What the store may take, whatever was done: each that is kept wholly by itself, twice, since a layer is kept wholly until it is compacted.
const STORE_BYTES_MAX: u64 = 2 * (NAMES as u64 + 2) * MEMORY_BYTES as u64;
/// A guest that gives back what is being copied is asked again.
const TRIES: usize = 50;
const GIVEN_BACK: &str = "gave memory back while it was being copied";
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
const REMEMBERED: usize = 60;

/// See the module.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) story: Story,
    pub(super) tally: Tally,
    random: Random,
    orders: Orders,
    names: BTreeMap<String, PathBuf>,
    next: usize,
}

impl World {
    pub(super) fn begin(rig: Rig, seed: u64) -> Result<Self> {
        let mut world = Self {
            story: Story::begin(&rig.path("log"), REMEMBERED)?,
            tally: Tally::default(),
            random: Random(seed),
            orders: Orders::new(&rig)?,
            names: BTreeMap::new(),
            next: 0,
            rig,
        };
        let (name, oracle) = world.name();
        first_memory(&oracle, &mut world.random)?;
        world.rig.ok(&format!(
            "memory import {} {name} --quiet",
            oracle.display()
        ))?;
        world.names.insert(name, oracle);
        Ok(world)
    }

    /// Lives of these kinds in turn, until there were so many snapshots; then the end of all.
    pub(super) fn live(&mut self, kinds: &[Kind], snapshots: usize) -> Result<()> {
        let (begun, mut told) = (Instant::now(), Instant::now());
        let mut turns = kinds.iter().cycle();
        let each = snapshots.div_ceil(kinds.len());
        while self.tally.snapshots() < snapshots {
            let kind = *turns.next().context("a kind")?;
            let left = snapshots - self.tally.snapshots();
            self.life(kind, left.min(each).min(kind.snapshots()))?;
            if told.elapsed() > PROGRESS_EVERY {
                told = Instant::now();
                eprintln!(
                    "{:5} s  {}",
                    begun.elapsed().as_secs(),
                    self.tally.line(snapshots)
                );
            }
        }
        self.tally.took = begun.elapsed();
        self.finish()
    }

    fn name(&mut self) -> (String, PathBuf) {
        let name = format!("m{:05}", self.next);
        self.next += 1;
        let oracle = self.rig.path(&format!("{name}.oracle"));
        (name, oracle)
    }

    fn any(&mut self) -> Result<String> {
        let names = self.names.keys().cloned().collect();
        self.random.pick(names).context("there is always one")
    }

    fn life(&mut self, kind: Kind, snapshots: usize) -> Result<()> {
        let name = self.any()?;
        self.story.add(&format!("serve {name}: {}", kind.name));
        let mut life = Life::begin(
            &self.rig,
            kind,
            (&name, &self.names[&name]),
            &mut self.random,
        )?;
        self.tally.of(kind).guests += life.guests.len() as u64;
        // Of the disk of the guest is spoken as of some bytes of its memory.
        let disk = self
            .random
            .once_in(2)
            .then(|| self.disk(&name))
            .transpose()?;
        for _ in 0..snapshots {
            let taken = self.snapshot(&mut life, disk.as_deref());
            taken.with_context(|| {
                format!("{}; the server says: {:?}", kind.name, life.server.said())
            })?;
            self.tidy()?;
        }
        if let Some(disk) = disk {
            self.rig.ok(&format!("rm {disk}"))?;
        }
        let server_first = self.random.once_in(2);
        self.story.add(&format!(
            "end, the server {}",
            if server_first { "first" } else { "last" }
        ));
        self.tally.compared_bytes += life.end(server_first)? as u64;
        Ok(())
    }

    /// A snapshot of a disk with some pages of this memory.
    fn disk(&mut self, of: &str) -> Result<String> {
        let disk = format!("disk-{of}-{}", self.next);
        let memory = std::fs::read(&self.names[of])?;
        let start = self.random.below(7 * MEMORY_BYTES / 8 / 4096) * 4096;
        std::fs::write(
            self.rig.path("disk"),
            &memory[start..start + MEMORY_BYTES / 8],
        )?;
        self.rig
            .ok(&format!("import disk {disk} --format raw --quiet"))?;
        Ok(disk)
    }

    fn snapshot(&mut self, life: &mut Life, disk: Option<&str>) -> Result<()> {
        let (name, oracle) = self.name();
        let at = self.random.below(life.guests.len());
        let guest = &mut life.guests[at];
        let mut line = format!(
            "memory snapshot {name} --server unix:memory.sock --json --pid {}",
            guest.control.pid()
        );
        if let Some(disk) = disk.filter(|_| self.random.once_in(2)) {
            line += &format!(" --disk {disk}");
        }
        for _ in 0..TRIES {
            self.story.add(&line);
            let command = self.rig.command(line.split(' '));
            let frozen = self.orders.freeze(command, guest, &oracle)?;
            let said = String::from_utf8_lossy(&frozen.output.stderr).into_owned();
            if frozen.output.status.success() {
                let taken: Value = serde_json::from_slice(&frozen.output.stdout)?;
                self.tally.taken(life.kind, &taken, frozen.pause)?;
                self.names.insert(name.clone(), oracle);
                return self
                    .compare(&name)
                    .with_context(|| format!("{name}: {taken}"));
            }
            if !said.contains(GIVEN_BACK) {
                bail!("cowslip {line}: {said}");
            }
            self.tally.of(life.kind).given_back += 1;
        }
        bail!("{TRIES} times in a row the guest {GIVEN_BACK}")
    }

    /// It holds what it must.
    fn compare(&mut self, name: &str) -> Result<()> {
        self.rig
            .ok(&format!("export {name}:memory found --replace --quiet"))?;
        compare(&self.rig.path("found"), &self.names[name])?;
        self.tally.compared_bytes += MEMORY_BYTES as u64;
        Ok(())
    }

    /// What others do beside it.
    fn tidy(&mut self) -> Result<()> {
        while self.names.len() > NAMES {
            let name = self.any()?;
            self.remove(&name)?;
        }
        if self.random.once_in(8) {
            self.story.add("gc");
            self.rig.ok("gc")?;
            self.tally.collections += 1;
        }
        if self.random.once_in(24) {
            self.story.add("compact, gc");
            self.rig.ok("compact --auto --quiet")?;
            self.rig.ok("gc")?;
            self.tally.compactions += 1;
            let any = self.any()?;
            self.compare(&any)
                .with_context(|| format!("{any}, compacted"))?;
            let store = du(&self.rig.store()).disk_bytes;
            if store > STORE_BYTES_MAX {
                bail!("the store takes {store} bytes, and may take {STORE_BYTES_MAX}");
            }
        }
        self.tally.store_bytes_peak = self
            .tally
            .store_bytes_peak
            .max(du(&self.rig.store()).disk_bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.story.add(&format!("rm {name}"));
        self.rig.ok(&format!("rm {name}"))?;
        let oracle = self.names.remove(name);
        Ok(std::fs::remove_file(oracle.context("it was there")?)?)
    }

    /// All that are left are compared once more, verified and removed, and nothing is left.
    fn finish(&mut self) -> Result<()> {
        self.rig.ok("verify --quiet")?;
        for name in self.names.keys().cloned().collect::<Vec<_>>() {
            self.compare(&name)
                .with_context(|| format!("{name}, at the end"))?;
            self.remove(&name)?;
        }
        self.rig.ok("gc")?;
        let left = left_in_store(&self.rig.store())?;
        if !left.is_empty() {
            bail!(
                "after all was removed there is left:\n  {}",
                left.join("\n  ")
            );
        }
        Ok(())
    }
}
