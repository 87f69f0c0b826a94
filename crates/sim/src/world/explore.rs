//! [`explore`]: all crashes of one history, or as many as an [`Effort`] allows.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::operation::{Operation, history};
use super::{End, World};
use crate::memory::{Forget, MemoryFs};

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Disks that a power cut may leave, of each moment: all, where there are not more, else so many that a
    /// seed chooses.
    pub disks: usize,
    /// Crashes of which the recovery is crashed again: one in so many.
    pub again_every: u64,
    /// Crashes after which the world goes on for a while and is emptied in the end: one in so many.
    pub go_on_every: u64,
}

impl Effort {
    /// For a history of a few operations.
    pub const THOROUGH: Self = Self {
        disks: 64,
        again_every: 97,
        go_on_every: 5,
    };
}

/// Digests of crash states that need not be looked at again; shared by threads.
#[derive(Debug, Default)]
pub struct Seen([Mutex<HashSet<u64>>; 32]);

impl Seen {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| locked(shard).len()).sum()
    }

    /// None yet?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn insert(&self, digest: u64) -> bool {
        locked(&self.0[(digest >> 59) as usize]).insert(digest)
    }
}

fn locked(shard: &Mutex<HashSet<u64>>) -> MutexGuard<'_, HashSet<u64>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Histories.
    pub histories: u64,
    /// Moments at which something could end: operations on files.
    pub moments: u64,
    /// Moments of which every disk that a cut may leave was looked at.
    pub exhausted: u64,
    /// Crash states that were opened and compared.
    pub states: u64,
    /// Of them: kills.
    pub kills: u64,
    /// Of them: crashes of a recovery.
    pub again: u64,
    /// Crash states that were met before, and left out.
    pub met: u64,
}

impl Tally {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.moments += other.moments;
        self.exhausted += other.exhausted;
        self.states += other.states;
        self.kills += other.kills;
        self.again += other.again;
        self.met += other.met;
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was asked for, until then.
    pub history: Vec<Operation>,
    /// How it ended: a kill or a cut, and where.
    pub end: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for operation in &self.history {
            writeln!(f, "    {operation:?}")?;
        }
        write!(f, "{}: {}", self.end, self.what)
    }
}

/// Runs a history, and crashes it at each operation on a file. `seen` has the digests of crash states that
/// are not looked at again.
///
/// # Errors
/// The first promise that was not kept.
pub fn explore(
    operations: &[Operation],
    seed: u64,
    effort: Effort,
    seen: &Seen,
) -> Result<Tally, Box<Finding>> {
    let mut explorer = Explorer {
        seed,
        effort,
        seen,
        tally: Tally {
            histories: 1,
            ..Tally::default()
        },
    };
    let done = explorer.all(operations);
    done.map(|()| explorer.tally)
}

struct Explorer<'a> {
    seed: u64,
    effort: Effort,
    seen: &'a Seen,
    tally: Tally,
}

/// Where a crash is, and of what.
struct Crash<'a> {
    world: &'a World,
    known: &'a super::Oracle,
    label: String,
    /// Crashes before it.
    depth: u32,
    /// What is promised after it, if it is a kill: a power cut before it counts as well.
    kill: End,
}

