//! [`Disk`]: a file system of one file, which is the device.
//!
//! | the kernel asks | the device does | why |
//! |---|---|---|
//! | READ | `read`, up to the end of the device | |
//! | WRITE | `write`; past the end ENOSPC | the file never grows |
//! | FALLOCATE with PUNCH_HOLE | `write_zeroes`, room given back | not `trim`, which leaves parts of blocks as they are: the loop device sends its discards as well as "write zeros, unmapping allowed" in this form, and whoever asked for zeros reads them again |
//! | FALLOCATE with ZERO_RANGE | `write_zeroes`, room kept | "write zeros, do not unmap" |
//! | FALLOCATE, other modes | EOPNOTSUPP | |
//! | FSYNC | `flush` | |
//! | STATFS | its block size | the loop device takes it for the granularity of discards |
//!
//! Invariants:
//! 1. Every request is answered, also where the device panics.
//! 2. A failed request fails that request only. Its reason has no place in the reply, so it is said, each text once.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use cowslip_block::{ByteOffset, ByteRange, Device, DeviceError, FillBuf, Geometry, Room};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, WriteFlags,
};

/// Is handed one line of text for people.
pub(crate) type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// The largest request: more costs memory in each thread and wins nothing.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel sends before it waits for answers.
const BACKGROUND_MAX: u16 = 64;
/// Different texts of errors that are said.
const SAID_MAX: usize = 20;

const THE_FILE: INodeNo = INodeNo(2);
/// Nothing changes but bytes, and those the kernel does not keep.
const FOREVER: Duration = Duration::from_secs(3600);

const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;

/// See the module.
pub(crate) struct Disk {
    device: Arc<dyn Device>,
    geometry: Geometry,
    name: String,
    say: Say,
    said: Mutex<BTreeSet<String>>,
}

impl Disk {
    pub(crate) fn new(device: Arc<dyn Device>, name: String, say: Say) -> Self {
        Self {
            geometry: device.geometry(),
            device,
            name,
            say,
            said: Mutex::default(),
        }
    }

    fn attributes(&self, of: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match of {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            THE_FILE if self.geometry.read_only => {
                (FileType::RegularFile, 0o400, self.geometry.size_bytes)
            }
            THE_FILE => (FileType::RegularFile, 0o600, self.geometry.size_bytes),
            _ => return None,
        };
        Some(FileAttr {
            ino: of,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: self.geometry.block_size.bytes(),
            flags: 0,
        })
    }

    /// Runs a request on the device (invariants 1 and 2).
    fn guarded<T>(&self, request: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, Errno> {
        let error = match catch_unwind(AssertUnwindSafe(request)) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            // The runtime has printed it.
            Err(_) => return Err(Errno::EIO),
        };
        // Damage is said by the store, with its place.
        if !matches!(error, DeviceError::Corrupt(_)) {
            self.say_once(&error.to_string());
        }
        Err(Errno::from_i32(error.errno()))
    }

    fn say_once(&self, text: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < SAID_MAX && said.insert(text.to_owned()) {
            (self.say)(&format!("a request failed: {text}"));
        }
    }

    /// The bytes of a request that reads: what lies past the end is not there.
    fn readable(&self, offset: u64, len: u32) -> ByteRange {
        let size = self.geometry.size_bytes;
        let start = offset.min(size);
        ByteRange::new(
            start,
            offset.saturating_add(len.into()).min(size).max(start),
        )
    }

    /// The bytes of a request that changes something: within the device, or refused.
    fn changeable(&self, offset: u64, len: u64) -> Result<ByteRange, DeviceError> {
        match ByteRange::at(offset, len) {
            Some(range) if range.end.0 <= self.geometry.size_bytes => Ok(range),
            _ => Err(DeviceError::NoSpace),
        }
    }

    fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), DeviceError> {
        let room = match mode & !KEEP_SIZE {
            PUNCH_HOLE => Room::Free,
            ZERO_RANGE => Room::Provision,
            _ => return Err(DeviceError::Unsupported("this mode of fallocate")),
        };
        let range = self.changeable(offset, len)?;
        self.device.write_zeroes(range, room)
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each has a bound that the kernel chose, and takes the nearest.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        // Without it the loop device waits for one request after the other; old kernels do.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(THE_FILE) {
            Some(file) if parent == INodeNo::ROOT && name == &*self.name => {
                reply.entry(&FOREVER, &file, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, of: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(of) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _of: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps no byte of the file, and writes do not wait for each other.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _of: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let range = self.readable(offset, size.min(REQUEST_BYTES_MAX));
        let len = usize::try_from(range.len()).expect("a request's length has 32 bits");
        let mut bytes = vec![0; len];
        let read = self.guarded(|| {
            let mut sink = FillBuf::new(&mut bytes);
            if !range.is_empty() {
                self.device.read(range, &mut sink)?;
            }
            Ok(sink.filled == len)
        });
        match read {
            Ok(true) => reply.data(&bytes),
            Ok(false) => reply.error(Errno::EIO),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _of: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _kind: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.guarded(|| {
            self.changeable(offset, data.len() as u64)?;
            if data.is_empty() {
                return Ok(());
            }
            self.device.write(ByteOffset(offset), data)
        });
        match written {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _of: INodeNo, _: FileHandle, _data: bool, reply: ReplyEmpty) {
        answer(self.guarded(|| self.device.flush()), reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _of: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer(self.guarded(|| self.allocate(offset, length, mode)), reply);
    }

    /// Of each close; nothing is kept back that a close would have to send.
    fn flush(&self, _: &Request, _of: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _of: INodeNo, reply: ReplyStatfs) {
        let unit = self.geometry.block_size.bytes();
        let blocks = self.geometry.size_bytes.div_ceil(unit.into());
        reply.statfs(blocks, 0, 0, 1, 0, unit, 255, unit);
    }
}

fn answer(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

#[cfg(test)]
mod tests {

    use cowslip_block::{BlockSize, ReadSink};

    use super::*;

    const SIZE: u64 = 10_000;

    /// Notes what it is asked for; what starts at 13 panics, at 17 finds no room.
    #[derive(Default)]
    struct Noting(Mutex<Vec<(ByteRange, Room)>>);

    impl Device for Noting {
        fn geometry(&self) -> Geometry {
            Geometry {
                size_bytes: SIZE,
                block_size: BlockSize::DISK,
                read_only: false,
            }
        }

        fn read(&self, _: ByteRange, _: &mut dyn ReadSink) -> Result<(), DeviceError> {
            Ok(())
        }

        fn write_zeroes(&self, range: ByteRange, room: Room) -> Result<(), DeviceError> {
            match range.start.0 {
                13 => panic!("as it was told to"),
                17 => return Err(DeviceError::NoSpace),
                _ => self.0.lock().unwrap().push((range, room)),
            }
            Ok(())
        }
    }

    fn disk() -> (Arc<Noting>, Arc<Mutex<Vec<String>>>, Disk) {
        let (device, said) = (Arc::new(Noting::default()), Arc::<Mutex<Vec<_>>>::default());
        let heard = Arc::clone(&said);
        let say: Say = Arc::new(move |text: &str| heard.lock().unwrap().push(text.to_owned()));
        let disk = Disk::new(Arc::clone(&device) as _, "disk".into(), say);
        (device, said, disk)
    }

    #[test]
    fn holes_and_zeros_are_exact_and_differ_in_their_room() {
        let (device, _, disk) = disk();
        disk.allocate(512, 1024, PUNCH_HOLE | KEEP_SIZE).unwrap();
        disk.allocate(1, SIZE - 1, ZERO_RANGE).unwrap();
        disk.allocate(0, SIZE, ZERO_RANGE | KEEP_SIZE).unwrap();
        let wanted = [
            (ByteRange::new(512, 1536), Room::Free),
            (ByteRange::new(1, SIZE), Room::Provision),
            (ByteRange::new(0, SIZE), Room::Provision),
        ];
        assert_eq!(*device.0.lock().unwrap(), wanted);
        // Allocate, keep the size, collapse, insert, unshare, both at once.
        for mode in [0, KEEP_SIZE, 0x08, 0x20, 0x40, PUNCH_HOLE | ZERO_RANGE] {
            let refused = disk.allocate(0, 512, mode).unwrap_err();
            assert_eq!(
                Errno::from_i32(refused.errno()).code(),
                Errno::EOPNOTSUPP.code()
            );
        }
        for (offset, len) in [(0, SIZE + 1), (SIZE, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let refused = disk.allocate(offset, len, PUNCH_HOLE).unwrap_err();
            assert!(matches!(refused, DeviceError::NoSpace), "{offset} {len}");
        }
        assert_eq!(device.0.lock().unwrap().len(), wanted.len());
    }

    #[test]
    fn reads_end_where_the_device_ends() {
        let (_, _, disk) = disk();
        assert_eq!(disk.readable(0, 512), ByteRange::new(0, 512));
        assert_eq!(disk.readable(9999, 512), ByteRange::new(9999, SIZE));
        for past in [SIZE, SIZE + 1, u64::MAX] {
            assert!(disk.readable(past, 512).is_empty(), "{past}");
        }
    }

    #[test]
    fn every_failure_has_a_number_and_is_said_once() {
        let (_, said, disk) = disk();
        let punch = |at| disk.guarded(|| disk.allocate(at, 1, PUNCH_HOLE));
        assert_eq!(punch(13).unwrap_err().code(), Errno::EIO.code());
        for _ in 0..3 {
            assert_eq!(punch(17).unwrap_err().code(), Errno::ENOSPC.code());
        }
        punch(18).unwrap();
        assert_eq!(
            *said.lock().unwrap(),
            ["a request failed: no space left for the write"]
        );
    }
}
