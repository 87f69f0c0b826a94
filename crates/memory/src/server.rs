//! [`Server`]: the guests of one snapshot, as many as come, in one process.
//!
//! ```text
//! listener ── a connection ──> handshake (a thread, for a moment) ──> Guest
//! userfaultfds ──> epoll ──> one thread: reads what happened, serves what is at hand          never blocks
//!                              └─ what is not, what the kernel puts off ──> pool, in turns      may block
//! ```
//!
//! | what goes wrong | what is done |
//! |---|---|
//! | a handshake that is wrong, or does not end | said; the connection is closed, and the monitor says that it could not restore |
//! | a page whose bytes cannot be had, for [`FETCH_WITHIN`](crate::live::FETCH_WITHIN) | said; the guest's process is killed. It would wait for ever, and zeros would be a lie |
//! | what no guest does, what the kernel should not say | the same |
//! | the guest's process ends, or closes its connection | it is forgotten |
//! | the server is dropped | guests that it has not released are killed |
//! | this process is killed | a monitor that has kept its userfaultfd, as Firecracker does, waits at its next fault for ever; of one that has not, the kernel lets all who wait go on, and a page that was never served reads as zeros. So a monitor must end with its server: it holds the other end of the connection, and sees it close |
//!
//! Locks: the table of guests, held for a look-up.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::handshake::{HandshakeError, receive};
use crate::limits::{GUESTS_MAX, HANDSHAKES_MAX};
use crate::live::{Live, Say};
use crate::pool::Pool;
use crate::source::Source;
use crate::trace::Trace;

/// A monitor sends its handshake at once.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Threads that fetch what is not at hand.
const POOL_THREADS: usize = 4;
/// Guests are looked at in batches of so many.
const BATCH: usize = 64;
/// What is told apart by a number: this is the end; the others are guests.
const STOP: u64 = 0;

/// How guests are served.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Put in place before they ask.
    pub trace: Option<Arc<Trace>>,
    /// What the first one touches is noted, for [`Server::await_trace`].
    pub record: bool,
}

/// See the module.
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    source: Arc<Source>,
    record: bool,
    /// What was touched first, once that is known.
    trace: OnceLock<Arc<Trace>>,
    recording: Mutex<Recording>,
    /// Something became of the recording, or of the guest.
    recording_changed: Condvar,
    epoll: OwnedFd,
    /// Readable from the end on, for all who wait.
    stop: OwnedFd,
    guests: Mutex<HashMap<u64, Arc<Live>>>,
    next: AtomicU64,
    handshakes: AtomicUsize,
    pool: Pool<Live>,
    say: Say,
}

/// The noting of what the first guest touches.
#[derive(Default)]
struct Recording {
    /// It, and since when.
    of: Option<(Arc<Live>, Instant)>,
    is_over: bool,
}

/// The two of a guest that are waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Uffd,
    Connection,
}

impl Which {
    fn token(self, id: u64) -> epoll::EventData {
        epoll::EventData::new_u64(id << 1 | u64::from(self == Self::Connection))
    }

    fn of(token: u64) -> (Self, u64) {
        let which = match token & 1 {
            0 => Self::Uffd,
            _ => Self::Connection,
        };
        (which, token >> 1)
    }
}

impl Server {
    /// Serves all who come to the listener from this source. `say` is handed lines for people.
    ///
    /// # Errors
    /// The system's: descriptors, threads.
    pub fn start(
        listener: UnixListener,
        source: Arc<Source>,
        options: Options,
        say: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let end = epoll::EventData::new_u64(STOP);
        epoll::add(&epoll, &stop, end, epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared {
            source,
            record: options.record,
            trace: options.trace.map_or_else(OnceLock::new, OnceLock::from),
            recording: Mutex::default(),
            recording_changed: Condvar::new(),
            epoll,
            stop,
            guests: Mutex::default(),
            next: AtomicU64::new(1),
            handshakes: AtomicUsize::new(0),
            pool: Pool::new(POOL_THREADS, "fetch")?,
            say: Arc::new(say),
        });
        let mut server = Self {
            shared,
            threads: Vec::new(),
        };
        let shared = Arc::clone(&server.shared);
        server.spawn("faults", move || shared.serve())?;
        let shared = Arc::clone(&server.shared);
        server.spawn("accept", move || Shared::accept(&shared, &listener))?;
        Ok(server)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?;
        self.threads.push(thread);
        Ok(())
    }

