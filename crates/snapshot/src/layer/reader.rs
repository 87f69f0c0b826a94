//! [`Layer`]: a layer object, opened: footer and index checked, frames when they are wanted.

use std::sync::Arc;

use cowslip_block::files::File;
use cowslip_block::{BlockCount, BlockSize};

use crate::codec::Reader;
use crate::error::ObjectError;
use crate::ids::LayerId;
use crate::layer::bases::{BasePlace, Bases};
use crate::layer::footer::{FOOTER_BYTES, Footer};
use crate::layer::frame::{self, Kind};
use crate::layer::index::{Entry, Index};

/// An immutable set of blocks, open for reading. Holds one file, 12 bytes a frame, and 8 bytes a block of a delta frame.
#[derive(Debug)]
pub struct Layer {
    pub(super) file: Arc<dyn File>,
    pub(super) footer: Footer,
    index: Index,
    bases: Bases,
    object_bytes: u64,
}

impl Layer {
    /// Opens the object that is expected to be the layer `id`. Allocates for index and bases only,
    /// and at most 8 times as much as they take in the file.
    ///
    /// # Errors
    /// [`ObjectError`] where footer or index are not what a writer made, or the id is another.
    pub fn open(file: Arc<dyn File>, id: LayerId) -> Result<Self, ObjectError> {
        let object_bytes = file.len()?;
        let footer = footer_of(&*file, object_bytes, id)?;
        // The footer has said that they are no longer than so many frames and blocks can need.
        let tables_bytes = object_bytes - FOOTER_BYTES as u64 - footer.index_at;
        let mut bytes = vec![0; usize::try_from(tables_bytes).expect("tables fit in memory")];
        file.read_at(&mut bytes, footer.index_at)?;
        let mut reader = Reader::new(&bytes, footer.index_at);
        if crc32c::crc32c(&bytes) != footer.index_crc {
            return Err(reader.refuse("the index's checksum does not match"));
        }
        let index = Index::decode(&mut reader, &footer)?;
        let bases = match footer.bases {
            0 => Bases::default(),
            _ => Bases::decode(&mut reader, &footer, &index)?,
        };
        reader.finish()?;
        Ok(Self {
            file,
            footer,
            index,
            bases,
            object_bytes,
        })
    }

    /// The layers that the object's delta frames are made over. Of one without any, only the footer is read.
    pub(crate) fn read_bases(
        file: Arc<dyn File>,
        id: LayerId,
    ) -> Result<Vec<LayerId>, ObjectError> {
        match footer_of(&*file, file.len()?, id)?.bases {
            0 => Ok(Vec::new()),
            _ => Ok(Self::open(file, id)?.bases.layers().to_vec()),
        }
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
        self.object_bytes
    }

    /// The memory that it takes while it is open.
    pub(crate) fn weight(&self) -> u64 {
        self.index.weight() + self.bases.weight()
    }

    /// The layers that delta frames are made over.
    pub fn bases(&self) -> &[LayerId] {
        self.bases.layers()
    }

    /// The frames that are deltas, in order.
    pub(crate) fn deltas(&self) -> impl Iterator<Item = u64> + '_ {
        self.bases.frames()
    }

    /// How many of so many blocks, from `at` on, are stored as differences against others.
    pub fn deltas_in(&self, at: u64, count: u64) -> u64 {
        let blocks = at..at.saturating_add(count);
        self.bases
            .count_in(&blocks, self.blocks_per_frame() as usize)
    }

    /// The bases of a delta frame's blocks, block by block; nothing where the frame stands alone.
    pub(crate) fn frame_bases(
        &self,
        n: u64,
    ) -> Option<impl Iterator<Item = Option<BasePlace>> + '_> {
        self.bases.of_frame(n, self.blocks_per_frame() as usize)
    }

    /// Is there such a frame, and can it be read without others?
    pub(crate) fn stands_alone(&self, n: u64) -> bool {
        let entry = self.index.get(n);
        entry.is_some_and(|(_, entry)| entry.kind != Kind::Delta)
    }

    /// Reads, checks and decodes one frame that stands alone: one pread.
    ///
    /// # Errors
    /// [`ObjectError`] naming the frame and its place, where its bytes are not what was written, or it is a delta.
    pub fn read_frame(&self, n: u64) -> Result<Arc<[u8]>, ObjectError> {
        self.read(n, None)
    }

    /// The same of a delta frame, with what [`Layer::prefix`] says.
    pub(crate) fn read_delta(&self, n: u64, prefix: &[u8]) -> Result<Arc<[u8]>, ObjectError> {
        self.read(n, Some(prefix))
    }

    fn read(&self, n: u64, prefix: Option<&[u8]>) -> Result<Arc<[u8]>, ObjectError> {
        let (at, entry, len) = self.frame(n)?;
        let mut stored = vec![0; entry.len as usize];
        let mut payload: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        let into = Arc::get_mut(&mut payload).expect("nobody else has it yet");
        let read = self.file.read_at(&mut stored, at).map_err(Into::into);
        let loaded = read.and_then(|()| frame::load(entry, &stored, prefix, into));
        loaded.map_err(|e| of_frame(n, at, e)).map(|()| payload)
    }

    /// Checks the stored bytes of a frame, and also what they decode to if that is wanted and the frame stands alone. Says how
    /// long its payload is.
    pub(crate) fn check_frame(&self, n: u64, decode: bool) -> Result<u64, ObjectError> {
        let (_, _, len) = self.frame(n)?;
        match decode && self.stands_alone(n) {
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

fn footer_of(file: &dyn File, object_bytes: u64, id: LayerId) -> Result<Footer, ObjectError> {
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
    Ok(footer)
}

/// How many blocks of a size go into one frame, in every layer.
pub fn blocks_per_frame(block_size: BlockSize) -> u64 {
    u64::from(super::footer::blocks_per_frame(block_size))
}
