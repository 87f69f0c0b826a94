//! [`send`] and [`Incoming`]: a file that a client has opened, on its way to the server beside the line that speaks of it.
//!
//! The server opens nothing that a client names: it would do so with its own rights, and later. A descriptor comes with the first
//! byte of a line (`SCM_RIGHTS`, unix(7)); the kernel closes those that nobody has room for.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::failure::Failure;

/// Sends bytes, and the file with the first of them.
pub(super) fn send(mut stream: &UnixStream, bytes: &[u8], file: Option<&File>) -> io::Result<()> {
    let Some(file) = file else {
        return stream.write_all(bytes);
    };
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // There is room for one.
    let _ = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg(stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(&bytes[sent..])
}

/// What a client says, and the last descriptor that came with it.
pub(super) struct Incoming<'a> {
    stream: &'a UnixStream,
    descriptor: Option<OwnedFd>,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            descriptor: None,
        }
    }

    /// The file that came. What has no size, or would have to be waited for, is refused.
    pub(super) fn file(&mut self) -> Result<File, Failure> {
        let file = self.descriptor.take().map(File::from);
        let file = file.ok_or_else(|| Failure::usage("a bad request: no file came with it"))?;
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            Ok(_) => Err(Failure::usage("what came with the request is no file")),
            Err(error) => Err(Failure::failed(format!("looking at the file: {error}"))),
        }
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.stream, &mut parts, &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptor = rights.last().or(self.descriptor.take());
            }
        }
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// What came beside a line.
    fn passed(file: Option<&File>) -> Result<File, Failure> {
        let (client, server) = UnixStream::pair().unwrap();
        send(&client, b"a line\n", file).unwrap();
        let mut reader = BufReader::new(Incoming::new(&server));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "a line\n");
        reader.get_mut().file()
    }

    #[test]
    fn a_file_comes_whatever_became_of_its_name() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"state").unwrap();
        let came = passed(Some(&file)).unwrap();
        let mut bytes = [0; 5];
        std::os::unix::fs::FileExt::read_exact_at(&came, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"state");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let none = passed(None).unwrap_err();
        assert!(none.message.contains("no file came"), "{}", none.message);
        let (pipe, _writer) = io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(pipe));
        let refused = passed(Some(&pipe)).unwrap_err();
        assert!(
            refused.message.contains("is no file"),
            "{}",
            refused.message
        );
    }
}
