//! [`World`]: what there is at one moment: sessions, with or without a server, names, and commands that
//! run. One thread does all; what overlaps are the processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::device::Device;
use super::jobs::Job;
use super::leaks::Leaks;
use super::names::{Asked, Name};
use crate::rig::Rig;
use crate::rig::oracle::{Clock, UNIT, contents};
use crate::rig::random::Random;
use crate::rig::server::{Server, socket_argument};
use crate::rig::story::Story;
use crate::rig::usage::du;

/// Of the template. What is served is larger.
const TEMPLATE_UNITS: usize = 48 << 10;
pub(super) const DEVICE_UNITS: usize = 64 << 10;
pub(super) const SESSIONS_MAX: usize = 6;
/// Of what was done, so much is remembered for a failure.
const REMEMBERED: usize = 80;

/// See the module.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) random: Random,
    pub(super) clock: Clock,
    pub(super) sessions: Vec<Session>,
    pub(super) names: BTreeMap<String, Name>,
    pub(super) asked: Vec<Asked>,
    pub(super) jobs: Vec<Job>,
    /// A server of the template, read-only, from the beginning to the end.
    pub(super) template: Option<Server>,
    pub(super) template_name: Name,
    pub(super) leaks: Leaks,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) compared_bytes: u64,
    pub(super) requests: u64,
    pub(super) store_bytes_now: u64,
    pub(super) store_bytes_peak: u64,
    pub(super) numbers: usize,
    story: Story,
}

/// A session, served or at rest.
pub(super) struct Session {
    pub(super) number: usize,
    pub(super) dir: PathBuf,
    pub(super) server: Option<Server>,
    /// How many servers it has had.
    pub(super) generation: u32,
    pub(super) device: Device,
    /// Its server is never ended: what it holds is watched.
    pub(super) steady: bool,
    /// Nothing is written until this snapshot is answered.
    pub(super) held_for: Option<usize>,
}

