//! [`FlushPool`]: the threads that flush the device, shared by all connections of a server, so that
//! a slow fsync holds up no read.
//!
//! ```text
//! connection --submit--> jobs --(a worker takes them all)--> device.flush() --> Completions of each
//!                                                                                  | eventfd
//! connection <---------------------------------- poll wakes, takes its completions-+
//! ```
//!
//! Invariants:
//! 1. A job is answered by a flush that began after the job was submitted: workers take the jobs
//!    first. So one flush answers any number of jobs that came while another was under way.
//! 2. Every job is answered, also when the device panics.
//! 3. Threads come when they are needed, [`FLUSH_THREADS_MAX`] at most, and stay until the end.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use cowslip_block::Device;
use rustix::event::{EventfdFlags, eventfd};

use crate::errno::Errno;
use crate::limits::FLUSH_THREADS_MAX;

/// How a flush ended: the errno and the text of a failure.
pub(crate) type Flushed = Result<(), (Errno, Arc<str>)>;

/// One connection's finished flushes.
pub(crate) struct Completions {
    ready: Mutex<Vec<(u64, Flushed)>>,
    wake: OwnedFd,
}

impl Completions {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            ready: Mutex::default(),
            wake,
        })
    }

    fn push(&self, cookie: u64, result: Flushed) {
        locked(&self.ready).push((cookie, result));
        // Fails only where the counter is full, and then it is readable all the same.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Readable while there may be something to take.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn take(&self) -> Vec<(u64, Flushed)> {
        // The event is cleared first: what comes after that sets it again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        mem::take(&mut *locked(&self.ready))
    }
}

struct Job {
    cookie: u64,
    answer_to: Arc<Completions>,
}

/// See the module.
pub(crate) struct FlushPool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    device: Arc<dyn Device>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    idle: usize,
    stopping: bool,
}

/// No code that can panic runs under these locks, so a poisoned one is still whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FlushPool {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        let shared = Shared {
            device,
            state: Mutex::default(),
            work: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            threads: Mutex::default(),
        }
    }

    /// Has the device flushed, and the answer put to `answer_to`.
    pub(crate) fn submit(&self, cookie: u64, answer_to: &Arc<Completions>) {
        let mut state = locked(&self.shared.state);
        state.jobs.push(Job {
            cookie,
            answer_to: Arc::clone(answer_to),
        });
        let idle = state.idle;
        drop(state);
        if idle > 0 {
            self.shared.work.notify_one();
        } else if !self.one_more() {
            // No thread can be had at all: the connection waits for its own flush.
            self.shared.flush_waiting();
        }
    }

    /// Starts a worker if there may be one more. False where there is none at all.
    fn one_more(&self) -> bool {
        let mut threads = locked(&self.threads);
        if threads.len() < FLUSH_THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            let worker = thread::Builder::new().name("nbd-flush".into());
            if let Ok(handle) = worker.spawn(move || shared.work()) {
                threads.push(handle);
            }
        }
        !threads.is_empty()
    }

    /// Lets the workers end; for when no connection is left to submit.
    pub(crate) fn stop(&self) -> Vec<JoinHandle<()>> {
        locked(&self.shared.state).stopping = true;
        self.shared.work.notify_all();
        mem::take(&mut *locked(&self.threads))
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let mut state = locked(&self.state);
            while state.jobs.is_empty() {
                if state.stopping {
                    return;
                }
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
            drop(state);
            self.flush_waiting();
        }
    }

    /// One flush, for all jobs that wait for one.
    fn flush_waiting(&self) {
        let jobs = mem::take(&mut locked(&self.state).jobs);
        if jobs.is_empty() {
            return;
        }
        let result: Flushed = match catch_unwind(AssertUnwindSafe(|| self.device.flush())) {
            Ok(flushed) => flushed.map_err(|e| (Errno::of_device(&e), e.to_string().into())),
            Err(_) => Err((Errno::Io, "the flush panicked".into())),
        };
        for job in jobs {
            job.answer_to.push(job.cookie, result.clone());
        }
    }
}
