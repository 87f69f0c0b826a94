//! [`Image`]: a header opened for reading, as a device. Reads by runs, through the store's frames.
//!
//! Every frame is verified once, when it is decoded, and shared with all other images of the
//! store. A damaged node or frame fails the reads that need it, and no others.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use cowslip_block::{
    BlockCount, BlockRange, ByteOffset, ByteRange, Device, DeviceError, Extent, Geometry, ReadSink,
};

use crate::error::{ObjectError, StoreError};
use crate::header::{Header, MapRun, Target};
use crate::ids::LayerId;
use crate::layer::blocks_per_frame;
use crate::store::{Store, layer_name};

/// Bytes of an image where they lie: nothing is copied.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Zeros, so many.
    Zeros(u64),
    /// A part of a decoded frame.
    Stored(Arc<[u8]>, Range<usize>),
}

/// A read-only device.
#[derive(Debug)]
pub struct Image {
    store: Arc<Store>,
    header: Arc<Header>,
}

impl Image {
    /// The image of a header of this store.
    pub fn new(store: Arc<Store>, header: Arc<Header>) -> Self {
        Self { store, header }
    }

    /// Its map, and what is known about it.
    pub fn header(&self) -> &Arc<Header> {
        &self.header
    }

    /// Where it lives.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The first blocks of a run of this image's map, as many as lie in one frame; all of them where they are zeros. Reads the frame if need be.
    ///
    /// # Errors
    /// Where it cannot be had. Damage is said, once.
    pub fn piece(&self, run: MapRun) -> Result<Piece, DeviceError> {
        let read = self.piece_in(run, |id, n| {
            self.store.frame(id, n, self.header.block_size()).map(Some)
        });
        let piece = read.map_err(|e| self.failed(e))?;
        Ok(piece.expect("a frame that is read is there"))
    }

    /// The same, if it is at hand: no file is read.
    pub fn piece_at_hand(&self, run: MapRun) -> Option<Piece> {
        let at_hand = |id, n| Ok(self.store.frame_at_hand(id, n));
        // What is wrong is said by who reads it.
        self.piece_in(run, at_hand).ok()?
    }

    fn piece_in(
        &self,
        run: MapRun,
        frame: impl FnOnce(LayerId, u64) -> Result<Option<Arc<[u8]>>, StoreError>,
    ) -> Result<Option<Piece>, StoreError> {
        let size = self.header.block_size();
        let Target::Layer { id, at } = run.to else {
            return Ok(Some(Piece::Zeros(size.bytes_of(run.blocks).len())));
        };
        let per_frame = blocks_per_frame(size);
        let (n, skip) = (at / per_frame, at % per_frame);
        let count = (per_frame - skip).min(run.blocks.count().0);
        let Some(frame) = frame(id, n)? else {
            return Ok(None);
        };
        let bytes = size.bytes_of(BlockRange::new(skip, skip + count));
        let within = |at: ByteOffset| usize::try_from(at.0).ok().filter(|at| *at <= frame.len());
        match (within(bytes.start), within(bytes.end)) {
            (Some(start), Some(end)) => Ok(Some(Piece::Stored(frame, start..end))),
            _ => {
                let why = format!("the layer ends before {bytes}");
                Err(ObjectError::damaged(format!("frame {n}"), why).of(layer_name(id)))
            }
        }
    }

    /// Damage is said, once, and fails the request.
    fn failed(&self, error: StoreError) -> DeviceError {
        self.store.complain(&error);
        error.into()
    }

    /// Hands the bytes of `range`, which lies within the image, to `sink`.
    pub(crate) fn read_stored(
        &self,
        range: ByteRange,
        sink: &mut dyn ReadSink,
    ) -> Result<(), StoreError> {
        self.for_each_part(range, &mut |run, bytes| {
            match run.to {
                Target::Zero => sink.zeroes(bytes.len()),
                Target::Layer { id, at } => self.read_layer((id, at), run, bytes, sink)?,
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The runs of `range`, cut to its bytes.
    fn for_each_part(
        &self,
        range: ByteRange,
        visit: &mut impl FnMut(MapRun, ByteRange) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let size = self.header.block_size();
        let blocks = size.blocks_touched(range);
        self.header.for_each_run(blocks, &mut |run: MapRun| {
            visit(run, size.bytes_of(run.blocks).intersect(range))
        })
    }

    /// `bytes` lie in blocks of one layer: the first block of `run` is `at` there.
    fn read_layer(
        &self,
        (id, at): (LayerId, u64),
        run: MapRun,
        bytes: ByteRange,
        sink: &mut dyn ReadSink,
    ) -> Result<(), StoreError> {
        let size = self.header.block_size();
        let per_frame = blocks_per_frame(size);
        let frame_bytes = size.bytes_in(BlockCount(per_frame));
        // Where the bytes lie in the layer's payload.
        let start = size.offset_of(run.blocks.start).0;
        let at = size.bytes_in(BlockCount(at)) + (bytes.start.0 - start);
        let (mut at, end) = (at, at + bytes.len());
        while at < end {
            let (n, skip) = (at / frame_bytes, at % frame_bytes);
            let len = (frame_bytes - skip).min(end - at);
            let frame = self.store.frame(id, n, size)?;
            let here = usize::try_from(skip).ok().and_then(|skip| {
                let len = usize::try_from(len).ok()?;
                frame.get(skip..)?.get(..len)
            });
            let Some(here) = here else {
                let why = format!("the layer ends before byte {skip} of it and {len} more");
                return Err(ObjectError::damaged(format!("frame {n}"), why).of(layer_name(id)));
            };
            sink.data(here.len()).copy_from_slice(here);
            at += len;
        }
        Ok(())
    }
}

impl Device for Image {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.header.size_bytes(),
            block_size: self.header.block_size(),
            read_only: true,
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        self.geometry().check_range(range)?;
        self.read_stored(range, sink).map_err(|e| self.failed(e))
    }

    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        self.geometry().check_range(range)?;
        let told = self.for_each_part(range, &mut |run, bytes| {
            Ok(visit(Extent {
                len: bytes.len(),
                hole: run.to == Target::Zero,
                dirty: false,
            }))
        });
        told.map_err(|e| self.failed(e))
    }
}

impl From<StoreError> for DeviceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { what, source } => {
                let kind = source.kind();
                Self::Io(std::io::Error::new(kind, format!("{what}: {source}")))
            }
            StoreError::NoSpace { .. } => Self::NoSpace,
            other => Self::Corrupt(other.to_string()),
        }
    }
}
