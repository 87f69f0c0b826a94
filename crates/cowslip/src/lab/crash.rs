//! What a crash costs: a device is copied at several moments while a program writes, without any sync; each copy is mounted,
//! which replays its journal, checked by e2fsck, and every file is compared with what the program knows.
//!
//! The copy is a snapshot of ours. It is a consistent cut of what the device was told, so this is the crash of a guest: nothing that the
//! guest's kernel has written is missing, whatever order it was written in. A power cut of a disk that keeps writes to itself can lose more.
//!
//! Two halves: files that are synced, one by one (the journal commits all the time); then the same without any sync, where the
//! journal commits by its own clock.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bench::{Bench, Place};
use super::cell::Around;
use super::hand::Hand;
use super::plan::Variant;
use super::programs;
use super::results::Row;
use super::tree::text;
use super::workloads::Base;
use crate::failure::Failure;

/// The second half is longer than the journal's five seconds.
const SYNCED_FOR: Duration = Duration::from_secs(3);
const UNSYNCED_FOR: Duration = Duration::from_secs(9);
const MOMENTS: u32 = 6;
/// Names that are replaced again and again.
const REPLACED: u64 = 40;
/// A program pauses now and then.
const PAUSE: Duration = Duration::from_millis(2);

/// What was lost, over all moments. Its field names are a contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Crashed {
    pub(crate) moments: u32,
    /// Copies that could not be mounted as they were.
    pub(crate) mounts_failed: u32,
    /// Copies in which e2fsck found errors after the replay.
    pub(crate) damaged: u32,
    /// Files whose fsync had returned before the copy, and that nobody has written since.
    pub(crate) synced_files: u64,
    pub(crate) synced_lost: u64,
    /// Files that were written before the copy and not synced.
    pub(crate) unsynced_files: u64,
    /// Of these: as they were before, or not there.
    pub(crate) unsynced_lost: u64,
    /// Files that were synced once, and then replaced by others that were not.
    pub(crate) replaced_files: u64,
    /// Of these: neither what was synced nor anything later.
    pub(crate) replaced_lost: u64,
    /// Neither old nor new: empty, cut off, or with holes of zeros.
    pub(crate) torn: u64,
    /// With bytes that were never written to them.
    pub(crate) foreign: u64,
}

/// What a file was given last, and what before.
#[derive(Clone, Copy, Debug, Default)]
struct Version {
    begun: u64,
    written: u64,
    synced: u64,
}

/// What the program did so far.
#[derive(Debug, Default)]
struct Known(Mutex<HashMap<String, Version>>);

pub(crate) fn run(around: &Around<'_>, variant: &Variant) -> Result<Row, Failure> {
    let Around {
        place,
        templates,
        scale,
        seed,
        id,
    } = around;
    let template = templates.get(place, &variant.mkfs, Base::Aged, (*scale, *seed))?;
    let mut bench = Bench::attach(place, &template.name, id)?;
    let root = bench.mount(&variant.mount)?;
    let (known, over) = (Known::default(), AtomicBool::new(false));
    let copies = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&root, *seed, &known, &over));
        let copies = copies(place, &bench, id, &known);
        over.store(true, Ordering::Relaxed);
        let wrote = writer
            .join()
            .map_err(|_| Failure::failed("the program that writes panicked"))?;
        wrote.map_err(|e| Failure::failed(format!("the program that writes: {e}")))?;
        copies
    })?;
    bench.end()?;
    let mut crashed = Crashed {
        moments: MOMENTS,
        ..Crashed::default()
    };
    for copy in &copies {
        look(around, variant, copy, &mut crashed)?;
    }
    place.forget(&copies.into_iter().map(|copy| copy.name).collect::<Vec<_>>());
    let mut row = Row::new(variant, "crash");
    row.crash = Some(crashed);
    Ok(row)
}

/// A copy, with what was certain before it was made and what was begun until it was there.
struct Copy {
    name: String,
    before: HashMap<String, Version>,
    after: HashMap<String, Version>,
}

fn copies(place: &Place, bench: &Bench<'_>, id: &str, known: &Known) -> Result<Vec<Copy>, Failure> {
    let apart = (SYNCED_FOR + UNSYNCED_FOR) / MOMENTS;
    let mut copies = Vec::new();
    for moment in 0..MOMENTS {
        place.stop.sleep(apart)?;
        let name = format!("{id}.{moment}");
        let before = known.now();
        bench.snapshot(&name)?;
        let after = known.now();
        copies.push(Copy {
            name,
            before,
            after,
        });
    }
    Ok(copies)
}

