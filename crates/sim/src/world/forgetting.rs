//! A store that lies: it says that something is done which is not, or loses an object that was durable. Nobody can keep
//! a promise then, but this one: **what is read is right, or is an error that names what is missing**, block by block, in
//! sessions, under names, in forks, after a kill and after a power cut; and `verify` finds it.
//!
//! The session's own files are trusted, as any disk image is.
//!
//! What `verify` cannot know: which names and sessions there should be (a record that is not there was removed). So a
//! name that is lost, or a session that the store has forgotten and whose base was collected since, is an error to who
//! asks for it, and no damage.

use cowslip_block::{ByteOffset, ByteRange, Device};
use cowslip_snapshot::error::StoreError;
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::image::Image;
use cowslip_snapshot::session::SessionError;
use cowslip_snapshot::verify::{Depth, verify_store};

use super::SimHost;
use super::faults::{Trouble, Wrong};
use super::operation::{Operation, SessionNumber};
use super::oracle::SnapshotOracle;
use super::{BLOCK, End, World, at, name};
use crate::faulty::{Fault, Rule};
use crate::memory::{Forget, MemoryFs};

/// What an error says that names what is missing.
const NAMED: [&str; 7] = [
    "layers/",
    "headers/",
    "snapshots/",
    "sessions/",
    "leases/",
    "tmp/",
    "there is no snapshot ",
];
/// Forks get numbers that no history has.
const FORKS: SessionNumber = 100;

/// The rest of a history after the store has lied, in `first` or before it. Says whether it could.
pub(super) fn run(
    mut world: World,
    first: &Operation,
    rest: &[Operation],
    trouble: Trouble,
) -> Result<bool, String> {
    if trouble.wrong == Wrong::Dropped {
        if !world.drop_object(trouble.after)? {
            return Ok(false);
        }
        drop(world.apply(first));
    } else {
        let rule = Rule::any(Fault::Forgotten).on("store/");
        world.faults.add(rule.after(trouble.after));
        drop(world.apply(first));
        world.faults.clear();
        if world.faults.met() == 0 {
            return Ok(false);
        }
    }
    world.doubt()?;
    for operation in rest {
        // It fails, or not.
        drop(world.apply(operation));
        world.doubt()?;
    }
    for (forget, end) in [(Forget::Nothing, End::Kill), (Forget::Unsynced, End::Cut)] {
        world
            .doubt_after(forget, end)
            .map_err(at(format_args!("after a {end:?}")))?;
    }
    Ok(true)
}

/// Right, or an error that says what is missing.
fn named(error: String) -> Result<String, String> {
    match NAMED.iter().any(|what| error.contains(what)) {
        true => Ok(error),
        false => Err(format!(
            "an error that does not say what is missing: {error}"
        )),
    }
}

/// Reads block by block: the bytes, or why they cannot be had.
fn read_blocks(device: &dyn Device) -> Result<Vec<Result<Vec<u8>, String>>, String> {
    let size = device.geometry().size_bytes;
    let blocks = (0..size).step_by(BLOCK).map(|start| {
        let range = ByteRange::new(start, (start + BLOCK as u64).min(size));
        let mut bytes = vec![0xee; usize::try_from(range.len()).map_err(at("a block"))?];
        match device.read_at(ByteOffset(start), &mut bytes) {
            Ok(()) => Ok(Ok(bytes)),
            Err(error) => named(error.to_string()).map(Err),
        }
    });
    blocks.collect()
}

/// Says whether `verify` calls all of the store whole, which it must not where something is lost.
fn verify_finds(disk: &MemoryFs, lost: &[String]) -> Result<bool, String> {
    let store = disk.root().open_dir("store").map_err(at("the store"))?;
    let report = verify_store(&*store, SimHost::new(0, 0), Depth::Decoded, &mut |_, _| ());
    let report = report.map_err(at("verify"))?;
    match lost.first() {
        Some(lost) if report.is_whole() => Err(format!("verify did not find this: {lost}")),
        _ => Ok(report.is_whole()),
    }
}

impl World {
    /// Loses one of the objects that are in the store, if there are so many.
    fn drop_object(&self, number: u64) -> Result<bool, String> {
        let store = self.root.open_dir("store").map_err(at("the store"))?;
        let mut objects = Vec::new();
        for kind in ["layers", "headers", "snapshots", "sessions"] {
            let dir = store.open_dir(kind).map_err(at(kind))?;
            let names = dir.list().map_err(at(kind))?;
            objects.extend(names.into_iter().map(|name| (dir.clone(), name)));
        }
        objects.push((store, "store".to_owned()));
        let number = usize::try_from(number).map_err(at("an object"))?;
        let Some((dir, name)) = objects.get(number) else {
            return Ok(false);
        };
        dir.remove(name)
            .and_then(|()| dir.sync())
            .map_err(at(name))?;
        Ok(true)
    }

