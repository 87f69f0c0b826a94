//! [`Client`]: the other side, with any number of requests in flight on one thread.
//!
//! Two ways to use it, freely mixed: calls that wait ([`Client::read`] and its like), and
//! [`Client::submit`] with [`Client::complete`], which hands back answers in the order in which they
//! come.
//!
//! Invariants:
//! 1. A server is not trusted: every length is bounded before it is believed, every chunk lies
//!    within its request and overlaps no other, and a successful read covers all of its range.
//!    Anything else is [`ClientError::Protocol`], after which the connection is not used again.
//! 2. It never waits to send while answers wait to be read, so it cannot deadlock with a server that
//!    waits for it to read. Memory is bounded by what the caller has in flight.
//! 3. Requests are gathered and sent together, at the latest when [`Client::complete`] is called.

mod connect;
mod incoming;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use cowslip_block::{ByteOffset, ByteRange, Room};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::buffer::Buffer;
use crate::errno::Errno;
use crate::limits::{CLIENT_SEND_BYTES, CLIENT_UNSENT_BYTES_MAX, PAYLOAD_BYTES_MAX, RECEIVE_BYTES};
use crate::wire::{Request, cmd, flag};

use incoming::{Filling, Pending};

/// Where a server is.
#[derive(Clone, Copy, Debug)]
pub enum Address<'a> {
    /// A unix socket; the path may be of any length.
    Unix(&'a Path),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// What the server says of its export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Of [`crate::wire::can`].
    pub flags: u16,
    /// The preferred size of a request, if it was told.
    pub block_bytes: Option<u32>,
    /// Replies are structured.
    pub structured: bool,
    /// `base:allocation` was agreed on.
    pub allocation: bool,
    /// `cowslip:dirty` was agreed on.
    pub dirty: bool,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Read so many bytes; `whole` asks for one chunk.
    Read {
        /// What to read.
        range: ByteRange,
        /// One chunk (DF).
        whole: bool,
    },
    /// Write these bytes.
    Write {
        /// Where.
        offset: ByteOffset,
        /// What.
        data: &'a [u8],
        /// Durable when answered.
        fua: bool,
    },
    /// Make it all zeros.
    WriteZeroes {
        /// What.
        range: ByteRange,
        /// What becomes of its room.
        room: Room,
        /// Fail where it is not fast.
        fast: bool,
        /// Durable when answered.
        fua: bool,
    },
    /// Drop the whole blocks.
    Trim {
        /// What.
        range: ByteRange,
        /// Durable when answered.
        fua: bool,
    },
    /// Make all that was answered before durable.
    Flush,
    /// It will be read soon.
    Cache(ByteRange),
    /// What is where.
    BlockStatus {
        /// Where.
        range: ByteRange,
        /// One extent only.
        one: bool,
    },
}

/// Names a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To all that brings no data.
    Done,
    /// To a read.
    Data(Vec<u8>),
    /// To a block status.
    Status(Status),
}

/// One run of bytes with equal flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Never 0.
    pub len: u32,
    /// Of [`crate::wire::state`].
    pub flags: u32,
}

/// The extents from the start of the range that was asked for, for each context agreed on. A list
/// may end before the range does, and its last extent after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `base:allocation`.
    pub allocation: Vec<StatusExtent>,
    /// `cowslip:dirty`.
    pub dirty: Vec<StatusExtent>,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed; `UnexpectedEof` where the server has gone.
    #[error("the connection to the server: {0}")]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The server does not let us in.
    #[error("the server refuses the connection: {0}")]
    Handshake(String),
    /// The server answered a request with an error.
    #[error("{errno}: {text}")]
    Refused {
        /// Which.
        errno: Errno,
        /// The server's words, if it had any.
        text: String,
    },
    /// More than the protocol lets one request carry.
    #[error("{0} bytes are more than one request can have")]
    TooLong(u64),
    /// Nothing is in flight that could be answered.
    #[error("no request is in flight")]
    NothingInFlight,
}

/// How one request was answered.
pub type Answer = Result<Reply, Errno>;

/// See the module.
pub struct Client {
    socket: OwnedFd,
    info: ExportInfo,
    /// What the server calls `base:allocation` and `cowslip:dirty`.
    context_ids: [Option<u32>; 2],
    next_cookie: u64,
    unsent: Buffer,
    inbox: Buffer,
    in_flight: HashMap<u64, Pending>,
    filling: Option<Filling>,
    /// With the server's words, where it had any.
    answered: VecDeque<(Cookie, Answer, String)>,
}

