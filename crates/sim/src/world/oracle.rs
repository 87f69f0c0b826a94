//! [`Oracle`]: what the clients know: of every block of every session all values that were written to
//! it, in order, and how far they are promised; of every snapshot what it holds.
//!
//! A value is promised after a kill once it was acknowledged, after a power cut once a flush was
//! acknowledged that was asked for later (invariant 2), or the snapshot that holds it was reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::BLOCK;
use super::operation::SessionNumber;
use crate::memory::SECTOR_BYTES;

type Value = Arc<[u8]>;

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was killed.
    Kill,
    /// The power went.
    Cut,
}

#[derive(Clone, Debug)]
struct Block {
    values: Vec<Value>,
    acknowledged: usize,
    durable: usize,
}

impl Block {
    fn new(value: Value) -> Self {
        Self {
            values: vec![value],
            acknowledged: 0,
            durable: 0,
        }
    }

    fn last(&self) -> &Value {
        &self.values[self.values.len() - 1]
    }
}

/// A session's device, block by block.
#[derive(Clone, Debug)]
pub(super) struct DeviceOracle {
    /// Of the session.
    pub(super) dir: String,
    blocks: Vec<Block>,
}

impl DeviceOracle {
    pub(super) fn new(dir: &str, image: &[u8]) -> Self {
        let blocks = image.chunks(BLOCK).map(|b| Block::new(b.into()));
        Self {
            dir: dir.to_owned(),
            blocks: blocks.collect(),
        }
    }

    /// As the last request leaves it, acknowledged or not.
    pub(super) fn image(&self) -> Vec<u8> {
        let last = self.blocks.iter().flat_map(|block| block.last().iter());
        last.copied().collect()
    }

    pub(super) fn submit(&mut self, at: usize, bytes: &[u8]) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let start = i * BLOCK;
            let from = at.max(start);
            let to = (at + bytes.len()).min(start + block.last().len());
            if from < to {
                let mut value = block.last().to_vec();
                value[from - start..to - start].copy_from_slice(&bytes[from - at..to - at]);
                block.values.push(value.into());
            }
        }
    }

    /// Whole blocks inside, the device's last one where it ends there.
    pub(super) fn trim(&mut self, at: usize, len: usize) {
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let size = block.last().len();
            if at <= i * BLOCK && i * BLOCK + size <= at + len {
                block.values.push(vec![0; size].into());
            }
        }
    }

    pub(super) fn acknowledge(&mut self) {
        for block in &mut self.blocks {
            block.acknowledged = block.values.len() - 1;
        }
    }

    /// A request failed: each block holds what it was asked to, or what was there; that is its last value now.
    pub(super) fn settle(&mut self, image: &[u8]) -> Result<(), String> {
        let mut blocks = image.chunks(BLOCK).enumerate();
        blocks.try_for_each(|(i, now)| self.settle_block(i, Some(now)))
    }

    /// The same, of one block; of one that cannot be read, because what lies below the session is lost, no request that
    /// failed has changed it.
    pub(super) fn settle_block(&mut self, i: usize, now: Option<&[u8]>) -> Result<(), String> {
        let block = &mut self.blocks[i];
        let Some(now) = now else {
            block.values.truncate(block.acknowledged + 1);
            return Ok(());
        };
        let mut may_be = block.values[block.acknowledged..].iter();
        if !may_be.any(|value| **value == *now) {
            return Err(format!(
                "block {i} holds what was not there, and not asked for"
            ));
        }
        if **block.last() != *now {
            block.values.push(now.into());
        }
        Ok(())
    }

    pub(super) fn flushed(&mut self) {
        for block in &mut self.blocks {
            block.durable = block.acknowledged;
        }
    }

    /// Which value of each block is its last.
    fn cut(&self) -> Vec<usize> {
        self.blocks.iter().map(|b| b.values.len() - 1).collect()
    }

    fn durable_until(&mut self, cut: &[usize]) {
        for (block, value) in self.blocks.iter_mut().zip(cut) {
            block.durable = block.durable.max(*value);
        }
    }

    /// Is this what the end may have left? Takes it as the new beginning.
    pub(super) fn accept(&mut self, image: &[u8], promised: End) -> Result<(), String> {
        let size: usize = self.blocks.iter().map(|b| b.last().len()).sum();
        if image.len() != size {
            return Err(format!("{} bytes rather than {size}", image.len()));
        }
        let mut blocks = image.chunks(BLOCK).enumerate();
        blocks.try_for_each(|(i, now)| self.accept_block(i, Some(now), promised))
    }

    /// The same, of one block; one that cannot be read may still be what it may have been.
    pub(super) fn accept_block(
        &mut self,
        i: usize,
        now: Option<&[u8]>,
        promised: End,
    ) -> Result<(), String> {
        let block = &mut self.blocks[i];
        let floor = match promised {
            End::Kill => block.acknowledged,
            End::Cut => block.durable,
        };
        let Some(now) = now else {
            block.acknowledged = floor;
            return Ok(());
        };
        let is_now = |value: &Value| **value == *now;
        let whole = block.values[floor..].iter().rposition(is_now);
        // A disk may tear what was not flushed, between two sectors.
        let is_torn = || promised == End::Cut && is_torn(&block.values[floor..], now);
        let Some(found) = whole.or_else(|| is_torn().then_some(0)) else {
            let found = block.values.iter().position(|value| **value == *now);
            let wanted = format!("value {floor} of {}, or a later one", block.values.len());
            return Err(match found {
                Some(old) => format!("block {i} holds value {old}; promised was {wanted}"),
                None => format!("block {i} holds what nobody wrote; promised was {wanted}"),
            });
        };
        match promised {
            End::Cut => *block = Block::new(now.into()),
            End::Kill => {
                // A power cut may still take what was not flushed.
                block.values.truncate(floor + found + 1);
                block.values.drain(..block.durable);
                block.acknowledged = block.values.len() - 1;
                block.durable = 0;
            }
        }
        Ok(())
    }
}

