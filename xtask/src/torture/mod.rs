//! `cargo xtask torture [SECONDS|--hours N|--quick] [--seed N] [--json]`: real servers and real clients,
//! and faults at random that overlap: kill -9, SIGSTOP, full disks, disks that fail, clients that vanish,
//! clocks that jump. After each round of faults all is compared with an oracle.
//!
//! - `plans.rs`: the victims;  `victim.rs`: what is done to one, and how it recovers;
//! - `fault.rs`: faults, and what each allows;  `place.rs`: disks that can be full, or fail;
//! - `client.rs`: clients;  `requests.rs`: one of our own;  `history.rs`: what a device may hold;
//! - `fio.rs`: fio;  `files.rs`: a mounted ext4;
//! - `snapshots.rs`: snapshots meanwhile;  `tally.rs`: the table at the end.
//!
//! All of it runs in a mount and a process namespace of its own: with the last of it go its processes,
//! mounts and loop devices, however it ends ([`outside`]). A finding keeps the directory.

mod client;
mod fault;
mod files;
mod fio;
mod history;
mod outside;
mod place;
mod plans;
mod requests;
mod snapshots;
mod tally;
mod victim;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use self::client::{Shared, Work};
use self::files::Files;
use self::fio::Fio;
use self::plans::{By, PLANS, Plan};
use self::requests::Requests;
use self::tally::{Sums, Tally};
use self::victim::Victim;
use crate::rig::Rig;
use crate::rig::oracle::{Clock, Version, contents};
use crate::rig::random::Random;
use crate::rig::story::Story;
use crate::run::output;

const USAGE: &str =
    "usage: cargo xtask torture [SECONDS | --hours N | --quick] [--seed N] [--json]";
const QUICK_SECONDS: u64 = 15;
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
/// A victim that says nothing for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(300);
/// Of what was done, so many lines are told with a finding.
const REMEMBERED: usize = 120;
const TEMPLATE_UNITS: usize = 24 << 10;
const DEVICE_UNITS: usize = 32 << 10;

/// What was asked for.
struct Wanted {
    time: Duration,
    seed: u64,
    json: bool,
    /// The command that tests have built, for a quarter of a minute.
    quick: bool,
    /// One victim alone.
    victim: Option<String>,
    /// Namespaces are made.
    inside: bool,
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_millis();
    let mut wanted = Wanted {
        time: Duration::from_secs(900),
        seed: u64::try_from(now)?,
        json: false,
        quick: false,
        victim: None,
        inside: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut next = || args.next().copied().context(USAGE);
        let number = |text: &str| text.parse().ok().context(USAGE);
        match *arg {
            "--json" => wanted.json = true,
            "--inside" => wanted.inside = true,
            "--seed" => wanted.seed = number(next()?)?,
            "--hours" => wanted.time = Duration::from_secs(number(next()?)? * 3600),
            "--victim" => wanted.victim = Some(next()?.to_owned()),
            "--quick" => {
                wanted.quick = true;
                wanted.time = Duration::from_secs(QUICK_SECONDS);
            }
            seconds => wanted.time = Duration::from_secs(number(seconds)?),
        }
    }
    match wanted.inside {
        true => inside(&wanted),
        false => outside::run(&wanted),
    }
}

/// The library that moves a process's clock, where it is installed.
pub(crate) fn clock_library() -> Option<&'static PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let look = || {
        let places = std::fs::read_dir("/usr/lib").ok()?;
        let mut paths = places.filter_map(|entry| {
            let path = entry.ok()?.path().join("faketime/libfaketime.so.1");
            path.is_file().then_some(path)
        });
        paths.next()
    };
    FOUND.get_or_init(look).as_ref()
}

fn inside(wanted: &Wanted) -> Result<()> {
    // What the library shares between processes goes with the namespace.
    output(std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev/shm"]))?;
    let rig = Rig::build_as("cowslip-torture-", true, !wanted.quick)?;
    rustix::process::nice(10)?;
    let (seconds, seed) = (wanted.time.as_secs(), wanted.seed);
    eprintln!(
        "torture: {seconds} s, seed {seed}, in {}",
        rig.dir().display()
    );
    let clock = Clock::default();
    let mut versions = vec![0; TEMPLATE_UNITS];
    let mut random = Random(seed);
    for run in versions.chunks_mut(64) {
        let len = random.below(run.len() + 1);
        run[..len].fill(clock.tick());
    }
    std::fs::write(rig.path("template.raw"), contents(&versions, 0))?;
    versions.resize(DEVICE_UNITS, 0);
    let is_wanted = |plan: &&Plan| wanted.victim.as_ref().is_none_or(|name| name == plan.name);
    let plans: Vec<&Plan> = PLANS.iter().filter(is_wanted).collect();
    let story = Arc::new(Mutex::new(Story::begin(&rig.path("log"), REMEMBERED)?));
    let run = Run {
        rig: &rig,
        tally: Mutex::default(),
        victims: plans
            .iter()
            .map(|plan| Arc::new(Shared::new(plan.name, Arc::clone(&story))))
            .collect(),
        begun: Instant::now(),
        wanted,
    };
    let ended = std::thread::scope(|scope| {
        let (tell, ends) = channel();
        for (plan, shared) in plans.iter().zip(&run.victims) {
            let tell = tell.clone();
            let random = Random(random.next());
            // Each has numbers of its own, behind those of the template.
            let (clock, versions) = (clock.clone(), versions.clone());
            let run = &run;
            scope.spawn(move || {
                let ended = run.torment(plan, shared, (versions, clock), random, &tell);
                shared.over.store(true, Ordering::SeqCst);
                drop(tell.send(ended.with_context(|| format!("victim {}", plan.name))));
            });
        }
        let ended = run.watch(&ends);
        if let Err(error) = &ended {
            run.report(Some(format!("{error:#}")));
            let told = story.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("{}\n\ntorture: seed {seed}: {error:#}", told.last());
            drop(told);
            run.keep_evidence();
            run.end_servers();
            // The others, and all that they have started, go with this process.
            std::process::exit(1);
        }
        ended
    });
    ended?;
    std::fs::remove_file(rig.path("template.raw"))?;
    let left = crate::rig::watch::others_in(rig.dir(), &["cowslip", "log", "tmp"])?;
    if !left.is_empty() {
        return Err(anyhow!("left over: {}", left.join("\n  ")));
    }
    run.report(None);
    Ok(())
}

struct Run<'a> {
    rig: &'a Rig,
    tally: Mutex<Tally>,
    victims: Vec<Arc<Shared>>,
    begun: Instant,
    wanted: &'a Wanted,
}

