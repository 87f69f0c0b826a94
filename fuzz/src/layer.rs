//! A layer object: opened, and every frame read: those that stand alone by themselves, deltas through a store that has a layer for them to be made against.
//!
//! ```text
//! input  0 how: 0 as it is, else with right ids and checksums   1 the object
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowslip_block::files::Access;
use cowslip_block::{BlockRange, BlockSize};
use cowslip_sim::MemoryFs;
use cowslip_snapshot::host::{Host, RealHost};
use cowslip_snapshot::layer::blocks_per_frame;
use cowslip_snapshot::{
    Caches, DiffFigures, HeaderSpec, Image, Layer, LayerId, MapRun, Store, Target,
};
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
    if !layer.bases().is_empty() {
        read_deltas(&object, &layer);
    }
}

/// Blocks of each frame, as an image would read them; and what a next layer would be made against.
fn read_deltas(object: &[u8], layer: &Layer) {
    let fs = MemoryFs::new();
    let store = Arc::new(with_base(&fs));
    let layers = fs.root().open_dir("layers").expect("a store has it");
    let file = layers.create(&layer.id().to_string()).expect("a new file");
    file.write_at(object, 0).expect("room in memory");
    let size = layer.block_size();
    let per_frame = blocks_per_frame(size);
    let spec = HeaderSpec {
        parent: None,
        size_bytes: u64::from(size.bytes()),
        block_size: size,
        changes: &[],
        layer: None,
        figures: DiffFigures::default(),
        made_by: "a fuzzer",
    };
    let lease = store.lease().expect("a lease");
    let header = store.put_header(&lease, &spec).expect("a header");
    let image = Image::new(Arc::clone(&store), header);
    for at in (0..layer.blocks().0).step_by(usize::try_from(per_frame).expect("a few")) {
        let blocks = BlockRange::new(0, 1);
        let to = Target::Layer { id: layer.id(), at };
        drop(image.piece(MapRun { blocks, to }));
        if let Ok(Some(base)) = store.base_of(layer.id(), at, size) {
            assert_eq!(base.bytes().len(), size.bytes_usize());
        }
    }
}

/// Ids that count, so that an input can name the base.
#[derive(Debug)]
struct Counting(AtomicU64);

impl Host for Counting {
    fn now_unix_ms(&self) -> u64 {
        0
    }

    fn boot_id(&self) -> [u8; 16] {
        [7; 16]
    }

    fn new_uuid(&self) -> Uuid {
        Uuid::from_u64_pair(0xba5e, self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A store with one layer of 40 blocks of 4 KiB.
fn with_base(fs: &MemoryFs) -> Store {
    let host = Arc::new(Counting(AtomicU64::new(1)));
    let store = Store::open_or_create(&*fs.root(), host, Caches::default()).expect("a store");
    let lease = store.lease().expect("a lease");
    let size = BlockSize::DISK;
    let mut writer = store.layer_writer(&lease, size).expect("a writer");
    writer.push(&noise(40 * 4096)).expect("room");
    writer.finish().expect("room");
    store
}

/// What the store has besides its base: deltas, and a block without one in their midst.
fn delta_seed() -> Vec<u8> {
    let fs = MemoryFs::new();
    let store = with_base(&fs);
    let layers = fs.root().open_dir("layers").expect("a store has it");
    let base = layers.list().expect("names")[0].parse().expect("an id");
    let lease = store.lease().expect("a lease");
    let size = BlockSize::DISK;
    let mut writer = store.layer_writer(&lease, size).expect("a writer");
    for block in (0..40).step_by(2) {
        let base = store
            .base_of(LayerId(base), block, size)
            .expect("it is there");
        let base = base.expect("it stands alone");
        let mut bytes = base.bytes().to_vec();
        bytes[100..110].fill(3);
        match block {
            8 => writer.push(&[5; 4096]),
            _ => writer.push_over(&bytes, &base),
        }
        .expect("room");
    }
    let made = writer.finish().expect("room");
    assert!(made.delta_blocks.0 > 0);
    let file = layers.open(&made.id.to_string(), Access::Read);
    let mut seed = vec![1];
    let file = file.expect("just made");
    seed.extend(cowslip_block::files::read_all(&*file, 1 << 20).expect("just made"));
    seed
}

fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let next = move |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    (0..len).map(next).collect()
}

/// Footer, index and frames fit their checksums, as far as they can be found.
fn make_right(object: &mut [u8]) {
    let Some(footer_at) = object.len().checked_sub(FOOTER) else {
        return;
    };
    let index_at = usize::try_from(u64_at(object, footer_at + 32)).unwrap_or(usize::MAX);
    if index_at <= footer_at {
        let mut frame_at = 0;
        let blocks = u64_at(object, footer_at + 16);
        let per_frame = u64::from(u32_at(object, footer_at + 28)).max(1);
        let frames = usize::try_from(blocks.div_ceil(per_frame)).unwrap_or(usize::MAX);
        for entry in (index_at..footer_at.saturating_sub(7))
            .step_by(8)
            .take(frames)
        {
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
    // Version 2 is that of layers with bases.
    let has_bases = u32_at(footer, 44) > 0;
    put_u32(footer, 48, 1 + u32::from(has_bases));
    let crc = crc32c::crc32c(&footer[..52]);
    put_u32(footer, 52, crc);
    footer[56..].copy_from_slice(b"cowslipL");
}

/// Layers of one frame and of three, of what compresses and of what does not; small blocks, large ones; one with deltas.
pub fn seeds() -> Vec<Vec<u8>> {
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
    .chain([delta_seed()])
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
            match layer.bases().is_empty() {
                true => (0..layer.frames()).for_each(|n| drop(layer.read_frame(n).unwrap())),
                false => read_deltas(&object, &layer),
            }
        }
    }
}
