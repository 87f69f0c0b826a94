//! A guest's memory as the guest has it: mapped, touched byte by byte, given back, given to a machine of /dev/kvm. All unsafe code of this crate.
#![allow(unsafe_code, reason = "memory that another process fills is no slice")]

use std::ops::Range;
use std::ptr;

use std::fs::File;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Private and anonymous, as Firecracker's; or a file's.
#[derive(Debug)]
pub struct Memory {
    at: *mut u8,
    len: usize,
}

// SAFETY: it is used by atomic accesses only, and outlives all threads that use it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Of so many bytes; in pages of 2 MiB if they are `huge`: nothing where the system has none to give.
    pub fn new(len: usize, huge: bool) -> Option<Self> {
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if huge {
            flags |= MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        }
        // SAFETY: the kernel chooses a place that nothing else has.
        let at = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        let at = at.ok()?.cast();
        Some(Self { at, len })
    }

    /// The bytes of a file, of which there are so many, as all see them.
    pub fn of(file: &File, len: usize) -> Self {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place that nothing else has.
        let at = unsafe { mmap(ptr::null_mut(), len, both, MapFlags::SHARED, file, 0) };
        Self {
            at: at.unwrap().cast(),
            len,
        }
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it lies.
    pub fn addresses(&self) -> Range<u64> {
        let start = self.at.expose_provenance() as u64;
        start..start + self.len as u64
    }

    fn byte(&self, at: usize) -> *mut u8 {
        assert!(at < self.len);
        // SAFETY: it lies within the mapping.
        unsafe { self.at.add(at) }
    }

    /// A byte.
    pub fn read(&self, at: usize) -> u8 {
        // SAFETY: the byte is mapped; what else writes it is a race that the test means.
        unsafe { self.byte(at).read_volatile() }
    }

    /// A byte.
    pub fn write(&self, at: usize, value: u8) {
        // SAFETY: as above.
        unsafe { self.byte(at).write_volatile(value) }
    }

    /// Reads as zeros from now on.
    pub fn give_back(&self, range: Range<usize>) {
        let at = self.byte(range.start).cast();
        assert!(range.end <= self.len);
        // SAFETY: the range lies within the mapping, and nobody holds a reference into it.
        unsafe { madvise(at, range.len(), Advice::LinuxDontNeed) }.unwrap();
    }
}

/// A machine has this memory from here on, at this address of its own.
pub(crate) fn give_memory(machine: &kvm_ioctls::VmFd, slot: u32, at: u64, memory: &Memory) {
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: at,
        memory_size: memory.len as u64,
        userspace_addr: memory.addresses().start,
    };
    // SAFETY: the memory is mapped, and outlives the processors of the machine; it is used by volatile accesses only.
    unsafe { machine.set_user_memory_region(region) }.unwrap();
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { munmap(self.at.cast(), self.len) }.unwrap();
    }
}