impl Explorer<'_> {
    fn all(&mut self, operations: &[Operation]) -> Result<(), Box<Finding>> {
        let finding = |done: usize, end: String, what: String| {
            let history = operations[..done.min(operations.len())].to_vec();
            Box::new(Finding { history, end, what })
        };
        let world = caught(sound_world).map_err(|e| finding(0, "making a world".into(), e))?;
        let mut world = world;
        world.disk.record();
        for (i, operation) in operations.iter().enumerate() {
            let applied = caught(|| world.apply(operation));
            applied.map_err(|e| finding(i + 1, "without a crash".into(), e))?;
            for (m, moment) in world.disk.moments().into_iter().enumerate() {
                self.tally.moments += 1;
                let crash = Crash {
                    world: &world,
                    known: &world.during,
                    label: format!("file operation {m} of the last"),
                    depth: 0,
                    kill: End::Kill,
                };
                let found = self.crashes(&moment, &crash);
                found.map_err(|(end, what)| finding(i + 1, end, what))?;
            }
            let now = caught(|| world.check_now());
            now.map_err(|e| finding(i + 1, "without a crash".into(), e))?;
        }
        let crash = Crash {
            world: &world,
            known: &world.oracle,
            label: "after the last".into(),
            depth: 0,
            kill: End::Kill,
        };
        let found = self.crashes(&world.disk, &crash);
        found.map_err(|(end, what)| finding(operations.len(), end, what))?;
        let end = caught(|| world.check_end());
        end.map_err(|e| finding(operations.len(), "at the end".into(), e))
    }

    /// All that may be left of one moment.
    fn crashes(&mut self, moment: &MemoryFs, crash: &Crash<'_>) -> Result<(), (String, String)> {
        let killed = moment.after_cut(Forget::Nothing);
        self.state(&killed, End::Kill, crash, 0)?;
        let most = match crash.depth {
            0 => self.effort.disks,
            _ => 4,
        };
        let mut disks = Vec::new();
        if moment.every_cut(most, &mut |disk| disks.push(disk)) {
            self.tally.exhausted += 1;
        } else {
            let base = self.seed.wrapping_mul(1_000_003) ^ self.tally.moments << 16;
            let seeds = (0..most as u64).map(|n| Forget::Some(base.wrapping_add(n)));
            let forgets = seeds.chain([Forget::Unsynced]);
            disks = forgets.map(|forget| moment.after_cut(forget)).collect();
        }
        for (n, disk) in disks.into_iter().enumerate() {
            self.state(&disk, End::Cut, crash, n)?;
        }
        Ok(())
    }

    fn state(
        &mut self,
        disk: &MemoryFs,
        end: End,
        crash: &Crash<'_>,
        n: usize,
    ) -> Result<(), (String, String)> {
        let digest = disk.digest().wrapping_add(u64::from(end == End::Kill));
        if !self.seen.insert(digest) {
            self.tally.met += 1;
            return Ok(());
        }
        self.tally.states += 1;
        self.tally.kills += u64::from(end == End::Kill);
        self.tally.again += u64::from(crash.depth > 0);
        let again = crash.depth == 0 && digest.is_multiple_of(self.effort.again_every);
        if again {
            disk.record();
        }
        let label = match end {
            End::Kill => format!("{}: killed", crash.label),
            End::Cut => format!("{}: power cut (disk {n})", crash.label),
        };
        let known = crash.known.clone();
        let promised = match end {
            End::Kill => crash.kill,
            End::Cut => End::Cut,
        };
        let opened = caught(|| World::after(disk.clone(), end, promised, crash.world, known));
        let opened = opened.map_err(|what| (label.clone(), what))?;
        if again {
            for (m, moment) in disk.moments().into_iter().enumerate() {
                let crash = Crash {
                    // What was known before counts for the second crash as well.
                    world: &opened,
                    known: crash.known,
                    label: format!("{label}; file operation {m} of the recovery"),
                    depth: 1,
                    kill: end,
                };
                self.crashes(&moment, &crash)?;
            }
        }
        if digest.is_multiple_of(self.effort.go_on_every) {
            let gone_on = caught(|| go_on(opened, digest));
            gone_on.map_err(|what| (format!("{label}, opened, and gone on"), what))?;
        }
        Ok(())
    }
}

/// What is planted grows from here on.
fn sound_world() -> Result<World, String> {
    #[cfg(feature = "planted")]
    let _spared = cowslip_block::planted::spare();
    World::new()
}

/// It works as if nothing had been.
fn go_on(mut world: World, seed: u64) -> Result<(), String> {
    // What relies on what the end before left, before anything else could sync that.
    if seed >> 32 & 1 == 0 {
        world.flush_all()?;
        world.check_durable()?;
        world.apply(&Operation::Collect)?;
    }
    world.check_durable()?;
    for operation in history(seed, 6) {
        world.apply(&operation)?;
    }
    world.check_now()?;
    world.check_durable()?;
    world.apply(&Operation::Collect)?;
    world.flush_all()?;
    world.check_durable()?;
    world.check_end()
}

/// A panic is a finding like any other.
pub(super) fn caught<T>(act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", crate::text_of(&*panic))))
}
