//! [`Process`]: whose memory a guest's is, as another process may look at it: proc(5)'s `mem` and `pagemap`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::sys::{self, PAGE_IS_WRITTEN, PageRun, Scan};

/// Runs that one request tells of.
const RUNS: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct Process {
    memory: File,
    pagemap: File,
}

impl Process {
    /// Looks at a process that this one may trace (ptrace(2)).
    ///
    /// # Errors
    /// The system's: it is gone, or another's.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            memory: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
        })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The system's: `EIO` for a page of a userfaultfd that is not there (it is not waited for); `UnexpectedEof` once the process has ended.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, address)
    }

    /// Are writes to these addresses noted by the kernel, without a fault?
    ///
    /// # Errors
    /// The kernel's: `ENOTTY` before 6.7.
    pub fn is_async(&self, addresses: Range<u64>) -> Result<bool, Errno> {
        sys::is_async(self.pagemap.as_fd(), addresses)
    }

    /// What was written since it was protected, run by run; it is protected again, in the same step.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_written(
        &self,
        mut addresses: Range<u64>,
        each: &mut dyn FnMut(Range<u64>),
    ) -> Result<(), Errno> {
        let written = Scan {
            all_of: PAGE_IS_WRITTEN,
            tell: PAGE_IS_WRITTEN,
            protect: true,
            ..Scan::default()
        };
        let mut found = [PageRun::default(); RUNS];
        while !addresses.is_empty() {
            let (count, end) =
                sys::scan(self.pagemap.as_fd(), addresses.clone(), written, &mut found)?;
            found[..count]
                .iter()
                .for_each(|run| each(run.start..run.end));
            addresses.start = end.max(addresses.start);
            if count == 0 && end < addresses.end {
                // It tells how far it came, and always comes further.
                return Err(Errno::IO);
            }
        }
        Ok(())
    }
}
