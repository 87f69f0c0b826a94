//! [`Live`]: a guest that is being served, with the process that it is.

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cowslip_block::{BlockIndex, BlockRange};
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::{Header, Store};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt::socket_peercred};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::guest::{Fill, Filled, Guest, GuestError, Served, Tracking};
use crate::handshake::Handshake;
use crate::pool::{Line, Pool, Queue, Turns};
use crate::prefetch::Prefetch;
use crate::process::Process;
use crate::regions::Regions;
use crate::server::chain;
use crate::source::Source;
use crate::sys::{UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, Uffd};
use crate::trace::Trace;

/// How long a store may fail before a guest that waits for it is given up.
pub const FETCH_WITHIN: Duration = Duration::from_secs(30);
/// While addresses are being given back, which takes as long as one read of events.
pub(crate) const PUT_OFF: Duration = Duration::from_micros(100);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Looked at behind a page that was fetched: what a frame holds.
const AHEAD_BYTES: u64 = 64 << 10;
/// A guest that is released is looked at in steps of so much.
const RELEASE_STEP_BYTES: u64 = 16 << 20;
/// Of one guest, at the same time.
const PREFETCHERS: usize = 2;

/// Hands lines to people.
pub(crate) type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// What the next snapshot is made over.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) header: Arc<Header>,
    /// Keeps it, whatever becomes of its name; who serves keeps the first.
    pub(crate) lease: Option<Lease>,
}

/// See the module.
pub struct Live {
    guest: Guest,
    pid: Pid,
    process: OwnedFd,
    memory: Option<Process>,
    /// What its memory was at its last snapshot, or when it began.
    base: Mutex<Base>,
    store: Arc<Store>,
    connection: UnixStream,
    line: Arc<Line<Self>>,
    is_over: AtomicBool,
    say: Say,
}

impl Live {
    /// The process is whoever is at the other end of the connection.
    pub(crate) fn new(
        handshake: Handshake,
        connection: UnixStream,
        source: Arc<Source>,
        say: Say,
    ) -> io::Result<Self> {
        let pid = socket_peercred(&connection)?.pid;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let uffd = Uffd::from(handshake.uffd.try_clone()?);
        // Another user's process, say: its memory is served, and not looked at.
        let memory = Process::open(pid.as_raw_nonzero().get().unsigned_abs()).ok();
        let tracking = track(&uffd, &handshake.regions, memory.as_ref());
        let base = Mutex::new(Base {
            header: Arc::clone(source.image().header()),
            lease: None,
        });
        let store = Arc::clone(source.image().store());
        Ok(Self {
            guest: Guest::new(handshake, source, tracking),
            base,
            store,
            pid,
            process,
            memory,
            connection,
            line: Arc::default(),
            is_over: AtomicBool::new(false),
            say,
        })
    }

