//! A client that keeps to the protocol, whatever it asks for: every request of its input is well-formed, with its payload,
//! so that none is lost behind another's nonsense; all are sent before a reply is read.
//!
//! Checked: each request has one answer and there are no others, in the shape that was negotiated; what is read is what
//! was written by those before it, in their order; after DISC the server hangs up.
//!
//! A request is 8 bytes of input: kind, flags, offset in units of 16 bytes and a little more (3 bytes), length (2), payload.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::input::Input;

/// So that no reply is held back: all of them together are less than a connection may be owed.
const REQUESTS_MAX: usize = 100;

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;

struct Request {
    kind: u16,
    flags: u16,
    offset: u64,
    len: u32,
    fill: u8,
}

impl Request {
    fn take(input: &mut Input<'_>) -> Self {
        let kinds = [READ, WRITE, 3, TRIM, 5, ZEROES, 7, 8];
        let kind = kinds[usize::from(input.byte()) % kinds.len()];
        let flags = u16::from(input.byte() & 0x1f);
        let offset = input.short() as u64 * 16 + u64::from(input.byte());
        let len = u32::try_from(input.short()).expect("a u16");
        let len = if kind == 3 && len < 0xff00 { 0 } else { len };
        let offset = if kind == 3 && len == 0 { 0 } else { offset };
        let fill = input.byte();
        Self {
            kind,
            flags,
            offset,
            len,
            fill,
        }
    }

    fn encode(&self, cookie: u64, out: &mut Vec<u8>) {
        out.extend(0x2560_9513u32.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        out.extend(self.len.to_be_bytes());
        if self.kind == WRITE {
            out.extend(vec![self.fill; self.len as usize]);
        }
    }
}

/// What came back for one request.
#[derive(Default)]
struct Answer {
    done: bool,
    failed: bool,
    data: Vec<u8>,
}

/// After the handshake of `hello`, on a device of zeros.
pub(crate) fn run(mut socket: UnixStream, hello: &[u8], input: &mut Input<'_>, size_bytes: usize) {
    let mut requests = Vec::new();
    let mut out = hello.to_vec();
    while !input.0.is_empty() && requests.len() < REQUESTS_MAX {
        let request = Request::take(input);
        request.encode(requests.len() as u64, &mut out);
        requests.push(request);
    }
    Request {
        kind: 2,
        flags: 0,
        offset: 0,
        len: 0,
        fill: 0,
    }
    .encode(u64::MAX, &mut out);
    let structured = hello.windows(12).any(|w| w == b"IHAVEOPT\0\0\0\x08");
    socket
        .write_all(&out)
        .expect("a server takes all that is well-formed");
    greeting(&mut socket);
    let answers = answers(&mut socket, &requests, structured);
    let mut disk = vec![0; size_bytes];
    for (cookie, request) in (0..).zip(&requests) {
        let answer = &answers[&cookie];
        assert!(answer.done, "request {cookie} has no answer");
        let start = usize::try_from(request.offset).expect("24 bits");
        let range = start..start + request.len as usize;
        let Some(here) = disk.get_mut(range).filter(|_| !answer.failed) else {
            let served = !answer.failed && matches!(request.kind, READ | WRITE | TRIM | ZEROES);
            assert!(!served, "there is nothing past the end");
            continue;
        };
        match request.kind {
            READ => assert!(
                here == answer.data,
                "request {cookie} reads what is not there"
            ),
            WRITE => here.fill(request.fill),
            TRIM | ZEROES => here.fill(0),
            _ => {}
        }
    }
}

fn take<const N: usize>(socket: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).expect("the server goes on");
    bytes
}

fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes"))
}

fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"))
}

/// Up to the acknowledgement of GO.
fn greeting(socket: &mut UnixStream) {
    take::<18>(socket);
    loop {
        let head = take::<20>(socket);
        let (option, kind, len) = (u32_of(&head[8..]), u32_of(&head[12..]), u32_of(&head[16..]));
        let mut data = vec![0; len as usize];
        socket.read_exact(&mut data).expect("the server goes on");
        assert!(kind < 1 << 31, "option {option} is refused");
        if (option, kind) == (7, 1) {
            return;
        }
    }
}

/// All replies, to the end of the stream.
fn answers(
    socket: &mut UnixStream,
    requests: &[Request],
    structured: bool,
) -> HashMap<u64, Answer> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("the server hangs up");
    let mut answers: HashMap<u64, Answer> = HashMap::new();
    let mut left = Input(&bytes);
    while !left.0.is_empty() {
        let is_chunk = u32_of(left.bytes(4)) == 0x668e_33ef;
        let head = left.bytes(if is_chunk { 16 } else { 12 });
        let (cookie, len) = match is_chunk {
            true => (u64_of(&head[4..]), u32_of(&head[12..])),
            false => (u64_of(&head[4..]), 0),
        };
        let request = usize::try_from(cookie).ok().and_then(|at| requests.get(at));
        let request = request.expect("a reply is to a request");
        let answer = answers.entry(cookie).or_default();
        assert!(!answer.done, "request {cookie} is answered twice");
        if !is_chunk {
            let error = u32_of(head);
            assert!(error == 0 || !structured, "an error without its chunk");
            (answer.done, answer.failed) = (true, error != 0);
            if request.kind == READ && error == 0 {
                assert!(!structured, "data without a chunk");
                answer.data = left.bytes(request.len as usize).to_vec();
            }
            continue;
        }
        assert!(structured, "a chunk that was not negotiated");
        let (flags, kind) = (u32_of(head) >> 16, u32_of(head) & 0xffff);
        let payload = left.bytes(len as usize);
        match kind {
            0 | 5 => {}
            1 => answer.data.extend(&payload[8..]),
            2 => answer
                .data
                .resize(answer.data.len() + u32_of(&payload[8..]) as usize, 0),
            0x8001 => answer.failed = true,
            other => panic!("a chunk of kind {other}"),
        }
        answer.done = flags & 1 == 1;
    }
    answers
}

/// Requests of every kind, over each other and over the end.
pub(crate) fn seed() -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, flags, place, len, fill) in [
        (1, 1, 0u16, 5000u16, 7u8),
        (0, 0, 0, 8192, 0),
        (5, 2, 10, 4096, 0),
        (3, 0, 256, 4096, 0),
        (1, 0, 255, 100, 0),
        (2, 0, 0, 0, 0),
        (0, 4, 200, 60_000, 0),
        (6, 8, 0, 65_535, 0),
        (6, 0, 0, 65_535, 0),
        (4, 0, 0, 1, 0),
        (7, 0, 0, 1, 0),
        (1, 0, u16::MAX, 200, 9),
        (0, 0, u16::MAX, 50, 0),
    ] {
        out.extend([kind, flags]);
        out.extend(place.to_le_bytes());
        out.push(3);
        out.extend(len.to_le_bytes());
        out.push(fill);
    }
    out
}
