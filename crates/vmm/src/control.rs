//! [`Control`]: a guest, told what to do.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;

use crate::guest::{self, Shape};

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
        let path = dir.join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let child = guest::start(dir, shape);
        let (orders, _) = listener.accept().unwrap();
        std::fs::remove_file(path).unwrap();
        Self {
            child,
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
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
