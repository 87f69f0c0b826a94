//! What the next start finds after a crash: whether it is what was promised, and whether it goes on working.
//!
//! | invariant (ARCHITECTURE.md) | how it is seen |
//! |---|---|
//! | 1, 2: nothing acknowledged is lost by a kill, nothing flushed by a cut | each session's blocks against the oracle's values |
//! | 3: no neighbour is lost | the same: values are whole blocks |
//! | 5: a snapshot is a consistent cut | its image is exactly what the device held when it was asked for |
//! | 6, 7: a name never points at something unreadable | each image is read whole, through every checksum |
//! | nothing removed comes back, nothing reported goes | names against the oracle's |
//! | nothing is left over | with all removed, a collection leaves no object |

use std::sync::Arc;

use cowslip_block::{ByteOffset, Device};
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::image::Image;
use cowslip_snapshot::session::SessionError;
use cowslip_snapshot::verify::verify;

use super::host::SimHost;
use super::operation::SessionNumber;
use super::{SIZE_BYTES, World, at, name, open_store, under_rules};
use crate::memory::{Forget, MemoryFs};
use crate::world::oracle::{End, Oracle};

impl World {
    /// What a start after a crash finds on this disk: opened, and compared with what was known. What was
    /// being sealed is finished. `promised` is the worst of the ends since what is known was known.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn after(
        disk: MemoryFs,
        end: End,
        promised: End,
        before: &Self,
        oracle: Oracle,
    ) -> Result<Self, String> {
        let mut world = Self::start(disk, end, before, oracle)?;
        world.check_names()?;
        world.open_all(promised)?;
        let numbers: Vec<_> = world.sessions.keys().copied().collect();
        for number in numbers {
            let found = world.read(number)?;
            while world.sessions[&number].next_seal().is_some() {
                world.seal(number).map_err(at("a seal that is taken up"))?;
            }
            if world.read(number)? != found {
                return Err(format!("sealing changed session {number}"));
            }
        }
        world.check_names().map_err(at("after the seals"))?;
        let there = world.names()?;
        world.oracle.settle(&|name| there.iter().any(|n| n == name));
        Ok(world)
    }

    /// The next process, which has opened the store, and no session yet.
    pub(super) fn start(
        disk: MemoryFs,
        end: End,
        before: &Self,
        oracle: Oracle,
    ) -> Result<Self, String> {
        let life = before.life + 1;
        let boot = before.boot + u64::from(end == End::Cut);
        let host = SimHost::new(boot, life);
        let (faults, root) = under_rules(&disk);
        let store = open_store(&*root, &host)?;
        let mut world = Self {
            disk,
            faults,
            root,
            host,
            boot,
            life,
            store,
            sessions: std::collections::BTreeMap::new(),
            during: Oracle::default(),
            oracle,
            count: before.count + 1000,
        };
        world.oracle.begin();
        Ok(world)
    }

    fn open_all(&mut self, promised: End) -> Result<(), String> {
        let numbers: Vec<_> = self.oracle.sessions.keys().copied().collect();
        for number in numbers {
            let session = self.open_session(&self.oracle.sessions[&number].dir);
            let session = session.map_err(at(format_args!("opening session {number}")))?;
            self.sessions.insert(number, session);
            let found = self.read(number)?;
            let known = self.oracle.sessions.get_mut(&number);
            let accepted = known.expect("it is one of them").accept(&found, promised);
            accepted.map_err(at(format_args!("session {number}")))?;
        }
        for (number, known) in std::mem::take(&mut self.oracle.beginning) {
            let opened = match self.root.open_dir(&known.dir).is_ok() {
                true => self.open_session(&known.dir),
                false => Err(SessionError::NotASession),
            };
            match opened {
                Ok(session) => {
                    self.sessions.insert(number, session);
                    if self.read(number)? != known.image() {
                        return Err(format!("session {number}, just begun, is not its snapshot"));
                    }
                    self.oracle.sessions.insert(number, known);
                }
                Err(SessionError::NotASession) => {}
                Err(error) => return Err(format!("session {number}, just begun: {error}")),
            }
        }
        Ok(())
    }

    pub(super) fn names(&self) -> Result<Vec<String>, String> {
        let names = self.store.list().map_err(at("listing"))?;
        Ok(names.into_iter().map(|l| l.name.to_string()).collect())
    }

    /// Each name stands for exactly what was frozen; what was reported is there, what was removed is not.
    pub(super) fn check_names(&self) -> Result<(), String> {
        let names = self.names()?;
        for text in &names {
            let Some(known) = self.oracle.snapshots.get(text) else {
                return Err(match self.oracle.removed.contains_key(text) {
                    true => format!("{text} was removed, and is there"),
                    false => format!("nobody asked for {text}"),
                });
            };
            let header = self.store.resolve(&name(text)).map_err(at(text))?;
            let size = usize::try_from(header.size_bytes()).map_err(at(text))?;
            let mut bytes = vec![0xee; size];
            let image: &dyn Device = &Image::new(Arc::clone(&self.store), header);
            image.read_at(ByteOffset(0), &mut bytes).map_err(at(text))?;
            if bytes[..] != known.image[..] {
                return Err(format!("{text} is not what was frozen"));
            }
        }
        for (text, known) in &self.oracle.snapshots {
            if known.reported && !known.removing && !names.contains(text) {
                return Err(format!("{text} was reported, and is not there"));
            }
        }
        Ok(())
    }

    pub(super) fn read(&self, session: SessionNumber) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0xee; SIZE_BYTES];
        let device = self.sessions[&session].device();
        let read = device.read_at(ByteOffset(0), &mut bytes);
        read.map_err(at(format_args!("reading session {session}")))?;
        Ok(bytes)
    }

    /// Every session holds what was written last, every name what was frozen.
    pub(super) fn check_now(&self) -> Result<(), String> {
        for (number, known) in &self.oracle.sessions {
            if self.read(*number)? != known.image() {
                return Err(format!(
                    "session {number} does not hold what was written last"
                ));
            }
        }
        self.check_names()
    }

    /// What is known now is there also after a power cut that loses all it may.
    pub(super) fn check_durable(&self) -> Result<(), String> {
        let disk = self.disk.after_cut(Forget::Unsynced);
        let later = Self::after(disk, End::Cut, End::Cut, self, self.oracle.clone());
        later.map(drop).map_err(at("and the power cut again"))
    }

    /// Every name verifies; with all of it removed, nothing is left.
    pub(super) fn check_end(mut self) -> Result<(), String> {
        for text in self.names()? {
            let header = self.store.resolve(&name(&text)).map_err(at(&text))?;
            let report = verify(&self.store, &header, &mut |_, _| {}).map_err(at(&text))?;
            if !report.is_whole() {
                return Err(format!("{text} is damaged: {:?}", report.damage));
            }
            self.store.remove(&name(&text)).map_err(at(&text))?;
        }
        self.sessions.clear();
        for record in self.store.sessions().map_err(at("sessions"))? {
            let forgotten = self.store.forget_session(record.id);
            forgotten.map_err(at("forgetting a session"))?;
        }
        let store = self.another()?;
        collect(&store, false, &mut |_, _| ()).map_err(at("the last collection"))?;
        let root = self.root.open_dir("store").map_err(at("the store"))?;
        for kind in ["layers", "headers", "tmp", "snapshots", "sessions"] {
            let left = root.open_dir(kind).and_then(|dir| dir.list());
            let left = left.map_err(at(kind))?;
            if !left.is_empty() {
                return Err(format!("with all removed, {kind} still holds {left:?}"));
            }
        }
        Ok(())
    }
}
