//! [`Executor`]: one connection's requests, carried out on the device, with the replies gathered in
//! one output buffer.
//!
//! Everything is done at once, by the caller's thread, except flushes: FLUSH, and the second half of
//! a request with FUA, go to the [`FlushPool`] and are answered out of order.
//!
//! Invariants:
//! 1. A reply to a write is built after the device has returned; so what a FLUSH of any connection
//!    covers is in the device before the FLUSH is submitted (CAN_MULTI_CONN).
//! 2. No request adds more to [`Executor::owed`] than [`Executor::owed_with`] says: ask it first.
//! 3. A failed request becomes an error reply, never an error of the connection.

use std::ops::ControlFlow;
use std::sync::Arc;

use cowslip_block::{ByteRange, Device, DeviceError, Extent};

use crate::budget::Budget;
use crate::buffer::Buffer;
use crate::check::{Command, Door, Refusal};
use crate::counters::{Counters, add};
use crate::errno::Errno;
use crate::flush::{Completions, FlushPool};
use crate::limits::{EXTENTS_MAX, REPLY_BYTES_MAX, STATUS_REPLY_BYTES_MAX, read_reply_bytes_max};
use crate::reply::{self, ReadReply, Shape};
use crate::wire::{CONTEXTS, state};

/// What connections of one server share.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) flushes: Arc<FlushPool>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) counters: Arc<Counters>,
}

/// See the module.
pub(crate) struct Executor {
    backend: Backend,
    door: Door,
    contexts: [bool; CONTEXTS.len()],
    pub(crate) out: Buffer,
    completions: Arc<Completions>,
    /// Flushes submitted and not yet answered.
    flushing: usize,
}

/// A device error, with the number for the client.
struct Failure(Errno, String);

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self(Errno::of_device(&error), error.to_string())
    }
}

impl Executor {
    pub(crate) fn new(
        backend: Backend,
        door: Door,
        contexts: [bool; CONTEXTS.len()],
        completions: Arc<Completions>,
    ) -> Self {
        Self {
            backend,
            door,
            contexts,
            out: Buffer::default(),
            completions,
            flushing: 0,
        }
    }

    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    pub(crate) fn flushing(&self) -> usize {
        self.flushing
    }

    /// Bytes of replies not yet sent, with a reservation for each flush that is under way.
    pub(crate) fn owed(&self) -> usize {
        self.out.len() + self.flushing * REPLY_BYTES_MAX
    }

    /// The same with one more request, at most.
    pub(crate) fn owed_with(&self, command: &Command) -> usize {
        let adds = match command {
            Command::Read { range, .. } => {
                let len = u32::try_from(range.len()).expect("a request's length has 32 bits");
                read_reply_bytes_max(len)
            }
            Command::BlockStatus { .. } => STATUS_REPLY_BYTES_MAX,
            _ => REPLY_BYTES_MAX,
        };
        self.owed() + adds
    }

