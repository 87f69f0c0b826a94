//! Schedules: the real cache, gate and overlay under threads that take turns as a scheduler says, at each lock, atomic
//! and condition, and, where the disk is slow, before each call to a file. One seed is one scenario (who asks for what) and one schedule of it.
//!
//! ```text
//! clients     write, zero, trim, read, flush a few cells that all of them share
//! snapshots   freeze; finish, read and perhaps retire what was frozen
//! tidier      punches holes, makes checkpoints
//!                 |
//!                 v
//! oracle      each read saw what it may; each snapshot is a consistent cut, and never changes; what was on disk when
//!             a flush was answered, or a frozen cache was finished, is what was promised, after the worst of power cuts
//! ```
//!
//! Operations on files are in memory, and each is one step, which does not fail; what a disk may do wrong beside a single thread is
//! the business of [`crate::world`].

mod device;
mod oracle;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cowslip_block::cache::Cache;
use cowslip_block::files::Dir;
use cowslip_block::overlay::Overlay;
use cowslip_block::{ByteOffset, ByteRange, Device, DeviceError, Room};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

use self::device::{BOOT, CELLS, Flat, Moment, SIZE, content, geometry, new_cache, read};
use self::oracle::{CELL, Oracle, Seen, Time, bytes_of};
use crate::memory::{Forget, MemoryFs};
use crate::seeded::Seeded;
use crate::text_of;

/// Schedules that share a scheduler.
const BATCH: usize = 64;
/// A thread of it is a few frames deep.
const STACK_BYTES: usize = 256 << 10;
const LATER_BOOT: [u8; 16] = [2; 16];

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Schedules.
    pub schedules: u64,
    /// The seed of the first that kept a promise badly, and what was wrong.
    pub found: Option<(u64, String)>,
}

