//! [`Machine`]: what is to be booted, and with what.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::monitor::{self, Monitor};
use crate::{Kernel, Running};

/// `max` has what TCG can do, nested SVM with it; five levels of page tables would only cost time.
const CPU: &str = "max,la57=off";
/// No clock to calibrate, no patches against what an emulated processor does not have: seconds.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 reboot=t loglevel=4 random.trust_cpu=on mitigations=off nokaslr no_timer_check \
    clocksource=acpi_pm cryptomgr.notests";
/// Until it takes commands: 6 s where nobody else wants the processor.
const BOOT_WITHIN: Duration = Duration::from_secs(180);

/// May the machine change a directory that it shares?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may not, and may miss what is changed outside.
    Read,
    /// It may, and each sees at once what the other did.
    Write,
}

/// See the module. Its process dies with the thread that booted it.
#[derive(Debug)]
pub struct Machine {
    kernel: Kernel,
    memory_mib: u32,
    is_monitored: bool,
    shares: Vec<(PathBuf, Access)>,
    qemu: Vec<OsString>,
}

impl Machine {
    /// With 1 GiB of memory, and nothing else.
    pub fn new(kernel: &Kernel) -> Self {
        Self {
            kernel: kernel.clone(),
            memory_mib: 1024,
            is_monitored: false,
            shares: Vec::new(),
            qemu: Vec::new(),
        }
    }

    /// Its memory.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// It can be stopped, and its memory is a file: [`Running::stop`], [`Running::memory`].
    #[must_use]
    pub fn monitored(mut self) -> Self {
        self.is_monitored = true;
        self
    }

    /// A directory of this machine, that is to be there at its own path: below `/tmp`, or written to. Outer ones before inner ones.
    #[must_use]
    pub fn share(mut self, dir: &Path, access: Access) -> Self {
        self.shares.push((dir.canonicalize().unwrap(), access));
        self
    }

    /// More arguments for QEMU: disks, say.
    #[must_use]
    pub fn qemu<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.qemu
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Boots it; it takes commands then.
    pub fn boot(self) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let initramfs = dir.path().join("initramfs");
        let shares: Vec<_> = self.shares.iter().map(described).collect();
        std::fs::write(&initramfs, self.kernel.initramfs(&shares)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = self.command(&initramfs, &dir.path().join("console"));
        let monitor = dir.path().join("monitor");
        if self.is_monitored {
            command.args(monitor::arguments(self.memory_mib, &monitor));
        }
        let said = File::create(dir.path().join("qemu")).unwrap();
        // Its end of the connection is its standard input: that is inherited by it, and by nobody else.
        command.stdin(OwnedFd::from(theirs));
        command.stdout(Stdio::null()).stderr(said);
        let child = command.spawn().unwrap();
        drop(command);
        let mut running = Running::new(child, ours, dir);
        running.wait_until_ready(BOOT_WITHIN);
        if self.is_monitored {
            running.monitor = Some(Monitor::connect(&monitor));
        }
        running
    }

    fn command(&self, initramfs: &Path, console: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args(["-machine", "q35,usb=off,vmport=off,smm=off,hpet=off"]);
        // More than one would be patched under each other's feet: rarely, but then the kernel crashes.
        command.args(["-accel", "tcg", "-cpu", CPU, "-smp", "1", "-nic", "none"]);
        command.args(["-m", &self.memory_mib.to_string(), "-append", COMMAND_LINE]);
        command.arg("-kernel").arg(self.kernel.program());
        command.arg("-initrd").arg(initramfs);
        command.arg("-serial").arg(with_path("file:", console));
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-chardev", "socket,id=commands,fd=0"]);
        command.args(["-device", "virtserialport,chardev=commands,name=cowslip"]);
        self.nine(&mut command, "root", Path::new("/"), Access::Read);
        self.nine(
            &mut command,
            "modules",
            &self.kernel.modules(),
            Access::Read,
        );
        for (number, (path, access)) in self.shares.iter().enumerate() {
            self.nine(&mut command, &format!("share{number}"), path, *access);
        }
        command.args(&self.qemu);
        command
    }

    /// A directory over 9p, by a tag.
    fn nine(&self, command: &mut Command, tag: &str, path: &Path, access: Access) {
        let mut directory = with_path(&format!("local,id={tag},path="), path);
        directory.push(",security_model=none,multidevs=remap");
        if access == Access::Read {
            directory.push(",readonly=on");
        }
        command.arg("-fsdev").arg(directory);
        let device = format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}");
        command.args(["-device", &device]);
    }
}

/// A value of QEMU's that ends with a path: a comma in it is doubled.
fn with_path(before: &str, path: &Path) -> OsString {
    let path = path.to_str().expect("the path of a test is text");
    format!("{before}{}", path.replace(',', ",,")).into()
}

fn described((path, access): &(PathBuf, Access)) -> String {
    let access = match access {
        Access::Read => "ro",
        Access::Write => "rw",
    };
    format!("{access} {}", path.display())
}
