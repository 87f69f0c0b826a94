//! The end of a header object: its metadata, and the 32 bytes of footer.
//!
//! ```text
//! nodes | metadata | footer
//! ```
//!
//! A tail is bounded and lies at the end, so opening a header is one read. [`Tail`] is what was
//! read; [`UncheckedHeader::check`](crate::header::UncheckedHeader::check) is the way in from it.

use cowslip_block::BlockSize;
use cowslip_block::units::SIZE_BYTES_MAX;

use crate::codec::{Hash, Reader};
use crate::error::ObjectError;
use crate::header::node::{NodePtr, Slot};
use crate::ids::{HeaderId, LayerId};
use crate::limits::{
    GENERATION_MAX, HEADER_NODES_BYTES_MAX, HEIGHT_MAX, LAYER_BLOCKS_MAX, MADE_BY_BYTES_MAX, span,
};

const MAGIC: [u8; 8] = *b"cowslipH";
/// Version 1 does not say the origin: it is the header itself.
const VERSION: u32 = 2;
const FOOTER_BYTES: usize = 32;
/// Where the footer's end begins that every version has: version, checksum, magic.
const FOOTER_TAIL_AT: usize = FOOTER_BYTES - 16;
const FIXED_BYTES: usize = 4 * 16 + 2 * 8 + 8 + 4 + 4 * 8 + ROOT_BYTES + 1;
const ROOT_BYTES: usize = 1 + 16 + 8 + 4 + Hash::LEN;
/// Metadata and footer at most.
pub(crate) const TAIL_BYTES_MAX: usize = FIXED_BYTES + MADE_BY_BYTES_MAX + FOOTER_BYTES;

/// What the blocks of one snapshot's own diff were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffFigures {
    /// Blocks with payload in the snapshot's own layer.
    pub dirty_blocks: u64,
    /// Blocks that are newly zero.
    pub zero_blocks: u64,
    /// Blocks that were written, but are equal to the parent's.
    pub same_blocks: u64,
}

/// What a header says besides its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMeta {
    /// Which header.
    pub id: HeaderId,
    /// The snapshot, whatever header it is stored in: the header that it was first committed with.
    pub origin: HeaderId,
    /// The snapshot that it was made from, by its origin; a template has none.
    pub parent: Option<HeaderId>,
    /// Snapshots since the template, which is 0.
    pub generation: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The size of a block.
    pub block_size: BlockSize,
    /// The size of the image, exact.
    pub size_bytes: u64,
    /// What made it: a program and its version.
    pub made_by: String,
    /// The layer that came with it, if its diff had payload.
    pub own_layer: Option<LayerId>,
    /// What its diff held.
    pub figures: DiffFigures,
    /// The size of its own layer's object.
    pub payload_bytes: u64,
}

impl HeaderMeta {
    /// How many blocks the image has.
    pub fn blocks(&self) -> u64 {
        self.block_size.count_ceil(self.size_bytes).0
    }
}

/// The level of the root of a map of so many blocks.
pub(crate) fn height_of(blocks: u64) -> u8 {
    (0..HEIGHT_MAX)
        .find(|level| span(*level) >= blocks)
        .unwrap_or(HEIGHT_MAX)
}

/// Metadata and root, decoded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) meta: HeaderMeta,
    pub(crate) root: Slot,
    /// The bytes of nodes that lie before the metadata.
    pub(crate) nodes_bytes: u64,
}

/// A string that can stand in a header, and be printed without harm.
pub(crate) fn made_by_ok(text: &str) -> bool {
    text.len() <= MADE_BY_BYTES_MAX && !text.chars().any(char::is_control)
}

