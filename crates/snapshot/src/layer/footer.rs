//! The last 64 bytes of a layer object.
//!
//! Version 2 is that of layers with delta frames; all others are written as ever.
//!
//! Version, checksum and magic come last, so that a later version may make the rest longer and
//! still be told apart from damage.

use cowslip_block::{BlockCount, BlockSize};

use crate::codec::Reader;
use crate::error::ObjectError;
use crate::ids::LayerId;
use crate::layer::bases::ENTRY_BYTES_MAX as BASE_BYTES_MAX;
use crate::layer::index::ENTRY_BYTES;
use crate::limits::{FRAME_BYTES, LAYER_BASES_MAX, LAYER_DELTA_BLOCKS_MAX, LAYER_FRAMES_MAX};

const MAGIC: [u8; 8] = *b"cowslipL";
/// Without bases, and with.
const VERSIONS: [u32; 2] = [1, 2];
pub(super) const FOOTER_BYTES: usize = 64;
/// Where the tail of every version begins: version, checksum, magic.
const TAIL_AT: usize = FOOTER_BYTES - 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) id: LayerId,
    pub(super) blocks: BlockCount,
    pub(super) block_size: BlockSize,
    pub(super) index_at: u64,
    pub(super) index_crc: u32,
    /// Layers that delta frames are made over.
    pub(super) bases: u32,
}

/// How many blocks of a size go into one frame.
pub(super) fn blocks_per_frame(block_size: BlockSize) -> u32 {
    (FRAME_BYTES / block_size.bytes()).max(1)
}

impl Footer {
    pub(super) fn blocks_per_frame(&self) -> u32 {
        blocks_per_frame(self.block_size)
    }

    pub(super) fn frames(&self) -> u64 {
        let per_frame = u64::from(self.blocks_per_frame());
        self.blocks.0.div_ceil(per_frame)
    }

    /// How many bytes a frame decodes to, if there is that frame.
    pub(super) fn frame_bytes(&self, frame: u64) -> Option<usize> {
        let per_frame = u64::from(self.blocks_per_frame());
        let before = frame.checked_mul(per_frame)?;
        let blocks = self.blocks.0.checked_sub(before)?.min(per_frame);
        let bytes = usize::try_from(self.block_size.bytes_in(BlockCount(blocks))).ok()?;
        (bytes > 0).then_some(bytes)
    }

