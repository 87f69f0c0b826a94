//! [`Timed`]: whole reads and writes on a socket, all of them before one deadline.
//!
//! For handshakes, on both sides: few bytes, and a peer that may fall silent in any of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

pub(crate) struct Timed<'a> {
    socket: BorrowedFd<'a>,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    pub(crate) fn new(socket: &'a impl AsFd, within: Duration) -> Self {
        Self {
            socket: socket.as_fd(),
            deadline: Instant::now() + within,
        }
    }

    /// Fills `buf`; `UnexpectedEof` where the peer is gone, `TimedOut` where it is silent.
    pub(crate) fn read(&mut self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match recv(self.socket, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, len)) => buf = &mut buf[len..],
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(crate) fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// So many bytes; the caller has bounded them.
    pub(crate) fn read_vec(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(
                self.socket,
                bytes,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(len) => bytes = &bytes[len..],
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, events)], Some(&left)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_silent_peer_runs_into_the_deadline_and_a_gone_one_is_told_apart() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut timed = Timed::new(&here, Duration::from_millis(1));
        assert_eq!(
            timed.read(&mut [0; 1]).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let flood = vec![0; 64 << 20];
        assert_eq!(
            timed.write(&flood).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        drop(there);
        let (here, _) = UnixStream::pair().unwrap();
        let mut timed = Timed::new(&here, Duration::from_secs(9));
        assert_eq!(
            timed.read(&mut [0; 1]).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
