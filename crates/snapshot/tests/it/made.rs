//! A small store in memory that has one of everything, made beside an oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use cowslip_block::files::{Access, Dir, read_all};
use cowslip_block::{BlockIndex, BlockRange, BlockSize};
use cowslip_sim::MemoryFs;
use cowslip_snapshot::roots::{Lease, SessionRecord};
use cowslip_snapshot::verify::{Depth, StoreReport, verify_store};
use cowslip_snapshot::{Header, HeaderSpec, MapRun, Part, Parts, Store, Target};
use uuid::Uuid;

use crate::rig::{CountingHost, SMALL, noise, run, spec};

pub(crate) const BLOCK: usize = 512;
const DIRS: [&str; 4] = ["headers", "layers", "sessions", "snapshots"];

/// The files of a store, by path, and what its snapshots read as.
#[derive(Clone, Default)]
pub(crate) struct Made {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) images: BTreeMap<String, Vec<u8>>,
}

/// A store in memory.
pub(crate) struct Place {
    pub(crate) root: Arc<dyn Dir>,
}

impl Place {
    pub(crate) fn of(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let root = MemoryFs::new().root();
        for dir in DIRS.iter().chain(&["tmp", "leases"]) {
            root.create_dir(dir).unwrap();
        }
        let place = Self { root };
        for (path, bytes) in files {
            place.write(path, Some(bytes));
        }
        place
    }

    pub(crate) fn dir<'a>(&self, path: &'a str) -> (Arc<dyn Dir>, &'a str) {
        match path.split_once('/') {
            Some((dir, name)) => (self.root.open_dir(dir).unwrap(), name),
            None => (Arc::clone(&self.root), path),
        }
    }

    /// Puts bytes there, or takes the file away.
    pub(crate) fn write(&self, path: &str, bytes: Option<&[u8]>) {
        let (dir, name) = self.dir(path);
        drop(dir.remove(name));
        if let Some(bytes) = bytes {
            dir.create(name).unwrap().write_at(bytes, 0).unwrap();
        }
    }

    pub(crate) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let (dir, name) = self.dir(path);
        let file = dir.open(name, Access::Read).ok()?;
        Some(read_all(&*file, 1 << 30).unwrap())
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut paths = vec!["store".to_owned()];
        for dir in DIRS {
            let names = self.root.open_dir(dir).unwrap().list().unwrap();
            paths.extend(names.into_iter().map(|name| format!("{dir}/{name}")));
        }
        let there = paths
            .into_iter()
            .filter_map(|path| Some((self.read(&path)?, path)));
        there.map(|(bytes, path)| (path, bytes)).collect()
    }

    pub(crate) fn tmp_is_empty(&self) -> bool {
        self.root
            .open_dir("tmp")
            .unwrap()
            .list()
            .unwrap()
            .is_empty()
    }

    pub(crate) fn verify(&self) -> StoreReport {
        let host = CountingHost::from(1 << 40);
        verify_store(&*self.root, host, Depth::Stored, &mut |done, all| {
            assert!(done <= all)
        })
        .unwrap()
    }

    pub(crate) fn open(&self) -> Result<Arc<Store>, cowslip_snapshot::StoreError> {
        Store::open(&*self.root, CountingHost::from(1 << 32), SMALL).map(Arc::new)
    }
}

/// Text, which compresses.
pub(crate) fn text(seed: u64, blocks: usize) -> Vec<u8> {
    let line = |i: usize| format!("{seed} is the seed, and {} is the line; ", i % 97);
    let mut out: Vec<u8> = (0..)
        .flat_map(|i| line(i).into_bytes())
        .take(blocks * BLOCK)
        .collect();
    out.truncate(blocks * BLOCK);
    out
}

/// Makes snapshots one by one, beside an oracle.
pub(crate) struct Maker {
    pub(crate) store: Arc<Store>,
    made: Made,
}

impl Maker {
    pub(crate) fn new(place: &Place) -> Self {
        let store = Store::open_or_create(&*place.root, CountingHost::from(1), SMALL).unwrap();
        Self {
            store: Arc::new(store),
            made: Made::default(),
        }
    }

