//! Workloads that are about many files, or large ones.

use std::io;

use super::super::Scale;
use super::super::hand::Hand;
use super::super::tree::{small_len, text, tree_path};

/// Everything is read, twice.
pub(super) fn read_walk(hand: &Hand) -> io::Result<()> {
    for _ in 0..2 {
        for (path, _) in hand.walk("")? {
            hand.read(&path)?;
        }
    }
    Ok(())
}

/// As tar does it: each file written, then given its time.
pub(super) fn unpack(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    let dirs = scale.of(120);
    for i in 0..scale.of(2400) {
        let dir = format!("unpacked/package{}/lib/{}", i % dirs % 12, i % dirs);
        hand.mkdir(&dir)?;
        let len = small_len(&mut hand.random);
        let path = format!("{dir}/module{i}");
        hand.write(&path, &text(50_000 + i as u64, len))?;
        hand.set_time(
            &path,
            1_600_000_000 + i64::try_from(i).map_err(io::Error::other)?,
        )?;
    }
    Ok(())
}

/// Objects, locks, markers: less than any block.
pub(super) fn tiny(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    for i in 0..scale.of(3000) {
        let dir = format!("cache/{:02x}", i % 64);
        hand.mkdir(&dir)?;
        let len = 20 + hand.random.below(130);
        hand.write(&format!("{dir}/{i:08x}"), &text(60_000 + i as u64, len))?;
    }
    Ok(())
}

/// 200 MB that reach the disk, and go.
pub(super) fn create_delete(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    hand.mkdir("tmp")?;
    let names: Vec<String> = (0..8).map(|i| format!("tmp/part{i}")).collect();
    for (name, seed) in names.iter().zip(0..) {
        hand.write_synced(name, &text(seed, scale.of(25_000_000)))?;
    }
    names.iter().try_for_each(|name| hand.remove(name))
}

/// A file of zeros, as for a swap file.
pub(super) fn zero_fill(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    hand.write("zeros", &[])?;
    for _ in 0..scale.of(64) {
        hand.append("zeros", &zeros)?;
    }
    hand.append("zeros", &[])?.sync_all()
}

pub(super) fn utimes(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    let all = scale.tree_files();
    (0..all).try_for_each(|i| hand.set_time(&tree_path(scale, i), 1_700_000_000))
}

/// A directory of eight, and every third file of the others.
pub(super) fn delete_base(hand: &mut Hand) -> io::Result<()> {
    hand.remove_dir("tree/3")?;
    let left = hand.walk("tree")?;
    left.iter()
        .step_by(3)
        .try_for_each(|(path, _)| hand.remove(path))
}
