//! Layer objects: what goes in comes out, and damage is noticed.

use cowslip_block::BlockSize;
use cowslip_snapshot::{LayerSummary, StoreError};
use proptest::prelude::*;

use crate::rig::{Rig, noise};

/// Blocks of noise, of text and of something between.
fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = noise(seed, bytes);
    for (i, piece) in out.chunks_mut(1500).enumerate() {
        if !(seed + i as u64).is_multiple_of(3) {
            piece.fill(b'a' + u8::try_from(i % 20).unwrap());
        }
    }
    out
}

fn write(rig: &Rig, size: BlockSize, payload: &[u8], pieces: usize) -> LayerSummary {
    let mut writer = rig
        .store
        .layer_writer(&rig.store.lease().unwrap(), size)
        .unwrap();
    let bytes = size.bytes_usize();
    let mut at = 0;
    for piece in payload.chunks(pieces.max(1) * bytes) {
        assert_eq!(writer.push(piece).unwrap(), at);
        at += (piece.len() / bytes) as u64;
    }
    writer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn layers_come_back(shift in 9u32..22, blocks in 1usize..200, pieces in 1usize..90, seed in 0u64..1000) {
        let size = BlockSize::new(1 << shift).unwrap();
        // Not more than 6 MiB: one batch and a half.
        let blocks = blocks.min((6 << 20) / size.bytes_usize()).max(1);
        let payload = payload(seed, blocks * size.bytes_usize());
        let rig = Rig::new();
        let summary = write(&rig, size, &payload, pieces);
        prop_assert_eq!(summary.blocks.0, blocks as u64);
        let layer = rig.reopened().open_layer(summary.id).unwrap();
        prop_assert_eq!(layer.object_bytes(), summary.stored_bytes);
        prop_assert_eq!((layer.blocks(), layer.block_size()), (summary.blocks, size));
        let mut read = Vec::new();
        for n in 0..layer.frames() {
            read.extend_from_slice(&layer.read_frame(n).unwrap());
        }
        prop_assert!(read == payload);
        prop_assert!(layer.read_frame(layer.frames()).is_err());
        prop_assert!(rig.tmp_is_empty());
    }
}

#[test]
fn noise_is_stored_raw_and_text_is_not() {
    let rig = Rig::new();
    let raw = write(&rig, BlockSize::DISK, &noise(1, 64 << 10), 16);
    assert_eq!(raw.stored_bytes, (64 << 10) + 8 + 64);
    let text = write(&rig, BlockSize::DISK, &[b'x'; 64 << 10], 16);
    assert!(text.stored_bytes < 200);
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let rig = Rig::new();
    let mut writer = rig
        .store
        .layer_writer(&rig.store.lease().unwrap(), BlockSize::DISK)
        .unwrap();
    writer.push(&noise(1, 8 << 20)).unwrap();
    assert!(!rig.tmp_is_empty());
    drop(writer);
    assert!(rig.tmp_is_empty());
    let empty = rig
        .store
        .layer_writer(&rig.store.lease().unwrap(), BlockSize::DISK)
        .unwrap();
    assert!(matches!(empty.finish(), Err(StoreError::Invalid(_))));
    let mut writer = rig
        .store
        .layer_writer(&rig.store.lease().unwrap(), BlockSize::DISK)
        .unwrap();
    assert!(matches!(
        writer.push(&[1; 4095]),
        Err(StoreError::Invalid(_))
    ));
    drop(writer);
    assert!(rig.tmp_is_empty());
}

#[test]
fn any_damage_is_noticed() {
    let rig = Rig::new();
    let size = BlockSize::new(512).unwrap();
    // A frame of text, and a short one of noise.
    let mut payload = vec![b'y'; 64 << 10];
    payload.extend(noise(3, 1024));
    let summary = write(&rig, size, &payload, 100);
    let object = format!("layers/{}", summary.id);
    let index_at = summary.stored_bytes - 64 - 2 * 8;
    // The index and the footer are checked when the layer is opened, and the frames are not.
    let path = rig.path(&object);
    let whole = std::fs::read(&path).unwrap();
    for at in [0, index_at - 1, index_at, index_at + 5, index_at + 16] {
        let mut bytes = whole.clone();
        bytes[usize::try_from(at).unwrap()] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        let opened = rig.reopened().open_layer(summary.id);
        assert_eq!(opened.is_ok(), at < index_at, "{at}: {opened:?}");
    }
    std::fs::write(&path, &whole).unwrap();
    rig.for_each_damage(&object, |store, what| {
        let read = store.open_layer(summary.id).map(|layer| {
            let frames: Result<Vec<_>, _> = (0..2).map(|n| layer.read_frame(n)).collect();
            frames.map_err(|e| e.to_string())
        });
        match read {
            Err(StoreError::Corrupt { .. } | StoreError::Version { .. }) | Ok(Err(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
    });
}

#[test]
fn a_layer_under_another_name_is_noticed() {
    let rig = Rig::new();
    let a = write(&rig, BlockSize::DISK, &noise(1, 4096), 1);
    let b = write(&rig, BlockSize::DISK, &noise(2, 4096), 1);
    let path = |s: LayerSummary| rig.path(&format!("layers/{}", s.id));
    std::fs::copy(path(a), path(b)).unwrap();
    let error = rig.reopened().open_layer(b.id).unwrap_err();
    assert!(error.to_string().contains("wrong name"), "{error}");
}
