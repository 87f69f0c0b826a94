//! Names: what each may hold ([`Name`]), and those that were asked for and are not certain yet
//! ([`Asked`]).
//!
//! A snapshot that was asked for is *certain* when its command says so. One whose command, or whose
//! server, was killed is *lost*: it may still come, or may never have been heard of. It is looked for
//! until its request can no longer be on its way (the server that it was sent to is gone, or has accepted
//! a later connection and has no thread left that serves a request) and the session says that it seals nothing of this name. Then it is
//! there, or never will be; where it was to replace another, the name holds either. But what a session
//! lists when it is served again was frozen, and so is *promised*: that comes.

use std::rc::Rc;

use anyhow::{Context, Result, bail};

use super::jobs::What;
use super::world::World;
use crate::rig::oracle::{Cut, Version};
use crate::rig::usage::threads_named;

pub(super) const NAMES_MAX: usize = 30;

/// What a name may hold: one of these.
#[derive(Clone, Debug)]
pub(super) struct Name(Vec<Rc<Cut>>);

impl Name {
    pub(super) fn certain(versions: Vec<Version>) -> Self {
        Self(vec![Cut::new(versions, Vec::new())])
    }

    pub(super) fn units(&self) -> usize {
        self.0[0].units()
    }

    /// What it holds, where that is known without a look.
    pub(super) fn exact(&self) -> Option<&[Version]> {
        match self.0.as_slice() {
            [one] => one.exact(),
            _ => None,
        }
    }

    /// What it turns out to hold; from now on, that.
    pub(super) fn judge(&mut self, image: &[u8]) -> Result<Vec<Version>, String> {
        let judged: Vec<_> = self.0.iter().map(|cut| cut.judge(image)).collect();
        let held = judged.iter().find_map(|judged| judged.as_ref().ok());
        if let Some(held) = held.cloned() {
            *self = Self::certain(held.clone());
            return Ok(held);
        }
        let why: Vec<String> = judged.into_iter().filter_map(Result::err).collect();
        Err(why.join("; and of what else it may hold: "))
    }
}

/// A snapshot that was asked for.
pub(super) struct Asked {
    pub(super) number: usize,
    pub(super) name: String,
    /// The session's number.
    pub(super) session: usize,
    pub(super) cut: Rc<Cut>,
    /// What it is to replace.
    pub(super) replaces: Option<Name>,
    /// Its server was ended meanwhile.
    pub(super) disturbed: bool,
    pub(super) promised: bool,
    /// Somebody was told that it will not come.
    pub(super) cancelled: bool,
    pub(super) lost: Option<Lost>,
}

/// Its command has ended without an answer.
pub(super) struct Lost {
    generation: u32,
    /// The server has answered somebody who came later.
    overtaken: bool,
}

impl World {
    /// Asks for a snapshot of a session, served or not.
    pub(super) fn ask(&mut self, at: usize) -> Result<bool> {
        let replace = self.random.once_in(4);
        let free = self.names.keys().filter(|name| !self.in_use(name)).cloned();
        let old = self.random.clone().pick(free.collect()).filter(|_| replace);
        if old.is_none() && self.names.len() + self.asked.len() >= NAMES_MAX {
            return Ok(false);
        }
        let number = self.next_number();
        let replaces = old.as_ref().and_then(|old| self.names.remove(old));
        let name = old.unwrap_or_else(|| format!("n{number}"));
        let quiet = self.random.once_in(3);
        let session = &mut self.sessions[at];
        if quiet {
            session.device.drain(&self.clock)?;
            session.held_for = Some(number);
        }
        let cut = session.device.open_cut();
        let mut command = self.rig.command(["snapshot"]);
        command.arg(&session.dir).args([&name, "--json"]);
        if replaces.is_some() {
            command.arg("--replace");
        }
        if self.random.once_in(8) {
            command.arg("--no-dedup");
        }
        let session = session.number;
        let how = if quiet {
            "quiet"
        } else {
            "while it is written"
        };
        self.note(
            "snapshot",
            format!("s{session} {name}, {how}, replaces: {}", replaces.is_some()),
        );
        self.asked.push(Asked {
            number,
            name,
            session,
            cut,
            replaces,
            disturbed: false,
            promised: false,
            cancelled: false,
            lost: None,
        });
        let kill = self.random.once_in(6);
        self.start(What::Snapshot { asked: number }, command, kill)?;
        Ok(true)
    }

    /// The command has ended.
    pub(super) fn answered(
        &mut self,
        number: usize,
        done: bool,
        killed: bool,
        said: &str,
    ) -> Result<()> {
        let at = self.asked.iter().position(|a| a.number == number);
        let at = at.context("an answer about no snapshot")?;
        let asked = &mut self.asked[at];
        let session = self.sessions.iter_mut().find(|s| s.number == asked.session);
        let generation = session.as_ref().map_or(0, |s| s.generation);
        if let Some(session) = session.filter(|s| s.held_for == Some(number)) {
            session.held_for = None;
        }
        if done {
            self.check_promise(at, true)?;
            self.settle(at, true);
            return Ok(());
        }
        if !killed && !asked.disturbed && !asked.cancelled {
            bail!(
                "snapshot {} of s{} failed: {said}",
                asked.name,
                asked.session
            );
        }
        asked.lost = Some(Lost {
            generation,
            overtaken: false,
        });
        let line = format!("snapshot {} is lost ({said})", asked.name);
        self.remember(&line);
        Ok(())
    }