impl Run<'_> {
    /// One victim, to its end.
    fn torment(
        &self,
        plan: &Plan,
        shared: &Arc<Shared>,
        (versions, clock): (Vec<Version>, Clock),
        random: Random,
        tell: &Sender<Result<()>>,
    ) -> Result<()> {
        let (asks, asked) = channel();
        let place = Arc::clone(shared);
        let own = random.clone();
        let mut victim = Victim::new(plan, self.rig, place, random, asks, &self.tally)?;
        let work: Box<dyn Work + Send> = match plan.by {
            By::Requests => Box::new(Requests::new(versions, clock, own)),
            By::Fio => Box::new(Fio::new(self.rig.path("fio.out"), own)),
            By::Files => Box::new(Files::new(&victim.guest(), victim.run_dir(), own)?),
        };
        victim.serve()?;
        let (at_work, told) = (Arc::clone(shared), tell.clone());
        std::thread::spawn(move || {
            if let Err(error) = client::run(work, &at_work, &asked) {
                drop(told.send(Err(error)));
                // Whoever asks in vain has nothing to add.
                std::thread::park();
            }
        });
        while self.begun.elapsed() < self.wanted.time {
            victim.round()?;
        }
        victim.finish()
    }

    /// Until all have ended, or the first finding.
    fn watch(&self, ends: &std::sync::mpsc::Receiver<Result<()>>) -> Result<()> {
        let mut told = Instant::now();
        let mut running = self.victims.len();
        while running > 0 {
            match ends.recv_timeout(Duration::from_secs(1)) {
                Ok(ended) => {
                    ended?;
                    running -= 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let over = |victim: &&Arc<Shared>| victim.over.load(Ordering::SeqCst);
            for victim in self.victims.iter().filter(|victim| !over(victim)) {
                let silent = victim.silent_for();
                if silent > HANGS_AFTER {
                    return Err(anyhow!("{} hangs for {silent:?}", victim.name));
                }
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                eprintln!("{}", self.progress());
            }
        }
        Ok(())
    }

    fn sums(&self, finding: Option<String>) -> Sums {
        let sum = |of: fn(&Shared) -> &std::sync::atomic::AtomicU64| {
            let all = self.victims.iter();
            all.map(|v| of(v).load(Ordering::Relaxed)).sum()
        };
        Sums {
            seed: self.wanted.seed,
            took: self.begun.elapsed(),
            operations: sum(|v| &v.operations),
            compared_bytes: sum(|v| &v.compared_bytes),
            finding,
        }
    }

    fn progress(&self) -> String {
        let sums = self.sums(None);
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        format!(
            "{:5} s  {} rounds, {} faults, {} servers, {} operations, {} compared, {} snapshots; lost: 0",
            sums.took.as_secs(),
            tally.rounds,
            tally.faults(),
            tally.servers,
            sums.operations,
            crate::rig::table::bytes(sums.compared_bytes),
            tally.snapshots,
        )
    }

    fn report(&self, finding: Option<String>) {
        let sums = self.sums(finding);
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        match self.wanted.json {
            true => println!("{:#}", tally.json(&sums)),
            false => print!("{}", tally.text(&sums)),
        }
    }

    /// Whoever waits in the kernel for a server that is stopped, this process as well, waits no longer.
    fn end_servers(&self) {
        for victim in &self.victims {
            let pid = i32::try_from(victim.pid.load(Ordering::SeqCst));
            if let Some(pid) = pid.ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// What lies on a tmpfs would go with it.
    fn keep_evidence(&self) {
        for plan in PLANS {
            let files = self.rig.path(&format!("{}/b/files", plan.name));
            let to = self.rig.path(&format!("{}/b/evidence", plan.name));
            if plan.session == Some(place::Kind::Tmpfs) {
                let mut copy = std::process::Command::new("cp");
                drop(output(
                    copy.args(["-a", "--sparse=always"]).args([files, to]),
                ));
            }
        }
    }
}
