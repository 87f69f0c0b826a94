//! What a victim's client and whoever torments it say to each other. The client has a thread of its
//! own, and works until it is told otherwise.
//!
//! - [`Shared`]: where the server is, what it may answer just now, what was counted;
//! - [`Ask`]: what the client is told to do;
//! - [`Work`]: what kinds of clients do.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::fault::Break;
use super::history::Grade;
use crate::rig::oracle::Version;
use crate::rig::story::Story;

/// What is wrong with a client's work.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server refused: no room.
    NoRoom(String),
    /// The server refused: the disk below failed.
    Failed(String),
    /// The server, or the way to it, has gone.
    Gone(String),
    /// What must not be, whatever was done.
    Finding(String),
}

/// What answers need not be findings just now.
#[derive(Default)]
pub(super) struct May {
    pub(super) be_full: AtomicBool,
    pub(super) fail: AtomicBool,
    pub(super) be_gone: AtomicBool,
    /// The disk below the session failed: what was not flushed may be gone.
    pub(super) forget: AtomicBool,
}

impl May {
    pub(super) fn nothing_but(&self, fail: bool, forget: bool) {
        let all = [
            (&self.be_full, false),
            (&self.be_gone, false),
            (&self.fail, fail),
            (&self.forget, forget),
        ];
        for (may, is_so) in all {
            may.store(is_so, Ordering::SeqCst);
        }
    }

    pub(super) fn grade(&self) -> Grade {
        match self.forget.load(Ordering::SeqCst) {
            true => Grade::Cut,
            false => Grade::Killed,
        }
    }
}

/// See the module.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) story: Arc<Mutex<Story>>,
    /// The socket of the server, or its block device.
    pub(super) address: Mutex<PathBuf>,
    /// The server's process; 0 while there is none.
    pub(super) pid: AtomicU32,
    /// How many servers there were.
    pub(super) generation: AtomicU32,
    /// A process of the client, that can be killed; 0 for none.
    pub(super) client_pid: AtomicU32,
    pub(super) may: May,
    pub(super) operations: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) compared_bytes: AtomicU64,
    told: Mutex<Instant>,
    /// What the server says.
    pub(super) said: Mutex<Arc<Mutex<Vec<String>>>>,
    /// It has come to its end.
    pub(super) over: AtomicBool,
}

impl Shared {
    pub(super) fn new(name: &str, story: Arc<Mutex<Story>>) -> Self {
        Self {
            name: name.to_owned(),
            story,
            address: Mutex::default(),
            pid: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            client_pid: AtomicU32::new(0),
            may: May::default(),
            operations: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            compared_bytes: AtomicU64::new(0),
            told: Mutex::new(Instant::now()),
            said: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn tell(&self, line: impl std::fmt::Display) {
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        story.add(&format!("{:8} {line}", self.name));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Instant::now();
    }

    /// Since when nothing was told of this victim.
    pub(super) fn silent_for(&self) -> Duration {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.elapsed()
    }

    pub(super) fn address(&self) -> PathBuf {
        let address = self.address.lock();
        address.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn done(&self, operations: u64) {
        self.operations.fetch_add(operations, Ordering::Relaxed);
    }

    /// What there is of the server.
    pub(super) fn server(&self) -> String {
        let pid = self.pid.load(Ordering::SeqCst);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Its state, and how it ended, if it has.
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').next());
        let code = stat.rsplit(' ').next().map(str::trim);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("; ");
        format!("server {pid} is {state:?}, exit code {code:?}, and says: {said}")
    }

    /// Counts an error that a client was told.
    pub(super) fn told_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// May it be so now?
    fn judge(&self, trouble: &Trouble) -> Result<()> {
        let may = |may: &AtomicBool| may.load(Ordering::SeqCst);
        let (is_fine, why) = match trouble {
            Trouble::NoRoom(why) => (may(&self.may.be_full), why),
            Trouble::Failed(why) => (may(&self.may.fail), why),
            Trouble::Gone(why) => (may(&self.may.be_gone), why),
            Trouble::Finding(why) => (false, why),
        };
        match is_fine {
            true => Ok(()),
            false => Err(anyhow!("{}: {why}; {}", self.name, self.server())),
        }
    }
}

/// What a client found when all was compared.
pub(super) struct Settled {
    /// When the server did all that is asked of it again.
    pub(super) well_at: Instant,
    /// What each unit of the device holds, where somebody knows.
    pub(super) versions: Vec<Version>,
}

/// See the module.
pub(super) enum Ask {
    Break(Break),
    /// Compare all, and say so; with `hold`, do nothing after that before [`Ask::Go`].
    Settle {
        hold: bool,
        reply: Sender<Result<Settled, Trouble>>,
    },
    Go,
    /// Let go of everything.
    End(Sender<Result<()>>),
}

/// See the module.
pub(super) trait Work {
    /// Does a little.
    fn some(&mut self, shared: &Shared) -> Result<(), Trouble>;
    /// Leaves as it is told.
    fn leave(&mut self, how: Break, shared: &Shared) -> Result<(), Trouble>;
    /// Goes to the server that there is now, makes sure that it does all that is asked of it, and
    /// compares all.
    fn settle(&mut self, shared: &Shared) -> Result<Settled, Trouble>;
    /// Lets go of everything.
    fn end(&mut self, shared: &Shared) -> Result<()>;
}

/// After an error, before the next attempt.
const BACK_OFF: Duration = Duration::from_millis(20);

/// The client's thread.
pub(super) fn run(
    mut work: Box<dyn Work + Send>,
    shared: &Shared,
    asks: &Receiver<Ask>,
) -> Result<()> {
    let mut held = false;
    loop {
        let ask = match held {
            true => asks.recv().map_err(|_| TryRecvError::Disconnected),
            false => asks.try_recv(),
        };
        let did = match ask {
            Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => work.some(shared),
            Ok(Ask::Go) => {
                held = false;
                Ok(())
            }
            Ok(Ask::Break(how)) => work.leave(how, shared),
            Ok(Ask::Settle { hold, reply }) => {
                let settled = work.settle(shared);
                held = hold && settled.is_ok();
                if let Err(trouble) = &settled {
                    shared.tell(format_args!("not yet: {trouble:?}"));
                }
                drop(reply.send(settled));
                Ok(())
            }
            Ok(Ask::End(reply)) => {
                drop(reply.send(work.end(shared)));
                return Ok(());
            }
        };
        if let Err(trouble) = did {
            shared.judge(&trouble)?;
            std::thread::sleep(BACK_OFF);
        }
    }
}
