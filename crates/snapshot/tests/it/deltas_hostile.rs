//! Layers whose bytes have all their checksums, and say of their bases what cannot be: each is refused, by whoever opens or reads it and by verify, and the collection goes on.

use cowslip_block::BlockSize;
use cowslip_snapshot::LayerId;
use cowslip_snapshot::gc::collect;
use cowslip_snapshot::verify::{Depth, verify, verify_store};
use uuid::Uuid;

use crate::deltas::{edited, layer, noisy, read};
use crate::made::Place;
use crate::rig::CountingHost;

/// An object of these parts, with all checksums right.
struct Crafted {
    id: Uuid,
    blocks: u64,
    version: u32,
    frames: Vec<(u8, Vec<u8>)>,
    bases: Vec<Uuid>,
    table: Vec<u8>,
}

impl Crafted {
    fn bytes(&self) -> Vec<u8> {
        let mut out: Vec<u8> = self.frames.iter().flat_map(|(_, f)| f.clone()).collect();
        let index_at = out.len() as u64;
        let mut tables = Vec::new();
        for (kind, frame) in &self.frames {
            let word = u32::from(*kind) << 24 | u32::try_from(frame.len()).unwrap();
            tables.extend(word.to_le_bytes());
            tables.extend(crc32c::crc32c(frame).to_le_bytes());
        }
        self.bases
            .iter()
            .for_each(|id| tables.extend(id.as_bytes()));
        tables.extend(&self.table);
        out.extend(&tables);
        let mut footer = Vec::new();
        footer.extend(self.id.as_bytes());
        footer.extend(self.blocks.to_le_bytes());
        footer.extend(512u32.to_le_bytes());
        footer.extend(128u32.to_le_bytes());
        footer.extend(index_at.to_le_bytes());
        footer.extend(crc32c::crc32c(&tables).to_le_bytes());
        footer.extend(u32::try_from(self.bases.len()).unwrap().to_le_bytes());
        footer.extend(self.version.to_le_bytes());
        footer.extend(crc32c::crc32c(&footer).to_le_bytes());
        footer.extend(b"cowslipL");
        [out, footer].concat()
    }
}

