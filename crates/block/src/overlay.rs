//! [`Overlay`]: a device made of one writable cache over frozen ones over a read-only base.
//!
//! ```text
//! top      Cache, written            }
//! frozen   Caches, newest first      } one Stack, immutable, behind one Arc
//! base     a Device, only read       }
//! ```
//!
//! A read goes down by runs: each level answers for the runs that it holds, and asks the next for
//! the rest. A write goes to the top.
//!
//! Invariants (numbers of ARCHITECTURE.md):
//! - 4: a request loads the stack once. Freezing and retiring swap the Arc; nobody sees a closed layer.
//! - 5: freezing is a swap, whatever the size of the disk and of what is dirty in it. Requests that
//!   loaded the old stack finish in the cache that is now frozen; whoever needs a whole block from
//!   there (a partial write) waits until they have. The cut is consistent: a request that was
//!   submitted after another was acknowledged loaded the stack later, so it is in the frozen cache
//!   only if the other is.
//!
//! Not here: what becomes of a frozen cache (the session seals it), and any wire.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::cache::{BlockState, Cache};
use crate::device::{Device, DeviceError, Extent, FillBuf, Geometry, ReadSink, Room};
use crate::planted::{Bug, planted};
use crate::sync::{Arc, PoisonError, RwLock, Weak};
use crate::units::{BlockRange, ByteOffset, ByteRange};

/// A copy-on-write device.
pub struct Overlay {
    geometry: Geometry,
    stack: RwLock<Arc<Stack>>,
}

/// All levels, from the one that is written to the one that everything began from.
pub struct Stack {
    top: Arc<Cache>,
    frozen: Vec<Arc<Cache>>,
    base: Arc<dyn Device>,
}

/// What [`Overlay::freeze`] did.
#[derive(Clone, Debug)]
pub struct Freeze {
    /// The cache that was on top.
    pub frozen: Arc<Cache>,
    /// How long no request could begin.
    pub held: Duration,
}

impl Overlay {
    /// A device of `geometry` over `base`, which may be smaller: what lies past it reads as zeros.
    /// `frozen` is newest first.
    pub fn new(
        geometry: Geometry,
        top: Arc<Cache>,
        frozen: Vec<Arc<Cache>>,
        base: Arc<dyn Device>,
    ) -> Self {
        frozen.iter().for_each(|cache| cache.close_gate());
        let stack = Stack { top, frozen, base };
        Self {
            geometry,
            stack: RwLock::new(Arc::new(stack)),
        }
    }

