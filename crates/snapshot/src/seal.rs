//! Sealing: frozen caches become a layer and a header. Whoever seals gives the header its name.
//!
//! ```text
//! frozen caches -> what changed -> layer object -> header object -> snapshot name
//! ```
//!
//! Invariant 6: each is durable before the next is begun; a crash leaves at worst an object that no
//! name reaches. Invariant 1 of the overlay holds here because the caches are drained: nothing in
//! them changes any more.
//!
//! A seal that fails leaves nothing behind but what could not be removed; it can be tried again.
//!
//! What changed, block by block, where the newest cache that knows the block decides:
//!
//! | state there        | the parent has          | becomes                         |
//! |--------------------|-------------------------|---------------------------------|
//! | Untouched          | anything                | nothing: the parent's stays     |
//! | Zero               | zeros                   | nothing                         |
//! | Zero               | bytes                   | a zero run: no payload          |
//! | Dirty              | the same bytes          | nothing, counted as `same`      |
//! | Dirty              | other bytes, or zeros   | payload                         |
//!
//! Of blocks that are not needed ([`crate::unneeded`]) each state counts as Zero, Untouched as well: what the parent has in
//! them is as little needed as what was written. So the snapshot is what it would be had the guest discarded all of them just before:
//! at most a run of the map for each, once, and a compaction finds their payload to be garbage.

use std::sync::Arc;

use cowslip_block::cache::{BlockState, Cache};
use cowslip_block::device::Device;
use cowslip_block::{BlockRange, BlockSize, ByteRange, DeviceError};
use serde::{Deserialize, Serialize};

use crate::MADE_BY;
use crate::error::StoreError;
use crate::header::{DiffFigures, Header, HeaderSpec, MapRun, Merged, Target};
use crate::ids::{HeaderId, SnapshotName};
use crate::image::Image;
use crate::layer::LayerWriter;
use crate::roots::Lease;
use crate::store::Store;

/// Blocks that are read, compared and packed at a time.
const BATCH_BLOCKS: u64 = 64;

/// A snapshot that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRequest {
    /// What it is to be called.
    pub name: SnapshotName,
    /// Its header's id, known before there is one: a name that has it was committed by this very
    /// request.
    pub header: HeaderId,
    /// It may take a name that another snapshot has.
    pub replace: bool,
    /// What had the name when this was asked for, if it may be replaced: the snapshot's origin, nil where
    /// none had it. What took the name since is newer than this. Not known of what damage hid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replaces: Option<HeaderId>,
    /// Blocks equal to the parent's are left out.
    pub dedup: bool,
    /// Blocks that what is inside the device does not need are left out: see [`crate::unneeded`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fs_aware: bool,
}

/// What is to be sealed.
#[derive(Clone, Copy)]
pub struct Frozen<'a> {
    /// Newest first, drained.
    pub caches: &'a [Arc<Cache>],
    /// Of the device.
    pub size_bytes: u64,
    /// Blocks that are to be zeros, in order, none twice.
    pub unneeded: &'a [BlockRange],
}

/// How far a seal has come, in blocks that the caches call Dirty, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealProgress {
    /// Packed, or found to be the same.
    pub done_blocks: u64,
    /// All of them.
    pub total_blocks: u64,
    /// Memory for what changed so far, and for what is being packed. While the header is encoded, its
    /// new nodes come on top.
    pub memory_bytes: u64,
    /// Of those that are done, the ones that were left out since they are not needed.
    pub unneeded_blocks: u64,
}

/// Why a seal did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A frozen cache, or the parent, could not be read.
    #[error("reading what is to be sealed: {0}")]
    Read(#[from] DeviceError),
    /// The session's own list could not be written.
    #[error("{0}")]
    Session(String),
    /// The session ends; the seal is taken up again when it is opened the next time.
    #[error("interrupted; it goes on when the session is served again")]
    Interrupted,
    /// Which blocks are not needed cannot be told with certainty.
    #[error("what is not needed cannot be left out: {0}")]
    Refused(String),
    /// Somebody gave it up.
    #[error("it was cancelled")]
    Cancelled,
}

impl SealError {
    /// Can it be gone the next time? A poisoned session is sound again when it is opened again.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => matches!(
                error,
                StoreError::NoSpace { .. } | StoreError::Io { .. } | StoreError::Busy(_)
            ),
            Self::Read(error) => matches!(
                error,
                DeviceError::NoSpace | DeviceError::Io(_) | DeviceError::Poisoned(_)
            ),
            Self::Session(_) => true,
            Self::Interrupted | Self::Refused(_) | Self::Cancelled => false,
        }
    }
}