/// Runs one schedule of one scenario after the other, from the seed on, until something is found, so many have been, or the
/// time is up.
pub fn explore(seed: u64, at_most: u64, until: Instant) -> Explored {
    let mut explored = Explored::default();
    while explored.found.is_none() && explored.schedules < at_most && Instant::now() < until {
        let batch_seed = seed + explored.schedules;
        let told = Arc::new(Mutex::new(Explored::default()));
        let telling = Arc::clone(&told);
        let scenario = move || {
            let next = {
                let told = locked(&telling);
                (told.found.is_none() && Instant::now() < until).then_some(told.schedules)
            };
            if let Some(next) = next {
                let seed = batch_seed + next;
                locked(&telling).schedules += 1;
                let found = schedule(seed).err();
                locked(&telling).found = found.map(|why| (seed, why));
            }
        };
        let run = || match batch_seed / BATCH as u64 % 2 {
            0 => Runner::new(RandomScheduler::new_from_seed(batch_seed, BATCH), config())
                .run(scenario),
            _ => Runner::new(PctScheduler::new_from_seed(batch_seed, 3, BATCH), config())
                .run(scenario),
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let told = locked(&told).clone();
        explored.schedules += told.schedules.max(1);
        explored.found = told.found;
        if let Err(panic) = ended {
            let last = batch_seed + told.schedules.saturating_sub(1);
            explored.found = Some((last, text_of(&*panic).to_owned()));
        }
    }
    explored
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    // Orderings are as strong as can be: the protocol is one of locks.
    config.silence_warnings = true;
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Not one of the locks that are scheduled: held for a moment, and never while another thread can go on.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Others may have their turns before a call to a file is made.
pub(crate) fn turn() {
    // As a lock or an atomic: a yield would say that there is nothing to do here.
    shuttle::sync::atomic::AtomicBool::new(false).load(shuttle::sync::atomic::Ordering::SeqCst);
}

/// What all threads of one schedule share.
struct World {
    /// All clients want the same block, and it is zeroed more often.
    is_crowded: bool,
    disk: MemoryFs,
    dir: Arc<dyn Dir>,
    overlay: Overlay,
    /// What is below all caches, or, beside a retirement, what will be: the same, seen through them.
    base: Mutex<Arc<dyn Device>>,
    oracle: Mutex<Oracle>,
    /// What is to be judged when all is over.
    later: Mutex<Vec<Later>>,
    found: Mutex<Option<String>>,
}

/// Something to be judged when all is over, so that judging takes no turns.
enum Later {
    /// A flush was answered.
    Flushed {
        begun: Time,
        ended: Time,
        moment: Moment,
    },
    /// A frozen cache was finished: the disk then, and what it held.
    Finished {
        seen: Seen,
        caches: Vec<Arc<Cache>>,
        base: Arc<dyn Device>,
        disk: MemoryFs,
    },
}

/// One schedule, as whoever calls this decides.
fn schedule(seed: u64) -> Result<(), String> {
    let world = Arc::new(World::new(seed.is_multiple_of(3)));
    if seed.is_multiple_of(2) {
        world.disk.be_slow();
    }
    let client = |number: u64| {
        let world = Arc::clone(&world);
        let mut seeded = Seeded::new(seed * 8 + number);
        shuttle::thread::spawn(move || {
            for turn in 0..3 {
                let done = world.request(&mut seeded, 100 + number * 10 + turn);
                world.told(done);
            }
        })
    };
    let mut threads: Vec<_> = (0..2).map(client).collect();
    let (freezing, mut seeded) = (Arc::clone(&world), Seeded::new(seed * 8 + 6));
    threads.push(shuttle::thread::spawn(move || {
        for number in 2..3 + seeded.below(2) {
            let done = freezing.snapshot(&mut seeded, number);
            freezing.told(done);
        }
    }));
    let (tidying, mut seeded) = (Arc::clone(&world), Seeded::new(seed * 8 + 7));
    threads.push(shuttle::thread::spawn(move || {
        for _ in 0..3 {
            let done = tidying.tidy(&mut seeded);
            tidying.told(done);
        }
    }));
    for thread in threads {
        let ended = thread.join();
        world.told(ended.map_err(|_| "a thread panicked".to_owned()));
    }
    let judged = world.judge(seed);
    world.told(judged);
    let found = locked(&world.found).take();
    found.map_or(Ok(()), Err)
}

fn sound<T>(done: Result<T, DeviceError>) -> Result<T, String> {
    done.map_err(|error| format!("failed on a sound disk: {error}"))
}

impl World {
    fn new(is_crowded: bool) -> Self {
        let disk = MemoryFs::new();
        let dir = disk.root();
        let top = new_cache(&dir, 1);
        let mut oracle = Oracle::default();
        let mut bytes = Vec::new();
        for cell in 0..CELLS {
            let value = cell as u64 + 1;
            let request = oracle.begin(cell..cell + 1, value);
            oracle.end(request);
            bytes.extend(bytes_of(value));
        }
        let base: Arc<dyn Device> = Arc::new(Flat(bytes));
        let overlay = Overlay::new(geometry(), top, Vec::new(), Arc::clone(&base));
        Self {
            is_crowded,
            disk,
            dir,
            overlay,
            base: Mutex::new(base),
            oracle: Mutex::new(oracle),
            later: Mutex::default(),
            found: Mutex::default(),
        }
    }

    fn now(&self) -> Time {
        locked(&self.oracle).now()
    }

    /// The first thing that is wrong is the one that is told.
    fn told(&self, done: Result<(), String>) {
        if let Err(why) = done {
            locked(&self.found).get_or_insert(why);
        }
    }

    /// One request of a client. What it writes has a value of its own.
    fn request(&self, seeded: &mut Seeded, value: u64) -> Result<(), String> {
        let (first, count) = match self.is_crowded {
            // One whole block.
            true => (0, 2),
            false => {
                let first = seeded.below(CELLS);
                (first, (1 + seeded.below(3)).min(CELLS - first))
            }
        };
        let at = ByteOffset((first * CELL) as u64);
        let range = ByteRange::new(at.0, ((first + count) * CELL) as u64);
        // Zeroed one time in ten, or four.
        let zeroes = if self.is_crowded { 6..11 } else { 9..11 };
        match seeded.below(20) {
            kind if zeroes.contains(&kind) => {
                let zero = || self.overlay.write_zeroes(range, Room::Free);
                self.write(first..first + count, 0, zero)
            }
            0..9 => {
                let bytes = bytes_of(value).repeat(count);
                self.write(first..first + count, value, || {
                    self.overlay.write(at, &bytes)
                })
            }
            11..13 => {
                // The whole blocks inside.
                let inside = first.next_multiple_of(2)..(first + count) / 2 * 2;
                self.write(inside, 0, || self.overlay.trim(range))
            }
            13..16 => {
                let begun = self.now();
                let bytes = read(&self.overlay, first, count);
                let ended = self.now();
                let first_cell = first;
                let seen = Seen {
                    begun,
                    ended,
                    first_cell,
                    bytes,
                };
                locked(&self.oracle).read(seen)
            }
            _ => self.flush(),
        }
    }

    fn write(
        &self,
        cells: std::ops::Range<usize>,
        value: u64,
        write: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), String> {
        let request = locked(&self.oracle).begin(cells, value);
        sound(write())?;
        locked(&self.oracle).end(request);
        Ok(())
    }

    fn flush(&self) -> Result<(), String> {
        let begun = self.now();
        sound(self.overlay.flush())?;
        // The stack and the disk as they were at one moment.
        let (ended, moment) = loop {
            let before = self.overlay.stack();
            let base = Arc::clone(&locked(&self.base));
            let (ended, disk) = (self.now(), self.disk.after_cut(Forget::Nothing));
            if Arc::ptr_eq(&before, &self.overlay.stack()) {
                break (ended, Moment::new(disk, before, base));
            }
        };
        let flushed = Later::Flushed {
            begun,
            ended,
            moment,
        };
        locked(&self.later).push(flushed);
        Ok(())
    }

    /// A freeze; what was frozen is finished, read, and perhaps retired.
    fn snapshot(&self, seeded: &mut Seeded, number: usize) -> Result<(), String> {
        let top = new_cache(&self.dir, number);
        let begun = self.now();
        let frozen = self.overlay.freeze(top).frozen;
        let ended = self.now();
        sound(frozen.finish())?;
        let disk = self.disk.after_cut(Forget::Nothing);
        let base = Arc::clone(&locked(&self.base));
        let caches = self.overlay.stack().frozen().to_vec();
        let bytes = content(&caches, &base);
        let seen = Seen {
            begun,
            ended,
            first_cell: 0,
            bytes: bytes.clone(),
        };
        let retired = caches.len();
        let finished = Later::Finished {
            seen,
            caches,
            base,
            disk,
        };
        locked(&self.later).push(finished);
        if seeded.below(2) == 0 {
            let base: Arc<dyn Device> = Arc::new(Flat(bytes));
            *locked(&self.base) = Arc::clone(&base);
            drop(self.overlay.retire(retired, base));
            let removed = Cache::remove(&*self.dir, frozen.name(), geometry().block_size);
            removed.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn tidy(&self, seeded: &mut Seeded) -> Result<(), String> {
        let stack = self.overlay.stack();
        let tidied = match seeded.below(3) {
            0 => stack.top().checkpoint(),
            _ => stack.top().punch_some().map(drop),
        };
        tidied.map_err(|e| e.to_string())
    }

    /// What is left when all is over, and what was left for now.
    fn judge(&self, seed: u64) -> Result<(), String> {
        let now = self.now();
        let bytes = read(&self.overlay, 0, CELLS);
        let last = Seen {
            begun: now,
            ended: now,
            first_cell: 0,
            bytes,
        };
        locked(&self.oracle).read(last.clone())?;
        let base = Arc::clone(&locked(&self.base));
        let killed = Moment::new(
            self.disk.after_cut(Forget::Nothing),
            self.overlay.stack(),
            base,
        );
        if killed.recovered(BOOT)? != last.bytes {
            return Err("a kill would have lost something".into());
        }
        for later in std::mem::take(&mut *locked(&self.later)) {
            match later {
                Later::Flushed {
                    begun,
                    ended,
                    moment,
                } => {
                    self.judge_flush(begun, ended, &moment, seed)?;
                }
                Later::Finished {
                    seen,
                    caches,
                    base,
                    disk,
                } => {
                    locked(&self.oracle).check_cut(&seen)?;
                    let judge_again = content(&caches, &base) == seen.bytes;
                    if !judge_again {
                        return Err("what was frozen has changed".into());
                    }
                    self.judge_finished(&caches[0], &disk)?;
                }
            }
        }
        Ok(())
    }

    fn judge_flush(
        &self,
        begun: Time,
        ended: Time,
        moment: &Moment,
        seed: u64,
    ) -> Result<(), String> {
        for forget in [Forget::Unsynced, Forget::Some(seed), Forget::Some(seed + 1)] {
            let cut = moment.cut(forget);
            let bytes = cut.recovered(LATER_BOOT)?;
            let seen = Seen {
                begun,
                ended,
                first_cell: 0,
                bytes,
            };
            let kept = locked(&self.oracle).check(&seen);
            kept.map_err(|why| format!("after a flush and a power cut, {why}"))?;
        }
        Ok(())
    }

    /// A cache that was finished is whole after a power cut, with all that it held.
    fn judge_finished(&self, frozen: &Arc<Cache>, disk: &MemoryFs) -> Result<(), String> {
        let empty: Arc<dyn Device> = Arc::new(Flat(vec![0; SIZE]));
        let held = content(std::slice::from_ref(frozen), &empty);
        let found = device::find(&disk.after_cut(Forget::Unsynced), frozen.name(), LATER_BOOT)?;
        if !found.is_whole() {
            return Err("a finished cache is not whole after a power cut".into());
        }
        let cache = found.settle().map_err(|e| e.to_string())?;
        match content(&[Arc::new(cache)], &empty) == held {
            true => Ok(()),
            false => Err("a finished cache has lost something in a power cut".into()),
        }
    }
}

/// A hunt of a planted bug: see [`crate::planted`].
#[cfg(feature = "planted")]
pub fn hunt(
    bug: cowslip_block::planted::Bug,
    seed: u64,
    at_most: std::time::Duration,
) -> crate::planted::Hunted {
    let _planted = cowslip_block::planted::plant(bug);
    let begun = Instant::now();
    let explored = explore(seed, u64::MAX, begun + at_most);
    crate::planted::Hunted {
        bug,
        found: explored
            .found
            .map(|(seed, why)| format!("seed {seed}: {why}")),
        tried: explored.schedules,
        took: begun.elapsed(),
    }
}