    fn load(&self) -> Arc<Stack> {
        Arc::clone(&self.stack.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stack as it is now.
    pub fn stack(&self) -> Arc<Stack> {
        self.load()
    }

    /// Runs a request that writes, inside the top cache of the stack of this moment.
    fn inside<T>(&self, request: impl FnOnce(&Stack) -> T) -> T {
        loop {
            let stack = self.load();
            // A closed gate: it was frozen between the two lines, and the new stack is there.
            if let Some(_ticket) = stack.top.enter() {
                return request(&stack);
            }
        }
    }

    /// Puts `top`, new and empty, on top of everything. The cache below it is frozen: once
    /// [`Cache::drain`] returns it never changes again.
    pub fn freeze(&self, top: Arc<Cache>) -> Freeze {
        let begun = Instant::now();
        let mut stack = self.stack.write().unwrap_or_else(PoisonError::into_inner);
        let frozen = Arc::clone(&stack.top);
        let older = stack.frozen.iter().map(Arc::clone);
        let all = std::iter::once(Arc::clone(&frozen)).chain(older).collect();
        *stack = Arc::new(Stack {
            top,
            frozen: all,
            base: Arc::clone(&stack.base),
        });
        drop(stack);
        let held = begun.elapsed();
        frozen.close_gate();
        Freeze { frozen, held }
    }

    /// Puts `base` in the place of the oldest `count` frozen caches and the base below them: it
    /// holds what they held. Returns the old base, which lives as long as a request reads it.
    pub fn retire(&self, count: usize, base: Arc<dyn Device>) -> Weak<dyn Device> {
        let mut stack = self.stack.write().unwrap_or_else(PoisonError::into_inner);
        let kept = stack.frozen.len() - count;
        let frozen = stack.frozen[..kept].to_vec();
        let old = Arc::downgrade(&stack.base);
        *stack = Arc::new(Stack {
            top: Arc::clone(&stack.top),
            frozen,
            base,
        });
        old
    }

    fn check(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.geometry.check_range(range)
    }

    /// Whole blocks inside a range of bytes; the last block of the device counts as whole where the
    /// range holds all there is of it.
    fn whole_blocks(&self, range: ByteRange) -> BlockRange {
        let size = self.geometry.block_size;
        let mut blocks = size.blocks_inside(range);
        if range.end.0 == self.geometry.size_bytes {
            blocks = BlockRange::new(blocks.start.0, size.count_ceil(range.end.0).0);
        }
        blocks
    }
}

impl Stack {
    /// The cache that is written.
    pub fn top(&self) -> &Arc<Cache> {
        &self.top
    }

    /// The frozen caches, newest first.
    pub fn frozen(&self) -> &[Arc<Cache>] {
        &self.frozen
    }

    fn level(&self, level: usize) -> Option<&Cache> {
        match level {
            0 => Some(&self.top),
            n => self.frozen.get(n - 1).map(AsRef::as_ref),
        }
    }

    /// Reads as seen from `level`: 0 is the top, the last one the base.
    fn read(
        &self,
        level: usize,
        range: ByteRange,
        sink: &mut dyn ReadSink,
    ) -> Result<(), DeviceError> {
        let Some(cache) = self.level(level) else {
            return self.read_base(range, sink);
        };
        self.runs(cache, range, &mut |state, bytes| match state {
            BlockState::Untouched => self.read(level + 1, bytes, sink),
            BlockState::Dirty => cache.read_dirty(bytes.start, sink.data(in_memory(bytes.len()))),
            BlockState::ZeroHeld | BlockState::Zero => {
                sink.zeroes(bytes.len());
                Ok(())
            }
        })
    }

    fn read_base(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        let held = range.intersect(ByteRange::new(0, self.base.geometry().size_bytes));
        if !held.is_empty() {
            self.base.read(held, sink)?;
        }
        if held.len() < range.len() {
            sink.zeroes(range.len() - held.len());
        }
        Ok(())
    }

    /// The runs of one state in a cache, cut to the range.
    fn runs(
        &self,
        cache: &Cache,
        range: ByteRange,
        visit: &mut dyn FnMut(BlockState, ByteRange) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let size = self.base.geometry().block_size;
        let blocks = size.blocks_touched(range);
        let mut start = blocks.start;
        while start < blocks.end {
            // Looked up run by run: no lock is held while bytes are read.
            let (state, end) = cache.run_at(start, blocks.end);
            visit(
                state,
                size.bytes_of(BlockRange { start, end }).intersect(range),
            )?;
            start = end;
        }
        Ok(())
    }

    fn status(
        &self,
        level: usize,
        range: ByteRange,
        dirty: bool,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DeviceError> {
        let mut flow = ControlFlow::Continue(());
        let Some(cache) = self.level(level) else {
            return self.base_status(range, dirty, visit);
        };
        self.runs(cache, range, &mut |state, bytes| {
            if flow.is_continue() {
                // Changed since the last snapshot: what the top holds.
                let dirty = dirty || (level == 0 && state != BlockState::Untouched);
                flow = match state {
                    BlockState::Untouched => self.status(level + 1, bytes, dirty, visit)?,
                    BlockState::Dirty => visit(Extent {
                        len: bytes.len(),
                        hole: false,
                        dirty,
                    }),
                    _ => visit(Extent {
                        len: bytes.len(),
                        hole: true,
                        dirty,
                    }),
                };
            }
            Ok(())
        })?;
        Ok(flow)
    }

    fn base_status(
        &self,
        range: ByteRange,
        dirty: bool,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DeviceError> {
        let held = range.intersect(ByteRange::new(0, self.base.geometry().size_bytes));
        let mut flow = ControlFlow::Continue(());
        if !held.is_empty() {
            self.base.block_status(held, &mut |extent| {
                flow = visit(Extent { dirty, ..extent });
                flow
            })?;
        }
        let grown = range.len() - held.len();
        if flow.is_continue() && grown > 0 {
            flow = visit(Extent {
                len: grown,
                hole: true,
                dirty,
            });
        }
        Ok(flow)
    }

    /// What a partial write reads: everything below the top. A frozen cache is waited for until
    /// its last writer has left (invariant 5).
    fn read_below(&self, range: ByteRange, buf: &mut [u8]) -> Result<(), DeviceError> {
        for frozen in &self.frozen {
            if !planted(Bug::CopyUpUndrained) {
                frozen.drain();
            }
        }
        self.read(1, range, &mut FillBuf::new(buf))
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        self.top
            .write(offset, data, &|range, buf| self.read_below(range, buf))
    }

    fn write_zeroes(
        &self,
        range: ByteRange,
        whole: BlockRange,
        room: Room,
    ) -> Result<(), DeviceError> {
        let size = self.base.geometry().block_size;
        if whole.is_empty() {
            // Within one block, or across one boundary.
            return self.write(range.start, &vec![0; in_memory(range.len())]);
        }
        let middle = size.bytes_of(whole);
        let head = ByteRange {
            start: range.start,
            end: middle.start,
        };
        self.write(head.start, &vec![0; in_memory(head.len())])?;
        self.top.zero_blocks(whole, room)?;
        // The last block of a device may end past it.
        let tail = ByteRange::new(middle.end.0, range.end.0);
        self.write(tail.start, &vec![0; in_memory(tail.len())])
    }
}

impl Device for Overlay {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        self.check(range)?;
        let stack = self.load();
        if planted(Bug::StackPerBatch) && !stack.frozen.is_empty() {
            // As the stack was before the last freeze.
            return stack.read(1, range, sink);
        }
        stack.read(0, range, sink)
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        let end = offset.0.saturating_add(data.len() as u64);
        self.check(ByteRange::new(offset.0, end))?;
        self.inside(|stack| stack.write(offset, data))
    }

    fn write_zeroes(&self, range: ByteRange, room: Room) -> Result<(), DeviceError> {
        self.check(range)?;
        let whole = self.whole_blocks(range);
        self.inside(|stack| stack.write_zeroes(range, whole, room))
    }

    fn trim(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check(range)?;
        let mut whole = self.whole_blocks(range);
        if planted(Bug::TrimOutward) {
            whole = self.geometry.block_size.blocks_touched(range);
        }
        self.inside(|stack| stack.top.zero_blocks(whole, Room::Free))
    }

    /// Invariant 2: the frozen caches that are not sealed yet as well as the top.
    fn flush(&self) -> Result<(), DeviceError> {
        let stack = self.load();
        for cache in stack.frozen.iter().filter(|c| !c.is_finished()) {
            if planted(Bug::FlushForgetsFrozen) {
                continue;
            }
            // What was acknowledged has left; who is still inside was not acknowledged.
            cache.flush()?;
        }
        stack.top.flush()
    }

    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        self.check(range)?;
        self.load().status(0, range, false, visit).map(drop)
    }
}

/// The length of a part of a request, which is in memory.
fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("no longer than a request's buffer")
}
