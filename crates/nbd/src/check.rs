//! The door: [`check`] turns a request from the wire into a [`Command`], or refuses it.
//!
//! The order of the rules is the order of the reasons a client gets: what it asked for (command,
//! flags), whether it may (read-only), how much (length), where (range). Past the door everything is
//! in range and known, so nothing behind it checks again (the device still does, for itself).
//!
//! A request of length 0 is served and does nothing, except BLOCK_STATUS, which has no empty answer.
//! FUA is allowed on every command, as the protocol demands, and ignored where nothing is written.

use cowslip_block::{ByteOffset, ByteRange, Geometry, Room};

use crate::limits::PAYLOAD_BYTES_MAX;
use crate::wire::{Request, cmd, flag};

/// What the handshake settled, as far as it decides what may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    pub(crate) geometry: Geometry,
    /// Structured replies, and so DF.
    pub(crate) structured: bool,
    /// At least one metadata context.
    pub(crate) contexts: bool,
}

/// A request that can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read {
        range: ByteRange,
        whole: bool,
    },
    /// The payload, so long, follows.
    Write {
        offset: ByteOffset,
        fua: bool,
    },
    WriteZeroes {
        range: ByteRange,
        room: Room,
        fua: bool,
    },
    Trim {
        range: ByteRange,
        fua: bool,
    },
    Flush,
    Cache,
    BlockStatus {
        range: ByteRange,
        one: bool,
    },
    Disconnect,
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("unknown command {0}")]
    UnknownCommand(u16),
    #[error("flags {unknown:#06x} mean nothing for command {command}")]
    UnknownFlags { command: u16, unknown: u16 },
    #[error("the device is read-only")]
    ReadOnly,
    #[error("{len} bytes are more than the {PAYLOAD_BYTES_MAX} of one request")]
    TooLong { len: u32 },
    #[error("{len} bytes are more than the {PAYLOAD_BYTES_MAX} of one chunk")]
    TooLongForOneChunk { len: u32 },
    #[error("{len} bytes at {offset} end past the device of {size_bytes} bytes")]
    PastTheEnd {
        offset: u64,
        len: u32,
        size_bytes: u64,
        writes: bool,
    },
    #[error("zeroing with its room kept is no faster than writing")]
    NotFast,
    #[error("a flush has neither offset nor length")]
    FlushWithRange,
    #[error("no metadata context was negotiated")]
    NoContext,
    #[error("there is no block status of 0 bytes")]
    EmptyStatus,
}

/// Judges one request.
pub(crate) fn check(request: &Request, door: &Door) -> Result<Command, Refusal> {
    if request.kind == cmd::DISC {
        return Ok(Command::Disconnect);
    }
    check_flags(request, door)?;
    let writes = matches!(request.kind, cmd::WRITE | cmd::WRITE_ZEROES);
    if door.geometry.read_only && (writes || request.kind == cmd::TRIM) {
        return Err(Refusal::ReadOnly);
    }
    check_length(request, door)?;
    let range = check_range(request, &door.geometry, writes)?;
    let has = |flag| request.flags & flag != 0;
    let fua = has(flag::FUA);
    Ok(match request.kind {
        cmd::READ => Command::Read {
            range,
            whole: has(flag::DF),
        },
        cmd::WRITE => Command::Write {
            offset: range.start,
            fua,
        },
        cmd::FLUSH => Command::Flush,
        cmd::TRIM => Command::Trim { range, fua },
        cmd::CACHE => Command::Cache,
        cmd::WRITE_ZEROES => {
            let room = if has(flag::NO_HOLE) {
                Room::Provision
            } else {
                Room::Free
            };
            if room == Room::Provision && has(flag::FAST_ZERO) {
                return Err(Refusal::NotFast);
            }
            Command::WriteZeroes { range, room, fua }
        }
        cmd::BLOCK_STATUS => Command::BlockStatus {
            range,
            one: has(flag::REQ_ONE),
        },
        other => return Err(Refusal::UnknownCommand(other)),
    })
}

fn check_flags(request: &Request, door: &Door) -> Result<(), Refusal> {
    let of_command = match request.kind {
        cmd::READ if door.structured => flag::DF,
        cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
        cmd::BLOCK_STATUS => flag::REQ_ONE,
        cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
        other => return Err(Refusal::UnknownCommand(other)),
    };
    match request.flags & !(of_command | flag::FUA) {
        0 => Ok(()),
        unknown => Err(Refusal::UnknownFlags {
            command: request.kind,
            unknown,
        }),
    }
}

fn check_length(request: &Request, door: &Door) -> Result<(), Refusal> {
    let len = request.len;
    let too_long = len > PAYLOAD_BYTES_MAX;
    match request.kind {
        cmd::READ if too_long && request.flags & flag::DF != 0 => {
            Err(Refusal::TooLongForOneChunk { len })
        }
        cmd::READ | cmd::WRITE if too_long => Err(Refusal::TooLong { len }),
        cmd::FLUSH if len != 0 || request.offset != 0 => Err(Refusal::FlushWithRange),
        cmd::BLOCK_STATUS if !door.contexts => Err(Refusal::NoContext),
        cmd::BLOCK_STATUS if len == 0 => Err(Refusal::EmptyStatus),
        _ => Ok(()),
    }
}