impl Client {
    /// What the server says of its export.
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// Requests not yet handed back by [`Self::complete`].
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.answered.len()
    }

    /// Puts a request on its way.
    ///
    /// # Errors
    /// [`ClientError::TooLong`], or a connection that has failed.
    pub fn submit(&mut self, command: Command<'_>) -> Result<Cookie, ClientError> {
        let (mut request, payload) = encode(command)?;
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        request.cookie = cookie;
        self.unsent.append(&request.encode());
        self.unsent.append(payload);
        self.in_flight.insert(cookie, Pending::new(&request));
        if self.unsent.len() >= CLIENT_SEND_BYTES {
            self.send()?;
            while self.unsent.len() > CLIENT_UNSENT_BYTES_MAX {
                self.exchange()?;
            }
        }
        Ok(Cookie(cookie))
    }

    /// Waits for an answer, to whichever request has it first.
    ///
    /// # Errors
    /// [`ClientError::NothingInFlight`], [`ClientError::Protocol`], or a connection that has failed.
    /// A request that the server refused is no error here, but the answer.
    pub fn complete(&mut self) -> Result<(Cookie, Answer), ClientError> {
        let (cookie, answer, _) = self.next_answer()?;
        Ok((cookie, answer))
    }

    fn next_answer(&mut self) -> Result<(Cookie, Answer, String), ClientError> {
        self.send()?;
        loop {
            if let Some(answer) = self.answered.pop_front() {
                return Ok(answer);
            }
            if self.in_flight.is_empty() {
                return Err(ClientError::NothingInFlight);
            }
            self.exchange()?;
        }
    }

    /// Submits a request and waits for its answer; others are kept for [`Self::complete`].
    fn call(&mut self, command: Command<'_>) -> Result<Reply, ClientError> {
        let cookie = self.submit(command)?;
        self.send()?;
        loop {
            let mine = |answer: &(Cookie, Answer, String)| answer.0 == cookie;
            if let Some(at) = self.answered.iter().position(mine) {
                let (_, answer, text) = self.answered.remove(at).expect("it was just found");
                return answer.map_err(|errno| ClientError::Refused { errno, text });
            }
            self.exchange()?;
        }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        let range = range_at(offset, buf.len() as u64)?;
        match self.call(Command::Read {
            range,
            whole: false,
        })? {
            Reply::Data(data) => buf.copy_from_slice(&data),
            _ => unreachable!("a read is answered with data of its length"),
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let offset = ByteOffset(offset);
        self.call(Command::Write {
            offset,
            data,
            fua: false,
        })
        .map(drop)
    }

    /// Makes `len` bytes at `offset` zero, and gives their room back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        let range = range_at(offset, len)?;
        let room = Room::Free;
        self.call(Command::WriteZeroes {
            range,
            room,
            fast: false,
            fua: false,
        })
        .map(drop)
    }

    /// Drops the whole blocks among `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn trim(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        let range = range_at(offset, len)?;
        self.call(Command::Trim { range, fua: false }).map(drop)
    }

    /// Makes all that was answered before durable.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(Command::Flush).map(drop)
    }

    /// What is where, from `offset` on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn block_status(&mut self, offset: u64, len: u64) -> Result<Status, ClientError> {
        let range = range_at(offset, len)?;
        match self.call(Command::BlockStatus { range, one: false })? {
            Reply::Status(status) => Ok(status),
            _ => unreachable!("a block status is answered with one"),
        }
    }

    /// Sends what the socket takes, without waiting.
    fn send(&mut self) -> Result<(), ClientError> {
        while !self.unsent.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, self.unsent.held(), flags) {
                Ok(len) => self.unsent.consume(len),
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Waits until bytes can go one way or the other, and lets them.
    fn exchange(&mut self) -> Result<(), ClientError> {
        let mut flags = RecvFlags::empty();
        if !self.unsent.is_empty() {
            flags = RecvFlags::DONTWAIT;
            let events = PollFlags::IN | PollFlags::OUT;
            match poll(&mut [PollFd::new(&self.socket, events)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            self.send()?;
        }
        match recv(&self.socket, self.inbox.room(RECEIVE_BYTES), flags) {
            Ok((_, 0)) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok((_, len)) => {
                self.inbox.extend(len);
                self.take_replies()
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

impl Drop for Client {
    /// Says goodbye, if that can be done without waiting.
    fn drop(&mut self) {
        let request = Request {
            flags: 0,
            kind: cmd::DISC,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        self.unsent.append(&request.encode());
        let _ = self.send();
    }
}

fn range_at(offset: u64, len: u64) -> Result<ByteRange, ClientError> {
    ByteRange::at(offset, len).ok_or(ClientError::TooLong(len))
}

/// The request, its cookie still to come, and the bytes that follow it.
fn encode(command: Command<'_>) -> Result<(Request, &[u8]), ClientError> {
    let none = ByteRange::default();
    let when = |set: bool, flag: u16| if set { flag } else { 0 };
    let (kind, flags, range, payload): (_, _, _, &[u8]) = match command {
        Command::Read { range, whole } => (cmd::READ, when(whole, flag::DF), range, &[]),
        Command::Write { offset, data, fua } => {
            let range = range_at(offset.0, data.len() as u64)?;
            (cmd::WRITE, when(fua, flag::FUA), range, data)
        }
        Command::WriteZeroes {
            range,
            room,
            fast,
            fua,
        } => {
            let flags = when(fua, flag::FUA)
                | when(fast, flag::FAST_ZERO)
                | when(room == Room::Provision, flag::NO_HOLE);
            (cmd::WRITE_ZEROES, flags, range, &[])
        }
        Command::Trim { range, fua } => (cmd::TRIM, when(fua, flag::FUA), range, &[]),
        Command::Flush => (cmd::FLUSH, 0, none, &[]),
        Command::Cache(range) => (cmd::CACHE, 0, range, &[]),
        Command::BlockStatus { range, one } => {
            (cmd::BLOCK_STATUS, when(one, flag::REQ_ONE), range, &[])
        }
    };
    let too_long = || ClientError::TooLong(range.len());
    let len = u32::try_from(range.len()).map_err(|_| too_long())?;
    if len > PAYLOAD_BYTES_MAX && matches!(kind, cmd::READ | cmd::WRITE) {
        return Err(too_long());
    }
    Ok((
        Request {
            flags,
            kind,
            cookie: 0,
            offset: range.start.0,
            len,
        },
        payload,
    ))
}
