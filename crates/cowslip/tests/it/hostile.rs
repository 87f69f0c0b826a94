//! One client that does everything wrong, beside one that does all right, on the same server: the good one is never
//! wrong and is always answered, and what the bad one made the server hold is bounded, and comes back.
//!
//! The good client owns the first half of the device. Hostile requests that a server may well serve change the second
//! half alone; so whatever differs in the first is the server's fault.

use std::io::{Read, Write};
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cowslip_nbd::Client;
use cowslip_nbd::client::Address;
use cowslip_nbd::limits::{CONNECTIONS_MAX, LARGE_BYTES_MAX, OWN_BYTES};

use crate::bytes::{MIB, Seeded, assert_same, noise};
use crate::rig::{PATIENCE, Rig, Served, until};

const SIZE: usize = 64 * MIB;
const GOOD: usize = SIZE / 2;

/// What a process may hold, whatever its clients do: twice what the connections may (`limits.rs` of `cowslip-nbd`),
/// the bytes that they receive into, and 128 MiB for all the rest of a small image.
const MEMORY_BYTES_MAX: usize =
    2 * (CONNECTIONS_MAX * OWN_BYTES + LARGE_BYTES_MAX) + CONNECTIONS_MAX * MIB / 2 + 128 * MIB;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

fn request(flags: u16, kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(0xbad_c00c1eu64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn option(code: u32, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The client's half of a handshake.
fn hello(structured: bool) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    if structured {
        bytes.extend(option(8, 0, &[]));
        let mut query = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15];
        query.extend(b"base:allocation");
        bytes.extend(option(10, 27, &query));
    }
    bytes.extend(option(7, 6, &[0; 6]));
    bytes
}

/// Where a server is, for any thread.
pub(crate) struct At {
    socket: PathBuf,
    pid: NonZero<i32>,
}

impl At {
    pub(crate) fn of(served: &Served) -> Self {
        Self {
            socket: served.socket().to_owned(),
            pid: served.pid().as_raw_nonzero(),
        }
    }

    pub(crate) fn connect(&self) -> Option<Client> {
        Client::connect(Address::Unix(&self.socket), "").ok()
    }
}

/// A hostile client's socket. Nothing that it does may fail the test: servers hang up on such as it.
struct Hostile(UnixStream);

impl Hostile {
    fn connect(at: &At) -> Self {
        let socket = UnixStream::connect(&at.socket).unwrap();
        // A server that stops reading stalls this client alone.
        let short = std::time::Duration::from_millis(50);
        socket.set_write_timeout(Some(short)).unwrap();
        Self(socket)
    }

    fn greeted(at: &At, structured: bool) -> Self {
        let mut hostile = Self::connect(at);
        hostile.put(&hello(structured));
        hostile
    }

    /// False where the server takes no more.
    fn put(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Says that there is no more, and reads until the server hangs up.
    fn drain(mut self) {
        drop(self.0.shutdown(std::net::Shutdown::Write));
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = vec![0; MIB];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "no end");
                    return;
                }
            }
        }
    }
}

/// A well-formed request, or nearly; of what changes bytes only such as keep to the second half.
fn some_request(seeded: &mut Seeded) -> Vec<u8> {
    let kinds = [READ, WRITE, 2, FLUSH, TRIM, 5, ZEROES, STATUS, 8, 0x1100];
    let kind = kinds[seeded.below(kinds.len())];
    let flags = [0, 1, 2, 3, 4, 8, 16, 31, 0x8000][seeded.below(9)];
    let offsets = [0, 1, 4095, SIZE - 1, SIZE, SIZE + 1, usize::MAX, 1 << 62];
    let mut offset = offsets[seeded.below(offsets.len())] as u64;
    let lens = [0, 1, 511, 4096, 70_000, 32 << 20, (32 << 20) + 1, u32::MAX];
    let len = lens[seeded.below(lens.len())];
    if matches!(kind, WRITE | TRIM | ZEROES) && offset < SIZE as u64 {
        offset = (GOOD + seeded.below(GOOD)) as u64;
    }
    let mut bytes = request(flags, kind, offset, len);
    if kind == WRITE && len <= 70_000 {
        bytes.resize(bytes.len() + len as usize, 0x25);
    }
    bytes
}

/// Random bytes, and random changes to what is well-formed, in the handshake and after it.
fn nonsense(at: &At, seed: u64) {
    let mut seeded = Seeded(seed);
    let words = |seeded: &mut Seeded| {
        let len = 1 + seeded.below(300);
        noise(seeded.next(), len)
    };
    for round in 0..60 {
        let mut hostile = Hostile::connect(at);
        if round % 3 > 0 {
            hostile.put(&hello(round % 3 == 2));
        }
        for _ in 0..seeded.below(20) {
            let bytes = match seeded.below(4) {
                0 => words(&mut seeded),
                _ => some_request(&mut seeded),
            };
            if !hostile.put(&bytes) {
                break;
            }
        }
        match seeded.below(3) {
            0 => drop(hostile),
            _ => hostile.drain(),
        }
    }
}

