//! A layer object: opened, and every frame read.
//!
//! ```text
//! input  0 how: 0 as it is, else with right ids and checksums   1 the object
//! ```

use std::sync::Arc;

use cowslip_block::BlockSize;
use cowslip_block::files::Access;
use cowslip_sim::MemoryFs;
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::{Caches, Layer, LayerId, Store};
use uuid::Uuid;

use crate::input::{Input, put_u32, u32_at, u64_at};

const ID: u128 = 0xc057_119b_0000_4000_8000_0000_0000_0002;
const FOOTER: usize = 64;

/// Opens and reads.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let right = input.byte() != 0;
    let mut object = input.0.to_vec();
    if right {
        make_right(&mut object);
    }
    let fs = MemoryFs::new();
    let file = fs.root().create("layer").expect("a new file");
    file.write_at(&object, 0).expect("room in memory");
    let file = fs.root().open("layer", Access::Read).expect("just made");
    let Ok(layer) = Layer::open(file, LayerId(Uuid::from_u128(ID))) else {
        return;
    };
    assert_eq!(layer.object_bytes(), object.len() as u64);
    let mut blocks = 0;
    for frame in 0..layer.frames() {
        let Ok(payload) = layer.read_frame(frame) else {
            continue;
        };
        let unit = layer.block_size().bytes_usize();
        assert!(payload.len().is_multiple_of(unit) && !payload.is_empty());
        blocks += (payload.len() / unit) as u64;
    }
    assert!(blocks <= layer.blocks().0);
    assert!(layer.read_frame(layer.frames()).is_err());
}

/// Footer, index and frames fit their checksums, as far as they can be found.
fn make_right(object: &mut [u8]) {
    let Some(footer_at) = object.len().checked_sub(FOOTER) else {
        return;
    };
    let index_at = usize::try_from(u64_at(object, footer_at + 32)).unwrap_or(usize::MAX);
    if index_at <= footer_at {
        let mut frame_at = 0;
        for entry in (index_at..footer_at.saturating_sub(7)).step_by(8) {
            let len = (u32_at(object, entry) & 0xff_ffff) as usize;
            let Some(frame) = object.get(frame_at..frame_at + len) else {
                break;
            };
            let crc = crc32c::crc32c(frame);
            put_u32(object, entry + 4, crc);
            frame_at += len;
        }
        let crc = crc32c::crc32c(&object[index_at..footer_at]);
        put_u32(object, footer_at + 40, crc);
    }
    let footer = &mut object[footer_at..];
    footer[..16].copy_from_slice(&ID.to_be_bytes());
    put_u32(footer, 44, 0);
    put_u32(footer, 48, 1);
    let crc = crc32c::crc32c(&footer[..52]);
    put_u32(footer, 52, crc);
    footer[56..].copy_from_slice(b"cowslipL");
}

/// Layers of one frame and of three, of what compresses and of what does not; small blocks, large ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let noise = |len: usize| {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let next = move |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()[3]
        };
        (0..len).map(next).collect::<Vec<u8>>()
    };
    let mixed: Vec<u8> = [noise(512), vec![3; 70_000 - 70_000 % 512]].concat();
    [
        (4096, vec![1; 4096]),
        (512, noise(1024)),
        (512, mixed),
        (65536, vec![5; 1 << 17]),
    ]
    .iter()
    .map(|(block_bytes, payload)| {
        let fs = MemoryFs::new();
        let store = Store::open_or_create(&*fs.root(), Arc::new(RealHost), Caches::default());
        let size = BlockSize::new(*block_bytes).expect("a block size");
        let store = store.expect("a store");
        let lease = store.lease().expect("a lease");
        let mut writer = store.layer_writer(&lease, size).expect("a writer");
        writer.push(payload).expect("room");
        let id = writer.finish().expect("room").id;
        let layers = fs.root().open_dir("layers").expect("a store has it");
        let file = layers
            .open(&id.0.to_string(), Access::Read)
            .expect("just made");
        let mut seed = vec![1];
        seed.extend(cowslip_block::files::read_all(&*file, 1 << 20).expect("just made"));
        seed
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_layers() {
        for seed in seeds() {
            let mut object = seed[1..].to_vec();
            make_right(&mut object);
            let fs = MemoryFs::new();
            let file = fs.root().create("layer").unwrap();
            file.write_at(&object, 0).unwrap();
            let layer = Layer::open(file, LayerId(Uuid::from_u128(ID))).unwrap();
            (0..layer.frames()).for_each(|n| drop(layer.read_frame(n).unwrap()));
        }
    }
}
