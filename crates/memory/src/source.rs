//! [`Source`]: what a guest's memory is restored from: the image of a snapshot, its map at hand as a whole. All guests of one snapshot share
//! it, and through the store's cache the frames.
//!
//! A fault is answered by a search in the map, and from a decoded frame if there is one: no file is looked at for that. The map of 4 GiB is
//! some megabytes at the worst.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use cowslip_block::{BlockIndex, BlockRange, BlockSize, DeviceError};
use cowslip_snapshot::image::Piece;
use cowslip_snapshot::{Image, MapRun, StoreError};

use crate::page::Install;

/// See the module.
#[derive(Debug)]
pub struct Source {
    image: Image,
    /// In order, without a hole.
    runs: Box<[MapRun]>,
}

/// Bytes of pages that follow each other, or that they are zeros.
#[derive(Clone, Debug)]
pub enum PageBytes {
    /// Zeros, so many.
    Zeros(u64),
    /// Of a frame that is shared.
    Shared(Arc<[u8]>, Range<usize>),
    /// Put together from several.
    Own(Box<[u8]>),
}

impl PageBytes {
    /// How many.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Zeros(len) => *len,
            Self::Shared(_, range) => range.len() as u64,
            Self::Own(bytes) => bytes.len() as u64,
        }
    }

    /// How such pages are put in place.
    pub(crate) fn install(&self) -> Install {
        match self {
            Self::Zeros(_) => Install::ZEROS,
            Self::Shared(..) | Self::Own(_) => Install::IMAGE,
        }
    }

    /// The bytes; nothing for zeros.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Zeros(_) => None,
            Self::Shared(frame, range) => Some(&frame[range.clone()]),
            Self::Own(bytes) => Some(bytes),
        }
    }
}

impl From<Piece> for PageBytes {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Zeros(len) => Self::Zeros(len),
            Piece::Stored(frame, range) => Self::Shared(frame, range),
        }
    }
}

impl Source {
    /// Reads the whole map.
    ///
    /// # Errors
    /// Where a part of it cannot be had.
    pub fn new(image: Image) -> Result<Self, StoreError> {
        let runs = image.header().runs(image.header().blocks())?;
        Ok(Self {
            image,
            runs: runs.into(),
        })
    }

    /// Bytes of memory.
    pub fn size_bytes(&self) -> u64 {
        self.image.header().size_bytes()
    }

    /// The unit of its map.
    pub fn block_size(&self) -> BlockSize {
        self.image.header().block_size()
    }

    /// The image that it is.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The first blocks of a range, as many as lie together, if no file has to be read for them. The range lies within the image, and is not empty.
    pub fn at_hand(&self, blocks: BlockRange) -> Option<PageBytes> {
        self.image.piece_at_hand(self.run(blocks)).map(Into::into)
    }

    /// The first blocks of a range, as many as lie together: what it takes is read.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn read_some(&self, blocks: BlockRange) -> Result<PageBytes, DeviceError> {
        self.image.piece(self.run(blocks)).map(Into::into)
    }

    /// All blocks of a range, whatever they lie in.
    ///
    /// # Errors
    /// Where one cannot be had.
    pub fn read_all(&self, blocks: BlockRange) -> Result<PageBytes, DeviceError> {
        let size = self.block_size();
        let len = size.bytes_of(blocks).len();
        let first = self.read_some(blocks)?;
        if first.len_bytes() == len {
            return Ok(first);
        }
        let mut all = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        let mut piece = first;
        loop {
            let bytes = match piece.bytes() {
                Some(bytes) => Cow::Borrowed(bytes),
                None => Cow::Owned(vec![0; usize::try_from(piece.len_bytes()).unwrap_or(0)]),
            };
            all.extend_from_slice(&bytes);
            if all.len() as u64 >= len {
                return Ok(PageBytes::Own(all.into()));
            }
            let at = blocks.start.0 + size.count_ceil(all.len() as u64).0;
            piece = self.read_some(BlockRange::new(at, blocks.end.0))?;
        }
    }

    /// The part of a range that one run covers, from its first block.
    fn run(&self, blocks: BlockRange) -> MapRun {
        let after = self
            .runs
            .partition_point(|run| run.blocks.end <= blocks.start);
        let run = self.runs[after];
        let by = blocks.start.0 - run.blocks.start.0;
        let end = BlockIndex(run.blocks.end.0.min(blocks.end.0));
        MapRun {
            blocks: BlockRange::new(blocks.start.0, end.0),
            to: run.to.after(by),
        }
    }
}