    pub(super) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend(self.id.0.as_bytes());
        out.extend(self.blocks.0.to_le_bytes());
        out.extend(self.block_size.bytes().to_le_bytes());
        out.extend(self.blocks_per_frame().to_le_bytes());
        out.extend(self.index_at.to_le_bytes());
        out.extend(self.index_crc.to_le_bytes());
        out.extend(self.bases.to_le_bytes());
        out.extend(VERSIONS[usize::from(self.bases > 0)].to_le_bytes());
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out.extend(MAGIC);
        out.try_into().expect("the fields above are 64 bytes")
    }

    /// Checks all that the footer says, against itself and against the object's length.
    pub(super) fn decode(
        bytes: &[u8; FOOTER_BYTES],
        object_bytes: u64,
    ) -> Result<Self, ObjectError> {
        let at = object_bytes.saturating_sub(FOOTER_BYTES as u64);
        let mut tail = Reader::new(&bytes[TAIL_AT..], at + TAIL_AT as u64);
        let (version, crc, magic) = (tail.u32()?, tail.u32()?, tail.take::<8>()?);
        if magic != MAGIC {
            return Err(tail.refuse("it does not end as a layer does"));
        }
        if !VERSIONS.contains(&version) {
            let (found, known) = (version, VERSIONS[1]);
            return Err(ObjectError::Version { found, known });
        }
        if crc != crc32c::crc32c(&bytes[..TAIL_AT + 4]) {
            return Err(tail.refuse("the footer's checksum does not match"));
        }
        let mut fields = Reader::new(&bytes[..TAIL_AT], at);
        let footer = Self::fields(&mut fields)?;
        let known = match version == VERSIONS[0] {
            true => footer.bases == 0,
            false => (1..=LAYER_BASES_MAX).contains(&footer.bases),
        };
        if !known {
            let why = format!("{} base layers in version {version}", footer.bases);
            return Err(fields.refuse(why));
        }
        // Index and table of bases; how long that is, it says itself.
        let (least, most) = footer.tables_bytes();
        let tables = at.checked_sub(footer.index_at);
        if !tables.is_some_and(|bytes| (least..=most).contains(&bytes)) {
            return Err(fields.refuse("the index does not lie between frames and footer"));
        }
        Ok(footer)
    }

    fn fields(fields: &mut Reader<'_>) -> Result<Self, ObjectError> {
        let id = LayerId(fields.uuid()?);
        if id.is_nil() {
            return Err(fields.refuse("the nil layer has no object"));
        }
        let blocks = BlockCount(fields.u64()?);
        let Some(block_size) = BlockSize::new(fields.u32()?) else {
            return Err(fields.refuse("this is no block size"));
        };
        if fields.u32()? != blocks_per_frame(block_size) {
            return Err(fields.refuse("frames are not cut as this block size wants it"));
        }
        let footer = Self {
            id,
            blocks,
            block_size,
            index_at: fields.u64()?,
            index_crc: fields.u32()?,
            bases: fields.u32()?,
        };
        if footer.frames() == 0 || footer.frames() > LAYER_FRAMES_MAX {
            return Err(fields.refuse(format!("{} frames in one layer", footer.frames())));
        }
        Ok(footer)
    }

    /// The least and the most that index and table of bases can take.
    fn tables_bytes(&self) -> (u64, u64) {
        let index = self.frames() * ENTRY_BYTES as u64 + u64::from(self.bases) * 16;
        let entries = match self.bases {
            0 => 0,
            _ => self.blocks.0.min(LAYER_DELTA_BLOCKS_MAX) * BASE_BYTES_MAX,
        };
        (index, index + entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    /// A layer that holds so many blocks, as far as its footer goes: the payload would be terabytes.
    fn read(block_size: BlockSize, blocks: u64) -> Result<Footer, ObjectError> {
        let mut footer = Footer {
            id: LayerId(Uuid::from_u128(1)),
            blocks: BlockCount(blocks),
            block_size,
            index_at: 1 << 40,
            index_crc: 0,
            bases: 0,
        };
        let object_bytes = footer.index_at + footer.frames() * 8 + FOOTER_BYTES as u64;
        let read = Footer::decode(&footer.encode(), object_bytes);
        if let Ok(read) = &read {
            assert_eq!(*read, footer);
        }
        // The index must lie where the length says.
        footer.index_at -= 1;
        assert!(Footer::decode(&footer.encode(), object_bytes).is_err());
        read
    }

    #[test]
    fn the_most_frames_are_read_and_one_more_is_refused() {
        for size in [BlockSize::MIN_BYTES, 4096, BlockSize::MAX_BYTES] {
            let size = BlockSize::new(size).unwrap();
            let most = LAYER_FRAMES_MAX * u64::from(blocks_per_frame(size));
            assert_eq!(read(size, most).unwrap().frames(), LAYER_FRAMES_MAX);
            let why = read(size, most + 1).unwrap_err().to_string();
            assert!(why.contains("16777217 frames in one layer"), "{why}");
            assert!(read(size, most * 1000).is_err());
            assert!(read(size, 0).is_err());
        }
    }

    #[test]
    fn block_sizes_that_are_none_are_refused() {
        let good = Footer {
            id: LayerId(Uuid::from_u128(1)),
            blocks: BlockCount(1),
            block_size: BlockSize::DISK,
            index_at: 100,
            index_crc: 0,
            bases: 0,
        };
        for bytes in [0, 1, 256, 511, 4095, 6144, 4 << 20, u32::MAX] {
            let mut crafted = good.encode();
            crafted[24..28].copy_from_slice(&bytes.to_le_bytes());
            let crc = crc32c::crc32c(&crafted[..52]);
            crafted[52..56].copy_from_slice(&crc.to_le_bytes());
            let why = Footer::decode(&crafted, 100 + 8 + 64)
                .unwrap_err()
                .to_string();
            assert!(why.contains("no block size"), "{bytes}: {why}");
        }
    }
}
