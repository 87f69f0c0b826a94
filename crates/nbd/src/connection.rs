//! [`Connection`]: the transmission phase of one client, on one thread.
//!
//! ```text
//!   receive what there is -> every whole request: check, execute, append its reply -> send
//!        ^                                                                              |
//!        +---- wait: plain recv where nothing is pending, else poll(socket, flushes) <--+
//! ```
//!
//! Invariants:
//! 1. (12 of ARCHITECTURE.md) It never waits for the client to read its replies while it could read
//!    the client's requests: every send is non-blocking, and reading stops only when what the client is owed
//!    reaches a bound, or while a large request waits for its turn (see [`crate::budget`]). A client that never
//!    reads stalls only itself.
//! 2. (4 there) A request is executed after its last byte has arrived; a slow sender holds nothing.
//! 3. (10 there) Only a broken stream ends a connection: a false magic, or a refused payload too
//!    long to drop. A refused WRITE is answered after its payload has been read.
//! 4. After DISC, or the end of the stream, what was received is still served and answered.
//!
//! 5. It holds [`OWN_BYTES`] of requests and replies, and beyond that no more than its share of the budget: whoever
//!    announces a large payload, or asks for one, has its place before it is received, or read.
//!
//! No lock here is shared with another connection, but for the budget's, for large requests.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::budget::Share;
use crate::buffer::Buffer;
use crate::check::{Command, Door, Refusal, check};
use crate::execute::{Backend, Executor};
use crate::flush::Completions;
use crate::handshake::Negotiated;
use crate::limits::{
    HOLD_LOOK_EVERY, IDLE_AFTER, OWED_BYTES_MAX, OWN_BYTES, RECEIVE_BYTES,
    REFUSED_PAYLOAD_BYTES_MAX, SEND_BYTES,
};
use crate::server::Gone;
use crate::wire::Request;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0:#010x} stands where a request should begin")]
    BadMagic(u32),
    #[error("a refused write of {0} bytes is too long to be dropped")]
    RefusedTooLong(u32),
    #[error("{0} bytes of memory lay still while others waited for them")]
    HeldTooLong(usize),
}

impl From<Errno> for ConnectionError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// What stands in the way of the next request.
enum Lacks {
    /// Its bytes.
    Bytes,
    /// Room for its reply.
    Room,
}

/// A refused WRITE whose payload is being dropped.
struct Refused {
    cookie: u64,
    refusal: Refusal,
    left: usize,
}

/// See the module.
pub(crate) struct Connection {
    socket: Arc<OwnedFd>,
    completions: Arc<Completions>,
    executor: Executor,
    inbox: Buffer,
    share: Share,
    /// The request at the front of the inbox has its place: so many bytes, with its payload.
    admitted: Option<usize>,
    /// What the request at the front of the inbox still lacks, where it is known to be long.
    lacking_bytes: usize,
    refused: Option<Refused>,
    /// The client sends nothing more that counts: DISC, or the end of the stream.
    input_ended: bool,
    gone: Gone,
    /// The last send found the socket full; poll says when to try again.
    send_blocked: bool,
}

impl Connection {
    pub(crate) fn new(
        socket: Arc<OwnedFd>,
        backend: Backend,
        chosen: Negotiated,
    ) -> io::Result<Self> {
        // Bounds only the plain receive of an idle connection.
        set_socket_timeout(&socket, Timeout::Recv, Some(IDLE_AFTER))?;
        let completions = Arc::new(Completions::new()?);
        let door = Door {
            geometry: backend.device.geometry(),
            structured: chosen.structured,
            contexts: chosen.contexts.contains(&true),
        };
        let share = Share::of(Arc::clone(&backend.budget));
        let executor = Executor::new(backend, door, chosen.contexts, Arc::clone(&completions));
        Ok(Self {
            socket,
            completions,
            executor,
            inbox: Buffer::default(),
            share,
            admitted: None,
            lacking_bytes: 0,
            refused: None,
            input_ended: false,
            gone: Gone::Silently,
            send_blocked: false,
        })
    }