    /// Its memory.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Where its image is, and its snapshots are to be.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn process(&self) -> Option<&Process> {
        self.memory.as_ref()
    }

    pub(crate) fn base(&self) -> &Mutex<Base> {
        &self.base
    }

    pub(crate) fn connection(&self) -> &UnixStream {
        &self.connection
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Nothing more is done for it.
    pub(crate) fn forget(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Reads what happened, and serves what takes no file; the rest is for the pool. Is it still to be served?
    pub(crate) fn serve(self: &Arc<Self>, pool: &Pool<Self>) -> bool {
        let mut faults = Vec::new();
        if let Err(error) = self.guest.read(&mut faults) {
            self.give_up(&error);
        }
        for (address, access) in faults {
            match self.guest.fault(address, access) {
                Ok(Served::Done | Served::Gone) => {}
                Ok(rest @ (Served::Cold(_) | Served::Copy(_) | Served::Again(..))) => {
                    pool.push(self, &self.line, Job::Fault(rest));
                }
                Err(error) => self.give_up(&error),
            }
        }
        !self.is_over()
    }

    /// Whatever is said after the handshake is left out.
    pub(crate) fn is_connected(&self) -> bool {
        let mut bytes = [0; 4096];
        match recv(&self.connection, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => false,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// It cannot be served: it would wait for ever, or go on with bytes that are not its own. So it ends.
    fn give_up(&self, error: &dyn std::error::Error) {
        self.forget();
        self.tell(format_args!("{}; it is killed", chain(error)));
        // It may be gone already.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    pub(crate) fn tell(&self, what: impl Display) {
        (self.say)(&format!("guest of process {}: {what}", self.pid()));
    }
}

/// What may take a while.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// A fault that could not be served at once.
    Fault(Served),
    /// What nobody has asked for yet.
    Prefetch(Arc<Prefetch>),
}

impl Turns for Live {
    type Job = Job;

    fn act(self: &Arc<Self>, job: Job, queue: &Queue<Self>) {
        match job {
            Job::Fault(served) => self.serve_slowly(served),
            Job::Prefetch(prefetch) => match prefetch.step(&self.guest) {
                Ok(true) if !self.is_over() => {
                    queue.push(self, &self.line, Job::Prefetch(prefetch));
                }
                Ok(_) => {}
                Err(GuestError::Bytes { claim, source }) => self.tell(format_args!(
                    "page {}: {source}; nothing more is prefetched",
                    claim.page().0
                )),
                Err(error) => self.give_up(&error),
            },
        }
    }
}

impl Live {
    /// Serves a fault to its end.
    fn serve_slowly(&self, job: Served) {
        let give_up = Instant::now() + FETCH_WITHIN;
        let (mut pause, mut next) = (PAUSE_MIN, Ok(job));
        while !self.is_over() {
            next = match next {
                Ok(Served::Done | Served::Gone) => return,
                Ok(Served::Cold(claim)) => match self.guest.fetch(claim) {
                    Ok(Served::Done) => return self.look_ahead(claim.page()),
                    other => other,
                },
                Ok(Served::Copy(page)) => match &self.memory {
                    Some(memory) => self.guest.copy_first(page, memory),
                    None => Err(GuestError::Abandoned),
                },
                Ok(Served::Again(page, event)) if Instant::now() < give_up => {
                    thread::sleep(PUT_OFF);
                    self.guest.serve(page, event)
                }
                Err(GuestError::Bytes { claim, source }) if Instant::now() < give_up => {
                    if pause == PAUSE_MIN {
                        self.tell(format_args!(
                            "page {}: {source}; it is tried again",
                            claim.page().0
                        ));
                    }
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                    self.guest.serve(claim.page(), claim.event())
                }
                Ok(Served::Again(..)) => {
                    return self.give_up(&GuestError::Kernel {
                        what: "putting a page in place",
                        why: Errno::AGAIN,
                    });
                }
                Err(error) => return self.give_up(&error),
            };
        }
    }
}

impl Live {
    /// What came with a page is at hand now: a guest that goes on there does not stop again.
    fn look_ahead(&self, page: BlockIndex) {
        let pages = AHEAD_BYTES / u64::from(self.guest.regions().page_size().bytes());
        let ahead = BlockRange::new(page.0 + 1, page.0 + 1 + pages);
        // A trace is to have what was touched, and no more.
        if self.guest.is_recorded() {
            return;
        }
        if let Err(error) = self.guest.fill(ahead, Fill::AtHand) {
            self.give_up(&error);
        }
    }

    /// Prefetches.
    pub(crate) fn prefetch(self: &Arc<Self>, trace: &Arc<Trace>, pool: &Pool<Self>) {
        let page = self.guest.regions().page_size();
        // All guests share it, but for those that have other pages than the first one had.
        let trace = match trace.page() == page {
            true => Arc::clone(trace),
            false => Arc::new(trace.in_pages_of(page)),
        };
        let prefetch = Arc::new(Prefetch::new(trace));
        for _ in 0..PREFETCHERS {
            pool.push(self, &self.line, Job::Prefetch(Arc::clone(&prefetch)));
        }
    }

    /// Puts all in place that is left, so that it needs nobody any more, and lets it go. `progress` is handed bytes that were looked at, of all.
    ///
    /// # Errors
    /// [`GuestError`]: it is still served then.
    pub(crate) fn release(&self, progress: &dyn Fn(u64, u64)) -> Result<(), GuestError> {
        let all = self.guest.regions().pages();
        let page_bytes = u64::from(self.guest.regions().page_size().bytes());
        let step = (RELEASE_STEP_BYTES / page_bytes).max(1);
        for start in (0..all.end.0).step_by(usize::try_from(step).unwrap_or(1)) {
            if self.is_over() {
                return Ok(());
            }
            let end = all.end.0.min(start + step);
            self.release_some(BlockRange::new(start, end))?;
            progress(end * page_bytes, all.end.0 * page_bytes);
        }
        self.guest.let_go()?;
        self.forget();
        Ok(())
    }

    /// When this returns, none of them that the image has bytes for is missing: also none that somebody was at, who may have failed.
    fn release_some(&self, pages: BlockRange) -> Result<(), GuestError> {
        let (give_up, mut pause) = (Instant::now() + FETCH_WITHIN, PAUSE_MIN);
        loop {
            match self.guest.fill(pages, Fill::Stored) {
                Ok(Filled {
                    stopped: None,
                    left: 0,
                    ..
                }) => return Ok(()),
                Ok(filled) if filled.is_gone() => return Ok(()),
                Ok(_) if Instant::now() < give_up => thread::sleep(PUT_OFF),
                Ok(filled) => {
                    return Err(GuestError::Kernel {
                        what: "putting pages in place",
                        why: filled.stopped.unwrap_or(Errno::TIMEDOUT),
                    });
                }
                Err(GuestError::Bytes { .. }) if Instant::now() < give_up => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Nobody serves it from here on, and it cannot go on alone.
    pub(crate) fn abandon(&self) {
        if !self.is_over() {
            self.give_up(&GuestError::Abandoned);
        }
    }
}

/// How writes can be noticed, and from now on are: what the monitor asked for when it made the userfaultfd decides. Where nobody can tell, not at all.
fn track(uffd: &Uffd, regions: &Regions, process: Option<&Process>) -> Tracking {
    let all = || {
        regions
            .addresses_of(regions.pages())
            .map(|(_, addresses)| addresses)
    };
    let register = |mode| all().try_for_each(|addresses| uffd.register(addresses, mode));
    let is_async = |process: &Process| {
        register(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)?;
        let mut each = all().map(|addresses| process.is_async(addresses));
        each.try_fold(true, |all, one| match one {
            // Linux before 6.7 notes nothing.
            Err(Errno::NOTTY) => Ok(false),
            one => Ok::<_, Errno>(all & one?),
        })
    };
    match process.map(is_async) {
        Some(Ok(true)) => Tracking::Async,
        Some(Ok(false)) => Tracking::Sync,
        Some(Err(_)) | None => {
            // As it was. If that cannot be, nothing is protected either, and so nothing is told.
            let _ = register(UFFDIO_REGISTER_MODE_MISSING);
            Tracking::None
        }
    }
}
