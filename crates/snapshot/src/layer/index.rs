//! The index of a layer object: for each frame its kind, stored length and checksum.
//!
//! Frames lie end to end, so a frame's position is the sum of the lengths before it. One position
//! in 64 is kept in memory, and the rest is added up: 8 bytes a frame instead of 16.

use crate::codec::Reader;
use crate::error::ObjectError;
use crate::layer::footer::Footer;
use crate::layer::frame::Kind;
use crate::limits::LAYER_FRAMES_MAX;

pub(super) const ENTRY_BYTES: usize = 8;
const ENTRIES_PER_MARK: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) len: u32,
    pub(super) crc: u32,
}

#[derive(Debug)]
pub(super) struct Index {
    entries: Vec<Entry>,
    marks: Vec<u64>,
}

impl Entry {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let word = u32::from(self.kind.code()) << 24 | self.len;
        out.extend(word.to_le_bytes());
        out.extend(self.crc.to_le_bytes());
    }

    fn decode(
        reader: &mut Reader<'_>,
        frame_bytes: usize,
        footer: &Footer,
    ) -> Result<Self, ObjectError> {
        let word = reader.u32()?;
        let (code, len) = (word.to_le_bytes()[3], word & 0x00ff_ffff);
        let known = |kind: &Kind| *kind != Kind::Delta || footer.bases > 0;
        let Some(kind) = Kind::of(code).filter(known) else {
            return Err(reader.refuse(format!("a frame is of the unknown kind {code}")));
        };
        let stored = len as usize;
        let fits = match kind {
            Kind::Raw => stored == frame_bytes,
            Kind::Zstd | Kind::Delta => stored > 0 && stored < frame_bytes,
        };
        if !fits {
            let why = format!("a {kind:?} frame of {frame_bytes} bytes is stored in {len}");
            return Err(reader.refuse(why));
        }
        let crc = reader.u32()?;
        Ok(Self { kind, len, crc })
    }
}

impl Index {
    /// Checks the index, whose checksum matches, against the footer.
    pub(super) fn decode(reader: &mut Reader<'_>, footer: &Footer) -> Result<Self, ObjectError> {
        let frames = usize::try_from(footer.frames().min(LAYER_FRAMES_MAX))
            .expect("the most frames of a layer fit in memory's index");
        let mut entries = Vec::with_capacity(frames);
        let mut marks = Vec::with_capacity(entries.capacity() / ENTRIES_PER_MARK + 1);
        let mut position = 0u64;
        for frame in 0..footer.frames() {
            let Some(frame_bytes) = footer.frame_bytes(frame) else {
                return Err(reader.refuse(format!("frame {frame} holds nothing")));
            };
            let entry = Entry::decode(reader, frame_bytes, footer)?;
            if entries.len().is_multiple_of(ENTRIES_PER_MARK) {
                marks.push(position);
            }
            position += u64::from(entry.len);
            entries.push(entry);
        }
        if position != footer.index_at {
            let why = format!("the frames end at byte {position}, the index says");
            return Err(reader.refuse(why));
        }
        Ok(Self { entries, marks })
    }

    /// Where a frame lies, and what it is.
    pub(super) fn get(&self, frame: u64) -> Option<(u64, Entry)> {
        let at = usize::try_from(frame).ok()?;
        let entry = *self.entries.get(at)?;
        let mark = at / ENTRIES_PER_MARK;
        let since = &self.entries[mark * ENTRIES_PER_MARK..at];
        let skipped: u64 = since.iter().map(|e| u64::from(e.len)).sum();
        Some((self.marks[mark] + skipped, entry))
    }

    /// The frames that are deltas, in order.
    pub(super) fn deltas(&self) -> impl Iterator<Item = u64> + '_ {
        let numbered = (0..).zip(&self.entries);
        let deltas = numbered.filter(|(_, entry)| entry.kind == Kind::Delta);
        deltas.map(|(n, _)| n)
    }

    pub(super) fn lens(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().map(|entry| entry.len)
    }

    /// The memory that it takes.
    pub(super) fn weight(&self) -> u64 {
        (self.entries.len() * size_of::<Entry>() + self.marks.len() * size_of::<u64>()) as u64
    }
}