    /// Carries out one command and appends its reply, now or when its flush is done.
    pub(crate) fn execute(&mut self, cookie: u64, command: Command, payload: &[u8]) {
        let Backend {
            device, counters, ..
        } = &self.backend;
        let done = match command {
            Command::Read { range, whole } => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, range.len());
                return self.read(cookie, range, whole);
            }
            Command::BlockStatus { range, one } => {
                add(&counters.statuses, 1);
                return self.block_status(cookie, range, if one { 1 } else { EXTENTS_MAX });
            }
            Command::Flush => {
                add(&counters.flushes, 1);
                return self.flush(cookie);
            }
            Command::Write { offset, fua } => {
                add(&counters.writes, 1);
                add(&counters.written_bytes, payload.len() as u64);
                unless(payload.is_empty(), || device.write(offset, payload)).map(|()| fua)
            }
            Command::WriteZeroes { range, room, fua } => {
                add(&counters.zeroes, 1);
                unless(range.is_empty(), || device.write_zeroes(range, room)).map(|()| fua)
            }
            Command::Trim { range, fua } => {
                add(&counters.trims, 1);
                unless(range.is_empty(), || device.trim(range)).map(|()| fua)
            }
            // A hint, which this server does not take: to read ahead here would hold up the
            // requests behind.
            Command::Cache => {
                add(&counters.caches, 1);
                Ok(false)
            }
            Command::Disconnect => return,
        };
        match done {
            Ok(true) => {
                add(&counters.fuas, 1);
                self.flush(cookie);
            }
            Ok(false) => reply::done(&mut self.out, cookie),
            Err(error) => self.fail(cookie, &error.into()),
        }
    }

    /// Answers a request that the door has refused.
    pub(crate) fn refuse(&mut self, cookie: u64, refusal: &Refusal) {
        self.fail(
            cookie,
            &Failure(Errno::of_refusal(refusal), refusal.to_string()),
        );
    }

    fn fail(&mut self, cookie: u64, Failure(errno, text): &Failure) {
        add(&self.backend.counters.errors, 1);
        reply::error(&mut self.out, self.door.structured, cookie, *errno, text);
    }

    fn flush(&mut self, cookie: u64) {
        self.flushing += 1;
        self.backend.flushes.submit(cookie, &self.completions);
    }

    /// Appends the replies of the flushes that are done.
    pub(crate) fn take_flushed(&mut self) {
        for (cookie, result) in self.completions.take() {
            self.flushing -= 1;
            match result {
                Ok(()) => reply::done(&mut self.out, cookie),
                Err((errno, text)) => self.fail(cookie, &Failure(errno, text.to_string())),
            }
        }
    }

    fn read(&mut self, cookie: u64, range: ByteRange, whole: bool) {
        let shape = match (self.door.structured, whole) {
            (false, _) => Shape::Simple,
            (true, false) => Shape::Chunks,
            (true, true) => Shape::OneChunk,
        };
        let mut reply = ReadReply::begin(&mut self.out, shape, cookie, range);
        let read = unless(range.is_empty(), || {
            self.backend.device.read(range, &mut reply)
        });
        let failure = match (read, reply.finish()) {
            (Ok(()), Ok(())) => return,
            (Ok(()), Err(short)) => Failure(
                Errno::Io,
                format!("the device left out {short} bytes of {range}"),
            ),
            (Err(error), _) => error.into(),
        };
        reply.abandon();
        self.fail(cookie, &failure);
    }

    fn block_status(&mut self, cookie: u64, range: ByteRange, extents_max: usize) {
        let [allocation, dirty] = self.contexts;
        let mut lists = [
            (allocation, allocation_flags as fn(&Extent) -> u32),
            (dirty, dirty_flags),
        ]
        .map(|(chosen, flags)| StatusList::new(chosen, flags, range.len(), extents_max));
        let visited = self.backend.device.block_status(range, &mut |extent| {
            // Every list hears of the extent: no short cut.
            let open = lists
                .iter_mut()
                .map(|list| list.push(&extent))
                .fold(false, |a, b| a | b);
            if open {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if let Err(error) = visited {
            return self.fail(cookie, &error.into());
        }
        if lists
            .iter()
            .any(|list| list.chosen && list.extents.is_empty())
        {
            let text = format!("the device says nothing of {range}");
            return self.fail(cookie, &Failure(Errno::Io, text));
        }
        let last = lists.iter().rposition(|list| list.chosen);
        for (at, list) in lists.iter().enumerate().filter(|(_, list)| list.chosen) {
            let is_last = Some(at) == last;
            reply::status(
                &mut self.out,
                cookie,
                CONTEXTS[at].0,
                &list.extents,
                is_last,
            );
        }
    }
}

/// Nothing to do for nothing.
fn unless(nothing: bool, act: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
    if nothing { Ok(()) } else { act() }
}

fn allocation_flags(extent: &Extent) -> u32 {
    if extent.hole {
        state::HOLE | state::ZERO
    } else {
        0
    }
}

fn dirty_flags(extent: &Extent) -> u32 {
    if extent.dirty { state::DIRTY } else { 0 }
}

/// The extents of one context, equal neighbours joined, so many at most.
struct StatusList {
    chosen: bool,
    flags: fn(&Extent) -> u32,
    extents: Vec<(u32, u32)>,
    extents_max: usize,
    /// Bytes of the range that are still to come.
    left: u64,
}

impl StatusList {
    fn new(chosen: bool, flags: fn(&Extent) -> u32, len: u64, extents_max: usize) -> Self {
        let left = if chosen { len } else { 0 };
        Self {
            chosen,
            flags,
            extents: Vec::new(),
            extents_max,
            left,
        }
    }

    /// Takes one extent; says whether another could change anything.
    fn push(&mut self, extent: &Extent) -> bool {
        let len = u32::try_from(extent.len.min(self.left)).expect("a request's length has 32 bits");
        let flags = (self.flags)(extent);
        let is_full = self.extents.len() == self.extents_max;
        match self.extents.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.1 == flags => {
                last.0 += len;
                self.left -= u64::from(len);
            }
            // Full, and the next one differs: what follows is not told.
            _ if is_full => self.left = 0,
            _ => {
                self.extents.push((len, flags));
                self.left -= u64::from(len);
            }
        }
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(max: usize, len: u64, extents: &[(u64, bool)]) -> Vec<(u32, u32)> {
        let mut list = StatusList::new(true, allocation_flags, len, max);
        for &(len, hole) in extents {
            if !list.push(&Extent {
                len,
                hole,
                dirty: false,
            }) {
                break;
            }
        }
        list.extents
    }

    #[test]
    fn equal_neighbours_join_also_when_the_list_is_full() {
        let extents = [(1, true), (2, true), (3, false), (4, false), (5, true)];
        assert_eq!(list(9, 15, &extents), [(3, 3), (7, 0), (5, 3)]);
        assert_eq!(list(2, 15, &extents), [(3, 3), (7, 0)]);
        assert_eq!(list(1, 15, &extents), [(3, 3)]);
    }

    #[test]
    fn an_extent_that_is_too_long_is_cut() {
        assert_eq!(
            list(9, 10, &[(4, true), (u64::MAX, false)]),
            [(4, 3), (6, 0)]
        );
        assert_eq!(
            list(9, u64::from(u32::MAX), &[(1 << 50, true)]),
            [(u32::MAX, 3)]
        );
    }

    proptest! {
        #[test]
        fn a_list_agrees_with_a_walk_over_bytes(
            extents in proptest::collection::vec((1u64..50, any::<bool>()), 1..40),
            max in 1usize..10,
            len in 1u64..500,
        ) {
            let bytes: Vec<bool> = extents
                .iter()
                .flat_map(|&(len, hole)| vec![hole; usize::try_from(len).unwrap()])
                .take(usize::try_from(len).unwrap())
                .collect();
            let mut twin: Vec<(u32, u32)> = Vec::new();
            for hole in bytes {
                let flags = if hole { 3 } else { 0 };
                let is_full = twin.len() == max;
                match twin.last_mut() {
                    Some(last) if last.1 == flags => last.0 += 1,
                    _ if is_full => break,
                    _ => twin.push((1, flags)),
                }
            }
            prop_assert_eq!(list(max, len, &extents), twin);
        }
    }
}
