//! [`Server`]: one export, its listeners, and a thread for each connection.
//!
//! ```text
//! acceptor (one a listener): poll(listener, stop) -> accept -> connection thread
//! connection thread:         handshake -> transmission -> its place is free again
//! ```
//!
//! Invariants:
//! 1. (10 of ARCHITECTURE.md) A connection that fails, or panics, takes nothing else with it.
//! 2. At most [`CONNECTIONS_MAX`] connections; one more is accepted and closed at once.
//! 3. [`Server::stop`] returns within two seconds: first the sockets are closed for reading only, so
//!    that requests already received are answered; then for good. A thread that is still inside the
//!    device after that is left behind, and counted.
//!
//! Here is no policy about where to listen, and no text for people but what [`Report`] is handed.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cowslip_block::Device;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{Shutdown, shutdown};

use crate::budget::Budget;
use crate::connection::{Connection, ConnectionError};
use crate::counters::{Counters, add};
use crate::execute::Backend;
use crate::flush::FlushPool;
use crate::handshake::{HandshakeError, Negotiated, Offer, negotiate, transmission_flags};
use crate::limits::{
    ACCEPT_BACK_OFF, CONNECTIONS_MAX, HANDSHAKE_WITHIN, STOP_END_WITHIN, STOP_FINISH_WITHIN,
    STRING_BYTES_MAX,
};
use crate::listen::{Bound, Listen, ListenError, Listener};
use crate::said::Said;
use crate::stdio;
use crate::timed::Timed;

/// What a server serves.
pub struct Export {
    /// Clients find it under this name, and under the empty one.
    pub name: String,
    /// For people.
    pub description: String,
    /// Where the bytes are.
    pub device: Arc<dyn Device>,
}

/// Is handed one line for each connection that ends in a way that should not be.
pub type Report = Box<dyn Fn(&str) + Send + Sync>;

/// See the module.
pub struct Server {
    shared: Arc<Shared>,
    acceptors: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) struct Shared {
    name: String,
    description: String,
    backend: Backend,
    said: Said,
    threads: Mutex<Threads>,
    /// A thread has ended.
    ended: Condvar,
    /// Readable once the server stops.
    stop: OwnedFd,
}

#[derive(Default)]
struct Threads {
    next: u64,
    live: HashMap<u64, Live>,
    /// Ended, or just about to.
    finished: Vec<JoinHandle<()>>,
    stopping: bool,
}

struct Live {
    socket: Option<Arc<OwnedFd>>,
    handle: JoinHandle<()>,
}

/// A stream that a server serves; see [`Server::serve_stream`].
#[derive(Debug)]
pub struct Served(Receiver<()>);

impl Served {
    /// Waits until the client has gone, or the server has stopped.
    pub fn wait(&self) -> Gone {
        // A word is for a client that says so; the end of all others is that the sender is dropped.
        match self.0.recv() {
            Ok(()) => Gone::Disconnected,
            Err(_) => Gone::Silently,
        }
    }
}

/// How a client went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It said that it goes: DISC.
    Disconnected,
    /// Its stream ended, or was ended.
    Silently,
}

/// Where a client begins.
enum Begin {
    Handshake,
    /// On this device.
    Transmission(Arc<dyn Device>),
}

enum End {
    Handshake(HandshakeError),
    Connection(ConnectionError),
}

