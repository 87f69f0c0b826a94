//! Pages that are put in place before anybody asks.

use cowslip_block::BlockRange;
use cowslip_memory::guest::{Fill, Filled, Tracking};
use cowslip_memory::page::PageState;

use cowslip_vmm::HugePages;

use crate::rig::{Rig, image_byte};

const PAGES: u64 = 100;

#[test]
fn what_was_never_served_is_put_in_place_and_nothing_else_changes() {
    for tracking in [Tracking::None, Tracking::Async, Tracking::Sync] {
        let test = "what_was_never_served_is_put_in_place_and_nothing_else_changes";
        let Some(mut rig) = Rig::new(test, 100, false, tracking) else {
            return;
        };
        assert_eq!(rig.one("a write 5 9"), "a written");
        rig.begin("a remove 8 10");
        rig.read_event();
        assert_eq!(rig.answer(), "a removed");
        let stored = rig
            .guest
            .fill(BlockRange::new(0, 50), Fill::Stored)
            .unwrap();
        // Of 50, each fourth is zeros; 5 is there, and 8 and 9 were given back.
        let zeros = 12;
        assert_eq!(
            stored,
            Filled {
                pages: 50 - zeros - 3,
                left: 0,
                stopped: None
            }
        );
        let all = rig
            .guest
            .fill(BlockRange::new(0, PAGES), Fill::All)
            .unwrap();
        assert_eq!(all.pages, zeros + 50);
        assert_eq!(
            rig.guest
                .fill(BlockRange::new(0, PAGES), Fill::All)
                .unwrap()
                .pages,
            0
        );
        for page in 0..PAGES {
            let expected = match page {
                5 => PageState::Dirty,
                8 | 9 => PageState::Removed,
                _ if page % 4 == 3 => PageState::Zero,
                _ => PageState::Clean,
            };
            assert_eq!(rig.state(page), expected, "page {page}, {tracking:?}");
            assert_eq!(rig.kernel(page).0, !(8..10).contains(&page), "page {page}");
        }
        for page in (0..PAGES).filter(|page| !(8..10).contains(page)) {
            rig.begin(&format!("a read {page}"));
            let byte = match page {
                5 => 9,
                _ => image_byte(usize::try_from(page).unwrap()),
            };
            assert_eq!(rig.answer(), format!("a {byte}"), "page {page}");
        }
        assert_eq!(rig.one("a read 8"), "a 0");
        // A first write is noticed as if the page had been read.
        match tracking {
            Tracking::Sync => {
                assert_eq!(rig.one("a write 40 3"), "a written");
                assert_eq!(rig.state(40), PageState::Dirty);
            }
            Tracking::Async => {
                assert!(!rig.kernel(40).1);
                rig.begin("a write 40 3");
                assert_eq!(rig.answer(), "a written");
                assert!(rig.kernel(40).1);
            }
            Tracking::None => {}
        }
    }
}

#[test]
fn large_pages_are_put_in_place_whole() {
    let _pages = HugePages::lent(8);
    let Some(mut rig) = Rig::new(
        "large_pages_are_put_in_place_whole",
        4,
        true,
        Tracking::Sync,
    ) else {
        return;
    };
    let filled = rig.guest.fill(BlockRange::new(0, 4), Fill::All).unwrap();
    let four = Filled {
        pages: 4,
        left: 0,
        stopped: None,
    };
    assert_eq!(filled, four);
    for page in 0..4 {
        rig.begin(&format!("a read {page}"));
        assert_eq!(rig.answer(), format!("a {}", image_byte(page)));
    }
}

#[test]
fn a_thread_that_waits_goes_on_when_its_page_is_filled() {
    let Some(mut rig) = Rig::new(
        "a_thread_that_waits_goes_on_when_its_page_is_filled",
        16,
        false,
        Tracking::Sync,
    ) else {
        return;
    };
    rig.begin("a read 6");
    let faults = rig.faults(1);
    rig.guest.fill(BlockRange::new(0, 16), Fill::All).unwrap();
    assert_eq!(rig.answer(), format!("a {}", image_byte(6)));
    // Told before, and served after: the page is there.
    rig.serve(faults[0]);
    assert_eq!(rig.state(6), PageState::Clean);
}

#[test]
fn what_the_guest_touches_is_noted_in_order() {
    let Some(mut rig) = Rig::new(
        "what_the_guest_touches_is_noted_in_order",
        16,
        false,
        Tracking::Sync,
    ) else {
        return;
    };
    rig.guest.record();
    for line in ["a read 9", "a write 2 1", "a read 3", "a write 9 1"] {
        rig.one(line);
    }
    let trace = rig.guest.end_record().unwrap();
    assert_eq!(rig.guest.end_record(), None);
    assert_eq!(
        trace.runs(),
        [
            BlockRange::one(cowslip_block::BlockIndex(9)),
            BlockRange::new(2, 4)
        ]
    );
}

/// Put there by whoever has the userfaultfd as well, a monitor that keeps it: nothing was told of it.
#[test]
fn what_lies_behind_a_page_that_is_there_is_put_in_place_all_the_same() {
    for tracking in [Tracking::None, Tracking::Async, Tracking::Sync] {
        let test = "what_lies_behind_a_page_that_is_there_is_put_in_place_all_the_same";
        let Some(mut rig) = Rig::new(test, 32, false, tracking) else {
            return;
        };
        // Of each three that lie together: the one in the middle, the first, the last, and two of them; and zeros.
        let there = [1, 4, 10, 12, 13, 19];
        for page in there {
            rig.put_unseen(page, 99);
        }
        let filled = rig.guest.fill(BlockRange::new(0, 32), Fill::All).unwrap();
        let others = Filled {
            pages: 32 - there.len() as u64,
            left: 0,
            stopped: None,
        };
        assert_eq!(filled, others, "{tracking:?}");
        for page in 0..32 {
            let (state, byte) = match page {
                _ if there.contains(&page) => (PageState::Missing, 99),
                _ if page % 4 == 3 => (PageState::Zero, 0),
                _ => (PageState::Clean, image_byte(usize::try_from(page).unwrap())),
            };
            assert_eq!(rig.state(page), state, "page {page}, {tracking:?}");
            assert!(rig.kernel(page).0, "page {page}, {tracking:?}");
            rig.begin(&format!("a read {page}"));
            assert_eq!(rig.answer(), format!("a {byte}"), "page {page}");
        }
    }
}
