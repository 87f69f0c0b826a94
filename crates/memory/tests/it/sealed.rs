//! Memory snapshots beside a stupid twin: random memories of few different pages, over random parents and disks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, RealDir};
use cowslip_block::{BlockRange, ByteOffset, Device};
use cowslip_memory::seal::{MemoryClasses, MemoryFigures, MemorySpec, PAGE, classes, seal};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{Caches, Header, Image, LayerId, MapRun, Store, StoreError, Target};
use proptest::prelude::*;
use tempfile::TempDir;

const UNIT: usize = 4096;
const PER_FRAME: u64 = 16;

/// A page of each number; 0 is zeros. They differ in one byte only, so that nothing less than all of them decides.
fn page(number: u8) -> Vec<u8> {
    let mut page = vec![u8::from(number > 0); UNIT];
    page[UNIT - 1] = number;
    page
}

fn bytes(pages: &[u8]) -> Vec<u8> {
    pages.iter().flat_map(|number| page(*number)).collect()
}

struct Rig {
    temp: TempDir,
    store: Arc<Store>,
    lease: Lease,
}

/// What a seal gave.
type Sealed = (Arc<Header>, MemoryFigures);

impl Rig {
    fn new() -> Self {
        // In memory where that can be had.
        let temp = match Path::new("/dev/shm") {
            shm if shm.is_dir() => tempfile::tempdir_in(shm).unwrap(),
            _ => tempfile::tempdir().unwrap(),
        };
        let dir = RealDir::open_or_create(&temp.path().join("store")).unwrap();
        let store = Store::open_or_create(&dir, Arc::new(RealHost), Caches::default()).unwrap();
        let store = Arc::new(store);
        let lease = store.lease().unwrap();
        Self { temp, store, lease }
    }

    /// A file with these bytes.
    fn file(&self, bytes: &[u8]) -> Arc<dyn cowslip_block::files::File> {
        std::fs::write(self.temp.path().join("file"), bytes).unwrap();
        let dir = RealDir::open(self.temp.path()).unwrap();
        dir.open("file", Access::Read).unwrap()
    }

    /// A disk of these blocks, of one layer.
    fn disk(&self, blocks: &[u8]) -> Arc<Header> {
        let file = self.file(&bytes(blocks));
        let options = ImportOptions {
            block_size: PAGE,
            made_by: "a test".into(),
        };
        let size = (blocks.len() * UNIT) as u64;
        import(
            &self.store,
            &self.lease,
            &*file,
            size,
            &options,
            &mut |_, _| {},
        )
        .unwrap()
    }

    fn seal(
        &self,
        memory: &[u8],
        parent: Option<&Arc<Header>>,
        disk: Option<&Arc<Header>>,
        dirty: Option<&[BlockRange]>,
        disk_frames_max: u64,
    ) -> Result<Sealed, StoreError> {
        let file = self.file(memory);
        let size_bytes = memory.len() as u64;
        let source = SparseFile::new(&*file, size_bytes).unwrap();
        let spec = MemorySpec {
            source: &source,
            size_bytes,
            parent,
            disk,
            dirty,
            disk_frames_max,
        };
        let mut last = None;
        let sealed = seal(&self.store, &self.lease, &spec, &mut |step, done, all| {
            assert!(done <= all, "{step:?}: {done} of {all}");
            last = Some(step);
        });
        assert!(last.is_some() || sealed.is_err() || size_bytes == 0 || dirty.is_some());
        sealed
    }

    #[track_caller]
    fn reads_as(&self, header: &Arc<Header>, want: &[u8]) {
        let report = verify(&self.store, header, &mut |_, _| {}).unwrap();
        assert!(report.is_whole(), "{:?}", report.damage);
        let image: &dyn Device = &Image::new(Arc::clone(&self.store), Arc::clone(header));
        let mut got = vec![7; want.len()];
        image.read_at(ByteOffset(0), &mut got).unwrap();
        assert!(got == want);
    }
}

/// What a page is mapped to.
fn targets(header: &Header) -> Vec<Target> {
    let runs = header.runs(header.blocks()).unwrap();
    let each = |MapRun { blocks, to }: MapRun| (0..blocks.count().0).map(move |by| to.after(by));
    runs.into_iter().flat_map(each).collect()
}

