//! userfaultfd(2) and `PAGEMAP_SCAN`: one function for each request, which hands back what the kernel said, and no policy. All
//! unsafe code of this crate.
//!
//! | request | what it does | kernel |
//! |---|---|---|
//! | `UFFDIO_API` | agrees on features; once, by who makes the descriptor | 4.3 |
//! | `UFFDIO_REGISTER`, `UFFDIO_UNREGISTER` | of which addresses it is told what | 4.3 |
//! | `UFFDIO_COPY`, `UFFDIO_ZEROPAGE` | pages put in place, all or none of each; `EEXIST` where one is there | 4.3 |
//! | `UFFDIO_WRITEPROTECT` | of pages that are there, whether writing one stops the writer | 5.7; huge and shared pages 5.19 |
//! | `UFFDIO_WAKE` | who waits looks again | 4.3 |
//! | read(2) | what happened: faults first, then removals and the like | 4.3 |
//! | `PAGEMAP_SCAN` | the pages that were written since they were protected; and protected again at once | 6.7 |
//!
//! Addresses are those of the process whose memory it is. Nothing here reads or writes this process's own memory but by slices; what
//! is done to the other's is its own affair, which gave the descriptor away.
#![allow(
    unsafe_code,
    reason = "ioctl(2) takes whatever its number says it takes"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub use linux_raw_sys::general::{
    PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN,
    UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_MISSING_SHMEM,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_WP_ASYNC,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
};
use linux_raw_sys::general::{
    PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, UFFD_API, UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT,
    UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP, UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, UFFDIO_COPY_MODE_DONTWAKE,
    UFFDIO_COPY_MODE_WP, UFFDIO_ZEROPAGE_MODE_DONTWAKE, pm_scan_arg, uffdio_api, uffdio_copy,
    uffdio_range, uffdio_register, uffdio_writeprotect, uffdio_zeropage,
};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

/// `UFFDIO`.
const TYPE: u8 = 0xaa;
const API: Opcode = opcode::read_write::<uffdio_api>(TYPE, 0x3f);
const REGISTER: Opcode = opcode::read_write::<uffdio_register>(TYPE, 0);
// These two are declared as if they returned something, and do not.
const UNREGISTER: Opcode = opcode::read::<uffdio_range>(TYPE, 1);
const WAKE: Opcode = opcode::read::<uffdio_range>(TYPE, 2);
const COPY: Opcode = opcode::read_write::<uffdio_copy>(TYPE, 3);
const ZEROPAGE: Opcode = opcode::read_write::<uffdio_zeropage>(TYPE, 4);
const WRITEPROTECT: Opcode = opcode::read_write::<uffdio_writeprotect>(TYPE, 6);
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const WRITEPROTECT_MODE_WP: u64 = 1;
/// `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;
/// Messages that one read takes at most.
pub const MESSAGES_MAX: usize = 64;

/// Why a thread of the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// It wants to read what is not there.
    Read,
    /// It wants to write what is not there.
    Write,
    /// It wants to write what is protected.
    WriteProtected,
    /// What it wants is in the page cache, and not mapped: only where that was asked for.
    Minor,
}

/// What a userfaultfd tells.
#[derive(Debug)]
pub enum Event {
    /// A thread stopped.
    Fault {
        /// Where, down to the page.
        address: u64,
        /// Why.
        access: Access,
        /// Which thread, where that was asked for; else 0.
        thread: u32,
    },
    /// These addresses are about to be given back: they are when the event has been read.
    Remove(Range<u64>),
    /// These addresses are gone.
    Unmap(Range<u64>),
    /// These addresses are elsewhere now, at the second one.
    Remap(Range<u64>, u64),
    /// The process has a child, whose memory this descriptor is for.
    Fork(OwnedFd),
    /// A later kernel's.
    Other(u8),
}

/// How far a request came, and what stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Bytes that were done before.
    pub done_bytes: u64,
    /// Why no more were.
    pub why: Errno,
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd(File);

impl Uffd {
    /// Makes one for this process's memory, from `/dev/userfaultfd` (Linux 6.1), with these `UFFD_FEATURE_*`.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` where it does not have a feature.
    pub fn open(features: u64) -> io::Result<Self> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd")?;
        const USERFAULTFD_IOC_NEW: Opcode = opcode::none(TYPE, 0);
        let flags = rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        // SAFETY: USERFAULTFD_IOC_NEW takes the flags as its argument, and returns a new descriptor.
        let made = unsafe { ioctl(&device, NewFd::<USERFAULTFD_IOC_NEW>(flags.bits())) }?;
        let uffd = Self::from(made);
        let mut api = uffdio_api {
            api: u64::from(UFFD_API),
            features,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
        unsafe { ioctl(&uffd, Updater::<API, uffdio_api>::new(&mut api)) }?;
        Ok(uffd)
    }

