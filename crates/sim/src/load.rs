//! [`Load`]: a small write load on a disk that has been used, and what each snapshot of it holds.
//!
//! The template has data in every other run, of 1 to 16 blocks, as a file system leaves it: so its map
//! is as high as it will ever be. (The map of a disk with one run, or none, would be a single slot, and
//! every later one would look expensive beside it.)
//!
//! A round is 16 blocks of 4 KiB at random, 4 of which in a hot spot, and now and then a trim. What a
//! block holds is made from its number and that of the round.

use std::collections::BTreeMap;

use cowslip_block::{ByteOffset, ByteRange, Device, DeviceError};

use crate::seeded::Seeded;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
/// A run of the template has so many blocks at most.
const RUN_MAX: u64 = 16;
const WRITES: usize = 16;
/// Of them, in the hot spot.
const HOT_WRITES: usize = 4;
const HOT_BLOCKS: u64 = 64;
/// A round in so many trims; so many blocks at most.
const TRIM_EVERY: u64 = 8;
const TRIM_MAX: u64 = 32;

/// Which round wrote a block; 0 where it reads as zeros, 1 for the template.
pub type Version = u32;

/// See the module.
#[derive(Debug)]
pub struct Load {
    seeded: Seeded,
    template: Vec<Version>,
    /// What each round changed.
    rounds: Vec<BTreeMap<usize, Version>>,
}

impl Load {
    /// A template of so many blocks.
    pub fn new(seed: u64, blocks: usize) -> Self {
        let mut seeded = Seeded::new(seed);
        let mut template = Vec::with_capacity(blocks);
        for version in [1, 0].into_iter().cycle() {
            let run = 1 + seeded.up_to(RUN_MAX - 1);
            template.extend((0..run).map(|_| version));
            if template.len() >= blocks {
                break;
            }
        }
        template.truncate(blocks);
        Self {
            seeded,
            template,
            rounds: Vec::new(),
        }
    }

    /// Rounds so far.
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// What every block holds after so many rounds; 0 is the template.
    pub fn after(&self, rounds: usize) -> Vec<Version> {
        let mut versions = self.template.clone();
        for (block, version) in self.rounds[..rounds].iter().flatten() {
            versions[*block] = *version;
        }
        versions
    }

    /// One round.
    ///
    /// # Errors
    /// The device's own.
    pub fn round(&mut self, device: &dyn Device) -> Result<(), DeviceError> {
        let version = Version::try_from(self.rounds.len() + 2).unwrap_or(Version::MAX);
        let last = self.template.len() as u64 - 1;
        let mut changed = BTreeMap::new();
        for write in 0..WRITES {
            let reach = if write < HOT_WRITES {
                HOT_BLOCKS.min(last)
            } else {
                last
            };
            let block = index(self.seeded.up_to(reach));
            device.write(ByteOffset((block * BLOCK) as u64), &content(version, block))?;
            changed.insert(block, version);
        }
        if self.seeded.up_to(TRIM_EVERY - 1) == 0 {
            let start = index(self.seeded.up_to(last));
            let end = index(self.seeded.up_to(TRIM_MAX - 1)) + start + 1;
            let end = end.min(self.template.len());
            device.trim(bytes_of(start, end))?;
            changed.extend((start..end).map(|block| (block, 0)));
        }
        self.rounds.push(changed);
        Ok(())
    }
}

/// Blocks that hold data, spread over all of them.
pub fn some_with_data(versions: &[Version], count: usize) -> Vec<usize> {
    let held = (0..versions.len()).filter(|block| versions[*block] != 0);
    let held: Vec<usize> = held.collect();
    let step = (held.len() / count).max(1);
    held.into_iter().step_by(step).take(count).collect()
}

/// Compares all of a device. How many bytes it has.
///
/// # Errors
/// Where it differs first, or what the device says.
pub fn compare(device: &dyn Device, versions: &[Version]) -> Result<u64, String> {
    const PART: usize = 256;
    let size = device.geometry().size_bytes;
    if size != (versions.len() * BLOCK) as u64 {
        return Err(format!("{size} bytes, not {} blocks", versions.len()));
    }
    let mut found = vec![0; PART * BLOCK];
    for (part, versions) in versions.chunks(PART).enumerate() {
        let first = part * PART;
        let found = &mut found[..versions.len() * BLOCK];
        let read = device.read_at(ByteOffset((first * BLOCK) as u64), found);
        read.map_err(|e| format!("reading from block {first} on: {e}"))?;
        for (i, (found, version)) in found.chunks_exact(BLOCK).zip(versions).enumerate() {
            if found != content(*version, first + i) {
                return Err(format!(
                    "block {} does not hold version {version}",
                    first + i
                ));
            }
        }
    }
    Ok(size)
}

/// The bytes of a block: zeros, or noise.
pub fn content(version: Version, block: usize) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    if version != 0 {
        let mut seeded = Seeded::new((u64::from(version) << 32) ^ block as u64);
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&seeded.up_to(u64::MAX - 1).to_le_bytes());
        }
    }
    bytes
}

fn bytes_of(start: usize, end: usize) -> ByteRange {
    ByteRange::new((start * BLOCK) as u64, (end * BLOCK) as u64)
}

fn index(block: u64) -> usize {
    usize::try_from(block).expect("a block of a disk that is in memory")
}