impl Session {
    /// What `session.json` says.
    pub(super) fn manifest(&self) -> Result<Value> {
        let path = self.dir.join("session.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(text.lines().next().unwrap_or(""))?)
    }

    /// The names that its caches are to become.
    pub(super) fn sealing(&self) -> Result<Vec<String>> {
        let manifest = self.manifest()?;
        let caches = manifest["caches"]
            .as_array()
            .context("caches in session.json")?;
        let names = caches
            .iter()
            .filter_map(|cache| cache["seal"]["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("the session is at rest")
    }
}

impl World {
    /// A store with one template, a server of it, and one session.
    pub(super) fn begin(rig: Rig, seed: u64) -> Result<Self> {
        let mut random = Random(seed);
        let clock = Clock::default();
        let mut versions = vec![0; TEMPLATE_UNITS];
        // Data and holes in turn, as on a disk that has been used.
        for run in versions.chunks_mut(64) {
            let number = clock.tick();
            let len = random.below(run.len() + 1);
            run[..len].fill(number);
        }
        std::fs::write(rig.path("template.raw"), contents(&versions, 0))?;
        rig.ok("import template.raw template --format raw --quiet")?;
        std::fs::remove_file(rig.path("template.raw"))?;
        let template_name = Name::certain(versions);
        let socket = rig.path("template.sock");
        let at = socket_argument(&socket);
        let serve = ["serve", "template", "--read-only", "--nbd", &at];
        let template = Server::start(rig.command(serve), socket)?;
        let story = Story::begin(&rig.path("log"), REMEMBERED)?;
        let mut world = Self {
            rig,
            random,
            clock,
            sessions: Vec::new(),
            names: [("template".to_owned(), template_name.clone())].into(),
            asked: Vec::new(),
            jobs: Vec::new(),
            template: Some(template),
            template_name,
            leaks: Leaks::default(),
            counts: BTreeMap::new(),
            compared_bytes: 0,
            requests: 0,
            store_bytes_now: 0,
            store_bytes_peak: 0,
            numbers: 0,
            story,
        };
        world.fork("template", true)?;
        Ok(world)
    }

    /// Notes that something is done.
    pub(super) fn note(&mut self, what: &'static str, details: impl std::fmt::Display) {
        *self.counts.entry(what).or_default() += 1;
        self.remember(&format!("{what} {details}"));
    }

    pub(super) fn remember(&mut self, line: &str) {
        self.story.add(line);
    }

    /// What was done last, a line each.
    pub(super) fn last_operations(&self) -> String {
        self.story.last()
    }

    pub(super) fn next_number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn session(&mut self, number: usize) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| s.number == number)
    }

    /// The places of the sessions of which this is true.
    pub(super) fn sessions_that(&self, is: impl Fn(&Session) -> bool) -> Vec<usize> {
        let all = self.sessions.iter().enumerate();
        all.filter(|(_, s)| is(s)).map(|(at, _)| at).collect()
    }

    /// A new session from a name. All of it is compared at once, so that what the name holds is
    /// certain from then on.
    pub(super) fn fork(&mut self, name: &str, steady: bool) -> Result<()> {
        let number = self.next_number();
        let dir = self.rig.path(&format!("s{number}"));
        self.note("fork", format!("{name} -> s{number}"));
        let serve = ["serve", name, "--size", "64M", "--session"];
        let mut command = self.rig.command(serve);
        command.arg(&dir).args(["--frame-cache", "32M"]);
        let server = Server::start(command, dir.join("nbd.sock"))?;
        let image = server.read_all()?;
        self.compared_bytes += image.len() as u64;
        let known = self
            .names
            .get_mut(name)
            .context("a fork is made from a name")?;
        let len = known.units() * UNIT;
        let (there, grown) = image
            .split_at_checked(len)
            .context("a device smaller than its image")?;
        if grown.iter().any(|b| *b != 0) {
            bail!("s{number}: what was added to the image is not zero");
        }
        let mut versions = known
            .judge(there)
            .map_err(|why| anyhow::anyhow!("s{number}, forked from {name}: {why}"))?;
        versions.resize(DEVICE_UNITS, 0);
        let mut device = Device::new(versions);
        device.connect(&server)?;
        self.sessions.push(Session {
            number,
            dir,
            server: Some(server),
            generation: 1,
            device,
            steady,
            held_for: None,
        });
        Ok(())
    }

    /// Ends a session's server, with requests on their way.
    pub(super) fn stop(&mut self, at: usize, kill: bool) -> Result<()> {
        let what = if kill { "kill -9 server" } else { "end server" };
        self.note(what, format!("s{}", self.sessions[at].number));
        let session = &mut self.sessions[at];
        let asked = self
            .asked
            .iter_mut()
            .filter(|a| a.session == session.number);
        asked.for_each(|asked| asked.disturbed = true);
        let server = session.server.take().context("the session is at rest")?;
        if kill {
            server.kill()?;
        } else {
            server.end()?;
        }
        session.device.cut_off();
        Ok(())
    }

    /// Serves a session again, now and then from another place.
    pub(super) fn resume(&mut self, at: usize) -> Result<()> {
        let number = self.sessions[at].number;
        self.note("resume", format!("s{number}"));
        if self.random.once_in(5) {
            let moved = self.next_number();
            let dir = self.rig.path(&format!("s{number}-moved-{moved}"));
            std::fs::rename(&self.sessions[at].dir, &dir)?;
            self.remember(&format!("s{number} moves to {}", dir.display()));
            self.sessions[at].dir = dir;
        }
        self.note_promises(at)?;
        let session = &mut self.sessions[at];
        let mut command = self
            .rig
            .command(["serve", "--frame-cache", "32M", "--session"]);
        command.arg(&session.dir);
        let server = Server::start(command, session.dir.join("nbd.sock"))?;
        session.device.connect(&server)?;
        session.server = Some(server);
        session.generation += 1;
        self.compare_session(at)
    }

    /// Every byte of a live session.
    pub(super) fn compare_session(&mut self, at: usize) -> Result<()> {
        let number = self.sessions[at].number;
        self.note("compare session", format!("s{number}"));
        let session = &mut self.sessions[at];
        let server = session.server.as_ref().context("the session is at rest")?;
        let compared = session.device.compare(server, &self.clock);
        let compared = compared.with_context(|| format!("session s{number}: {}", server.said()))?;
        self.compared_bytes += compared as u64;
        Ok(())
    }

    /// Ends a session for good: its directory goes, and the store forgets it.
    pub(super) fn drop_session(&mut self, at: usize) -> Result<()> {
        if self.sessions[at].server.is_some() {
            let kill = self.random.once_in(2);
            self.stop(at, kill)?;
        }
        let session = self.sessions.remove(at);
        self.note("drop session", format!("s{}", session.number));
        let manifest = session.manifest()?;
        let id = manifest["id"].as_str().context("id in session.json")?;
        self.rig.ok(&format!("sessions --forget {id}"))?;
        // A compaction may be making it go over just now.
        while let Err(error) = std::fs::remove_dir_all(&session.dir) {
            if error.kind() != std::io::ErrorKind::DirectoryNotEmpty {
                return Err(error.into());
            }
        }
        // What it was to become, and has not become by now, it never will.
        self.resolve_lost(Some(session.number))
    }

    pub(super) fn burst(&mut self, at: usize) -> Result<()> {
        let number = self.sessions[at].number;
        self.note("burst of requests", format!("s{number}"));
        let session = &mut self.sessions[at];
        let before = session.device.requests;
        let sent = session.device.burst(&mut self.random, &self.clock);
        self.requests += session.device.requests - before;
        let sent = sent.and_then(|()| match self.random.once_in(5) {
            true => session.device.drain(&self.clock),
            false => Ok(()),
        });
        sent.with_context(|| {
            format!(
                "session s{number}: {:?}",
                session.server().map(Server::said)
            )
        })
    }

    pub(super) fn read_some(&mut self, at: usize) -> Result<()> {
        let number = self.sessions[at].number;
        *self.counts.entry("read").or_default() += 1;
        let read = self.sessions[at].device.read_some(&mut self.random);
        let read = read.with_context(|| format!("reading from session s{number}"))?;
        self.compared_bytes += read as u64;
        Ok(())
    }

    pub(super) fn measure_store(&mut self) {
        let room = du(&self.rig.store());
        self.store_bytes_now = room.disk_bytes;
        self.store_bytes_peak = self.store_bytes_peak.max(room.disk_bytes);
    }
}
