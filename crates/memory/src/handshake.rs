//! [`receive`]: how a guest's memory is handed over: what Firecracker sends to the socket of a snapshot's `mem_backend` of type `Uffd`
//! (its document "handling page faults on snapshot resume"), once, on a stream socket:
//!
//! ```text
//! [{"base_host_virt_addr": 140247643152384, "size": 268435456, "offset": 0, "page_size": 4096, "page_size_kib": 4096}, ...]
//! + one file descriptor in the same message, by SCM_RIGHTS (unix(7)): the userfaultfd
//! ```
//!
//! | field | rule |
//! |---|---|
//! | `base_host_virt_addr`, `size`, `offset` | bytes; see `regions.rs` |
//! | `page_size` | bytes: 4096 or 2097152; the same in all regions. Firecracker before 1.10 does not send it |
//! | `page_size_kib` | the same, in bytes all the same (its name is wrong, says Firecracker), or in KiB: 4 and 2048 cannot be taken for bytes. Before 1.7 it is not sent either: 4096 |
//! | others | left out: later versions may send more |
//!
//! Everything is hostile until it is checked: a message that does not end, that is too long, that says more after its end, that has no
//! descriptor, two, or one that is not a userfaultfd. The one who sends it is only itself harmed by addresses that are not its own: they
//! mean something in its process alone.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cowslip_block::BlockSize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;

use crate::limits::HANDSHAKE_BYTES_MAX;
use crate::regions::{Region, Regions, RegionsError};

/// Pages of 2 MiB, as hugetlbfs has them.
const HUGE_BYTES: u32 = 2 << 20;
/// What the link of such a descriptor in /proc says.
const USERFAULTFD: &str = "anon_inode:[userfaultfd]";

/// What was handed over.
#[derive(Debug)]
pub struct Handshake {
    /// The userfaultfd.
    pub uffd: OwnedFd,
    /// Where the memory is.
    pub regions: Regions,
}

/// Why a handshake is refused.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket's own.
    #[error("receiving the handshake")]
    Io(#[from] io::Error),
    /// It did not come to an end in time.
    #[error("the handshake was not whole after {0:?}: {1} bytes of it came")]
    TooLate(Duration, usize),
    /// The other side closed in the middle.
    #[error("the handshake ended after {0} bytes, in the middle")]
    Cut(usize),
    /// Longer than any.
    #[error("the handshake is longer than {HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
    /// Not what Firecracker sends.
    #[error("the handshake is not a list of regions: {0}")]
    NotRegions(String),
    /// None, or more than one.
    #[error("{0} file descriptors came with the handshake, where one is the userfaultfd")]
    Descriptors(usize),
    /// Something else.
    #[error("the file descriptor that came with the handshake is {0}, not a userfaultfd")]
    NotUserfaultfd(String),
    /// Neither 4 KiB nor 2 MiB, or not the same everywhere.
    #[error("the regions have pages of {0}, where all have 4096 bytes, or all have {HUGE_BYTES}")]
    PageSize(String),
    /// See there.
    #[error(transparent)]
    Regions(#[from] RegionsError),
}

#[derive(Deserialize)]
struct UncheckedRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

impl UncheckedRegion {
    fn region(&self) -> Region {
        Region {
            address: self.base_host_virt_addr,
            size_bytes: self.size,
            offset: self.offset,
        }
    }

    fn page_bytes(&self) -> u64 {
        match (self.page_size, self.page_size_kib) {
            (Some(bytes), _) => bytes,
            (None, Some(kib @ (4 | 2048))) => kib << 10,
            (None, Some(bytes)) => bytes,
            (None, None) => 4096,
        }
    }
}

/// Receives a handshake, and checks all of it. `image_bytes` is the size of the memory to be restored.
///
/// # Errors
/// [`HandshakeError`]; the descriptors that came are closed then.
pub fn receive(
    stream: &UnixStream,
    image_bytes: u64,
    within: Duration,
) -> Result<Handshake, HandshakeError> {
    let (text, mut descriptors) = receive_text(stream, within)?;
    let regions = parse(&text)?;
    let regions = check(&regions, image_bytes)?;
    let uffd = match (descriptors.pop(), descriptors.len()) {
        (Some(uffd), 0) => uffd,
        (None, _) => return Err(HandshakeError::Descriptors(0)),
        (Some(_), others) => return Err(HandshakeError::Descriptors(1 + others)),
    };
    let link = format!("/proc/self/fd/{}", uffd.as_raw_fd());
    let link = std::fs::read_link(link)?;
    match link.to_str() == Some(USERFAULTFD) {
        true => Ok(Handshake { uffd, regions }),
        false => Err(HandshakeError::NotUserfaultfd(link.display().to_string())),
    }
}

/// As many bytes as one value in JSON has, and all descriptors that came with them.
fn receive_text(
    stream: &UnixStream,
    within: Duration,
) -> Result<(Vec<u8>, Vec<OwnedFd>), HandshakeError> {
    let give_up = Instant::now() + within;
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    let mut part = vec![0; HANDSHAKE_BYTES_MAX + 1];
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        if !is_readable(stream, left)? {
            return Err(HandshakeError::TooLate(within, text.len()));
        }
        // Two fit, so that a second one is noticed; the kernel closes what does not fit.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut part)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(stream, &mut parts, &mut ancillary, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            other => other.map_err(io::Error::from)?.bytes,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received == 0 {
            return Err(HandshakeError::Cut(text.len()));
        }
        text.extend_from_slice(&part[..received]);
        if descriptors.len() > 1 {
            return Err(HandshakeError::Descriptors(descriptors.len()));
        }
        if text.len() > HANDSHAKE_BYTES_MAX {
            return Err(HandshakeError::TooLong);
        }
        if is_whole(&text) {
            return Ok((text, descriptors));
        }
    }
}