/// Seals what is frozen over `parent`: the header, without a name yet.
///
/// `progress` is told after each batch, and ends the seal by answering false.
///
/// # Errors
/// [`SealError`]; what was written is removed again.
pub fn seal(
    store: &Arc<Store>,
    lease: &Lease,
    parent: &Arc<Header>,
    frozen: &Frozen<'_>,
    request: &SealRequest,
    progress: &mut dyn FnMut(SealProgress) -> bool,
) -> Result<Arc<Header>, SealError> {
    let block_size = parent.meta().block_size;
    let Frozen {
        caches, size_bytes, ..
    } = *frozen;
    let mut diff = Diff {
        block_size,
        parent,
        parent_image: Image::new(Arc::clone(store), Arc::clone(parent)),
        dedup: request.dedup,
        layer: None,
        store,
        lease,
        changes: Merged::default(),
        figures: DiffFigures::default(),
        progress,
        so_far: SealProgress {
            done_blocks: 0,
            total_blocks: caches.iter().map(|c| c.count(BlockState::Dirty).0).sum(),
            memory_bytes: 0,
            unneeded_blocks: 0,
        },
    };
    diff.all(frozen)?;
    let Diff {
        layer,
        changes,
        figures,
        ..
    } = diff;
    let layer = layer.map(LayerWriter::finish).transpose()?;
    let spec = HeaderSpec {
        parent: Some(parent),
        size_bytes,
        block_size,
        changes: &changes.0,
        layer,
        figures,
        made_by: MADE_BY,
    };
    let header = store.put_header_as(lease, request.header, &spec);
    if let (Err(_), Some(layer)) = (&header, layer) {
        // Only that header would have pointed at it.
        store.discard_layer(layer.id);
    }
    Ok(header?)
}

/// Was this very request committed already, by a try that ended before it could say so? The header
/// then, and a lease on it; its name is durable.
///
/// # Errors
/// As [`Store::resolve_leased`], except that a name that is not there is no error.
pub fn committed(
    store: &Store,
    request: &SealRequest,
) -> Result<Option<(Arc<Header>, Lease)>, StoreError> {
    match store.resolve_leased(&request.name) {
        // A compaction may have stored it otherwise meanwhile: it has the same origin.
        Ok((header, lease)) if header.meta().origin == request.header => {
            store.sync_names()?;
            Ok(Some((header, lease)))
        }
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(None),
        // Something else that is damaged has the name: it is not ours.
        Err(StoreError::Corrupt { .. } | StoreError::Version { .. }) if request.replace => Ok(None),
        Err(error) => Err(error),
    }
}

/// Blocks of these that hold bytes, as the newest cache that knows them has it.
fn written(caches: &[Arc<Cache>], blocks: BlockRange) -> u64 {
    let Some((newest, older)) = caches.split_first() else {
        return 0;
    };
    let of = |(run, state): (BlockRange, BlockState)| match state {
        BlockState::Untouched => written(older, run),
        BlockState::Dirty => run.count().0,
        BlockState::ZeroHeld | BlockState::Zero => 0,
    };
    newest.export().runs(blocks).map(of).sum()
}

/// What changed, while it is being found.
struct Diff<'a> {
    block_size: BlockSize,
    parent: &'a Arc<Header>,
    parent_image: Image,
    dedup: bool,
    layer: Option<LayerWriter>,
    store: &'a Arc<Store>,
    lease: &'a Lease,
    changes: Merged,
    figures: DiffFigures,
    progress: &'a mut dyn FnMut(SealProgress) -> bool,
    so_far: SealProgress,
}

