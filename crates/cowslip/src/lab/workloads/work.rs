//! Workloads that do several things in turn, and waiting for a first mount.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::Scale;
use super::super::hand::Hand;
use super::super::programs::{self, Stop};
use super::super::tree::{object_path, source_path, text, tree_path};
use crate::failure::Failure;

/// The kernel's thread takes ten times as long for its pauses as for its work.
const INITIALISED_WITHIN: Duration = Duration::from_secs(60);

/// Until the kernel has nothing more to initialise. It tells in the group descriptors, where dumpe2fs(8) finds it.
/// Where it was told to leave that, there is no end to wait for.
pub(super) fn until_initialised(hand: &Hand, device: &Path, stop: &Stop) -> Result<(), Failure> {
    let args = ["-no", "OPTIONS", "--target"].map(OsStr::new);
    let root = hand.at("");
    let options = programs::run("findmnt", &[&args[..], &[root.as_os_str()]].concat())?;
    if options.contains("noinit_itable") {
        return stop.sleep(Duration::from_secs(1));
    }
    let give_up = Instant::now() + INITIALISED_WITHIN;
    loop {
        let groups = programs::run("dumpe2fs", &[device.as_os_str()])?;
        // A file system without checksums of groups has no such flag, and nothing to initialise.
        let is_left = |line: &&str| {
            line.starts_with("Group ") && line.contains("csum") && !line.contains("ITABLE_ZEROED")
        };
        if groups.lines().find(is_left).is_none() {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(Failure::failed("the first mount never came to an end"));
        }
        stop.sleep(Duration::from_millis(200))?;
    }
}

/// An edit is one line; the build makes one object, and links all.
pub(super) fn edit_build(hand: &mut Hand, scale: Scale, rounds: u64) -> io::Result<()> {
    let program = hand.read("bin/program")?.len();
    for round in 0..rounds {
        let unit = hand.random.below(scale.sources());
        let mut source = hand.read(&source_path(unit))?;
        let line = text(80_000 + round, 60);
        let at = hand.random.below(source.len());
        source.splice(at..(at + 20).min(source.len()), line);
        hand.replace(&source_path(unit), &source, true)?;
        let object = text(81_000 + round, source.len() * 2);
        hand.write(&object_path(unit), &object)?;
    }
    // Most of a program stays where it was.
    let mut linked = hand.read("bin/program")?;
    for (piece, seed) in linked.chunks_mut(program / 8 + 1).zip(0..) {
        let new = text(82_000 + seed, piece.len() / 2);
        piece[..new.len()].copy_from_slice(&new);
    }
    hand.remove("bin/program")?;
    hand.write("bin/program", &linked).map(drop)
}

pub(super) fn append_fsync(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    for i in 0..scale.of(400) {
        let line = text(90_000 + i as u64, 180);
        hand.append(&format!("log/log{}", i % 3), &line)?
            .sync_data()?;
    }
    Ok(())
}

/// A system that starts: it reads much, and writes here and there.
pub(super) fn boot(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    for i in 0..scale.of(800) {
        let one = hand.random.below(scale.tree_files());
        hand.read(&tree_path(scale, one))?;
        if i % 20 == 0 {
            let log = format!("log/log{}", i % 8);
            hand.append(&log, &text(100_000 + i as u64, 120))?;
        }
    }
    // A journal of the system: room for 8 MB, a part of it written, synced now and then.
    let journal = hand.write("log/system.journal", &[])?;
    let room = scale.of(8 << 20) as u64;
    rustix::fs::fallocate(&journal, rustix::fs::FallocateFlags::empty(), 0, room)?;
    for i in 0..scale.of(40) as u64 {
        hand.write_at(
            "log/system.journal",
            4096 + i * 8000,
            &text(101_000 + i, 7000),
        )?;
        if i % 10 == 0 {
            journal.sync_all()?;
        }
    }
    // States that are replaced, and locks that come and go.
    for i in 0..20 {
        let content = text(102_000 + i, 300);
        hand.replace(&format!("state/state{i}"), &content, i % 4 == 0)?;
        hand.write(&format!("state/{i}.pid"), b"1234\n")?;
    }
    hand.write_synced("state/random-seed", &text(103_000, 512))?;
    (0..20)
        .step_by(2)
        .try_for_each(|i| hand.remove(&format!("state/{i}.pid")))
}

/// What an agent does between two snapshots: some edits, a build, some lines in a log.
pub(super) fn a_little(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    edit_build(hand, scale, 4)?;
    for i in 0..10 {
        let line = text(hand.random.next(), 150);
        hand.append(&format!("log/log{}", i % 4), &line)?;
    }
    for i in 0..3 {
        let (conf, content) = (hand.random.below(40), text(hand.random.next(), 700 + i));
        hand.replace(&format!("etc/conf{conf}"), &content, true)?;
    }
    Ok(())
}
