//! What a machine and the host say to each other, over one virtio port.
//!
//! ```text
//! kind u8 | length u32, little endian | payload
//! ```
//!
//! | kind | from | payload |
//! |---|---|---|
//! | [`READY`] | the machine | none: it takes commands from here on |
//! | [`COMMAND`] | the host | a program and its arguments, with a NUL between two |
//! | [`OUT`], [`ERR`] | the machine | what the command wrote |
//! | [`EXIT`] | the machine | how the command ended, as wait(2) says it, in decimal |
//!
//! One command at a time. A machine whose host has gone ends.

use std::io::{self, Read, Write};

pub(crate) const READY: u8 = b'r';
pub(crate) const COMMAND: u8 = b'c';
pub(crate) const OUT: u8 = b'o';
pub(crate) const ERR: u8 = b'e';
pub(crate) const EXIT: u8 = b'x';

/// No payload is longer.
pub(crate) const PAYLOAD_MAX: usize = 1 << 20;

pub(crate) fn send(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    // In one write: the head alone is not worth a wakeup.
    let frame = [&[kind][..], &length.to_le_bytes(), payload].concat();
    to.write_all(&frame)
}

pub(crate) fn receive(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > PAYLOAD_MAX {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok((kind[0], payload))
}