impl Diff<'_> {
    fn all(&mut self, frozen: &Frozen<'_>) -> Result<(), SealError> {
        let end = self.block_size.count_ceil(frozen.size_bytes).0;
        let mut at = 0;
        for unneeded in frozen.unneeded {
            let unneeded = unneeded.intersect(BlockRange::new(at, end));
            self.walk(frozen.caches, BlockRange::new(at, unneeded.start.0))?;
            let written = written(frozen.caches, unneeded);
            self.so_far.done_blocks += written;
            self.so_far.unneeded_blocks += written;
            self.zero(unneeded)?;
            at = unneeded.end.0;
        }
        self.walk(frozen.caches, BlockRange::new(at, end))?;
        self.tell()
    }

    /// Goes over the blocks in order, each answered by the newest cache that knows it.
    fn walk(&mut self, caches: &[Arc<Cache>], blocks: BlockRange) -> Result<(), SealError> {
        let Some((newest, older)) = caches.split_first() else {
            return Ok(());
        };
        if blocks.is_empty() {
            return Ok(());
        }
        for (run, state) in newest.export().runs(blocks) {
            match state {
                BlockState::Untouched => self.walk(older, run)?,
                BlockState::Dirty => self.dirty(newest, run)?,
                BlockState::ZeroHeld | BlockState::Zero => self.zero(run)?,
            }
        }
        Ok(())
    }

    fn zero(&mut self, blocks: BlockRange) -> Result<(), SealError> {
        let known = self.parent.blocks().intersect(blocks);
        // Growth past the parent is zero anyhow.
        if known.is_empty() {
            return Ok(());
        }
        for run in self.parent.runs(known)? {
            if run.to != Target::Zero {
                self.figures.zero_blocks += run.blocks.count().0;
                self.changes.push(MapRun {
                    blocks: run.blocks,
                    to: Target::Zero,
                });
            }
        }
        Ok(())
    }

    fn dirty(&mut self, cache: &Cache, blocks: BlockRange) -> Result<(), SealError> {
        let mut start = blocks.start.0;
        while start < blocks.end.0 {
            let end = blocks.end.0.min(start + BATCH_BLOCKS);
            self.batch(cache, BlockRange::new(start, end))?;
            self.so_far.done_blocks += end - start;
            self.so_far.memory_bytes = self.changes.memory_bytes()
                + self.layer.as_ref().map_or(0, LayerWriter::memory_bytes);
            self.tell()?;
            start = end;
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<(), SealError> {
        match (self.progress)(self.so_far) {
            true => Ok(()),
            false => Err(SealError::Interrupted),
        }
    }

    fn batch(&mut self, cache: &Cache, blocks: BlockRange) -> Result<(), SealError> {
        let unit = self.block_size.bytes_usize();
        let bytes = self.block_size.bytes_of(blocks);
        let len = usize::try_from(bytes.len()).expect("a batch fits in memory");
        let mut now = vec![0; len];
        cache.read_dirty(bytes.start, &mut now)?;
        let before = if self.dedup {
            self.parent_bytes(bytes, len)?
        } else {
            None
        };
        for (i, block) in blocks.iter().enumerate() {
            let at = i * unit..(i + 1) * unit;
            if before
                .as_ref()
                .is_some_and(|b| b[at.clone()] == now[at.clone()])
            {
                self.figures.same_blocks += 1;
            } else {
                self.pack(BlockRange::one(block), &now[at])?;
            }
        }
        Ok(())
    }

    /// The parent's bytes, whole blocks; nothing where they are all zeros, as no Dirty block is, or
    /// cannot be read: what was written over a damaged part of the parent is kept, and heals it.
    fn parent_bytes(&self, bytes: ByteRange, len: usize) -> Result<Option<Vec<u8>>, SealError> {
        let held = bytes.intersect(ByteRange::new(0, self.parent.meta().size_bytes));
        let blocks = self.block_size.blocks_touched(held);
        if held.is_empty()
            || self
                .parent
                .runs(blocks)?
                .iter()
                .all(|r| r.to == Target::Zero)
        {
            return Ok(None);
        }
        let mut before = vec![0; len];
        let part = usize::try_from(held.len()).expect("a batch fits in memory");
        let image: &dyn Device = &self.parent_image;
        let read = image.read_at(held.start, &mut before[..part]);
        Ok(read.is_ok().then_some(before))
    }

    fn pack(&mut self, block: BlockRange, bytes: &[u8]) -> Result<(), SealError> {
        if self.layer.is_none() {
            self.layer = Some(self.store.layer_writer(self.lease, self.block_size)?);
        }
        let layer = self.layer.as_mut().expect("made above");
        let to = Target::Layer {
            id: layer.id(),
            at: layer.push(bytes)?,
        };
        self.figures.dirty_blocks += 1;
        self.changes.push(MapRun { blocks: block, to });
        Ok(())
    }
}
