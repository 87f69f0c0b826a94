//! A guest, its memory, and the one who serves it step by step: nothing is answered but by the test.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use cowslip_block::files::{Access as FileAccess, Dir, RealDir};
use cowslip_block::tracker::StateTracker;
use cowslip_block::{BlockIndex, BlockSize};
use cowslip_memory::guest::{Guest, Served, Tracking};
use cowslip_memory::handshake::receive;
use cowslip_memory::page::PageState;
use cowslip_memory::source::Source;
use cowslip_memory::sys::{
    self, Access, PAGE_IS_PRESENT, PAGE_IS_WRITTEN, PageRun, Scan, UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::{Caches, Image, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use cowslip_vmm::{Control, Shape, can};

const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Rig {
    _temp: TempDir,
    _handed: UnixStream,
    control: Control,
    pagemap: File,
    pub(crate) guest: Guest,
    page: u64,
}

/// Waits for something that is told by nobody.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = std::time::Instant::now() + LONG;
    while !is_so() {
        assert!(std::time::Instant::now() < give_up, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What page `n` of the image holds: the last of each four is zeros.
pub(crate) fn image_byte(page: usize) -> u8 {
    match page % 4 {
        3 => 0,
        _ => u8::try_from(page % 200 + 1).unwrap(),
    }
}

impl Rig {
    /// Nothing, with a line that says why, where this machine cannot.
    pub(crate) fn new(test: &str, pages: usize, huge: bool, tracking: Tracking) -> Option<Self> {
        if !can(test, huge) {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let page = if huge { 2 << 20 } else { 4096 };
        let source = source(&temp, pages, page);
        let memory = UnixListener::bind(temp.path().join("memory.sock")).unwrap();
        let shape = Shape {
            pages,
            is_huge: huge,
            is_async: tracking == Tracking::Async,
            keeps: false,
        };
        let control = Control::start(temp.path(), shape);
        let (handed, _) = memory.accept().unwrap();
        let handshake = receive(&handed, source.size_bytes(), LONG).unwrap();
        let guest = Guest::new(handshake, source, tracking);
        if tracking != Tracking::None {
            let mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
            for (_, addresses) in guest.regions().addresses_of(guest.regions().pages()) {
                guest.uffd().register(addresses, mode).unwrap();
            }
        }
        Some(Self {
            _temp: temp,
            pagemap: File::open(format!("/proc/{}/pagemap", control.pid())).unwrap(),
            _handed: handed,
            control,
            guest,
            page: page as u64,
        })
    }

    /// The guest's process.
    pub(crate) fn pid(&self) -> u32 {
        self.control.pid()
    }

    /// The guest ends.
    pub(crate) fn kill(&mut self) {
        self.control.kill();
    }

    /// A thread of the guest begins something.
    pub(crate) fn begin(&mut self, line: &str) {
        self.control.begin(line);
    }

    /// The next answer of any thread.
    pub(crate) fn answer(&mut self) -> String {
        self.control.answer()
    }

    /// As many faults as are to come, read from the kernel and not yet served: in order of pages.
    pub(crate) fn faults(&self, count: usize) -> Vec<(u64, Access)> {
        let mut faults = Vec::new();
        while faults.len() < count {
            self.wait();
            self.guest.read(&mut faults).unwrap();
        }
        faults.sort_by_key(|(address, access)| (*address, format!("{access:?}")));
        faults
    }

    /// Until something happened.
    pub(crate) fn wait(&self) {
        let fd = self.guest.uffd().as_fd();
        let within = Timespec::try_from(LONG).unwrap();
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&within)).unwrap();
        assert!(ready > 0, "nothing happened for {LONG:?}");
    }

    /// Reads what happened until nothing more does; no fault is among it.
    pub(crate) fn read_event(&self) {
        self.wait();
        let mut faults = Vec::new();
        self.guest.read(&mut faults).unwrap();
        assert_eq!(faults, []);
    }

    /// A page is put in place, all of it this byte, by somebody else who has the userfaultfd.
    pub(crate) fn put_unseen(&self, page: u64, byte: u8) {
        let bytes = vec![byte; usize::try_from(self.page).unwrap()];
        let put = self
            .guest
            .uffd()
            .copy(self.address(page), &bytes, false, true);
        put.unwrap();
    }

    /// A thread of the guest gives a page back, and the kernel says nothing of it.
    pub(crate) fn drop_unseen(&mut self, thread: &str, page: u64) {
        let start = self.address(page);
        let addresses = start..start + self.page;
        self.guest.uffd().unregister(addresses.clone()).unwrap();
        self.begin(&format!("{thread} remove {page} {}", page + 1));
        assert_eq!(self.answer(), format!("{thread} removed"));
        let mode = match self.guest.tracking() {
            Tracking::None => UFFDIO_REGISTER_MODE_MISSING,
            Tracking::Async | Tracking::Sync => {
                UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP
            }
        };
        self.guest.uffd().register(addresses, mode).unwrap();
    }

    /// Serves to the end.
    pub(crate) fn serve(&self, fault: (u64, Access)) {
        match self.guest.fault(fault.0, fault.1).unwrap() {
            Served::Done => {}
            Served::Cold(claim) => assert_eq!(self.guest.fetch(claim).unwrap(), Served::Done),
            other => panic!("{other:?}"),
        }
    }

    /// Begins something that stops at one page, and serves that.
    pub(crate) fn one(&mut self, line: &str) -> String {
        self.begin(line);
        let faults = self.faults(1);
        assert_eq!(faults.len(), 1);
        self.serve(faults[0]);
        self.answer()
    }

    pub(crate) fn state(&self, page: u64) -> PageState {
        let states: StateTracker<PageState> = self.guest.states();
        states.get(BlockIndex(page)).unwrap()
    }

    fn address(&self, page: u64) -> u64 {
        let regions = self.guest.regions();
        let mut all = regions.addresses_of(regions.pages());
        let (_, addresses) = all.next().unwrap();
        addresses.start + page * self.page
    }

    /// Is the page there, and is it one that was written since it was protected: as the kernel sees it.
    pub(crate) fn kernel(&self, page: u64) -> (bool, bool) {
        let start = self.address(page);
        let scan = Scan {
            tell: PAGE_IS_PRESENT | PAGE_IS_WRITTEN,
            ..Scan::default()
        };
        let mut found = [PageRun::default(); 4];
        let scanned = sys::scan(self.pagemap.as_fd(), start..start + 4096, scan, &mut found);
        let (count, _) = scanned.unwrap();
        let categories = found[..count]
            .iter()
            .fold(0, |all, run| all | run.categories);
        let has = |category: u32| categories & u64::from(category) != 0;
        (has(PAGE_IS_PRESENT), has(PAGE_IS_WRITTEN))
    }
}

pub(crate) fn source(temp: &TempDir, pages: usize, page: usize) -> Arc<Source> {
    let dir = RealDir::open(temp.path()).unwrap();
    let mut bytes = Vec::with_capacity(pages * page);
    for n in 0..pages {
        bytes.resize(bytes.len() + page, image_byte(n));
    }
    std::fs::write(temp.path().join("memory.raw"), &bytes).unwrap();
    std::fs::create_dir(temp.path().join("store")).unwrap();
    let store = RealDir::open(&temp.path().join("store")).unwrap();
    let store = Store::open_or_create(&store, Arc::new(RealHost), Caches::default()).unwrap();
    let store = Arc::new(store);
    let file = dir.open("memory.raw", FileAccess::Read).unwrap();
    let options = ImportOptions {
        block_size: BlockSize::DISK,
        made_by: "a test".into(),
    };
    let lease = store.lease().unwrap();
    let header = import(
        &store,
        &lease,
        &*file,
        bytes.len() as u64,
        &options,
        &mut |_, _| (),
    );
    Arc::new(Source::new(Image::new(store, header.unwrap())).unwrap())
}
