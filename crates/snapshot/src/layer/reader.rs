//! [`Layer`]: a layer object, opened: footer and index checked, frames when they are wanted.

use std::sync::Arc;

use cowslip_block::files::File;
use cowslip_block::{BlockCount, BlockSize};

use crate::error::ObjectError;
use crate::ids::LayerId;
use crate::layer::footer::{FOOTER_BYTES, Footer};
use crate::layer::frame;
use crate::layer::index::{ENTRY_BYTES, Entry, Index};
use crate::limits::LAYER_FRAMES_MAX;

/// An immutable set of blocks, open for reading. Holds one file and 8 bytes a frame.
#[derive(Debug)]
pub struct Layer {
    pub(super) file: Arc<dyn File>,
    pub(super) footer: Footer,
    index: Index,
}

impl Layer {
    /// Opens the object that is expected to be the layer `id`. Allocates for the index only, and
    /// at most as much as the file is long.
    ///
    /// # Errors
    /// [`ObjectError`] where footer or index are not what a writer made, or the id is another.
    pub fn open(file: Arc<dyn File>, id: LayerId) -> Result<Self, ObjectError> {
        let object_bytes = file.len()?;
        let Some(footer_at) = object_bytes.checked_sub(FOOTER_BYTES as u64) else {
            let why = format!("{object_bytes} bytes are less than a footer");
            return Err(ObjectError::damaged("its end", why));
        };
        let mut bytes = [0; FOOTER_BYTES];
        file.read_at(&mut bytes, footer_at)?;
        let footer = Footer::decode(&bytes, object_bytes)?;
        if footer.id != id {
            let why = format!("this is {:?}, under a wrong name", footer.id);
            return Err(ObjectError::damaged("the footer", why));
        }
        let frames = usize::try_from(footer.frames().min(LAYER_FRAMES_MAX))
            .expect("the most frames of a layer fit in memory's index");
        let mut bytes = vec![0; frames * ENTRY_BYTES];
        file.read_at(&mut bytes, footer.index_at)?;
        let index = Index::decode(&bytes, &footer)?;
        Ok(Self {
            file,
            footer,
            index,
        })
    }

    /// Which layer.
    pub fn id(&self) -> LayerId {
        self.footer.id
    }

    /// How many blocks it holds.
    pub fn blocks(&self) -> BlockCount {
        self.footer.blocks
    }

    /// The size of its blocks.
    pub fn block_size(&self) -> BlockSize {
        self.footer.block_size
    }

    /// Blocks in each frame but the last, which may hold less: block n is in frame
    /// n / `blocks_per_frame`.
    pub(crate) fn blocks_per_frame(&self) -> u32 {
        self.footer.blocks_per_frame()
    }

    /// How many frames.
    pub fn frames(&self) -> u64 {
        self.footer.frames()
    }

    /// How many bytes each frame is stored in, in order.
    pub(crate) fn stored_lens(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.lens()
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// The size of the object.
    pub fn object_bytes(&self) -> u64 {
        self.footer.index_at + self.footer.frames() * ENTRY_BYTES as u64 + FOOTER_BYTES as u64
    }

    /// The memory that it takes while it is open.
    pub(crate) fn weight(&self) -> u64 {
        self.index.weight()
    }

    /// Reads, checks and decodes one frame: one pread.
    ///
    /// # Errors
    /// [`ObjectError`] naming the frame and its place, where its bytes are not what was written.
    pub fn read_frame(&self, n: u64) -> Result<Arc<[u8]>, ObjectError> {
        let (at, entry, len) = self.frame(n)?;
        let mut stored = vec![0; entry.len as usize];
        let mut payload: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        let into = Arc::get_mut(&mut payload).expect("nobody else has it yet");
        let read = self.file.read_at(&mut stored, at).map_err(Into::into);
        let loaded = read.and_then(|()| frame::load(entry, &stored, into));
        loaded.map_err(|e| of_frame(n, at, e)).map(|()| payload)
    }

    /// Checks the stored bytes of a frame, and also what they decode to if that is wanted. Says how
    /// long its payload is.
    pub(crate) fn check_frame(&self, n: u64, decode: bool) -> Result<u64, ObjectError> {
        let (_, _, len) = self.frame(n)?;
        match decode {
            true => drop(self.read_frame(n)?),
            false => drop(self.stored_frame(n)?),
        }
        Ok(len as u64)
    }

    /// The stored bytes of a frame, which have their checksum.
    pub(crate) fn stored_frame(&self, n: u64) -> Result<Vec<u8>, ObjectError> {
        let (at, entry, _) = self.frame(n)?;
        let mut stored = vec![0; entry.len as usize];
        let read = self.file.read_at(&mut stored, at).map_err(Into::into);
        let checked = read.and_then(|()| frame::check(entry, &stored));
        checked.map_err(|e| of_frame(n, at, e)).map(|()| stored)
    }

    /// How many bytes a frame is stored in.
    pub(crate) fn stored_bytes(&self, n: u64) -> u64 {
        self.index
            .get(n)
            .map_or(0, |(_, entry)| u64::from(entry.len))
    }

    /// Where the frames end, and the index begins.
    pub(crate) fn payload_end(&self) -> u64 {
        self.footer.index_at
    }

    /// Where a frame lies, what it is, and how long its payload.
    pub(super) fn frame(&self, n: u64) -> Result<(u64, Entry, usize), ObjectError> {
        match (self.index.get(n), self.footer.frame_bytes(n)) {
            (Some((at, entry)), Some(len)) => Ok((at, entry, len)),
            _ => {
                let why = format!("the layer holds {} frames", self.frames());
                Err(ObjectError::damaged(format!("frame {n}"), why))
            }
        }
    }
}

/// The same, with the frame's place.
fn of_frame(n: u64, at: u64, error: ObjectError) -> ObjectError {
    match error {
        ObjectError::Damaged { why, .. } => {
            ObjectError::damaged(format!("frame {n} at byte {at}"), why)
        }
        other => other,
    }
}

/// How many blocks of a size go into one frame, in every layer.
pub fn blocks_per_frame(block_size: BlockSize) -> u64 {
    u64::from(super::footer::blocks_per_frame(block_size))
}