/// What the twin says that each page becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twin {
    Nil,
    Parent,
    Disk(LayerId, u64),
    Payload,
}

/// By comparing each page with each block of the disk.
fn twin(
    memory: &[u8],
    parent: Option<&[u8]>,
    disk: &[(LayerId, u64, u8)],
    dirty: &[bool],
    most: usize,
) -> Vec<Twin> {
    let first = |number: u8| {
        let same = disk.iter().filter(|(_, _, block)| *block == number);
        same.map(|(layer, at, _)| (*layer, *at)).min()
    };
    let mut all: Vec<Twin> = Vec::new();
    let mut frames: BTreeMap<(LayerId, u64), u64> = BTreeMap::new();
    for (i, number) in memory.iter().enumerate() {
        let before = parent.map_or(0, |parent| parent[i]);
        all.push(match first(*number) {
            _ if !dirty[i] => Twin::Parent,
            _ if *number == 0 => Twin::Nil,
            _ if *number == before => Twin::Parent,
            None => Twin::Payload,
            Some((layer, at)) => {
                *frames.entry((layer, at / PER_FRAME)).or_default() += 1;
                Twin::Disk(layer, at)
            }
        });
    }
    let mut frames: Vec<_> = frames.into_iter().collect();
    frames.sort_by_key(|(frame, pages)| (std::cmp::Reverse(*pages), *frame));
    frames.truncate(most);
    for what in &mut all {
        if let Twin::Disk(layer, at) = *what
            && !frames
                .iter()
                .any(|(frame, _)| *frame == (layer, at / PER_FRAME))
        {
            *what = Twin::Payload;
        }
    }
    all
}

#[derive(Clone, Debug)]
struct Case {
    memory: Vec<u8>,
    parent: Option<Vec<u8>>,
    /// Blocks of the disk, and what was written over some of them later.
    disk: Option<(Vec<u8>, Vec<u8>)>,
    dirty: Option<Vec<bool>>,
    most: u64,
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..60).prop_flat_map(|len| {
        let pages = |most: u8| prop::collection::vec(0..most, len);
        let disk = prop::collection::vec(0..14u8, 1..50);
        let over = prop::collection::vec(0..20u8, 0..30);
        let dirty = prop::collection::vec(any::<bool>(), len);
        (
            pages(12),
            prop::option::of(pages(8)),
            prop::option::of((disk, over)),
            prop::option::of(dirty),
            prop_oneof![Just(0u64), 1..4u64, Just(1000)],
        )
            .prop_map(|(memory, parent, disk, dirty, most)| Case {
                // Without a parent there is nothing that a page could have stayed as.
                dirty: dirty.filter(|_| parent.is_some()),
                memory,
                parent,
                disk,
                most,
            })
    })
}

fn runs_of(dirty: &[bool]) -> Vec<BlockRange> {
    let is = dirty.iter().enumerate().filter(|(_, is)| **is);
    is.map(|(i, _)| BlockRange::new(i as u64, i as u64 + 1))
        .collect()
}

