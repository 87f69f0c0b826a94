//! [`Storing`]: the new pages of a memory become a layer: those that stand alone, then those that are deltas.

use std::sync::Arc;

use cowslip_block::{BlockIndex, BlockRange};
use cowslip_snapshot::header::Merged;
use cowslip_snapshot::layer::Base;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::{Image, LayerSummary, LayerWriter, MapRun, Store, StoreError, Target};

use super::{BATCH_PAGES, MemorySpec, PAGE};
use crate::choice::is_alike;

/// Bytes between two words of progress.
const TELL_BYTES: u64 = 1 << 20;

pub(super) struct Storing<'a> {
    store: &'a Arc<Store>,
    lease: &'a Lease,
    spec: &'a MemorySpec<'a>,
    parent: Option<&'a Image>,
    layer: Option<LayerWriter>,
    /// Where pages are, in order but for those that are deltas.
    stored: Merged,
    /// Pages like the parent's, and where those are.
    alike: Merged,
    page: Vec<u8>,
    done_bytes: u64,
}

impl<'a> Storing<'a> {
    pub(super) fn new(
        store: &'a Arc<Store>,
        lease: &'a Lease,
        spec: &'a MemorySpec<'a>,
        parent: Option<&'a Image>,
    ) -> Self {
        Self {
            store,
            lease,
            spec,
            parent,
            layer: None,
            stored: Merged::default(),
            alike: Merged::default(),
            page: vec![0; PAGE.bytes_usize()],
            done_bytes: 0,
        }
    }

    /// New pages, behind those before: `on_disk` says of each where the disk has it.
    pub(super) fn pages(
        &mut self,
        pages: BlockRange,
        tell: &mut dyn FnMut(u64),
        on_disk: &mut dyn FnMut(BlockIndex) -> Option<Target>,
    ) -> Result<(), StoreError> {
        let mut start = pages.start.0;
        while start < pages.end.0 {
            let end = pages.end.0.min(start + BATCH_PAGES);
            for run in self.in_parent(BlockRange::new(start, end))? {
                for (by, page) in (0..).zip(run.blocks.iter()) {
                    match on_disk(page) {
                        Some(to) => self.is_at(page, to, tell),
                        None => self.new_page(page, run.to.after(by), tell)?,
                    }
                }
            }
            start = end;
        }
        Ok(())
    }

    /// The deltas, and the end: where all of them are, in no order.
    pub(super) fn finish(
        mut self,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(Vec<MapRun>, Option<LayerSummary>), StoreError> {
        let mut all = std::mem::take(&mut self.stored).runs().to_vec();
        let alike = std::mem::take(&mut self.alike);
        for run in alike.runs() {
            for (by, page) in (0..).zip(run.blocks.iter()) {
                self.read(page)?;
                let base = self.base(run.to.after(by));
                self.store_page(page, base.as_ref(), tell)?;
            }
        }
        all.extend(self.stored.runs());
        Ok((all, self.layer.map(LayerWriter::finish).transpose()?))
    }

    /// Where the parent has them.
    fn in_parent(&self, pages: BlockRange) -> Result<Vec<MapRun>, StoreError> {
        match self.parent {
            Some(parent) => parent.header().runs(pages),
            None => Ok(vec![MapRun {
                blocks: pages,
                to: Target::Zero,
            }]),
        }
    }

    fn new_page(
        &mut self,
        page: BlockIndex,
        before: Target,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        self.read(page)?;
        let base = self.base(before);
        if base.is_some_and(|base| is_alike(&self.page, base.bytes())) {
            self.alike.push(MapRun {
                blocks: BlockRange::one(page),
                to: before,
            });
            return Ok(());
        }
        self.store_page(page, None, tell)
    }

    /// What a page may be a delta against that was there before. What cannot be read is none.
    fn base(&self, before: Target) -> Option<Base> {
        let Target::Layer { id, at } = before else {
            return None;
        };
        self.store.base_of(id, at, PAGE).ok().flatten()
    }

    fn read(&mut self, page: BlockIndex) -> Result<(), StoreError> {
        let at = PAGE.offset_of(page).0;
        self.spec.source.read(at, &mut self.page)
    }

    fn store_page(
        &mut self,
        page: BlockIndex,
        base: Option<&Base>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let layer = match &mut self.layer {
            Some(layer) => layer,
            none => none.insert(self.store.layer_writer(self.lease, PAGE)?),
        };
        let at = match base {
            Some(base) => layer.push_over(&self.page, base)?,
            None => layer.push(&self.page)?,
        };
        let id = layer.id();
        self.is_at(page, Target::Layer { id, at }, tell);
        Ok(())
    }

    fn is_at(&mut self, page: BlockIndex, to: Target, tell: &mut dyn FnMut(u64)) {
        let blocks = BlockRange::one(page);
        self.stored.push(MapRun { blocks, to });
        self.done_bytes += u64::from(PAGE.bytes());
        if self.done_bytes.is_multiple_of(TELL_BYTES) {
            tell(self.done_bytes);
        }
    }
}
