//! [`Guest`]: one that runs, from the boot to the end.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::accel::Choice;
use super::agent::Agent;
use super::console::Console;
use super::life::{Action, Event, Life, Outcome, Phase};
use super::monitor::Monitor;
use super::qemu::{Machine, Qemu};
use crate::failure::Failure;
use crate::report::complain;

/// An emulated processor that shares ours with many takes its time.
const BOOT_WITHIN: Duration = Duration::from_secs(600);
/// It has this long to end all that runs, and to write all back.
const END_WITHIN: Duration = Duration::from_secs(60);
/// A process that is killed and not gone by then hangs in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What is wanted of a guest.
pub(crate) struct Order {
    pub(crate) machine: Machine,
    pub(crate) choices: Vec<Choice>,
    /// Without one there is a shell on its console.
    pub(crate) command: Vec<OsString>,
    pub(crate) timeout: Option<Duration>,
    /// What the command writes to its standard output goes to standard error.
    pub(crate) out_is_taken: bool,
}

/// A guest that was started.
pub(crate) struct Booted {
    pub(crate) guest: Arc<Guest>,
    /// Who runs its instructions.
    pub(crate) accel: Choice,
    is_taken: Option<Receiver<()>>,
    /// What is typed is written there.
    line: Option<UnixStream>,
    tell: Sender<Event>,
    begun: Instant,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Lived {
    pub(crate) outcome: Outcome,
    /// It said that all is written back; or why it did not.
    pub(crate) end: Result<(), String>,
    /// Until it took commands.
    pub(crate) boot: Option<Duration>,
    pub(crate) all: Duration,
}

/// See the module. Whoever takes a snapshot of its disk holds it for that.
pub(crate) struct Guest {
    /// By one at a time: the first to let it go would let it go for all.
    holding: Mutex<()>,
    qemu: Qemu,
    agent: Agent,
    monitor: Mutex<Monitor>,
    is_ready: AtomicBool,
    is_over: AtomicBool,
}

/// A guest that is held: by one at a time.
pub(crate) struct Hold<'a> {
    guest: &'a Guest,
    pub(crate) held: Held,
    _alone: MutexGuard<'a, ()>,
}

/// How a guest is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Its file system is frozen: all is written back, and nothing is written.
    Frozen(u32),
    /// All of it is stopped: its disk is as after a power cut.
    Paused,
    /// It has ended.
    Over,
}

impl Held {
    /// For people and programs.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Frozen(_) => Some("frozen"),
            Self::Paused => Some("paused"),
            Self::Over => None,
        }
    }
}

/// Starts it in the first of the ways that works. `serve` is handed the connection to the disk.
pub(crate) fn boot(
    order: &Order,
    serve: &dyn Fn(OwnedFd) -> Result<(), Failure>,
    tell: &Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Booted, Failure> {
    let begun = Instant::now();
    let mut why_not = String::new();
    for choice in &order.choices {
        let (qemu, wires) = Qemu::start(&order.machine, choice.is_kvm, tell)?;
        serve(wires.disk.into())?;
        let (agent, is_taken) = Agent::start(wires.agent, order.out_is_taken, tell.clone())
            .map_err(|e| Failure::failed(format!("hearing the guest: {e}")))?;
        let monitor = Mutex::new(Monitor::new(wires.monitor));
        if let Some(within) = choice.first_word_within {
            match events.recv_timeout(within) {
                Ok(Event::Hello) => {}
                Ok(Event::Signal) => return Err(Failure::failed("interrupted")),
                heard => {
                    qemu.kill();
                    if heard != Ok(Event::Gone) {
                        is_gone(events)?;
                    }
                    why_not = match heard {
                        Err(_) => format!("no word from the guest for {} s", within.as_secs()),
                        _ => qemu.complaints(),
                    };
                    continue;
                }
            }
        }
        let guest = Guest {
            holding: Mutex::new(()),
            qemu,
            agent,
            monitor,
            is_ready: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        };
        let why = match why_not.is_empty() {
            true => choice.why.clone(),
            false => format!("{}: {why_not}", choice.why),
        };
        return Ok(Booted {
            guest: Arc::new(guest),
            accel: Choice {
                why,
                ..choice.clone()
            },
            is_taken: Some(is_taken),
            line: Some(wires.console),
            tell: tell.clone(),
            begun,
        });
    }
    Err(Failure::failed(format!(
        "no guest can be run here: {why_not}"
    )))
}

/// Waits until one that was killed says nothing more.
fn is_gone(events: &Receiver<Event>) -> Result<(), Failure> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        match next(events, Some(deadline)) {
            Event::Gone => return Ok(()),
            Event::Signal => return Err(Failure::failed("interrupted")),
            Event::Late => {
                let message = "QEMU hangs in KVM, and does not end when it is killed";
                return Err(Failure::failed(message).hint("--accel tcg"));
            }
            _ => {}
        }
    }
}