impl Tail {
    /// Metadata and footer.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let meta = &self.meta;
        let mut out = Vec::with_capacity(TAIL_BYTES_MAX);
        out.extend(meta.id.0.as_bytes());
        out.extend(meta.parent.map_or([0; 16], |p| p.0.into_bytes()));
        out.extend(meta.own_layer.map_or([0; 16], |l| l.0.into_bytes()));
        out.extend(meta.generation.to_le_bytes());
        out.extend(meta.created_unix_ms.to_le_bytes());
        out.extend(meta.size_bytes.to_le_bytes());
        out.extend(meta.block_size.bytes().to_le_bytes());
        out.extend(meta.figures.dirty_blocks.to_le_bytes());
        out.extend(meta.figures.zero_blocks.to_le_bytes());
        out.extend(meta.figures.same_blocks.to_le_bytes());
        out.extend(meta.payload_bytes.to_le_bytes());
        put_root(&self.root, &mut out);
        let made_by = meta.made_by.as_bytes();
        out.push(u8::try_from(made_by.len()).expect("checked by the builder"));
        out.extend(made_by);
        out.extend(meta.origin.0.as_bytes());
        let metadata = out.clone();
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend(self.nodes_bytes.to_le_bytes());
        let len = u32::try_from(metadata.len()).expect("metadata is less than 1 KiB");
        footer.extend(len.to_le_bytes());
        footer.extend(crc32c::crc32c(&metadata).to_le_bytes());
        footer.extend(VERSION.to_le_bytes());
        footer.extend(crc32c::crc32c(&footer).to_le_bytes());
        footer.extend(MAGIC);
        out.extend(footer);
        out
    }

    /// Checks the last bytes of an object of `object_bytes`. Returns the tail, and its own bytes.
    pub(crate) fn decode(last: &[u8], object_bytes: u64) -> Result<(Self, &[u8]), ObjectError> {
        let Some((before, footer)) = last.split_last_chunk::<FOOTER_BYTES>() else {
            let why = format!("{object_bytes} bytes are less than a footer");
            return Err(ObjectError::damaged("its end", why));
        };
        let footer_at = object_bytes.saturating_sub(FOOTER_BYTES as u64);
        let footer = Footer::decode(footer, footer_at)?;
        let (nodes_bytes, len) = (footer.nodes_bytes, footer.metadata_bytes);
        let place = Reader::new(&[], footer_at);
        if nodes_bytes.checked_add(u64::from(len)) != Some(footer_at) {
            return Err(place.refuse("nodes and metadata are not as long as the footer says"));
        }
        if nodes_bytes > HEADER_NODES_BYTES_MAX {
            return Err(place.refuse(format!("{nodes_bytes} bytes of nodes")));
        }
        let Some(start) = before.len().checked_sub(len as usize) else {
            return Err(place.refuse(format!("metadata of {len} bytes")));
        };
        let metadata = &before[start..];
        let mut reader = Reader::new(metadata, nodes_bytes);
        if crc32c::crc32c(metadata) != footer.metadata_crc {
            return Err(reader.refuse("the metadata's checksum does not match"));
        }
        let (meta, root) = decode_metadata(&mut reader, footer.version)?;
        reader.finish()?;
        let tail = Self {
            meta,
            root,
            nodes_bytes,
        };
        tail.check_root(nodes_bytes)?;
        Ok((tail, &last[start..]))
    }

    /// A root that is one run covers the device exactly; one in this object lies within its nodes.
    fn check_root(&self, at: u64) -> Result<(), ObjectError> {
        let refuse = |why: &str| Err(ObjectError::damaged(format!("byte {at}"), why));
        let blocks = self.meta.blocks();
        match self.root {
            Slot::Run { .. } if span(height_of(blocks)) != blocks => {
                refuse("the root is a run that ends past the device")
            }
            Slot::Node(ptr)
                if ptr.header == self.meta.id
                    && ptr.offset + u64::from(ptr.len) > self.nodes_bytes =>
            {
                refuse("the root does not lie among the nodes")
            }
            _ => Ok(()),
        }
    }
}

struct Footer {
    version: u32,
    nodes_bytes: u64,
    metadata_bytes: u32,
    metadata_crc: u32,
}

