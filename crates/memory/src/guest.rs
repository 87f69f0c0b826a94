//! [`Guest`]: one guest whose memory is served: its pages, and what is on its way to them.
//!
//! Locks, in the order in which they are taken:
//! 1. `gate`: shared by who puts pages in place, alone by who reads what happened. A removal goes on in the kernel the moment its event is
//!    read. So no page is on its way then, and those that are given back are noted before the next one is: none gets its old
//!    bytes back. Held for one request to the kernel, never while anything is read or decoded.
//! 2. `pages`: the states and the claims. Held for a look-up.
//! 3. `copying`: what is still to be copied of a capture (`guest/capture.rs`). Held while some pages of it are written to a file.
//!
//! A page that is being installed is claimed: a second fault for it does nothing, as the first one's install wakes all who wait. What a fault
//! wants is decided by `page.rs`, and decided again under the gate, for it may be another by then.

mod capture;
mod fill;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cowslip_block::tracker::StateTracker;
use cowslip_block::{BlockIndex, BlockRange, DeviceError};
use rustix::io::Errno;

use self::capture::Copying;
pub use self::capture::{CaptureError, Harvest};
pub use self::fill::{Fill, Filled};
use crate::handshake::Handshake;
use crate::page::{Action, Bytes, Impossible, Install, PageEvent, PageState, next};
use crate::regions::Regions;
use crate::source::{PageBytes, Source};
use crate::sys::{Access, Event, Stopped, Uffd};
use crate::trace::Trace;

/// How writes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Not at all: what was served may have been written.
    None,
    /// By the kernel, which notes them beside the page (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7); looked at when the guest is paused.
    Async,
    /// By a fault at each page's first write.
    Sync,
}

/// What came of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The page is there, or will be: somebody is at it.
    Done,
    /// Its bytes are not at hand: [`Guest::fetch`] it.
    Cold(Claim),
    /// It may have to be copied before it is written: [`Guest::copy_first`].
    Copy(BlockIndex),
    /// Addresses are being given back, and the kernel waits for their events to be read: then again.
    Again(BlockIndex, PageEvent),
    /// The address is no longer the guest's, or the guest is gone.
    Gone,
}

/// A page that is being installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    page: BlockIndex,
    event: PageEvent,
}

impl Claim {
    /// Which page.
    pub fn page(&self) -> BlockIndex {
        self.page
    }

    /// What it was claimed for.
    pub fn event(&self) -> PageEvent {
        self.event
    }
}

