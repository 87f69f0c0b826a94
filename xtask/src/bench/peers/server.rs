//! The servers that are compared: started on a unix socket, ended when dropped.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::{output, target_dir};

/// For a server to listen.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Of the times in /proc/PID/stat; the same on every Linux that there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// One column: how a server is started over `base.raw`, the first path, with what it writes in the
/// second, listening at the third.
pub(super) struct Peer {
    pub(super) name: &'static str,
    command: fn(&Path, &Path, &Path) -> Result<Command>,
    /// Copy the image in once it is up.
    fill: bool,
}

pub(super) const PEERS: &[Peer] = &[
    Peer {
        name: "cowslip",
        command: cowslip,
        fill: false,
    },
    Peer {
        name: "nbdkit memory",
        command: nbdkit_memory,
        fill: true,
    },
    Peer {
        name: "nbdkit cow",
        command: nbdkit_cow,
        fill: false,
    },
    Peer {
        name: "qemu-nbd qcow2",
        command: qemu_nbd,
        fill: false,
    },
];

fn cowslip(base: &Path, dir: &Path, socket: &Path) -> Result<Command> {
    let program = target_dir().join("release/cowslip");
    let command = || {
        let mut command = Command::new(&program);
        command.arg("--quiet").arg("--store").arg(dir.join("store"));
        command
    };
    output(
        command()
            .arg("import")
            .arg(base)
            .args(["base", "--format", "raw"]),
    )?;
    let mut serve = command();
    serve
        .args(["serve", "base", "--session"])
        .arg(dir.join("session"));
    serve.arg("--nbd").arg(format!("unix:{}", socket.display()));
    Ok(serve)
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn nbdkit_memory(_: &Path, _: &Path, socket: &Path) -> Result<Command> {
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "-U"])
        .arg(socket)
        .args(["memory", "1G"]);
    Ok(command)
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn nbdkit_cow(base: &Path, dir: &Path, socket: &Path) -> Result<Command> {
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "-U"])
        .arg(socket)
        .args(["--filter=cow", "file"])
        .arg(base);
    command.arg("cow-block-size=4096").env("TMPDIR", dir);
    Ok(command)
}

fn qemu_nbd(base: &Path, dir: &Path, socket: &Path) -> Result<Command> {
    let overlay = dir.join("overlay.qcow2");
    let mut create = Command::new("qemu-img");
    create.args([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on,cluster_size=128k",
    ]);
    output(create.args(["-F", "raw", "-b"]).arg(base).arg(&overlay))?;
    let mut command = Command::new("qemu-nbd");
    command
        .args(["-t", "-f", "qcow2", "-k"])
        .arg(socket)
        .arg(overlay);
    Ok(command)
}

/// A server that listens.
pub(super) struct Server {
    peer: &'static Peer,
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts it over `base.raw` in `dir`; what it writes goes to `round`.
    pub(super) fn start(peer: &'static Peer, dir: &Path, round: &Path) -> Result<Self> {
        let own = round.join(peer.name.replace(' ', "-"));
        std::fs::create_dir(&own)?;
        let socket = own.join("nbd.sock");
        let base = dir.join("base.raw");
        let mut command = (peer.command)(&base, &own, &socket).context(peer.name)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", peer.name))?;
        let mut server = Self {
            peer,
            child,
            socket,
        };
        server.wait_until_ready()?;
        if peer.fill {
            output(Command::new("nbdcopy").arg(base).arg(server.uri()))?;
        }
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once ({status})", self.peer.name);
            }
            if begun.elapsed() > READY_WITHIN {
                bail!("{} does not listen", self.peer.name);
            }
            // Others' servers have no common way to say that they are ready.
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(super) fn name(&self) -> &'static str {
        self.peer.name
    }

    pub(super) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// The processor time that it has used, user's and system's.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let ticks = ticks(&stat).with_context(|| format!("in {stat:?}"))?;
        Ok(ticks / TICKS_PER_SECOND)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By its own id, which is not given to another before it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of fields 14 and 15 of proc_pid_stat(5); the second field may hold spaces.
fn ticks(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read() {
        let stat = "17 (a (b) c) S 1 17 17 0 -1 4194304 90 0 0 0 25 17 0 0 20 0 1 0";
        assert_eq!(ticks(stat), Some(42.0));
        assert_eq!(ticks("nonsense"), None);
    }
}
