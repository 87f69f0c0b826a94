//! What a repair needs of a layer: where a frame lies, and its stored bytes made once more from a
//! payload that may be the right one.
//!
//! The index decides: only bytes of the same kind, length and checksum are what was written.

use std::io;
use std::ops::Range;

use zstd::bulk::Compressor;

use crate::layer::frame::{self, Kind};
use crate::layer::reader::Layer;

/// Compresses as a writer does.
pub(crate) struct Remaker {
    zstd: Compressor<'static>,
    out: Vec<u8>,
}

impl Remaker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: frame::compressor()?,
            out: Vec::new(),
        })
    }

    /// The stored bytes of frame `n`, if this is its payload. A delta wants its prefix as well.
    pub(crate) fn remake(
        &mut self,
        layer: &Layer,
        n: u64,
        payload: &[u8],
        prefix: Option<&[u8]>,
    ) -> Option<Vec<u8>> {
        let (_, entry, len) = layer.frame(n).ok()?;
        if payload.len() != len {
            return None;
        }
        match entry.kind {
            Kind::Raw => frame::check(entry, payload).ok().map(|()| payload.to_vec()),
            Kind::Zstd => {
                self.out.clear();
                let made = frame::store(&mut self.zstd, payload, &mut self.out).ok()?;
                (made == entry).then(|| self.out.clone())
            }
            Kind::Delta => {
                let (made, stored) = frame::delta_again(payload, prefix?).ok()?;
                (made == entry).then_some(stored)
            }
        }
    }
}

impl Layer {
    /// Where a frame's stored bytes lie.
    pub(crate) fn frame_place(&self, n: u64) -> Option<Range<u64>> {
        let (at, entry, _) = self.frame(n).ok()?;
        Some(at..at + u64::from(entry.len))
    }

    /// The blocks of the layer that a frame holds.
    pub(crate) fn frame_blocks(&self, n: u64) -> Range<u64> {
        let per_frame = u64::from(self.blocks_per_frame());
        n * per_frame..((n + 1) * per_frame).min(self.blocks().0)
    }

    /// What is left of a damaged frame, where that is its payload as it is.
    pub(crate) fn frame_remains(&self, n: u64) -> Option<Vec<u8>> {
        let (at, entry, len) = self.frame(n).ok()?;
        let mut remains = vec![0; len];
        let read = (entry.kind == Kind::Raw).then(|| self.file.read_at(&mut remains, at));
        matches!(read, Some(Ok(()))).then_some(remains)
    }

    /// Is this another copy of the same object, by footer and index?
    pub(crate) fn is_copy_of(&self, other: &Self) -> bool {
        self.footer == other.footer
    }
}