/// Why a guest cannot be served any further.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// See there.
    #[error("page {}: {source}", .page.0)]
    Page {
        /// Which.
        page: BlockIndex,
        /// Why.
        source: Impossible,
    },
    /// An address that nobody handed over.
    #[error("a fault at {0:#x}, which lies in no region")]
    Outside(u64),
    /// The snapshot's bytes cannot be had.
    #[error("page {} cannot be had", .claim.page.0)]
    Bytes {
        /// Which; the claim is given up.
        claim: Claim,
        /// Why.
        source: DeviceError,
    },
    /// The server ends before the guest does.
    #[error("it is not served any more, and cannot go on alone")]
    Abandoned,
    /// What the kernel says, that it should not.
    #[error("{what}: {why}")]
    Kernel {
        /// What was asked.
        what: &'static str,
        /// What it said.
        why: Errno,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Guest {
    uffd: Uffd,
    regions: Regions,
    source: Arc<Source>,
    tracking: Tracking,
    gate: RwLock<()>,
    pages: Mutex<Pages>,
    copying: Mutex<Option<Copying>>,
}

#[derive(Debug)]
struct Pages {
    states: StateTracker<PageState>,
    claimed: HashSet<BlockIndex>,
    /// Where it is recorded.
    trace: Option<Trace>,
    /// Nothing is told of its memory any more.
    is_let_go: bool,
}

impl Pages {
    fn state(&self, page: BlockIndex) -> PageState {
        self.states
            .get(page)
            .expect("regions have the image's pages")
    }

    fn set(&mut self, pages: BlockRange, state: PageState) {
        let set = self.states.set_range(pages, state);
        set.expect("regions have the image's pages, and all states are tracked");
    }

    /// Somebody needs a page.
    fn touched(&mut self, page: BlockIndex) {
        if self.trace.is_some() && self.state(page) == PageState::Missing {
            self.trace.iter_mut().for_each(|trace| trace.touched(page));
        }
    }

    /// Of a run, what was never served and is not on its way is on its way from now on.
    fn claim_missing(&mut self, run: BlockRange) -> Vec<BlockRange> {
        let mut claimed: Vec<BlockRange> = Vec::new();
        for page in run.iter() {
            if self.state(page) != PageState::Missing || !self.claimed.insert(page) {
                continue;
            }
            match claimed.last_mut() {
                Some(last) if last.end == page => last.end.0 += 1,
                _ => claimed.push(BlockRange::one(page)),
            }
        }
        claimed
    }

    /// Of a run, the pages in this state are what an event makes of them.
    fn replace(&mut self, run: BlockRange, from: PageState, event: PageEvent) {
        if let Ok((to, _)) = next(from, event) {
            let replaced = self.states.replace(run, from, to);
            replaced.expect("regions have the image's pages, and all states are tracked");
        }
    }

    /// What is other than the image, as far as that is known.
    fn harvest(&self, tracking: Tracking) -> Harvest {
        use PageState::{Clean, Dirty, Removed, Zero};
        match tracking {
            Tracking::Async | Tracking::Sync => Harvest {
                dirty: self.runs_of(&[Dirty]),
                zeros: self.runs_of(&[Removed, Zero]),
            },
            Tracking::None => Harvest {
                dirty: self.runs_of(&[Dirty, Clean, Zero]),
                zeros: self.runs_of(&[Removed]),
            },
        }
    }

    /// In order.
    fn runs_of(&self, states: &[PageState]) -> Vec<BlockRange> {
        let runs = |state| {
            self.states
                .blocks_in(state)
                .expect("all states are tracked")
        };
        let mut all: Vec<_> = states.iter().flat_map(|state| runs(*state)).collect();
        if states.len() > 1 {
            all.sort_unstable_by_key(|run| run.start);
        }
        all
    }

    /// What is to be done about an event; the page is what it is from now on.
    fn happens(&mut self, page: BlockIndex, event: PageEvent) -> Result<Action, GuestError> {
        let state = self.state(page);
        let (to, action) =
            next(state, event).map_err(|source| GuestError::Page { page, source })?;
        if to != state {
            self.set(BlockRange::one(page), to);
        }
        Ok(action)
    }
}

impl Guest {
    /// Serves what was handed over from this source, which has its size.
    pub fn new(handshake: Handshake, source: Arc<Source>, tracking: Tracking) -> Self {
        let Handshake { uffd, regions } = handshake;
        let [missing, others @ ..] = PageState::ALL;
        let states = StateTracker::new(regions.pages().count(), missing, &others);
        Self {
            uffd: uffd.into(),
            regions,
            source,
            tracking,
            gate: RwLock::new(()),
            pages: Mutex::new(Pages {
                states: states.expect("six states, and no more pages than an image has"),
                claimed: HashSet::new(),
                trace: None,
                is_let_go: false,
            }),
            copying: Mutex::default(),
        }
    }

    /// Its userfaultfd, to be waited for.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// How its writes are noticed.
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// Its memory's places.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// What its pages are now.
    pub fn states(&self) -> StateTracker<PageState> {
        self.locked().states.clone()
    }

    /// From now on, what it touches first is noted.
    pub fn record(&self) {
        let trace = Trace::new(self.regions.page_size());
        self.locked().trace.get_or_insert(trace);
    }

    /// What was noted, if it was; nothing is noted any more.
    pub fn end_record(&self) -> Option<Trace> {
        self.locked().trace.take()
    }

    /// Is what it touches noted?
    pub fn is_recorded(&self) -> bool {
        self.locked().trace.is_some()
    }

    /// Nothing is told of its memory any more: what is not there reads as zeros.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_go(&self) -> Result<(), GuestError> {
        // With it goes all protection: no snapshot can be taken any more, nor go on.
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.locked().is_let_go = true;
        self.fail_capture();
        let all = self.regions.addresses_of(self.regions.pages());
        for (_, addresses) in all {
            match self.uffd.unregister(addresses) {
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(why) => return Err(kernel("letting go of the memory")(why)),
            }
        }
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, Pages> {
        // What panicked under it was a look-up; the states are whole.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what happened. What was given back is noted before anything is put in place again. Only the faults are left to be served, each once.
    ///
    /// # Errors
    /// The kernel's, and what no guest does: it moved its memory, or has a child with it.
    pub fn read(&self, faults: &mut Vec<(u64, Access)>) -> Result<(), GuestError> {
        let mut events = Vec::new();
        let alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let read = self.uffd.read(&mut events);
        read.map_err(kernel("reading the userfaultfd"))?;
        let mut pages = self.locked();
        for event in events {
            match event {
                Event::Fault {
                    address, access, ..
                } => {
                    if !faults.contains(&(address, access)) {
                        faults.push((address, access));
                    }
                }
                // What is gone for good is met by nobody any more.
                Event::Remove(gone) | Event::Unmap(gone) => {
                    for run in self.regions.pages_in(gone) {
                        pages.set(run, PageState::Removed);
                        if let Some(copying) = &mut *self.copying() {
                            copying.given_back(run);
                        }
                    }
                }
                Event::Remap(..) | Event::Fork(_) | Event::Other(_) => {
                    return Err(GuestError::Kernel {
                        what: "the guest's process moved its memory, or has a child with it",
                        why: Errno::NOTSUP,
                    });
                }
            }
        }
        drop((pages, alone));
        Ok(())
    }

    /// Serves a fault, as far as that takes no file.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn fault(&self, address: u64, access: Access) -> Result<Served, GuestError> {
        let page = self.regions.page_at(address);
        let page = page.ok_or(GuestError::Outside(address))?;
        let event = match access {
            Access::Read => PageEvent::ReadFault,
            Access::Write => PageEvent::WriteFault,
            Access::WriteProtected => PageEvent::ProtectFault,
            Access::Minor => {
                return Err(kernel("a minor fault, which was not asked for")(
                    Errno::INVAL,
                ));
            }
        };
        self.serve(page, event)
    }

    /// Serves what was put off.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn serve(&self, page: BlockIndex, event: PageEvent) -> Result<Served, GuestError> {
        let mut pages = self.locked();
        let install = match pages.happens(page, event)? {
            Action::Nothing => return Ok(Served::Done),
            Action::Unprotect => {
                drop(pages);
                return self.unprotect(page, event);
            }
            Action::Install(install) => install,
        };
        if !pages.claimed.insert(page) {
            return Ok(Served::Done);
        }
        pages.touched(page);
        drop(pages);
        let claim = Claim { page, event };
        match install.bytes {
            Bytes::Zeros => self.put(claim, &PageBytes::Zeros(self.page_bytes())),
            Bytes::Image => match self.source.at_hand(self.blocks(page)) {
                Some(bytes) if bytes.len_bytes() >= self.page_bytes() => self.put(claim, &bytes),
                _ => Ok(Served::Cold(claim)),
            },
        }
    }

    /// Lets a page be written.
    fn unprotect(&self, page: BlockIndex, event: PageEvent) -> Result<Served, GuestError> {
        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        // Decided again: a harvest may have come in between. It is noted before it can be written.
        if self.locked().happens(page, event)? != Action::Unprotect {
            return Ok(Served::Again(page, event));
        }
        if self.is_captured() {
            return Ok(Served::Copy(page));
        }
        self.answered(self.uffd.protect(self.addresses(page), false), page, event)
    }

    /// Reads a page's bytes, and installs it.
    ///
    /// # Errors
    /// [`GuestError`]: the page's claim is given up then.
    pub fn fetch(&self, claim: Claim) -> Result<Served, GuestError> {
        let page = claim.page;
        match self.source.read_all(self.blocks(page)) {
            Ok(bytes) => self.put(claim, &bytes),
            Err(source) => {
                self.locked().claimed.remove(&page);
                Err(GuestError::Bytes { claim, source })
            }
        }
    }

    /// Puts a claimed page in place: with these bytes, unless it was given back meanwhile.
    fn put(&self, claim: Claim, bytes: &PageBytes) -> Result<Served, GuestError> {
        let Claim { page, event } = claim;
        let shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        // Decided again: nothing is given back, and nobody else installs it, from here on.
        let action = self.locked().happens(page, event);
        let put = action.map(|action| match action {
            Action::Install(install) => self.install(page, install, bytes),
            Action::Nothing | Action::Unprotect => (None, Ok(())),
        });
        let mut pages = self.locked();
        pages.claimed.remove(&page);
        let (done, answer) = put?;
        if let Some(install) = done {
            pages.happens(page, PageEvent::Installed(install))?;
        }
        drop((pages, shared));
        match answer {
            Ok(()) if done.is_some() => Ok(Served::Done),
            // It was there, or is another's affair by now: who waits looks again.
            Ok(()) | Err(Errno::EXIST) => {
                self.answered(self.uffd.wake(self.addresses(page)), page, event)
            }
            Err(why) => self.answered(Err(why), page, event),
        }
    }

    /// What it installed, if it did, and what the kernel said.
    fn install(
        &self,
        page: BlockIndex,
        install: Install,
        bytes: &PageBytes,
    ) -> (Option<Install>, Result<(), Errno>) {
        let wanted = match install.bytes {
            Bytes::Image => bytes.install().bytes,
            Bytes::Zeros => Bytes::Zeros,
        };
        let stored = bytes.bytes().filter(|_| wanted == Bytes::Image);
        match self.place(self.addresses(page), stored, install.is_protected) {
            Ok(()) => {
                let install = Install {
                    bytes: wanted,
                    is_protected: install.is_protected,
                };
                (Some(install), Ok(()))
            }
            Err(Stopped { why, .. }) => (None, Err(why)),
        }
    }

    /// The first of these bytes, or zeros, at these addresses. What is protected is noticed when it is written, unless nothing is.
    fn place(
        &self,
        addresses: Range<u64>,
        bytes: Option<&[u8]>,
        is_protected: bool,
    ) -> Result<(), Stopped> {
        let is_protected = is_protected && self.tracking != Tracking::None;
        let len = usize::try_from(addresses.end - addresses.start).unwrap_or(0);
        if let Some(bytes) = bytes {
            let bytes = bytes.get(..len).unwrap_or(bytes);
            return self.uffd.copy(addresses.start, bytes, is_protected, true);
        }
        let is_huge = self.page_bytes() > ZEROS.len() as u64;
        // The kernel's own page of zeros is not huge, is never protected, and takes no place that was: a harvest protects also what is not there.
        if !is_huge && self.tracking == Tracking::None {
            return self.uffd.zero(addresses, true);
        }
        let own;
        let zeros = match is_huge {
            true => {
                own = vec![0; usize::try_from(self.page_bytes()).unwrap_or(0)];
                &own[..]
            }
            false => &ZEROS[..],
        };
        let mut done = 0;
        for at in (0..len).step_by(zeros.len()) {
            let zeros = &zeros[..zeros.len().min(len - at)];
            let put = self
                .uffd
                .copy(addresses.start + at as u64, zeros, is_protected, true);
            put.map_err(|stopped| Stopped {
                done_bytes: done + stopped.done_bytes,
                ..stopped
            })?;
            done += zeros.len() as u64;
        }
        Ok(())
    }

    fn answered(
        &self,
        answer: Result<(), Errno>,
        page: BlockIndex,
        event: PageEvent,
    ) -> Result<Served, GuestError> {
        match answer {
            Ok(()) => Ok(Served::Done),
            Err(Errno::AGAIN) => Ok(Served::Again(page, event)),
            Err(Errno::NOENT | Errno::SRCH) => Ok(Served::Gone),
            Err(why) => Err(kernel("answering a fault")(why)),
        }
    }

    pub(crate) fn page_bytes(&self) -> u64 {
        u64::from(self.regions.page_size().bytes())
    }

    fn addresses(&self, page: BlockIndex) -> Range<u64> {
        let mut places = self.regions.addresses_of(BlockRange::one(page));
        let (_, addresses) = places.next().expect("a page lies in a region");
        addresses
    }

    /// The image's blocks of a page.
    fn blocks(&self, page: BlockIndex) -> BlockRange {
        let per_page = self.page_bytes() / u64::from(self.source.block_size().bytes());
        BlockRange::new(page.0 * per_page, (page.0 + 1) * per_page)
    }
}

/// Many pages of the usual size.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn index(n: u64) -> usize {
    usize::try_from(n).expect("of memory that is mapped")
}

fn kernel(what: &'static str) -> impl FnOnce(Errno) -> GuestError {
    move |why| GuestError::Kernel { what, why }
}
