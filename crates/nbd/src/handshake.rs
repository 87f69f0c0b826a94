//! The handshake, server's side: fixed newstyle, from the greeting to transmission.
//!
//! | option                | answer                                                            |
//! |-----------------------|-------------------------------------------------------------------|
//! | EXPORT_NAME           | transmission; another name ends the connection (it has no errors) |
//! | ABORT                 | ACK, and the end                                                  |
//! | LIST                  | the one export, with its description                              |
//! | INFO, GO              | EXPORT always; NAME, DESCRIPTION, BLOCK_SIZE where asked for      |
//! | STRUCTURED_REPLY      | ACK                                                               |
//! | LIST_META_CONTEXT     | those that match; without queries, all                            |
//! | SET_META_CONTEXT      | those named exactly; ERR_INVALID before STRUCTURED_REPLY          |
//! | all others            | ERR_UNSUP (STARTTLS and EXTENDED_HEADERS among them)              |
//!
//! The export answers to its name and to the empty name. Invariants: every length is bounded before
//! it is read ([`crate::limits`]); the whole handshake has one deadline, so a silent client holds a
//! thread for ten seconds at most; a failed option leaves the connection in step, unless its data is
//! so long that not even dropping it is worth while.

use std::io;

use cowslip_block::Geometry;

use crate::limits::{
    OPTION_BYTES_MAX, OPTION_DRAIN_BYTES_MAX, OPTIONS_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX,
};
use crate::timed::Timed;
use crate::wire::{self, CONTEXTS, Fields, can, hello, info, option, option_reply, rep};

/// What the handshake is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) name: &'a str,
    pub(crate) description: &'a str,
    pub(crate) geometry: Geometry,
}

/// What the client chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) structured: bool,
    /// Which of [`CONTEXTS`].
    pub(crate) contexts: [bool; CONTEXTS.len()],
}

/// Why a connection ends before transmission, where that is worth a line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("client flags {0:#x} are unknown")]
    ClientFlags(u32),
    #[error("{0:#018x} stands where an option should begin")]
    BadMagic(u64),
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
    #[error("an option of {0} bytes")]
    OptionTooLong(u32),
    #[error("there is no export \"{0}\"")]
    UnknownExport(String),
}

/// What follows an option.
enum Next {
    Option,
    Transmission,
    End,
}

struct Handshake<'a, 'b> {
    peer: &'a mut Timed<'b>,
    offer: Offer<'a>,
    no_zeroes: bool,
    chosen: Negotiated,
    /// Replies to the option at hand, sent in one piece.
    out: Vec<u8>,
}

