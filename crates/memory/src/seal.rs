//! [`seal`]: memory that stands still becomes a layer and a header: a part of a snapshot.
//!
//! ```text
//! 1. compare  each page that may have changed, with zeros and with the parent's     (choice.rs: the table)
//! 2. search   the disk that was snapshot with it, for the bytes of those that are new   (disk.rs)
//! 3. store    what the disk does not have: what is not like the parent's first, then deltas; then the header
//! ```
//!
//! The unit is a page of 4 KiB, also where the guest has larger ones: of 2 MiB in which one byte was written, 4 KiB are stored.
//!
//! A page that the disk has is not stored: the memory's map leads to the disk's layer, which is kept by that as by any map. To restore it
//! costs a fetch of that frame, so that no more of them are pointed at than [`MemorySpec::disk_frames_max`].
//!
//! What cannot be read of the parent counts as other than the page: it is stored, and heals that.
//!
//! Deltas are stored behind all others, so that they share frames with one another: a frame with a delta in it is no base for the next snapshot, and costs its bases to
//! read.
//!
//! Memory: 16 bytes for each run of pages that are new or zero, 8 for each that may become a delta, what `disk.rs` says, and what a layer's writer holds.
//!
//! Invariant 6 as everywhere: the layer is durable before the header is begun; the name is the caller's to commit, last. The source is read twice
//! where there is a disk: it stands still, as a paused guest's memory does.

mod storing;

use std::sync::Arc;

use cowslip_block::{BlockCount, BlockIndex, BlockRange, BlockSize, ByteRange, Device};
use cowslip_snapshot::header::Merged;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::{
    DiffFigures, Header, HeaderSpec, Image, LayerSummary, MADE_BY, MapRun, Store, StoreError,
    Target,
};

use self::storing::Storing;
use crate::choice::{Compared, compare, within_budget};
use crate::disk::{DiskBlocks, Wanted};

/// The unit of a memory's map.
pub const PAGE: BlockSize = BlockSize::DISK;
/// Pages that are read, compared and packed at a time.
const BATCH_PAGES: u64 = 64;

/// What is to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct MemorySpec<'a> {
    /// The memory's bytes.
    pub source: &'a SparseFile<'a>,
    /// How many there are.
    pub size_bytes: u64,
    /// The memory that the guest began with.
    pub parent: Option<&'a Arc<Header>>,
    /// The disk that was snapshot with it.
    pub disk: Option<&'a Arc<Header>>,
    /// Pages that may be other than the parent's, in order, none twice; all where that is not known.
    pub dirty: Option<&'a [BlockRange]>,
    /// Frames of the disk that the map may lead to.
    pub disk_frames_max: u64,
}

/// What became of the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFigures {
    /// Of the whole memory.
    pub pages: u64,
    /// That may have changed: each of them is one of the following five.
    pub looked_at: u64,
    /// Zeros.
    pub zero: u64,
    /// Equal to the parent's, and no zeros.
    pub same: u64,
    /// Equal to a block of the disk, and mapped to that.
    pub disk: u64,
    /// Stored as they are.
    pub payload: u64,
    /// Stored as deltas.
    pub delta: u64,
    /// What the deltas take, in bytes: a part of the layer that was stored.
    pub delta_bytes: u64,
    /// Zeros where the parent has other bytes.
    pub newly_zero: u64,
    /// Frames of the disk that the map leads to.
    pub disk_frames: u64,
}

impl MemoryFigures {
    /// Pages that are other than the parent's.
    pub fn changed(&self) -> u64 {
        self.newly_zero + self.disk + self.payload + self.delta
    }
}

/// What is going on, for whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of the memory that were compared.
    Compare,
    /// Bytes of the disk that were searched.
    Search,
    /// Bytes of new pages that were stored, or were found on the disk.
    Store,
}

/// Stores it: the header, which has no name yet. `progress` is told how much of a step is done, and of how much.
///
/// # Errors
/// `Invalid` for memory that is not in whole pages, or not as its parent's; `NoSpace`, `Io`, `Corrupt` where a map is damaged. What was written is an orphan then.
pub fn seal(
    store: &Arc<Store>,
    lease: &Lease,
    spec: &MemorySpec<'_>,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<(Arc<Header>, MemoryFigures), StoreError> {
    check(spec)?;
    let mut sealing = Sealing {
        store,
        spec,
        parent: spec.parent.map(|header| image(store, header)),
        looking: spec.disk.is_some() && spec.disk_frames_max > 0,
        new: Vec::new(),
        zeros: Merged::default(),
        wanted: Wanted::default(),
        figures: MemoryFigures {
            pages: spec.size_bytes / u64::from(PAGE.bytes()),
            ..MemoryFigures::default()
        },
        progress,
    };
    sealing.compare_all()?;
    let (changes, layer) = sealing.store_new(lease)?;
    let mut figures = sealing.figures;
    if let Some(layer) = &layer {
        figures.delta = layer.delta_blocks.0;
        figures.delta_bytes = layer.delta_bytes;
        figures.payload = layer.blocks.0 - figures.delta;
    }
    figures.disk = sealing.new_pages() - figures.payload - figures.delta;
    let header = HeaderSpec {
        parent: spec.parent.map(|header| &**header),
        size_bytes: spec.size_bytes,
        block_size: PAGE,
        changes: &changes,
        layer,
        figures: DiffFigures {
            dirty_blocks: figures.payload + figures.delta,
            zero_blocks: figures.newly_zero,
            same_blocks: figures.same,
        },
        made_by: MADE_BY,
    };
    Ok((store.put_header(lease, &header)?, figures))
}

