//! Room: what zeroes and trims give back, and what a full or failing disk does.

use std::sync::{Arc, Mutex};

use cowslip_block::cache::{BlockState, Cache};
use cowslip_block::files::{Access, Dir, RealDir};
use cowslip_block::health::Health;
use cowslip_block::overlay::Overlay;
use cowslip_block::{ByteOffset, ByteRange, Device, DeviceError, Room};
use cowslip_sim::{Call, EIO, ENOSPC, Fault, Faults, FaultyDir, Forget, MemoryFs, Rule};

use crate::rig::{BOOT, Base, geometry, health, index, overlay, pattern, read};

#[test]
fn zeroes_and_trims_give_their_room_back_and_provisioning_keeps_it() {
    let temp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(temp.path()).unwrap());
    let size = 4 << 20;
    let (overlay, cache) = overlay(&dir, size, pattern(3, index(size)));
    overlay
        .write(ByteOffset(0), &pattern(1, index(size)))
        .unwrap();
    let (full, _) = cache.room().unwrap();
    assert!(full >= size);
    overlay.trim(ByteRange::new(0, 1 << 20)).unwrap();
    overlay
        .write_zeroes(ByteRange::new(1 << 20, 2 << 20), Room::Free)
        .unwrap();
    overlay
        .write(ByteOffset(2 << 20), &vec![0; 1 << 20])
        .unwrap();
    assert_eq!(cache.count(BlockState::ZeroHeld).0, 768);
    while cache.punch_some().unwrap() {}
    assert_eq!(cache.count(BlockState::ZeroHeld).0, 0);
    let (after, _) = cache.room().unwrap();
    assert!(
        after <= size / 4 + (64 << 10),
        "{after} bytes are still held"
    );
    overlay
        .write_zeroes(ByteRange::new(3 << 20, 4 << 20), Room::Provision)
        .unwrap();
    while cache.punch_some().unwrap() {}
    assert!(
        cache.room().unwrap().0 >= size / 4,
        "provisioned room is kept"
    );
    assert!(read(&overlay, 0, index(size)).iter().all(|b| *b == 0));
}

/// A disk with room for this many bytes, with a cache on it over a base of data.
fn small_disk(room: u64, size: u64) -> (MemoryFs, Overlay, Arc<Cache>) {
    let disk = MemoryFs::with_capacity(room);
    let (overlay, cache) = overlay(&disk.root(), size, pattern(3, index(size)));
    (disk, overlay, cache)
}

#[test]
fn a_full_disk_fails_writes_and_nothing_else() {
    let size = 4 << 20;
    // The journal takes 256 KiB of it.
    let (_disk, overlay, cache) = small_disk((256 << 10) + (1 << 20), size);
    let mut written = 0;
    let error = loop {
        match overlay.write(ByteOffset(written), &pattern(written, 65536)) {
            Ok(()) => written += 65536,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, DeviceError::NoSpace), "{error}");
    assert_eq!(written, 1 << 20, "all the room there is was used");
    // What was acknowledged reads back; what failed reads as before.
    assert!(read(&overlay, 65536, 65536) == pattern(65536, 65536));
    let base = pattern(3, index(size));
    assert!(read(&overlay, written, 65536) == base[index(written)..index(written) + 65536]);
    // Rewriting needs no room.
    overlay.write(ByteOffset(0), &pattern(77, 65536)).unwrap();
    // Zeroes and trims, a thousand of them, work; and give room for writes.
    for block in 0..1000 {
        overlay
            .trim(ByteRange::at(2 << 20, 4096 + block % 5).unwrap())
            .unwrap();
        overlay
            .write_zeroes(
                ByteRange::at((3 << 20) + block * 512, 4096).unwrap(),
                Room::Free,
            )
            .ok();
    }
    overlay.trim(ByteRange::new(0, 512 << 10)).unwrap();
    overlay.flush().unwrap();
    while cache.punch_some().unwrap() {}
    overlay
        .write(ByteOffset(1 << 20), &pattern(5, 65536))
        .unwrap();
    assert!(read(&overlay, 1 << 20, 65536) == pattern(5, 65536));
    assert!(read(&overlay, 0, 512 << 10).iter().all(|b| *b == 0));
    overlay.flush().unwrap();
}

#[test]
fn provisioning_beyond_the_room_is_refused() {
    let (_disk, overlay, _cache) = small_disk(1 << 20, 4 << 20);
    let all = ByteRange::new(0, 4 << 20);
    let error = overlay.write_zeroes(all, Room::Provision).unwrap_err();
    assert!(matches!(error, DeviceError::NoSpace), "{error}");
    overlay.write_zeroes(all, Room::Free).unwrap();
}

/// A device in a directory that fails as it is told, and what was said.
type Faulty = (Faults, Overlay, Arc<Cache>, Arc<Mutex<Vec<String>>>);

