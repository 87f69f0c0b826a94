//! Faults, one after the other.

use cowslip_memory::server::Options;

use crate::host::{Host, PAGE, shuffled};
use crate::{Size, floor, median, quantile, tell, us};

/// Pages that one frame holds.
const FRAME_PAGES: usize = 16;

pub(crate) fn run(size: Size) {
    let host = Host::new(size.pages);
    let bytes = vec![7; size.pages * PAGE];
    let serving = host.serve(Options::default());
    serving.warm();
    let mut halves = [(); 4].map(|()| Vec::new());
    for round in 0..size.rounds {
        let order = shuffled(size.pages, round as u64 + 1);
        let floor = us(&floor::faults(&bytes, &order));
        let guest = serving.guest(false);
        let times: Vec<_> = order.iter().map(|page| guest.touch(*page)).collect();
        let times = us(&times);
        let figures = [
            median(&times),
            median(&floor),
            quantile(&times, 0.99),
            quantile(&floor, 0.99),
        ];
        halves
            .iter_mut()
            .zip(figures)
            .for_each(|(all, one)| all.push(one));
    }
    let [p50, floor_p50, p99, floor_p99] = halves;
    tell(
        "hot fault, p50",
        "us",
        &p50,
        Some(&floor_p50),
        Some(("ratio at most", 1.3)),
    );
    tell("hot fault, p99", "us", &p99, Some(&floor_p99), None);
    let (mut p50, mut p99, mut walk) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        let serving = host.serve(Options::default());
        let guest = serving.guest(false);
        let frames = shuffled(size.pages / FRAME_PAGES, round as u64 + 1);
        let times: Vec<_> = frames
            .iter()
            .map(|frame| guest.touch(frame * FRAME_PAGES))
            .collect();
        let times = us(&times);
        p50.push(median(&times));
        p99.push(quantile(&times, 0.99));
        drop(guest);
        drop(serving);
        let serving = host.serve(Options::default());
        let guest = serving.guest(false);
        let begun = std::time::Instant::now();
        guest.touch_all(0..size.pages);
        walk.push(crate::gib_per_second(size.pages * PAGE, begun.elapsed()));
    }
    tell("cold fault, one frame each, p50", "us", &p50, None, None);
    tell("cold fault, one frame each, p99", "us", &p99, None, None);
    tell(
        "cold walk through all pages, the frame's rest put in place at once",
        "GiB/s",
        &walk,
        None,
        None,
    );
}