/// Options without end, with lengths that lie, with counts that lie; what was never negotiated; a client that speaks the
/// server's part.
fn confusion(at: &At) {
    let count = |n: u32| [&[0; 4][..], &n.to_be_bytes()].concat();
    let floods = [
        option(99, 0, &[]),
        option(3, 0, &[]),
        option(10, 8, &count(u32::MAX)),
        option(9, 8, &count(0)),
        option(6, 6, &[0, 0, 0, 0, 0xff, 0xff]),
        // Extended headers, and the password option of nobody.
        option(11, 0, &[]),
        option(u32::MAX, 65_536, &vec![7; 65_536]),
        // The length alone.
        option(7, u32::MAX, &[]),
        option(1, 5000, &[b'x'; 5000]),
    ];
    for flood in floods {
        let mut hostile = Hostile::connect(at);
        hostile.put(&3u32.to_be_bytes());
        for _ in 0..1000 {
            if !hostile.put(&flood) {
                break;
            }
        }
        hostile.drain();
    }
    let extended = [&0x21e4_1c71u32.to_be_bytes()[..], &[0; 28]].concat();
    let simple_reply = [&0x6744_6698u32.to_be_bytes()[..], &[0; 24]].concat();
    let chunk = [&0x668e_33efu32.to_be_bytes()[..], &[0; 24]].concat();
    for bytes in [extended, simple_reply, chunk, vec![0x25; 28]] {
        let mut hostile = Hostile::greeted(at, true);
        hostile.put(&request(4, READ, 0, 4096));
        hostile.put(&bytes);
        hostile.drain();
    }
}

/// Requests by the thousand, and never a look at a reply; then they are read after all, or not.
fn never_reads(at: &At, read_at_last: bool) {
    for one in [
        request(0, READ, 0, 1 << 20),
        request(0, READ, 0, 32 << 20),
        request(0, FLUSH, 0, 0),
        request(0, STATUS, 0, u32::try_from(SIZE).unwrap()),
        request(0, STATUS, 1 << 40, 1),
        request(0, 77, 0, 0),
        request(1, TRIM, SIZE as u64, 1),
    ] {
        let mut hostile = Hostile::greeted(at, true);
        // Those who read in the end get all that they asked for: that is a few large replies, or many small ones.
        let large = one[6..8] == READ.to_be_bytes();
        let times = if large && read_at_last { 20 } else { 5000 };
        hostile.put(&one.repeat(times));
        if read_at_last {
            hostile.drain();
        }
    }
}

/// What a client can begin and leave: here it stays, one byte of it at a time.
struct Loris(Vec<Hostile>);

impl Loris {
    /// All that begins something large, on as many connections as there are places but for a few.
    fn settle(at: &At, count: usize) -> Self {
        let begin = |n: usize| {
            let mut hostile = Hostile::greeted(at, n.is_multiple_of(2));
            let write = request(0, WRITE, GOOD as u64, 32 << 20);
            let sends = match n % 4 {
                0 => write[..27].to_vec(),
                1 => write,
                _ => [&write[..], &noise(1, 200_000)].concat(),
            };
            hostile.put(&sends);
            hostile
        };
        Self((0..count).map(begin).collect())
    }

    /// As much as the server takes of each, up to so many bytes.
    fn push(&mut self, bytes: usize) {
        let part = noise(2, MIB / 4);
        for hostile in &mut self.0 {
            (0..bytes / part.len()).all(|_| hostile.put(&part));
        }
    }

    fn byte(&mut self) {
        for hostile in &mut self.0 {
            hostile.put(b"x");
        }
    }
}

