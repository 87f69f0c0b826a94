//! What a guest wrote, copied out of its memory as it was at one moment, whatever it does meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt;

use cowslip_block::BlockRange;
use cowslip_memory::guest::{CaptureError, Harvest, Served, Tracking};
use cowslip_memory::page::PageState;
use cowslip_memory::process::Process;
use cowslip_memory::sys::Access;
use cowslip_vmm::HugePages;

use crate::rig::{Rig, image_byte};

const PAGE: usize = 4096;

struct Taken {
    file: File,
    harvest: Harvest,
    process: Process,
}

impl Taken {
    fn begin(rig: &Rig) -> Self {
        let (file, process) = (
            tempfile::tempfile().unwrap(),
            Process::open(rig.pid()).unwrap(),
        );
        let harvest = rig.guest.harvest(&process, &file).unwrap();
        Self {
            file,
            harvest,
            process,
        }
    }

    fn copy(&self, rig: &Rig) -> Result<(), CaptureError> {
        rig.guest.copy(&self.process, &self.harvest)
    }

    /// A page of the file, all of one byte.
    fn byte(&self, page: usize, size: usize) -> u8 {
        let mut bytes = vec![0; size];
        self.file
            .read_exact_at(&mut bytes, (page * size) as u64)
            .unwrap();
        // The guest writes a page's first byte; the rest is the image's.
        bytes[0]
    }
}

fn pages(runs: &[BlockRange]) -> Vec<u64> {
    runs.iter()
        .flat_map(|run| run.iter().map(|page| page.0))
        .collect()
}

/// Makes page after page dirty, however writes are told of.
fn write(rig: &mut Rig, page: u64, value: u8) {
    let is_there = rig.kernel(page).0;
    let line = format!("a write {page} {value}");
    let is_told =
        !is_there || rig.guest.tracking() == Tracking::Sync && rig.state(page) != PageState::Dirty;
    let said = if is_told {
        rig.one(&line)
    } else {
        rig.begin(&line);
        rig.answer()
    };
    assert_eq!(said, "a written");
}

#[test]
fn each_harvest_has_what_was_written_since_the_last() {
    for tracking in [Tracking::Async, Tracking::Sync] {
        let test = "each_harvest_has_what_was_written_since_the_last";
        let Some(mut rig) = Rig::new(test, 64, false, tracking) else {
            return;
        };
        for page in [0, 1, 3, 20] {
            rig.one(&format!("a read {page}"));
        }
        for page in [1, 3, 5, 6] {
            write(&mut rig, page, 100);
        }
        rig.begin("a remove 40 43");
        rig.read_event();
        assert_eq!(rig.answer(), "a removed");
        rig.one("a read 41");
        let first = Taken::begin(&rig);
        assert_eq!(pages(&first.harvest.dirty), [1, 3, 5, 6], "{tracking:?}");
        // What was given back; page 3, which the image has as zeros, was written.
        assert_eq!(pages(&first.harvest.zeros), [40, 41, 42]);
        first.copy(&rig).unwrap();
        assert_eq!(
            [1, 3, 5, 6, 40].map(|page| first.byte(page, PAGE)),
            [100, 100, 100, 100, 0]
        );
        assert_eq!(first.harvest.changed(2)[0], BlockRange::new(2, 4));
        write(&mut rig, 5, 101);
        write(&mut rig, 7, 101);
        write(&mut rig, 41, 101);
        let second = Taken::begin(&rig);
        assert_eq!(pages(&second.harvest.dirty), [5, 7, 41], "{tracking:?}");
        second.copy(&rig).unwrap();
        // It is not stored: the next has it as well.
        rig.guest.lose(&second.harvest);
        write(&mut rig, 9, 102);
        let third = Taken::begin(&rig);
        assert_eq!(pages(&third.harvest.dirty), [5, 7, 9, 41], "{tracking:?}");
        third.copy(&rig).unwrap();
        assert_eq!(
            [5, 7, 9, 41].map(|page| third.byte(page, PAGE)),
            [101, 101, 102, 101]
        );
        assert_eq!(Taken::begin(&rig).harvest.dirty, [], "{tracking:?}");
    }
}

#[test]
fn where_nothing_is_tracked_all_that_was_served_may_be_other() {
    let test = "where_nothing_is_tracked_all_that_was_served_may_be_other";
    let Some(mut rig) = Rig::new(test, 16, false, Tracking::None) else {
        return;
    };
    for line in ["a read 0", "a read 3", "a write 5 9"] {
        rig.one(line);
    }
    for _ in 0..2 {
        let taken = Taken::begin(&rig);
        assert_eq!(pages(&taken.harvest.dirty), [0, 3, 5]);
        taken.copy(&rig).unwrap();
        assert_eq!(
            [0, 3, 5].map(|page| taken.byte(page, PAGE)),
            [image_byte(0), 0, 9]
        );
    }
}