fn image(store: &Arc<Store>, header: &Arc<Header>) -> Image {
    Image::new(Arc::clone(store), Arc::clone(header))
}

fn check(spec: &MemorySpec<'_>) -> Result<(), StoreError> {
    let invalid = |why: String| Err(StoreError::Invalid(why));
    let (size, page) = (spec.size_bytes, PAGE.bytes());
    if size == 0 || !PAGE.is_aligned(size) {
        return invalid(format!(
            "{size} bytes are no memory in whole pages of {page} bytes"
        ));
    }
    if let Some(parent) = spec.parent
        && (parent.size_bytes() != size || parent.block_size() != PAGE)
    {
        let (had, of) = (parent.size_bytes(), parent.block_size().bytes());
        return invalid(format!(
            "memory of {size} bytes in pages of {page} is not made over one of {had} in pages of {of}"
        ));
    }
    if let Some(disk) = spec.disk.filter(|disk| disk.block_size() != PAGE) {
        let of = disk.block_size().bytes();
        return invalid(format!(
            "the disk is in blocks of {of} bytes, and pages have {page}"
        ));
    }
    let mut end = BlockIndex(0);
    for run in spec.dirty.unwrap_or_default() {
        if run.is_empty() || run.start < end || run.end.0 > size / u64::from(page) {
            return invalid(format!("pages {run:?} are not the next of the memory"));
        }
        end = run.end;
    }
    Ok(())
}

struct Sealing<'a> {
    store: &'a Arc<Store>,
    spec: &'a MemorySpec<'a>,
    parent: Option<Image>,
    /// On the disk as well.
    looking: bool,
    /// Pages with other bytes than the parent's, in order.
    new: Vec<BlockRange>,
    /// What is to be mapped to nil, in order.
    zeros: Merged,
    wanted: Wanted,
    figures: MemoryFigures,
    progress: &'a mut dyn FnMut(Step, u64, u64),
}