/// Reads and writes of every kind in the first half, with an oracle, until it is told to end.
fn good_client(at: &At, image: &[u8], end: &AtomicBool, rounds: &AtomicU64) {
    let mut oracle = image[..GOOD].to_vec();
    let mut seeded = Seeded(77);
    let mut client = at.connect().unwrap();
    let mut reads = Vec::new();
    while !end.load(Ordering::Relaxed) {
        step(&mut client, &mut oracle, &mut seeded, &mut reads);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    let mut all = vec![0; GOOD];
    for (part, at) in all.chunks_mut(MIB).zip((0..).step_by(MIB)) {
        client.read(at, part).unwrap();
    }
    assert_same(&all, &oracle, "the good client's half");
}

/// One request, that must be right.
pub(crate) fn step(
    client: &mut Client,
    oracle: &mut [u8],
    seeded: &mut Seeded,
    read: &mut Vec<u8>,
) {
    let longest = [512, 4096, 100_000][seeded.below(3)];
    let len = 1 + seeded.below(longest);
    let at = seeded.below(oracle.len() - len);
    let (offset, here) = (at as u64, at..at + len);
    match seeded.below(6) {
        0 | 1 => {
            let data = noise(seeded.next(), len);
            client.write(offset, &data).unwrap();
            oracle[here].copy_from_slice(&data);
        }
        2 => {
            client.write_zeroes(offset, len as u64).unwrap();
            oracle[here].fill(0);
        }
        3 if len < 512 => client.flush().unwrap(),
        _ => {
            read.resize(len, 0);
            client.read(offset, read).unwrap();
            assert_same(read, &oracle[here], "what the good client reads");
        }
    }
}

/// Of the process, in bytes.
fn status(at: &At, field: &str) -> usize {
    let path = format!("/proc/{}/status", at.pid);
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let word = line.unwrap().split_whitespace().next().unwrap();
    word.parse::<usize>().unwrap()
}

pub(crate) fn memory_peak(at: &At) -> usize {
    status(at, "VmHWM:") << 10
}

fn files(at: &At) -> usize {
    let path = format!("/proc/{}/fd", at.pid);
    std::fs::read_dir(path).unwrap().count()
}

/// Says that it is the end, also of a test that fails: the good client would go on for ever.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The good client goes on while this lasts, and has gone on at the end of it.
fn beside_a_good_client(at: &At, image: &[u8], attack: impl FnOnce(&dyn Fn())) {
    let (end, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let goes_on = || {
        let before = rounds.load(Ordering::Relaxed);
        until("the good client to go on", || {
            (rounds.load(Ordering::Relaxed) > before + 20).then_some(())
        });
    };
    std::thread::scope(|scope| {
        let good = scope.spawn(|| good_client(at, image, &end, &rounds));
        let ended = End(&end);
        goes_on();
        let files_before = files(at);
        let threads_before = status(at, "Threads:");
        attack(&goes_on);
        goes_on();
        // All that came with the hostile ones goes with them. A pool may have grown by its two threads.
        until("files and threads to come back", || {
            let back = files(at) <= files_before;
            (back && status(at, "Threads:") <= threads_before + 2).then_some(())
        });
        drop(ended);
        good.join().unwrap();
    });
    let peak = memory_peak(at);
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak / MIB);
}

/// What a server says that is attacked beside a good client.
fn attacked(attack: impl FnOnce(&At, &dyn Fn())) -> String {
    let rig = Rig::new();
    let image = noise(1, SIZE);
    rig.import("base", &image);
    let served = rig.serve("base --session s");
    let at = At::of(&served);
    beside_a_good_client(&at, &image, |goes_on| attack(&at, goes_on));
    served.end()
}

#[test]
fn nonsense_of_every_kind() {
    let said = attacked(|at, goes_on| {
        for seed in 0..4 {
            nonsense(at, seed);
            goes_on();
        }
        confusion(at);
        goes_on();
        // Nothing of the sort is large: it is far from the bound.
        assert!(memory_peak(at) < 256 * MIB);
        never_reads(at, false);
        goes_on();
        never_reads(at, true);
    });
    assert!(!said.contains("panic"), "{said}");
    assert!(
        said.lines().count() < 200,
        "a log is not a client's: {said}"
    );
}

#[test]
fn as_many_as_there_are_places_and_more() {
    attacked(|at, goes_on| {
        // Two thirds of the places hold the largest requests there are, half sent.
        let mut loris = Loris::settle(at, CONNECTIONS_MAX * 2 / 3);
        loris.push(30 * MIB);
        goes_on();
        loris.byte();
        // The rest is taken by those who only connect, and more of them than there are places.
        let silent: Vec<_> = (0..2 * CONNECTIONS_MAX)
            .map(|_| UnixStream::connect(&at.socket).unwrap())
            .collect();
        goes_on();
        // A large request of somebody else has its turn, also while some stay who never let go of theirs.
        drop(silent);
        loris.0.truncate(12);
        let mut large = until("a place", || at.connect());
        let mut bytes = vec![0; 32 * MIB];
        large.write(GOOD as u64, &noise(9, 32 * MIB)).unwrap();
        large.read(GOOD as u64, &mut bytes).unwrap();
        assert_same(&bytes, &noise(9, 32 * MIB), "a large request");
        loris.byte();
        goes_on();
    });
}
