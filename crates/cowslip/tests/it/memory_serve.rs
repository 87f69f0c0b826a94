//! `cowslip memory serve`: guests in processes of their own, and what becomes of them when their server goes.

use std::time::Duration;

use cowslip_vmm::{Control, Shape, can};

use super::rig::{Rig, until};

const PAGES: usize = 500;
const PAGE: usize = 4096;

/// What page `n` holds; each fourth is zeros.
fn byte(page: usize) -> u8 {
    match page % 4 {
        3 => 0,
        _ => u8::try_from(page % 251 + 1).unwrap(),
    }
}

fn image() -> Vec<u8> {
    let bytes = |page| std::iter::repeat_n(byte(page), PAGE);
    (0..PAGES).flat_map(bytes).collect()
}

fn guest(rig: &Rig, keeps: bool) -> Control {
    let shape = Shape {
        pages: PAGES,
        keeps,
        ..Shape::default()
    };
    Control::start(&rig.path("."), shape)
}

fn asked(guest: &mut Control, line: &str) -> String {
    guest.begin(line);
    guest.answer()
}

/// A rig with the snapshot `m` of a disk and this memory, where this machine can serve it. Some pages of it lie on the disk.
fn rig(test: &str) -> Option<Rig> {
    let rig = can(test, false).then(Rig::new)?;
    let image = image();
    rig.import("disk", &image[70 * PAGE..90 * PAGE]);
    rig.file("memory", &image);
    let taken = rig.json("memory import memory m --disk disk");
    assert!(taken["disk_pages"].as_u64() > Some(15), "{taken}");
    Some(rig)
}

#[test]
fn guests_have_their_memory_and_keep_it_when_the_server_is_ended() {
    let test = "guests_have_their_memory_and_keep_it_when_the_server_is_ended";
    let Some(rig) = rig(test) else { return };
    let served = rig.serve_memory("m");
    assert!(served.ready.contains("1.95 MiB"), "{}", served.ready);
    let mut guests = [guest(&rig, true), guest(&rig, false)];
    for (n, guest) in guests.iter_mut().enumerate() {
        for page in [0, 3, 77, PAGES - 1] {
            assert_eq!(
                asked(guest, &format!("a read {page}")),
                format!("a {}", byte(page))
            );
        }
        assert_eq!(asked(guest, &format!("a write 9 {}", 100 + n)), "a written");
        assert_eq!(asked(guest, "a remove 20 30"), "a removed");
    }
    // Its name may go meanwhile.
    rig.ok("rm m");
    rig.ok("gc");
    let said = served.end_within(Duration::from_secs(60));
    assert!(said.contains("of 2 guests"), "{said}");
    for (n, guest) in guests.iter_mut().enumerate() {
        for page in 0..PAGES {
            let expected = match page {
                9 => u8::try_from(100 + n).unwrap(),
                20..30 => 0,
                _ => byte(page),
            };
            assert_eq!(
                asked(guest, &format!("a read {page}")),
                format!("a {expected}")
            );
        }
    }
    assert!(!rig.path("memory.sock").exists());
}

/// What is documented of a server that is killed: nobody is told but by the end of the connection.
#[test]
fn a_guest_whose_server_is_killed_waits_or_reads_zeros_and_is_told() {
    let test = "a_guest_whose_server_is_killed_waits_or_reads_zeros_and_is_told";
    let Some(rig) = rig(test) else { return };
    let served = rig.serve_memory("m");
    let mut guests = [true, false].map(|keeps| guest(&rig, keeps));
    for guest in &mut guests {
        assert_eq!(asked(guest, "a read 8"), format!("a {}", byte(8)));
        guest.begin("watch watch");
    }
    served.kill();
    let [keeps, other] = &mut guests;
    for guest in [&mut *keeps, &mut *other] {
        assert_eq!(guest.answer(), "watch alone");
        assert_eq!(
            asked(guest, "a read 8"),
            format!("a {}", byte(8)),
            "what was served stays"
        );
    }
    // Nobody else has its userfaultfd: the kernel takes back what was asked of it.
    assert_eq!(asked(other, "a read 300"), "a 0");
    // Nobody reads from this one, so it waits, until it is ended: it never sees zeros.
    keeps.begin("b read 300");
    let path = format!("/proc/{}/task", keeps.pid());
    let waits = || {
        let threads = std::fs::read_dir(&path).unwrap();
        let mut places = threads.map(|t| std::fs::read_to_string(t.unwrap().path().join("wchan")));
        places
            .any(|place| place.is_ok_and(|place| place.contains("userfault")))
            .then_some(())
    };
    until("a thread that waits for its page", waits);
    assert_eq!(
        asked(keeps, "a read 8"),
        format!("a {}", byte(8)),
        "the others go on"
    );
    // The next server is another one's: this guest stays lost.
    let served = rig.serve_memory("m");
    let mut next = guest(&rig, true);
    assert_eq!(asked(&mut next, "a read 300"), format!("a {}", byte(300)));
    drop(next);
    served.end();
}