    /// What the first guest touches in this time, from its coming on; less where it ends before, or [`Server::end_record`] is called. Waits for it.
    /// Nothing where no guest came, and where nothing is noted.
    pub fn await_trace(&self, time: Duration) -> Option<Trace> {
        let wait = |recording| self.shared.recording_changed.wait(recording);
        let mut recording = self.shared.recording();
        if !self.shared.record {
            return None;
        }
        let live = loop {
            let left = match &recording.of {
                Some((live, since)) => match time.checked_sub(since.elapsed()) {
                    Some(left) if !recording.is_over && !live.is_over() => left,
                    _ => break Arc::clone(live),
                },
                None if recording.is_over => return None,
                None => {
                    recording = wait(recording).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            let waited = self.shared.recording_changed.wait_timeout(recording, left);
            recording = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        (recording.is_over, recording.of) = (true, None);
        drop(recording);
        let trace = live.guest().end_record()?;
        // For those who come from now on.
        let _ = self.shared.trace.set(Arc::new(trace.clone()));
        Some(trace)
    }

    /// Nothing is noted any more: whoever waits for the trace has it now.
    pub fn end_record(&self) {
        self.shared.recording().is_over = true;
        self.shared.recording_changed.notify_all();
    }

    /// Lets all guests go on alone: what is left of their memory is put in place. Those for which that cannot be done are
    /// said, and stay. `progress` is handed bytes of one guest's memory, and all of them.
    pub fn release(&self, progress: &dyn Fn(u64, u64)) {
        for live in self.guests() {
            if let Err(error) = live.release(progress) {
                live.tell(format_args!(
                    "it needs this server still: {}",
                    chain(&error)
                ));
            }
        }
    }

    /// Kills all guests that are still served: nobody will.
    pub fn abandon(&self) {
        self.guests().iter().for_each(|live| live.abandon());
    }

    /// The guests that are served now.
    pub fn guests(&self) -> Vec<Arc<Live>> {
        self.shared.locked().values().cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An eventfd takes a number of 8 bytes (eventfd(2)), and one that was never written to has room.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            drop(thread.join());
        }
        self.abandon();
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        let recording = self.recording.lock();
        recording.unwrap_or_else(PoisonError::into_inner)
    }

    /// Is this the guest whose touches are noted?
    fn record(&self, live: &Arc<Live>) {
        let mut recording = self.recording();
        if self.record && !recording.is_over && recording.of.is_none() {
            live.guest().record();
            recording.of = Some((Arc::clone(live), Instant::now()));
            self.recording_changed.notify_all();
        }
    }

    fn accept(shared: &Arc<Self>, listener: &UnixListener) {
        loop {
            let (listening, stop) = (listener.as_fd(), shared.stop.as_fd());
            let mut both = [
                PollFd::new(&listening, PollFlags::IN),
                PollFd::new(&stop, PollFlags::IN),
            ];
            match poll(&mut both, None) {
                Ok(_) if !both[1].revents().is_empty() => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return (shared.say)(&format!("waiting for guests: {error}")),
            }
            if both[0].revents().is_empty() {
                continue;
            }
            match listener.accept() {
                Ok((connection, _)) => Self::welcome(shared, connection),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Out of descriptors, say: the next one may come when a guest has gone.
                Err(error) => {
                    (shared.say)(&format!("a guest could not come in: {error}"));
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// In a thread of its own: one who says nothing holds up nobody.
    fn welcome(shared: &Arc<Self>, connection: UnixStream) {
        let is_full = shared.locked().len() >= GUESTS_MAX;
        if is_full || shared.handshakes.fetch_add(1, Ordering::AcqRel) >= HANDSHAKES_MAX {
            if !is_full {
                shared.handshakes.fetch_sub(1, Ordering::AcqRel);
            }
            return (shared.say)("a guest was turned away: there are too many");
        }
        let own = Arc::clone(shared);
        let work = move || {
            if let Err(error) = own.admit(connection) {
                (own.say)(&format!("a guest was turned away: {}", chain(&error)));
            }
            own.handshakes.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = thread::Builder::new().name("handshake".into()).spawn(work) {
            shared.handshakes.fetch_sub(1, Ordering::AcqRel);
            (shared.say)(&format!("a guest was turned away: {error}"));
        }
    }

    fn admit(&self, connection: UnixStream) -> Result<(), HandshakeError> {
        let handshake = receive(&connection, self.source.size_bytes(), HANDSHAKE_WITHIN)?;
        let (source, say) = (Arc::clone(&self.source), Arc::clone(&self.say));
        let live = Arc::new(Live::new(handshake, connection, source, say)?);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.record(&live);
        self.locked().insert(id, Arc::clone(&live));
        let (fault, end) = (
            epoll::EventFlags::IN,
            epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
        );
        let waited = epoll::add(
            &self.epoll,
            live.guest().uffd(),
            Which::Uffd.token(id),
            fault,
        )
        .and_then(|()| {
            epoll::add(
                &self.epoll,
                live.connection(),
                Which::Connection.token(id),
                end,
            )
        });
        waited.map_err(|error| {
            self.forget(id);
            io::Error::from(error)
        })?;
        if let Some(trace) = self.trace.get() {
            live.prefetch(trace, &self.pool);
        }
        Ok(())
    }

    /// Until the end; waits for nothing but for what happens.
    fn serve(&self) {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return (self.say)(&format!("waiting for faults: {error}")),
            }
            for event in &events {
                let token = event.data.u64();
                if token == STOP {
                    return;
                }
                let (which, id) = Which::of(token);
                let live = self.locked().get(&id).cloned();
                let Some(live) = live else { continue };
                let goes_on = match which {
                    Which::Uffd => live.serve(&self.pool),
                    Which::Connection => live.is_connected(),
                };
                if !goes_on || live.is_over() {
                    self.forget(id);
                }
            }
        }
    }

    fn forget(&self, id: u64) {
        if let Some(live) = self.locked().remove(&id) {
            // One that was not waited for yet is not there.
            let _ = epoll::delete(&self.epoll, live.guest().uffd());
            let _ = epoll::delete(&self.epoll, live.connection());
            live.forget();
            // Whoever looks whether it is over has looked before, or hears of it.
            drop(self.recording());
            self.recording_changed.notify_all();
        }
    }
}

/// An error and its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