impl Footer {
    fn decode(bytes: &[u8; FOOTER_BYTES], at: u64) -> Result<Self, ObjectError> {
        let mut tail = Reader::new(&bytes[FOOTER_TAIL_AT..], at + FOOTER_TAIL_AT as u64);
        let (version, crc, magic) = (tail.u32()?, tail.u32()?, tail.take::<8>()?);
        if magic != MAGIC {
            return Err(tail.refuse("it does not end as a header does"));
        }
        if !(1..=VERSION).contains(&version) {
            let (found, known) = (version, VERSION);
            return Err(ObjectError::Version { found, known });
        }
        if crc != crc32c::crc32c(&bytes[..FOOTER_TAIL_AT + 4]) {
            return Err(tail.refuse("the footer's checksum does not match"));
        }
        let mut fields = Reader::new(&bytes[..FOOTER_TAIL_AT], at);
        Ok(Self {
            version,
            nodes_bytes: fields.u64()?,
            metadata_bytes: fields.u32()?,
            metadata_crc: fields.u32()?,
        })
    }
}

fn decode_metadata(
    reader: &mut Reader<'_>,
    version: u32,
) -> Result<(HeaderMeta, Slot), ObjectError> {
    let id = HeaderId(reader.uuid()?);
    let parent = Some(HeaderId(reader.uuid()?)).filter(|p| !p.0.is_nil());
    let own_layer = Some(LayerId(reader.uuid()?)).filter(|l| !l.is_nil());
    let generation = reader.u64()?;
    if id.0.is_nil() {
        return Err(reader.refuse("the header's id is nil"));
    }
    if generation > GENERATION_MAX || parent.is_none() != (generation == 0) {
        return Err(reader.refuse(format!("generation {generation}, parent {parent:?}")));
    }
    let created_unix_ms = reader.u64()?;
    let size_bytes = reader.u64()?;
    if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX {
        return Err(reader.refuse(format!("an image of {size_bytes} bytes")));
    }
    let Some(block_size) = BlockSize::new(reader.u32()?) else {
        return Err(reader.refuse("this is no block size"));
    };
    let figures = DiffFigures {
        dirty_blocks: reader.u64()?,
        zero_blocks: reader.u64()?,
        same_blocks: reader.u64()?,
    };
    let payload_bytes = reader.u64()?;
    let root = decode_root(reader)?;
    let len = usize::from(reader.u8()?);
    let made_by = std::str::from_utf8(reader.slice(len)?).ok();
    let Some(made_by) = made_by.filter(|text| made_by_ok(text)) else {
        return Err(reader.refuse("what made it is not said in a short plain text"));
    };
    let origin = match version {
        1 => id,
        _ => HeaderId(reader.uuid()?),
    };
    if origin.0.is_nil() || parent == Some(origin) {
        return Err(reader.refuse("the snapshot's id is nil, or its parent's"));
    }
    let meta = HeaderMeta {
        id,
        origin,
        parent,
        generation,
        created_unix_ms,
        block_size,
        size_bytes,
        made_by: made_by.to_owned(),
        own_layer,
        figures,
        payload_bytes,
    };
    Ok((meta, root))
}

/// Kind, id, position, length, hash: what a kind does not need is zero.
fn put_root(root: &Slot, out: &mut Vec<u8>) {
    let (kind, id, at, len, hash) = match *root {
        Slot::Nil => (0, [0; 16], 0, 0, [0; Hash::LEN]),
        Slot::Run { layer, at } => (1, layer.0.into_bytes(), at, 0, [0; Hash::LEN]),
        Slot::Node(ptr) => (
            2,
            ptr.header.0.into_bytes(),
            ptr.offset,
            ptr.len,
            ptr.hash.0,
        ),
    };
    out.push(kind);
    out.extend(id);
    out.extend(at.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend(hash);
}

fn decode_root(reader: &mut Reader<'_>) -> Result<Slot, ObjectError> {
    let (kind, id, at) = (reader.u8()?, reader.uuid()?, reader.u64()?);
    let (len, hash) = (reader.u32()?, reader.hash()?);
    let no_node = len == 0 && hash == Hash([0; Hash::LEN]);
    let slot = match kind {
        0 if no_node && id.is_nil() && at == 0 => Some(Slot::Nil),
        1 if no_node && !id.is_nil() && at < LAYER_BLOCKS_MAX => {
            let layer = LayerId(id);
            Some(Slot::Run { layer, at })
        }
        2 => NodePtr::checked(HeaderId(id), at, len, hash).map(Slot::Node),
        _ => None,
    };
    slot.ok_or_else(|| reader.refuse(format!("a root of kind {kind} that cannot be")))
}
