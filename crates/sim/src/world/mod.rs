//! A world: the real store and the real sessions over a disk in memory, what the clients know beside them,
//! and every crash that a history could meet.
//!
//! ```text
//! seed -> operation::history -> World::apply, one operation after the other, on a MemoryFs that records
//!                                  | before each operation on a file
//!                                  v
//!                               a moment: killed then and there, or the power cut (every legal disk, or some)
//!                                  |
//!                                  v
//!                               check: opened, compared with the Oracle, goes on
//! ```
//!
//! Everything happens in one thread, and time stands still: the same seed gives the same [`World::digest`].
//! What runs beside something else, a collection in the middle of a seal, begins between two operations on
//! files (`beside.rs`).
//!
//! - `operation.rs`: what can happen;  `oracle.rs`: what is promised;  `check.rs`: whether it was kept;
//! - `explore.rs`: all crashes of one history;  `shrink.rs`: the shortest history that still fails;
//! - `faults.rs`: all single faults of one history;  `forgetting.rs`: those of a store that lies;
//! - `hunt.rs`, with the feature `planted`: how long it takes to find a bug that is known.

mod beside;
mod check;
mod explore;
mod faults;
mod forgetting;
mod host;
#[cfg(feature = "planted")]
pub mod hunt;
pub mod operation;
mod oracle;
mod shrink;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use cowslip_block::files::Dir;
use cowslip_block::{BlockSize, ByteOffset, ByteRange, Device};
use cowslip_snapshot::compact::{Around, Options, Policy, compact};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::session::{Manifest, Session, SessionError, SnapshotOptions, Surroundings};
use cowslip_snapshot::{Caches, SnapshotName, Store};

use self::beside::Other;
pub use self::explore::{Effort, Finding, Seen, Tally, explore};
pub use self::faults::{Met, Wrong, faults};
use self::host::SimHost;
use self::operation::{Operation, SessionNumber};
use self::oracle::DeviceOracle;
pub use self::oracle::{End, Oracle};
pub use self::shrink::shrink;
use crate::faulty::{Faults, FaultyDir};
use crate::memory::MemoryFs;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
const TEMPLATE_BYTES: usize = 7 * BLOCK + 100;
/// Of a session's device: larger than the template, and not in whole blocks.
pub const SIZE_BYTES: usize = 9 * BLOCK + 333;
const TEMPLATE: &str = "base";

/// Bytes that tell which write they came from; never zero.
fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let byte = |i: u64| (seed * 131 + i * 7 + i / 251) % 255 + 1;
    (0..len as u64)
        .map(|i| u8::try_from(byte(i)).expect("at most 255"))
        .collect()
}

/// Says what failed.
fn at<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// One boot of one machine, and one process on it.
pub struct World {
    disk: MemoryFs,
    /// What befalls calls to its files.
    faults: Faults,
    root: Arc<dyn Dir>,
    host: Arc<SimHost>,
    boot: u64,
    life: u64,
    store: Arc<Store>,
    sessions: BTreeMap<SessionNumber, Session>,
    /// What the clients know now.
    oracle: Oracle,
    /// The same, while an operation was going on: asked for, and not answered.
    during: Oracle,
    /// Writes and snapshots so far, of all lives.
    count: u64,
}

impl World {
    /// A store with a template, and session 0 on it, all of it durable.
    ///
    /// # Errors
    /// Where something fails that should not.
    pub fn new() -> Result<Self, String> {
        let disk = MemoryFs::new();
        let (faults, root) = under_rules(&disk);
        for dir in ["store", "import"] {
            root.create_dir(dir).map_err(at(dir))?;
        }
        root.sync().map_err(at("the root"))?;
        let host = SimHost::new(1, 1);
        let dir = root.open_dir("store").map_err(at("the store"))?;
        let store = Store::open_or_create(&*dir, Arc::clone(&host) as _, Caches::default());
        let store = Arc::new(store.map_err(at("making the store"))?);
        let template = bytes_of(1, TEMPLATE_BYTES);
        let mut oracle = Oracle::default();
        oracle.template(TEMPLATE, &template);
        let mut world = Self {
            disk,
            faults,
            root,
            host,
            boot: 1,
            life: 1,
            store,
            sessions: BTreeMap::new(),
            during: oracle.clone(),
            oracle,
            count: 1,
        };
        world.import(&template).map_err(at("importing"))?;
        world.begin(0, TEMPLATE)?;
        Ok(world)
    }

