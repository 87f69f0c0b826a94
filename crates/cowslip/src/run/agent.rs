//! [`Agent`]: the first process in the guest, at the other end of a virtio port (`cowslip_guest::frame`).
//!
//! One thread hears it: what the command writes goes out at once, what it is asked comes back to who asked, all else is an [`Event`].

use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cowslip_guest::frame;

use super::life::Event;
use crate::failure::Failure;

/// A guest that has much to write back takes a while to be still.
const STILL_WITHIN: Duration = Duration::from_secs(60);
const INPUT_BYTES: usize = 64 << 10;
/// One that is waited for, and some that came too late.
const ANSWERS_MAX: usize = 16;

/// See the module.
pub(crate) struct Agent {
    stream: UnixStream,
    /// A frame goes out whole.
    sending: Mutex<()>,
    asking: Mutex<Asking>,
}

struct Asking {
    number: u32,
    answers: Receiver<Answer>,
}

struct Answer {
    kind: u8,
    number: u32,
    why_not: String,
}

impl Agent {
    /// Hears it from now on. `out_is_taken`: what a command writes to its standard output goes to standard error.
    pub(crate) fn start(
        stream: UnixStream,
        out_is_taken: bool,
        tell: Sender<Event>,
    ) -> io::Result<(Self, Receiver<()>)> {
        // What nobody asked for is dropped, so that a guest that says it for ever fills nothing.
        let (answer, answers) = sync_channel(ANSWERS_MAX);
        let (taken, is_taken) = sync_channel(1);
        let mut from = stream.try_clone()?;
        thread::spawn(move || {
            while let Ok((kind, payload)) = frame::receive(&mut from) {
                let text = || String::from_utf8_lossy(&payload).into_owned();
                let event = match kind {
                    frame::OUT if !out_is_taken => {
                        pass_on(io::stdout(), &payload);
                        continue;
                    }
                    frame::OUT | frame::ERR => {
                        pass_on(io::stderr(), &payload);
                        continue;
                    }
                    frame::TAKEN => {
                        let _ = taken.try_send(());
                        continue;
                    }
                    frame::FROZEN | frame::THAWED => {
                        if let Some((number, why)) = payload.split_first_chunk() {
                            let _ = answer.try_send(Answer {
                                kind,
                                number: u32::from_le_bytes(*number),
                                why_not: String::from_utf8_lossy(why).into_owned(),
                            });
                        }
                        continue;
                    }
                    frame::HELLO => Event::Hello,
                    frame::READY => Event::Ready,
                    frame::FAILED => Event::Failed(text()),
                    frame::ENDED => Event::Ended(text()),
                    frame::EXIT => match text().parse() {
                        Ok(status) => Event::Exited(status),
                        Err(_) => Event::Failed("it said no number at a command's end".into()),
                    },
                    // A guest is not to be trusted with more than that.
                    other => Event::Failed(format!("it said something of kind {other}")),
                };
                let _ = tell.send(event);
            }
        });
        let asking = Mutex::new(Asking { number: 0, answers });
        let agent = Self {
            stream,
            sending: Mutex::new(()),
            asking,
        };
        Ok((agent, is_taken))
    }

    fn send(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        frame::send(&mut &self.stream, kind, payload)
    }

    /// Starts a command; its end is an event.
    pub(crate) fn command(&self, words: &[OsString]) -> io::Result<()> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.send(frame::COMMAND, &words.join(&0))
    }

    /// Starts a shell on the console, whose terminal is like that; its end is an event.
    pub(crate) fn console(&self, terminal: &str) -> io::Result<()> {
        self.send(frame::CONSOLE, terminal.as_bytes())
    }

    /// Hands our standard input to the command, until either has no more to say.
    pub(crate) fn hand_in(&self, is_taken: &Receiver<()>) {
        let mut part = vec![0; INPUT_BYTES];
        loop {
            let length = match io::stdin().read(&mut part) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
                Ok(length) => length,
            };
            let is_sent = self.send(frame::INPUT, &part[..length]).is_ok();
            // The next one when this one is read: nobody holds more than that.
            if length == 0 || !is_sent || is_taken.recv().is_err() {
                return;
            }
        }
    }

    /// Has it end all that runs, write all back, and turn the guest off.
    pub(crate) fn end(&self) -> io::Result<()> {
        self.send(frame::END, &[])
    }

    /// Freezes its file system; the number for [`Self::thaw`].
    pub(crate) fn freeze(&self) -> Result<u32, Failure> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.number += 1;
        let number = asking.number;
        self.ask(&asking, frame::FREEZE, frame::FROZEN, number)
            .map(|()| number)
            .map_err(|why| Failure::failed(format!("freezing the guest's file system: {why}")))
    }

    /// Lets it go on. Fails where it was not frozen until now.
    pub(crate) fn thaw(&self, number: u32) -> Result<(), Failure> {
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.ask(&asking, frame::THAW, frame::THAWED, number)
            .map_err(|why| Failure::failed(format!("thawing the guest's file system: {why}")))
    }

    fn ask(&self, asking: &Asking, kind: u8, answer: u8, number: u32) -> Result<(), String> {
        let give_up = Instant::now() + STILL_WITHIN;
        // Room for the answer.
        while asking.answers.try_recv().is_ok() {}
        self.send(kind, &number.to_le_bytes())
            .map_err(|e| e.to_string())?;
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            let said = asking.answers.recv_timeout(left);
            let said = said.map_err(|_| "the guest does not answer".to_owned())?;
            // One that came too late is somebody else's.
            if (said.kind, said.number) == (answer, number) {
                return if said.why_not.is_empty() {
                    Ok(())
                } else {
                    Err(said.why_not)
                };
            }
        }
    }
}

/// A reader that has seen enough does not hold up the command.
fn pass_on(mut to: impl Write, bytes: &[u8]) {
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}
