//! [`Qemu`]: the program, what it is told, and its end.
//!
//! It is a child that dies with the thread that started it (setpriv --pdeathsig), in a process group of its own: Ctrl-C is for us. All that it
//! has of this machine are descriptors that it inherits.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::life::Event;
use crate::failure::{Failure, Kind};

const QEMU: &str = "qemu-system-x86_64";
/// Of what it, or the guest's console, said last.
const TAIL_BYTES: usize = 16 << 10;
const TAIL_LINES: usize = 25;

/// What a guest is made of, whoever runs its instructions.
pub(crate) struct Machine {
    pub(crate) kernel: OwnedFd,
    pub(crate) initrd: OwnedFd,
    /// The kernel's command line.
    pub(crate) line: String,
    pub(crate) memory_mib: u64,
    pub(crate) cpus: u8,
    pub(crate) read_only: bool,
    /// What is said on its console goes to standard output.
    pub(crate) shows_console: bool,
    pub(crate) more: Vec<OsString>,
}

/// Of an emulated processor the kernel need not ask the time, nor mend what it does not have: seconds.
const LINE_TCG: &str =
    " mitigations=off nokaslr no_timer_check clocksource=acpi_pm cryptomgr.notests";

/// Our ends of its wires; the disk's goes to who serves it.
pub(crate) struct Wires {
    pub(crate) disk: UnixStream,
    pub(crate) agent: UnixStream,
    pub(crate) monitor: UnixStream,
    /// What is written here is typed at the console; what is said there has its reader.
    pub(crate) console: UnixStream,
}

/// See the module. It ends with this.
pub(crate) struct Qemu {
    pidfd: OwnedFd,
    complaints: Tail,
    console: Tail,
}

/// Where the programs are; or which package has what is missing.
pub(crate) fn find_programs() -> Result<(), Failure> {
    for (program, package) in [(QEMU, "qemu-system-x86"), ("setpriv", "util-linux")] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            let message = format!("{program} is not on the PATH");
            return Err(Failure::new(Kind::NotFound, message)
                .hint(format!("it comes with QEMU or util-linux (Debian: {package}); without QEMU, `cowslip serve` works with any other monitor")));
        }
    }
    Ok(())
}

impl Qemu {
    /// Starts it. It says [`Event::Gone`] when it ends.
    pub(crate) fn start(
        machine: &Machine,
        is_kvm: bool,
        tell: &Sender<Event>,
    ) -> Result<(Self, Wires), Failure> {
        let failed = |e: io::Error| Failure::failed(format!("starting {QEMU}: {e}"));
        let (mut command, wires) = command(machine, is_kvm).map_err(failed)?;
        let console = wires.console.try_clone().map_err(failed)?;
        let mut child = command.spawn().map_err(failed)?;
        // QEMU has its ends now; that they close is how we hear of its end.
        drop(command);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let pidfd = pidfd.map_err(|e| failed(e.into()))?;
        let said = child.stderr.take();
        let qemu = Self {
            pidfd,
            complaints: Tail::default(),
            console: Tail::default(),
        };
        let tail = qemu.console.clone();
        let shows = machine.shows_console;
        thread::spawn(move || tail.follow(console, shows));
        let tail = qemu.complaints.clone();
        let tell = tell.clone();
        thread::spawn(move || {
            if let Some(said) = said {
                tail.follow(said, false);
            }
            let _ = child.wait();
            let _ = tell.send(Event::Gone);
        });
        Ok((qemu, wires))
    }

    pub(crate) fn kill(&self) {
        // Gone already: just as well.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// What it complained of, in one line.
    pub(crate) fn complaints(&self) -> String {
        let said = self.complaints.text();
        let lines = said
            .lines()
            .map(|line| line.trim_start_matches(&format!("{QEMU}: ")));
        lines.collect::<Vec<_>>().join("; ")
    }

    /// The last lines of the console.
    pub(crate) fn console(&self) -> String {
        let said = self.console.text();
        let lines: Vec<_> = said.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last of what somebody says: no more, however much that is.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// To its end.
    fn follow(&self, mut from: impl Read, shows: bool) {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut part) {
            if shows {
                let mut out = io::stdout();
                // Where nobody reads it, it is kept all the same.
                let _ = out.write_all(&part[..length]).and_then(|()| out.flush());
            }
            let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            tail.extend(&part[..length]);
            let too_much = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..too_much);
        }
    }