fn is_readable(stream: &UnixStream, within: Duration) -> io::Result<bool> {
    let within = Timespec::try_from(within).map_err(io::Error::other)?;
    let fd = stream.as_fd();
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&within)) {
        Err(rustix::io::Errno::INTR) => Ok(true),
        other => Ok(other? > 0),
    }
}

/// Does it say all that it will? What is wrong for good counts as whole: nothing that follows mends it.
fn is_whole(text: &[u8]) -> bool {
    let parsed = serde_json::from_slice::<Vec<UncheckedRegion>>(text);
    !parsed.is_err_and(|error| error.is_eof())
}

fn parse(text: &[u8]) -> Result<Vec<UncheckedRegion>, HandshakeError> {
    serde_json::from_slice(text).map_err(|error| HandshakeError::NotRegions(error.to_string()))
}

fn check(regions: &[UncheckedRegion], image_bytes: u64) -> Result<Regions, HandshakeError> {
    let sizes: Vec<_> = regions.iter().map(UncheckedRegion::page_bytes).collect();
    let first = sizes.first().copied().unwrap_or(4096);
    let page = match u32::try_from(first) {
        Ok(bytes @ (4096 | HUGE_BYTES)) if sizes.iter().all(|size| *size == first) => {
            BlockSize::new(bytes)
        }
        _ => None,
    };
    let page = page.ok_or_else(|| HandshakeError::PageSize(format!("{sizes:?} bytes")))?;
    let regions: Vec<_> = regions.iter().map(UncheckedRegion::region).collect();
    Ok(Regions::new(&regions, page, image_bytes)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use proptest::prelude::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn checked(text: &str, image_bytes: u64) -> Result<Regions, HandshakeError> {
        check(&parse(text.as_bytes())?, image_bytes)
    }

    fn one(page: &str) -> String {
        format!(r#"[{{"base_host_virt_addr": 4194304, "size": 4194304, "offset": 0{page}}}]"#)
    }

    #[test]
    fn page_sizes_as_the_versions_send_them() {
        for (said, bytes) in [
            ("", 4096),
            (r#", "page_size_kib": 4"#, 4096),
            (r#", "page_size_kib": 4096"#, 4096),
            (r#", "page_size_kib": 2048"#, HUGE_BYTES),
            (r#", "page_size_kib": 2097152"#, HUGE_BYTES),
            (
                r#", "page_size": 2097152, "page_size_kib": 2097152"#,
                HUGE_BYTES,
            ),
            (
                r#", "page_size": 4096, "page_size_kib": 4096, "later": [{}]"#,
                4096,
            ),
        ] {
            let regions = checked(&one(said), 4 << 20).unwrap();
            assert_eq!(regions.page_size().bytes(), bytes, "{said}");
        }
        for said in ["0", "1", "4", "8192", "1073741824", "18446744073709551615"] {
            let refused = checked(&one(&format!(r#", "page_size": {said}"#)), 4 << 20);
            assert!(
                matches!(refused, Err(HandshakeError::PageSize(_))),
                "{said}"
            );
        }
        let mixed = r#"[{"base_host_virt_addr": 0, "size": 2097152, "offset": 0, "page_size": 4096},
            {"base_host_virt_addr": 2097152, "size": 2097152, "offset": 2097152, "page_size": 2097152}]"#;
        assert!(matches!(
            checked(mixed, 4 << 20),
            Err(HandshakeError::PageSize(_))
        ));
    }

    #[test]
    fn garbage() {
        for text in [
            "",
            "[",
            "{}",
            "null",
            "[1]",
            "[{}]",
            "[]x",
            "\u{0}",
            r#"[{"size": -1}]"#,
        ] {
            let refused = checked(text, 0);
            assert!(
                matches!(refused, Err(HandshakeError::NotRegions(_))),
                "{text:?}"
            );
        }
        assert!(matches!(
            checked("[]", 0),
            Err(HandshakeError::Regions(RegionsError::Count(0)))
        ));
    }

    /// Sends parts, the first with these descriptors; what is received.
    fn sent(parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> Result<Handshake, HandshakeError> {
        let (sender, receiver) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let received = scope.spawn(|| receive(&receiver, 4 << 20, LONG));
            for (i, part) in parts.iter().enumerate() {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if i == 0 && !descriptors.is_empty() {
                    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
                }
                let slices = [io::IoSlice::new(part)];
                // Who has refused already is gone.
                let _ = sendmsg(&sender, &slices, &mut ancillary, SendFlags::NOSIGNAL);
            }
            sender.shutdown(std::net::Shutdown::Write).unwrap();
            received.join().unwrap()
        })
    }

    #[test]
    fn messages_in_parts_and_descriptors() {
        let text = one("");
        let (head, tail) = text.as_bytes().split_at(20);
        let file = tempfile::tempfile().unwrap();
        let file = file.as_fd();
        let said = |parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]| {
            sent(parts, descriptors).unwrap_err().to_string()
        };
        assert!(said(&[], &[]).contains("ended after 0 bytes"));
        assert!(said(&[head], &[file]).contains("ended after 20 bytes"));
        assert!(said(&[head, tail], &[]).contains("0 file descriptors"));
        assert!(said(&[head, tail], &[file]).contains("not a userfaultfd"));
        assert!(said(&[head, tail], &[file, file]).contains("2 file descriptors"));
        assert!(said(&[head, tail], &[file; 4]).contains("file descriptors"));
        assert!(said(&[b"[", &vec![b' '; HANDSHAKE_BYTES_MAX]], &[file]).contains("longer than"));
        assert!(said(&[b"[nonsense"], &[file]).contains("not a list of regions"));
        let (_sender, receiver) = UnixStream::pair().unwrap();
        let late = receive(&receiver, 0, Duration::from_millis(1)).unwrap_err();
        assert!(matches!(late, HandshakeError::TooLate(_, 0)), "{late}");
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_panics(text in prop::collection::vec(any::<u8>(), 0..200), numbers in any::<[u64; 4]>(), image in any::<u64>()) {
            let [a, b, c, d] = numbers;
            drop(checked(&String::from_utf8_lossy(&text), image));
            drop(checked(&format!(r#"[{{"base_host_virt_addr":{a},"size":{b},"offset":{c},"page_size":4096}},
                {{"base_host_virt_addr":{b},"size":{d},"offset":{a}}}]"#), image));
        }
    }
}