impl Server {
    /// A server of one export, which listens nowhere yet.
    ///
    /// # Errors
    /// A name or description of more than 4096 bytes, or the system's own.
    pub fn new(export: Export, report: Report) -> io::Result<Self> {
        let Export {
            name,
            description,
            device,
        } = export;
        if name.len().max(description.len()) > STRING_BYTES_MAX {
            let why =
                format!("an export's name and description have at most {STRING_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let backend = Backend {
            flushes: Arc::new(FlushPool::new(Arc::clone(&device))),
            device,
            budget: Arc::new(Budget::new()),
            counters: Arc::default(),
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let (threads, ended) = (Mutex::default(), Condvar::new());
        let shared = Shared {
            name,
            description,
            backend,
            said: Said::to(report),
            threads,
            ended,
            stop,
        };
        Ok(Self {
            shared: Arc::new(shared),
            acceptors: Mutex::default(),
        })
    }

    /// Serves every client that connects there, from now on.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(&self, listen: Listen) -> Result<Bound, ListenError> {
        let (listener, bound) = Listener::open(listen)?;
        let shared = Arc::clone(&self.shared);
        let acceptor = thread::Builder::new().name("nbd-accept".into());
        let handle = acceptor
            .spawn(move || shared.accept(&listener))
            .map_err(|source| ListenError::Io {
                place: bound.to_string(),
                source,
            })?;
        locked(&self.acceptors).push(handle);
        Ok(bound)
    }

    /// Serves one client on a connected stream socket.
    ///
    /// # Errors
    /// A server that is stopping or full, or the system's own.
    pub fn serve_stream(&self, socket: OwnedFd) -> io::Result<Served> {
        let (ended, served) = channel();
        self.shared.serve(socket, Begin::Handshake, ended)?;
        Ok(Served(served))
    }

    /// Serves one client that is past a handshake, as the kernel's is: with [`Self::transmission_flags`] and without structured replies.
    /// All but its flushes is done on `device`: the export's, or one that stands before it.
    ///
    /// # Errors
    /// As [`Self::serve_stream`].
    pub fn serve_transmission(
        &self,
        socket: OwnedFd,
        device: Arc<dyn Device>,
    ) -> io::Result<Served> {
        let (ended, served) = channel();
        let begin = Begin::Transmission(device);
        self.shared.serve(socket, begin, ended)?;
        Ok(Served(served))
    }

    /// What a handshake says of the export to a client without structured replies ([`crate::wire::can`]).
    pub fn transmission_flags(&self) -> u16 {
        transmission_flags(&self.shared.backend.device.geometry(), false)
    }

    /// Serves one client on a pair of files, as standard input and output are: two pipes, or one
    /// socket twice.
    ///
    /// # Errors
    /// As [`Self::serve_stream`].
    pub fn serve_stdio(&self, input: OwnedFd, output: OwnedFd) -> io::Result<Served> {
        if stdio::is_socket(&input) {
            return self.serve_stream(input);
        }
        let (ended, served) = channel();
        let (socket, pump) = stdio::pump(input)?;
        self.shared.serve(socket, Begin::Handshake, ended.clone())?;
        // Not before this has handed on the last reply is the client served.
        self.shared.start(None, move |_| {
            let _ended: Sender<()> = ended;
            pump.replies(output);
        })?;
        Ok(Served(served))
    }

    /// What has been done so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.backend.counters
    }

