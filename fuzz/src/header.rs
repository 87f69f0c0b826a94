//! A header object: opened, and its map walked.
//!
//! ```text
//! input  0 how: 0 as it is, 2 made right in version 2, else in version 1   then, as it is: the object
//!                                             made right: number of nodes (at most 8),
//!                                             each node (u16 length, bytes), metadata
//! ```
//!
//! Made right: nodes are laid end to end, each 16 bytes `PLACE` + k in one become the hash of node k,
//! the root points at the last node, ids, checksums and footer fit.

use std::ops::ControlFlow;

use cowslip_block::{BlockRange, BlockSize};
use cowslip_sim::MemoryFs;
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::{Caches, HeaderId, Store, StoreError};
use std::sync::Arc;
use uuid::Uuid;

use crate::input::{Input, push_part, put_u32, put_u64};

const ID: u128 = 0xc057_119b_0000_4000_8000_0000_0000_0001;
const PLACE: [u8; 15] = *b"hash of a node:";
const NODES_MAX: u8 = 8;
const ROOT_AT: usize = 108;
const META_MIN: usize = 154;
/// What version 2 has at the end of its metadata.
const ORIGIN: usize = 16;
/// A walk is stopped after so many runs: a small map of a large disk may well have millions.
const RUNS_MAX: usize = 10_000;

/// Opens and walks.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let object = match input.byte() {
        0 => input.0.to_vec(),
        how => object(&mut input, how == 2),
    };
    let fs = MemoryFs::new();
    let caches = Caches {
        frame_bytes: 0,
        node_bytes: 1 << 20,
    };
    let store = Store::open_or_create(&*fs.root(), Arc::new(RealHost), caches).expect("a store");
    let id = HeaderId(Uuid::from_u128(ID));
    let headers = fs.root().open_dir("headers").expect("a store has it");
    let file = headers
        .create(&Uuid::from_u128(ID).to_string())
        .expect("a new file");
    file.write_at(&object, 0).expect("room in memory");
    let Ok(header) = store.open_header(id) else {
        return;
    };
    let blocks = header.blocks();
    let mut left = RUNS_MAX;
    let mut at = 0;
    let walked = header.for_each_run(blocks, &mut |run| {
        assert!(
            run.blocks.start.0 >= at && !run.blocks.is_empty(),
            "{run:?} after block {at}"
        );
        assert!(run.blocks.end <= blocks.end, "{run:?} of {blocks:?}");
        at = run.blocks.end.0;
        left -= 1;
        Ok::<_, StoreError>(if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    });
    // Whatever was told, a look at the end of the image agrees that there is an end.
    let last = BlockRange::new(blocks.end.0 - 1, blocks.end.0);
    if let (Ok(_), Ok(runs)) = (walked, header.runs(last)) {
        assert_eq!(
            runs.iter().map(|r| r.blocks.count().0).sum::<u64>(),
            1,
            "{runs:?}"
        );
    }
    drop(header.layers());
    drop(cowslip_snapshot::verify::verify(
        &store,
        &header,
        &mut |_, _| {},
    ));
}

fn hash(bytes: &[u8]) -> [u8; 16] {
    blake3::hash(bytes).as_bytes()[..16]
        .try_into()
        .expect("16 of 32 bytes")
}

fn object(input: &mut Input<'_>, second: bool) -> Vec<u8> {
    let count = input.byte() % (NODES_MAX + 1);
    let mut hashes: Vec<[u8; 16]> = Vec::new();
    let mut out = Vec::new();
    let mut last = (0, 0);
    for _ in 0..count {
        let mut node = input.part().to_vec();
        let mut at = 0;
        while at + 16 <= node.len() {
            let wanted = usize::from(node[at + 15]);
            if node[at..at + 15] == PLACE && wanted < hashes.len() {
                node[at..at + 16].copy_from_slice(&hashes[wanted]);
            }
            at += 1;
        }
        last = (out.len(), node.len());
        hashes.push(hash(&node));
        out.extend(node);
    }
    let mut meta = input.0.to_vec();
    let least = META_MIN + if second { ORIGIN } else { 0 };
    meta.resize(meta.len().clamp(least, least + 64), 0);
    meta[..16].copy_from_slice(&ID.to_be_bytes());
    meta[153] = u8::try_from(meta.len() - least).expect("at most 64");
    if let (2, Some(hash)) = (meta[ROOT_AT], hashes.last()) {
        meta[ROOT_AT + 1..ROOT_AT + 17].copy_from_slice(&ID.to_be_bytes());
        put_u64(&mut meta, ROOT_AT + 17, last.0 as u64);
        put_u32(
            &mut meta,
            ROOT_AT + 25,
            u32::try_from(last.1).expect("a u16"),
        );
        meta[ROOT_AT + 29..ROOT_AT + 45].copy_from_slice(hash);
    }
    let mut footer = [0; 32];
    put_u64(&mut footer, 0, out.len() as u64);
    put_u32(&mut footer, 8, u32::try_from(meta.len()).expect("short"));
    put_u32(&mut footer, 12, crc32c::crc32c(&meta));
    put_u32(&mut footer, 16, if second { 2 } else { 1 });
    let crc = crc32c::crc32c(&footer[..20]);
    put_u32(&mut footer, 20, crc);
    footer[24..].copy_from_slice(b"cowslipH");
    out.extend(meta);
    out.extend(footer);
    out
}