    /// It is certain now whether it came.
    fn settle(&mut self, at: usize, came: bool) {
        let asked = self.asked.remove(at);
        if let Some(session) = self.session(asked.session) {
            session.device.close_cut(&asked.cut);
        }
        let name = match (came, asked.replaces) {
            (true, None) => Some(Name(vec![asked.cut])),
            (false, None) => None,
            // Its command said so; otherwise nobody can tell.
            (true, Some(_)) if asked.lost.is_none() || (asked.promised && !asked.cancelled) => {
                Some(Name(vec![asked.cut]))
            }
            (_, Some(old)) => Some(Name([vec![asked.cut], old.0].concat())),
        };
        self.remember(&format!("{}: settled, came: {came}", asked.name));
        self.names.extend(name.map(|name| (asked.name, name)));
    }

    /// Looks for what is lost; with a session's number, that session is gone for good.
    pub(super) fn resolve_lost(&mut self, gone: Option<usize>) -> Result<()> {
        for at in (0..self.asked.len()).rev() {
            let asked = &self.asked[at];
            let Some(lost) = &asked.lost else { continue };
            let there = || {
                self.rig
                    .store()
                    .join("snapshots")
                    .join(&asked.name)
                    .exists()
            };
            let session = self.sessions.iter().find(|s| s.number == asked.session);
            let Some(session) = session else {
                if gone == Some(asked.session) {
                    let there = there();
                    self.asked[at].promised = false;
                    self.settle(at, there);
                }
                continue;
            };
            if asked.replaces.is_none() && there() {
                self.check_promise(at, true)?;
                self.settle(at, true);
                continue;
            }
            let heard = match &session.server {
                Some(server) if session.generation == lost.generation => {
                    if !lost.overtaken {
                        // It asks every server.
                        self.rig.ok("sessions")?;
                        let lost = self.asked.iter_mut().filter_map(|a| a.lost.as_mut());
                        lost.for_each(|lost| lost.overtaken = true);
                        continue;
                    }
                    // One of them accepts.
                    threads_named(server.pid(), "control")? == 1
                }
                _ => true,
            };
            // In this order: it is committed before the session forgets it.
            if heard && !session.sealing()?.contains(&asked.name) {
                let there = there();
                self.check_promise(at, there)?;
                self.settle(at, there);
            }
        }
        Ok(())
    }

    /// What was promised is there, and what was cancelled is not.
    fn check_promise(&self, at: usize, there: bool) -> Result<()> {
        let Asked {
            name,
            session,
            promised,
            cancelled,
            replaces,
            ..
        } = &self.asked[at];
        if *promised && !*cancelled && !there {
            bail!("{name} was promised by s{session}, and is not there");
        }
        if *cancelled && replaces.is_none() && there {
            bail!("{name} was cancelled at s{session}, and is there");
        }
        Ok(())
    }

    /// Gives up a snapshot that is on its way, if it still is.
    pub(super) fn cancel_one(&mut self) -> Result<bool> {
        let on_their_way = self.asked.iter().filter(|asked| asked.lost.is_none());
        let Some(number) = self.random.pick(on_their_way.map(|a| a.number).collect()) else {
            return Ok(false);
        };
        let Some(asked) = self.asked.iter_mut().find(|a| a.number == number) else {
            return Ok(false);
        };
        let session = self.sessions.iter().find(|s| s.number == asked.session);
        let Some(session) = session.filter(|session| session.server.is_some()) else {
            return Ok(false);
        };
        let mut command = self.rig.command(["snapshot", "--cancel"]);
        let said = command.arg(&session.dir).arg(&asked.name).output()?;
        // It was stored already, or the server has not heard of it yet.
        asked.cancelled |= said.status.success();
        let line = format!("cancel {}: {}", asked.name, said.status);
        let what = if said.status.success() {
            "cancel"
        } else {
            "cancel (too late)"
        };
        self.note(what, line);
        Ok(true)
    }

    /// What a session that is about to be served lists is going to be sealed.
    pub(super) fn note_promises(&mut self, at: usize) -> Result<()> {
        let session = &self.sessions[at];
        let listed = session.sealing()?;
        let asked = self
            .asked
            .iter_mut()
            .filter(|a| a.session == session.number);
        for asked in asked.filter(|asked| listed.contains(&asked.name)) {
            asked.promised = true;
            *self.counts.entry("seal taken up").or_default() += 1;
        }
        Ok(())
    }

    /// Removes a name, whoever reads it.
    pub(super) fn remove_name(&mut self, name: &str) -> Result<()> {
        self.note("rm", name);
        self.rig.ok(&format!("rm {name}"))?;
        self.names.remove(name);
        let jobs = self
            .jobs
            .iter_mut()
            .filter(|job| job.what.names().contains(&name));
        jobs.for_each(|job| job.name_removed = true);
        Ok(())
    }

    pub(super) fn in_use(&self, name: &str) -> bool {
        self.jobs.iter().any(|job| job.what.names().contains(&name))
    }
}