    /// Stops, within two seconds, clients or not: requests already received are answered if their
    /// clients read the answers. Says how many threads had to be left behind: 0, unless the device
    /// hangs or standard output does. A second call does nothing.
    pub fn stop(&self) -> usize {
        let shared = &self.shared;
        locked(&shared.threads).stopping = true;
        shared.backend.budget.stop();
        let _ = rustix::io::write(&shared.stop, &1u64.to_ne_bytes());
        for acceptor in mem::take(&mut *locked(&self.acceptors)) {
            // It has caught its panics; there is nothing to learn.
            let _ = acceptor.join();
        }
        shared.shut_down(Shutdown::Read);
        if shared.wait_for_all(STOP_FINISH_WITHIN) > 0 {
            shared.shut_down(Shutdown::Both);
        }
        let left_behind = shared.wait_for_all(STOP_END_WITHIN);
        let flushers = shared.backend.flushes.stop();
        for handle in mem::take(&mut locked(&shared.threads).finished) {
            let _ = handle.join();
        }
        if left_behind == 0 {
            for handle in flushers {
                let _ = handle.join();
            }
        }
        left_behind
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What these locks guard is whole between any two statements, so a panic leaves no half of it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &Listener) {
        loop {
            let mut fds = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(listener, PollFlags::IN),
            ];
            let polled = poll(&mut fds, None);
            if !fds[0].revents().is_empty() {
                return;
            }
            let accepted = polled
                .map_err(io::Error::from)
                .and_then(|_| listener.accept());
            match accepted {
                Ok(socket) => {
                    let (ended, _) = channel();
                    // One that is refused is counted, and closed.
                    let _ = self.serve(socket, Begin::Handshake, ended);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted => {}
                    // Out of files, or of memory: others may end meanwhile.
                    _ => self.pause(ACCEPT_BACK_OFF),
                },
            }
        }
    }

    /// Waits so long, or until the server stops.
    fn pause(&self, time: Duration) {
        let time = Timespec::try_from(time).expect("a short time");
        let _ = poll(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(&time));
    }

    /// Starts the thread of one client; `ended` is dropped at its end.
    fn serve(self: &Arc<Self>, socket: OwnedFd, begin: Begin, ended: Sender<()>) -> io::Result<()> {
        let socket = Arc::new(socket);
        // Counted before it is closed: whoever sees the one has seen the other.
        let held = Arc::clone(&socket);
        let started = self.start(Some(Arc::clone(&socket)), move |shared| {
            let counters = &shared.backend.counters;
            add(&counters.connections, 1);
            add(&counters.connections_total, 1);
            let gone = shared.serve_client(socket, begin);
            counters.connections.fetch_sub(1, Ordering::Relaxed);
            if gone == Gone::Disconnected {
                // Nobody may care.
                let _ = ended.send(());
            }
        });
        if started.is_err() {
            add(&self.backend.counters.connections_refused, 1);
        }
        drop(held);
        started
    }

    /// Handshake and transmission; whatever goes wrong is said once.
    fn serve_client(&self, socket: Arc<OwnedFd>, begin: Begin) -> Gone {
        let last = Arc::clone(&socket);
        let served = catch_unwind(AssertUnwindSafe(|| self.transmit(socket, begin)));
        // The registry still holds the socket for a moment; the client need not wait for that.
        let _ = shutdown(&last, Shutdown::Both);
        let said = match served {
            Ok(Ok(gone)) => return gone,
            Ok(Err(End::Handshake(error))) => format!("a handshake failed: {error}"),
            Ok(Err(End::Connection(error))) => format!("a connection was ended: {error}"),
            Err(_) => "a connection was ended by a panic".to_owned(),
        };
        self.said.line(&said);
        Gone::Silently
    }

    fn transmit(&self, socket: Arc<OwnedFd>, begin: Begin) -> Result<Gone, End> {
        let mut backend = self.backend.clone();
        let chosen = match begin {
            Begin::Handshake => self.negotiate(&socket).map_err(End::Handshake)?,
            Begin::Transmission(device) => {
                backend.device = device;
                Some(Negotiated::default())
            }
        };
        let Some(chosen) = chosen else {
            return Ok(Gone::Silently);
        };
        Connection::new(socket, backend, chosen)
            .map_err(|error| End::Connection(error.into()))?
            .run()
            .map_err(End::Connection)
    }

    fn negotiate(&self, socket: &OwnedFd) -> Result<Option<Negotiated>, HandshakeError> {
        let offer = Offer {
            name: &self.name,
            description: &self.description,
            geometry: self.backend.device.geometry(),
        };
        negotiate(&mut Timed::new(socket, HANDSHAKE_WITHIN), offer)
    }

    /// Starts a thread that [`Server::stop`] waits for.
    fn start(
        self: &Arc<Self>,
        socket: Option<Arc<OwnedFd>>,
        run: impl FnOnce(&Self) + Send + 'static,
    ) -> io::Result<()> {
        let mut threads = locked(&self.threads);
        for finished in mem::take(&mut threads.finished) {
            let _ = finished.join();
        }
        if threads.stopping {
            return Err(io::Error::other("the server is stopping"));
        }
        if threads.live.len() >= CONNECTIONS_MAX {
            return Err(io::Error::other(
                "the server has as many connections as it takes",
            ));
        }
        let number = threads.next;
        threads.next += 1;
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("nbd-{number}"));
        // The thread finds its entry: the lock is held until it stands.
        let handle = thread.spawn(move || {
            let _ = catch_unwind(AssertUnwindSafe(|| run(&shared)));
            let mut threads = locked(&shared.threads);
            if let Some(live) = threads.live.remove(&number) {
                threads.finished.push(live.handle);
            }
            shared.ended.notify_all();
        })?;
        threads.live.insert(number, Live { socket, handle });
        Ok(())
    }

    fn shut_down(&self, how: Shutdown) {
        for live in locked(&self.threads).live.values() {
            if let Some(socket) = &live.socket {
                // It may have been closed by the other side.
                let _ = shutdown(socket.as_fd(), how);
            }
        }
    }

    /// How many threads are left, after so long at most.
    fn wait_for_all(&self, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        let mut threads = locked(&self.threads);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if threads.live.is_empty() || left.is_zero() {
                return threads.live.len();
            }
            let waited = self.ended.wait_timeout(threads, left);
            threads = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
