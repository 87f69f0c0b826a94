//! The handshake, client's side: STRUCTURED_REPLY, SET_META_CONTEXT, GO, each optional but the last.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::set_tcp_nodelay;

use super::{Address, Client, ClientError, ExportInfo};
use crate::buffer::Buffer;
use crate::limits::{HANDSHAKE_WITHIN, OPTION_BYTES_MAX};
use crate::listen::{ListenError, connect_unix};
use crate::timed::Timed;
use crate::wire::{self, CONTEXTS, Fields, can, hello, info, option, rep};

/// Replies to one option that we are ready to read.
const REPLIES_MAX: usize = 64;

impl Client {
    /// Connects to an export; the empty name is the server's default.
    ///
    /// # Errors
    /// [`ClientError::Io`], [`ClientError::Handshake`], [`ClientError::Protocol`].
    pub fn connect(address: Address<'_>, export: &str) -> Result<Self, ClientError> {
        let socket = match address {
            Address::Unix(path) => {
                OwnedFd::from(connect_unix(path).map_err(|error| match error {
                    ListenError::Io { source, .. } => ClientError::Io(source),
                    other => ClientError::Handshake(other.to_string()),
                })?)
            }
            Address::Tcp(address) => {
                let stream = std::net::TcpStream::connect(address)?;
                set_tcp_nodelay(&stream, true).map_err(std::io::Error::from)?;
                stream.into()
            }
        };
        Self::over(socket, export)
    }

    /// Speaks to a server at the other end of a connected stream socket.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn over(socket: OwnedFd, export: &str) -> Result<Self, ClientError> {
        let (info, context_ids) = shake_hands(&mut Timed::new(&socket, HANDSHAKE_WITHIN), export)?;
        Ok(Self {
            socket,
            info,
            context_ids,
            next_cookie: 1,
            unsent: Buffer::default(),
            inbox: Buffer::default(),
            in_flight: HashMap::new(),
            filling: None,
            answered: VecDeque::new(),
        })
    }
}

fn broken(what: &str) -> ClientError {
    ClientError::Protocol(what.to_owned())
}

type ContextIds = [Option<u32>; CONTEXTS.len()];

fn shake_hands(
    peer: &mut Timed<'_>,
    export: &str,
) -> Result<(ExportInfo, ContextIds), ClientError> {
    greet(peer)?;
    let mut info = ExportInfo {
        size_bytes: 0,
        flags: 0,
        block_bytes: None,
        structured: false,
        allocation: false,
        dirty: false,
    };
    info.structured = ask(peer, option::STRUCTURED_REPLY, &[], |_, _| Ok(()))?.is_ok();
    let mut ids = ContextIds::default();
    if info.structured {
        let query = context_query(export)?;
        let chosen = ask(peer, option::SET_META_CONTEXT, &query, |kind, data| {
            choose(kind, data, &mut ids)
        })?;
        // A server without contexts refuses; that is its right.
        if chosen.is_err() {
            ids = ContextIds::default();
        }
    }
    [info.allocation, info.dirty] = ids.map(|id| id.is_some());
    let mut told = false;
    let mut go = string(export)?;
    go.extend(1u16.to_be_bytes());
    go.extend(info::BLOCK_SIZE.to_be_bytes());
    let answer = ask(peer, option::GO, &go, |kind, data| {
        told |= learn(kind, data, &mut info)?;
        Ok(())
    })?;
    answer.map_err(ClientError::Handshake)?;
    if !told || info.flags & can::HAS_FLAGS == 0 {
        return Err(broken("it tells nothing of its export"));
    }
    Ok((info, ids))
}

fn greet(peer: &mut Timed<'_>) -> Result<(), ClientError> {
    let greeting: [u8; 18] = peer.read_array()?;
    let mut fields = Fields(&greeting);
    if fields.u64() != Some(wire::NBDMAGIC) || fields.u64() != Some(wire::IHAVEOPT) {
        return Err(broken("its greeting is not that of an NBD server"));
    }
    let flags = fields.u16().unwrap_or(0);
    if flags & hello::FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Handshake(
            "it does not speak fixed newstyle".into(),
        ));
    }
    let ours = flags & (hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    Ok(peer.write(&u32::from(ours).to_be_bytes())?)
}

/// A length, then the text.
fn string(text: &str) -> Result<Vec<u8>, ClientError> {
    let len = u32::try_from(text.len()).map_err(|_| ClientError::TooLong(text.len() as u64))?;
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

fn context_query(export: &str) -> Result<Vec<u8>, ClientError> {
    let mut query = string(export)?;
    let count = u32::try_from(CONTEXTS.len()).expect("there are two");
    query.extend(count.to_be_bytes());
    for (_, name) in CONTEXTS {
        query.extend(string(name)?);
    }
    Ok(query)
}

/// Sends an option and hands every reply but the last to `each`. The inner result is the server's.
fn ask(
    peer: &mut Timed<'_>,
    option: u32,
    data: &[u8],
    mut each: impl FnMut(u32, &[u8]) -> Result<(), ClientError>,
) -> Result<Result<(), String>, ClientError> {
    let len = u32::try_from(data.len()).map_err(|_| ClientError::TooLong(data.len() as u64))?;
    let mut bytes = wire::IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    peer.write(&bytes)?;
    for _ in 0..REPLIES_MAX {
        let head: [u8; 20] = peer.read_array()?;
        let mut fields = Fields(&head);
        let is_reply =
            fields.u64() == Some(wire::OPTION_REPLY_MAGIC) && fields.u32() == Some(option);
        let (kind, len) = (fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
        if !is_reply || len > OPTION_BYTES_MAX {
            return Err(broken("what follows an option is no reply to it"));
        }
        let data = peer.read_vec(len)?;
        match kind {
            rep::ACK => return Ok(Ok(())),
            kind if kind & rep::ERR != 0 => {
                let text = String::from_utf8_lossy(&data);
                return Ok(Err(format!("{text} (reply {kind:#x} to option {option})")));
            }
            kind => each(kind, &data)?,
        }
    }
    Err(broken("it replies to an option without end"))
}

/// One reply to SET_META_CONTEXT. The ids are the server's to choose.
fn choose(kind: u32, data: &[u8], ids: &mut ContextIds) -> Result<(), ClientError> {
    let mut fields = Fields(data);
    let id = fields.u32();
    if kind != rep::META_CONTEXT || id.is_none() || ids.contains(&id) {
        return Err(broken("a context without an id of its own"));
    }
    for ((_, name), ours) in CONTEXTS.into_iter().zip(ids) {
        if fields.0 == name.as_bytes() {
            *ours = id;
        }
    }
    Ok(())
}

/// One reply to GO; true where it is the export's.
fn learn(kind: u32, data: &[u8], into: &mut ExportInfo) -> Result<bool, ClientError> {
    let mut fields = Fields(data);
    match (kind, fields.u16()) {
        (rep::INFO, Some(info::EXPORT)) => {
            let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) else {
                return Err(broken("an export without size or flags"));
            };
            (into.size_bytes, into.flags) = (size, flags);
            Ok(true)
        }
        (rep::INFO, Some(info::BLOCK_SIZE)) => {
            let _minimum = fields.u32();
            into.block_bytes = fields.u32();
            Ok(false)
        }
        // Others are the server's to send and ours to ignore.
        (rep::INFO, Some(_)) => Ok(false),
        _ => Err(broken("a reply to GO that says nothing")),
    }
}
