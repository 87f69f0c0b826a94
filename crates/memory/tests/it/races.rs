//! The table of pages, by a real kernel: each race on purpose, and the kernel's own view after each step.

use cowslip_memory::guest::{Served, Tracking};
use cowslip_memory::page::PageState;
use cowslip_memory::sys::Access;

use crate::rig::{Rig, image_byte};

/// There, and not written; there, and written; not there.
const CLEAN: (bool, bool) = (true, false);
const WRITTEN: (bool, bool) = (true, true);

#[test]
fn pages_are_served_and_what_is_written_is_known() {
    for tracking in [Tracking::None, Tracking::Async, Tracking::Sync] {
        let test = "pages_are_served_and_what_is_written_is_known";
        let Some(mut rig) = Rig::new(test, 16, false, tracking) else {
            return;
        };
        for page in [0, 1, 3, 15] {
            let said = rig.one(&format!("a read {page}"));
            assert_eq!(
                said,
                format!("a {}", image_byte(page)),
                "page {page}, {tracking:?}"
            );
        }
        assert_eq!(rig.state(0), PageState::Clean);
        assert_eq!(rig.state(3), PageState::Zero, "the image has zeros there");
        assert_eq!(rig.state(2), PageState::Missing);
        assert!(!rig.kernel(2).0);
        assert_eq!(rig.one("a write 5 9"), "a written");
        assert_eq!(rig.one("a write 7 9"), "a written");
        assert_eq!(
            (rig.state(5), rig.state(7)),
            (PageState::Dirty, PageState::Dirty)
        );
        if tracking != Tracking::None {
            assert_eq!((rig.kernel(0), rig.kernel(3)), (CLEAN, CLEAN));
            assert_eq!((rig.kernel(5), rig.kernel(7)), (WRITTEN, WRITTEN));
        }
        for (page, value) in [(0, 77), (3, 78)] {
            let line = format!("a write {page} {value}");
            let said = match tracking {
                Tracking::Sync => rig.one(&line),
                Tracking::None | Tracking::Async => {
                    rig.begin(&line);
                    rig.answer()
                }
            };
            assert_eq!(said, "a written");
            if tracking != Tracking::None {
                assert_eq!(rig.kernel(page), WRITTEN, "page {page}, {tracking:?}");
            }
            if tracking == Tracking::Sync {
                assert_eq!(rig.state(page), PageState::Dirty);
            }
            rig.begin(&format!("a read {page}"));
            assert_eq!(rig.answer(), format!("a {value}"));
        }
    }
}

#[test]
fn pages_of_two_mebibytes() {
    let test = "pages_of_two_mebibytes";
    let _lent = cowslip_vmm::HugePages::lent(12);
    for tracking in [Tracking::Sync, Tracking::Async] {
        let Some(mut rig) = Rig::new(test, 5, true, tracking) else {
            return;
        };
        for page in [0, 1, 3] {
            assert_eq!(
                rig.one(&format!("a read {page}")),
                format!("a {}", image_byte(page))
            );
        }
        assert_eq!(
            (rig.state(1), rig.state(3)),
            (PageState::Clean, PageState::Zero)
        );
        assert_eq!((rig.kernel(1), rig.kernel(3)), (CLEAN, CLEAN));
        assert_eq!(rig.one("a write 2 9"), "a written");
        assert_eq!((rig.state(2), rig.kernel(2)), (PageState::Dirty, WRITTEN));
        rig.begin("a remove 1 2");
        rig.read_event();
        assert_eq!(rig.answer(), "a removed");
        assert_eq!(rig.one("a read 1"), "a 0");
        assert_eq!((rig.state(1), rig.kernel(1)), (PageState::Zero, CLEAN));
    }
}

