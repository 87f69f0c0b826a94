//! What the kernel alone costs.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use cowslip_memory::sys::{Event, UFFDIO_REGISTER_MODE_MISSING, Uffd};
use cowslip_vmm::Memory;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::host::{PAGE, touch};

fn memory(len: usize) -> (Memory, Uffd) {
    let memory = Memory::new(len, false).unwrap();
    let uffd = Uffd::open(0).unwrap();
    uffd.register(memory.addresses(), UFFDIO_REGISTER_MODE_MISSING)
        .unwrap();
    (memory, uffd)
}

/// Touches pages in this order, whose bytes are at hand.
pub(crate) fn faults(bytes: &[u8], order: &[usize]) -> Vec<Duration> {
    let (memory, uffd) = memory(bytes.len());
    let start = memory.addresses().start;
    let stop = eventfd(0, EventfdFlags::empty()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (faults, stop) = (uffd.as_fd(), stop.as_fd());
            let mut events = Vec::new();
            loop {
                let mut both = [
                    PollFd::new(&faults, PollFlags::IN),
                    PollFd::new(&stop, PollFlags::IN),
                ];
                poll(&mut both, None).unwrap();
                if !both[1].revents().is_empty() {
                    return;
                }
                events.clear();
                uffd.read(&mut events).unwrap();
                for event in &events {
                    if let Event::Fault { address, .. } = event {
                        let page = address / PAGE as u64 * PAGE as u64;
                        let from = usize::try_from(page - start).unwrap();
                        uffd.copy(page, &bytes[from..from + PAGE], false, true)
                            .unwrap();
                    }
                }
            }
        });
        let times = order.iter().map(|page| touch(&memory, *page)).collect();
        rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        times
    })
}

/// Puts all bytes in place, 1 MiB at a time.
pub(crate) fn bulk(bytes: &[u8]) -> Duration {
    let (memory, uffd) = memory(bytes.len());
    let mut at = memory.addresses().start;
    let begun = Instant::now();
    for piece in bytes.chunks(1 << 20) {
        uffd.copy(at, piece, false, true).unwrap();
        at += piece.len() as u64;
    }
    begun.elapsed()
}
