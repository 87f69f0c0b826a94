//! What the standard library has no words for: mounts, modules, the end. All unsafe code of the first process.
#![allow(
    unsafe_code,
    reason = "nothing is linked to it but the standard library"
)]

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

pub(crate) const MS_RDONLY: c_ulong = 1;
pub(crate) const MS_MOVE: c_ulong = 8192;
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

/// The end of the machine.
pub(crate) fn power_off() {
    // SAFETY: they take no pointers.
    unsafe {
        sync();
        reboot(RB_POWER_OFF);
    }
}