    /// Writes at blocks (none for a hole), over a parent of this name, as a snapshot of that name.
    pub(crate) fn take(
        &mut self,
        parent: Option<&str>,
        name: &str,
        blocks: usize,
        writes: &[(u64, Option<Vec<u8>>)],
    ) -> Arc<Header> {
        let lease = self.store.lease().unwrap();
        let (header, image) = self.put(&lease, parent, blocks, writes, &[]);
        let text = name.parse().unwrap();
        self.store.commit(&lease, &text, &header, false).unwrap();
        self.made.images.insert(name.to_owned(), image);
        header
    }

    /// The same, with some bytes of these blocks changed besides: they are stored as deltas of what the parent has.
    pub(crate) fn take_over(
        &mut self,
        parent: &str,
        name: &str,
        blocks: usize,
        writes: &[(u64, Option<Vec<u8>>)],
        deltas: &[u64],
    ) -> Arc<Header> {
        let lease = self.store.lease().unwrap();
        let (header, image) = self.put(&lease, Some(parent), blocks, writes, deltas);
        let text = name.parse().unwrap();
        self.store.commit(&lease, &text, &header, false).unwrap();
        self.made.images.insert(name.to_owned(), image);
        header
    }

    /// Nothing but these.
    pub(crate) fn take_deltas(&mut self, parent: &str, name: &str, deltas: &[u64]) {
        let blocks = self.made.images[parent].len() / BLOCK;
        self.take_over(parent, name, blocks, &[], deltas);
    }

    /// An image with no more than these blocks of another.
    pub(crate) fn take_part(&mut self, of: &str, name: &str, blocks: BlockRange) {
        let lease = self.store.lease().unwrap();
        let whole = self.store.resolve(&of.parse().unwrap()).unwrap();
        let changes = whole.runs(blocks).unwrap();
        let mut image = vec![0; self.made.images[of].len()];
        let at = |block: BlockIndex| usize::try_from(block.0).unwrap() * BLOCK;
        let bytes = at(blocks.start)..at(blocks.end);
        image[bytes.clone()].copy_from_slice(&self.made.images[of][bytes]);
        let spec = HeaderSpec {
            block_size: whole.block_size(),
            ..spec(None, whole.size_bytes(), &changes)
        };
        let header = self.store.put_header(&lease, &spec).unwrap();
        let text = name.parse().unwrap();
        self.store.commit(&lease, &text, &header, false).unwrap();
        self.made.images.insert(name.to_owned(), image);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.store.remove(&name.parse().unwrap()).unwrap();
        self.made.images.remove(name);
    }

    /// What each snapshot reads as.
    pub(crate) fn images(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.made.images
    }

    /// A snapshot of all three parts: this disk, and a new memory and a new state.
    fn take_parts(&mut self, disk: &str, name: &str) {
        let lease = self.store.lease().unwrap();
        let disk_header = self.store.resolve(&disk.parse().unwrap()).unwrap();
        let memory = [(3, Some(text(70, 4))), (9, Some(noise(7, BLOCK)))];
        let (memory, memory_bytes) = self.put(&lease, None, 20, &memory, &[]);
        let (state, state_bytes) = self.put(&lease, None, 2, &[(0, Some(text(71, 2)))], &[]);
        let parts = Parts::one(Part::Disk, &*disk_header)
            .with(Part::Memory, &*memory)
            .with(Part::State, &*state);
        let named = name.parse().unwrap();
        self.store
            .commit_parts(&lease, &named, &parts, false)
            .unwrap();
        let images = &mut self.made.images;
        let disk_bytes = images[disk].clone();
        for (part, bytes) in [
            (Part::Disk, disk_bytes),
            (Part::Memory, memory_bytes),
            (Part::State, state_bytes),
        ] {
            images.insert(format!("{name}:{part}"), bytes);
        }
    }

