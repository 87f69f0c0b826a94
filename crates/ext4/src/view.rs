//! [`View`]: the blocks of a file system, as they are on disk or as they will be after the journal was replayed.
//!
//! The replayed view is an overlay: for each block that the journal would write, the block of the
//! journal that holds its new contents. Nothing is copied. Memory: about 40 bytes for each such block; there are no more than
//! the journal has blocks.

use std::collections::BTreeMap;

use crate::error::Ext4Error;
use crate::source::Source;
use crate::superblock::Superblock;

/// The first bytes of every block of the journal's own; a block of data that begins so is escaped.
const JOURNAL_MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();

/// Where the journal has the contents of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The block of the device that holds them.
    pub(crate) at: u64,
    /// They begin with the journal's magic number, and were stored without it.
    pub(crate) escaped: bool,
}

pub(crate) type Overlay = BTreeMap<u64, Copy>;

pub(crate) struct View<'a> {
    source: Box<dyn Source + 'a>,
    block_bytes: u32,
    blocks: u64,
    overlay: Overlay,
}

impl<'a> View<'a> {
    pub(crate) fn new(source: Box<dyn Source + 'a>, superblock: &Superblock) -> Self {
        let (block_bytes, blocks) = (superblock.block_bytes, superblock.blocks);
        let overlay = Overlay::new();
        Self {
            source,
            block_bytes,
            blocks,
            overlay,
        }
    }

    /// From now on, these blocks are read from where the journal has them.
    pub(crate) fn lay_over(&mut self, overlay: Overlay) {
        self.overlay = overlay;
    }

    /// Fills `buf`, whose length is a whole number of blocks.
    pub(crate) fn read(&self, start: u64, buf: &mut [u8]) -> Result<(), Ext4Error> {
        self.read_disk(start, buf)?;
        let unit = self.block_bytes as usize;
        let count = (buf.len() / unit) as u64;
        for (block, copy) in self.overlay.range(start..start + count) {
            let at = usize::try_from(block - start).expect("a place in buf") * unit;
            let found = &mut buf[at..at + unit];
            self.read_disk(copy.at, found)?;
            if copy.escaped {
                found[..4].copy_from_slice(&JOURNAL_MAGIC);
            }
        }
        Ok(())
    }

    /// The same, whatever the journal says.
    pub(crate) fn read_disk(&self, start: u64, buf: &mut [u8]) -> Result<(), Ext4Error> {
        let bytes = buf.len() as u64;
        let count = bytes / u64::from(self.block_bytes);
        if start > self.blocks || count > self.blocks - start {
            let place = format!("blocks {start} to {}", start.saturating_add(count));
            return Err(Ext4Error::damaged(
                place,
                "they lie outside the file system",
            ));
        }
        let at = start * u64::from(self.block_bytes);
        self.source
            .read_at(at, buf)
            .map_err(|source| Ext4Error::Read { at, bytes, source })
    }

    /// One block, in a buffer of its own.
    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>, Ext4Error> {
        let mut buf = vec![0; self.block_bytes as usize];
        self.read(block, &mut buf)?;
        Ok(buf)
    }

    /// Blocks that are read from the journal.
    pub(crate) fn replayed_blocks(&self) -> u64 {
        self.overlay.len() as u64
    }
}
