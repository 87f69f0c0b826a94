//! The files of a cache: opened, read, written to, opened again.
//!
//! ```text
//! input  0 how: bit 0 checksums are made right, bit 1 another boot, bit 2 there is a checkpoint
//!        1 number of the first segment   then three parts (u16 length, bytes): checkpoint, two segments
//! ```

use std::io;
use std::sync::Arc;

use cowslip_block::cache::{BlockState, Cache, Found};
use cowslip_block::files::{Access, Dir, read_all};
use cowslip_block::health::Health;
use cowslip_block::overlay::Overlay;
use cowslip_block::{
    BlockSize, ByteOffset, ByteRange, Device, DeviceError, Geometry, ReadSink, Room,
};
use cowslip_sim::{Forget, MemoryFs};

use crate::input::{Input, push_part, put_u32, put_u64, u64_at};

/// 300 blocks, the last one short.
const GEOMETRY: Geometry = Geometry {
    size_bytes: 300 * 4096 - 77,
    block_size: BlockSize::DISK,
    read_only: false,
};
const BOOT: [u8; 16] = [1; 16];
const NAME: &str = "c";

/// Opens it twice, with a write in between.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let (how, segment) = (input.byte(), u64::from(input.byte()));
    let parts = [input.part(), input.part(), input.part()];
    let fs = MemoryFs::new();
    let dir = fs.root();
    let data = dir.create("c.data").expect("a new file");
    data.set_len(300 * 4096).expect("room in memory");
    data.write_at(&[0xda; 8192], 3 * 4096)
        .expect("room in memory");
    let mut next = 0;
    if how & 4 != 0 {
        let mut state = parts[0].to_vec();
        if how & 1 != 0 {
            make_state_right(&mut state, segment);
        }
        if state.len() >= 32 {
            next = u64_at(&state, 24);
        }
        put_file(&*dir, &format!("c.state-{segment}"), &state);
    }
    for (number, part) in (segment..).zip(&parts[1..]) {
        let mut bytes = part.to_vec();
        if how & 1 != 0 {
            make_segment_right(&mut bytes, number, &mut next);
        }
        put_file(&*dir, &format!("c.journal-{number}"), &bytes);
    }
    let boot = if how & 2 == 0 { BOOT } else { [2; 16] };
    let Ok(cache) = open(&dir, boot) else { return };
    let Some(written) = use_it(cache) else { return };
    let again = open(&dir, boot).expect("a cache that was opened, and closed in peace");
    assert_eq!(runs(&again), written, "the states after a kill");
    drop(again);
    // And once more after a power cut: all of it was flushed.
    let dir = fs.after_cut(Forget::Unsynced).root();
    let again = open(&dir, [3; 16]).expect("a cache that was flushed");
    assert_eq!(runs(&again), written, "the states after a power cut");
}

fn open(dir: &Arc<dyn Dir>, boot: [u8; 16]) -> io::Result<Arc<Cache>> {
    Cache::find(Arc::clone(dir), NAME, GEOMETRY, boot, Health::new(|_| {}))
        .and_then(Found::settle)
        .map(Arc::new)
}

fn put_file(dir: &dyn Dir, name: &str, bytes: &[u8]) {
    let file = dir.create(name).expect("a new file");
    file.write_at(bytes, 0).expect("room in memory");
    file.sync().expect("memory");
    dir.sync().expect("memory");
}

fn runs(cache: &Cache) -> Vec<(u64, u64, BlockState)> {
    let states = cache.export();
    let all = cowslip_block::BlockRange::new(0, 300);
    // What is yet to be punched may be punched by then.
    let settled = |s| {
        if s == BlockState::ZeroHeld {
            BlockState::Zero
        } else {
            s
        }
    };
    let mut out: Vec<(u64, u64, BlockState)> = Vec::new();
    for (run, state) in states.runs(all) {
        match out.last_mut() {
            Some(last) if last.2 == settled(state) => last.1 = run.end.0,
            _ => out.push((run.start.0, run.end.0, settled(state))),
        }
    }
    out
}

/// Every kind of request, then all that is done behind them; the states at the end. Nothing where the journal speaks of bytes that the file does not
/// have: they are lost, and the cache refuses writes.
fn use_it(cache: Arc<Cache>) -> Option<Vec<(u64, u64, BlockState)>> {
    let device = Overlay::new(GEOMETRY, Arc::clone(&cache), Vec::new(), Arc::new(Nothing));
    let device: &dyn Device = &device;
    let mut all = vec![0; 300 * 4096 - 77];
    match device.read_at(ByteOffset(0), &mut all) {
        Err(DeviceError::Poisoned(_)) => return None,
        read => read.expect("all of it can be read"),
    }
    device
        .write(ByteOffset(100), &[9; 5000])
        .expect("there is room");
    all[100..5100].fill(9);
    device
        .write_zeroes(ByteRange::new(5000, 90_000), Room::Free)
        .expect("there is room");
    all[5000..90_000].fill(0);
    device
        .trim(ByteRange::new(200 * 4096, GEOMETRY.size_bytes))
        .expect("there is room");
    all[200 * 4096..].fill(0);
    while cache.punch_some().expect("memory") {}
    let mut now = vec![1; all.len()];
    device
        .read_at(ByteOffset(0), &mut now)
        .expect("all of it can be read");
    assert!(now == all, "what is read is what was written");
    device.flush().expect("memory");
    cache.checkpoint().expect("memory");
    device.flush().expect("memory");
    Some(runs(&cache))
}