impl Booted {
    /// Waits for its end.
    pub(crate) fn live(&mut self, order: &Order, events: &Receiver<Event>) -> Lived {
        let mut life = Life::new();
        let mut boot = None;
        // The terminal is its, until then.
        let mut console = None;
        // What the phase is, since when.
        let mut since = (life.phase, self.begun);
        let limit = order.timeout.map(|timeout| self.begun + timeout);
        loop {
            let deadline = match since {
                (Phase::Booting, begun) => limit.or(Some(begun + BOOT_WITHIN)),
                (Phase::Working, _) => limit,
                (Phase::Ending, since) => Some(since + END_WITHIN),
                (Phase::Killed, since) => Some(since + GONE_WITHIN),
            };
            let event = next(events, deadline);
            match life.hear(event) {
                Action::Nothing => {}
                Action::Start => {
                    boot = Some(self.begun.elapsed());
                    console = self.start(&order.command);
                }
                Action::End => self.guest.end(),
                Action::Kill => self.guest.qemu.kill(),
                Action::Over => break,
            }
            if life.phase != since.0 {
                since = (life.phase, Instant::now());
            }
        }
        self.guest.is_over.store(true, Ordering::Release);
        drop(console);
        let unsaid = || Err("the guest did not say that all is written back".to_owned());
        Lived {
            outcome: life.outcome.unwrap_or(Outcome::Gone),
            end: life.end.unwrap_or_else(unsaid),
            boot,
            all: self.begun.elapsed(),
        }
    }

    fn start(&mut self, command: &[OsString]) -> Option<Console> {
        let guest = &self.guest;
        guest.is_ready.store(true, Ordering::Release);
        if command.is_empty() {
            let console = Console::take();
            let is_told = guest.agent.console(&console.describe()).is_ok();
            if let (true, Some(is_read), Some(line)) =
                (is_told, self.is_taken.take(), self.line.take())
            {
                console.hand_in(is_read, line, self.tell.clone());
            }
            return Some(console);
        }
        // Where it cannot be told it is gone, which is an event of its own.
        if guest.agent.command(command).is_ok()
            && let Some(is_taken) = self.is_taken.take()
        {
            let guest = Arc::clone(guest);
            thread::spawn(move || guest.agent.hand_in(&is_taken));
        }
        None
    }

    /// What QEMU said last, and the console, if that was not seen.
    pub(crate) fn last_words(&self, was_seen: bool) -> String {
        let console = match was_seen {
            true => String::new(),
            false => self.guest.qemu.console(),
        };
        let parts = [self.guest.qemu.complaints(), console];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("\n")
    }
}

fn next(events: &Receiver<Event>, deadline: Option<Instant>) -> Event {
    let Some(deadline) = deadline else {
        return events.recv().unwrap_or(Event::Gone);
    };
    match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(event) => event,
        Err(RecvTimeoutError::Timeout) => Event::Late,
        Err(RecvTimeoutError::Disconnected) => Event::Gone,
    }
}

impl Guest {
    fn end(&self) {
        // Where it cannot be told it is gone.
        let _ = self.agent.end();
    }

    fn tell(&self, command: &str) -> Result<(), Failure> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        monitor.tell(command)
    }

    /// Holds it, with its file system frozen where that can be had, once nobody else does.
    pub(crate) fn hold(&self) -> Result<Hold<'_>, Failure> {
        let alone = self.holding.lock();
        let _alone = alone.unwrap_or_else(PoisonError::into_inner);
        Ok(Hold {
            guest: self,
            held: self.how_held()?,
            _alone,
        })
    }

    fn how_held(&self) -> Result<Held, Failure> {
        if self.is_ready.load(Ordering::Acquire) && !self.is_over() {
            match self.agent.freeze() {
                Ok(number) => return Ok(Held::Frozen(number)),
                Err(_) if self.is_over() => return Ok(Held::Over),
                Err(failure) => complain(&format!("{}; it is paused instead", failure.message)),
            }
        }
        match self.tell("stop") {
            Ok(()) => Ok(Held::Paused),
            Err(_) if self.is_over() => Ok(Held::Over),
            Err(failure) => {
                // It may have stopped all the same, or do so yet.
                let _ = self.tell("cont");
                Err(failure)
            }
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

impl Hold<'_> {
    /// Lets it go on. Fails where it was not held until now.
    pub(crate) fn let_go(self) -> Result<(), Failure> {
        match self.held {
            Held::Frozen(number) => self.guest.agent.thaw(number),
            Held::Paused => self.guest.tell("cont"),
            Held::Over => Ok(()),
        }
    }
}