fn metadata(blocks: u64, root_kind: u8) -> Vec<u8> {
    let mut meta = vec![0; META_MIN];
    put_u64(&mut meta, 64, blocks * 4096);
    put_u32(&mut meta, 72, BlockSize::DISK.bytes());
    meta[ROOT_AT] = root_kind;
    meta.extend(b"a seed");
    meta
}

fn leaf() -> Vec<u8> {
    let mut leaf = vec![0, 2];
    leaf.extend([7; 16]);
    leaf.extend([9; 16]);
    // Three runs: gaps and lengths, layers, deltas.
    leaf.extend([3, 0, 9, 5, 0, 100, 19, 0, 1, 0, 20, 0, 3]);
    leaf
}

/// An inner node: its first slots point at node `child` of this object, one more is a run.
fn inner(level: u8, slots: usize, child: u8, child_len: u8, child_at: u8) -> Vec<u8> {
    let mut node = vec![level, 1];
    node.extend([7; 16]);
    node.push(1);
    node.extend(ID.to_be_bytes());
    let kinds = (0..slots).fold(0u64, |k, slot| k | 2 << (2 * slot));
    let kinds = if slots < 32 {
        kinds | 1 << (2 * slots)
    } else {
        kinds
    };
    node.extend(kinds.to_le_bytes());
    for slot in 0..slots {
        // From the end of the last one back to the same place.
        let delta = if slot == 0 {
            i64::from(child_at)
        } else {
            -i64::from(child_len)
        };
        let zigzag = u8::try_from(delta << 1 ^ delta >> 63).expect("short nodes");
        node.extend(if zigzag < 128 {
            vec![zigzag]
        } else {
            vec![zigzag, 1]
        });
        node.push(child_len);
        node.extend(PLACE);
        node.push(child);
    }
    if slots < 32 {
        node.push(84);
    }
    node
}

/// Headers of no node, of one, of a tree, and of a tree that shares every node 32 times.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |nodes: &[Vec<u8>], meta: &[u8]| {
        let mut out = vec![1, u8::try_from(nodes.len()).expect("few")];
        nodes.iter().for_each(|node| push_part(&mut out, node));
        out.extend(meta);
        out
    };
    let leaf = leaf();
    let len = u8::try_from(leaf.len()).expect("short");
    let small = inner(1, 3, 0, len, 0);
    let mut raw = vec![0];
    let whole = seed(std::slice::from_ref(&leaf), &metadata(200, 2));
    raw.extend(object(&mut Input(&whole[1..]), false));
    let mut second = [whole.clone(), ID.to_be_bytes().to_vec()].concat();
    second[0] = 2;
    vec![
        seed(&[], &metadata(100, 0)),
        whole,
        seed(&[leaf.clone(), small.clone()], &metadata(256 * 32, 2)),
        seed(
            &[leaf.clone(), inner(1, 31, 0, len, 0)],
            &metadata(256 * 32, 2),
        ),
        raw,
        second,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_headers() {
        for seed in seeds() {
            let object = match seed[0] {
                0 => seed[1..].to_vec(),
                how => object(&mut Input(&seed[1..]), how == 2),
            };
            let fs = MemoryFs::new();
            let store =
                Store::open_or_create(&*fs.root(), Arc::new(RealHost), Caches::default()).unwrap();
            let headers = fs.root().open_dir("headers").unwrap();
            let file = headers.create(&Uuid::from_u128(ID).to_string()).unwrap();
            file.write_at(&object, 0).unwrap();
            let header = store.open_header(HeaderId(Uuid::from_u128(ID))).unwrap();
            assert!(!header.runs(header.blocks()).unwrap().is_empty());
        }
    }
}