/// What lies below: zeros.
struct Nothing;

impl Device for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: true,
            ..GEOMETRY
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        sink.zeroes(range.len());
        Ok(())
    }
}

fn make_state_right(state: &mut [u8], segment: u64) {
    if state.len() < 48 {
        return;
    }
    state[..8].copy_from_slice(b"CSLPSTAT");
    put_u32(state, 8, 1);
    put_u32(state, 12, 4096);
    put_u64(state, 16, segment);
    let len = state.len() as u64 - 48;
    put_u64(state, 32, len);
    let crc = crc32c::crc32c(&state[..40]);
    put_u32(state, 40, crc);
    let crc = crc32c::crc32c(&state[48..]);
    put_u32(state, 44, crc);
}

/// Head and records fit their checksums and numbers, as far as records can be found.
fn make_segment_right(bytes: &mut [u8], segment: u64, next: &mut u64) {
    if bytes.len() < 64 {
        return;
    }
    bytes[..8].copy_from_slice(b"CSLPJRNL");
    put_u32(bytes, 8, 1);
    put_u32(bytes, 12, 4096);
    put_u64(bytes, 32, segment);
    put_u64(bytes, 40, *next);
    let crc = crc32c::crc32c(&bytes[..60]);
    put_u32(bytes, 60, crc);
    let mut at = 64;
    while at + 32 <= bytes.len() && (1..=5).contains(&bytes[at + 4]) {
        let count = u64_at(bytes, at + 24);
        let crcs = if bytes[at + 4] == 1 {
            usize::try_from(count).unwrap_or(usize::MAX)
        } else {
            0
        };
        let Some(end) = crcs.checked_mul(4).and_then(|n| n.checked_add(at + 32)) else {
            return;
        };
        if end > bytes.len() {
            return;
        }
        put_u64(bytes, at + 8, *next);
        let crc = crc32c::crc32c(&bytes[at + 4..end]);
        put_u32(bytes, at, crc);
        *next = next.wrapping_add(1);
        at = end;
    }
}

/// What real caches wrote: fresh; with every kind of record; with a checkpoint and records after it.
pub fn seeds() -> Vec<Vec<u8>> {
    [false, true].into_iter().flat_map(seeds_of).collect()
}

fn seeds_of(checkpoint: bool) -> Vec<Vec<u8>> {
    let fs = MemoryFs::new();
    let dir = fs.root();
    let cache = Cache::create(Arc::clone(&dir), NAME, GEOMETRY, BOOT, Health::new(|_| {}));
    let cache = Arc::new(cache.expect("a new cache"));
    let fresh = read_segment(&*dir, 0);
    let overlay = Overlay::new(GEOMETRY, Arc::clone(&cache), Vec::new(), Arc::new(Nothing));
    let device: &dyn Device = &overlay;
    device
        .write(ByteOffset(3 * 4096), &[0xda; 8192])
        .expect("room");
    device.flush().expect("memory");
    if checkpoint {
        cache.checkpoint().expect("memory");
    }
    device.trim(ByteRange::new(4096, 20 * 4096)).expect("room");
    device
        .write_zeroes(ByteRange::new(0, 9000), Room::Provision)
        .expect("room");
    device.write(ByteOffset(5), b"some bytes").expect("room");
    cache.flush().expect("memory");
    let segment = u8::from(checkpoint);
    let state = if checkpoint {
        read(&*dir, "c.state-1")
    } else {
        Vec::new()
    };
    let journal = read_segment(&*dir, segment);
    let seed = |how: u8, first: u8, parts: [&[u8]; 3]| {
        let mut out = vec![how, first];
        parts.iter().for_each(|part| push_part(&mut out, part));
        out
    };
    let flag = if checkpoint { 4 } else { 0 };
    vec![
        seed(flag, segment, [&state, &journal, &[]]),
        seed(flag | 1, segment, [&state, &journal, &fresh]),
        seed(flag | 3, segment, [&state, &journal, &journal]),
    ]
}

/// A segment without the room that is kept free behind its records.
fn read_segment(dir: &dyn Dir, number: u8) -> Vec<u8> {
    let mut bytes = read(dir, &format!("c.journal-{number}"));
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    bytes.truncate((used + 32).min(bytes.len()));
    bytes
}

fn read(dir: &dyn Dir, name: &str) -> Vec<u8> {
    let file = dir.open(name, Access::Read).expect("just made");
    read_all(&*file, 1 << 20).expect("memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::u32_at;

    #[test]
    fn making_right_changes_nothing_that_was_right() {
        for seed in seeds() {
            let mut input = Input(&seed[1..]);
            let segment = u64::from(input.byte());
            let (state, journal) = (input.part().to_vec(), input.part().to_vec());
            let mut next = if state.is_empty() {
                0
            } else {
                u64_at(&state, 24)
            };
            let (mut right, mut state_right) = (journal.clone(), state.clone());
            make_state_right(&mut state_right, segment);
            make_segment_right(&mut right, segment, &mut next);
            assert!(right == journal && state_right == state);
            assert!(next > 2 && u32_at(&journal, 8) == 1);
        }
    }
}