/// Greets a client and serves its options. `None` where it goes before transmission.
pub(crate) fn negotiate(
    peer: &mut Timed<'_>,
    offer: Offer<'_>,
) -> Result<Option<Negotiated>, HandshakeError> {
    let chosen = Negotiated::default();
    let mut handshake = Handshake {
        peer,
        offer,
        no_zeroes: false,
        chosen,
        out: Vec::new(),
    };
    match handshake.run() {
        Err(HandshakeError::Io(error)) if is_gone(&error) => Ok(None),
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// The transmission flags of an export.
pub(crate) fn transmission_flags(geometry: &Geometry, structured: bool) -> u16 {
    let always =
        can::HAS_FLAGS | can::SEND_FLUSH | can::SEND_FUA | can::SEND_CACHE | can::MULTI_CONN;
    let changes = if geometry.read_only {
        can::READ_ONLY
    } else {
        can::SEND_TRIM | can::SEND_WRITE_ZEROES | can::SEND_FAST_ZERO
    };
    always | changes | if structured { can::SEND_DF } else { 0 }
}

impl Handshake<'_, '_> {
    fn run(&mut self) -> Result<Option<Negotiated>, HandshakeError> {
        self.out.extend(wire::NBDMAGIC.to_be_bytes());
        self.out.extend(wire::IHAVEOPT.to_be_bytes());
        self.out
            .extend((hello::FIXED_NEWSTYLE | hello::NO_ZEROES).to_be_bytes());
        self.send()?;
        let flags = u32::from_be_bytes(self.peer.read_array()?);
        if flags & !u32::from(hello::FIXED_NEWSTYLE | hello::NO_ZEROES) != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(hello::NO_ZEROES) != 0;
        for _ in 0..OPTIONS_MAX {
            let next = self.one_option()?;
            let sent = self.send();
            match next {
                Next::Option => sent?,
                Next::Transmission => return sent.map(|()| Some(self.chosen)),
                // The client may have closed already.
                Next::End => return Ok(None),
            }
        }
        Err(HandshakeError::TooManyOptions)
    }

    fn send(&mut self) -> Result<(), HandshakeError> {
        self.peer.write(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn one_option(&mut self) -> Result<Next, HandshakeError> {
        let magic = u64::from_be_bytes(self.peer.read_array()?);
        if magic != wire::IHAVEOPT {
            return Err(HandshakeError::BadMagic(magic));
        }
        let option = u32::from_be_bytes(self.peer.read_array()?);
        let len = u32::from_be_bytes(self.peer.read_array()?);
        if len > OPTION_BYTES_MAX {
            return self.too_long(option, len);
        }
        let data = self.peer.read_vec(len)?;
        match option {
            option::EXPORT_NAME => return self.export_name(&data),
            option::ABORT => {
                self.reply(option, rep::ACK, &[]);
                return Ok(Next::End);
            }
            option::GO if self.describe(option, &data) => return Ok(Next::Transmission),
            option::GO => {}
            option::INFO => drop(self.describe(option, &data)),
            option::LIST if data.is_empty() => self.list(),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.chosen.structured = true;
                self.reply(option, rep::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.refuse(option, rep::ERR_INVALID, "this option has no data");
            }
            option::LIST_META_CONTEXT => self.list_contexts(&data),
            option::SET_META_CONTEXT => self.set_contexts(&data),
            _ => self.refuse(option, rep::ERR_UNSUP, "this option is not supported"),
        }
        Ok(Next::Option)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[&[u8]]) {
        option_reply(&mut self.out, option, kind, data);
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) {
        self.reply(option, kind, &[why.as_bytes()]);
    }

    /// Drops the data of an option that is too long, a piece at a time.
    fn too_long(&mut self, option: u32, len: u32) -> Result<Next, HandshakeError> {
        if option == option::EXPORT_NAME || len > OPTION_DRAIN_BYTES_MAX {
            return Err(HandshakeError::OptionTooLong(len));
        }
        let mut left = len;
        while left > 0 {
            let piece = left.min(OPTION_BYTES_MAX);
            self.peer.read_vec(piece)?;
            left -= piece;
        }
        self.refuse(option, rep::ERR_TOO_BIG, "the option is too long");
        Ok(Next::Option)
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.offer.name.as_bytes()
    }

    fn flags(&self) -> u16 {
        transmission_flags(&self.offer.geometry, self.chosen.structured)
    }

    fn export_name(&mut self, name: &[u8]) -> Result<Next, HandshakeError> {
        if !self.is_ours(name) {
            let shown = &name[..name.len().min(STRING_BYTES_MAX)];
            let name = String::from_utf8_lossy(shown).into_owned();
            return Err(HandshakeError::UnknownExport(name));
        }
        self.out
            .extend(self.offer.geometry.size_bytes.to_be_bytes());
        self.out.extend(self.flags().to_be_bytes());
        if !self.no_zeroes {
            self.out.extend([0; 124]);
        }
        Ok(Next::Transmission)
    }

    fn list(&mut self) {
        let Offer {
            name, description, ..
        } = self.offer;
        let name_len = u32::try_from(name.len()).expect("the server bounds its names");
        let data = [
            &name_len.to_be_bytes(),
            name.as_bytes(),
            description.as_bytes(),
        ];
        self.reply(option::LIST, rep::SERVER, &data);
        self.reply(option::LIST, rep::ACK, &[]);
    }

    /// INFO and GO. Says whether it succeeded.
    fn describe(&mut self, option: u32, data: &[u8]) -> bool {
        let Some((name, asked)) = parse_info(data) else {
            self.refuse(option, rep::ERR_INVALID, "the lengths inside do not add up");
            return false;
        };
        if !self.is_ours(name) {
            self.refuse(option, rep::ERR_UNKNOWN, "there is no export of this name");
            return false;
        }
        let Offer {
            name,
            description,
            geometry,
        } = self.offer;
        let (size, flags) = (
            geometry.size_bytes.to_be_bytes(),
            self.flags().to_be_bytes(),
        );
        self.reply(
            option,
            rep::INFO,
            &[&info::EXPORT.to_be_bytes(), &size, &flags],
        );
        if asked.contains(&info::NAME) {
            self.reply(
                option,
                rep::INFO,
                &[&info::NAME.to_be_bytes(), name.as_bytes()],
            );
        }
        if asked.contains(&info::DESCRIPTION) {
            let data = [&info::DESCRIPTION.to_be_bytes(), description.as_bytes()];
            self.reply(option, rep::INFO, &data);
        }
        if asked.contains(&info::BLOCK_SIZE) {
            let sizes = [1, geometry.block_size.bytes(), PAYLOAD_BYTES_MAX].map(u32::to_be_bytes);
            let kind = info::BLOCK_SIZE.to_be_bytes();
            self.reply(option, rep::INFO, &[&kind, sizes.as_flattened()]);
        }
        self.reply(option, rep::ACK, &[]);
        true
    }

    fn list_contexts(&mut self, data: &[u8]) {
        let option = option::LIST_META_CONTEXT;
        let Some(queries) = self.queries(option, data) else {
            return;
        };
        for (_, name) in CONTEXTS {
            let space = &name[..=name.find(':').expect("names have a namespace")];
            let meant = |query: &&[u8]| *query == name.as_bytes() || *query == space.as_bytes();
            if queries.is_empty() || queries.iter().any(meant) {
                // The id means nothing here, and is 0.
                self.reply(option, rep::META_CONTEXT, &[&[0; 4], name.as_bytes()]);
            }
        }
        self.reply(option, rep::ACK, &[]);
    }

    fn set_contexts(&mut self, data: &[u8]) {
        let option = option::SET_META_CONTEXT;
        // Also where the option fails.
        self.chosen.contexts = [false; CONTEXTS.len()];
        if !self.chosen.structured {
            return self.refuse(option, rep::ERR_INVALID, "structured replies come first");
        }
        let Some(queries) = self.queries(option, data) else {
            return;
        };
        for (at, (id, name)) in CONTEXTS.into_iter().enumerate() {
            if queries.contains(&name.as_bytes()) {
                self.chosen.contexts[at] = true;
                self.reply(
                    option,
                    rep::META_CONTEXT,
                    &[&id.to_be_bytes(), name.as_bytes()],
                );
            }
        }
        self.reply(option, rep::ACK, &[]);
    }

    /// The queries of an option about contexts, or `None` where it has been refused.
    fn queries<'d>(&mut self, option: u32, data: &'d [u8]) -> Option<Vec<&'d [u8]>> {
        let Some((name, queries)) = parse_queries(data) else {
            self.refuse(option, rep::ERR_INVALID, "the lengths inside do not add up");
            return None;
        };
        if !self.is_ours(name) {
            self.refuse(option, rep::ERR_UNKNOWN, "there is no export of this name");
            return None;
        }
        Some(queries)
    }
}

/// The name, and the information asked for.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let asked = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, asked))
}

/// The name, and the queries. Each takes at least four bytes, which bounds the list.
fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.0.is_empty().then_some((name, queries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowslip_block::BlockSize;

    #[test]
    fn flags_follow_the_device() {
        let mut geometry = Geometry {
            size_bytes: 1,
            block_size: BlockSize::DISK,
            read_only: false,
        };
        assert_eq!(transmission_flags(&geometry, true), 0b1101_1110_1101);
        assert_eq!(transmission_flags(&geometry, false), 0b1101_0110_1101);
        geometry.read_only = true;
        assert_eq!(transmission_flags(&geometry, true), 0b0101_1000_1111);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_none() {
        assert_eq!(
            parse_info(&[0, 0, 0, 1, b'x', 0, 1, 0, 3]),
            Some((&b"x"[..], vec![3]))
        );
        assert_eq!(parse_info(&[0, 0, 0, 0, 0, 0]), Some((&b""[..], vec![])));
        for bad in [
            &[][..],
            &[0, 0, 0, 9, b'x', 0, 0],
            &[0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 7],
            &[0xff; 40],
        ] {
            assert_eq!(parse_info(bad), None, "{bad:?}");
        }
        let good = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, b'a', b':'];
        assert_eq!(parse_queries(&good), Some((&b""[..], vec![&b"a:"[..]])));
        assert_eq!(parse_queries(&good[..13]), None);
        assert_eq!(parse_queries(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
