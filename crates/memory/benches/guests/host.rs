//! [`Host`]: a snapshot's memory, and servers of it; [`Guest`]: this process as its guest.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_block::files::{RealDir, RealFile};
use cowslip_memory::live::Live;
use cowslip_memory::seal::{MemorySpec, seal};
use cowslip_memory::server::{Options, Server};
use cowslip_memory::source::Source;
use cowslip_memory::sys::{UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_WP_ASYNC, Uffd};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::{Caches, Header, Image, Store};
use cowslip_vmm::{Memory, hand_over};
use tempfile::TempDir;

pub(crate) const PAGE: usize = 4096;

/// See the module.
pub(crate) struct Host {
    temp: TempDir,
    header: Arc<Header>,
    _lease: Lease,
    pub(crate) pages: usize,
}

/// A server, and the store that it reads from: nothing is decoded yet.
pub(crate) struct Serving<'a> {
    host: &'a Host,
    pub(crate) server: Server,
    socket: std::path::PathBuf,
}

/// See the module. It is no guest any more when it is dropped, and its server has seen that.
pub(crate) struct Guest<'a> {
    pub(crate) memory: Memory,
    pub(crate) live: Arc<Live>,
    serving: &'a Serving<'a>,
    handed: Option<(Uffd, UnixStream)>,
}

/// A page as guests have them: a quarter of it compresses badly.
fn page(n: usize, bytes: &mut [u8]) {
    let mut state = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (i, byte) in bytes.iter_mut().enumerate() {
        if i % 4 == 0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        *byte = if i < PAGE / 4 {
            state.to_le_bytes()[i % 4]
        } else {
            state.to_le_bytes()[4] % 16
        };
    }
}

fn store(dir: &Path, frame_bytes: u64) -> Arc<Store> {
    let caches = Caches {
        frame_bytes,
        ..Caches::default()
    };
    let dir = RealDir::open(dir).unwrap();
    Arc::new(Store::open_or_create(&dir, Arc::new(RealHost), caches).unwrap())
}

impl Host {
    /// Of a memory in which each page is other than the next.
    pub(crate) fn new(pages: usize) -> Self {
        Self::with(pages, pages)
    }

    /// Of a memory that was never touched.
    pub(crate) fn zeros(pages: usize) -> Self {
        Self::with(pages, 0)
    }

    /// The first pages are other than zeros.
    fn with(pages: usize, stored: usize) -> Self {
        let temp = match Path::new("/dev/shm") {
            shm if shm.is_dir() => tempfile::tempdir_in(shm).unwrap(),
            _ => tempfile::tempdir().unwrap(),
        };
        let dir = temp.path().join("store");
        std::fs::create_dir(&dir).unwrap();
        let file = tempfile::tempfile_in(temp.path()).unwrap();
        let mut bytes = vec![0; PAGE];
        file.set_len((pages * PAGE) as u64).unwrap();
        for n in 0..stored {
            page(n, &mut bytes);
            file.write_all_at(&bytes, (n * PAGE) as u64).unwrap();
        }
        let store = store(&dir, 0);
        let lease = store.lease().unwrap();
        let size_bytes = (pages * PAGE) as u64;
        let source = RealFile::from(std::os::fd::OwnedFd::from(file));
        let spec = MemorySpec {
            source: &SparseFile::new(&source, size_bytes).unwrap(),
            size_bytes,
            parent: None,
            disk: None,
            dirty: None,
            disk_frames_max: 0,
        };
        let (header, _) = seal(&store, &lease, &spec, &mut |_, _, _| ()).unwrap();
        Self {
            temp,
            header,
            _lease: lease,
            pages,
        }
    }

    /// Serves it: room for all frames, and none of them decoded.
    pub(crate) fn serve(&self, options: Options) -> Serving<'_> {
        let store = store(
            &self.temp.path().join("store"),
            (self.pages * PAGE * 2) as u64,
        );
        let header = store.open_header(self.header.id()).unwrap();
        let source = Source::new(Image::new(Arc::clone(&store), header)).unwrap();
        let socket = self.temp.path().join("memory.sock");
        drop(std::fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        let say = |line: &str| println!("{line}");
        let server = Server::start(listener, Arc::new(source), options, say).unwrap();
        Serving {
            host: self,
            server,
            socket,
        }
    }

    /// A file for what is copied.
    pub(crate) fn spool(&self) -> File {
        tempfile::tempfile_in(self.temp.path()).unwrap()
    }
}

impl<'a> Serving<'a> {
    /// A guest; its writes are noted by the kernel, or told.
    pub(crate) fn guest(&'a self, is_async: bool) -> Guest<'a> {
        let memory = Memory::new(self.host.pages * PAGE, false).unwrap();
        let others: Vec<_> = self.server.guests().iter().map(Arc::as_ptr).collect();
        let mut features = UFFD_FEATURE_EVENT_REMOVE;
        if is_async {
            features |= UFFD_FEATURE_WP_ASYNC;
        }
        let handed = hand_over(&memory, PAGE, features, &self.socket);
        let live = until(|| {
            let guests = self.server.guests().into_iter();
            guests
                .into_iter()
                .find(|live| !others.contains(&Arc::as_ptr(live)))
        });
        Guest {
            memory,
            live,
            serving: self,
            handed: Some(handed),
        }
    }

    /// Decodes all of it.
    pub(crate) fn warm(&self) {
        let guest = self.guest(false);
        guest.touch_all(0..self.host.pages);
    }
}

impl Guest<'_> {
    /// Reads a page's first byte: how long that takes.
    pub(crate) fn touch(&self, page: usize) -> Duration {
        touch(&self.memory, page)
    }

    pub(crate) fn uffd(&self) -> &Uffd {
        &self.handed.as_ref().expect("until it is dropped").0
    }

    pub(crate) fn touch_all(&self, pages: impl IntoIterator<Item = usize>) {
        for page in pages {
            self.touch(page);
        }
    }
}

pub(crate) fn touch(memory: &Memory, page: usize) -> Duration {
    let begun = Instant::now();
    std::hint::black_box(memory.read(page * PAGE));
    begun.elapsed()
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.handed = None;
        let is_gone = || {
            let guests = self.serving.server.guests();
            guests
                .iter()
                .all(|live| !Arc::ptr_eq(live, &self.live))
                .then_some(())
        };
        until(is_gone);
    }
}

pub(crate) fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Numbers without pattern, each below `n` once, the same in every run.
pub(crate) fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    let mut state = seed | 1;
    for i in (1..n).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.swap(i, usize::try_from(state % (i as u64 + 1)).unwrap());
    }
    all
}
