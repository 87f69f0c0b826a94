//! A trace that is replayed while the guest does nothing.

use std::sync::Arc;
use std::time::Instant;

use cowslip_block::{BlockIndex, BlockSize};
use cowslip_memory::page::PageState;
use cowslip_memory::server::Options;
use cowslip_memory::trace::Trace;

use crate::host::{Host, PAGE, until};
use crate::{Size, floor, gib_per_second, tell};

pub(crate) fn run(size: Size) {
    let host = Host::new(size.pages);
    let mut trace = Trace::new(BlockSize::DISK);
    (0..size.pages as u64).for_each(|page| trace.touched(BlockIndex(page)));
    let options = Options {
        trace: Some(Arc::new(trace)),
        record: false,
    };
    let (mut cold, mut hot, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    let bytes = vec![7; size.pages * PAGE];
    for _ in 0..size.rounds {
        floors.push(gib_per_second(bytes.len(), floor::bulk(&bytes)));
        let serving = host.serve(options.clone());
        for figures in [&mut cold, &mut hot] {
            let begun = Instant::now();
            let guest = serving.guest(false);
            let missing = || {
                guest
                    .live
                    .guest()
                    .states()
                    .count(PageState::Missing)
                    .unwrap()
                    .0
            };
            until(|| (missing() == 0).then_some(()));
            figures.push(gib_per_second(bytes.len(), begun.elapsed()));
        }
    }
    tell(
        "prefetch, decoded before",
        "GiB/s",
        &hot,
        Some(&floors),
        Some(("ratio at least", 0.8)),
    );
    tell(
        "prefetch, read and decoded",
        "GiB/s",
        &cold,
        Some(&floors),
        None,
    );
}