fn trace_of(rig: &Rig) -> Option<Vec<u8>> {
    let parts = rig.inspect("m")["parts"].clone();
    let parts = parts.as_array().unwrap();
    let kinds: Vec<_> = parts.iter().map(|part| part["part"].clone()).collect();
    kinds
        .contains(&"trace".into())
        .then(|| rig.export("m:trace"))
}

/// How many pages of a guest's memory are there.
fn resident(guest: &Control) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).unwrap();
    let number = |line: &str| line.split_whitespace().nth(1)?.parse::<usize>().ok();
    let mut lines = maps.lines();
    let size = format!("{} kB", PAGES * PAGE / 1024);
    lines.find(|line| line.starts_with("Size:") && line.ends_with(&size));
    let rss = lines.find(|line| line.starts_with("Rss:"));
    // It may have none yet.
    rss.and_then(number).unwrap_or(0) * 1024 / PAGE
}

#[test]
fn what_the_first_guest_touches_is_there_for_the_next_before_it_asks() {
    let test = "what_the_first_guest_touches_is_there_for_the_next_before_it_asks";
    let Some(rig) = rig(test) else { return };
    let id = rig.inspect("m")["id"].clone();
    // Nobody is to be noted.
    let served = rig.serve_memory("m --no-prefetch");
    let mut first = guest(&rig, false);
    assert_eq!(asked(&mut first, "a read 300"), format!("a {}", byte(300)));
    drop(first);
    served.end();
    assert_eq!(trace_of(&rig), None);
    // Its end ends the trace.
    let served = rig.serve_memory("m --record-for 1h");
    let mut first = guest(&rig, false);
    for page in [300, 301, 2, 77] {
        assert_eq!(
            asked(&mut first, &format!("a read {page}")),
            format!("a {}", byte(page))
        );
    }
    drop(first);
    let noted = until("the trace", || trace_of(&rig));
    let said = served.end();
    assert!(said.contains("4 pages (16.00 KiB)"), "{said}");
    assert_eq!(rig.inspect("m")["id"], id, "it is the same snapshot");
    rig.ok("verify --deep");
    rig.ok("gc");
    // Only what was noted, and what the guest asks for, is there when the server is killed.
    let served = rig.serve_memory("m");
    let mut next = guest(&rig, false);
    until("what was noted", || (resident(&next) == 4).then_some(()));
    served.kill();
    next.begin("watch watch");
    assert_eq!(next.answer(), "watch alone");
    for (page, expected) in [(300, byte(300)), (301, byte(301)), (77, byte(77)), (400, 0)] {
        assert_eq!(
            asked(&mut next, &format!("a read {page}")),
            format!("a {expected}")
        );
    }
    drop(next);
    assert_eq!(
        trace_of(&rig).as_ref(),
        Some(&noted),
        "nothing is noted again"
    );
    // The end of the server ends the trace as well.
    let served = rig.serve_memory("m --record --record-for 1h");
    let mut last = guest(&rig, true);
    assert_eq!(asked(&mut last, "a read 8"), format!("a {}", byte(8)));
    let said = served.end();
    assert!(said.contains("1 page (4.00 KiB)"), "{said}");
    assert_ne!(trace_of(&rig), Some(noted));
    drop(last);
    rig.ok("rm m");
    rig.ok("rm disk");
    rig.ok("gc");
    for kind in ["layers", "headers"] {
        assert_eq!(
            std::fs::read_dir(rig.store().join(kind)).unwrap().count(),
            0
        );
    }
}

#[test]
fn a_trace_that_cannot_be_read_is_left_out() {
    let test = "a_trace_that_cannot_be_read_is_left_out";
    let Some(rig) = rig(test) else { return };
    let served = rig.serve_memory("m");
    let mut first = guest(&rig, false);
    assert_eq!(asked(&mut first, "a read 300"), format!("a {}", byte(300)));
    drop(first);
    until("the trace", || trace_of(&rig));
    served.end();
    let layer = rig.inspect("m:trace")["layers"][0]["id"].clone();
    let layer = rig.store().join("layers").join(layer.as_str().unwrap());
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let served = rig.serve_memory("m");
    let mut next = guest(&rig, false);
    assert_eq!(asked(&mut next, "a read 300"), format!("a {}", byte(300)));
    drop(next);
    let said = served.end();
    assert!(
        said.contains("1 page (4.00 KiB)"),
        "it is noted anew: {said}"
    );
    rig.ok("verify m --deep");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let rig = Rig::new();
    let said = rig.fails(2, "memory serve m --uffd tcp:127.0.0.1:1");
    assert!(said.contains("unix:PATH"), "{said}");
    let said = rig.fails(3, "memory serve m --uffd unix:x");
    assert!(said.contains("no store"), "{said}");
    rig.import("m", &[1; 8192]);
    rig.fails(3, "memory serve other --uffd unix:x");
    rig.file("x", b"precious");
    let said = rig.fails(
        1,
        &format!("memory serve m --uffd unix:{}", rig.path("x").display()),
    );
    assert!(said.contains("no socket"), "{said}");
}
