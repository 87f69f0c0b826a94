//! `FS_IOC_FIEMAP` (Documentation/filesystems/fiemap.rst): where a file's bytes lie. All unsafe code of the real file system.
#![allow(
    unsafe_code,
    reason = "ioctl(2) takes whatever its number says it takes"
)]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Extents that one request tells of.
const EXTENTS: usize = 128;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_DELALLOC: u32 = 0x4;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;

/// `struct fiemap` and its array.
#[repr(C)]
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

/// The next extents at or after `offset` that were written, or are to be: those that one request tells of; none where there are no more.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY`, `EBADR` where the file system cannot tell; else its own.
pub(super) fn next_extents(file: impl AsFd, mut offset: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut found = Vec::new();
    loop {
        let mut request = Request {
            start: offset,
            length: u64::MAX - offset,
            flags: 0,
            mapped_extents: 0,
            extent_count: u32::try_from(EXTENTS).expect("a few"),
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: FS_IOC_FIEMAP reads and writes one `struct fiemap`, and writes at most `extent_count` extents behind it: `Request` is laid out so.
        unsafe { ioctl(&file, Updater::<FIEMAP, _>::new(&mut request)) }?;
        let told = usize::try_from(request.mapped_extents).map_or(EXTENTS, |n| n.min(EXTENTS));
        for extent in &request.extents[..told] {
            let end = extent.logical.saturating_add(extent.length);
            let is_reserved = extent.flags & FIEMAP_EXTENT_UNWRITTEN != 0
                && extent.flags & FIEMAP_EXTENT_DELALLOC == 0;
            if !is_reserved && end > offset {
                found.push((extent.logical.max(offset), end));
            }
            if extent.flags & FIEMAP_EXTENT_LAST != 0 {
                return Ok(found);
            }
            offset = offset.max(end);
        }
        if told == 0 || !found.is_empty() {
            return Ok(found);
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
        match next_extents(&file, 0) {
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::BADR) => {
                return eprintln!(
                    "SKIP room_that_was_never_written_is_none_also_when_it_was_read: needs a temporary directory on ext4 or xfs"
                );
            }
            other => assert_eq!(other, Ok(Vec::new())),
        }
        fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        file.rewind().unwrap();
        assert_eq!(next_extents(&file, 0), Ok(Vec::new()));
        // More of them than one request tells of.
        let written: Vec<u64> = (1..100).map(|n| n * 8192).collect();
        for at in &written {
            file.write_all_at(&[7; 4096], *at).unwrap();
        }
        file.sync_all().unwrap();
        let (mut at, mut found) = (0, Vec::new());
        loop {
            let some = next_extents(&file, at).unwrap();
            let Some((_, last)) = some.last() else { break };
            at = *last;
            for (start, end) in some {
                assert_eq!(end, start + 4096);
                found.push(start);
            }
        }
        assert_eq!(found, written);
        assert_eq!(next_extents(&file, 8192 + 100).unwrap()[0], (8292, 12288));
    }
}