    /// All that can be read is right. What cannot be read comes back.
    fn doubt(&mut self) -> Result<Vec<String>, String> {
        let mut lost = Vec::new();
        for (number, session) in &self.sessions {
            let known = self.oracle.sessions.get_mut(number).expect("it is open");
            for (i, block) in read_blocks(&*session.device())?.into_iter().enumerate() {
                let settled = known.settle_block(i, block.as_deref().ok());
                settled.map_err(at(format_args!("session {number}")))?;
                lost.extend(block.err());
            }
        }
        lost.extend(self.doubt_names()?);
        Ok(lost)
    }

    fn doubt_names(&self) -> Result<Vec<String>, String> {
        let mut lost = Vec::new();
        for text in self.names()? {
            // A removal may have been forgotten.
            let known = self.oracle.snapshots.get(&text);
            let known = known.or_else(|| self.oracle.removed.get(&text));
            let known = known.ok_or_else(|| format!("nobody asked for {text}"))?;
            lost.extend(self.doubt_name(&text, known)?);
        }
        Ok(lost)
    }

    fn doubt_name(&self, text: &str, known: &SnapshotOracle) -> Result<Vec<String>, String> {
        let header = match self.store.resolve(&name(text)) {
            Ok(header) => header,
            Err(error) => return Ok(vec![named(error.to_string())?]),
        };
        let image = Image::new(self.store.clone(), header);
        let mut lost = Vec::new();
        for (i, (block, right)) in read_blocks(&image)?
            .into_iter()
            .zip(known.image.chunks(BLOCK))
            .enumerate()
        {
            match block {
                Ok(now) if now == right => {}
                Ok(_) => return Err(format!("block {i} of {text} is not what was frozen")),
                Err(error) => lost.push(error),
            }
        }
        Ok(lost)
    }

    /// Opens all sessions that are known. What keeps one from being opened comes back.
    fn open_doubted(&mut self, promised: End) -> Result<Vec<String>, String> {
        let mut lost = Vec::new();
        let numbers: Vec<_> = self.oracle.sessions.keys().copied().collect();
        for number in numbers {
            match self.open_session(&self.oracle.sessions[&number].dir) {
                Ok(session) => {
                    let known = self.oracle.sessions.get_mut(&number).expect("it is known");
                    for (i, block) in read_blocks(&*session.device())?.iter().enumerate() {
                        let now = block.as_deref().ok();
                        let accepted = known.accept_block(i, now, promised);
                        accepted.map_err(at(format_args!("session {number}")))?;
                    }
                    self.sessions.insert(number, session);
                }
                // The store has lost all that it knew of the session, and then what it stands on.
                Err(SessionError::Store(StoreError::BaseGone { .. })) => {}
                Err(error) => lost.push(named(error.to_string())?),
            }
        }
        Ok(lost)
    }

    /// What the next process finds.
    fn doubt_after(&self, forget: Forget, end: End) -> Result<(), String> {
        let disk = self.disk.after_cut(forget);
        let promised = match self.poisoned().is_empty() {
            true => end,
            false => End::Cut,
        };
        let mut next = match World::start(disk.clone(), end, self, self.oracle.clone()) {
            Ok(next) => next,
            Err(error) if error.contains("`store`") => {
                return verify_finds(&disk, &[error]).map(drop);
            }
            Err(error) => return Err(error),
        };
        let mut lost = next.open_doubted(promised)?;
        lost.extend(next.doubt()?);
        let is_whole = verify_finds(&disk, &lost)?;
        for session in next.sessions.values() {
            for _ in session.pending() {
                session.seal_next();
            }
        }
        let names = next.names()?;
        for (number, text) in (FORKS..).zip(&names) {
            if next.oracle.snapshots.contains_key(text)
                && let Err(error) = next.begin(number, text)
            {
                named(error)?;
            }
        }
        next.doubt()?;
        if let Err(error) = collect(&*next.another()?, false, &mut |_, _| ()) {
            named(error.to_string())?;
        }
        next.doubt()?;
        match is_whole {
            true => next.check_end(),
            false => Ok(()),
        }
    }
}
