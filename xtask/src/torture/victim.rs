//! [`Victim`]: a store, a session, its server and its client, and whoever torments them: round after
//! round of faults that overlap (`victim/inflict.rs`), and after each round all must be well again.
//!
//! A round: calm; faults, as [`super::fault::round`] says, perhaps while a snapshot is taken; all of them
//! end; the server is there again; the client compares all ([`Victim::recover`]). A server whose disk
//! failed may refuse writes, but must say so; it is ended then, the disk mended, and served again.
//! Now and then what is well is looked at from cold: ended, unmounted, checked, mounted, compared.

mod inflict;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::{Ask, Settled, Shared, Trouble};
use super::fault::{self, Event, Fault, Under};
use super::place::{Kind, Place};
use super::plans::{By, Plan};
use super::snapshots::Snapshots;
use super::tally::Tally;
use crate::rig::Rig;
use crate::rig::random::Random;
use crate::rig::server::Server;
use crate::rig::watch::Watch;

/// For anything that is asked of a client or a command; longer, and it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(150);
/// After all faults, until all is well.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);
const DEVICE: &str = "32M";

/// See the module.
pub(super) struct Victim<'a> {
    pub(super) plan: &'a Plan,
    pub(super) rig: &'a Rig,
    pub(super) shared: Arc<Shared>,
    pub(super) random: Random,
    asks: Sender<Ask>,
    tally: &'a Mutex<Tally>,
    base: PathBuf,
    store: Place,
    session: Option<Place>,
    server: Option<Server>,
    snapshots: Snapshots,
    watch: Watch,
    /// Faults of this round: when they began, in operations and errors of the client.
    begun: Vec<(Fault, u64, u64)>,
    /// Those of them that go on.
    active: Vec<Fault>,
    /// A disk failed since it was mounted.
    failed: Vec<Under>,
}

impl<'a> Victim<'a> {
    /// A store with one template, `base`, which the caller has made; nothing is served yet.
    pub(super) fn new(
        plan: &'a Plan,
        rig: &'a Rig,
        shared: Arc<Shared>,
        random: Random,
        asks: Sender<Ask>,
        tally: &'a Mutex<Tally>,
    ) -> Result<Self> {
        let base = rig.path(plan.name);
        let store = Place::make(base.join("a"), plan.store)?;
        let session = plan.session.map(|kind| Place::make(base.join("b"), kind));
        let victim = Self {
            plan,
            rig,
            shared,
            random,
            asks,
            tally,
            store,
            session: session.transpose()?,
            server: None,
            snapshots: Snapshots::default(),
            watch: Watch::default(),
            begun: Vec::new(),
            active: Vec::new(),
            failed: Vec::new(),
            base,
        };
        std::fs::write(victim.clock(), "+0")?;
        let template = rig.path("template.raw");
        let mut import = victim.command(["import", "--format", "raw", "--quiet"]);
        crate::run::output(import.arg(template).arg("base"))?;
        Ok(victim)
    }

    fn clock(&self) -> PathBuf {
        self.base.join("clock")
    }

    pub(super) fn store_dir(&self) -> PathBuf {
        self.store.path("store")
    }

    pub(super) fn session_dir(&self) -> PathBuf {
        self.place(Under::Session).path("s")
    }

    fn place(&self, under: Under) -> &Place {
        match (under, &self.session) {
            (Under::Session, Some(place)) => place,
            _ => &self.store,
        }
    }

    /// Does the session lie on it? A store beside the session is on the same disk.
    fn is_the_sessions(&self, under: Under) -> bool {
        under == Under::Session || self.session.is_none()
    }

    /// The two, or the one.
    fn places(&self) -> impl Iterator<Item = &Place> {
        [&self.store].into_iter().chain(&self.session)
    }