fn faulty() -> Faulty {
    faulty_on(&MemoryFs::new())
}

fn faulty_on(disk: &MemoryFs) -> Faulty {
    let faults = Faults::new();
    let dir: Arc<dyn Dir> = Arc::new(FaultyDir::new(disk.root(), &faults));
    let said = Arc::<Mutex<Vec<String>>>::default();
    let lines = Arc::clone(&said);
    let health = Health::new(move |line| lines.lock().unwrap().push(line.to_owned()));
    let size = 1 << 20;
    let cache = Cache::create(dir, "cache-1", geometry(size), BOOT, health).unwrap();
    let cache = Arc::new(cache);
    let base = Arc::new(Base(pattern(3, index(size))));
    let overlay = Overlay::new(geometry(size), Arc::clone(&cache), Vec::new(), base);
    overlay.write(ByteOffset(0), &pattern(1, 8192)).unwrap();
    (faults, overlay, cache, said)
}

#[test]
fn eio_on_the_cache_or_a_failed_sync_poisons_writes_and_reads_go_on() {
    let cases: [(&str, Rule); 4] = [
        ("a write of bytes", Rule::once(Call::Write, EIO).on(".data")),
        (
            "a write of marks",
            Rule::once(Call::Write, EIO).on(".journal"),
        ),
        ("a sync of bytes", Rule::once(Call::Sync, EIO).on(".data")),
        (
            "a sync of marks",
            Rule::once(Call::Sync, EIO).on(".journal"),
        ),
    ];
    for (what, rule) in cases {
        let (faults, overlay, _cache, said) = faulty();
        faults.add(rule);
        let first = overlay
            .write(ByteOffset(16384), &pattern(2, 4096))
            .and_then(|()| overlay.flush());
        assert!(
            matches!(first, Err(DeviceError::Poisoned(_))),
            "{what}: {first:?}"
        );
        for _ in 0..3 {
            // The fault is gone; what it did is not.
            let write = overlay.write(ByteOffset(0), &[1]);
            let zero = overlay.trim(ByteRange::new(0, 4096));
            let flush = overlay.flush();
            for result in [write, zero, flush] {
                assert!(
                    matches!(result, Err(DeviceError::Poisoned(_))),
                    "{what}: {result:?}"
                );
            }
        }
        assert!(
            read(&overlay, 0, 8192) == pattern(1, 8192),
            "{what}: reads go on"
        );
        assert_eq!(said.lock().unwrap().len(), 1, "{what}: said once: {said:?}");
    }
}

#[test]
fn a_sync_that_finds_the_disk_full_poisons_too() {
    // Bytes that had no room when they were written back are gone, whatever a later sync says.
    let (faults, overlay, _cache, said) = faulty();
    faults.add(Rule::once(Call::Sync, ENOSPC).on(".data"));
    assert!(matches!(overlay.flush(), Err(DeviceError::Poisoned(_))));
    assert_eq!(said.lock().unwrap().len(), 1);
}

/// What a failed write did of what it was asked for can be read, and is durable with the next flush.
#[test]
fn a_flush_covers_what_a_failed_write_has_done() {
    let disk = MemoryFs::new();
    let (faults, overlay, _cache, _said) = faulty_on(&disk);
    overlay.flush().unwrap();
    faults.add(Rule::once(Call::Write, ENOSPC).on(".data"));
    // Zeros and data: the zeros need no room.
    let mut bytes = pattern(2, 8192);
    bytes[..4096].fill(0);
    let written = overlay.write(ByteOffset(0), &bytes);
    assert!(matches!(written, Err(DeviceError::NoSpace)), "{written:?}");
    assert!(read(&overlay, 0, 4096) == [0; 4096]);
    overlay.flush().unwrap();
    let dir = disk.after_cut(Forget::Unsynced).root();
    let found = Cache::find(dir, "cache-1", geometry(1 << 20), [9; 16], health()).unwrap();
    let found = found.settle().unwrap();
    assert_eq!(found.count(BlockState::Dirty).0, 1, "block 0 is zero");
}

/// A record that failed, and is in the journal all the same, would say of what is written in place later that it is
/// zeros.
#[test]
fn a_record_that_is_said_to_fail_and_is_there_is_taken_back() {
    let disk = MemoryFs::new();
    let (faults, overlay, _cache, said) = faulty_on(&disk);
    let late = Rule::any(Fault::Late(ENOSPC)).on(".journal");
    faults.add(late.clone());
    let trimmed = overlay.trim(ByteRange::new(0, 4096));
    assert!(matches!(trimmed, Err(DeviceError::NoSpace)), "{trimmed:?}");
    overlay.write(ByteOffset(0), &pattern(2, 4096)).unwrap();
    let dir = disk.after_cut(Forget::Nothing).root();
    let found = Cache::find(dir, "cache-1", geometry(1 << 20), BOOT, health()).unwrap();
    let found = found.settle().unwrap();
    assert_eq!(
        found.count(BlockState::Dirty).0,
        2,
        "it is found after a kill"
    );
    assert!(said.lock().unwrap().is_empty());

    // Where that fails, and not for want of room, nothing can be promised any more.
    faults.add(late);
    faults.add(Rule::once(Call::Write, EIO).on(".journal").after(1));
    let trimmed = overlay.trim(ByteRange::new(0, 4096));
    assert!(
        matches!(trimmed, Err(DeviceError::Poisoned(_))),
        "{trimmed:?}"
    );
}

