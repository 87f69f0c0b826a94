//! [`File`]: the bytes of one file, as they are and as they would survive.
//!
//! Bytes lie in pages; a page that is not there is a hole. Every change of a page is a [`Change`]
//! of that page alone, and carries only the bytes that it writes: so a cut can keep any of them
//! without the others.
//!
//! Invariants:
//! 1. `durable`, with `unsynced` applied in order, is `now`.
//! 2. No page lies wholly past the length, and bytes past it are zero.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::Arc;

use super::{PAGE_BYTES, SECTOR_BYTES};
use crate::choose::Choose;

/// One page of a file. Shared between `now` and `durable` until one of them changes.
#[derive(Clone, Debug)]
enum Page {
    Data(Arc<[u8; PAGE_BYTES]>),
    /// Room that is held, and reads as zeros.
    Reserved,
}

#[derive(Clone, Debug)]
enum Change {
    Write {
        page: u64,
        from: usize,
        bytes: Arc<[u8]>,
    },
    Reserve {
        page: u64,
    },
    /// Zeros in a part of a page, if it is there.
    Zero {
        page: u64,
        from: usize,
        to: usize,
    },
    Punch {
        page: u64,
    },
    Len(u64),
}

#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    now: Content,
    durable: Content,
    unsynced: Vec<Change>,
}

impl File {
    pub(super) fn len(&self) -> u64 {
        self.now.len
    }

    pub(super) fn pages(&self) -> u64 {
        self.now.pages.len() as u64
    }

    /// Fills `buf`; the range lies within the file.
    pub(super) fn read(&self, mut buf: &mut [u8], offset: u64) {
        for (page, from, to) in parts(offset, buf.len() as u64) {
            let (piece, rest) = buf.split_at_mut(to - from);
            match self.now.pages.get(&page) {
                Some(Page::Data(bytes)) => piece.copy_from_slice(&bytes[from..to]),
                Some(Page::Reserved) | None => piece.fill(0),
            }
            buf = rest;
        }
    }

    /// Writes page by page, until one needs room and `room` (in pages) is used up. Says how many
    /// bytes it wrote.
    pub(super) fn write(&mut self, data: &[u8], offset: u64, mut room: u64) -> usize {
        let mut written = 0;
        for (page, from, to) in parts(offset, data.len() as u64) {
            if !self.now.take_room(page, &mut room) {
                break;
            }
            let end = written + to - from;
            self.grow(offset + end as u64);
            let bytes = data[written..end].into();
            self.change(Change::Write { page, from, bytes });
            written = end;
        }
        written
    }

    /// Reserves every page of the range, or none where `room` does not suffice.
    pub(super) fn reserve(&mut self, offset: u64, len: u64, mut room: u64) -> bool {
        let pages: Vec<_> = parts(offset, len).map(|(page, _, _)| page).collect();
        if !pages
            .iter()
            .all(|page| self.now.take_room(*page, &mut room))
        {
            return false;
        }
        for page in pages {
            if !self.now.pages.contains_key(&page) {
                self.change(Change::Reserve { page });
            }
        }
        self.grow(offset + len);
        true
    }

    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        // Only what is there: a punch may be far longer than the file.
        let first = offset / PAGE_BYTES as u64;
        let last = (offset + len).div_ceil(PAGE_BYTES as u64);
        let there: Vec<_> = self
            .now
            .pages
            .range(first..last)
            .map(|(page, _)| *page)
            .collect();
        for page in there {
            let start = page * PAGE_BYTES as u64;
            let from = within(offset.max(start) - start);
            let to = within((offset + len - start).min(PAGE_BYTES as u64));
            self.change(match to - from {
                PAGE_BYTES => Change::Punch { page },
                _ => Change::Zero { page, from, to },
            });
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len != self.now.len {
            self.change(Change::Len(len));
        }
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        let first = offset / PAGE_BYTES as u64;
        let mut data = self
            .now
            .pages
            .range(first..)
            .filter_map(|(page, what)| matches!(what, Page::Data(_)).then_some(*page));
        let start = data.next()?;
        let mut end = start + 1;
        while data.next() == Some(end) {
            end += 1;
        }
        let start = offset.max(start * PAGE_BYTES as u64);
        let end = (end * PAGE_BYTES as u64).min(self.now.len);
        (start < end).then_some((start, end))
    }

    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// The file after a power cut that lost all, or what the seed says, of what was not synced.
    pub(super) fn after_cut(&self, mut choose: Option<&mut dyn Choose>) -> Self {
        let mut left = self.durable.clone();
        let lengths = self.unsynced.iter().filter(|c| matches!(c, Change::Len(_)));
        let most = lengths.count() as u64;
        let mut lengths_kept = choose.as_mut().map_or(0, |choose| choose.up_to(most));
        for change in &self.unsynced {
            match (change, &mut choose) {
                (_, None) => {}
                (Change::Len(_), Some(_)) => {
                    if lengths_kept > 0 {
                        left.apply(change);
                    }
                    lengths_kept = lengths_kept.saturating_sub(1);
                }
                (Change::Write { page, from, bytes }, Some(choose)) => {
                    let kept = kept_of_write(*from, bytes.len(), &mut **choose);
                    if !kept.is_empty() {
                        left.apply(&Change::Write {
                            page: *page,
                            from: from + kept.start,
                            bytes: bytes[kept].into(),
                        });
                    }
                }
                (_, Some(choose)) => {
                    if choose.coin() {
                        left.apply(change);
                    }
                }
            }
        }
        // A write that was kept past a length that was not.
        left.cut(left.len);
        Self {
            now: left.clone(),
            durable: left,
            unsynced: Vec::new(),
        }
    }

