//! [`Control`]: a guest, told what to do.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::guest::{self, Shape};

/// One that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(120);

/// A guest, and the line to it. It ends with this.
#[derive(Debug)]
pub struct Control {
    child: Child,
    orders: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Control {
    /// A guest that comes to `memory.sock` there.
    pub fn start(dir: &Path, shape: Shape) -> Self {
        let (orders, theirs) = UnixStream::pair().unwrap();
        orders.set_read_timeout(Some(SILENCE)).unwrap();
        Self {
            child: guest::start(dir, shape, theirs),
            answers: BufReader::new(orders.try_clone().unwrap()),
            orders,
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A thread of the guest begins something.
    pub fn begin(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
    }

    /// The next answer of any thread.
    pub fn answer(&mut self) -> String {
        self.answered().unwrap()
    }

    /// One thread does something, while no other has anything to answer: what it says.
    ///
    /// # Errors
    /// Of a guest that is gone, or that says nothing.
    pub fn ask(&mut self, order: &str) -> io::Result<String> {
        writeln!(self.orders, "asked {order}")?;
        let answer = self.answered()?;
        let answer = answer.strip_prefix("asked ");
        answer
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other("it answers somebody else"))
    }

    fn answered(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err(io::Error::other("the guest is gone")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