    /// The header of such an image, and what it reads as.
    fn put(
        &self,
        lease: &Lease,
        parent: Option<&str>,
        blocks: usize,
        writes: &[(u64, Option<Vec<u8>>)],
        deltas: &[u64],
    ) -> (Arc<Header>, Vec<u8>) {
        let parent_header = parent.map(|p| self.store.resolve(&p.parse().unwrap()).unwrap());
        let mut image = parent.map_or(Vec::new(), |p| self.made.images[p].clone());
        image.resize(blocks * BLOCK, 0);
        let size = BlockSize::new(512).unwrap();
        let mut writer = self.store.layer_writer(lease, size).unwrap();
        let mut changes: Vec<MapRun> = Vec::new();
        for (start, bytes) in writes {
            let at = usize::try_from(*start).unwrap() * BLOCK;
            let (len, to) = match bytes {
                None => (BLOCK, Target::Zero),
                Some(bytes) => {
                    let at = writer.push(bytes).unwrap();
                    (
                        bytes.len(),
                        Target::Layer {
                            id: writer.id(),
                            at,
                        },
                    )
                }
            };
            let new = bytes.clone().unwrap_or(vec![0; len]);
            image[at..at + len].copy_from_slice(&new);
            changes.push(run(*start, start + (len / BLOCK) as u64, to));
        }
        // Not the same ones twice over.
        let other = u8::try_from(self.made.images.len() % 251).unwrap();
        for block in deltas {
            let before = BlockRange::new(*block, block + 1);
            let before = parent_header.as_ref().unwrap().runs(before).unwrap()[0].to;
            let Target::Layer { id, at } = before else {
                panic!("a delta of zeros");
            };
            let base = self.store.base_of(id, at, size).unwrap().unwrap();
            let at = usize::try_from(*block).unwrap() * BLOCK;
            image[at + 9..at + 12].fill(other);
            let to = Target::Layer {
                id: writer.id(),
                at: writer.push_over(&image[at..at + BLOCK], &base).unwrap(),
            };
            changes.push(run(*block, block + 1, to));
        }
        changes.sort_by_key(|run| run.blocks.start);
        let layer = (writer.blocks().0 > 0).then(|| writer.finish().unwrap());
        let spec = HeaderSpec {
            layer,
            block_size: size,
            ..spec(parent_header.as_deref(), image.len() as u64, &changes)
        };
        (self.store.put_header(lease, &spec).unwrap(), image)
    }

    pub(crate) fn session(&self, id: u128, header: &Header) {
        let record = SessionRecord {
            version: 1,
            id: Uuid::from_u128(id),
            path: "somewhere".into(),
            directory: None,
            temporary: false,
            headers: vec![header.id()],
            moved: None,
        };
        self.store.put_session(&record).unwrap();
    }

    pub(crate) fn done(self, place: &Place) -> Made {
        Made {
            files: place.files(),
            ..self.made
        }
    }
}

/// One of everything: a template with a compressed frame and a raw one, two forks, a chain of three,
/// two sessions, a name that stands for the same as another, one with all three parts, a header that no name leads to, one whose layer is made over another's.
pub(crate) fn everything() -> Made {
    let place = Place::of(&BTreeMap::new());
    let mut maker = Maker::new(&place);
    let template = [
        (1, Some(text(1, 128))),
        (130, Some(noise(1, BLOCK))),
        (280, Some(noise(2, 64))),
    ];
    let template = template.map(|(at, bytes)| {
        (
            at,
            bytes.map(|mut b| {
                b.resize(b.len().next_multiple_of(BLOCK), 7);
                b
            }),
        )
    });
    let base = maker.take(None, "template", 300, &template);
    let same = text(5, 3);
    maker.take(
        Some("template"),
        "fork-a",
        300,
        &[(7, Some(same.clone())), (20, None)],
    );
    let b = [(7, Some(same)), (260, Some(text(6, 2)))];
    let fork = maker.take(Some("template"), "fork-b", 300, &b);
    for (i, (from, to)) in [("template", "one"), ("one", "two"), ("two", "three")]
        .into_iter()
        .enumerate()
    {
        let at = 256 * i as u64;
        let writes = [
            (at + 3, Some(text(at, 1))),
            (at + 5, None),
            (at + 9, Some(text(at + 1, 1))),
        ];
        maker.take(Some(from), to, 300 + 300 * i, &writes);
    }
    maker.session(1, &base);
    maker.session(2, &fork);
    maker.store.remove(&"two".parse().unwrap()).unwrap();
    maker.made.images.remove("two");
    let lease = maker.store.lease().unwrap();
    maker
        .store
        .commit(&lease, &"again".parse().unwrap(), &fork, false)
        .unwrap();
    maker
        .made
        .images
        .insert("again".to_owned(), maker.made.images["fork-b"].clone());
    drop(lease);
    maker.take_parts("fork-b", "vm");
    maker.take(None, "noisy", 10, &[(2, Some(noise(8, 3 * BLOCK)))]);
    maker.take_deltas("noisy", "noisier", &[2, 3, 4]);
    maker.done(&place)
}
