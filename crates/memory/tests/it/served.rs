//! Guests that are served by a server, several at once, good ones and others.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cowslip_memory::guest::Tracking;
use cowslip_memory::page::PageState;
use cowslip_memory::server::{Options, Server};
use cowslip_memory::trace::Trace;
use cowslip_snapshot::{Image, Store};
use tempfile::TempDir;

use cowslip_vmm::{Control, Shape, can};

use crate::rig::{image_byte, source, until};

pub(crate) struct Host {
    temp: TempDir,
    pub(crate) server: Server,
    store: Arc<Store>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn new(pages: usize) -> Self {
        Self::with(pages, Options::default())
    }

    pub(crate) fn with(pages: usize, options: Options) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let source = source(&temp, pages, 4096);
        let store = Arc::clone(source.image().store());
        let listener = UnixListener::bind(temp.path().join("memory.sock")).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        let say = move |line: &str| lines.lock().unwrap().push(line.to_owned());
        let server = Server::start(listener, source, options, say).unwrap();
        Self {
            temp,
            server,
            store,
            said,
        }
    }

    pub(crate) fn guest(&self, pages: usize, tracking: Tracking) -> Control {
        let shape = Shape {
            pages,
            is_async: tracking == Tracking::Async,
            ..Shape::default()
        };
        Control::start(self.temp.path(), shape)
    }

    /// All that it said.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.temp.path().join("memory.sock")).unwrap()
    }

    fn until_said(&self, what: &str) {
        until(&format!("{what:?} to be said"), || {
            self.said
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.contains(what))
        });
    }
}

#[test]
fn guests_beside_each_other_have_their_memory() {
    const PAGES: usize = 200;
    if !can("guests_beside_each_other_have_their_memory", false) {
        return;
    }
    let host = Host::new(PAGES);
    let modes = [Tracking::Async, Tracking::Sync, Tracking::None];
    let mut guests: Vec<_> = modes.iter().map(|mode| host.guest(PAGES, *mode)).collect();
    until("three guests", || host.server.guests().len() == 3);
    // What the monitor did not ask for is there where the kernel has it all the same: faults at a first write.
    let mut tracked: Vec<_> = host
        .server
        .guests()
        .iter()
        .map(|live| live.guest().tracking())
        .collect();
    tracked.sort_by_key(|tracking| format!("{tracking:?}"));
    assert_eq!(tracked, [Tracking::Async, Tracking::Sync, Tracking::Sync]);
    for (i, guest) in guests.iter_mut().enumerate() {
        guest.begin(&format!("w write 5 {}", 200 + i));
        assert_eq!(guest.answer(), "w written");
    }
    // All at once, three threads each, and what is given back meanwhile.
    for guest in &mut guests {
        for page in 0..PAGES {
            guest.begin(&format!("{} read {page}", ["a", "b", "c"][page % 3]));
        }
        guest.begin("r remove 8 10");
    }
    for (i, guest) in guests.iter_mut().enumerate() {
        let answers: Vec<_> = (0..PAGES + 1).map(|_| guest.answer()).collect();
        for (n, thread) in ["a", "b", "c"].into_iter().enumerate() {
            let mut found = answers
                .iter()
                .filter_map(|a| a.strip_prefix(thread)?.trim().parse::<u8>().ok());
            for page in (n..PAGES).step_by(3) {
                let byte = found.next().unwrap();
                let expected = match page {
                    5 => u8::try_from(200 + i).unwrap(),
                    _ => image_byte(page),
                };
                assert!(
                    byte == expected || (8..10).contains(&page) && byte == 0,
                    "page {page}: {byte}"
                );
            }
        }
        guest.begin("a read 8");
        assert_eq!(guest.answer(), "a 0");
    }
    drop(guests.pop());
    until("one to be forgotten", || host.server.guests().len() == 2);
    guests[0].begin("a read 7");
    assert_eq!(guests[0].answer(), "a 0");
    assert_eq!(*host.said.lock().unwrap(), [""; 0]);
}

#[test]
fn who_says_nonsense_is_turned_away_and_the_others_do_not_notice() {
    if !can(
        "who_says_nonsense_is_turned_away_and_the_others_do_not_notice",
        false,
    ) {
        return;
    }
    let host = Host::new(16);
    let mut good = host.guest(16, Tracking::Sync);
    // They say nothing, and stay.
    let silent: Vec<_> = (0..10).map(|_| host.connect()).collect();
    for text in [
        "nonsense",
        "[]",
        "[{}]",
        r#"[{"base_host_virt_addr":4096,"size":65536,"offset":0}]"#,
    ] {
        let mut hostile = host.connect();
        hostile.write_all(text.as_bytes()).unwrap();
        hostile.shutdown(Shutdown::Write).unwrap();
    }
    for what in ["not a list of regions", "0 regions", "0 file descriptors"] {
        host.until_said(what);
    }
    for page in 0..16 {
        good.begin(&format!("a read {page}"));
        assert_eq!(good.answer(), format!("a {}", image_byte(page)));
    }
    assert_eq!(host.server.guests().len(), 1);
    drop(silent);
}

#[test]
fn a_guest_whose_snapshot_has_another_size_is_turned_away() {
    if !can(
        "a_guest_whose_snapshot_has_another_size_is_turned_away",
        false,
    ) {
        return;
    }
    let host = Host::new(16);
    let _guest = host.guest(8, Tracking::Sync);
    host.until_said("where the snapshot has 65536");
}

