//! [`Patch`]: a copy of an object with some bytes of it replaced, put in its place in one step.
//!
//! Nothing is written before there is something to replace; a dry run writes nothing at all. Who has
//! the old object open goes on reading that.

use std::ops::Range;
use std::sync::Arc;

use cowslip_block::files::{Dir, File};

use crate::error::StoreError;
use crate::pending::Pending;
use crate::roots::Lease;
use crate::verify::is_bad_disk;

/// Copied at one go.
const CHUNK_BYTES: u64 = 1 << 20;
/// What a damaged disk is asked for at a time.
const SECTOR_BYTES: u64 = 512;

pub(super) struct Patch<'a> {
    source: &'a dyn File,
    tmp: &'a Arc<dyn Dir>,
    /// None in a dry run.
    lease: Option<&'a Lease>,
    pending: Option<Pending>,
    /// So much of the source is in `pending`, or will be.
    done: u64,
    /// Damaged ranges of it that stay: what the disk does not give of them becomes zeros.
    given_up: Vec<Range<u64>>,
}

impl<'a> Patch<'a> {
    pub(super) fn of(
        source: &'a dyn File,
        tmp: &'a Arc<dyn Dir>,
        lease: Option<&'a Lease>,
    ) -> Self {
        Self {
            source,
            tmp,
            lease,
            pending: None,
            done: 0,
            given_up: Vec::new(),
        }
    }

    /// These bytes stand at `at`, behind all that was put before.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.copy_to(at)?;
        if let Some(pending) = &mut self.pending {
            pending.append(bytes)?;
        }
        self.done = at + bytes.len() as u64;
        Ok(())
    }

    /// These stay damaged.
    pub(super) fn give_up(&mut self, range: Range<u64>) {
        self.given_up.push(range);
    }

    /// All the rest as it was, and then its place.
    pub(super) fn finish(mut self, into: &dyn Dir, name: &str) -> Result<(), StoreError> {
        let end = self.source.len();
        let end = end.map_err(|e| StoreError::io(format!("copying {name}"), e))?;
        self.copy_to(end)?;
        match self.pending {
            Some(pending) => pending.commit_over(into, name),
            None => Ok(()),
        }
    }

    fn copy_to(&mut self, end: u64) -> Result<(), StoreError> {
        let Some(lease) = self.lease else {
            return Ok(());
        };
        let mut at = match self.pending {
            Some(_) => self.done,
            None => 0,
        };
        let pending = match &mut self.pending {
            Some(pending) => pending,
            none => none.insert(Pending::create(self.tmp, lease)?),
        };
        while at < end {
            let next = end.min(at + CHUNK_BYTES);
            pending.append(&read(self.source, at..next, &self.given_up)?)?;
            at = next;
        }
        self.done = end;
        Ok(())
    }
}

fn read(
    source: &dyn File,
    range: Range<u64>,
    given_up: &[Range<u64>],
) -> Result<Vec<u8>, StoreError> {
    let len = range.end - range.start;
    let mut bytes = vec![0; usize::try_from(len).expect("a chunk fits in memory")];
    let error = match source.read_at(&mut bytes, range.start) {
        Ok(()) => return Ok(bytes),
        Err(error) => error,
    };
    let known = |sector: u64| {
        let end = sector + SECTOR_BYTES;
        given_up.iter().any(|r| r.start < end && sector < r.end)
    };
    if !is_bad_disk(&error) {
        return Err(StoreError::io("copying an object", error));
    }
    let sectors = bytes.chunks_mut(usize::try_from(SECTOR_BYTES).expect("512"));
    for (at, bytes) in (range.start..).step_by(512).zip(sectors) {
        match source.read_at(bytes, at) {
            Err(e) if is_bad_disk(&e) && known(at) => bytes.fill(0),
            other => other.map_err(|e| StoreError::io("copying an object", e))?,
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io;

    use cowslip_block::files::Access;
    use cowslip_sim::{EIO, MemoryFs};

    use super::*;
    use crate::host::RealHost;
    use crate::store::{Caches, Store};

    /// A file on a disk with damaged sectors.
    #[derive(Debug)]
    struct Damaged(Arc<dyn File>, Range<u64>);

    impl File for Damaged {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            if offset < self.1.end && self.1.start < offset + buf.len() as u64 {
                return Err(io::Error::from_raw_os_error(EIO));
            }
            self.0.read_at(buf, offset)
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }
        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }
        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }
        fn next_data(&self, _: u64) -> io::Result<Option<(u64, u64)>> {
            unreachable!("it is only read")
        }
        fn sync(&self) -> io::Result<()> {
            unreachable!("it is only read")
        }
        fn allocated_bytes(&self) -> io::Result<u64> {
            unreachable!("it is only read")
        }
    }

    /// What was given up may read as zeros then; all else is there, or nothing is replaced.
    #[test]
    fn sectors_that_cannot_be_read_are_lost_only_where_they_were_given_up() {
        let root = MemoryFs::new().root();
        let host = Arc::new(RealHost);
        let store = Store::open_or_create(&*root, host, Caches::default()).unwrap();
        let (lease, tmp) = (store.lease().unwrap(), store.dirs().tmp);
        let whole: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8 + 1).collect();
        let file = root.create("object").unwrap();
        file.write_at(&whole, 0).unwrap();
        let damaged = Damaged(file, 1100..1900);
        let replace = |given_up: Range<u64>| -> Result<(), StoreError> {
            let mut patch = Patch::of(&damaged, tmp, Some(&lease));
            patch.give_up(given_up);
            patch.put(4000, b"new")?;
            patch.finish(&*root, "object")
        };
        replace(4500..4600).unwrap_err();
        let read = || {
            let mut bytes = vec![0; 5000];
            let file = root.open("object", Access::Read).unwrap();
            file.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read() == whole);
        replace(1000..2000).unwrap();
        let mut want = whole;
        want[1024..2048].fill(0);
        want[4000..4003].copy_from_slice(b"new");
        assert!(read() == want);
        assert_eq!(tmp.list().unwrap(), [""; 0]);
    }
}