    fn import(&self, template: &[u8]) -> Result<(), String> {
        let dir = self.root.open_dir("import").map_err(at("import"))?;
        let source = dir.create(TEMPLATE).map_err(at("the source"))?;
        source.write_at(template, 0).map_err(at("the source"))?;
        let options = ImportOptions {
            block_size: BlockSize::DISK,
            made_by: "a world".into(),
        };
        let lease = self.store.lease().map_err(at("a lease"))?;
        let size = template.len() as u64;
        let header = import(
            &self.store,
            &lease,
            &*source,
            size,
            &options,
            &mut |_, _| (),
        );
        let header = header.map_err(at("import"))?;
        let committed = self.store.commit(&lease, &name(TEMPLATE), &header, false);
        committed.map(drop).map_err(at("commit"))
    }

    /// What the disk shows, and what the clients know: equal for equal histories.
    pub fn digest(&self) -> u64 {
        self.disk.digest()
    }

    /// Another process's look at the store.
    fn another(&self) -> Result<Arc<Store>, String> {
        open_store(&*self.root, &self.host)
    }

    fn session(&self, number: SessionNumber) -> Option<(&Session, Arc<dyn Device>)> {
        let session = self.sessions.get(&number)?;
        Some((session, session.device()))
    }

    /// Asks for one thing, and notes what is known before the answer and after it. One that names what is
    /// not there is left out.
    ///
    /// # Errors
    /// Where it fails: nothing here does, on a disk without faults.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), String> {
        self.during = self.oracle.clone();
        self.count += 1;
        match *operation {
            Operation::Write {
                session,
                at,
                len,
                fua,
            } => {
                let bytes = bytes_of(self.count, len);
                self.write(session, at, &bytes)?;
                if fua { self.flush(session) } else { Ok(()) }
            }
            Operation::Mixed {
                session,
                block,
                blocks,
            } => {
                let mut bytes = bytes_of(self.count, blocks * BLOCK);
                let zeros = bytes.chunks_mut(BLOCK).step_by(2);
                zeros.for_each(|b| b.fill(0));
                self.write(session, block * BLOCK, &bytes)
            }
            Operation::Zero {
                session,
                at,
                len,
                room,
            } => {
                let Some((_, device)) = self.session(session) else {
                    return Ok(());
                };
                self.submit(session, |known| known.submit(at, &vec![0; len]));
                done(device.write_zeroes(range(at, len), room))?;
                self.acknowledge(session);
                Ok(())
            }
            Operation::Trim { session, at, len } => {
                let Some((_, device)) = self.session(session) else {
                    return Ok(());
                };
                self.submit(session, |known| known.trim(at, len));
                done(device.trim(range(at, len)))?;
                self.acknowledge(session);
                Ok(())
            }
            Operation::Flush(session) => self.flush(session),
            Operation::Freeze(session) => self.freeze(session),
            Operation::Seal(session) => self.seal(session),
            Operation::SealAndCollect(session, after) => {
                let turn = self.beside(after, Other::Collect);
                let sealed = self.seal(session);
                let collected = turn.ended();
                sealed.and(collected.unwrap_or(Ok(())))
            }
            Operation::Tidy(session) => self.with(session, |s| done(s.tidy())),
            Operation::Checkpoint(session) => self.with(session, |s| done(s.checkpoint())),
            Operation::GoOver(session) => self.with(session, |s| done(s.go_over()).map(drop)),
            Operation::Restart(session) => {
                if self.sessions.remove(&session).is_some() {
                    let dir = &self.oracle.sessions[&session].dir;
                    let opened = self.open_session(dir).map_err(at("opened again"))?;
                    self.sessions.insert(session, opened);
                }
                Ok(())
            }
            Operation::Fork { session, pick } => self.fork(session, pick),
            Operation::Forget(session) => {
                let Some(gone) = self.sessions.remove(&session) else {
                    return Ok(());
                };
                self.oracle.sessions.remove(&session);
                self.during.sessions.remove(&session);
                done(gone.forget())
            }
            Operation::Remove(pick) => self.remove(pick),
            Operation::Collect => done(collect(&*self.another()?, false, &mut |_, _| ())).map(drop),
            Operation::Compact => compact_all(&*self.another()?),
        }
    }

    fn submit(&mut self, session: SessionNumber, change: impl Fn(&mut DeviceOracle)) {
        for oracle in [&mut self.oracle, &mut self.during] {
            oracle
                .sessions
                .get_mut(&session)
                .into_iter()
                .for_each(&change);
        }
    }

    fn acknowledge(&mut self, session: SessionNumber) {
        if let Some(known) = self.oracle.sessions.get_mut(&session) {
            known.acknowledge();
        }
    }

    fn write(&mut self, session: SessionNumber, at: usize, bytes: &[u8]) -> Result<(), String> {
        let Some((_, device)) = self.session(session) else {
            return Ok(());
        };
        self.submit(session, |known| known.submit(at, bytes));
        done(device.write(ByteOffset(at as u64), bytes))?;
        self.acknowledge(session);
        Ok(())
    }

    fn flush(&mut self, session: SessionNumber) -> Result<(), String> {
        let Some((_, device)) = self.session(session) else {
            return Ok(());
        };
        done(device.flush())?;
        if let Some(known) = self.oracle.sessions.get_mut(&session) {
            known.flushed();
        }
        Ok(())
    }

    fn flush_all(&mut self) -> Result<(), String> {
        let numbers: Vec<_> = self.sessions.keys().copied().collect();
        numbers
            .into_iter()
            .try_for_each(|number| self.flush(number))
    }

    fn with(
        &self,
        session: SessionNumber,
        act: impl FnOnce(&Session) -> Result<(), String>,
    ) -> Result<(), String> {
        self.sessions.get(&session).map_or(Ok(()), act)
    }

    fn freeze(&mut self, session: SessionNumber) -> Result<(), String> {
        let Some((open, _)) = self.session(session) else {
            return Ok(());
        };
        let text = format!("n{}", self.count);
        let frozen = open.freeze(&name(&text), &SnapshotOptions::default());
        // Told of while it goes on as well: what it holds was fixed when it was asked for.
        self.oracle.freeze(session, &text);
        self.during.freeze(session, &text);
        done(frozen).map(drop)
    }

    fn seal(&mut self, session: SessionNumber) -> Result<(), String> {
        let Some((open, _)) = self.session(session) else {
            return Ok(());
        };
        let Some(seal) = open.next_seal() else {
            return Ok(());
        };
        open.seal_next();
        match seal.wait(Duration::ZERO) {
            Some(Ok(_)) => {
                self.oracle.stored(seal.name().as_str());
                Ok(())
            }
            Some(Err(error)) => Err(format!("a seal failed: {error}")),
            None => Err("a seal that ran is not done".into()),
        }
    }

    fn begin(&mut self, session: SessionNumber, from: &str) -> Result<(), String> {
        let mut image = self.oracle.snapshots[from].image.to_vec();
        image.resize(SIZE_BYTES, 0);
        // A number that was used before has left its directory behind.
        let dir = format!("session-{session}-{}", self.count);
        let known = DeviceOracle::new(&dir, &image);
        self.during.beginning.insert(session, known.clone());
        self.root.create_dir(&dir).map_err(at(&dir))?;
        self.root.sync().map_err(at(&dir))?;
        let begun = Session::create(self.around(&dir)?, &name(from), Some(SIZE_BYTES as u64));
        self.sessions.insert(session, done(begun)?);
        self.oracle.sessions.insert(session, known);
        Ok(())
    }

    fn fork(&mut self, session: SessionNumber, pick: usize) -> Result<(), String> {
        let Some(from) = self.pick(pick)? else {
            return Ok(());
        };
        match self.sessions.contains_key(&session) {
            true => Ok(()),
            false => self.begin(session, &from),
        }
    }

    /// A name that is there.
    fn pick(&self, pick: usize) -> Result<Option<String>, String> {
        let names = self.store.list().map_err(at("listing"))?;
        let names: Vec<_> = names.into_iter().map(|l| l.name.to_string()).collect();
        let known = |n: &&String| self.oracle.snapshots.get(*n).is_some_and(|s| s.reported);
        let names: Vec<_> = names.iter().filter(known).collect();
        Ok(match names.len() {
            0 => None,
            n => Some(names[pick % n].clone()),
        })
    }

    fn remove(&mut self, pick: usize) -> Result<(), String> {
        let Some(text) = self.pick(pick)? else {
            return Ok(());
        };
        for oracle in [&mut self.oracle, &mut self.during] {
            oracle.remove(&text);
        }
        done(self.another()?.remove(&name(&text)))?;
        self.is_removed(&text)
    }

    /// Its removal was answered.
    fn is_removed(&mut self, text: &str) -> Result<(), String> {
        if !self.is_asked_for(text)? {
            self.oracle.removed(text);
        }
        Ok(())
    }

    /// Does the list of a session on disk say that it is to become this snapshot? Where a failure kept the session from
    /// writing that it has, the next start makes it again.
    fn is_asked_for(&self, text: &str) -> Result<bool, String> {
        for known in self.oracle.sessions.values() {
            let dir = self.root.open_dir(&known.dir).map_err(at(text))?;
            let listed = Manifest::read(&*dir).map_err(at(text))?;
            let mut caches = listed.iter().flat_map(|manifest| &manifest.caches);
            if caches.any(|c| c.seal.as_ref().is_some_and(|s| s.name.as_str() == text)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn around(&self, dir: &str) -> Result<Surroundings, String> {
        Ok(Surroundings {
            dir: self.root.open_dir(dir).map_err(at(dir))?,
            path: dir.into(),
            temporary: false,
            store: Arc::clone(&self.store),
            store_path: "store".into(),
            host: Arc::clone(&self.host) as _,
            say: Box::new(|_| {}),
            unneeded: None,
        })
    }

    fn open_session(&self, dir: &str) -> Result<Session, SessionError> {
        let around = self.around(dir).map_err(SessionError::Damaged)?;
        Session::open(around)
    }
}

/// The root of a disk, and the rules that it is under.
fn under_rules(disk: &MemoryFs) -> (Faults, Arc<dyn Dir>) {
    let faults = Faults::new();
    let root = Arc::new(FaultyDir::new(disk.root(), &faults));
    (faults, root)
}

fn open_store(root: &dyn Dir, host: &Arc<SimHost>) -> Result<Arc<Store>, String> {
    let dir = root.open_dir("store").map_err(at("the store"))?;
    let store = Store::open(&*dir, Arc::clone(host) as _, Caches::default());
    store.map(Arc::new).map_err(at("opening the store"))
}

/// As far as it can be, in many steps.
fn compact_all(store: &Store) -> Result<(), String> {
    let policy = Policy {
        garbage_percent: 0,
        garbage_bytes_min: 0,
        layers_max: 2,
        layers_after: 1,
    };
    let options = Options {
        policy,
        names: Vec::new(),
        step_bytes: 20_000,
    };
    let around = Around {
        moved: &|_| {},
        progress: &|_| true,
    };
    done(compact(store, &options, &around)).map(drop)
}

fn name(text: &str) -> SnapshotName {
    text.parse().expect("a letter and digits are a name")
}

fn range(at: usize, len: usize) -> ByteRange {
    ByteRange::new(at as u64, (at + len) as u64)
}

/// Of what cannot fail on a disk without faults.
fn done<T, E: Display + Debug>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("failed on a sound disk: {error}"))
}
