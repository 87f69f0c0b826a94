//! What the standard library has no words for: mounts, modules, file systems that are held, the end. All unsafe code of the first process.
#![allow(
    unsafe_code,
    reason = "nothing is linked to it but the standard library"
)]

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr::{from_mut, null, null_mut};

pub(crate) const MS_RDONLY: c_ulong = 1;
pub(crate) const MS_MOVE: c_ulong = 8192;
const MS_REMOUNT: c_ulong = 32;
pub(crate) const SIGKILL: c_int = 9;
pub(crate) const SIGTERM: c_int = 15;
const WNOHANG: c_int = 1;
// linux/fs.h, ext4.h, sockios.h.
const FIFREEZE: c_ulong = 0xc004_5877;
const FITHAW: c_ulong = 0xc004_5878;
const FITRIM: c_ulong = 0xc018_5879;
const EXT4_IOC_CHECKPOINT: c_ulong = 0x4004_662b;
const CHECKPOINT_DISCARD: u32 = 1;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const IFF_UP: u16 = 1;
// asm-generic/ioctls.h.
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSWINSZ: c_ulong = 0x5414;
const MODULE_INIT_COMPRESSED_FILE: c_uint = 4;
const RB_POWER_OFF: c_int = 0x4321_fedc;
#[cfg(target_arch = "x86_64")]
const SYS_FINIT_MODULE: c_long = 313;
#[cfg(not(target_arch = "x86_64"))]
const SYS_FINIT_MODULE: c_long = 273;

// SAFETY: as the C library declares them.
unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn setsid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn sync();
    fn reboot(command: c_int) -> c_int;
}

fn done(result: impl Into<i64>) -> io::Result<()> {
    match result.into() {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn mounted(
    source: &str,
    target: &str,
    kind: &str,
    flags: c_ulong,
    data: &str,
) -> io::Result<()> {
    let [source, target, kind, data] = [source, target, kind, data].map(CString::new);
    let (source, target, kind, data) = (source?, target?, kind?, data?);
    let data = data.as_ptr().cast();
    // SAFETY: strings that end, and live until it returns.
    done(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) })
}

/// Loads a module from its file; the kernel itself unpacks one that is compressed.
pub(crate) fn load(module: &File, is_compressed: bool) -> io::Result<()> {
    let flags = if is_compressed {
        MODULE_INIT_COMPRESSED_FILE
    } else {
        0
    };
    // SAFETY: a descriptor that is open, and a string that ends.
    done(unsafe { syscall(SYS_FINIT_MODULE, module.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Waits until some child ends, whoever's it was: its process, and how it ended.
pub(crate) fn wait_for_any() -> io::Result<(c_int, c_int)> {
    let mut status = 0;
    // SAFETY: it writes to `status`.
    let pid = unsafe { waitpid(-1, &raw mut status, 0) };
    done(pid).map(|()| (pid, status))
}

/// Sends everybody else a signal. Nobody is there: just as well.
pub(crate) fn signal_all(signal: c_int) {
    // SAFETY: it takes no pointers.
    unsafe { kill(-1, signal) };
}

/// Reaps what has ended; is anybody left?
pub(crate) fn has_children() -> bool {
    loop {
        // SAFETY: without a place for it, the status is not said.
        match unsafe { waitpid(-1, null_mut(), WNOHANG) } {
            0 => return true,
            1.. => {}
            _ => return false,
        }
    }
}

/// All that was written is on the disks.
pub(crate) fn sync_all() {
    // SAFETY: it takes nothing.
    unsafe { sync() }
}

/// Everything is written back, and no more is written.
pub(crate) fn make_read_only(at: &str) -> io::Result<()> {
    let at = CString::new(at)?;
    let flags = MS_REMOUNT | MS_RDONLY;
    // SAFETY: a string that ends, and lives until it returns; of the others a remount takes none.
    done(unsafe { mount(null(), at.as_ptr(), null(), flags, null()) })
}

/// Discards all that is free in its file system.
pub(crate) fn trim(root: &File) -> io::Result<()> {
    // `struct fstrim_range`: start, length, the least that is worth it.
    let mut range = [0, u64::MAX, 0];
    // SAFETY: FITRIM reads and writes three u64, which outlive the call.
    done(unsafe { ioctl(root.as_raw_fd(), FITRIM, from_mut(&mut range)) })
}

/// Empties the journal, and discards its blocks.
pub(crate) fn checkpoint(root: &File) -> io::Result<()> {
    let mut flags = CHECKPOINT_DISCARD;
    // SAFETY: EXT4_IOC_CHECKPOINT reads one u32; other file systems know no such number.
    done(unsafe { ioctl(root.as_raw_fd(), EXT4_IOC_CHECKPOINT, from_mut(&mut flags)) })
}

/// Syncs, and holds all writers.
pub(crate) fn freeze(root: &File) -> io::Result<()> {
    // SAFETY: FIFREEZE ignores its argument.
    done(unsafe { ioctl(root.as_raw_fd(), FIFREEZE, 0) })
}

/// Lets writers go on.
pub(crate) fn thaw(root: &File) -> io::Result<()> {
    // SAFETY: FITHAW ignores its argument.
    done(unsafe { ioctl(root.as_raw_fd(), FITHAW, 0) })
}

/// How large the terminal is, which a serial line does not say. None is 0.
pub(crate) fn set_window(terminal: &File, rows: u16, columns: u16) -> io::Result<()> {
    // `struct winsize`.
    let mut size = [rows, columns, 0, 0];
    // SAFETY: TIOCSWINSZ reads four u16, which outlive the call.
    done(unsafe { ioctl(terminal.as_raw_fd(), TIOCSWINSZ, from_mut(&mut size)) })
}

/// Starts it in a session of its own, with its standard input as the terminal: Ctrl-C is for it, and for what it starts.
pub(crate) fn spawn_in_session(command: &mut Command) -> io::Result<Child> {
    let own = || {
        // SAFETY: neither takes a pointer; both are fit for the time between fork and exec.
        done(unsafe { setsid() }).and_then(|()| done(unsafe { ioctl(0, TIOCSCTTY, 0) }))
    };
    // SAFETY: it calls those two, and allocates nothing.
    unsafe { command.pre_exec(own) };
    command.spawn()
}

/// 127.0.0.1 answers.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // `struct ifreq`: a name of 16 bytes, flags of 16 bits, room.
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&IFF_UP.to_ne_bytes());
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, of 40 bytes, which outlives the call.
    done(unsafe { ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, from_mut(&mut request)) })
}

/// The end of the guest.
pub(crate) fn power_off() {
    // SAFETY: they take no pointers.
    unsafe {
        sync();
        reboot(RB_POWER_OFF);
    }
}
