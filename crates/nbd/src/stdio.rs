//! A client on two pipes instead of a socket: pumped through a socket pair, so that a connection
//! knows sockets only.
//!
//! ```text
//! input  --(requests thread)-->  [pump's end | connection's end]  --(replies thread)-->  output
//! ```
//!
//! The end of the input is handed on as the end of the stream; replies still go out after it. When
//! the connection ends, so do both threads: the first sees its end hung up, the second has handed on
//! the last reply. Neither sets the inherited files to non-blocking, which others may share.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use crate::limits::RECEIVE_BYTES;

/// Is this a connected stream socket, which needs no pump?
pub(crate) fn is_socket(file: &impl AsFd) -> bool {
    socket_type(file).is_ok_and(|kind| kind == SocketType::STREAM)
}

/// The pump's second half, to be run.
pub(crate) struct Pump(Arc<UnixStream>);

/// Starts to pump `input` into the socket that is returned.
pub(crate) fn pump(input: OwnedFd) -> io::Result<(OwnedFd, Pump)> {
    let (ours, theirs) = UnixStream::pair()?;
    let ours = Arc::new(ours);
    let requests = Arc::clone(&ours);
    // It ends with the connection, or never touches anything again: nobody joins it.
    thread::Builder::new()
        .name("nbd-stdin".into())
        .spawn(move || {
            let _ = pump_requests(&File::from(input), &requests);
            let _ = requests.shutdown(Shutdown::Write);
        })?;
    Ok((theirs.into(), Pump(ours)))
}

fn pump_requests(mut input: &File, mut socket: &UnixStream) -> io::Result<()> {
    let mut buf = vec![0; RECEIVE_BYTES];
    loop {
        let mut fds = [
            PollFd::new(&input, PollFlags::IN),
            PollFd::new(&socket, PollFlags::empty()),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        match input.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(len) => socket.write_all(&buf[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Pump {
    /// Hands on replies until the connection has ended and the last of them is out.
    pub(crate) fn replies(self, output: OwnedFd) {
        if pump_replies(&self.0, &File::from(output)).is_err() {
            // Nobody reads: the connection is to see that too.
            let _ = self.0.shutdown(Shutdown::Both);
        }
    }
}

/// Not `io::copy`: that splices, and a splice that waits for the socket holds the lock of the pipe
/// that it writes to, so that the client cannot even take what is in there already.
fn pump_replies(mut socket: &UnixStream, mut output: &File) -> io::Result<()> {
    let mut buf = vec![0; RECEIVE_BYTES];
    loop {
        match socket.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(len) => output.write_all(&buf[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