    /// Feeds what the process sees of it.
    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        hasher.write_u64(self.now.len);
        for (page, what) in &self.now.pages {
            hasher.write_u64(*page);
            match what {
                Page::Data(bytes) => hasher.write(&**bytes),
                Page::Reserved => hasher.write_u8(0),
            }
        }
    }

    fn grow(&mut self, end: u64) {
        self.set_len(end.max(self.now.len));
    }

    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.unsynced.push(change);
    }
}

impl Content {
    /// Is the page there, or one of `room` free for it?
    fn take_room(&self, page: u64, room: &mut u64) -> bool {
        if self.pages.contains_key(&page) {
            return true;
        }
        let free = *room > 0;
        *room = room.saturating_sub(1);
        free
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { page, from, bytes } => {
                let page = self.pages.entry(*page).or_insert(Page::Reserved);
                page.bytes_mut()[*from..*from + bytes.len()].copy_from_slice(bytes);
            }
            Change::Reserve { page } => {
                self.pages.entry(*page).or_insert(Page::Reserved);
            }
            Change::Zero { page, from, to } => self.zero(*page, *from, *to),
            Change::Punch { page } => {
                self.pages.remove(page);
            }
            Change::Len(len) => {
                if *len < self.len {
                    self.cut(*len);
                }
                self.len = *len;
            }
        }
    }

    fn zero(&mut self, page: u64, from: usize, to: usize) {
        if let Some(page @ Page::Data(_)) = self.pages.get_mut(&page) {
            page.bytes_mut()[from..to].fill(0);
        }
    }

    /// Drops what lies past `len`.
    fn cut(&mut self, len: u64) {
        self.pages.split_off(&len.div_ceil(PAGE_BYTES as u64));
        self.zero(
            len / PAGE_BYTES as u64,
            within(len % PAGE_BYTES as u64),
            PAGE_BYTES,
        );
    }
}

impl Page {
    fn bytes_mut(&mut self) -> &mut [u8; PAGE_BYTES] {
        if let Self::Reserved = self {
            *self = Self::Data(Arc::new([0; PAGE_BYTES]));
        }
        match self {
            Self::Data(bytes) => Arc::make_mut(bytes),
            Self::Reserved => unreachable!("made data above"),
        }
    }
}

/// What a cut keeps of a write of so many bytes in a page: nothing, all, or, where it covers more than one
/// sector, the sectors before or after some place.
fn kept_of_write(from: usize, len: usize, choose: &mut dyn Choose) -> Range<usize> {
    let first = from / SECTOR_BYTES;
    let inner = (from + len).div_ceil(SECTOR_BYTES) - first - 1;
    let how = choose.up_to(if inner == 0 { 1 } else { 3 });
    if how < 2 {
        return 0..if how == 1 { len } else { 0 };
    }
    let sector = within(choose.up_to(inner as u64 - 1));
    let place = (first + 1 + sector) * SECTOR_BYTES - from;
    if how == 2 { 0..place } else { place..len }
}

/// The parts of a range of bytes that lie in each page: the page, from, to.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    const PAGE: u64 = PAGE_BYTES as u64;
    let end = offset + len;
    (offset / PAGE..end.div_ceil(PAGE)).filter_map(move |page| {
        let start = page * PAGE;
        let (from, to) = (offset.max(start), end.min(start + PAGE));
        (from < to).then(|| (page, within(from - start), within(to - start)))
    })
}

/// A place in a page, or its end.
fn within(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a page fits in memory")
}