    /// Without what a terminal would act on.
    fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.chars()
            .filter(|c| *c == '\n' || !c.is_control())
            .collect()
    }
}

/// What QEMU is told, and our ends of its wires. QEMU's own ends live as long as the command.
fn command(machine: &Machine, is_kvm: bool) -> io::Result<(Handing, Wires)> {
    let mut command = Handing::new();
    command.words([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.words([
        "-machine",
        "q35,usb=off,vmport=off,smm=off,hpet=off",
        "-nic",
        "none",
    ]);
    let (accel, cpu, more) = match is_kvm {
        true => ("kvm", "host", ""),
        // Five levels of page tables would only cost time.
        false => ("tcg", "max,la57=off", LINE_TCG),
    };
    command.words(["-accel", accel, "-cpu", cpu]);
    command.words([
        "-smp",
        &machine.cpus.to_string(),
        "-m",
        &machine.memory_mib.to_string(),
    ]);
    let kernel = command.hand(machine.kernel.try_clone()?)?;
    let initrd = command.hand(machine.initrd.try_clone()?)?;
    command.words(["-kernel", &format!("/proc/self/fd/{kernel}")]);
    command.words(["-initrd", &format!("/proc/self/fd/{initrd}")]);
    command.words(["-append", &format!("{}{more}", machine.line)]);
    let (console, fd) = command.wire()?;
    command.words([
        "-chardev",
        &format!("socket,id=console,fd={fd}"),
        "-serial",
        "chardev:console",
    ]);
    let (agent, fd) = command.wire()?;
    command.words([
        "-chardev",
        &format!("socket,id=agent,fd={fd}"),
        "-device",
        "virtio-serial-pci",
    ]);
    let port = format!("virtserialport,chardev=agent,name={}", cowslip_guest::PORT);
    command.words(["-device", &port]);
    let (monitor, fd) = command.wire()?;
    command.words([
        "-chardev",
        &format!("socket,id=monitor,fd={fd}"),
        "-mon",
        "chardev=monitor,mode=control",
    ]);
    let (disk, fd) = command.wire()?;
    let node = serde_json::json!({
        "driver": "nbd",
        "node-name": "disk",
        "read-only": machine.read_only,
        "discard": "unmap",
        "detect-zeroes": "off",
        "server": { "type": "fd", "str": fd.to_string() },
    });
    command.words([
        "-blockdev",
        &node.to_string(),
        "-device",
        // A full disk is the guest's to hear of: QEMU would stop it, and wait for somebody who lets it go on.
        "virtio-blk-pci,drive=disk,werror=report,rerror=report",
    ]);
    command.command.args(&machine.more);
    let wires = Wires {
        disk,
        agent,
        monitor,
        console,
    };
    Ok((command, wires))
}

/// A command, and the descriptors that it inherits.
struct Handing {
    command: Command,
    theirs: Vec<OwnedFd>,
}

impl Handing {
    fn new() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.process_group(0);
        Self {
            command,
            theirs: Vec::new(),
        }
    }

    fn words<const N: usize>(&mut self, words: [&str; N]) {
        self.command.args(words);
    }

    /// Hands it over; its number there.
    fn hand(&mut self, fd: OwnedFd) -> io::Result<i32> {
        // Whoever else is started meanwhile has it as well; nobody is.
        fcntl_setfd(&fd, FdFlags::empty())?;
        let number = fd.as_raw_fd();
        self.theirs.push(fd);
        Ok(number)
    }

    fn wire(&mut self) -> io::Result<(UnixStream, i32)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((ours, self.hand(theirs.into())?))
    }

    fn spawn(&mut self) -> io::Result<std::process::Child> {
        self.command.spawn()
    }
}
