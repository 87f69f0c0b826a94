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
//!    reaches a bound (see [`crate::execute`]). A client that never reads stalls only itself.
//! 2. (4 there) A request is executed after its last byte has arrived; a slow sender holds nothing.
//! 3. (10 there) Only a broken stream ends a connection: a false magic, or a refused payload too
//!    long to drop. A refused WRITE is answered after its payload has been read.
//! 4. After DISC, or the end of the stream, what was received is still served and answered.
//!
//! No lock here is shared with another connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::buffer::Buffer;
use crate::check::{Command, Door, Refusal, check};
use crate::execute::{Backend, Executor};
use crate::flush::Completions;
use crate::handshake::Negotiated;
use crate::limits::{IDLE_AFTER, RECEIVE_BYTES, REFUSED_PAYLOAD_BYTES_MAX, SEND_BYTES};
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
    /// What the request at the front of the inbox still lacks, where it is known to be long.
    lacking_bytes: usize,
    refused: Option<Refused>,
    /// The client sends nothing more that counts: DISC, or the end of the stream.
    input_ended: bool,
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
        let executor = Executor::new(backend, door, chosen.contexts, Arc::clone(&completions));
        Ok(Self {
            socket,
            completions,
            executor,
            inbox: Buffer::default(),
            lacking_bytes: 0,
            refused: None,
            input_ended: false,
            send_blocked: false,
        })
    }

    /// Serves the client until it goes.
    pub(crate) fn run(mut self) -> Result<(), ConnectionError> {
        match self.serve() {
            // A client that goes without a word is no error.
            Err(ConnectionError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            other => other,
        }
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
                    if !self.executor.has_room(&Command::Cache) {
                        return Ok(Lacks::Room);
                    }
                    self.inbox.consume(Request::BYTES);
                    let cookie = request.cookie;
                    self.refused = Some(Refused {
                        cookie,
                        refusal,
                        left: payload_len,
                    });
                }
                Ok(Command::Disconnect) => {
                    self.input_ended = true;
                    self.inbox.consume(self.inbox.len());
                }
                Ok(command) => {
                    let whole = Request::BYTES + payload_len;
                    if self.inbox.len() < whole {
                        self.lacking_bytes = whole - self.inbox.len();
                        return Ok(Lacks::Bytes);
                    }
                    if !self.executor.has_room(&command) {
                        return Ok(Lacks::Room);
                    }
                    let payload = &self.inbox.held()[Request::BYTES..whole];
                    self.executor.execute(request.cookie, command, payload);
                    self.inbox.consume(whole);
                }
            }
            if self.executor.out.len() >= SEND_BYTES {
                self.send()?;
            }
        }
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> Result<(), ConnectionError> {
        let out = &mut self.executor.out;
        while !out.is_empty() && !self.send_blocked {
            match send(
                &self.socket,
                out.held(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(len) => out.consume(len),
                Err(Errno::AGAIN) => self.send_blocked = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until something can go on, and receives where `reading`.
    fn wait(&mut self, reading: bool) -> Result<(), ConnectionError> {
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
        match poll(fds, None) {
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
        self.inbox.shrink();
        self.executor.out.shrink();
        match poll(
            &mut [PollFd::new(&self.socket.as_fd(), PollFlags::IN)],
            None,
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
            Ok((_, len)) => self.inbox.extend(len),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
}