    /// Says of which addresses is told what: `UFFDIO_REGISTER_MODE_*`. Again for the same ones: what is told changes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&self, addresses: Range<u64>, mode: u32) -> Result<(), Errno> {
        let mut register = uffdio_register {
            range: range(&addresses),
            mode: u64::from(mode),
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`.
        unsafe { ioctl(self, Updater::<REGISTER, _>::new(&mut register)) }
    }

    /// Nothing is told of these addresses any more, and who waits goes on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unregister(&self, addresses: Range<u64>) -> Result<(), Errno> {
        // SAFETY: UFFDIO_UNREGISTER reads one `uffdio_range`.
        unsafe { ioctl(self, Setter::<UNREGISTER, _>::new(range(&addresses))) }
    }

    /// Who waits for these addresses looks again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self, addresses: Range<u64>) -> Result<(), Errno> {
        // SAFETY: UFFDIO_WAKE reads one `uffdio_range`.
        unsafe { ioctl(self, Setter::<WAKE, _>::new(range(&addresses))) }
    }

    /// Puts pages with these bytes in place, in order, and wakes who waits for them, unless they are to wait.
    ///
    /// # Errors
    /// [`Stopped`]; `EEXIST` where a page is there, `EAGAIN` while addresses are being given back, `ENOENT` where they are gone, `ESRCH` where the
    /// process is.
    pub fn copy(
        &self,
        to: u64,
        bytes: &[u8],
        is_protected: bool,
        wake: bool,
    ) -> Result<(), Stopped> {
        let mut mode = 0;
        if is_protected {
            mode |= u64::from(UFFDIO_COPY_MODE_WP);
        }
        if !wake {
            mode |= u64::from(UFFDIO_COPY_MODE_DONTWAKE);
        }
        let mut copy = uffdio_copy {
            dst: to,
            src: bytes.as_ptr().expose_provenance() as u64,
            len: bytes.len() as u64,
            mode,
            copy: 0,
        };
        // SAFETY: UFFDIO_COPY reads and writes one `uffdio_copy`, and reads `len` bytes at `src`, which is this slice. It
        // writes to memory that is registered with this descriptor.
        let done = unsafe { ioctl(self, Updater::<COPY, _>::new(&mut copy)) };
        stopped(done, copy.copy)
    }

    /// Puts pages of zeros in place, as [`Self::copy`] does. They are never protected: the kernel has no such request.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn zero(&self, addresses: Range<u64>, wake: bool) -> Result<(), Stopped> {
        let mut zero = uffdio_zeropage {
            range: range(&addresses),
            mode: match wake {
                true => 0,
                false => u64::from(UFFDIO_ZEROPAGE_MODE_DONTWAKE),
            },
            zeropage: 0,
        };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one `uffdio_zeropage`.
        let done = unsafe { ioctl(self, Updater::<ZEROPAGE, _>::new(&mut zero)) };
        stopped(done, zero.zeropage)
    }

    /// Protects the pages that are there against writing, or lets them be written and wakes who waits for that.
    ///
    /// # Errors
    /// `EAGAIN` while addresses are being given back; else the kernel's.
    pub fn protect(&self, addresses: Range<u64>, protected: bool) -> Result<(), Errno> {
        let mut protect = uffdio_writeprotect {
            range: range(&addresses),
            mode: match protected {
                true => WRITEPROTECT_MODE_WP,
                false => 0,
            },
        };
        // SAFETY: UFFDIO_WRITEPROTECT reads one `uffdio_writeprotect`.
        unsafe { ioctl(self, Updater::<WRITEPROTECT, _>::new(&mut protect)) }
    }

    /// What happened since; nothing if nothing did. Whoever removes addresses goes on when its event is read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, events: &mut Vec<Event>) -> Result<(), Errno> {
        let mut messages = [0; MESSAGE_BYTES * MESSAGES_MAX];
        let read = match rustix::io::read(self, &mut messages) {
            Err(Errno::AGAIN | Errno::INTR) => 0,
            other => other?,
        };
        let (messages, _) = messages[..read].as_chunks::<MESSAGE_BYTES>();
        events.extend(messages.iter().map(event));
        Ok(())
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn range(addresses: &Range<u64>) -> uffdio_range {
    uffdio_range {
        start: addresses.start,
        len: addresses.end.saturating_sub(addresses.start),
    }
}

/// `done` is what the kernel writes back: bytes, or what went wrong before the first.
fn stopped(result: Result<(), Errno>, done: i64) -> Result<(), Stopped> {
    result.map_err(|why| Stopped {
        done_bytes: u64::try_from(done).unwrap_or(0),
        why,
    })
}

/// `struct uffd_msg`: the kind at 0, what belongs to it from 8.
fn event(message: &[u8; MESSAGE_BYTES]) -> Event {
    let (words, _) = message.as_chunks::<8>();
    let word = |i: usize| u64::from_ne_bytes(words[i]);
    let half = |at: usize| {
        let (halves, _) = message.as_chunks::<4>();
        u32::from_ne_bytes(halves[at / 4])
    };
    match u32::from(message[0]) {
        UFFD_EVENT_PAGEFAULT => {
            let has = |flag: u32| word(1) & u64::from(flag) != 0;
            let access = if has(UFFD_PAGEFAULT_FLAG_WP) {
                Access::WriteProtected
            } else if has(UFFD_PAGEFAULT_FLAG_MINOR) {
                Access::Minor
            } else if has(UFFD_PAGEFAULT_FLAG_WRITE) {
                Access::Write
            } else {
                Access::Read
            };
            Event::Fault {
                address: word(2),
                access,
                thread: half(24),
            }
        }
        UFFD_EVENT_REMOVE => Event::Remove(word(1)..word(2)),
        UFFD_EVENT_UNMAP => Event::Unmap(word(1)..word(2)),
        UFFD_EVENT_REMAP => {
            let (from, to, len) = (word(1), word(2), word(3));
            Event::Remap(from..from.saturating_add(len), to)
        }
        UFFD_EVENT_FORK => match RawFd::try_from(half(8)) {
            // SAFETY: the kernel has just made this descriptor for this process, and told of it here alone.
            Ok(fd) => Event::Fork(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(_) => Event::Other(message[0]),
        },
        _ => Event::Other(message[0]),
    }
}

/// A request that takes a number and returns a descriptor.
struct NewFd<const OPCODE: Opcode>(u32);

// SAFETY: the argument is a number, not a pointer; what is returned is a descriptor that nobody else has.
unsafe impl<const OPCODE: Opcode> rustix::ioctl::Ioctl for NewFd<OPCODE> {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    // SAFETY: called with what the ioctl returned, which is not an error; the pointer is not followed.
    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<OwnedFd> {
        // SAFETY: what these ioctls return is a descriptor that was made for the caller, who alone has it.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// `struct page_region`: addresses, and the `PAGE_IS_*` that were asked for and hold for all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRun {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What they are.
    pub categories: u64,
}

/// What to look for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// `PAGE_IS_*` that all must hold.
    pub all_of: u32,
    /// Of those, the ones that must not.
    pub none_of: u32,
    /// `PAGE_IS_*` to tell.
    pub tell: u32,
    /// Protects what is found again, in the same step. The memory is registered with `UFFD_FEATURE_WP_ASYNC` then, or nothing is done: `EPERM`.
    pub protect: bool,
}

/// Looks through addresses of the process whose `/proc/PID/pagemap` this is; how many runs were found, and where it stopped: the end, or
/// there was no room for more.
///
/// # Errors
/// The kernel's: `ENOTTY` before 6.7.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    addresses: Range<u64>,
    scan: Scan,
    found: &mut [PageRun],
) -> Result<(usize, u64), Errno> {
    let flags = match scan.protect {
        true => PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        false => 0,
    };
    let mut arg = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: u64::from(flags),
        start: addresses.start,
        end: addresses.end,
        walk_end: 0,
        vec: found.as_mut_ptr().expose_provenance() as u64,
        vec_len: found.len() as u64,
        max_pages: 0,
        category_inverted: u64::from(scan.none_of),
        category_mask: u64::from(scan.all_of | scan.none_of),
        category_anyof_mask: 0,
        return_mask: u64::from(scan.tell),
    };
    // SAFETY: PAGEMAP_SCAN reads and writes one `pm_scan_arg`, and writes at most `vec_len` structures at `vec`, which is this slice: `PageRun` is laid
    // out as `page_region`.
    let count = unsafe { ioctl(pagemap, ScanRequest(&mut arg)) }?;
    Ok((count.min(found.len()), arg.walk_end))
}

/// Are writes to these addresses, which are registered for write protection, noted by the kernel, without a fault?
///
/// # Errors
/// As [`scan`].
pub fn is_async(pagemap: BorrowedFd<'_>, addresses: Range<u64>) -> Result<bool, Errno> {
    let mut arg = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: u64::from(PM_SCAN_CHECK_WPASYNC),
        start: addresses.start,
        end: addresses.end,
        walk_end: 0,
        vec: 0,
        vec_len: 0,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: 0,
        return_mask: 0,
    };
    // SAFETY: PAGEMAP_SCAN reads and writes one `pm_scan_arg`; with nothing to tell, it writes nothing else.
    match unsafe { ioctl(pagemap, ScanRequest(&mut arg)) } {
        Ok(_) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(why) => Err(why),
    }
}

struct ScanRequest<'a>(&'a mut pm_scan_arg);

// SAFETY: the argument is the structure that the request takes; what is returned is a number.
unsafe impl rustix::ioctl::Ioctl for ScanRequest<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    // SAFETY: called with what the ioctl returned, which is a number; the pointer is not followed.
    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<usize> {
        Ok(usize::try_from(out).unwrap_or(0))
    }
}