    /// Serves the client until it goes.
    pub(crate) fn run(mut self) -> Result<Gone, ConnectionError> {
        match self.serve() {
            // A client that goes without a word is no error.
            Err(ConnectionError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) => {}
            other => other?,
        }
        Ok(self.gone)
    }

    fn serve(&mut self) -> Result<(), ConnectionError> {
        loop {
            let lacks = self.serve_received();
            let unsent = self.executor.out.len();
            self.send()?;
            // The stream may be broken: what came before is answered first, if that can be.
            match lacks? {
                Lacks::Room if self.executor.out.len() < unsent => {}
                Lacks::Room => self.wait(false)?,
                Lacks::Bytes if !self.input_ended => self.wait(true)?,
                Lacks::Bytes if self.executor.owed() > 0 => self.wait(false)?,
                Lacks::Bytes => return Ok(()),
            }
        }
    }

    /// Serves every whole request in the inbox, as far as there is room for replies.
    fn serve_received(&mut self) -> Result<Lacks, ConnectionError> {
        loop {
            self.lacking_bytes = 0;
            if let Some(refused) = &mut self.refused {
                let len = refused.left.min(self.inbox.len());
                self.inbox.consume(len);
                refused.left -= len;
                if refused.left > 0 {
                    return Ok(Lacks::Bytes);
                }
                self.executor.refuse(refused.cookie, &refused.refusal);
                self.refused = None;
            }
            if self.inbox.len() < Request::BYTES {
                return Ok(Lacks::Bytes);
            }
            let request = Request::parse(self.inbox.held()).map_err(ConnectionError::BadMagic)?;
            let payload_len = request.payload_bytes() as usize;
            match check(&request, self.executor.door()) {
                Err(refusal) => {
                    if request.payload_bytes() > REFUSED_PAYLOAD_BYTES_MAX {
                        self.executor.refuse(request.cookie, &refusal);
                        return Err(ConnectionError::RefusedTooLong(request.len));
                    }
                    if !self.admit(Request::BYTES, &Command::Cache) {
                        return Ok(Lacks::Room);
                    }
                    self.consume(Request::BYTES);
                    let cookie = request.cookie;
                    self.refused = Some(Refused {
                        cookie,
                        refusal,
                        left: payload_len,
                    });
                }
                Ok(Command::Disconnect) => {
                    self.input_ended = true;
                    self.gone = Gone::Disconnected;
                    self.inbox.consume(self.inbox.len());
                }
                Ok(command) => {
                    let whole = Request::BYTES + payload_len;
                    if !self.admit(whole, &command) {
                        return Ok(Lacks::Room);
                    }
                    if self.inbox.len() < whole {
                        self.lacking_bytes = whole - self.inbox.len();
                        return Ok(Lacks::Bytes);
                    }
                    let payload = &self.inbox.held()[Request::BYTES..whole];
                    self.executor.execute(request.cookie, command, payload);
                    self.consume(whole);
                    // A slow disk is not the client's fault.
                    self.share.renew();
                }
            }
            if self.executor.out.len() >= SEND_BYTES {
                self.send()?;
            }
        }
    }

    /// The request at the front is done with.
    fn consume(&mut self, len: usize) {
        self.inbox.consume(len);
        self.admitted = None;
    }

    /// Is there a place for the request at the front, so long with its payload, and for its reply? Where nothing is
    /// owed it waits for that; else replies must go first.
    fn admit(&mut self, request_bytes: usize, command: &Command) -> bool {
        if self.admitted.is_some() {
            return true;
        }
        let owed = self.executor.owed_with(command);
        let beyond = (request_bytes + owed).saturating_sub(OWN_BYTES);
        if owed > OWED_BYTES_MAX || (beyond > 0 && !self.share.covers(beyond)) {
            if self.executor.owed() > 0 {
                return false;
            }
            self.shrink();
            self.share.wait_for(beyond);
        }
        self.admitted = Some(request_bytes);
        true
    }

