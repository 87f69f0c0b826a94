//! [`Bench`]: one throw-away session of a snapshot as a block device, with its file system mounted. It is this program
//! itself, started as a user starts it: `attach`, `snapshot`, `quiesce`, `explain`.
//!
//! The end, also after a failure: the attach is told to end, which unmounts what is mounted from it; then the session
//! and its snapshots go. An attach whose lab was killed is told by the kernel (setpriv(1)).

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_attach::{AttachError, mounts};
use cowslip_block::files::RealDir;
use cowslip_snapshot::session::Manifest;
use cowslip_snapshot::store::{Caches, Store};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use super::programs::{self, Stop};
use crate::command::open_store;
use crate::failure::Failure;

/// A journal may have to be replayed.
const MOUNT_WITHIN: Duration = Duration::from_secs(60);
/// A child that another cell starts has our files open until it is another program.
const BUSY_FOR: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// An attach that is told to end has limits of its own, below this.
const END_WITHIN: Duration = Duration::from_secs(90);

/// The directory in which the lab works, and this program on its store.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    me: PathBuf,
    pub(crate) stop: Stop,
}

impl Place {
    pub(crate) fn new(dir: PathBuf, stop: Stop) -> Result<Self, Failure> {
        let me = std::env::current_exe()
            .map_err(|e| Failure::failed(format!("finding this program: {e}")))?;
        Ok(Self { dir, me, stop })
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn store(&self) -> Result<Arc<Store>, Failure> {
        open_store(&self.at("store"), Caches::default())
    }

    /// This program, not started. It ends with the thread that starts it.
    pub(crate) fn cowslip(&self, args: &[&OsStr]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&self.me)
            .arg("--store")
            .arg(self.at("store"))
            .args(args)
            .env("COWSLIP_RUN_DIR", self.at("run"))
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .stdin(Stdio::null())
            // What is typed at the terminal is for the lab, which ends its children in order.
            .process_group(0);
        command
    }

    /// Runs this program, which must succeed.
    pub(crate) fn run(&self, args: &[&OsStr]) -> Result<String, Failure> {
        let name = args
            .first()
            .map_or_else(String::new, |a| a.to_string_lossy().into_owned());
        programs::succeeded(&format!("cowslip {name}"), self.cowslip(args).output())
    }