/// The disk, whose layers are two where it was written over, with its blocks as they lie in them.
fn disk_of(rig: &Rig, disk: &(Vec<u8>, Vec<u8>)) -> (Arc<Header>, Vec<(LayerId, u64, u8)>) {
    let (first, over) = disk;
    let old = rig.disk(first);
    let mut blocks = first.clone();
    for (block, number) in blocks.iter_mut().zip(over).filter(|(_, over)| **over >= 14) {
        *block = *number;
    }
    // What a memory's seal does to it serves as well as what a session's does.
    let (header, _) = rig
        .seal(&bytes(&blocks), Some(&old), None, None, 0)
        .unwrap();
    let lie = targets(&header).into_iter().zip(&blocks);
    let places = lie.filter_map(|(to, number)| match to {
        Target::Zero => None,
        Target::Layer { id, at } => Some((id, at, *number)),
    });
    let places = places.collect();
    (header, places)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn each_page_becomes_what_the_twin_says(case in case()) {
        let rig = Rig::new();
        let parent = case.parent.as_ref().map(|pages| rig.seal(&bytes(pages), None, None, None, 0).unwrap().0);
        let (disk, places) = case.disk.as_ref().map(|disk| disk_of(&rig, disk)).unzip();
        let places = places.unwrap_or_default();
        let dirty = case.dirty.as_ref().map(|dirty| runs_of(dirty));
        let (header, figures) = rig.seal(&bytes(&case.memory), parent.as_ref(), disk.as_ref(), dirty.as_deref(), case.most).unwrap();
        let is_dirty = case.dirty.clone().unwrap_or(vec![true; case.memory.len()]);
        let twin = twin(&case.memory, case.parent.as_deref(), &places, &is_dirty, usize::try_from(case.most).unwrap());
        // The bytes: the dirty pages are the memory's, the others the parent's.
        let want: Vec<u8> = (0..case.memory.len()).map(|i| match is_dirty[i] {
            true => case.memory[i],
            false => case.parent.as_ref().unwrap()[i],
        }).collect();
        rig.reads_as(&header, &bytes(&want));
        // The map.
        let before = parent.as_ref().map(|parent| targets(parent));
        let own = header.meta().own_layer;
        for (i, (to, want)) in targets(&header).into_iter().zip(&twin).enumerate() {
            match (*want, to) {
                (Twin::Nil, to) => prop_assert_eq!(to, Target::Zero, "page {}", i),
                (Twin::Parent, to) => {
                    let before = before.as_ref().map_or(Target::Zero, |before| before[i]);
                    prop_assert_eq!(to, before, "page {}", i);
                }
                (Twin::Disk(id, at), to) => prop_assert_eq!(to, Target::Layer { id, at }, "page {}", i),
                (Twin::Payload, Target::Layer { id, .. }) => prop_assert_eq!(Some(id), own, "page {}", i),
                (Twin::Payload, Target::Zero) => prop_assert!(false, "page {} is lost", i),
            }
        }
        // The figures.
        let count = |is: &dyn Fn(usize) -> bool| (0..twin.len()).filter(|i| is_dirty[*i] && is(*i)).count() as u64;
        let before = |i: usize| case.parent.as_ref().map_or(0, |parent| parent[i]);
        let frames: std::collections::BTreeSet<_> = twin.iter().filter_map(|t| match t {
            Twin::Disk(layer, at) => Some((*layer, at / PER_FRAME)),
            _ => None,
        }).collect();
        let want = MemoryFigures {
            pages: twin.len() as u64,
            looked_at: count(&|_| true),
            zero: count(&|i| twin[i] == Twin::Nil),
            same: count(&|i| twin[i] == Twin::Parent),
            disk: count(&|i| matches!(twin[i], Twin::Disk(..))),
            // Which of those that are stored are deltas is not the twin's business.
            payload: count(&|i| twin[i] == Twin::Payload) - figures.delta,
            delta: figures.delta,
            delta_bytes: figures.delta_bytes,
            newly_zero: count(&|i| twin[i] == Twin::Nil && before(i) != 0),
            disk_frames: frames.len() as u64,
        };
        prop_assert_eq!(figures, want);
        prop_assert_eq!(figures.looked_at, figures.zero + figures.same + figures.disk + figures.payload + figures.delta);
        let meta = header.meta().figures;
        let stored = want.payload + want.delta;
        prop_assert_eq!((meta.dirty_blocks, meta.zero_blocks, meta.same_blocks), (stored, want.newly_zero, want.same));
        // The classes, from the map alone. A page of the parent's is never the disk's here.
        let found = classes(&header, disk.as_deref()).unwrap();
        let zero = targets(&header).iter().filter(|to| **to == Target::Zero).count() as u64;
        prop_assert_eq!(found, MemoryClasses {
            zero,
            own: stored,
            disk: want.disk,
            older: twin.len() as u64 - zero - stored - want.disk,
        });
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let rig = Rig::new();
    let memory = bytes(&[1, 2, 3, 0]);
    let refused = |memory: &[u8], parent, disk, dirty: Option<&[BlockRange]>| {
        let error = rig.seal(memory, parent, disk, dirty, 10).unwrap_err();
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
        error.to_string()
    };
    assert!(refused(&memory[..5000], None, None, None).contains("5000 bytes are no memory"));
    assert!(refused(&[], None, None, None).contains("0 bytes"));
    let parent = rig.seal(&memory, None, None, None, 0).unwrap().0;
    let said = refused(&memory[..UNIT], Some(&parent), None, None);
    assert!(
        said.contains("4096 bytes") && said.contains("16384"),
        "{said}"
    );
    let run = BlockRange::new;
    for wrong in [
        vec![run(2, 3), run(1, 2)],
        vec![run(0, 2), run(1, 3)],
        vec![run(3, 5)],
        vec![run(1, 1)],
    ] {
        refused(&memory, Some(&parent), None, Some(&wrong));
    }
    // No pages at all are the parent as it was.
    let (same, figures) = rig
        .seal(&memory, Some(&parent), None, Some(&[]), 0)
        .unwrap();
    rig.reads_as(&same, &memory);
    assert_eq!((figures.looked_at, figures.changed()), (0, 0));
    assert!(same.meta().own_layer.is_none());
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// Three generations: what was a delta is one against the same page again.
#[test]
fn pages_like_the_parents_are_deltas() {
    let rig = Rig::new();
    let mut memory = noise(1, 64 * UNIT);
    let seal = |memory: &[u8], parent: Option<&Arc<Header>>| {
        rig.seal(memory, parent, None, None, 0).unwrap()
    };
    let (first, figures) = seal(&memory, None);
    assert_eq!((figures.payload, figures.delta), (64, 0));
    let base = first.meta().own_layer.unwrap();
    let mut parent = first;
    for round in 0..3 {
        // 40 pages with 16 bytes of their own, 5 that are others, one that is zeros.
        for n in 0..40 {
            memory[n * UNIT + 100 * round..][..16].fill(u8::try_from(round).unwrap());
        }
        memory[40 * UNIT..45 * UNIT].copy_from_slice(&noise(50 + round as u64, 5 * UNIT));
        memory[45 * UNIT..46 * UNIT].fill(0);
        let (header, figures) = seal(&memory, Some(&parent));
        assert_eq!((figures.payload, figures.delta), (5, 40), "{figures:?}");
        assert!(
            figures.delta_bytes < 5 * UNIT as u64 + 40 * 150,
            "{figures:?}"
        );
        assert_eq!(header.meta().figures.dirty_blocks, 45);
        assert_eq!(classes(&header, None).unwrap().own, 45);
        rig.reads_as(&header, &memory);
        let own = header.meta().own_layer.unwrap();
        assert_eq!(rig.store.open_layer(own).unwrap().bases(), [base]);
        parent = header;
    }
    // A page that stands alone in a frame of its own kind is a base as any other.
    let more: Vec<u8> = [memory.clone(), noise(9, 16 * UNIT)].concat();
    let (alone, _) = seal(&more, None);
    let mut other = more.clone();
    other[70 * UNIT] ^= 1;
    let (header, figures) = seal(&other, Some(&alone));
    assert_eq!((figures.payload, figures.delta), (0, 1));
    rig.reads_as(&header, &other);
}

/// What is damaged of the disk is not pointed at, and what is of the parent is stored again.
#[test]
fn what_cannot_be_read_is_payload() {
    let rig = Rig::new();
    let memory = bytes(&[1, 2, 3, 0]);
    let disk = rig.disk(&[1, 2, 3]);
    let parent = rig.seal(&memory, None, None, None, 0).unwrap().0;
    let of = |header: &Header| header.meta().own_layer.unwrap().to_string();
    for layer in [of(&disk), of(&parent)] {
        let path = rig.temp.path().join("store/layers").join(layer);
        let mut damaged = std::fs::read(&path).unwrap();
        damaged[0] ^= 1;
        std::fs::write(&path, damaged).unwrap();
    }
    let fresh = RealDir::open(&rig.temp.path().join("store")).unwrap();
    let rig = Rig {
        store: Arc::new(Store::open(&fresh, Arc::new(RealHost), Caches::default()).unwrap()),
        ..rig
    };
    let parent = rig.store.open_header(parent.id()).unwrap();
    let disk = rig.store.open_header(disk.id()).unwrap();
    let (header, figures) = rig
        .seal(&memory, Some(&parent), Some(&disk), None, 10)
        .unwrap();
    assert_eq!((figures.payload, figures.disk, figures.same), (3, 0, 0));
    rig.reads_as(&header, &memory);
}
