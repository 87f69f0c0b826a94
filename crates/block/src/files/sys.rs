//! `FS_IOC_FIEMAP` (Documentation/filesystems/fiemap.rst): where a file's bytes lie. All unsafe code of the real file system.
#![allow(
    unsafe_code,
    reason = "ioctl(2) takes whatever its number says it takes"
)]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Extents that one request tells of.
const EXTENTS: usize = 32;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_DELALLOC: u32 = 0x4;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;

/// `struct fiemap` and its array.
#[repr(C)]
#[derive(Default)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` without its array, whose size is in the number of the request.
#[repr(C)]
struct Head([u64; 4]);

const FIEMAP: Opcode = opcode::read_write::<Head>(b'f', 11);

/// The next extent at or after `offset` that was written, or is to be.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY`, `EBADR` where the file system cannot tell; else its own.
pub(super) fn next_extent(file: impl AsFd, mut offset: u64) -> Result<Option<(u64, u64)>, Errno> {
    loop {
        let mut request = Request {
            start: offset,
            length: u64::MAX - offset,
            extent_count: u32::try_from(EXTENTS).expect("a few"),
            ..Request::default()
        };
        // SAFETY: FS_IOC_FIEMAP reads and writes one `struct fiemap`, and writes at most `extent_count` extents behind it: `Request` is laid out so.
        unsafe { ioctl(&file, Updater::<FIEMAP, _>::new(&mut request)) }?;
        let told = usize::try_from(request.mapped_extents).map_or(EXTENTS, |n| n.min(EXTENTS));
        for extent in &request.extents[..told] {
            let end = extent.logical.saturating_add(extent.length);
            let is_reserved = extent.flags & FIEMAP_EXTENT_UNWRITTEN != 0
                && extent.flags & FIEMAP_EXTENT_DELALLOC == 0;
            if !is_reserved && end > offset {
                return Ok(Some((extent.logical.max(offset), end)));
            }
            if extent.flags & FIEMAP_EXTENT_LAST != 0 {
                return Ok(None);
            }
            offset = offset.max(end);
        }
        if told == 0 {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    #[test]
    fn room_that_was_never_written_is_none_also_when_it_was_read() {
        let mut file = tempfile::tempfile().unwrap();
        match next_extent(&file, 0) {
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::BADR) => {
                return eprintln!(
                    "SKIP room_that_was_never_written_is_none_also_when_it_was_read: needs a temporary directory on ext4 or xfs"
                );
            }
            other => assert_eq!(other, Ok(None)),
        }
        fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        file.rewind().unwrap();
        assert_eq!(next_extent(&file, 0), Ok(None));
        // More of them than one request tells of.
        let written: Vec<u64> = (1..100).map(|n| n * 8192).collect();
        for at in &written {
            file.write_all_at(&[7; 4096], *at).unwrap();
        }
        file.sync_all().unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while let Some((start, end)) = next_extent(&file, at).unwrap() {
            assert_eq!(end, start + 4096);
            found.push(start);
            at = end;
        }
        assert_eq!(found, written);
        assert_eq!(next_extent(&file, 8192 + 100), Ok(Some((8292, 12288))));
    }
}
