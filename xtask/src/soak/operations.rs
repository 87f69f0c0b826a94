//! What is done next: an operation at random, on something at random.

use anyhow::{Context, Result, bail};

use super::jobs::{JOBS_MAX, What, blocks_that_differ};
use super::names::Name;
use super::world::{SESSIONS_MAX, World};
use crate::rig::server::{Server, socket_argument};

#[derive(Clone, Copy, Debug)]
enum Operation {
    Burst,
    Read,
    Snapshot,
    Cancel,
    Remove,
    Gc,
    Compact,
    Verify,
    Export,
    Diff,
    ServeName,
    ServeTemporary,
    CompareSession,
    CompareTemplate,
    Fork,
    EndServer,
    KillServer,
    Resume,
    DropSession,
    List,
    LookForLeaks,
}

/// How often each, where it is possible.
const WEIGHTS: &[(Operation, usize)] = &[
    (Operation::Burst, 400),
    (Operation::Read, 100),
    (Operation::Snapshot, 60),
    (Operation::Cancel, 4),
    (Operation::Remove, 30),
    (Operation::Gc, 12),
    (Operation::Compact, 12),
    (Operation::Verify, 8),
    (Operation::Export, 10),
    (Operation::Diff, 8),
    (Operation::ServeName, 4),
    (Operation::ServeTemporary, 4),
    (Operation::CompareSession, 6),
    (Operation::CompareTemplate, 1),
    (Operation::Fork, 12),
    (Operation::EndServer, 5),
    (Operation::KillServer, 10),
    (Operation::Resume, 40),
    (Operation::DropSession, 4),
    (Operation::List, 6),
    (Operation::LookForLeaks, 20),
];

/// Names that are left when others are removed.
const NAMES_MIN: usize = 4;

impl World {
    /// One operation; false where what was chosen is not possible now.
    pub(super) fn step(&mut self) -> Result<bool> {
        self.poll_jobs()?;
        self.resolve_lost(None)?;
        let operation = self.random.weighted(WEIGHTS);
        let slots = JOBS_MAX - self.jobs.len();
        match operation {
            Operation::Burst => {
                self.at_session(|s| s.server.is_some() && s.held_for.is_none(), Self::burst)
            }
            Operation::Read => self.at_session(|s| s.server.is_some(), Self::read_some),
            Operation::CompareSession => {
                self.at_session(|s| s.server.is_some(), Self::compare_session)
            }
            Operation::EndServer => self.at_session(
                |s| s.server.is_some() && !s.steady,
                |w, at| w.stop(at, false),
            ),
            Operation::KillServer => self.at_session(
                |s| s.server.is_some() && !s.steady,
                |w, at| w.stop(at, true),
            ),
            Operation::Resume => self.resume_one(),
            Operation::DropSession => self.drop_one(),
            Operation::Fork => self.fork_one(),
            Operation::Remove => self.remove_one(),
            Operation::Cancel => self.cancel_one(),
            Operation::ServeName => self.serve_name(true),
            Operation::ServeTemporary => self.serve_name(false),
            Operation::CompareTemplate => self.compare_template(),
            Operation::List => self.list(),
            Operation::LookForLeaks => self.look_for_leaks(),
            _ if slots == 0 => Ok(false),
            Operation::Snapshot => {
                let all = self.sessions_that(|_| true);
                let at = self.random.pick(all).context("there is always one")?;
                self.ask(at)
            }
            Operation::Gc => self.start_gc(),
            Operation::Compact => self.start_compact(),
            Operation::Verify => self.start_reader(|name, _| What::Verify { name }),
            Operation::Export => self.start_reader(|name, world| {
                let holds = world.names[&name].clone();
                let to = world.rig.path(&format!("export-{}", world.numbers));
                What::Export { name, holds, to }
            }),
            Operation::Diff => self.start_diff(),
        }
    }

    fn at_session(
        &mut self,
        is: impl Fn(&super::world::Session) -> bool,
        then: impl FnOnce(&mut Self, usize) -> Result<()>,
    ) -> Result<bool> {
        let fit = self.sessions_that(is);
        match self.random.pick(fit) {
            Some(at) => then(self, at).map(|()| true),
            None => Ok(false),
        }
    }

