//! What the demo's client writes, and an oracle: all bytes of the device as they must read.
//!
//! ```text
//! 0          IMAGE_BYTES                          STAMPS_AT      DEVICE_BYTES
//! | ext4      | slots of 64 KiB, written at random | stamps       |
//! ```
//!
//! Slots are written with up to [`IN_FLIGHT`] requests at a time, each slot by one of them. Stamps
//! are blocks with rising numbers, written one after the other by a second connection all the time: a
//! snapshot that is taken meanwhile must hold all of them up to some number, and none after it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cowslip_block::{ByteOffset, ByteRange, Room};
use cowslip_nbd::Client;
use cowslip_nbd::client::{ClientError, Command};
use serde::Serialize;

use super::stage::IMAGE_BYTES;
use crate::failure::Failure;
use crate::random::{Random, random_bytes};

const SLOT: usize = 64 << 10;
const SLOTS: usize = 640;
const IN_FLIGHT: usize = 16;
const STAMP: usize = 4096;
const STAMPS: usize = 256;
const SLOTS_AT: usize = 32 << 20;
pub(super) const STAMPS_AT: usize = SLOTS_AT + SLOTS * SLOT;
pub(super) const DEVICE_BYTES: u64 = (STAMPS_AT + STAMPS * STAMP) as u64;
pub(super) const STAMP_BYTES: u64 = STAMP as u64;
const _: () = assert!(SLOTS_AT as u64 == IMAGE_BYTES);

/// What is written to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// Bytes that do not compress.
    Random,
    /// Bytes that do.
    Text,
    /// Zeros, by ordinary writes.
    Zeros,
    /// Zeros, by WRITE_ZEROES.
    WriteZeroes,
    /// TRIM.
    Trim,
    /// What is there already.
    Identical,
    /// Rising numbers, by ordinary writes of one block.
    Stamps,
}

/// The client and what it must find.
pub(super) struct Workload {
    client: Client,
    random: Random,
    oracle: Vec<u8>,
    written: BTreeMap<Kind, u64>,
    /// Slots that ordinary writes went to since the last snapshot: how many bytes, and what was
    /// done to the slot last.
    since_last: BTreeMap<usize, (u64, Kind)>,
}

/// What ordinary writes carried to a snapshot, and what became of it before the snapshot came.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Carried {
    /// All of it, in bytes.
    pub(super) written_bytes: u64,
    /// Was zeros, or had become zeros.
    pub(super) zeroed_bytes: u64,
    /// Had been trimmed.
    pub(super) trimmed_bytes: u64,
}

fn failed(error: &ClientError) -> Failure {
    Failure::failed(format!("writing to the device: {error}"))
}

impl Workload {
    /// Begins from what is on the device.
    pub(super) fn begin(seed: u64, mut client: Client) -> Result<Self, Failure> {
        let mut oracle = vec![0; STAMPS_AT];
        for (i, chunk) in oracle.chunks_mut(1 << 20).enumerate() {
            client
                .read((i as u64) << 20, chunk)
                .map_err(|e| failed(&e))?;
        }
        let (written, since_last) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            client,
            random: Random(seed),
            oracle,
            written,
            since_last,
        })
    }

    /// Everything below [`STAMPS_AT`], as it must read.
    pub(super) fn oracle(&self) -> &[u8] {
        &self.oracle
    }

    /// What was sent so far, in bytes; with so many stamps, which another client sent.
    pub(super) fn written(&self, stamps: u64) -> BTreeMap<Kind, u64> {
        let mut written = self.written.clone();
        written.insert(Kind::Stamps, stamps * STAMP as u64);
        written
    }

    /// What this client's ordinary writes carried since this was asked the last time.
    pub(super) fn carried(&mut self) -> Carried {
        let mut carried = Carried::default();
        for (_, (len, last)) in std::mem::take(&mut self.since_last) {
            carried.written_bytes += len;
            match last {
                Kind::Zeros | Kind::WriteZeroes => carried.zeroed_bytes += len,
                Kind::Trim => carried.trimmed_bytes += len,
                Kind::Random | Kind::Text | Kind::Identical | Kind::Stamps => {}
            }
        }
        carried
    }

    /// Writes to slots, in an order of its own.
    pub(super) fn write(&mut self, kind: Kind, slots: Range<usize>) -> Result<(), Failure> {
        let mut order: Vec<usize> = slots.map(|slot| SLOTS_AT + slot * SLOT).collect();
        self.random.shuffle(&mut order);
        self.write_at(kind, &order)
    }

    /// Rewrites parts of the files in the image with the bytes that they have.
    pub(super) fn write_what_is_there(&mut self, slots: usize) -> Result<(), Failure> {
        let holds_data = |at: &usize| self.oracle[*at..at + SLOT].iter().any(|b| *b != 0);
        let mut order: Vec<usize> = (0..SLOTS_AT / SLOT).map(|slot| slot * SLOT).collect();
        order.retain(holds_data);
        self.random.shuffle(&mut order);
        order.truncate(slots);
        self.write_at(Kind::Identical, &order)
    }

    fn write_at(&mut self, kind: Kind, order: &[usize]) -> Result<(), Failure> {
        for at in order {
            let (here, seed) = (*at..at + SLOT, self.random.next());
            match kind {
                Kind::Random => {
                    self.oracle[here.clone()].copy_from_slice(&random_bytes(seed, SLOT))
                }
                Kind::Text => self.oracle[here.clone()].copy_from_slice(&text(seed)),
                Kind::Zeros | Kind::WriteZeroes | Kind::Trim => self.oracle[here.clone()].fill(0),
                Kind::Identical | Kind::Stamps => {}
            }
            let range = ByteRange::new(here.start as u64, here.end as u64);
            let data = &self.oracle[here];
            let offset = ByteOffset(range.start.0);
            self.client
                .submit(match kind {
                    Kind::WriteZeroes => {
                        let (room, fast, fua) = (Room::Free, false, false);
                        Command::WriteZeroes {
                            range,
                            room,
                            fast,
                            fua,
                        }
                    }
                    Kind::Trim => Command::Trim { range, fua: false },
                    _ => Command::Write {
                        offset,
                        data,
                        fua: false,
                    },
                })
                .map_err(|e| failed(&e))?;
            *self.written.entry(kind).or_default() += SLOT as u64;
            let (carried, last) = self.since_last.entry(*at).or_insert((0, kind));
            *last = kind;
            if !matches!(kind, Kind::WriteZeroes | Kind::Trim) {
                *carried += SLOT as u64;
            }
            self.settle(IN_FLIGHT)?;
        }
        self.settle(1)
    }

    /// Waits until fewer than `most` requests are in flight.
    fn settle(&mut self, most: usize) -> Result<(), Failure> {
        while self.client.in_flight() >= most {
            let (_, answer) = self.client.complete().map_err(|e| failed(&e))?;
            answer.map_err(|e| Failure::failed(format!("the device refused a write: {e}")))?;
        }
        Ok(())
    }
}

