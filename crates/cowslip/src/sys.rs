//! Requests to a mounted file system that no safe crate has: ioctl(2) with the numbers and structures of the
//! kernel's `linux/fs.h` and `ext4.h`. All unsafe code of this crate.
//!
//! | request | what it does |
//! |---|---|
//! | `FITRIM` | tells the device which blocks are free |
//! | `EXT4_IOC_CHECKPOINT` | empties the journal, and discards or zeroes its blocks (Linux 5.14) |
//! | `FIFREEZE`, `FITHAW` | syncs, and holds all writers until the thaw |
#![allow(
    unsafe_code,
    reason = "ioctl(2) takes whatever its number says it takes"
)]

use std::os::fd::BorrowedFd;

use rustix::io::Result;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

const FITRIM: Opcode = opcode::read_write::<TrimRange>(b'X', 121);
const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);
const EXT4_IOC_CHECKPOINT: Opcode = opcode::write::<u32>(b'f', 43);

/// `struct fstrim_range`.
#[repr(C)]
struct TrimRange {
    start: u64,
    len: u64,
    min_len: u64,
}

/// What a checkpoint does with the blocks of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Erase {
    Discard,
    Zeroes,
}

/// Discards all that is free; how many bytes the file system says that were.
pub(crate) fn trim(file: BorrowedFd<'_>) -> Result<u64> {
    let mut range = TrimRange {
        start: 0,
        len: u64::MAX,
        min_len: 0,
    };
    // SAFETY: FITRIM reads and writes one `fstrim_range`, whose three u64 these are, and which outlives the call.
    unsafe { ioctl(file, Updater::<FITRIM, TrimRange>::new(&mut range)) }?;
    Ok(range.len)
}

/// Writes what the journal holds to its place, and erases the journal.
pub(crate) fn checkpoint(file: BorrowedFd<'_>, erase: Erase) -> Result<()> {
    let flags: u32 = match erase {
        Erase::Discard => 1,
        Erase::Zeroes => 2,
    };
    // SAFETY: EXT4_IOC_CHECKPOINT reads one u32 of flags. Other file systems know no such number, and refuse it.
    unsafe { ioctl(file, Setter::<EXT4_IOC_CHECKPOINT, u32>::new(flags)) }
}

/// Syncs, and holds all writers.
pub(crate) fn freeze(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: FIFREEZE ignores its argument, which is an i32 by its number.
    unsafe { ioctl(file, Setter::<FIFREEZE, i32>::new(0)) }
}

/// Lets writers go on; EINVAL where nothing is frozen.
pub(crate) fn thaw(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: FITHAW ignores its argument, which is an i32 by its number.
    unsafe { ioctl(file, Setter::<FITHAW, i32>::new(0)) }
}