/// It reads as zeros, for a snapshot as for the guest: never as what the image has.
#[test]
fn what_was_written_and_is_dropped_unseen_is_zeros() {
    for tracking in [Tracking::Async, Tracking::Sync] {
        let test = "what_was_written_and_is_dropped_unseen_is_zeros";
        let Some(mut rig) = Rig::new(test, 16, false, tracking) else {
            return;
        };
        for line in ["a read 5", "a read 6"] {
            rig.one(line);
        }
        for page in 5..9 {
            write(&mut rig, page, 100);
        }
        let first = Taken::begin(&rig);
        first.copy(&rig).unwrap();
        assert_eq!(
            (rig.state(5), rig.state(7)),
            (PageState::Kept, PageState::Kept)
        );
        for (page, line) in [(5, "a read 5"), (7, "a write 7 101")] {
            rig.drop_unseen("c", page);
            rig.begin(line);
            let fault = rig.faults(1)[0];
            rig.serve(fault);
            if line.contains("write") && tracking == Tracking::Sync {
                let fault = rig.faults(1)[0];
                rig.serve(fault);
            }
            assert_ne!(rig.answer(), format!("a {}", image_byte(5)));
        }
        write(&mut rig, 8, 102);
        rig.drop_unseen("c", 8);
        let second = Taken::begin(&rig);
        second.copy(&rig).unwrap();
        assert_eq!(pages(&second.harvest.zeros), [5]);
        assert_eq!([7, 8].map(|page| second.byte(page, PAGE)), [101, 0]);
    }
}

/// The guest goes on: what it writes is copied before.
#[test]
fn a_page_is_copied_before_it_is_overwritten() {
    let Some(mut rig) = Rig::new(
        "a_page_is_copied_before_it_is_overwritten",
        64,
        false,
        Tracking::Sync,
    ) else {
        return;
    };
    for page in 10..14 {
        write(&mut rig, page, 50);
    }
    rig.one("a read 20");
    let taken = Taken::begin(&rig);
    assert_eq!(rig.state(11), PageState::Kept);
    // One of those that are to be copied, and one that is not.
    for page in [11, 20] {
        rig.begin(&format!("a write {page} 60"));
        let faults = rig.faults(1);
        assert_eq!(faults[0].1, Access::WriteProtected);
        let served = rig.guest.fault(faults[0].0, faults[0].1).unwrap();
        let Served::Copy(block) = served else {
            panic!("{served:?}")
        };
        assert_eq!(
            rig.guest.copy_first(block, &taken.process).unwrap(),
            Served::Done
        );
        assert_eq!(rig.answer(), "a written");
    }
    taken.copy(&rig).unwrap();
    for page in 10..14 {
        assert_eq!(taken.byte(page, PAGE), 50, "page {page}");
    }
    assert_eq!(taken.byte(20, PAGE), 0, "nobody asked for it");
    let next = Taken::begin(&rig);
    assert_eq!(pages(&next.harvest.dirty), [11, 20]);
    next.copy(&rig).unwrap();
    assert_eq!((next.byte(11, PAGE), next.byte(20, PAGE)), (60, 60));
    // Without a capture a write is let through at once.
    rig.begin("a write 12 61");
    let faults = rig.faults(1);
    assert_eq!(
        rig.guest.fault(faults[0].0, faults[0].1).unwrap(),
        Served::Done
    );
    assert_eq!(rig.answer(), "a written");
}

/// A fault that was told before the harvest does not lift what the harvest put.
#[test]
fn a_fault_from_before_the_harvest_is_one_of_after_it() {
    let Some(mut rig) = Rig::new(
        "a_fault_from_before_the_harvest_is_one_of_after_it",
        16,
        false,
        Tracking::Sync,
    ) else {
        return;
    };
    write(&mut rig, 2, 50);
    Taken::begin(&rig).copy(&rig).unwrap();
    rig.begin("a write 2 51");
    let faults = rig.faults(1);
    // It is as it was when it stopped.
    let taken = Taken::begin(&rig);
    assert_eq!(taken.harvest.dirty, []);
    let served = rig.guest.fault(faults[0].0, faults[0].1).unwrap();
    assert_eq!(served, Served::Copy(cowslip_block::BlockIndex(2)));
    rig.guest
        .copy_first(cowslip_block::BlockIndex(2), &taken.process)
        .unwrap();
    assert_eq!(rig.answer(), "a written");
    taken.copy(&rig).unwrap();
    assert_eq!(pages(&Taken::begin(&rig).harvest.dirty), [2]);
}

/// Nor does one that was told before the harvest, and is served after it: its page is one of the next.
#[test]
fn a_page_that_was_to_be_copied_first_may_be_harvested_before_it_is() {
    let test = "a_page_that_was_to_be_copied_first_may_be_harvested_before_it_is";
    let Some(mut rig) = Rig::new(test, 16, false, Tracking::Sync) else {
        return;
    };
    write(&mut rig, 2, 50);
    let first = Taken::begin(&rig);
    rig.begin("a write 2 51");
    let faults = rig.faults(1);
    let Served::Copy(page) = rig.guest.fault(faults[0].0, faults[0].1).unwrap() else {
        panic!("a capture goes on");
    };
    first.copy(&rig).unwrap();
    // Dirty by its fault, and not written yet.
    let second = Taken::begin(&rig);
    assert_eq!(pages(&second.harvest.dirty), [2]);
    rig.guest.copy_first(page, &second.process).unwrap();
    assert_eq!(rig.answer(), "a written");
    second.copy(&rig).unwrap();
    assert_eq!((first.byte(2, PAGE), second.byte(2, PAGE)), (50, 50));
    let third = Taken::begin(&rig);
    assert_eq!(pages(&third.harvest.dirty), [2]);
    third.copy(&rig).unwrap();
    assert_eq!(third.byte(2, PAGE), 51);
}

