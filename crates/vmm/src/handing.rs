//! How a monitor hands memory over: registered, its place and its userfaultfd sent, as Firecracker does.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cowslip_memory::sys::{UFFDIO_REGISTER_MODE_MISSING, Uffd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::sys::Memory;

/// Hands it to whoever listens there: in pages of so many bytes, by a userfaultfd with these features.
pub fn hand_over(memory: &Memory, page: usize, features: u32, to: &Path) -> (Uffd, UnixStream) {
    let uffd = Uffd::open(u64::from(features)).unwrap();
    let addresses = memory.addresses();
    uffd.register(addresses.clone(), UFFDIO_REGISTER_MODE_MISSING)
        .unwrap();
    let text = format!(
        r#"[{{"base_host_virt_addr":{},"size":{},"offset":0,"page_size":{page},"page_size_kib":{page}}}]"#,
        addresses.start,
        addresses.end - addresses.start,
    );
    let handed = UnixStream::connect(to).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [uffd.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(&handed, &text, &mut ancillary, SendFlags::empty()).unwrap();
    (uffd, handed)
}