#[test]
fn a_page_that_is_given_back_while_it_is_fetched_has_zeros() {
    let test = "a_page_that_is_given_back_while_it_is_fetched_has_zeros";
    let Some(mut rig) = Rig::new(test, 8, false, Tracking::Sync) else {
        return;
    };
    rig.begin("a read 1");
    let fault = rig.faults(1)[0];
    let Served::Cold(claim) = rig.guest.fault(fault.0, fault.1).unwrap() else {
        panic!("nothing was read yet");
    };
    // A second thread at the same page waits for the same install.
    rig.begin("b write 1 5");
    let second = rig.faults(1)[0];
    assert_eq!(second.1, Access::Write);
    assert_eq!(rig.guest.fault(second.0, second.1).unwrap(), Served::Done);
    // While the event is not read, the kernel lets nothing be put in place.
    rig.begin("c remove 0 2");
    rig.wait();
    let Served::Again(page, event) = rig.guest.fetch(claim).unwrap() else {
        panic!("the kernel put a page in place that is being given back");
    };
    rig.read_event();
    assert_eq!(rig.answer(), "c removed");
    assert_eq!(rig.state(1), PageState::Removed);
    assert_eq!(rig.guest.serve(page, event).unwrap(), Served::Done);
    // The reader has zeros; the writer stops once more, at a page that is protected, or has written before.
    let mut answers = vec![rig.answer()];
    if rig.state(1) == PageState::Zero {
        let fault = rig.faults(1)[0];
        assert_eq!(fault.1, Access::WriteProtected);
        rig.serve(fault);
    }
    answers.push(rig.answer());
    answers.sort();
    assert!(answers[0] == "a 0" || answers[0] == "a 5", "{answers:?}");
    assert_eq!(answers[1], "b written");
    assert_eq!(rig.state(1), PageState::Dirty);
    rig.begin("a read 1");
    assert_eq!(rig.answer(), "a 5");
    // And back again.
    rig.begin("a remove 1 2");
    rig.read_event();
    assert_eq!(rig.answer(), "a removed");
    assert_eq!(rig.one("a read 1"), "a 0");
    assert_eq!(rig.state(1), PageState::Zero);
    assert!(rig.kernel(1).0);
}

/// Zeros that were installed between the event of a removal and the removal itself go with it, and nothing says so.
#[test]
fn what_was_written_between_a_removal_s_event_and_the_removal_reads_as_zeros() {
    let test = "what_was_written_between_a_removal_s_event_and_the_removal_reads_as_zeros";
    for tracking in [Tracking::None, Tracking::Async, Tracking::Sync] {
        let Some(mut rig) = Rig::new(test, 8, false, tracking) else {
            return;
        };
        assert_eq!(rig.one("a write 1 5"), "a written");
        rig.begin("c remove 1 3");
        rig.wait();
        // Until its event is read the page is there, whoever reads it.
        rig.begin("a read 1");
        assert_eq!(rig.answer(), "a 5");
        rig.read_event();
        assert_eq!(rig.answer(), "c removed");
        for line in ["a read 1", "a write 1 7"] {
            // Here the removal itself would be still to come.
            if rig.state(1) == PageState::Removed {
                assert_eq!(rig.one("b write 1 6"), "b written");
            }
            rig.drop_unseen("c", 1);
            assert_eq!((rig.state(1), rig.kernel(1).0), (PageState::Dirty, false));
            rig.begin(line);
            let fault = rig.faults(1)[0];
            rig.serve(fault);
            // Or the thread would stop again, for ever.
            assert_eq!((rig.state(1), rig.kernel(1).0), (PageState::Dirty, true));
            rig.answer();
        }
        rig.begin("b read 1");
        assert_eq!(rig.answer(), "b 7");
        rig.drop_unseen("c", 1);
        assert_eq!(rig.one("b read 1"), "b 0", "{tracking:?}");
        // What is written to them is noticed: they are dirty, and not protected.
        rig.begin("b write 1 8");
        assert_eq!(rig.answer(), "b written");
    }
}

/// Two threads at one page that is there by the time the second one is looked at: its bytes stay.
#[test]
fn the_second_of_two_who_write_a_page_finds_it_there() {
    let test = "the_second_of_two_who_write_a_page_finds_it_there";
    let Some(mut rig) = Rig::new(test, 8, false, Tracking::Sync) else {
        return;
    };
    rig.begin("a write 1 5");
    let first = rig.faults(1)[0];
    rig.begin("b read 1");
    let second = rig.faults(1)[0];
    rig.serve(first);
    assert_eq!(rig.state(1), PageState::Dirty);
    rig.serve(second);
    let mut answers = [rig.answer(), rig.answer()];
    answers.sort();
    assert_eq!(answers[0], "a written");
    let image = format!("b {}", image_byte(1));
    assert!(answers[1] == "b 5" || answers[1] == image, "{answers:?}");
    rig.begin("a read 1");
    assert_eq!(rig.answer(), "a 5");
}