    /// Is a snapshot command at work on this session?
    fn is_asked(&self, number: usize) -> bool {
        self.asked
            .iter()
            .any(|asked| asked.session == number && asked.lost.is_none())
    }

    fn resume_one(&mut self) -> Result<bool> {
        let busy: Vec<usize> = self
            .asked
            .iter()
            .filter(|a| a.lost.is_none())
            .map(|a| a.session)
            .collect();
        self.at_session(
            |s| s.server.is_none() && !busy.contains(&s.number),
            Self::resume,
        )
    }

    fn drop_one(&mut self) -> Result<bool> {
        let fit = self.sessions_that(|s| !s.steady);
        match self.random.pick(fit) {
            Some(at) if !self.is_asked(self.sessions[at].number) => {
                self.drop_session(at).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Nothing while all of them are being replaced.
    fn any_name(&mut self) -> Option<String> {
        let names = self.names.keys().cloned().collect();
        self.random.pick(names)
    }

    fn fork_one(&mut self) -> Result<bool> {
        if self.sessions.len() >= SESSIONS_MAX {
            return Ok(false);
        }
        let Some(name) = self.any_name() else {
            return Ok(false);
        };
        self.fork(&name, false).map(|()| true)
    }

    fn remove_one(&mut self) -> Result<bool> {
        if self.names.len() <= NAMES_MIN {
            return Ok(false);
        }
        let Some(name) = self.any_name() else {
            return Ok(false);
        };
        self.remove_name(&name).map(|()| true)
    }

    fn start_gc(&mut self) -> Result<bool> {
        let kill = self.random.once_in(3);
        let dry = self.random.once_in(6);
        self.note("gc", if dry { "dry" } else { "" });
        let command = self
            .rig
            .command(["gc"].into_iter().chain(dry.then_some("--dry-run")));
        self.start(What::Gc, command, kill).map(|()| true)
    }

    fn start_compact(&mut self) -> Result<bool> {
        // There is one at a time.
        let mut jobs = self.jobs.iter();
        if jobs.any(|job| matches!(job.what, What::Compact { .. })) {
            return Ok(false);
        }
        let kill = self.random.once_in(3);
        let name = self.any_name().filter(|_| kill);
        let how = [&["--auto"][..], &[], &["--step", "4M"], &["--dry-run"]];
        let how = how[self.random.below(how.len())];
        let mut command = self.rig.command(["compact"]);
        command.args(how).args(&name);
        self.note("compact", format!("{how:?} {name:?}"));
        self.start(What::Compact { name }, command, kill)
            .map(|()| true)
    }

    /// Starts a command that reads one name.
    fn start_reader(&mut self, what: impl FnOnce(String, &Self) -> What) -> Result<bool> {
        let Some(name) = self.any_name() else {
            return Ok(false);
        };
        let kill = self.random.once_in(8);
        let what = what(name.clone(), self);
        let mut command = self.rig.command(["--quiet"]);
        match &what {
            What::Export { to, .. } => {
                std::fs::create_dir(to)?;
                self.note("export", &name);
                command.args(["export", &name]).arg(to.join("image.raw"));
            }
            _ => {
                self.note("verify", &name);
                command.args(["verify", &name]);
            }
        }
        self.start(what, command, kill)?;
        // Under its hands, now and then.
        if self.names.len() > NAMES_MIN && self.random.once_in(4) {
            self.remove_name(&name)?;
            if self.jobs.len() < JOBS_MAX {
                self.start_gc()?;
            }
        }
        Ok(true)
    }

    fn start_diff(&mut self) -> Result<bool> {
        let names = [self.any_name(), self.any_name()];
        let [Some(a), Some(b)] = names else {
            return Ok(false);
        };
        let exact = |name: &str| self.names[name].exact().map(<[_]>::to_vec);
        let differ = match (exact(&a), exact(&b)) {
            (Some(a), Some(b)) if a.len() == b.len() => Some(blocks_that_differ(&a, &b)),
            _ => None,
        };
        self.note("diff", format!("{a} {b}"));
        let command = self.rig.command(["diff", &a, &b, "--json"]);
        let names = [a, b];
        self.start(What::Diff { names, differ }, command, false)
            .map(|()| true)
    }

    /// Serves a name for a moment, read-only or with a session that goes with it.
    fn serve_name(&mut self, read_only: bool) -> Result<bool> {
        let Some(name) = self.any_name() else {
            return Ok(false);
        };
        let holds = self.names[&name].clone();
        let number = self.next_number();
        let socket = self.rig.path(&format!("n{number}.sock"));
        let at = socket_argument(&socket);
        let mut command = self.rig.command(["serve", &name, "--nbd", &at]);
        if read_only {
            command.arg("--read-only");
        }
        let server = Server::start(command, socket.clone())?;
        // Whoever has it open keeps it.
        let removed = self.names.len() > NAMES_MIN && self.random.once_in(3);
        if removed && !self.in_use(&name) {
            self.remove_name(&name)?;
            self.note("gc", "beside who has the name open");
            self.rig.ok("gc")?;
        }
        let image = server.read_all()?;
        let kill = self.random.once_in(3);
        let how = match read_only {
            true => "served read-only",
            false => "served in a temporary session",
        };
        if !read_only {
            self.write_a_little(&server)?;
        }
        self.compare_name(&name, holds, &image, how)?;
        if kill {
            self.note("kill -9 server", format!("of {name}, {how}"));
            server.kill()?;
            drop(std::fs::remove_file(&socket));
            // A temporary session's directory stays where its server had no time to remove it.
            for entry in std::fs::read_dir(self.rig.path("tmp"))? {
                std::fs::remove_dir_all(entry?.path())?;
            }
        } else {
            server.end()?;
        }
        Ok(true)
    }

    /// What a temporary session is told is nobody else's.
    fn write_a_little(&mut self, server: &Server) -> Result<()> {
        let mut client = server.client()?;
        let at = self.random.below(1000) as u64 * 4096;
        client.write(at, &[0x5a; 10_000])?;
        let mut found = [0; 10_000];
        client.read(at, &mut found)?;
        if found != [0x5a; 10_000] {
            bail!("a temporary session does not hold what was written to it");
        }
        Ok(())
    }

    /// The name may be gone for long: what serves it keeps it.
    pub(super) fn compare_template(&mut self) -> Result<bool> {
        let server = self.template.as_mut().context("it is always served")?;
        server.check()?;
        let image = server.read_all()?;
        let holds: Name = self.template_name.clone();
        self.compare_name("template", holds, &image, "served from the beginning")?;
        Ok(true)
    }

    /// What the lists say is so.
    fn list(&mut self) -> Result<bool> {
        self.note("list", "");
        let listed = self.rig.json("ls")?;
        let listed = listed.as_array().context("ls prints a list")?;
        let listed: Vec<&str> = listed
            .iter()
            .filter_map(|row| row["name"].as_str())
            .collect();
        if let Some(lost) = self
            .names
            .keys()
            .find(|name| !listed.contains(&name.as_str()))
        {
            bail!("`cowslip ls` does not list {lost}: {listed:?}");
        }
        let Some(name) = self.any_name() else {
            return Ok(false);
        };
        self.rig.json(&format!("log {name}"))?;
        self.rig.json(&format!("inspect {name}"))?;
        let known = self.rig.json("sessions")?;
        for session in &self.sessions {
            let number = session.number;
            let id = session.manifest()?["id"].clone();
            let known = known.as_array().context("sessions prints a list")?;
            let row = known.iter().find(|row| row["id"] == id);
            let row = row.with_context(|| format!("the store does not know session s{number}"))?;
            if session.server.is_some() && row["state"] != "served" {
                bail!(
                    "session s{number} is served, and the store says {}",
                    row["state"]
                );
            }
            if !row["live"]["refuses_writes"].is_null() {
                bail!(
                    "session s{number} refuses writes: {}",
                    row["live"]["refuses_writes"]
                );
            }
        }
        Ok(true)
    }
}
