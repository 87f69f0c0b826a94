//! [`Netlink`]: what the kernel's NBD client is told, over generic netlink (`linux/nbd-netlink.h`).
//!
//! | command | what for | what of it is said |
//! |---|---|---|
//! | CONNECT | a new device | size, sectors, flags, limits, sockets, label; the kernel chooses the number |
//! | RECONFIGURE | one that is there, by number **and** label: the kernel refuses a label that is not the device's | sockets in place of dead ones; limits; whether it goes with its last user |
//! | DISCONNECT | one that is there, by number alone | |
//!
//! The label ("backend identifier") is from Linux 5.14 on; a kernel without it is as one without NBD. None of these waits for
//! requests to be answered, but for DISCONNECT: whoever serves the device must not send that (see the crate's rule).
//!
//! One socket, asked by one thread: neli's router would start another, and panic where there is none to be had, as in the server of a
//! device on a machine that is short of everything.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use neli::consts::genl::{CtrlAttr, CtrlCmd};
use neli::consts::nl::{GenlId, NlType, NlmF};
use neli::consts::socket::NlFamily;
use neli::err::SocketError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use neli::{FromBytesWithInput, Size, ToBytes};
use rustix::io::Errno;

use crate::error::AttachError;

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const CLIENT_FLAGS: u16 = 6;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
}

const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// Of the client flags: the device goes when the last that has it open closes it.
const DISCONNECT_ON_CLOSE: u64 = 1 << 1;

type Attributes = GenlBuffer<u16, Buffer>;
type Message = Genlmsghdr<u8, u16>;

/// See the module.
pub(crate) struct Netlink {
    socket: NlSocketHandle,
    family: u16,
}

/// A device that is to be.
pub(crate) struct Connect<'a> {
    pub(crate) size_bytes: u64,
    pub(crate) sector_bytes: u64,
    /// Transmission flags.
    pub(crate) flags: u16,
    /// A request that takes longer is sent again, over another socket.
    pub(crate) request_within: Duration,
    /// Without a socket that lives, requests wait so long for one.
    pub(crate) dead_timeout: Duration,
    pub(crate) label: &'a str,
}

/// What is to change of a device; what is left out stays.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) dead_timeout: Option<Duration>,
    /// Does it go with its last user?
    pub(crate) goes_with_last_user: Option<bool>,
}

impl Netlink {
    /// Nothing where the kernel has no NBD client at present; where it has one without labels, an error.
    pub(crate) fn open() -> Result<Option<Self>, AttachError> {
        let connected = NlSocketHandle::connect(NlFamily::Generic, None, Groups::empty());
        let socket = connected
            .map_err(|e| of_socket(&e))
            .map_err(AttachError::io("netlink"))?;
        let attrs = buffer([attr(CtrlAttr::FamilyName, FAMILY)]);
        let asked = message(CtrlCmd::Getfamily, 2, attrs);
        let (mut family, mut last_attribute) = (None, 0);
        let answered = ask(&socket, GenlId::Ctrl, asked, |answer| {
            let handle = answer.attrs().get_attr_handle();
            family = family.or(handle.get_attr_payload_as(CtrlAttr::FamilyId).ok());
            let last = handle.get_attr_payload_as::<u32>(CtrlAttr::Maxattr);
            last_attribute = last_attribute.max(last.unwrap_or(0));
        });
        match answered {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                return Ok(None);
            }
            other => other.map_err(AttachError::io("asking the kernel for NBD"))?,
        }
        let Some(family) = family else {
            return Ok(None);
        };
        if last_attribute < u32::from(attribute::BACKEND_IDENTIFIER) {
            return Err(AttachError::Missing(
                "Linux 5.14 or later, whose NBD devices say whose they are",
            ));
        }
        Ok(Some(Self { socket, family }))
    }

    /// Makes a device of these sockets; its number.
    pub(crate) fn connect(
        &self,
        wanted: &Connect<'_>,
        sockets: &[impl AsFd],
    ) -> Result<u32, AttachError> {
        let attrs = buffer([
            attr(attribute::SIZE_BYTES, wanted.size_bytes),
            attr(attribute::BLOCK_SIZE_BYTES, wanted.sector_bytes),
            attr(attribute::SERVER_FLAGS, u64::from(wanted.flags)),
            attr(attribute::CLIENT_FLAGS, 0u64),
            attr(attribute::TIMEOUT, wanted.request_within.as_secs()),
            attr(attribute::DEAD_CONN_TIMEOUT, wanted.dead_timeout.as_secs()),
            attr(attribute::BACKEND_IDENTIFIER, wanted.label),
            nested(sockets),
        ]);
        let index = self.tell(command::CONNECT, attrs, "connecting an NBD device")?;
        index.ok_or_else(|| {
            let error = io::Error::other("the kernel did not say which");
            AttachError::io("connecting an NBD device")(error)
        })
    }

    /// Changes a device that has this label.
    pub(crate) fn reconfigure(
        &self,
        index: u32,
        label: &str,
        change: &Change,
        sockets: &[impl AsFd],
    ) -> Result<(), AttachError> {
        let mut attrs = vec![
            attr(attribute::INDEX, index),
            attr(attribute::BACKEND_IDENTIFIER, label),
        ];
        if let Some(timeout) = change.dead_timeout {
            attrs.push(attr(attribute::DEAD_CONN_TIMEOUT, timeout.as_secs()));
        }
        if let Some(goes) = change.goes_with_last_user {
            let flags = if goes { DISCONNECT_ON_CLOSE } else { 0 };
            attrs.push(attr(attribute::CLIENT_FLAGS, flags));
        }
        if !sockets.is_empty() {
            attrs.push(nested(sockets));
        }
        let what = format!("changing /dev/nbd{index}");
        self.tell(command::RECONFIGURE, buffer(attrs), &what)
            .map(drop)
    }

    /// Disconnects whatever device has this number.
    pub(crate) fn disconnect(&self, index: u32) -> Result<(), AttachError> {
        let attrs = buffer([attr(attribute::INDEX, index)]);
        let what = format!("disconnecting /dev/nbd{index}");
        self.tell(command::DISCONNECT, attrs, &what).map(drop)
    }

    /// Sends, waits until it is done; the number of the device, where the answer has one.
    fn tell(&self, command: u8, attrs: Attributes, what: &str) -> Result<Option<u32>, AttachError> {
        let asked: Message = message(command, VERSION, attrs);
        let mut index = None;
        ask(&self.socket, self.family, asked, |answer| {
            let handle = answer.attrs().get_attr_handle();
            index = index.or(handle.get_attr_payload_as(attribute::INDEX).ok());
        })
        .map_err(AttachError::io(what))?;
        Ok(index)
    }
}

