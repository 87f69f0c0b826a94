//! [`Guest`]: what writes to the disk, and what each block holds.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Result, bail};
use cowslip_block::ByteOffset;
use cowslip_nbd::client::Command;
use cowslip_nbd::{Client, Cookie};
use cowslip_sim::load::{BLOCK, Version, content};

use crate::rig::random::Random;

const IN_FLIGHT: usize = 16;
/// One request of the pattern in order.
const RUN: usize = 64;
/// Blocks of a long and of a short request at random.
const LONG: usize = 16;
const SHORT: usize = 1;

/// In which order it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Every block, in order.
    Whole,
    /// As many bytes, anywhere.
    Random,
}

impl Pattern {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Random => "random",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Whole, Self::Random]
            .into_iter()
            .find(|p| p.name() == name)
    }
}

/// See the module.
pub(super) struct Guest {
    pattern: Pattern,
    random: Random,
    versions: Vec<Version>,
    next: Version,
    on_their_way: HashMap<Cookie, Range<usize>>,
}

impl Guest {
    pub(super) fn new(pattern: Pattern, size_mib: usize, seed: u64) -> Self {
        Self {
            pattern,
            random: Random(seed),
            versions: vec![0; (size_mib << 20) / BLOCK],
            next: 1,
            on_their_way: HashMap::new(),
        }
    }

    pub(super) fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// What the disk holds, in bytes.
    pub(super) fn live_bytes(&self) -> u64 {
        let held = self.versions.iter().filter(|version| **version != 0);
        (held.count() * BLOCK) as u64
    }

    /// One round; how many bytes were written.
    pub(super) fn write(&mut self, client: &mut Client) -> Result<u64> {
        let all = self.versions.len();
        let mut written = 0;
        match self.pattern {
            Pattern::Whole => {
                for start in (0..all).step_by(RUN) {
                    written += self.submit(client, start, RUN)?;
                }
            }
            Pattern::Random => {
                // For each long one as many short ones as make the same bytes.
                while written < all * BLOCK {
                    let start = self.random.below(all / LONG) * LONG;
                    written += self.submit(client, start, LONG)?;
                    for _ in 0..LONG / SHORT {
                        let start = self.random.below(all);
                        written += self.submit(client, start, SHORT)?;
                    }
                }
            }
        }
        self.settle(client, 0)?;
        client.flush()?;
        Ok(written as u64)
    }

    /// Two requests to one block are not on their way together: nobody knows their order.
    fn submit(&mut self, client: &mut Client, start: usize, blocks: usize) -> Result<usize> {
        let end = self.versions.len().min(start + blocks);
        let version = self.next;
        self.next += 1;
        let overlaps = |on_its_way: &Range<usize>| on_its_way.start < end && start < on_its_way.end;
        if self.on_their_way.values().any(overlaps) {
            self.settle(client, 0)?;
        }
        let data: Vec<u8> = (start..end)
            .flat_map(|block| content(version, block))
            .collect();
        self.versions[start..end].fill(version);
        self.settle(client, IN_FLIGHT - 1)?;
        let cookie = client.submit(Command::Write {
            offset: ByteOffset((start * BLOCK) as u64),
            data: &data,
            fua: false,
        })?;
        self.on_their_way.insert(cookie, start..end);
        Ok(data.len())
    }

    /// Waits until at most so many are on their way.
    fn settle(&mut self, client: &mut Client, most: usize) -> Result<()> {
        while self.on_their_way.len() > most {
            let (cookie, answer) = client.complete()?;
            self.on_their_way.remove(&cookie);
            if let Err(errno) = answer {
                bail!("the device refused a write: {errno}");
            }
        }
        Ok(())
    }
}
