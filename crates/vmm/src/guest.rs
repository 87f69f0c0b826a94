//! The guest: this binary again, as a process of its own that owns the memory, hands it over, and does what it is told on threads that it is
//! told.
//!
//! A line is `THREAD VERB ARGUMENTS`; when it is done, `THREAD RESULT` is the answer. A thread that stops at a page answers when it goes on.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio, exit};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use cowslip_memory::sys::{
    UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_WP_ASYNC,
};

use crate::handing::hand_over;
use crate::sys::Memory;
use crate::work::Work;

const SOCKETS: &str = "COWSLIP_TEST_GUEST_SOCKETS";
const SHAPE: &str = "COWSLIP_TEST_GUEST_SHAPE";

/// What a guest is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// How many.
    pub pages: usize,
    /// Of 2 MiB.
    pub is_huge: bool,
    /// It asks for `UFFD_FEATURE_WP_ASYNC`.
    pub is_async: bool,
    /// It keeps its userfaultfd, as Firecracker does.
    pub keeps: bool,
}

/// Starts one that connects to `memory.sock` there, and takes its orders from here.
pub(crate) fn start(dir: &Path, shape: Shape, orders: UnixStream) -> Child {
    let Shape {
        pages,
        is_huge,
        is_async,
        keeps,
    } = shape;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_guest", "--nocapture"]);
    command.env(SOCKETS, dir);
    command.env(SHAPE, format!("{pages} {is_huge} {is_async} {keeps}"));
    command.stdout(Stdio::null()).stdin(OwnedFd::from(orders));
    command.spawn().unwrap()
}

/// Is this process a guest? Then it is one to its end.
pub fn run_if_asked() {
    let Some(dir) = std::env::var_os(SOCKETS) else {
        return;
    };
    let dir = Path::new(&dir);
    let shape = std::env::var(SHAPE).unwrap();
    let shape: Vec<_> = shape.split(' ').collect();
    let pages: usize = shape[0].parse().unwrap();
    let [huge, is_async, keeps] = [1, 2, 3].map(|i| shape[i] == "true");
    let page = if huge { 2 << 20 } else { 4096 };
    let memory = Memory::new(pages * page, huge).unwrap();
    let mut features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_HUGETLBFS;
    if is_async {
        features |= UFFD_FEATURE_WP_ASYNC;
    }
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (uffd, handed) = hand_over(&memory, page, features, &dir.join("memory.sock"));
    let _kept = keeps.then_some(uffd);
    obey(
        Guest {
            memory: Arc::new(memory),
            page,
            handed,
            work: OnceLock::new(),
        },
        control.into(),
    );
    exit(0);
}

struct Guest {
    memory: Arc<Memory>,
    page: usize,
    handed: UnixStream,
    work: OnceLock<Work>,
}

fn obey(guest: Guest, control: UnixStream) {
    let guest = Arc::new(guest);
    let answers = Arc::new(Mutex::new(control.try_clone().unwrap()));
    let mut threads: HashMap<String, Sender<String>> = HashMap::new();
    for line in BufReader::new(control).lines() {
        let line = line.unwrap();
        let (thread, order) = line.split_once(' ').unwrap();
        let orders = threads.entry(thread.to_owned()).or_insert_with(|| {
            let (orders, receiver) = channel::<String>();
            let (guest, answers, name) =
                (Arc::clone(&guest), Arc::clone(&answers), thread.to_owned());
            std::thread::spawn(move || {
                for order in receiver {
                    let done = guest.act(&order);
                    writeln!(answers.lock().unwrap(), "{name} {done}").unwrap();
                }
            });
            orders
        });
        orders.send(order.to_owned()).unwrap();
    }
}

impl Guest {
    fn act(&self, order: &str) -> String {
        let words: Vec<_> = order.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "read" => self.memory.read(number(1) * self.page).to_string(),
            "write" => {
                let value = u8::try_from(number(2)).unwrap();
                self.memory.write(number(1) * self.page, value);
                "written".into()
            }
            "remove" => {
                self.memory
                    .give_back(number(1) * self.page..number(2) * self.page);
                "removed".into()
            }
            // A file that holds its memory as it is now, a seed, and how many threads; 0: a processor of /dev/kvm.
            "work" => {
                let shadow = File::options()
                    .read(true)
                    .write(true)
                    .open(words[1])
                    .unwrap();
                let begin =
                    || Work::begin(&self.memory, &shadow, self.page, (number(2), number(3)));
                self.work.get_or_init(begin);
                "at work".into()
            }
            "pause" => {
                self.work.get().unwrap().pause();
                "paused".into()
            }
            "resume" => {
                self.work.get().unwrap().resume();
                "at work".into()
            }
            // All of it, while it is paused.
            "check" => {
                self.work.get().unwrap().check();
                "as it should be".into()
            }
            // Whoever serves it never says anything: this is the end of the connection.
            "watch" => match (&self.handed).read(&mut [0]) {
                Ok(0) | Err(_) => "alone".into(),
                Ok(_) => "spoken to".into(),
            },
            other => panic!("what is {other}?"),
        }
    }
}