/// Writes stamps until it is told to end, or the server goes away.
pub(super) struct Stamper {
    shared: Arc<Stamps>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stamps {
    submitted: AtomicU64,
    acknowledged: AtomicU64,
    end: AtomicBool,
}

impl Stamper {
    pub(super) fn start(mut client: Client) -> Self {
        let shared = Arc::<Stamps>::default();
        let stamps = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stamps.end.load(Ordering::SeqCst) {
                number += 1;
                stamps.submitted.store(number, Ordering::SeqCst);
                if client.write(stamp_at(number), &stamp(number)).is_err() {
                    return;
                }
                stamps.acknowledged.store(number, Ordering::SeqCst);
                // A trickle: the rest of the workload is to be seen beside it.
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    pub(super) fn submitted(&self) -> u64 {
        self.shared.submitted.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until so many more have been acknowledged.
    pub(super) fn wait_for_more(&self, count: u64, within: Duration) -> Result<(), Failure> {
        let (reach, begun) = (self.acknowledged() + count, Instant::now());
        while self.acknowledged() < reach {
            if begun.elapsed() > within {
                return Err(Failure::failed("the device takes no writes any more"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it; how many were submitted.
    pub(super) fn end(mut self) -> u64 {
        self.stop();
        self.submitted()
    }

    fn stop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Stamper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stamp_at(number: u64) -> u64 {
    STAMPS_AT as u64 + number % STAMPS as u64 * STAMP as u64
}

fn stamp(number: u64) -> Vec<u8> {
    let mut bytes = random_bytes(number, STAMP);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The region of stamps must be as it was after one of the stamps `first..=last`.
pub(super) fn check_stamps(region: &[u8], first: u64, last: u64) -> Result<(), String> {
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
    let blocks = || region.chunks(STAMP);
    let newest = blocks().map(number).max().unwrap_or(0);
    if !(first..=last).contains(&newest) {
        return Err(format!(
            "the newest stamp is {newest}, not one of {first} to {last}"
        ));
    }
    for (slot, block) in (0..).zip(blocks()) {
        // The last number up to the newest that falls on this slot; none yet where it is 0.
        let behind = (newest + STAMPS as u64 - slot) % STAMPS as u64;
        let expected = newest.checked_sub(behind).filter(|n| *n > 0);
        let right = match expected {
            Some(n) => block == stamp(n),
            None => block.iter().all(|b| *b == 0),
        };
        if !right {
            let found = number(block);
            return Err(format!(
                "slot {slot} holds stamp {found}, not {expected:?} of {newest}"
            ));
        }
    }
    Ok(())
}

/// Where two ranges of bytes begin to differ, over the length of the second.
pub(super) fn first_difference(got: &[u8], expected: &[u8]) -> Option<usize> {
    if got.len() >= expected.len() && got[..expected.len()] == *expected {
        return None;
    }
    Some(got.iter().zip(expected).take_while(|(a, b)| a == b).count())
}

/// A slot of words, which compress as a log or a source file does.
fn text(seed: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "block ",
        "layer ",
        "header ",
        "the ",
        "snapshot ",
        "writes ",
        "0x7f3a ",
        "error: ",
        "of ",
        "session ",
        "ok\n",
        "a ",
        "GET /index ",
        "kernel: ",
        "127.0.0.1 ",
        "value = ",
    ];
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(SLOT + 16);
    while bytes.len() < SLOT {
        bytes.extend_from_slice(WORDS[random.below(WORDS.len())].as_bytes());
    }
    bytes.truncate(SLOT);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_checked_for_gaps_and_for_what_is_too_new() {
        let mut region = vec![0; STAMPS * STAMP];
        let mut put = |n: u64| {
            let at = usize::try_from(stamp_at(n)).unwrap() - STAMPS_AT;
            region[at..at + STAMP].copy_from_slice(&stamp(n));
            region.clone()
        };
        let mut last = Vec::new();
        for n in 1..=700 {
            last = put(n);
        }
        assert_eq!(check_stamps(&last, 690, 705), Ok(()));
        assert!(
            check_stamps(&last, 701, 705).is_err(),
            "an acknowledged one is missing"
        );
        assert!(
            check_stamps(&last, 600, 699).is_err(),
            "one is there that was not submitted"
        );
        let gap = put(702);
        assert!(
            check_stamps(&gap, 690, 705).is_err(),
            "701 is missing under 702"
        );
    }
}