#[test]
fn a_journal_without_room_fails_writes_but_takes_trims_and_flushes() {
    let (faults, overlay, _cache, said) = faulty();
    // From now on the journal cannot grow: what is allocated has to do.
    faults.add(Rule::every(Call::Allocate, ENOSPC));
    let trim = ByteRange::new(4096, 8192);
    let mut refused = 0;
    for round in 0..7000u64 {
        // Each write changes a state again, and so wants a record.
        match overlay.write(ByteOffset(4096), &pattern(round, 4096)) {
            Ok(()) => {}
            Err(DeviceError::NoSpace) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if refused > 1000 {
            break;
        }
        overlay.trim(trim).unwrap();
    }
    assert!(
        refused > 1000,
        "the journal was full for writes, and took trims"
    );
    overlay.flush().unwrap();
    assert!(said.lock().unwrap().is_empty());
    assert!(read(&overlay, 4096, 4096).iter().all(|b| *b == 0));
    faults.clear();
    overlay.write(ByteOffset(4096), &pattern(1, 4096)).unwrap();
}

#[test]
fn a_failed_read_is_that_read_s_alone() {
    let (faults, overlay, _cache, said) = faulty();
    faults.add(Rule::once(Call::Read, EIO).on(".data"));
    let mut buf = [0; 4096];
    let device: &dyn Device = &overlay;
    assert!(device.read_at(ByteOffset(0), &mut buf).is_err());
    device.read_at(ByteOffset(0), &mut buf).unwrap();
    overlay.write(ByteOffset(0), &[1]).unwrap();
    assert!(said.lock().unwrap().is_empty());
}

#[test]
fn a_checkpoint_or_a_punch_that_fails_leaves_all_as_it_was() {
    for call in [
        Call::Create,
        Call::Write,
        Call::Sync,
        Call::SyncDir,
        Call::Rename,
        Call::Remove,
    ] {
        for after in 0..4 {
            let (faults, overlay, cache, _said) = faulty();
            overlay.trim(ByteRange::new(4096, 8192)).unwrap();
            let mut rule = Rule::once(call, ENOSPC).after(after);
            if call == Call::Sync {
                // Of what is in use, a failed sync poisons.
                rule = rule.on(".state");
            }
            faults.add(rule);
            drop(cache.checkpoint());
            faults.clear();
            faults.add(Rule::once(Call::Punch, EIO));
            assert!(cache.punch_some().is_err());
            faults.clear();
            overlay.write(ByteOffset(40960), &pattern(8, 4096)).unwrap();
            overlay.flush().unwrap();
            cache.checkpoint().unwrap();
            while cache.punch_some().unwrap() {}
            assert!(
                read(&overlay, 0, 4096) == pattern(1, 8192)[..4096],
                "{call:?} {after}"
            );
            assert!(
                read(&overlay, 4096, 4096).iter().all(|b| *b == 0),
                "{call:?} {after}"
            );
            assert!(
                read(&overlay, 40960, 4096) == pattern(8, 4096),
                "{call:?} {after}"
            );
        }
    }
}

/// What a journal with right checksums may still not say.
#[test]
fn a_journal_that_speaks_of_blocks_that_are_not_there_is_refused() {
    let size = 1 << 20;
    for (start, count) in [
        (256, 1),
        (0, 257),
        (1 << 40, 0),
        (0, 0),
        (u64::MAX, 0),
        (200, 100),
    ] {
        let disk = MemoryFs::new();
        drop(overlay(&disk.root(), size, vec![0; index(size)]));
        // A record of kind 2, zero, behind the head of the first segment.
        let mut record = [0; 32];
        record[4] = 2;
        record[16..24].copy_from_slice(&u64::to_le_bytes(start));
        record[24..32].copy_from_slice(&u64::to_le_bytes(count));
        let crc = crc32c::crc32c(&record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
        let journal = disk
            .root()
            .open("cache-1.journal-0", Access::ReadWrite)
            .unwrap();
        journal.write_at(&record, 64).unwrap();
        let opened = Cache::find(disk.root(), "cache-1", geometry(size), BOOT, health());
        let why = opened.map(drop).unwrap_err().to_string();
        assert!(why.contains("past the end"), "{start}, {count}: {why}");
    }
}