    /// What it needs of the budget for what is here and on its way.
    fn beyond_own(&self) -> usize {
        let inbox = self.inbox.len().max(self.admitted.unwrap_or(0));
        (inbox + self.executor.owed()).saturating_sub(OWN_BYTES)
    }

    /// Gives memory back that is not needed now.
    fn shrink(&mut self) {
        self.inbox.shrink();
        self.executor.out.shrink();
        self.share.keep(self.beyond_own());
    }

    /// Others wait for what this holds: it goes, as far as it can, and so does a client that never lets go.
    fn make_way(&mut self) -> Result<(), ConnectionError> {
        if self.share.is_wanted() {
            let needed = self.beyond_own();
            if needed == 0 || needed < self.share.bytes() / 2 {
                self.shrink();
            }
            if self.share.is_overdue() {
                return Err(ConnectionError::HeldTooLong(self.share.bytes()));
            }
        }
        Ok(())
    }

    /// How long to wait for the client: for ever, unless others may wait for what this holds.
    fn patience(&self) -> Option<Timespec> {
        let look = Timespec::try_from(HOLD_LOOK_EVERY).expect("a short time");
        (self.share.bytes() > 0).then_some(look)
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> Result<(), ConnectionError> {
        while !self.executor.out.is_empty() && !self.send_blocked {
            match send(
                &self.socket,
                self.executor.out.held(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(len) => {
                    self.executor.out.consume(len);
                    self.share.moved(len);
                }
                Err(Errno::AGAIN) => self.send_blocked = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until something can go on, and receives where `reading`.
    fn wait(&mut self, reading: bool) -> Result<(), ConnectionError> {
        self.make_way()?;
        if reading && self.executor.out.is_empty() && self.executor.flushing() == 0 {
            return self.receive_when_idle();
        }
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, reading);
        events.set(PollFlags::OUT, !self.executor.out.is_empty());
        let event = self.completions.event();
        let mut fds = [
            PollFd::new(&event, PollFlags::IN),
            PollFd::new(&self.socket, events),
        ];
        // A socket that nothing is wanted of would report its end for ever.
        let fds = if events.is_empty() {
            &mut fds[..1]
        } else {
            &mut fds[..]
        };
        match poll(fds, self.patience().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let flushed = !fds[0].revents().is_empty();
        let socket = fds.get(1).map_or(PollFlags::empty(), PollFd::revents);
        if flushed {
            self.executor.take_flushed();
        }
        let ended = PollFlags::HUP | PollFlags::ERR;
        if socket.intersects(PollFlags::OUT | ended) {
            self.send_blocked = false;
        }
        if reading && socket.intersects(PollFlags::IN | ended) {
            self.receive(RecvFlags::DONTWAIT)?;
        }
        Ok(())
    }

    /// The plain receive, one system call for a client with one request at a time. After a while
    /// without a request the buffers are given back.
    fn receive_when_idle(&mut self) -> Result<(), ConnectionError> {
        if self.receive(RecvFlags::empty())? {
            return Ok(());
        }
        self.shrink();
        match poll(
            &mut [PollFd::new(&self.socket.as_fd(), PollFlags::IN)],
            self.patience().as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// One receive. False where there was nothing.
    fn receive(&mut self, flags: RecvFlags) -> Result<bool, ConnectionError> {
        // The rest of a long write alone: what follows would only have to be moved. The room grows
        // with what has arrived, not with what was announced.
        let len = match self.lacking_bytes {
            lacking if lacking > RECEIVE_BYTES => lacking.min(self.inbox.len().max(RECEIVE_BYTES)),
            _ => RECEIVE_BYTES,
        };
        match recv(&self.socket, self.inbox.room(len), flags) {
            Ok((_, 0)) => self.input_ended = true,
            Ok((_, len)) => {
                self.inbox.extend(len);
                self.share.moved(len);
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
}
