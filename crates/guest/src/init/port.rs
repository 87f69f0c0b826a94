//! [`Port`]: the way to the host. Any thread may send; one receives.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::frame;

/// See the module.
pub(crate) struct Port {
    file: File,
    /// A frame goes out whole.
    sending: Mutex<()>,
}

impl Port {
    /// The one that there is, once the driver has found it.
    pub(crate) fn find() -> io::Result<Self> {
        loop {
            for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
                let entry = entry?;
                let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
                let path = Path::new("/dev").join(entry.file_name());
                if name.trim_end() == "cowslip" && path.exists() {
                    let file = File::options().read(true).write(true).open(path)?;
                    let sending = Mutex::new(());
                    return Ok(Self { file, sending });
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn send(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        frame::send(&mut &self.file, kind, payload)
    }

    /// Nothing where the host has gone.
    pub(crate) fn receive(&self) -> io::Result<Option<(u8, Vec<u8>)>> {
        match frame::receive(&mut &self.file) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            other => other.map(Some),
        }
    }
}
