//! What is around a torture: what it needs, its namespaces, its directory, signals, and what is left
//! when it has ended.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Wanted;
use super::plans::{By, PLANS};
use crate::packages::{TORTURE, provide};
use crate::rig::server::wait_within;
use crate::rig::usage::processes_of;
use crate::run::program;

/// For the kernel to take back what a namespace had.
const GONE_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn run(wanted: &Wanted) -> Result<()> {
    let missing = provide(TORTURE, !wanted.quick)?;
    if let Some(first) = missing.first() {
        if wanted.quick {
            eprintln!("SKIP torture: needs {}", first.what);
            return Ok(());
        }
        bail!("torture needs what is missing above");
    }
    // Before anything is there that would have to be removed.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let dir = tempfile::Builder::new()
        .prefix("cowslip-tortured-")
        .tempdir();
    let dir = dir.context("a temporary directory")?;
    let mut inside = inside(wanted, dir.path())?;
    let status = loop {
        if let Some(status) = wait_within(&mut inside, Duration::from_millis(200))? {
            break Some(status);
        }
        if signals.pending().next().is_some() {
            eprintln!("torture: a signal; all is ended and removed");
            inside.kill()?;
            inside.wait()?;
            break None;
        }
    };
    // They are killed, and dying takes a moment.
    let give_up = Instant::now() + GONE_WITHIN;
    while !processes_of(dir.path())?.is_empty() && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(50));
    }
    detach(dir.path());
    let left = loops_below(dir.path());
    match status {
        Some(status) if status.success() && left.is_empty() => Ok(()),
        Some(status) => {
            let kept = dir.keep();
            bail!(
                "failed ({status}); all is kept in {}; loop devices left: {left:?}",
                kept.display()
            )
        }
        None => {
            dir.close()?;
            bail!("ended by a signal; loop devices left: {left:?}")
        }
    }
}

/// This program again, in namespaces of its own, which end with it.
fn inside(wanted: &Wanted, dir: &Path) -> Result<std::process::Child> {
    let unshare = program("unshare").context("unshare is not installed")?;
    let mut command = Command::new(unshare);
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(std::env::current_exe()?);
    command.args(["torture", "--inside", "--seed", &wanted.seed.to_string()]);
    if wanted.quick {
        command.arg("--quick");
    }
    if let Some(victim) = &wanted.victim {
        command.args(["--victim", victim]);
    }
    if wanted.json {
        command.arg("--json");
    }
    command.arg(wanted.time.as_secs().to_string());
    // Ctrl-C is for this process alone.
    command.process_group(0).stdin(Stdio::null());
    command
        .env("TMPDIR", dir)
        .spawn()
        .context("starting unshare")
}

/// The block device of a server that was killed stays until somebody says that it is not wanted.
fn detach(dir: &Path) {
    let rigs = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for rig in rigs.map(|entry| entry.path()) {
        for victim in PLANS.iter().filter(|plan| plan.by == By::Files) {
            let mut command = Command::new(rig.join("cowslip"));
            command.args(["detach", "--stale", "--quiet"]);
            command.env("COWSLIP_RUN_DIR", rig.join(victim.name).join("run"));
            // Without a command nothing was attached.
            if let Ok(output) = command.output()
                && !output.status.success()
            {
                eprintln!("{}", String::from_utf8_lossy(&output.stderr).trim());
            }
        }
    }
}

/// Loop devices over files of a directory, when the kernel has had time to let go of them.
fn loops_below(dir: &Path) -> Vec<String> {
    let give_up = Instant::now() + GONE_WITHIN;
    loop {
        let blocks = std::fs::read_dir("/sys/block").into_iter().flatten();
        let files = blocks.filter_map(|entry| {
            let path = entry.ok()?.path().join("loop/backing_file");
            std::fs::read_to_string(path).ok()
        });
        let name = dir.to_string_lossy();
        let left: Vec<String> = files.filter(|file| file.contains(&*name)).collect();
        if left.is_empty() || Instant::now() > give_up {
            return left;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
