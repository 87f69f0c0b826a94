//! What the server sends, judged and put where it belongs.
//!
//! ```text
//! inbox --(header of a reply or chunk)--> Pending of its cookie
//!       --(bytes of a read, as they come: Filling)--> Pending::data
//!       --(last chunk)--> answered
//! ```
//!
//! A chunk of data is copied as it arrives, so the inbox never holds one whole; all other chunks are
//! bounded by [`payload_bytes_max`] and taken whole.

use super::{Answer, Client, ClientError, Cookie, Reply, Status, StatusExtent};
use crate::errno::Errno;
use crate::limits::{CLIENT_EXTENTS_MAX, STRING_BYTES_MAX};
use crate::wire::{
    CHUNK_MAGIC, ChunkHeader, Fields, Request, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, chunk, cmd,
};

/// A request in flight, and what of its answer has come.
pub(super) struct Pending {
    kind: u16,
    offset: u64,
    len: u32,
    /// Of a read: all zeros, until chunks bring more.
    data: Vec<u8>,
    covered: Covered,
    status: Status,
    /// Which contexts have been told.
    told: [bool; 2],
    failed: Option<(Errno, String)>,
}

/// Bytes of a read that are on their way.
pub(super) struct Filling {
    cookie: u64,
    /// In [`Pending::data`].
    at: usize,
    left: usize,
    last: bool,
}

/// The parts of a read that have come: sorted, apart from each other.
#[derive(Default)]
struct Covered(Vec<(usize, usize)>);

