//! What is done to a victim when a fault begins, and when it ends; and what its clients may be told from then on.

use std::sync::atomic::Ordering;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use super::super::client::Ask;
use super::super::fault::Fault;
use super::super::plans::By;
use super::Victim;

impl Victim<'_> {
    pub(super) fn begin(&mut self, fault: Fault) -> Result<()> {
        let kind = |under| self.place(under).kind.name();
        let name = match fault {
            Fault::Full(under) => fault.name(kind(under)),
            _ => fault.name(""),
        };
        self.tell(format_args!("begins: {name}"));
        self.tally().begin(&name);
        let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
        let (operations, errors) = (count(&self.shared.operations), count(&self.shared.errors));
        self.begun.push((fault, operations, errors));
        self.active.push(fault);
        let may = &self.shared.may;
        if self.plan.by == By::Files {
            // Its kernel has one word for all of it.
            may.fail.store(true, Ordering::SeqCst);
        }
        let set = |may: &std::sync::atomic::AtomicBool| may.store(true, Ordering::SeqCst);
        match fault {
            Fault::Kill => self.stop(true)?,
            Fault::Stop => self.signal(Signal::STOP)?,
            Fault::Full(under) => {
                set(&may.be_full);
                self.place(under).fill()?;
            }
            Fault::FailWrites(under) | Fault::FailReads(under) => {
                set(&may.fail);
                self.snapshots.disk_fails();
                // Also where it cannot be read: a write that needs to look where it goes fails then.
                if self.is_the_sessions(under) {
                    set(&may.forget);
                }
                let place = self.place(under);
                if let Fault::FailReads(_) = fault {
                    place.fail("fail-reads", true)?;
                    place.forget_cached();
                } else {
                    place.fail("fail-writes", true)?;
                }
                self.failed.push(under);
            }
            Fault::Client(how) => {
                set(&may.be_gone);
                let pid = self.shared.client_pid.load(Ordering::SeqCst);
                match i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    // It may have ended just now.
                    Some(pid) => drop(kill_process(pid, Signal::KILL)),
                    None => self.ask(Ask::Break(how))?,
                }
            }
            Fault::ClockForward => {
                let days = self.random.below(4000) + 1;
                std::fs::write(self.clock(), format!("+{days}d"))?;
            }
            Fault::ClockBack => {
                let days = self.random.below(9000) + 1;
                std::fs::write(self.clock(), format!("-{days}d"))?;
            }
        }
        Ok(())
    }

    pub(super) fn end(&mut self, fault: Fault) -> Result<()> {
        self.tell(format_args!("ends: {}", fault.name("place")));
        self.active.retain(|other| *other != fault);
        match fault {
            Fault::Kill => {
                if let Err(error) = self.serve_if_gone() {
                    // Nobody can be served from a disk that is full or failing; later, then.
                    let hopeless = |f: &Fault| {
                        matches!(
                            f,
                            Fault::Full(_) | Fault::FailWrites(_) | Fault::FailReads(_)
                        )
                    };
                    let text = format!("{error:#}");
                    let excused = self.active.iter().any(hopeless) || !self.failed.is_empty();
                    if !excused || text.contains("panicked") || text.contains("timed out") {
                        return Err(error.context("serving again"));
                    }
                    self.tell(format_args!("not served again: {text}"));
                }
            }
            Fault::Stop => self.signal(Signal::CONT)?,
            Fault::Full(under) => self.place(under).free(),
            Fault::FailWrites(under) => self.place(under).fail("fail-writes", false)?,
            Fault::FailReads(under) => self.place(under).fail("fail-reads", false)?,
            Fault::Client(_) => {}
            Fault::ClockForward | Fault::ClockBack => std::fs::write(self.clock(), "+0")?,
        }
        Ok(())
    }
}