    pub(crate) fn words(&self, line: &[&str]) -> Result<String, Failure> {
        self.run(&line.iter().map(OsStr::new).collect::<Vec<_>>())
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, line: &[&str]) -> Result<T, Failure> {
        let text = self.words(&[line, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .map_err(|e| Failure::failed(format!("what `cowslip {}` printed: {e}", line.join(" "))))
    }

    /// Removes names that nobody needs any more.
    pub(crate) fn forget(&self, names: &[String]) {
        for name in names {
            // One that is not there was never taken.
            let _ = self.words(&["rm", name]);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    place: &'a Place,
    attach: Child,
    pub(crate) device: PathBuf,
    session: PathBuf,
    mounted: Option<PathBuf>,
}

impl<'a> Bench<'a> {
    /// Attaches a snapshot. `name` is a directory of its own in the place.
    pub(crate) fn attach(place: &'a Place, snapshot: &str, name: &str) -> Result<Self, Failure> {
        place.stop.check()?;
        let failed = |e: std::io::Error| Failure::failed(format!("starting cowslip attach: {e}"));
        let dir = place.at(name);
        let session = dir.join("session");
        std::fs::create_dir_all(dir.join("mnt")).map_err(|e| Failure::file(&dir, &e))?;
        // One way for all machines: figures are compared.
        let args = ["attach", snapshot, "--via=fuse", "--quiet", "--session"].map(OsStr::new);
        let mut command = place.cowslip(&[&args[..], &[session.as_os_str()]].concat());
        let log = std::fs::File::create(dir.join("attach.log")).map_err(failed)?;
        let mut attach = command
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let mut line = String::new();
        let out = attach.stdout.take().expect("asked for above");
        let read = BufReader::new(out.take(4096)).read_line(&mut line);
        let bench = Self {
            place,
            attach,
            device: line.trim().into(),
            session,
            mounted: None,
        };
        match read {
            Ok(n) if n > 0 => Ok(bench),
            _ => {
                let said = std::fs::read_to_string(dir.join("attach.log")).unwrap_or_default();
                Err(Failure::failed(format!(
                    "cowslip attach {snapshot}: {}",
                    said.trim()
                )))
            }
        }
    }

    /// Mounts what is on the device; where.
    pub(crate) fn mount(&mut self, options: &str) -> Result<PathBuf, Failure> {
        let dir = self.session.with_file_name("mnt");
        let options = if options.is_empty() {
            "defaults"
        } else {
            options
        };
        mounts::mount(&self.device, &dir, options, MOUNT_WITHIN)?;
        self.mounted = Some(dir.clone());
        Ok(dir)
    }

    pub(crate) fn unmount(&mut self) -> Result<(), Failure> {
        let Some(dir) = self.mounted.take() else {
            return Ok(());
        };
        let give_up = Instant::now() + BUSY_FOR;
        loop {
            match mounts::unmount(&dir, false, MOUNT_WITHIN) {
                Err(AttachError::Refused { .. }) if Instant::now() < give_up => {
                    std::thread::sleep(PAUSE);
                }
                other => return Ok(other?),
            }
        }
    }

    /// What [`Place::cowslip`] runs to take a snapshot.
    fn snapshot_args<'b>(&'b self, name: &'b str) -> [&'b OsStr; 4] {
        let [what, quiet] = ["snapshot", "--quiet"].map(OsStr::new);
        [what, quiet, self.session.as_os_str(), name.as_ref()]
    }

    pub(crate) fn snapshot(&self, name: &str) -> Result<(), Failure> {
        self.place.run(&self.snapshot_args(name)).map(drop)
    }

    /// `cowslip quiesce`, and where a name is given, the snapshot while it is frozen.
    pub(crate) fn quiesce(&self, options: &[&str], frozen: Option<&str>) -> Result<(), Failure> {
        let dir = self.mounted.as_deref().unwrap_or(Path::new(""));
        let mut args = vec![OsStr::new("quiesce"), dir.as_os_str(), "--json".as_ref()];
        args.extend(options.iter().map(OsStr::new));
        if let Some(name) = frozen {
            let snapshot = self.place.cowslip(&self.snapshot_args(name));
            args.push("--".as_ref());
            let words: Vec<&OsStr> = std::iter::once(snapshot.get_program())
                .chain(snapshot.get_args())
                .collect();
            return self.place.run(&[args, words].concat()).map(drop);
        }
        self.place.run(&args).map(drop)
    }

    /// Ends it in order; the session goes.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        self.unmount()?;
        self.finish()
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let failed =
            |e: &dyn std::fmt::Display| Failure::failed(format!("ending cowslip attach: {e}"));
        if self.attach.try_wait().map_err(|e| failed(&e))?.is_none() {
            kill_process(Pid::from_child(&self.attach), Signal::TERM).map_err(|e| failed(&e))?;
        }
        let give_up = Instant::now() + END_WITHIN;
        while self.attach.try_wait().map_err(|e| failed(&e))?.is_none() {
            if Instant::now() > give_up {
                let _ = self.attach.kill();
                let _ = self.attach.wait();
                return Err(failed(&"it took too long"));
            }
            std::thread::sleep(PAUSE);
        }
        self.forget_session();
        Ok(())
    }

    fn forget_session(&self) {
        let manifest = RealDir::open(&self.session).map(|dir| Manifest::read(&dir));
        if let Ok(Ok(Some(manifest))) = manifest {
            let _ = self
                .place
                .words(&["sessions", "--forget", &manifest.id.to_string()]);
        }
        // On its disk are a session and an empty directory, unless something is still mounted there.
        let dir = self.session.with_file_name("mnt");
        let _ = std::fs::remove_dir_all(&self.session);
        if std::fs::remove_dir(&dir).is_ok() {
            let _ = std::fs::remove_dir_all(dir.with_file_name(""));
        }
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        // After `end` there is nothing left to do.
        if self.session.exists() {
            let _ = self.finish();
        }
    }
}
