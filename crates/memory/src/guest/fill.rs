//! Pages put in place before anybody asks: ahead of a guest that will, around a page that was asked for, and all that are left where
//! the guest is to go on alone.
//!
//! The bytes are had first; only then the pages are claimed, for as long as the kernel copies. So a store that is slow or fails here holds
//! up nobody: whoever needs such a page meanwhile has it fetched as if there were no fill.

use super::*;

/// One request to the kernel covers at most so many bytes: whoever reads what happened waits for it (`gate`).
const COPY_BYTES_MAX: u64 = 1 << 20;

/// What a [`Guest::fill`] takes of the pages that were never served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// All.
    All,
    /// Those that the image does not have as zeros.
    Stored,
    /// Of those, the first ones, up to one whose bytes are not at hand.
    AtHand,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Pages that were put in place.
    pub pages: u64,
    /// Pages that somebody else was at: they may be had, or not.
    pub left: u64,
    /// Why it ended early, if it did.
    pub stopped: Option<Errno>,
}

impl Filled {
    /// The guest, or what it handed over, is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self.stopped, Some(Errno::NOENT | Errno::SRCH))
    }
}

impl Guest {
    /// Puts pages in place that were never served, in the order of the image, each as if it had been read. Where addresses are being given back it ends
    /// early, with `EAGAIN`: it may be asked for again.
    ///
    /// # Errors
    /// [`GuestError`]. Where bytes cannot be had, nobody waits for them yet.
    pub fn fill(&self, pages: BlockRange, which: Fill) -> Result<Filled, GuestError> {
        let mut filled = Filled::default();
        let mut at = pages.start.0;
        while let Some(run) = self.next_missing(BlockRange::new(at, pages.end.0)) {
            let Some(bytes) = self.bytes_for(run, which)? else {
                break;
            };
            let count = bytes.len_bytes() / self.page_bytes();
            let run = BlockRange::new(run.start.0, run.end.0.min(run.start.0 + count));
            at = run.end.0;
            if which == Fill::All || bytes.bytes().is_some() {
                self.put_run(run, &bytes, &mut filled)?;
            }
            if filled.stopped.is_some() {
                break;
            }
        }
        Ok(filled)
    }

    /// The first pages of a range that were never served.
    fn next_missing(&self, range: BlockRange) -> Option<BlockRange> {
        let most = (COPY_BYTES_MAX / self.page_bytes()).max(1);
        let pages = self.locked();
        let mut runs = pages.states.runs(range);
        let (run, _) = runs.find(|(_, state)| *state == PageState::Missing)?;
        let end = run.end.0.min(run.start.0 + most);
        Some(BlockRange::new(run.start.0, end))
    }

    /// The bytes of the first pages of a run: one, or as many as lie together.
    fn bytes_for(&self, run: BlockRange, which: Fill) -> Result<Option<PageBytes>, GuestError> {
        let first = self.blocks(run.start);
        let last = self.blocks(BlockIndex(run.end.0 - 1));
        let blocks = BlockRange::new(first.start.0, last.end.0);
        let had = match which {
            Fill::AtHand => Ok(self.source.at_hand(blocks)),
            Fill::All | Fill::Stored => self.source.read_some(blocks).map(Some),
        };
        let is_whole = |bytes: &PageBytes| bytes.len_bytes() >= self.page_bytes();
        let had = match had {
            // A large page, of several pieces.
            Ok(Some(piece)) if !is_whole(&piece) => match which {
                Fill::AtHand => Ok(None),
                Fill::All | Fill::Stored => self.source.read_all(first).map(Some),
            },
            had => had,
        };
        let claim = Claim {
            page: run.start,
            event: PageEvent::ReadFault,
        };
        had.map_err(|source| GuestError::Bytes { claim, source })
    }

    /// Of a run whose bytes are these, puts in place what nobody else has meanwhile.
    fn put_run(
        &self,
        run: BlockRange,
        bytes: &PageBytes,
        filled: &mut Filled,
    ) -> Result<(), GuestError> {
        let (install, page) = (bytes.install(), self.page_bytes());
        // Whatever it is by now, it is missing where it is claimed.
        let (to, _) =
            next(PageState::Missing, PageEvent::Installed(install)).map_err(|source| {
                GuestError::Page {
                    page: run.start,
                    source,
                }
            })?;
        let shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let claimed = {
            let mut pages = self.locked();
            let missing = run
                .iter()
                .filter(|page| pages.state(*page) == PageState::Missing);
            let missing = missing.count() as u64;
            let claimed = pages.claim_missing(run);
            filled.left += missing - claimed.iter().map(|part| part.count().0).sum::<u64>();
            claimed
        };
        let parts = claimed
            .iter()
            .flat_map(|part| self.regions.addresses_of(*part));
        for (part, addresses) in parts {
            let from = usize::try_from((part.start.0 - run.start.0) * page).unwrap_or(0);
            let stored = bytes.bytes().and_then(|bytes| bytes.get(from..));
            let put = self.put_part(addresses.clone(), stored, install.is_protected, filled);
            let mut pages = self.locked();
            for done in &put {
                let page_of = |bytes: u64| part.start.0 + (bytes - addresses.start) / page;
                pages.set(BlockRange::new(page_of(done.start), page_of(done.end)), to);
            }
            for page in part.iter() {
                pages.claimed.remove(&page);
            }
            drop(pages);
            if put != [addresses.clone()] {
                // Who came meanwhile was told that it would be there.
                let _ = self.uffd.wake(addresses);
            }
        }
        drop(shared);
        match filled.stopped {
            None | Some(Errno::AGAIN | Errno::NOENT | Errno::SRCH) => Ok(()),
            Some(why) => Err(kernel("putting pages in place")(why)),
        }
    }

    /// Of addresses whose bytes are these, the ones that it put in place. One that is there, although nobody knows why, is the affair of
    /// whoever needs it; those behind it are not.
    fn put_part(
        &self,
        addresses: Range<u64>,
        stored: Option<&[u8]>,
        is_protected: bool,
        filled: &mut Filled,
    ) -> Vec<Range<u64>> {
        let page = self.page_bytes();
        let mut all: Vec<Range<u64>> = Vec::new();
        let mut at = addresses.start;
        while at < addresses.end && filled.stopped.is_none() {
            let from = usize::try_from(at - addresses.start).unwrap_or(0);
            let stored = stored.and_then(|bytes| bytes.get(from..));
            let done_bytes = match self.place(at..addresses.end, stored, is_protected) {
                Ok(()) => addresses.end - at,
                Err(Stopped { done_bytes: 0, why }) => {
                    match why {
                        Errno::EXIST => at += page,
                        why => filled.stopped = Some(why),
                    }
                    continue;
                }
                // Why not the next one as well, it says when it is asked for that.
                Err(Stopped { done_bytes, .. }) => done_bytes,
            };
            match all.last_mut() {
                Some(last) if last.end == at => last.end += done_bytes,
                _ => all.push(at..at + done_bytes),
            }
            filled.pages += done_bytes / page;
            at += done_bytes;
        }
        all
    }
}