impl Sealing<'_> {
    fn compare_all(&mut self) -> Result<(), StoreError> {
        let all = [BlockRange::new(0, self.figures.pages)];
        let dirty = self.spec.dirty.unwrap_or(&all);
        self.figures.looked_at = dirty.iter().map(|run| run.count().0).sum();
        let total = PAGE.bytes_in(BlockCount(self.figures.looked_at));
        let mut done = 0;
        for run in dirty {
            let mut at = run.start.0;
            while at < run.end.0 {
                let data = self.next_data(BlockRange::new(at, run.end.0))?;
                self.zero(BlockRange::new(at, data.start.0))?;
                let batch_end = data.end.0.min(data.start.0 + BATCH_PAGES);
                let batch = BlockRange::new(data.start.0, batch_end);
                self.compare(batch)?;
                done += batch.end.0 - at;
                at = batch.end.0;
                (self.progress)(Step::Compare, done * u64::from(PAGE.bytes()), total);
            }
        }
        Ok(())
    }

    /// The first pages of these that may have bytes; none, at their end, where they are all holes.
    fn next_data(&self, pages: BlockRange) -> Result<BlockRange, StoreError> {
        let bytes = PAGE.bytes_of(pages);
        let data = self.spec.source.next_data(bytes.start.0)?;
        let data = data.map_or(BlockRange::new(0, 0), |data| {
            PAGE.blocks_touched(data.intersect(bytes))
        });
        match data.is_empty() {
            true => Ok(BlockRange::new(pages.end.0, pages.end.0)),
            false => Ok(data),
        }
    }

    fn compare(&mut self, pages: BlockRange) -> Result<(), StoreError> {
        let mut now = vec![0; usize_of(PAGE.bytes_of(pages))];
        let bytes = PAGE.bytes_of(pages);
        self.spec.source.read(bytes.start.0, &mut now)?;
        let before = self.parent_bytes(pages)?;
        let unit = PAGE.bytes_usize();
        for (i, page) in pages.iter().enumerate() {
            let at = i * unit..(i + 1) * unit;
            let before = before.as_ref().map(|before| &before[at.clone()]);
            match compare(&now[at.clone()], before) {
                Compared::Zeros => self.zero(BlockRange::one(page))?,
                Compared::Same => self.figures.same += 1,
                Compared::New => {
                    if self.looking {
                        self.wanted.add(page.0, &now[at]);
                    }
                    match self.new.last_mut() {
                        Some(last) if last.end == page => last.end.0 += 1,
                        _ => self.new.push(BlockRange::one(page)),
                    }
                }
            }
        }
        Ok(())
    }

    /// The parent's; none where it is zeros, or cannot be read.
    fn parent_bytes(&self, pages: BlockRange) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        let runs = parent.header().runs(pages)?;
        if pages.is_empty() || runs.iter().all(|run| run.to == Target::Zero) {
            return Ok(None);
        }
        let bytes = PAGE.bytes_of(pages);
        let mut before = vec![0; usize_of(bytes)];
        let parent: &dyn Device = parent;
        let read = parent.read_at(bytes.start, &mut before);
        Ok(read.is_ok().then_some(before))
    }

    fn new_pages(&self) -> u64 {
        self.new.iter().map(|run| run.count().0).sum()
    }

    fn zero(&mut self, pages: BlockRange) -> Result<(), StoreError> {
        self.figures.zero += pages.count().0;
        let Some(parent) = self.spec.parent.filter(|_| !pages.is_empty()) else {
            return Ok(());
        };
        for run in parent.runs(pages)? {
            if run.to != Target::Zero {
                self.figures.newly_zero += run.blocks.count().0;
                self.zeros.push(MapRun {
                    blocks: run.blocks,
                    to: Target::Zero,
                });
            }
        }
        Ok(())
    }

    /// All changes, in order, and the layer with what is new.
    fn store_new(
        &mut self,
        lease: &Lease,
    ) -> Result<(Vec<MapRun>, Option<LayerSummary>), StoreError> {
        let disk = match self.spec.disk {
            Some(disk) if self.looking && !self.new.is_empty() => {
                let blocks = DiskBlocks::of(disk)?;
                let mut tell = |done, all| (self.progress)(Step::Search, done, all);
                let image = image(self.store, disk);
                self.wanted
                    .find(&blocks, &image, self.spec.source, &mut tell)?;
                Some(blocks)
            }
            _ => None,
        };
        let frames = within_budget(&self.wanted.by_frame(), self.spec.disk_frames_max);
        self.figures.disk_frames = frames.len() as u64;
        let mut storing = Storing::new(self.store, lease, self.spec, self.parent.as_ref());
        let total: u64 = self.new.iter().map(|run| PAGE.bytes_of(*run).len()).sum();
        let mut tell = |done| (self.progress)(Step::Store, done, total);
        for run in &self.new {
            storing.pages(*run, &mut tell, &mut |page| {
                let place = self.wanted.place(page.0);
                let place = place.filter(|place| frames.contains(&place.frame()))?;
                disk.as_ref().map(|disk| disk.target(place))
            })?;
        }
        let (mut all, layer) = storing.finish(&mut tell)?;
        tell(total);
        all.extend(self.zeros.runs());
        all.sort_unstable_by_key(|run| run.blocks.start);
        Ok((all, layer))
    }
}

fn usize_of(bytes: ByteRange) -> usize {
    usize::try_from(bytes.len()).expect("a batch fits in memory")
}

/// Where the pages of a memory are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryClasses {
    /// Nowhere: they read as zeros.
    pub zero: u64,
    /// In the layer that was stored with it.
    pub own: u64,
    /// Where the disk has the same bytes.
    pub disk: u64,
    /// In layers of the memories that it was made over.
    pub older: u64,
}

/// Tells them from the maps: nothing but nodes is read. `disk` is that of the same snapshot.
///
/// # Errors
/// Where a map cannot be read.
pub fn classes(memory: &Header, disk: Option<&Header>) -> Result<MemoryClasses, StoreError> {
    let disk = disk.map(DiskBlocks::of).transpose()?;
    let mut classes = MemoryClasses::default();
    for MapRun { blocks, to } in memory.runs(memory.blocks())? {
        let count = blocks.count().0;
        let Target::Layer { id, at } = to else {
            classes.zero += count;
            continue;
        };
        let shared = disk.as_ref().map_or(0, |disk| disk.count_in(id, at, count));
        classes.disk += shared;
        match memory.meta().own_layer == Some(id) {
            true => classes.own += count - shared,
            false => classes.older += count - shared,
        }
    }
    Ok(classes)
}