impl Covered {
    /// Adds a part; false where it overlaps one that is there.
    fn add(&mut self, start: usize, end: usize) -> bool {
        let after = self.0.partition_point(|&(_, other_end)| other_end <= start);
        if self
            .0
            .get(after)
            .is_some_and(|&(other_start, _)| other_start < end)
        {
            return false;
        }
        match after.checked_sub(1) {
            // What comes in order makes one part of all.
            Some(before) if self.0[before].1 == start => self.0[before].1 = end,
            _ => self.0.insert(after, (start, end)),
        }
        true
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T, ClientError> {
    Err(ClientError::Protocol(what.into()))
}

impl Pending {
    pub(super) fn new(request: &Request) -> Self {
        let bytes = if request.kind == cmd::READ {
            request.len as usize
        } else {
            0
        };
        Self {
            kind: request.kind,
            offset: request.offset,
            len: request.len,
            data: vec![0; bytes],
            covered: Covered::default(),
            status: Status::default(),
            told: [false; 2],
            failed: None,
        }
    }

    /// Where in the request's data a chunk lies. It must lie within, and where nothing lay before.
    fn place(&mut self, offset: u64, len: u64) -> Result<usize, ClientError> {
        let at = offset.checked_sub(self.offset).filter(|at| {
            self.kind == cmd::READ && len > 0 && at.saturating_add(len) <= u64::from(self.len)
        });
        let Some(at) = at.and_then(|at| usize::try_from(at).ok()) else {
            return broken(format!("{len} bytes at {offset} were not asked for"));
        };
        let len = usize::try_from(len).expect("within a request's 32 bits");
        if !self.covered.add(at, at + len) {
            return broken(format!("{len} bytes at {offset} come twice"));
        }
        Ok(at)
    }

    fn hole(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let mut fields = Fields(payload);
        let (Some(offset), Some(len), []) = (fields.u64(), fields.u32(), fields.0) else {
            return broken("a hole without offset and length");
        };
        self.place(offset, u64::from(len)).map(drop)
    }

    fn take_status(&mut self, ids: &[Option<u32>; 2], payload: &[u8]) -> Result<(), ClientError> {
        let mut fields = Fields(payload);
        let id = fields.u32();
        let Some(at) = ids.iter().position(|ours| id.is_some() && *ours == id) else {
            return broken("the status of a context that was not agreed on");
        };
        if self.kind != cmd::BLOCK_STATUS || self.told[at] || fields.0.is_empty() {
            return broken("a status that was not asked for");
        }
        self.told[at] = true;
        let list = if at == 0 {
            &mut self.status.allocation
        } else {
            &mut self.status.dirty
        };
        while !fields.0.is_empty() {
            match (fields.u32(), fields.u32()) {
                (Some(len @ 1..), Some(flags)) => list.push(StatusExtent { len, flags }),
                _ => return broken("a status with an extent of nothing"),
            }
        }
        Ok(())
    }

    fn take_error(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let mut fields = Fields(payload);
        let (Some(code), Some(len)) = (fields.u32(), fields.u16()) else {
            return broken("an error without a number");
        };
        let Some(text) = fields.bytes(usize::from(len)) else {
            return broken("an error whose text is longer than its chunk");
        };
        let text = String::from_utf8_lossy(text).into_owned();
        self.failed.get_or_insert((Errno::from_code(code), text));
        Ok(())
    }

    /// The answer, now that its last piece has come.
    fn answer(self, ids: &[Option<u32>; 2]) -> Result<(Answer, String), ClientError> {
        if let Some((errno, text)) = self.failed {
            return Ok((Err(errno), text));
        }
        let reply = match self.kind {
            cmd::READ if self.covered.bytes() != self.data.len() => {
                return broken("a read that ends before its range");
            }
            cmd::READ => Reply::Data(self.data),
            cmd::BLOCK_STATUS if ids.map(|id| id.is_some()) != self.told => {
                return broken("a status that leaves out a context");
            }
            cmd::BLOCK_STATUS => Reply::Status(self.status),
            _ => Reply::Done,
        };
        Ok((Ok(reply), String::new()))
    }
}

/// What a chunk of this type may carry; data is bounded by its request instead.
fn payload_bytes_max(kind: u16) -> usize {
    match kind {
        chunk::NONE => 0,
        chunk::OFFSET_HOLE => 12,
        chunk::BLOCK_STATUS => 4 + 8 * CLIENT_EXTENTS_MAX,
        kind if kind & chunk::ERROR_BIT != 0 => 14 + STRING_BYTES_MAX,
        _ => 0,
    }
}

impl Client {
    /// Takes every reply, and part of one, that has come.
    pub(super) fn take_replies(&mut self) -> Result<(), ClientError> {
        while self.take_data()? && self.take_header()? {}
        Ok(())
    }

    /// Moves bytes of a read to their place. False where more are to come.
    fn take_data(&mut self) -> Result<bool, ClientError> {
        let Some(filling) = &mut self.filling else {
            return Ok(true);
        };
        let len = filling.left.min(self.inbox.len());
        let pending = self
            .in_flight
            .get_mut(&filling.cookie)
            .expect("it was there at the header");
        pending.data[filling.at..filling.at + len].copy_from_slice(&self.inbox.held()[..len]);
        self.inbox.consume(len);
        filling.at += len;
        filling.left -= len;
        if filling.left > 0 {
            return Ok(false);
        }
        let (cookie, last) = (filling.cookie, filling.last);
        self.filling = None;
        if last {
            self.finish(cookie)?;
        }
        Ok(true)
    }

    /// Takes one header with what belongs to it. False where more bytes are needed.
    fn take_header(&mut self) -> Result<bool, ClientError> {
        let held = self.inbox.held();
        match Fields(held).u32() {
            None => Ok(false),
            Some(SIMPLE_REPLY_MAGIC) if held.len() >= SIMPLE_REPLY_BYTES => self.take_simple(),
            Some(CHUNK_MAGIC) if held.len() >= ChunkHeader::BYTES => self.take_chunk(),
            Some(SIMPLE_REPLY_MAGIC | CHUNK_MAGIC) => Ok(false),
            Some(other) => broken(format!("{other:#010x} stands where a reply should begin")),
        }
    }

    fn pending(&mut self, cookie: u64) -> Result<&mut Pending, ClientError> {
        match self.in_flight.get_mut(&cookie) {
            Some(pending) => Ok(pending),
            None => broken(format!("a reply to {cookie}, which was not asked")),
        }
    }

    fn take_simple(&mut self) -> Result<bool, ClientError> {
        const ENOUGH: &str = "16 bytes were seen";
        let mut fields = Fields(&self.inbox.held()[4..]);
        let (code, cookie) = (fields.u32().expect(ENOUGH), fields.u64().expect(ENOUGH));
        let structured = self.info.structured;
        let pending = self.pending(cookie)?;
        let is_read = pending.kind == cmd::READ;
        if structured && is_read {
            return broken("a simple reply to a read");
        }
        let left = pending.data.len();
        if code != 0 {
            pending.failed = Some((Errno::from_code(code), String::new()));
        } else if is_read && left > 0 {
            pending.covered.add(0, left);
            self.filling = Some(Filling {
                cookie,
                at: 0,
                left,
                last: true,
            });
        }
        self.inbox.consume(SIMPLE_REPLY_BYTES);
        if self.filling.is_none() {
            self.finish(cookie)?;
        }
        Ok(true)
    }

    fn take_chunk(&mut self) -> Result<bool, ClientError> {
        const ENOUGH: &str = "20 bytes were seen";
        let held = self.inbox.held();
        let mut fields = Fields(&held[4..]);
        let (flags, kind) = (fields.u16().expect(ENOUGH), fields.u16().expect(ENOUGH));
        let (cookie, len) = (
            fields.u64().expect(ENOUGH),
            fields.u32().expect(ENOUGH) as usize,
        );
        let last = flags & chunk::DONE != 0;
        if !self.info.structured {
            return broken("a chunk, though structured replies were not agreed on");
        }
        if kind == chunk::OFFSET_DATA {
            let Some(offset) = fields.u64() else {
                return Ok(false);
            };
            let left = len.saturating_sub(8);
            let at = self.pending(cookie)?.place(offset, left as u64)?;
            self.inbox.consume(ChunkHeader::BYTES + 8);
            self.filling = Some(Filling {
                cookie,
                at,
                left,
                last,
            });
            return Ok(true);
        }
        if len > payload_bytes_max(kind) {
            return broken(format!("a chunk of type {kind:#x} with {len} bytes"));
        }
        let Some(payload) = fields.bytes(len) else {
            return Ok(false);
        };
        let payload = payload.to_vec();
        self.inbox.consume(ChunkHeader::BYTES + len);
        let ids = self.context_ids;
        let pending = self.pending(cookie)?;
        match kind {
            chunk::NONE if last => {}
            chunk::OFFSET_HOLE => pending.hole(&payload)?,
            chunk::BLOCK_STATUS => pending.take_status(&ids, &payload)?,
            kind if kind & chunk::ERROR_BIT != 0 => pending.take_error(&payload)?,
            _ => return broken(format!("a chunk of type {kind:#x}")),
        }
        if last {
            self.finish(cookie)?;
        }
        Ok(true)
    }

    fn finish(&mut self, cookie: u64) -> Result<(), ClientError> {
        let pending = self
            .in_flight
            .remove(&cookie)
            .expect("it was looked up before");
        let (answer, text) = pending.answer(&self.context_ids)?;
        self.answered.push_back((Cookie(cookie), answer, text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn covered_agrees_with_one_flag_a_byte(
            parts in proptest::collection::vec((0usize..60, 1usize..20), 1..20),
        ) {
            let mut covered = Covered::default();
            let mut twin = [false; 80];
            for (start, len) in parts {
                let part = &mut twin[start..start + len];
                let free = part.iter().all(|taken| !taken);
                if free {
                    part.fill(true);
                }
                prop_assert_eq!(covered.add(start, start + len), free);
                prop_assert_eq!(covered.bytes(), twin.iter().filter(|taken| **taken).count());
            }
        }
    }
}
