//! Import, read, export, verify: the way of an image's bytes.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use cowslip_block::files::{Access, Dir, File, RealDir};
use cowslip_block::{BlockSize, ByteOffset, ByteRange, Device, DeviceError};
use cowslip_snapshot::export::export;
use cowslip_snapshot::image::Piece;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{Header, HeaderSpec, Image, MapRun, Store, StoreError, Target};
use proptest::prelude::*;

use crate::rig::{Rig, noise, run, spec, temp_dir};

/// A sparse file in a directory of its own.
struct Scratch {
    _temp: tempfile::TempDir,
    file: Arc<dyn File>,
}

fn scratch(len: u64) -> Scratch {
    let temp = temp_dir();
    let dir = RealDir::open(temp.path()).unwrap();
    let file = dir.create("image").unwrap();
    file.set_len(len).unwrap();
    Scratch { _temp: temp, file }
}

fn options(block_size: BlockSize) -> ImportOptions {
    let made_by = "a test".to_owned();
    ImportOptions {
        block_size,
        made_by,
    }
}

fn read(device: &dyn Device, range: ByteRange) -> Result<Vec<u8>, DeviceError> {
    let mut buf = vec![0xee; usize::try_from(range.len()).unwrap()];
    device.read_at(range.start, &mut buf)?;
    Ok(buf)
}

