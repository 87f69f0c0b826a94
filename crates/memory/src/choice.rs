//! What becomes of a page of memory in a snapshot: chosen here, done in `seal.rs`.
//!
//! | the page | the parent has there | a block of the disk | becomes |
//! |---|---|---|---|
//! | zeros | zeros, or there is no parent | | nothing: zeros are what is not mapped |
//! | zeros | bytes | | the nil layer: no payload |
//! | bytes | the same | | nothing: the parent's stays |
//! | bytes | others, or zeros | the same, in a frame that may be pointed at | a run of the map that leads to that block |
//! | bytes | others, much like it | none, or in another frame | a delta against the parent's page, or against what that is a delta of; payload where that does not pay |
//! | bytes | others, or zeros | none, or in another frame | payload |
//!
//! In this order: what costs a guest nothing when it is restored, then what costs a fetch, then what costs bytes. Deltas cost a fetch of their bases as well, and are
//! packed together: 16 of them are stored so if that takes at most half of what they take otherwise, which the layer's writer decides.

use std::collections::{HashMap, HashSet};

use cowslip_block::zero::is_zero;

/// What can be said of a page without the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// It is zeros.
    Zeros,
    /// It has bytes, and the parent the same.
    Same,
    /// It has other bytes.
    New,
}

/// `parent` is the parent's page; none where that is zeros, or not to be had.
pub(crate) fn compare(page: &[u8], parent: Option<&[u8]>) -> Compared {
    match parent {
        _ if is_zero(page) => Compared::Zeros,
        Some(before) if before == page => Compared::Same,
        _ => Compared::New,
    }
}

/// Of a page that is a delta at least so many words of 8 bytes are its base's, in percent: one with less would seldom take half.
const ALIKE_PERCENT: usize = 75;

/// Is the page so much like another, which is as long, that a delta may be worth it?
pub(crate) fn is_alike(page: &[u8], base: &[u8]) -> bool {
    let words = page.chunks_exact(8).zip(base.chunks_exact(8));
    let same = words.filter(|(new, old)| new == old).count();
    same * 8 * 100 >= page.len() * ALIKE_PERCENT
}

/// A frame of the disk: the number of its layer among the disk's, and its own in that.
pub(crate) type Frame = (u32, u64);

/// The frames that may be pointed at, where each would save so many pages: those with most pages first, and of
/// those with as many the ones that come first on the disk.
pub(crate) fn within_budget(pages: &HashMap<Frame, u64>, most: u64) -> HashSet<Frame> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut frames: Vec<_> = pages.iter().collect();
    frames.sort_unstable_by_key(|(frame, pages)| (std::cmp::Reverse(**pages), **frame));
    frames.into_iter().take(most).map(|(f, _)| *f).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_compared_with_zeros_first() {
        let (zeros, ones, twos) = ([0; 64], [1; 64], [2; 64]);
        let cells = [
            (zeros, None, Compared::Zeros),
            (zeros, Some(zeros), Compared::Zeros),
            (zeros, Some(ones), Compared::Zeros),
            (ones, Some(ones), Compared::Same),
            (ones, Some(twos), Compared::New),
            (ones, None, Compared::New),
        ];
        for (page, parent, want) in cells {
            let found = compare(&page, parent.as_ref().map(|p| &p[..]));
            assert_eq!(found, want, "{page:?} over {parent:?}");
        }
    }

    #[test]
    fn pages_are_alike_from_three_quarters_on() {
        let base = [7; 64];
        for (other_words, want) in [(0, true), (2, true), (3, false), (8, false)] {
            let mut page = base;
            page.chunks_mut(8)
                .take(other_words)
                .for_each(|word| word[3] = 1);
            assert_eq!(is_alike(&page, &base), want, "{other_words}");
        }
    }

    #[test]
    fn frames_with_most_pages_come_first() {
        let pages = HashMap::from([((0, 3), 2), ((1, 0), 5), ((0, 9), 2), ((2, 2), 1)]);
        let first = |most| {
            let mut frames: Vec<_> = within_budget(&pages, most).into_iter().collect();
            frames.sort_unstable();
            frames
        };
        assert_eq!(first(0), []);
        assert_eq!(first(1), [(1, 0)]);
        assert_eq!(first(2), [(0, 3), (1, 0)]);
        assert_eq!(first(3), [(0, 3), (0, 9), (1, 0)]);
        assert_eq!(first(u64::MAX).len(), 4);
    }
}
