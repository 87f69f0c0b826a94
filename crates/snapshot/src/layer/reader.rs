//! [`Layer`]: a layer object, opened: footer and index checked, frames when they are wanted.

use std::sync::Arc;

use cowslip_block::files::File;
use cowslip_block::{BlockCount, BlockSize};

use crate::error::ObjectError;
use crate::ids::LayerId;
use crate::layer::footer::{FOOTER_BYTES, Footer};
use crate::layer::frame;
use crate::layer::index::{ENTRY_BYTES, Index};
use crate::limits::LAYER_FRAMES_MAX;

/// An immutable set of blocks, open for reading. Holds one file and 8 bytes a frame.
#[derive(Debug)]
pub struct Layer {
    file: Arc<dyn File>,
    footer: Footer,
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
    pub fn blocks_per_frame(&self) -> u32 {
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
        let (Some((at, entry)), Some(len)) = (self.index.get(n), self.footer.frame_bytes(n)) else {
            let why = format!("the layer holds {} frames", self.frames());
            return Err(ObjectError::damaged(format!("frame {n}"), why));
        };
        let mut stored = vec![0; entry.len as usize];
        let mut payload: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        let into = Arc::get_mut(&mut payload).expect("nobody else has it yet");
        let read = self.file.read_at(&mut stored, at).map_err(Into::into);
        match read.and_then(|()| frame::load(entry, &stored, into)) {
            Err(ObjectError::Damaged { why, .. }) => {
                let place = format!("frame {n} at byte {at}");
                Err(ObjectError::Damaged { place, why })
            }
            other => other.map(|()| payload),
        }
    }
}

/// How many blocks of a size go into one frame, in every layer.
pub(crate) fn blocks_per_frame(block_size: BlockSize) -> u64 {
    u64::from(super::footer::blocks_per_frame(block_size))
}