impl Known {
    fn now(&self) -> HashMap<String, Version> {
        self.0.lock().map(|known| known.clone()).unwrap_or_default()
    }

    fn note<T>(&self, path: &str, what: impl FnOnce(&mut Version) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        what(known.entry(path.to_owned()).or_default())
    }
}

/// A file says which version of which file it is, in each of its lines.
fn content(path: &str, number: u64) -> Vec<u8> {
    let line = format!("{path} {number} ");
    let seed = path.bytes().fold(number, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let mut bytes = Vec::new();
    for part in text(seed, 400 + usize::try_from(seed % 9000).unwrap_or(0)).chunks(200) {
        bytes.extend(line.as_bytes());
        bytes.extend(part);
    }
    bytes
}

fn write(root: &Path, seed: u64, known: &Known, over: &AtomicBool) -> io::Result<()> {
    let mut hand = Hand::new(root, seed);
    hand.mkdir("crash/new")?;
    hand.mkdir("crash/old")?;
    hand.sync()?;
    let begun = Instant::now();
    let mut i = 0;
    while !over.load(Ordering::Relaxed) {
        let synced = begun.elapsed() < SYNCED_FOR;
        let path = match i % 3 {
            0 => format!(
                "crash/old/{}",
                hand.random
                    .below(usize::try_from(REPLACED).map_err(io::Error::other)?)
            ),
            _ => format!("crash/new/{i}"),
        };
        let number = known.note(&path, |version| {
            version.begun += 1;
            version.begun
        });
        let bytes = content(&path, number);
        if i % 3 == 0 {
            hand.replace(&path, &bytes, synced)?;
        } else if synced {
            hand.write_synced(&path, &bytes)?;
        } else {
            hand.write(&path, &bytes)?;
        }
        known.note(&path, |version| version.written = number);
        if synced {
            // A name is durable with its directory.
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            std::fs::File::open(hand.at(dir))?.sync_all()?;
            known.note(&path, |version| version.synced = number);
        }
        i += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Mounts a copy, checks it, and compares.
fn look(
    around: &Around<'_>,
    variant: &Variant,
    copy: &Copy,
    crashed: &mut Crashed,
) -> Result<(), Failure> {
    let Around { place, id, .. } = around;
    let mut bench = Bench::attach(place, &copy.name, &format!("{id}.look"))?;
    let fsck = |option: &str, bench: &Bench<'_>| {
        programs::status(
            "e2fsck",
            &["-f".as_ref(), option.as_ref(), bench.device.as_os_str()],
        )
    };
    let mut root = bench.mount(&variant.mount);
    crashed.mounts_failed += u32::from(root.is_err());
    bench.unmount()?;
    if fsck("-n", &bench)? != Some(0) {
        crashed.damaged += 1;
        // As an operator would.
        fsck("-y", &bench)?;
    }
    root = bench.mount(&variant.mount);
    let root = root?;
    for (path, before) in &copy.before {
        let most = copy.after.get(path).map_or(before.begun, |v| v.begun);
        judge(&root, path, *before, most, crashed);
    }
    bench.end()
}

/// Which version is it?
fn judge(root: &Path, path: &str, before: Version, most: u64, crashed: &mut Crashed) {
    let found = std::fs::read(root.join(path));
    let is = |number: &u64| {
        found
            .as_ref()
            .is_ok_and(|bytes| *bytes == content(path, *number))
    };
    let version = (1..=most).rev().find(is);
    let is_lost = version.is_none_or(|number| number < before.synced);
    // What is replaced without a sync is nobody's promise: neither the old content nor the new one.
    if before.synced > 0 && before.synced == most {
        crashed.synced_files += 1;
        crashed.synced_lost += u64::from(is_lost);
    } else if before.synced > 0 {
        crashed.replaced_files += 1;
        crashed.replaced_lost += u64::from(is_lost);
    }
    if before.written > before.synced {
        crashed.unsynced_files += 1;
        crashed.unsynced_lost += u64::from(version.is_none_or(|number| number < before.written));
    }
    let Ok(bytes) = found else { return };
    if version.is_none() {
        let known: Vec<Vec<u8>> = (1..=most).map(|number| content(path, number)).collect();
        let is_ours =
            |(at, byte): (usize, &u8)| *byte == 0 || known.iter().any(|k| k.get(at) == Some(byte));
        match bytes.iter().enumerate().all(is_ours) {
            true => crashed.torn += 1,
            false => crashed.foreign += 1,
        }
    }
}