/// A layer of 8 deltas, and what it may say of its bases.
#[test]
fn objects_that_say_what_cannot_be_are_refused() {
    let (place, maker) = noisy();
    let (base, first) = (layer(&maker, "noisy"), layer(&maker, "noisier"));
    let path = format!("layers/{first}");
    let whole = place.read(&path).unwrap();
    let index_at = usize::try_from(u64::from_le_bytes(
        whole[whole.len() - 32..][..8].try_into().unwrap(),
    ))
    .unwrap();
    // Number 1, where it was expected, eight times.
    let good = Crafted {
        id: first.0,
        blocks: 8,
        version: 2,
        frames: vec![(2, whole[..index_at].to_vec())],
        bases: vec![base.0],
        table: [1, 0].repeat(8),
    };
    assert!(good.bytes() == whole, "the table is as it is described");
    let gone = Uuid::from_u128(0xdead);
    type Change<'a> = &'a dyn Fn(&mut Crafted);
    let opens: [(&str, Change<'_>); 13] = [
        ("1 base layers in version 1", &|c| c.version = 1),
        ("0 base layers in version 2", &|c| {
            c.bases.clear();
            c.table.clear();
        }),
        ("257 base layers", &|c| c.bases = vec![c.bases[0]; 257]),
        ("is no base of this layer", &|c| c.bases = vec![c.id]),
        ("is no base of this layer", &|c| c.bases = vec![Uuid::nil()]),
        ("is no base of this layer", &|c| {
            c.bases = vec![c.bases[0]; 2]
        }),
        ("listed as a base of nothing", &|c| {
            c.bases.push(Uuid::from_u128(9))
        }),
        ("at most 1 is allowed", &|c| c.table[0] = 2),
        ("is a delta of nothing", &|c| c.table = vec![0; 8]),
        ("ends before", &|c| c.table.truncate(15)),
        ("bytes too many", &|c| c.table.extend([1, 0])),
        ("does not lie between", &|c| c.table = vec![0; 8 * 7 + 1]),
        ("no layer has a block", &|c| {
            c.table = [vec![1, 1], [1, 0].repeat(7)].concat()
        }),
    ];
    let refused = || {
        let store = place.open().unwrap();
        store.open_layer(first).unwrap_err().to_string()
    };
    for (want, change) in opens {
        let mut crafted = Crafted {
            frames: good.frames.clone(),
            bases: good.bases.clone(),
            table: good.table.clone(),
            ..good
        };
        change(&mut crafted);
        place.write(&path, Some(&crafted.bytes()));
        let refused = refused();
        assert!(
            refused.contains(want) && refused.contains(&path),
            "{want}: {refused}"
        );
    }
    // A frame of kind 2 among those of version 1.
    let mut crafted = Crafted {
        version: 1,
        bases: Vec::new(),
        table: Vec::new(),
        frames: good.frames.clone(),
        ..good
    };
    place.write(&path, Some(&crafted.bytes()));
    let refused = refused();
    assert!(refused.contains("unknown kind 2"), "{refused}");
    // A bomb, one that is too short, one that is no zstd: each under its own checksum.
    crafted.version = 2;
    crafted.bases = good.bases.clone();
    crafted.table = good.table.clone();
    let bomb = |len: usize| zstd::bulk::compress(&vec![1; len], 1).unwrap();
    for frame in [bomb(1 << 20), bomb(8 * 512 - 1), vec![7; 40]] {
        crafted.frames = vec![(2, frame)];
        place.write(&path, Some(&crafted.bytes()));
        refused_by_all(&place, &path);
    }
    // Bases that are none: past the end of their layer, in a layer that is not there, deltas themselves.
    let frames = good.frames.clone();
    let other = other_deltas(&place);
    let cases = [
        (
            vec![base.0],
            [vec![1, 200, 1], [1, 0].repeat(7)].concat(),
            &path,
        ),
        (vec![gone], good.table.clone(), &format!("layers/{gone}")),
        (vec![other.0], good.table.clone(), &path),
    ];
    for (bases, table, blamed) in cases {
        let crafted = Crafted {
            bases,
            table,
            frames: frames.clone(),
            ..good
        };
        place.write(&path, Some(&crafted.bytes()));
        refused_by_all(&place, blamed);
    }
    // Two that are made over each other.
    let cyclic = |id: LayerId, over: LayerId| Crafted {
        id: id.0,
        bases: vec![over.0],
        frames: frames.clone(),
        table: good.table.clone(),
        ..good
    };
    place.write(&path, Some(&cyclic(first, other).bytes()));
    place.write(
        &format!("layers/{other}"),
        Some(&cyclic(other, first).bytes()),
    );
    refused_by_all(&place, &path);
}

/// Another layer of 8 deltas, that nobody needs.
fn other_deltas(place: &Place) -> LayerId {
    let store = place.open().unwrap();
    let (lease, size) = (store.lease().unwrap(), BlockSize::new(512).unwrap());
    let base = store.resolve(&"noisy".parse().unwrap()).unwrap();
    let base = base.meta().own_layer.unwrap();
    let mut writer = store.layer_writer(&lease, size).unwrap();
    for block in 0..8 {
        let over = store.base_of(base, block, size).unwrap().unwrap();
        writer
            .push_over(&edited(over.bytes(), 50, 2), &over)
            .unwrap();
    }
    writer.finish().unwrap().id
}

/// A reader, both kinds of verification, and a collection that goes on.
fn refused_by_all(place: &Place, blamed: &str) {
    let store = place.open().unwrap();
    let header = store.resolve(&"noisier".parse().unwrap()).unwrap();
    let said = read(&store, &header).unwrap_err();
    assert!(said.contains(blamed), "{said}");
    let report = verify(&store, &header, &mut |_, _| {}).unwrap();
    assert!(
        report.damage.iter().any(|d| d.object == blamed),
        "{:?}",
        report.damage
    );
    let host = CountingHost::from(1 << 40);
    let report = verify_store(&*place.root, host, Depth::Decoded, &mut |_, _| {}).unwrap();
    assert!(
        report.damage.iter().any(|d| d.object == blamed),
        "{:?}",
        report.damage
    );
    collect(&store, true, &mut |_, _| {}).unwrap();
}
