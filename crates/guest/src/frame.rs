//! What a guest's first process and the host say to each other, over one virtio port.
//!
//! ```text
//! kind u8 | length u32, little endian | payload
//! ```
//!
//! | kind | from | payload |
//! |---|---|---|
//! | [`HELLO`] | the guest | none: the kernel runs, and no disk is touched yet |
//! | [`READY`] | the guest | none: it has its files, and takes commands from here on |
//! | [`FAILED`] | the guest | why it cannot go on; it ends |
//! | [`COMMAND`] | the host | a program and its arguments, with a NUL between two |
//! | [`CONSOLE`] | the host | `ROWS COLUMNS TERM`: instead of a command, a shell for whoever is at the console; once it is there, comes [`TAKEN`] |
//! | [`INPUT`] | the host | what the command reads; empty: no more. One at a time, before the next comes [`TAKEN`] |
//! | [`TAKEN`] | the guest | none: the command has read it, or wants no more |
//! | [`OUT`], [`ERR`] | the guest | what the command wrote |
//! | [`EXIT`] | the guest | how the command ended, as wait(2) says it, in decimal |
//! | [`FREEZE`] | the host | a number, u32 little endian, for the answer; hold the root's file system still |
//! | [`THAW`] | the host | the same number |
//! | [`FROZEN`], [`THAWED`] | the guest | that number, and why it could not; none where it did. Thawed: it was frozen until now |
//! | [`END`] | the host | none: end all that runs, write all back |
//! | [`ENDED`] | the guest | why not all is written back; none where it is: then it is turned off |
//!
//! One command at a time. A guest whose host has gone ends.

use std::io::{self, Read, Write};

/// See the table.
pub const HELLO: u8 = b'h';
/// See the table.
pub const READY: u8 = b'r';
/// See the table.
pub const FAILED: u8 = b'!';
/// See the table.
pub const COMMAND: u8 = b'c';
/// See the table.
pub const CONSOLE: u8 = b'k';
/// See the table.
pub const INPUT: u8 = b'i';
/// See the table.
pub const TAKEN: u8 = b'I';
/// See the table.
pub const OUT: u8 = b'o';
/// See the table.
pub const ERR: u8 = b'e';
/// See the table.
pub const EXIT: u8 = b'x';
/// See the table.
pub const FREEZE: u8 = b'f';
/// See the table.
pub const FROZEN: u8 = b'F';
/// See the table.
pub const THAW: u8 = b't';
/// See the table.
pub const THAWED: u8 = b'T';
/// See the table.
pub const END: u8 = b'q';
/// See the table.
pub const ENDED: u8 = b'Q';

/// No payload is longer.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// Sends one.
///
/// # Errors
/// Where nobody takes it.
pub fn send(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    // In one write: the head alone is not worth a wakeup.
    let frame = [&[kind][..], &length.to_le_bytes(), payload].concat();
    to.write_all(&frame)
}

/// Waits for one: its kind and its payload.
///
/// # Errors
/// Where the other side has gone, or says what is no frame.
pub fn receive(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_as_it_was_sent_and_none_is_too_long() {
        let mut wire = Vec::new();
        send(&mut wire, OUT, b"some").unwrap();
        send(&mut wire, READY, &[]).unwrap();
        let mut from = &wire[..];
        assert_eq!(receive(&mut from).unwrap(), (OUT, b"some".to_vec()));
        assert_eq!(receive(&mut from).unwrap(), (READY, Vec::new()));
        assert_eq!(
            receive(&mut from).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let long = [&[OUT][..], &u32::MAX.to_le_bytes()].concat();
        let refused = receive(&mut &long[..]).unwrap_err();
        assert_eq!(refused.to_string(), "a frame of 4294967295 bytes");
    }
}
