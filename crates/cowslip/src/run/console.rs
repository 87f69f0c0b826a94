//! [`Console`]: the guest's serial line, with a person at it, or a script.
//!
//! What the guest says there goes out as it is (`qemu.rs`). The terminal, if standard input is one, is raw as long as this lives: each key goes to the
//! guest, Ctrl-C too; [`WAY_OUT`] turns it off.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use super::life::Event;
use crate::report::complain;

/// Ctrl-], as telnet(1) and virsh(1) have it.
const WAY_OUT: u8 = 0x1d;
/// Ctrl-D: the end of what a terminal reads.
const NO_MORE: u8 = 4;

/// See the module.
pub(crate) struct Console {
    /// What stty(1) needs to make the terminal what it was, if there is one.
    before: Option<String>,
}

impl Console {
    /// Takes the terminal, if standard input is one.
    pub(crate) fn take() -> Self {
        let before = io::stdin().is_terminal().then(|| {
            let before = stty(&["-g"]);
            before.and_then(|before| stty(&["raw", "-echo"]).map(|_| before))
        });
        let before = before.transpose().unwrap_or_else(|why| {
            complain(&format!("the terminal stays as it is: {why}"));
            None
        });
        Self { before }
    }

    /// `ROWS COLUMNS TERM`, for the guest.
    pub(crate) fn describe(&self) -> String {
        let size = self.before.as_ref().and_then(|_| stty(&["size"]).ok());
        let term = std::env::var("TERM").unwrap_or_default();
        let is_plain = !term.is_empty() && term.bytes().all(|b| b.is_ascii_graphic());
        let term = if is_plain { &term } else { "linux" };
        format!("{} {term}", size.as_deref().unwrap_or("0 0"))
    }

    /// Hands on what is typed, once somebody there reads it.
    pub(crate) fn hand_in(&self, is_read: Receiver<()>, mut line: UnixStream, tell: Sender<Event>) {
        let is_terminal = self.before.is_some();
        thread::spawn(move || {
            // Where nobody ever does the guest is at its end.
            let _ = is_read.recv();
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = io::stdin().read(&mut part) {
                let typed = &part[..length];
                if is_terminal && typed.contains(&WAY_OUT) {
                    let _ = tell.send(Event::Left);
                } else if line.write_all(typed).is_err() {
                    return;
                }
            }
            let _ = line.write_all(&[NO_MORE]);
        });
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody to tell.
            let _ = stty(&[before]);
        }
    }
}

fn stty(args: &[&str]) -> Result<String, String> {
    let failed = |why: &str| format!("stty: {}", why.trim());
    let mut command = Command::new("stty");
    let output = command.args(args).stdin(Stdio::inherit()).output();
    let output = output.map_err(|e| failed(&e.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(failed(&String::from_utf8_lossy(&output.stderr))),
    }
}