/// With a guest that is let go goes all protection: what is copied then may be torn.
#[test]
fn a_guest_that_is_let_go_fails_its_capture_and_takes_no_other() {
    let test = "a_guest_that_is_let_go_fails_its_capture_and_takes_no_other";
    let Some(mut rig) = Rig::new(test, 16, false, Tracking::Sync) else {
        return;
    };
    write(&mut rig, 2, 50);
    let taken = Taken::begin(&rig);
    rig.guest.let_go().unwrap();
    assert!(matches!(taken.copy(&rig), Err(CaptureError::Guest(_))));
    let file = tempfile::tempfile().unwrap();
    assert!(rig.guest.harvest(&taken.process, &file).is_err());
}

#[test]
fn memory_that_is_given_back_before_it_was_copied_is_told() {
    let Some(mut rig) = Rig::new(
        "memory_that_is_given_back_before_it_was_copied_is_told",
        64,
        false,
        Tracking::Sync,
    ) else {
        return;
    };
    write(&mut rig, 10, 50);
    write(&mut rig, 12, 50);
    let taken = Taken::begin(&rig);
    rig.begin("a remove 12 20");
    rig.read_event();
    assert_eq!(rig.answer(), "a removed");
    let failed = taken.copy(&rig).unwrap_err();
    assert!(matches!(failed, CaptureError::GivenBack), "{failed}");
    rig.guest.lose(&taken.harvest);
    let again = Taken::begin(&rig);
    assert_eq!(
        (pages(&again.harvest.dirty), again.harvest.zeros.clone()),
        (vec![10], vec![BlockRange::new(12, 20)])
    );
    again.copy(&rig).unwrap();
    assert_eq!((again.byte(10, PAGE), again.byte(12, PAGE)), (50, 0));
    // What is no part of it may be given back.
    write(&mut rig, 30, 50);
    let taken = Taken::begin(&rig);
    rig.begin("a remove 40 41");
    rig.read_event();
    assert_eq!(rig.answer(), "a removed");
    taken.copy(&rig).unwrap();
}

#[test]
fn a_page_that_was_copied_first_may_be_given_back_whatever_is_read_with_it() {
    let test = "a_page_that_was_copied_first_may_be_given_back_whatever_is_read_with_it";
    for huge in [false, true] {
        let _lent = HugePages::lent(12);
        let Some(mut rig) = Rig::new(test, 8, huge, Tracking::Sync) else {
            continue;
        };
        let size = if huge { 2 << 20 } else { PAGE };
        for page in [2, 3, 4] {
            write(&mut rig, page, 50);
        }
        let taken = Taken::begin(&rig);
        rig.begin("a write 3 51");
        let faults = rig.faults(1);
        let Served::Copy(page) = rig.guest.fault(faults[0].0, faults[0].1).unwrap() else {
            panic!("a capture goes on");
        };
        rig.guest.copy_first(page, &taken.process).unwrap();
        assert_eq!(rig.answer(), "a written");
        rig.begin("a remove 3 4");
        rig.read_event();
        assert_eq!(rig.answer(), "a removed");
        taken.copy(&rig).unwrap();
        assert_eq!([2, 3, 4].map(|page| taken.byte(page, size)), [50; 3]);
    }
}

#[test]
fn a_guest_that_ends_fails_its_capture() {
    let Some(mut rig) = Rig::new(
        "a_guest_that_ends_fails_its_capture",
        16,
        false,
        Tracking::Sync,
    ) else {
        return;
    };
    write(&mut rig, 3, 50);
    let taken = Taken::begin(&rig);
    rig.kill();
    let failed = taken.copy(&rig).unwrap_err();
    assert!(matches!(failed, CaptureError::Io(_)), "{failed}");
}

#[test]
fn large_pages_are_copied_whole() {
    let _lent = HugePages::lent(8);
    for tracking in [Tracking::Async, Tracking::Sync] {
        let Some(mut rig) = Rig::new("large_pages_are_copied_whole", 4, true, tracking) else {
            return;
        };
        rig.one("a write 1 50");
        rig.one("a read 2");
        let taken = Taken::begin(&rig);
        assert_eq!(pages(&taken.harvest.dirty), [1], "{tracking:?}");
        taken.copy(&rig).unwrap();
        assert_eq!(taken.byte(1, 2 << 20), 50);
        assert_eq!(taken.harvest.changed(512), [BlockRange::new(512, 1024)]);
    }
}
