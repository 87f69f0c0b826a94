//! Root's way, and what is left of it: nothing, however the process ends.
//!
//! The command runs itself again in a mount namespace of its own (unshare(1), the same process), where the image is
//! mounted through a loop device that clears itself. When the process is gone, so are namespace, mount, and device;
//! the image never had a name. What `--run` starts gets a process namespace of its own, which ends with the
//! command or with us.
//!
//! A command of `--run` finds: the image as its root, `/proc`, a `/dev` with null, zero, full, random, urandom, tty and the
//! links to its own descriptors, each only where the image has the directory; the network of this machine; nothing on
//! its standard input. Its output goes to standard error.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::syncfs;
use rustix::mount::{UnmountFlags, unmount};

use super::e2fsprogs::path_of;
use crate::failure::Failure;

/// Says in which namespace the command was before it went into its own.
const OUTSIDE: &str = "COWSLIP_BUILD_OUTSIDE";
/// What the system mounts a template with while it fills it.
const MOUNT_OPTIONS: &str = "loop,discard,noatime,lazytime";

/// What a command of `--run` needs around it. `$1` is the root, `$2` the command.
const AROUND: &str = r#"
set -e
own() { [ -d "$1" ] && [ ! -L "$1" ]; }
if own "$1/proc"; then mount -t proc -o nosuid,nodev,noexec proc "$1/proc"; fi
if own "$1/dev"; then
    mount -t tmpfs -o mode=755,nosuid,noexec,size=64k dev "$1/dev"
    for node in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "$1/dev/${node%:*}" c 1 "${node#*:}"
    done
    mknod -m 666 "$1/dev/tty" c 5 0
    ln -s /proc/self/fd "$1/dev/fd"
    ln -s fd/0 "$1/dev/stdin"
    ln -s fd/1 "$1/dev/stdout"
    ln -s fd/2 "$1/dev/stderr"
fi
exec chroot "$1" /bin/sh -c "$2"
"#;

/// Goes on in a mount namespace of its own: returns there, or with the reason why not.
pub(crate) fn enter() -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("a mount namespace: {e}"));
    let here = fs::read_link("/proc/self/ns/mnt").map_err(failed)?;
    match std::env::var_os(OUTSIDE) {
        Some(outside) if here.as_os_str() != outside => return Ok(()),
        Some(_) => return Err(Failure::failed("unshare made no mount namespace")),
        None => {}
    }
    if !rustix::process::geteuid().is_root() {
        let failure = Failure::usage("only root can mount a file system");
        return Err(failure.hint("--rootless does without; --run cannot"));
    }
    let program = std::env::current_exe().map_err(failed)?;
    let error = Command::new("unshare")
        // What is unmounted outside goes here as well, where mounts are shared; nothing goes out.
        .args(["--mount", "--propagation", "slave", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(OUTSIDE, here)
        .exec();
    Err(failed(error).hint("install util-linux"))
}

/// The image's file system, mounted; unmounted when dropped, if it was not before.
pub(crate) struct Mounted {
    dir: PathBuf,
    is_mounted: bool,
}

impl Mounted {
    /// Mounts it over `dir`, which only this process sees.
    pub(crate) fn new(image: &File, dir: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(dir).map_err(|e| Failure::file(dir, &e))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", MOUNT_OPTIONS, "--"]);
        run(mount.arg(path_of(image)).arg(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            is_mounted: true,
        })
    }

    pub(crate) fn root(&self) -> Result<File, Failure> {
        File::open(&self.dir).map_err(|e| Failure::file(&self.dir, &e))
    }

    /// Runs a command in it.
    pub(crate) fn run(&self, command: &str) -> Result<(), Failure> {
        let mut child = Command::new("setpriv");
        child
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["--", "sh", "-c", AROUND, "sh"])
            .arg(&self.dir)
            .arg(command)
            .env_clear()
            .envs([
                (
                    "PATH",
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                ),
                ("HOME", "/root"),
                ("LANG", "C.UTF-8"),
            ])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(io::stderr());
        let program = "setpriv and unshare (util-linux)";
        let status = child
            .status()
            .map_err(|e| Failure::failed(format!("running {program}: {e}")))?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::failed(format!("--run {command:?}: {status}"))
                .hint("it runs as /bin/sh -c in the image; nothing was stored")),
        }
    }

    /// Tells the device all that is free, and unmounts. What could not be written is an error here, and nowhere else.
    pub(crate) fn close(mut self) -> Result<(), Failure> {
        let root = self.root()?;
        let failed = |e: rustix::io::Errno| Failure::failed(format!("writing the image: {e}"));
        syncfs(&root).map_err(failed)?;
        drop(root);
        run(Command::new("fstrim").arg("--").arg(&self.dir))?;
        unmount(&self.dir, UnmountFlags::empty()).map_err(failed)?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = unmount(&self.dir, UnmountFlags::DETACH);
        }
    }
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let program = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|e| {
        Failure::failed(format!("running {program}: {e}")).hint("install mount and util-linux")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches(&format!("{program}: "));
    Err(Failure::failed(format!(
        "{program}: {said} ({})",
        output.status
    )))
}
