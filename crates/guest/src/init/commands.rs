//! Commands of the host: each runs as root, with the streams that the host has at the other end of the port.
//!
//! The main thread receives, so that a freeze and the end are heard while a command runs; each command has a thread of its own, and one for
//! each of its streams.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::frame;
use crate::frozen::Frozen;
use crate::port::Port;
use crate::sys::{self, SIGKILL, SIGTERM};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is told to end has so long for it, and so long once it is killed.
const END_WITHIN: Duration = Duration::from_secs(3);

/// Until the host has gone, or says that it is the end.
pub(crate) fn serve(port: &'static Port, home: &'static str) -> io::Result<()> {
    let frozen = Frozen::default();
    let mut input: Option<Sender<Vec<u8>>> = None;
    while let Some((kind, payload)) = port.receive()? {
        match kind {
            frame::COMMAND => {
                let (say, hear) = channel();
                input = Some(say);
                // Where the host cannot be told how it ended, it has gone; which is seen here.
                thread::spawn(move || run(&payload, hear, port, home));
            }
            frame::CONSOLE => {
                thread::spawn(move || shell(&payload, port, home));
            }
            frame::INPUT if payload.is_empty() => input = None,
            frame::INPUT => {
                let is_taken = input.as_ref().is_some_and(|i| i.send(payload).is_ok());
                if !is_taken {
                    // A command that has ended reads no more.
                    port.send(frame::TAKEN, &[])?;
                }
            }
            frame::FREEZE | frame::THAW => hold(kind, &payload, &frozen, port)?,
            frame::END => {
                frozen.let_go();
                let why = why_not(end());
                return port.send(frame::ENDED, why.as_bytes());
            }
            _ => return Err(io::Error::other(format!("a frame of kind {kind}"))),
        }
    }
    Ok(())
}

fn hold(kind: u8, payload: &[u8], frozen: &Frozen, port: &Port) -> io::Result<()> {
    let number = <[u8; 4]>::try_from(payload).map_err(io::Error::other)?;
    let as_number = u32::from_le_bytes(number);
    let (answer, done) = match kind {
        frame::FREEZE => (frame::FROZEN, frozen.freeze(as_number)),
        _ => (frame::THAWED, frozen.thaw(as_number)),
    };
    port.send(answer, &[&number, why_not(done).as_bytes()].concat())
}

fn why_not(done: io::Result<()>) -> String {
    done.err()
        .map_or_else(String::new, |error| error.to_string())
}

/// Everything that runs ends, and all that was written is on the disk.
fn end() -> io::Result<()> {
    for signal in [SIGTERM, SIGKILL] {
        sys::signal_all(signal);
        let give_up = Instant::now() + END_WITHIN;
        while sys::has_children() && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(10));
        }
    }
    sys::sync_all();
    sys::make_read_only("/")
}

/// Runs a command to its end, and to that of its streams: whoever it leaves behind has others.
fn run(words: &[u8], input: Receiver<Vec<u8>>, port: &'static Port, home: &str) -> io::Result<()> {
    let words: Vec<_> = words
        .split(|byte| *byte == 0)
        .map(OsStr::from_bytes)
        .collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env_clear()
        .envs([("PATH", PATH), ("HOME", home), ("LC_ALL", "C.UTF-8")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let status = match command.spawn() {
        Ok(child) => wait(child, input, port)?,
        Err(error) => {
            let why = format!("{}: {error}\n", words[0].display());
            port.send(frame::ERR, why.as_bytes())?;
            // As a shell says it: there is none, or it cannot be run.
            let code = if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            };
            code << 8
        }
    };
    port.send(frame::EXIT, status.to_string().as_bytes())
}

/// A shell on the console, for a person; the payload says what that has before it.
fn shell(terminal: &[u8], port: &Port, home: &str) -> io::Result<()> {
    let terminal = String::from_utf8_lossy(terminal);
    let mut words = terminal.split(' ');
    let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let (rows, columns) = (number(), number());
    let active = std::fs::read_to_string("/sys/class/tty/console/active")?;
    let name = active.split_whitespace().last().unwrap_or("ttyS0");
    let console = File::options()
        .read(true)
        .write(true)
        .open(format!("/dev/{name}"))?;
    sys::set_window(&console, rows, columns)?;
    let mut shells = ["/bin/bash", "/bin/sh"].into_iter();
    let shell = shells
        .find(|path| Path::new(path).exists())
        .unwrap_or("/bin/sh");
    let mut command = Command::new(shell);
    command
        .env_clear()
        .envs([("PATH", PATH), ("HOME", home), ("LC_ALL", "C.UTF-8")])
        .env("TERM", words.next().unwrap_or("linux"))
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console);
    let status = match sys::spawn_in_session(&mut command) {
        Ok(child) => {
            port.send(frame::TAKEN, &[])?;
            until_end(&child)?
        }
        Err(error) => return port.send(frame::FAILED, format!("{shell}: {error}").as_bytes()),
    };
    port.send(frame::EXIT, status.to_string().as_bytes())
}

/// Reaps all that ends, until this one does.
fn until_end(child: &Child) -> io::Result<i32> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    loop {
        let (ended, status) = sys::wait_for_any()?;
        if ended == pid {
            return Ok(status);
        }
    }
}

fn wait(mut child: Child, input: Receiver<Vec<u8>>, port: &'static Port) -> io::Result<i32> {
    let (into, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(into) = into {
        // It is waited for by nobody: the host may never say that there is no more.
        thread::spawn(move || hand_in(&input, into, port));
    }
    thread::scope(|scope| {
        let out = scope.spawn(|| out.map_or(Ok(()), |out| pass_on(out, frame::OUT, port)));
        let err = scope.spawn(|| err.map_or(Ok(()), |err| pass_on(err, frame::ERR, port)));
        let status = until_end(&child)?;
        for stream in [out, err] {
            stream.join().map_err(|_| io::Error::other("a stream"))??;
        }
        Ok(status)
    })
}

/// Until the host says that there is no more, or the command wants no more.
fn hand_in(input: &Receiver<Vec<u8>>, mut into: ChildStdin, port: &Port) {
    let mut is_read = true;
    while is_read && let Ok(part) = input.recv() {
        is_read = into.write_all(&part).is_ok();
        if port.send(frame::TAKEN, &[]).is_err() {
            return;
        }
    }
}

fn pass_on(mut from: impl Read, kind: u8, port: &Port) -> io::Result<()> {
    let mut part = vec![0; 64 << 10];
    loop {
        match from.read(&mut part)? {
            0 => return Ok(()),
            length => port.send(kind, &part[..length])?,
        }
    }
}