/// Is each sector of it one of these values'?
fn is_torn(values: &[Value], now: &[u8]) -> bool {
    let is_one = |(i, sector): (usize, &[u8])| {
        let at = i * SECTOR_BYTES;
        values
            .iter()
            .any(|value| value[at..at + sector.len()] == *sector)
    };
    now.chunks(SECTOR_BYTES).enumerate().all(is_one)
}

/// A snapshot that was asked for.
#[derive(Clone, Debug)]
pub(super) struct SnapshotOracle {
    pub(super) image: Arc<[u8]>,
    /// Somebody was told that it is there.
    pub(super) reported: bool,
    /// Its removal was asked for.
    pub(super) removing: bool,
    /// Of which session, and what was the last value of each block then: until the next start.
    cut: Option<(SessionNumber, Vec<usize>)>,
}

/// All that the clients know.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    pub(super) sessions: BTreeMap<SessionNumber, DeviceOracle>,
    /// Sessions that were asked for, and not answered.
    pub(super) beginning: BTreeMap<SessionNumber, DeviceOracle>,
    pub(super) snapshots: BTreeMap<String, SnapshotOracle>,
    /// Names whose removal was answered, and what they held.
    pub(super) removed: BTreeMap<String, SnapshotOracle>,
}

impl Oracle {
    pub(super) fn template(&mut self, name: &str, image: &[u8]) {
        let snapshot = SnapshotOracle {
            image: image.into(),
            reported: true,
            removing: false,
            cut: None,
        };
        self.snapshots.insert(name.to_owned(), snapshot);
    }

    pub(super) fn freeze(&mut self, session: SessionNumber, name: &str) {
        let device = &self.sessions[&session];
        let snapshot = SnapshotOracle {
            image: device.image().into(),
            reported: false,
            removing: false,
            cut: Some((session, device.cut())),
        };
        self.snapshots.insert(name.to_owned(), snapshot);
    }

    /// Somebody asks for the removal of a name.
    pub(super) fn remove(&mut self, name: &str) {
        let snapshot = self.snapshots.get_mut(name);
        snapshot.into_iter().for_each(|s| s.removing = true);
    }

    /// Somebody was told that a name is removed.
    pub(super) fn removed(&mut self, name: &str) {
        self.removed.extend(self.snapshots.remove_entry(name));
    }

    /// Somebody was told that the snapshot is there: what it holds is durable.
    pub(super) fn stored(&mut self, name: &str) {
        let Some(snapshot) = self.snapshots.get_mut(name) else {
            return;
        };
        snapshot.reported = true;
        if let Some((session, cut)) = &snapshot.cut
            && let Some(device) = self.sessions.get_mut(session)
        {
            device.durable_until(cut);
        }
    }

    /// A process began: what it finds in a session is that session's first value.
    pub(super) fn begin(&mut self) {
        for snapshot in self.snapshots.values_mut() {
            snapshot.cut = None;
        }
    }

    /// The same of one session, in the same process.
    pub(super) fn begin_again(&mut self, session: SessionNumber) {
        for snapshot in self.snapshots.values_mut() {
            snapshot.cut.take_if(|(of, _)| *of == session);
        }
    }

    /// What became of each name is known now.
    pub(super) fn settle(&mut self, there: &dyn Fn(&str) -> bool) {
        // A removal that was not answered may have been seen, and not be durable.
        self.snapshots.retain(|name, s| there(name) || s.removing);
        for (name, snapshot) in &mut self.snapshots {
            snapshot.removing &= !there(name);
        }
        self.removed.clear();
    }
}
