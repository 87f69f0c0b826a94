//! [`Impact::lost`]: which bytes of an image cannot be read.

use std::collections::BTreeSet;

use cowslip_block::{BlockRange, ByteRange};

use super::findings::Spot;
use super::impact::Impact;
use crate::header::{Header, Node, Slot};
use crate::ids::LayerId;
use crate::layer::blocks_per_frame;
use crate::limits::span;

/// Slots that one list of ranges is made from: a hostile map may lead to damage everywhere.
const STEPS_MAX: u32 = 1 << 20;

/// Bytes of an image, in order.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    pub(crate) listed: Vec<ByteRange>,
    /// There is more than is listed.
    pub(crate) more: bool,
}

impl Impact<'_> {
    /// The bytes of the image that cannot be read: at most `most` ranges.
    pub(crate) fn lost(&mut self, header: &Header, most: usize) -> Ranges {
        let mut lost = Lost {
            header,
            most,
            steps: 0,
            ranges: Ranges::default(),
        };
        let all = header.blocks();
        self.lost_below(&mut lost, &header.root(), header.height(), all);
        lost.ranges
    }

    /// `blocks` are those of the span below the slot that the image has.
    fn lost_below(&mut self, lost: &mut Lost<'_>, slot: &Slot, level: u8, blocks: BlockRange) {
        lost.steps += 1;
        if lost.steps > STEPS_MAX {
            lost.ranges.more = true;
        }
        if blocks.is_empty() || lost.ranges.more || self.is_whole(lost.header, slot, level) {
            return;
        }
        let start = blocks.start.0;
        match *slot {
            Slot::Nil => {}
            Slot::Run { layer, at } => self.lost_run(lost, layer, at, blocks),
            Slot::Node(ptr) => match self.node(lost.header, &ptr, level).as_deref() {
                None => lost.add(blocks),
                Some(Node::Leaf(runs)) => {
                    for run in runs {
                        let from = start + u64::from(run.start);
                        let run_blocks = BlockRange::new(from, from + u64::from(run.count));
                        let here = run_blocks.intersect(blocks);
                        self.lost_run(lost, run.layer, run.at, here);
                    }
                }
                Some(Node::Inner { slots, .. }) => {
                    let below = span(level - 1);
                    for (i, slot) in slots.iter().enumerate() {
                        let from = start + i as u64 * below;
                        let here = BlockRange::new(from, from + below).intersect(blocks);
                        self.lost_below(lost, slot, level - 1, here);
                    }
                }
            },
        }
    }

    fn lost_run(&self, lost: &mut Lost<'_>, layer: LayerId, at: u64, blocks: BlockRange) {
        if blocks.is_empty() {
            return;
        }
        if self.findings.has(&Spot::Layer(layer)) {
            return lost.add(blocks);
        }
        let per_frame = blocks_per_frame(lost.header.block_size());
        let end = at + blocks.count().0;
        let frames = at / per_frame..end.div_ceil(per_frame);
        let damaged = self.findings.frames_in(layer, frames.clone());
        let lacking = self.findings.lacking(layer, frames).map(|(n, _)| n);
        let lost_frames: BTreeSet<u64> = damaged.chain(lacking).collect();
        for frame in lost_frames {
            if lost.ranges.more {
                return;
            }
            let first = (frame * per_frame).max(at);
            let past = ((frame + 1) * per_frame).min(end);
            let start = blocks.start.0 + (first - at);
            lost.add(BlockRange::new(start, start + (past - first)));
        }
    }
}

struct Lost<'a> {
    header: &'a Header,
    most: usize,
    steps: u32,
    ranges: Ranges,
}

impl Lost<'_> {
    fn add(&mut self, blocks: BlockRange) {
        let bytes = self.header.block_size().bytes_of(blocks);
        let bytes = bytes.intersect(ByteRange::new(0, self.header.size_bytes()));
        let listed = &mut self.ranges.listed;
        let room = listed.len() < self.most;
        match listed.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ if room => listed.push(bytes),
            _ => self.ranges.more = true,
        }
    }
}