/// What the first guest touched is there for the second one before it asks.
#[test]
fn a_trace_is_replayed_ahead_of_the_next_guest() {
    const PAGES: usize = 200;
    if !can("a_trace_is_replayed_ahead_of_the_next_guest", false) {
        return;
    }
    let record = Options {
        record: true,
        ..Options::default()
    };
    let host = Host::with(PAGES, record);
    let mut guest = host.guest(PAGES, Tracking::Sync);
    for page in (100..150).chain([3, 7]) {
        guest.begin(&format!("a read {page}"));
        assert_eq!(guest.answer(), format!("a {}", image_byte(page)));
    }
    drop(guest);
    // Its end ends the trace.
    let trace = host.server.await_trace(Duration::MAX).unwrap();
    assert_eq!(trace.pages(), 52);
    let store = Arc::clone(&host.store);
    let lease = store.lease().unwrap();
    let header = trace.store(&store, &lease).unwrap();
    let image = Image::new(Arc::clone(&store), header);
    let loaded = Trace::load(&image, PAGES as u64 * 4096).unwrap();
    assert_eq!(loaded, trace);
    Trace::load(&image, 149 * 4096).unwrap_err();
    let replay = Options {
        trace: Some(Arc::new(trace)),
        record: false,
    };
    let host = Host::with(PAGES, replay);
    let mut guest = host.guest(PAGES, Tracking::Sync);
    until("a guest", || host.server.guests().len() == 1);
    let live = Arc::clone(&host.server.guests()[0]);
    let missing = || live.guest().states().count(PageState::Missing).unwrap().0;
    until("the prefetch", || missing() == PAGES as u64 - 52);
    guest.begin("a read 120");
    assert_eq!(guest.answer(), format!("a {}", image_byte(120)));
    assert_eq!(missing(), PAGES as u64 - 52, "nothing was asked for");
    assert_eq!(host.server.await_trace(Duration::MAX), None);
}

#[test]
fn a_trace_ends_in_time_and_when_it_is_ended() {
    const PAGES: usize = 200;
    if !can("a_trace_ends_in_time_and_when_it_is_ended", false) {
        return;
    }
    let record = || Options {
        record: true,
        ..Options::default()
    };
    let host = Host::with(PAGES, record());
    let mut guest = host.guest(PAGES, Tracking::Sync);
    guest.begin("a read 9");
    assert_eq!(guest.answer(), format!("a {}", image_byte(9)));
    let trace = host.server.await_trace(Duration::ZERO).unwrap();
    assert_eq!(trace.pages(), 1);
    // From here on it is served as any other; nothing is noted twice.
    guest.begin("a read 120");
    assert_eq!(guest.answer(), format!("a {}", image_byte(120)));
    assert_eq!(host.server.await_trace(Duration::MAX / 2), None);
    drop(guest);
    until("it to be forgotten", || host.server.guests().is_empty());
    // Who comes to the same server has it as well.
    let _next = host.guest(PAGES, Tracking::Sync);
    until("the prefetch", || {
        let guests = host.server.guests();
        let missing = |live: &Arc<_>| {
            let live: &cowslip_memory::live::Live = live;
            live.guest().states().count(PageState::Missing).unwrap().0
        };
        guests.first().map(missing) == Some(PAGES as u64 - 1)
    });

    let host = Host::with(PAGES, record());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| host.server.await_trace(Duration::MAX));
        let mut guest = host.guest(PAGES, Tracking::Sync);
        guest.begin("a read 9");
        assert_eq!(guest.answer(), format!("a {}", image_byte(9)));
        host.server.end_record();
        assert_eq!(waits.join().unwrap().unwrap().pages(), 1);
    });
    let host = Host::with(PAGES, record());
    host.server.end_record();
    assert_eq!(host.server.await_trace(Duration::MAX), None, "nobody came");
}

#[test]
fn guests_that_are_released_need_no_server() {
    const PAGES: usize = 300;
    if !can("guests_that_are_released_need_no_server", false) {
        return;
    }
    let host = Host::new(PAGES);
    let modes = [Tracking::Async, Tracking::Sync];
    let mut guests: Vec<_> = modes.iter().map(|mode| host.guest(PAGES, *mode)).collect();
    until("two guests", || host.server.guests().len() == 2);
    for guest in &mut guests {
        guest.begin("a write 5 9");
        assert_eq!(guest.answer(), "a written");
        guest.begin("b remove 10 12");
        assert_eq!(guest.answer(), "b removed");
    }
    // They go on meanwhile.
    for guest in &mut guests {
        (0..PAGES).for_each(|page| guest.begin(&format!("{} read {page}", page % 3)));
    }
    host.server.release(&|_, _| ());
    assert_eq!(*host.said.lock().unwrap(), [""; 0]);
    drop(host);
    for guest in &mut guests {
        (0..PAGES).for_each(|_| drop(guest.answer()));
        for page in 0..PAGES {
            guest.begin(&format!("a read {page}"));
            let byte = match page {
                5 => 9,
                10 | 11 => 0,
                _ => image_byte(page),
            };
            assert_eq!(guest.answer(), format!("a {byte}"), "page {page}");
        }
    }
}