fn check_range(request: &Request, device: &Geometry, writes: bool) -> Result<ByteRange, Refusal> {
    ByteRange::at(request.offset, u64::from(request.len))
        .filter(|range| range.end.0 <= device.size_bytes)
        .ok_or(Refusal::PastTheEnd {
            offset: request.offset,
            len: request.len,
            size_bytes: device.size_bytes,
            writes,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;
    use cowslip_block::BlockSize;

    const SIZE: u64 = 1 << 30;
    const MAX: u32 = PAYLOAD_BYTES_MAX;

    fn door() -> Door {
        let geometry = Geometry {
            size_bytes: SIZE,
            block_size: BlockSize::DISK,
            read_only: false,
        };
        Door {
            geometry,
            structured: true,
            contexts: true,
        }
    }

    fn ask(door: &Door, kind: u16, flags: u16, offset: u64, len: u32) -> Result<Command, Errno> {
        let request = Request {
            flags,
            kind,
            cookie: 7,
            offset,
            len,
        };
        check(&request, door).map_err(|refusal| Errno::of_refusal(&refusal))
    }

    #[test]
    fn each_rule() {
        use Errno::*;
        use cmd::*;
        use flag::*;
        let end = SIZE;
        #[rustfmt::skip]
        let rules = [
            // what, flags, offset, length -> errno, or None where it is served
            (READ,         0,                   0,       1,        None),
            (READ,         FUA | DF,            end - 1, 1,        None),
            (READ,         0,                   0,       MAX,      None),
            (READ,         0,                   0,       MAX + 1,  Some(Inval)),
            (READ,         DF,                  0,       MAX + 1,  Some(Overflow)),
            (READ,         0,                   end,     0,        None),
            (READ,         0,                   end,     1,        Some(Inval)),
            (READ,         0,                   end - 1, 2,        Some(Inval)),
            (READ,         0,                   u64::MAX, u32::MAX, Some(Inval)),
            (READ,         0,                   u64::MAX, 1,       Some(Inval)),
            (READ,         NO_HOLE,             0,       1,        Some(Inval)),
            (READ,         1 << 5,              0,       1,        Some(Inval)),
            (WRITE,        FUA,                 0,       MAX,      None),
            (WRITE,        0,                   0,       MAX + 1,  Some(Inval)),
            (WRITE,        0,                   end - 1, 2,        Some(NoSpc)),
            (WRITE,        0,                   u64::MAX, 1,       Some(NoSpc)),
            (WRITE,        DF,                  0,       1,        Some(Inval)),
            (WRITE,        1 << 15,             0,       1,        Some(Inval)),
            (FLUSH,        0,                   0,       0,        None),
            (FLUSH,        FUA,                 0,       0,        None),
            (FLUSH,        0,                   1,       0,        Some(Inval)),
            (FLUSH,        0,                   0,       1,        Some(Inval)),
            (TRIM,         FUA,                 0,       u32::MAX, Some(Inval)),
            (TRIM,         0,                   0,       1 << 30,  None),
            (TRIM,         0,                   1,       1 << 30,  Some(Inval)),
            (TRIM,         NO_HOLE,             0,       1,        Some(Inval)),
            (CACHE,        0,                   0,       1 << 30,  None),
            (CACHE,        0,                   end,     1,        Some(Inval)),
            (CACHE,        DF,                  0,       1,        Some(Inval)),
            (WRITE_ZEROES, FUA | NO_HOLE,       0,       1 << 30,  None),
            (WRITE_ZEROES, FAST_ZERO,           0,       1 << 30,  None),
            (WRITE_ZEROES, FAST_ZERO | NO_HOLE, 0,       1,        Some(NotSup)),
            (WRITE_ZEROES, 0,                   end,     1,        Some(NoSpc)),
            (WRITE_ZEROES, DF,                  0,       1,        Some(Inval)),
            (BLOCK_STATUS, REQ_ONE,             0,       1 << 30,  None),
            (BLOCK_STATUS, 0,                   0,       0,        Some(Inval)),
            (BLOCK_STATUS, 0,                   end - 1, 2,        Some(Inval)),
            (BLOCK_STATUS, FAST_ZERO,           0,       1,        Some(Inval)),
            (DISC,         0xffff,              1,       1,        None),
            (8,            0,                   0,       0,        Some(Inval)),
            (0x100,        0,                   0,       0,        Some(Inval)),
        ];
        for (kind, flags, offset, len, expected) in rules {
            let got = ask(&door(), kind, flags, offset, len);
            assert_eq!(got.err(), expected, "{kind} {flags:#x} {offset} {len}");
        }
    }

    #[test]
    fn a_read_only_device_says_eperm_before_anything_about_the_range() {
        let mut door = door();
        door.geometry.read_only = true;
        for kind in [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM] {
            assert_eq!(ask(&door, kind, 0, 0, 1), Err(Errno::Perm));
            assert_eq!(ask(&door, kind, 0, SIZE, 1), Err(Errno::Perm));
        }
        for kind in [cmd::READ, cmd::CACHE, cmd::BLOCK_STATUS] {
            assert!(ask(&door, kind, 0, 0, 1).is_ok());
        }
        assert_eq!(ask(&door, cmd::FLUSH, 0, 0, 0), Ok(Command::Flush));
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let plain = Door {
            structured: false,
            contexts: false,
            ..door()
        };
        assert_eq!(ask(&plain, cmd::READ, flag::DF, 0, 1), Err(Errno::Inval));
        assert_eq!(ask(&plain, cmd::BLOCK_STATUS, 0, 0, 1), Err(Errno::Inval));
        assert!(ask(&plain, cmd::READ, 0, 0, 1).is_ok());
    }

    #[test]
    fn no_hole_keeps_the_room() {
        let room = |flags| match ask(&door(), cmd::WRITE_ZEROES, flags, 0, 1) {
            Ok(Command::WriteZeroes { room, .. }) => room,
            other => panic!("{other:?}"),
        };
        assert_eq!(room(flag::NO_HOLE), Room::Provision);
        assert_eq!(room(flag::FAST_ZERO), Room::Free);
    }
}