/// Asks, and hears every answer until all is done. After an error there may be more to hear: the socket is of no use any more.
fn ask<T, M>(
    socket: &NlSocketHandle,
    family: T,
    asked: M,
    mut hear: impl FnMut(&M),
) -> io::Result<()>
where
    T: NlType + Debug,
    M: Size + ToBytes + FromBytesWithInput<Input = usize> + Debug,
{
    let message = NlmsghdrBuilder::default()
        .nl_type(family)
        .nl_flags(NlmF::REQUEST | NlmF::ACK)
        .nl_payload(NlPayload::Payload(asked));
    socket
        .send(&message.build().expect(WHOLE))
        .map_err(|e| of_socket(&e))?;
    loop {
        let (answers, _) = socket.recv::<T, M>().map_err(|e| of_socket(&e))?;
        for answer in answers {
            match answer.map_err(|e| of_socket(&e))?.nl_payload() {
                NlPayload::Payload(answer) => hear(answer),
                NlPayload::Ack(_) => return Ok(()),
                NlPayload::Err(refused) => {
                    return Err(io::Error::from_raw_os_error(-*refused.error()));
                }
                NlPayload::DumpExtAck(_) | NlPayload::Empty => {}
            }
        }
    }
}

/// What is refused by the system has a number; all else is a message that makes no sense.
fn of_socket(error: &SocketError) -> io::Error {
    let number = match error {
        SocketError::Io(error) => error.raw_os_error(),
        _ => None,
    };
    number.map_or_else(
        || io::Error::other(error.to_string()),
        io::Error::from_raw_os_error,
    )
}

const WHOLE: &str = "all of it is there, and its content is numbers and text";

fn message<C, T>(command: C, version: u8, attrs: GenlBuffer<T, Buffer>) -> Genlmsghdr<C, T> {
    let message = GenlmsghdrBuilder::default().cmd(command).version(version);
    message.attrs(attrs).build().expect(WHOLE)
}

fn attr<T: Size + ToBytes>(kind: T, value: impl Size + ToBytes) -> Nlattr<T, Buffer> {
    let kind = AttrTypeBuilder::default().nla_type(kind);
    let attr = NlattrBuilder::default().nla_type(kind.build().expect(WHOLE));
    attr.nla_payload(value).build().expect(WHOLE)
}

/// A list of items, each with one file.
fn nested(sockets: &[impl AsFd]) -> Nlattr<u16, Buffer> {
    let empty = || Vec::<u8>::new();
    let items = sockets.iter().map(|socket| {
        let file = attr(SOCKET_FD, socket.as_fd().as_raw_fd());
        attr(SOCKET_ITEM, empty()).nest(&file).expect(WHOLE)
    });
    items.fold(attr(attribute::SOCKETS, empty()), |list, item| {
        list.nest(&item).expect(WHOLE)
    })
}

fn buffer<T>(attrs: impl IntoIterator<Item = Nlattr<T, Buffer>>) -> GenlBuffer<T, Buffer> {
    attrs.into_iter().collect()
}