fn image(store: &Arc<Store>, header: &Arc<Header>) -> Image {
    Image::new(Arc::clone(store), Arc::clone(header))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_imported_is_read_and_exported(
        len in 1usize..600_000,
        parts in prop::collection::vec((any::<u16>(), 1usize..90_000, any::<bool>()), 0..8),
        shift in prop_oneof![Just(9u32), Just(12), Just(16)],
        probes in prop::collection::vec((any::<u16>(), 0u64..100_000), 1..8),
    ) {
        let mut want = vec![0u8; len];
        let source = scratch(len as u64);
        for (i, (share, part, zeros)) in parts.iter().enumerate() {
            let start = len * usize::from(*share) / 65536;
            let end = (start + part).min(len);
            if *zeros {
                want[start..end].fill(0);
            } else {
                want[start..end].copy_from_slice(&noise(i as u64, end - start));
            }
            source.file.write_at(&want[start..end], start as u64).unwrap();
        }
        let rig = Rig::new();
        let size = BlockSize::new(1 << shift).unwrap();
        let mut last = (0, 0);
        let header = import(&rig.store, &rig.store.lease().unwrap(), source.file.as_ref(), len as u64, &options(size), &mut |done, all| {
            assert!(last.0 <= done && done <= all);
            last = (done, all);
        }).unwrap();
        prop_assert_eq!(last, (len as u64, len as u64));
        let data_blocks = want.chunks(size.bytes_usize()).filter(|b| b.iter().any(|b| *b != 0)).count();
        prop_assert_eq!(header.meta().figures.dirty_blocks, data_blocks as u64);
        let image = image(&rig.reopened(), &header);
        prop_assert!(read(&image, ByteRange::new(0, len as u64)).unwrap() == want);
        for (share, count) in probes {
            let start = len as u64 * u64::from(share) / 65536;
            let end = (start + count).min(len as u64);
            let got = read(&image, ByteRange::new(start, end)).unwrap();
            prop_assert!(got == want[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()]);
        }
        // The status: a hole exactly where a block is all zeros.
        let mut at = 0usize;
        image.block_status(ByteRange::new(0, len as u64), &mut |extent| {
            let here = &want[at..at + usize::try_from(extent.len).unwrap()];
            assert!(!extent.dirty);
            let blocks = here.chunks(size.bytes_usize());
            for block in blocks {
                assert_eq!(extent.hole, block.iter().all(|b| *b == 0));
            }
            at += here.len();
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!(at, len);
        // By pieces: the same, and at hand once a frame was read.
        let cold = crate::image::image(&rig.reopened(), &header);
        let mut pieces = Vec::new();
        for mut run in header.runs(header.blocks()).unwrap() {
            while !run.blocks.is_empty() {
                let is_stored = run.to != Target::Zero;
                let piece = cold.piece(run).unwrap();
                prop_assert_eq!(format!("{:?}", cold.piece_at_hand(run)), format!("{:?}", Some(&piece)));
                let count = match piece {
                    Piece::Zeros(bytes) => {
                        prop_assert!(!is_stored);
                        pieces.resize(pieces.len() + usize::try_from(bytes).unwrap(), 0);
                        bytes
                    }
                    Piece::Stored(frame, range) => {
                        pieces.extend_from_slice(&frame[range.clone()]);
                        range.len() as u64
                    }
                };
                let count = size.count_ceil(count).0;
                run.blocks.start.0 += count;
                run.to = run.to.after(count);
            }
        }
        pieces.truncate(len);
        prop_assert!(pieces == want);
        let out = scratch(0);
        export(&image, out.file.as_ref(), &mut |done, all| assert!(done <= all)).unwrap();
        let mut got = vec![0; len];
        prop_assert_eq!(out.file.len().unwrap(), len as u64);
        out.file.read_at(&mut got, 0).unwrap();
        prop_assert!(got == want);
        let report = verify(&rig.store, &header, &mut |_, _| ()).unwrap();
        prop_assert!(report.is_whole(), "{:?}", report.damage);
    }
}

#[test]
fn holes_are_not_read_and_stay_holes() {
    let rig = Rig::new();
    let size = 1 << 40;
    let source = scratch(size);
    source
        .file
        .write_at(&noise(1, 10_000), (1 << 39) + 1)
        .unwrap();
    let header = import(
        &rig.store,
        &rig.store.lease().unwrap(),
        source.file.as_ref(),
        size,
        &options(BlockSize::DISK),
        &mut |_, _| (),
    );
    let header = header.unwrap();
    assert_eq!(header.meta().figures.dirty_blocks, 3);
    assert!(rig.store.stored_bytes(&header).total() < 16_000);
    let out = scratch(0);
    export(
        &image(&rig.store, &header),
        out.file.as_ref(),
        &mut |_, _| (),
    )
    .unwrap();
    assert_eq!(out.file.len().unwrap(), size);
    assert!(out.file.allocated_bytes().unwrap() <= 16_384);
}

#[test]
fn an_empty_image_is_refused_and_a_zero_one_has_no_layer() {
    let rig = Rig::new();
    let source = scratch(0);
    let put = |size| {
        import(
            &rig.store,
            &rig.store.lease().unwrap(),
            source.file.as_ref(),
            size,
            &options(BlockSize::DISK),
            &mut |_, _| (),
        )
    };
    assert!(matches!(put(0), Err(StoreError::Invalid(_))));
    let source = scratch(100_000);
    let header = import(
        &rig.store,
        &rig.store.lease().unwrap(),
        source.file.as_ref(),
        100_000,
        &options(BlockSize::DISK),
        &mut |_, _| (),
    )
    .unwrap();
    assert_eq!(header.meta().own_layer, None);
    assert!(rig.tmp_is_empty());
    let image = image(&rig.store, &header);
    assert!(
        read(&image, ByteRange::new(0, 100_000))
            .unwrap()
            .iter()
            .all(|b| *b == 0)
    );
}

/// An image with data in its first MiB, and a child that changes some of it, and is larger.
fn parent_and_child(rig: &Rig) -> (Arc<Header>, Arc<Header>, Vec<u8>) {
    let mut want = noise(5, 1 << 20);
    let source = scratch(1 << 20);
    source.file.write_at(&want, 0).unwrap();
    let parent = import(
        &rig.store,
        &rig.store.lease().unwrap(),
        source.file.as_ref(),
        1 << 20,
        &options(BlockSize::DISK),
        &mut |_, _| (),
    );
    let parent = parent.unwrap();
    let mut writer = rig
        .store
        .layer_writer(&rig.store.lease().unwrap(), BlockSize::DISK)
        .unwrap();
    let fresh = noise(6, 3 * 4096);
    let at = writer.push(&fresh).unwrap();
    let layer = writer.finish().unwrap();
    let to = Target::Layer { id: layer.id, at };
    let changes = [run(10, 13, to), run(20, 22, Target::Zero)];
    let child = rig.store.put_header(
        &rig.store.lease().unwrap(),
        &HeaderSpec {
            layer: Some(layer),
            ..spec(Some(&parent), (2 << 20) + 5, &changes)
        },
    );
    want[10 * 4096..13 * 4096].copy_from_slice(&fresh);
    want[20 * 4096..22 * 4096].fill(0);
    want.resize((2 << 20) + 5, 0);
    (parent, child.unwrap(), want)
}

#[test]
fn a_child_reads_through_to_its_parent_and_growth_reads_as_zeros() {
    let rig = Rig::new();
    let (_, child, want) = parent_and_child(&rig);
    let image = image(&rig.reopened(), &child);
    assert!(read(&image, ByteRange::new(0, want.len() as u64)).unwrap() == want);
    let past = ByteRange::new(want.len() as u64, want.len() as u64 + 1);
    assert!(matches!(
        read(&image, past),
        Err(DeviceError::OutOfRange { .. })
    ));
    assert!(matches!(
        image.write(ByteOffset(0), b"x"),
        Err(DeviceError::ReadOnly)
    ));
    assert_eq!(child.layers().unwrap().values().sum::<u64>(), 256 - 2);
    assert_eq!(
        child.meta().own_layer.map(|l| child.layers().unwrap()[&l]),
        Some(3)
    );
}

#[test]
fn a_damaged_frame_fails_its_own_range_only_and_is_found() {
    let rig = Rig::new();
    let (parent, child, want) = parent_and_child(&rig);
    let object = format!("layers/{}", parent.meta().own_layer.unwrap());
    let layers = RealDir::open(rig.temp.path())
        .unwrap()
        .open_dir("layers")
        .unwrap();
    let file = layers
        .open(object.strip_prefix("layers/").unwrap(), Access::ReadWrite)
        .unwrap();
    // Noise is stored raw: this is in frame 2, blocks 32 to 48.
    file.write_at(&[!want[140_000]], 140_000).unwrap();
    let store = rig.reopened();
    let image = image(&store, &child);
    let frame = ByteRange::new(2 << 16, 3 << 16);
    match read(&image, frame) {
        Err(DeviceError::Corrupt(why)) => {
            assert!(
                why.contains(&object) && why.contains("frame 2 at byte 131072"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    for whole in [
        ByteRange::new(0, frame.start.0),
        ByteRange::new(frame.end.0, 1 << 20),
    ] {
        let got = read(&image, whole).unwrap();
        let at = usize::try_from(whole.start.0).unwrap();
        assert!(got == want[at..at + got.len()]);
    }
    let report = verify(&store, &child, &mut |_, _| ()).unwrap();
    assert_eq!(report.damaged, 1);
    assert_eq!(report.damage[0].object, object);
    // Mended, it reads: a failure is not remembered.
    file.write_at(&[want[140_000]], 140_000).unwrap();
    read(&image, frame).unwrap();
}

#[test]
fn what_was_put_in_the_place_of_a_damaged_object_is_read() {
    let rig = Rig::new();
    let (parent, child, want) = parent_and_child(&rig);
    let layer = format!("layers/{}", parent.meta().own_layer.unwrap());
    let header = format!("headers/{}", child.id());
    // A frame, a node, and the ends of both.
    for (object, at) in [
        (&layer, 9),
        (&header, 9),
        (&layer, usize::MAX),
        (&header, usize::MAX),
    ] {
        let path = rig.path(object);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[at.min(whole.len() - 3)] ^= 1;
        let put = |bytes: &[u8]| {
            std::fs::write(rig.path("tmp/new"), bytes).unwrap();
            std::fs::rename(rig.path("tmp/new"), &path).unwrap();
        };
        put(&damaged);
        let store = rig.reopened();
        let said = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&said);
        store.on_damage(move |line| into.lock().unwrap().push(line.to_owned()));
        let read_all = || -> Result<Vec<u8>, DeviceError> {
            let header = store.open_header(child.id())?;
            read(&image(&store, &header), ByteRange::new(0, 1 << 20))
        };
        for _ in 0..2 {
            let error = read_all().unwrap_err();
            assert!(error.to_string().contains(object), "{error}");
        }
        // A header that cannot be opened is no image, and its user is told at once.
        let lines = said.lock().unwrap().clone();
        let opens = (object, at) != (&header, usize::MAX);
        assert_eq!(lines.len(), usize::from(opens), "{lines:?}");
        put(&whole);
        assert!(read_all().unwrap() == want[..1 << 20]);
    }
}

#[test]
fn verify_finds_what_is_missing_or_mapped_wrongly() {
    let rig = Rig::new();
    let (parent, child, _) = parent_and_child(&rig);
    let found = |header: &Arc<Header>| {
        let report = verify(&rig.reopened(), header, &mut |_, _| ()).unwrap();
        report
            .damage
            .iter()
            .map(|d| format!("{} {} {}", d.object, d.place, d.why))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&child), [""; 0]);
    let layer = parent.meta().own_layer.unwrap();
    // A run past the layer's end.
    let to = Target::Layer { id: layer, at: 250 };
    let past = rig.put(
        None,
        1000,
        &[
            MapRun {
                to,
                ..run(0, 10, Target::Zero)
            },
            run(500, 501, to),
        ],
    );
    let why = found(&past);
    assert!(
        why.len() == 1 && why[0].contains("there are 256"),
        "{why:?}"
    );
    let device = image(&rig.store, &past);
    assert!(matches!(
        read(&device, ByteRange::new(0, 40960)),
        Err(DeviceError::Corrupt(_))
    ));
    std::fs::remove_file(rig.path(&format!("layers/{layer}"))).unwrap();
    assert!(found(&child)[0].contains("not there"));
    std::fs::remove_file(rig.path(&format!("headers/{}", parent.id()))).unwrap();
    assert!(found(&parent).iter().all(|why| why.contains("not there")));
}