    /// Cowslip on this victim's store, with a clock that can be set.
    pub(super) fn command<'s>(&self, args: impl IntoIterator<Item = &'s str>) -> Command {
        let mut command = self.rig.command(args);
        command.env("COWSLIP_STORE", self.store_dir());
        command.env("COWSLIP_RUN_DIR", self.run_dir());
        if let Some(library) = super::clock_library() {
            command.env("LD_PRELOAD", library);
            command.env("FAKETIME_TIMESTAMP_FILE", self.clock());
            command.env("FAKETIME_NO_CACHE", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    pub(super) fn json(&self, line: &str) -> Result<Value> {
        let mut command = self.command(line.split(' '));
        let text = crate::run::output(command.arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("what `cowslip {line} --json` printed"))
    }

    pub(super) fn tell(&self, line: impl std::fmt::Display) {
        self.shared.tell(line);
    }

    pub(super) fn tally(&self) -> std::sync::MutexGuard<'a, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the session, for the first time or again.
    pub(super) fn serve(&mut self) -> Result<()> {
        let session = self.session_dir();
        // Before there is anybody to connect to: whoever reaches the new server can know that it is a new one.
        let is_first = self.shared.generation.fetch_add(1, Ordering::SeqCst) == 0;
        let how = match self.plan.by {
            By::Requests | By::Fio => "serve",
            By::Files => {
                self.let_go()?;
                "attach"
            }
        };
        let mut command = self.command([how, "--frame-cache", "32M", "--session"]);
        command.arg(&session);
        if is_first {
            command.args(["base", "--size", DEVICE]);
        }
        let socket = session.join("nbd.sock");
        let server = Server::start(command, socket.clone())?;
        let mut words = server.ready.split([' ', ',', ';', '(']);
        let device = words.find(|word| word.starts_with("/dev/loop"));
        let device = device.map(PathBuf::from);
        let address = match self.plan.by {
            By::Requests | By::Fio => socket,
            By::Files => device.context("a device")?,
        };
        *self
            .shared
            .address
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = address;
        let mut said = self
            .shared
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *said = server.hears();
        drop(said);
        self.shared.pid.store(server.pid(), Ordering::SeqCst);
        self.server = Some(server);
        self.watch.begin_again();
        self.tally().servers += 1;
        self.tell("served");
        Ok(())
    }

    /// Whatever is mounted of a server that has gone.
    fn let_go(&self) -> Result<()> {
        let guest = self.guest().join("guest");
        // Nothing, most of the time.
        drop(super::place::tool("umount")?.arg("-l").arg(guest).output());
        let mut detach = self.command(["detach", "--stale", "--quiet"]);
        crate::run::output(&mut detach).map(drop)
    }

    /// Where its servers have the places of their block devices.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.base.join("run")
    }

    /// Where its client mounts, if it does.
    pub(super) fn guest(&self) -> PathBuf {
        self.base.join("guest")
    }

    /// Ends the server: by a signal that it may answer in its own way, or by kill -9.
    fn stop(&mut self, kill: bool) -> Result<()> {
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        self.shared.may.be_gone.store(true, Ordering::SeqCst);
        self.tell(match kill {
            true => "kill -9",
            false => "SIGTERM",
        });
        if !kill && self.plan.by == By::Files {
            // What is in use is not let go of.
            let guest = self.guest().join("guest");
            drop(super::place::tool("umount")?.arg("-l").arg(guest).output());
        }
        match kill {
            true => server.kill()?,
            false => drop(server.end_somehow()?),
        }
        self.shared.pid.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(server) = &self.server {
            let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw);
            kill_process(pid.context("a server has a pid")?, signal)?;
        }
        Ok(())
    }

    fn ask(&self, ask: Ask) -> Result<()> {
        let sent = self.asks.send(ask);
        sent.map_err(|_| anyhow::anyhow!("{}: the client has ended", self.plan.name))
    }

    /// Lets the client compare all.
    fn settle(&self, hold: bool) -> Result<Result<Settled, Trouble>> {
        let (reply, answer) = channel();
        self.ask(Ask::Settle { hold, reply })?;
        match answer.recv_timeout(HANGS_AFTER) {
            Ok(Err(Trouble::Finding(why))) => bail!("{}: {why}", self.plan.name),
            Ok(settled) => Ok(settled),
            Err(RecvTimeoutError::Timeout) => bail!(
                "{}: the client hangs: it compares for {HANGS_AFTER:?}",
                self.plan.name
            ),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{}: the client has ended", self.plan.name)
            }
        }
    }

    pub(super) fn go(&self) -> Result<()> {
        self.ask(Ask::Go)
    }

    /// Does its client know what each unit of the device holds?
    fn takes_snapshots(&self) -> bool {
        self.plan.by == By::Requests
    }

    /// One round: see the module.
    pub(super) fn round(&mut self) -> Result<()> {
        std::thread::sleep(Duration::from_millis(100 + self.random.below(500) as u64));
        let snapshot = self.takes_snapshots() && self.random.once_in(2);
        if snapshot {
            // All that was flushed, and nothing else.
            let settled = self.recover(Instant::now(), true)?;
            self.take_snapshot(settled.versions)?;
        }
        let is_possible = |(fault, _): &&(Fault, usize)| match fault {
            // It holds still.
            Fault::Client(_) => !snapshot,
            _ => true,
        };
        let faults: Vec<_> = self
            .plan
            .faults
            .iter()
            .filter(is_possible)
            .copied()
            .collect();
        let events = fault::round(&mut self.random, &faults);
        let zero = Instant::now();
        for (at, event) in events {
            let at = zero + Duration::from_millis(at as u64);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            match event {
                Event::Begin(fault) => self.begin(fault)?,
                Event::End(fault) => self.end(fault)?,
            }
        }
        let over = Instant::now();
        if snapshot {
            self.be_served()?;
            self.await_snapshot()?;
            self.go()?;
        }
        self.recover(over, false)?;
        self.tally().rounds += 1;
        let often = if self.failed.is_empty() { 4 } else { 2 };
        if self.random.once_in(often) {
            self.look_from_cold()?;
        }
        let is_time = self.random.once_in(6) || self.snapshots.are_many();
        if self.takes_snapshots() && is_time {
            self.check_snapshots(2)?;
        }
        Ok(())
    }

    fn take_snapshot(&mut self, versions: Vec<u32>) -> Result<()> {
        let mut command = self.command(["snapshot", "--timeout", "5s"]);
        let name = self.snapshots.next();
        command.arg(self.session_dir()).arg(&name);
        self.tell(format_args!("snapshot {name}"));
        let out = self.base.join("snapshot.err");
        self.snapshots.take(name, versions, command, out)
    }

    fn await_snapshot(&mut self) -> Result<()> {
        let excuse = !self.begun.is_empty();
        let failures = self
            .begun
            .iter()
            .filter(|(fault, _, _)| fault.is_a_failure());
        let failed = failures.count() > 0 || !self.failed.is_empty();
        let line = self.snapshots.answered(excuse, failed, HANGS_AFTER)?;
        self.tell(line);
        Ok(())
    }

    fn check_snapshots(&mut self, keep: usize) -> Result<()> {
        if self.places().any(Place::is_broken) {
            // Nobody noticed: the store's, which is read-only since.
            self.look_from_cold()?;
        }
        // They are taken out, as they ask this victim.
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let checked = snapshots.check(self, keep);
        self.snapshots = snapshots;
        checked
    }

    fn serve_if_gone(&mut self) -> Result<()> {
        match self.server {
            None => self.serve(),
            Some(_) => Ok(()),
        }
    }

    /// All faults are over: a server, on disks that are mended where they must be.
    fn be_served(&mut self) -> Result<()> {
        if let Some(server) = &mut self.server {
            return server.check();
        }
        if self.places().any(Place::is_broken) {
            self.remount()?;
        }
        self.serve().context("serving again, all faults are over")
    }

    fn remount(&mut self) -> Result<()> {
        self.tell("the disk is mended");
        self.places().try_for_each(Place::remount)?;
        self.failed.clear();
        Ok(())
    }

    /// Ends the server and serves again, perhaps on a disk that was mounted again.
    fn serve_anew(&mut self, remount: bool) -> Result<()> {
        let kill = self.random.once_in(2);
        self.stop(kill)?;
        if remount || self.places().any(Place::is_broken) {
            self.remount()?;
        }
        self.serve().context("serving again")
    }

    /// Why the server says that it refuses writes.
    fn refuses_writes(&self) -> Result<Option<String>> {
        let sessions = self.json("sessions")?;
        let why = &sessions[0]["live"]["refuses_writes"];
        Ok(why.as_str().map(str::to_owned))
    }

    /// All faults are over, since then: waits until all is well, and counts.
    fn recover(&mut self, since: Instant, hold: bool) -> Result<Settled> {
        let give_up = Instant::now() + RECOVERS_WITHIN;
        let settled = loop {
            self.be_served()?;
            let trouble = match self.settle(hold)? {
                Ok(settled) => break settled,
                Err(trouble) => trouble,
            };
            if Instant::now() > give_up {
                let (name, server) = (self.plan.name, self.shared.server());
                bail!(
                    "{name}: not well {RECOVERS_WITHIN:?} after all faults: {trouble:?}; {server}"
                );
            }
            if matches!(trouble, Trouble::Failed(_)) && !self.failed.is_empty() {
                let said = self.refuses_writes()?;
                let broken = self.places().any(Place::is_broken);
                self.tell(format_args!(
                    "refuses writes: {said:?}, disk broken: {broken}"
                ));
                if said.is_some() || broken {
                    let remount = self.random.once_in(2);
                    self.serve_anew(remount)?;
                    continue;
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        self.server.as_mut().context("it is served")?.check()?;
        let took = settled.well_at.saturating_duration_since(since);
        let (operations, errors) = (
            self.shared.operations.load(Ordering::Relaxed),
            self.shared.errors.load(Ordering::Relaxed),
        );
        for (fault, before, told) in std::mem::take(&mut self.begun) {
            let kind = match fault {
                Fault::Full(under) => self.place(under).kind.name(),
                _ => "",
            };
            let name = fault.name(kind);
            self.tally()
                .over(&name, operations - before, errors - told, took);
        }
        // A file system below may notice later what failed, until it is mounted again.
        let may_fail = !self.failed.is_empty();
        let may_forget = self.failed.iter().any(|under| self.is_the_sessions(*under));
        self.shared.may.nothing_but(may_fail, may_forget);
        if !self.places().any(Place::is_broken) {
            self.look_for_leaks()?;
        }
        Ok(settled)
    }

    fn look_for_leaks(&mut self) -> Result<()> {
        // A frozen cache has files of its own.
        let path = self.session_dir().join("session.json");
        let text = std::fs::read_to_string(path)?;
        let manifest: Value = serde_json::from_str(text.lines().next().unwrap_or(""))?;
        let caches = manifest["caches"].as_array().map_or(0, Vec::len);
        let is_calm = caches == 1 && self.active.is_empty();
        match &self.server {
            Some(server) if is_calm => self.watch.sample(server.pid()),
            _ => Ok(()),
        }
    }

    /// What is well is on the disk.
    fn look_from_cold(&mut self) -> Result<()> {
        if self.places().all(|place| place.kind != Kind::Disk) {
            return Ok(());
        }
        drop(self.recover(Instant::now(), true)?);
        self.tell("from cold");
        self.shared.may.be_gone.store(true, Ordering::SeqCst);
        self.stop(self.random.clone().once_in(2))?;
        self.remount()?;
        self.serve().context("serving from cold")?;
        self.go()?;
        self.recover(Instant::now(), false)?;
        self.tally().cold += 1;
        Ok(())
    }

    /// The end: all is compared, all is removed, nothing is left.
    pub(super) fn finish(mut self) -> Result<()> {
        self.tell("the end");
        self.recover(Instant::now(), false)?;
        if self.takes_snapshots() {
            self.check_snapshots(0)?;
        }
        self.recover(Instant::now(), true)?;
        let (reply, answer) = channel();
        self.go()?;
        self.ask(Ask::End(reply))?;
        answer
            .recv_timeout(HANGS_AFTER)
            .context("the client's end")??;
        self.server.take().context("it is served")?.end()?;
        let sessions = self.json("sessions")?;
        let id = sessions[0]["id"].as_str().context("the session's id")?;
        crate::run::output(&mut self.command(["sessions", "--forget", id]))?;
        std::fs::remove_dir_all(self.session_dir())?;
        crate::run::output(&mut self.command(["rm", "base"]))?;
        crate::run::output(&mut self.command(["gc"]))?;
        let left = crate::rig::watch::left_in_store(&self.store_dir())?;
        if !left.is_empty() {
            bail!("{}: left over: {}", self.plan.name, left.join("\n  "));
        }
        let base = self.base.clone();
        let Self { store, session, .. } = self;
        store.end().context("the store's place")?;
        session
            .map_or(Ok(()), Place::end)
            .context("the session's")?;
        std::fs::remove_dir_all(&base).with_context(|| base.display().to_string())
    }
}
