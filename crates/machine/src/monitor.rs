//! [`Monitor`]: QEMU's own (QMP), by which a machine is stopped for a moment; and its memory, which is a file then (memfd).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Monitor(BufReader<UnixStream>);

/// What QEMU is told for it.
pub(crate) fn arguments(memory_mib: u32, socket: &Path) -> [String; 6] {
    [
        "-object".into(),
        format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
        "-machine".into(),
        "memory-backend=memory".into(),
        "-qmp".into(),
        format!("unix:{},server=on,wait=off", socket.display()),
    ]
}

impl Monitor {
    /// QEMU listens there since before its machine began.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.tell("qmp_capabilities");
        monitor
    }

    /// Something without arguments. What it says of other things meanwhile is left out.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.0.get_mut(), r#"{{"execute": "{command}"}}"#).unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "QEMU is gone");
            if line.starts_with(r#"{"return""#) {
                return;
            }
            assert!(!line.starts_with(r#"{"error""#), "{command}: {line}");
        }
    }
}

/// The file that is a process's memory of a machine.
pub(crate) fn memory_of(pid: u32) -> PathBuf {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        let target = std::fs::read_link(path);
        target.is_ok_and(|target| {
            target
                .to_string_lossy()
                .starts_with("/memfd:memory-backend")
        })
    };
    paths.find(is_it).expect("it was booted with a monitor")
}
