//! A server over a [`Ram`] on a unix socket of its own, and what tools need to reach it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cowslip_nbd::client::Address;
use cowslip_nbd::{Client, Export, Listen, Server};

use super::ram::Ram;

pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) ram: Arc<Ram>,
    pub(crate) said: Arc<Mutex<Vec<String>>>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) const MIB: usize = 1 << 20;

impl Rig {
    pub(crate) fn new(ram: Ram) -> Self {
        let ram = Arc::new(ram);
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let export = Export {
            name: "disk".into(),
            description: "a test's disk".into(),
            device: Arc::clone(&ram) as _,
        };
        let report = Arc::clone(&said);
        let say = Box::new(move |line: &str| report.lock().unwrap().push(line.to_owned()));
        let server = Server::new(export, say).unwrap();
        let dir = tempfile::tempdir().unwrap();
        server
            .listen(Listen::Unix(dir.path().join("socket")))
            .unwrap();
        Self {
            server,
            ram,
            said,
            dir,
        }
    }

    pub(crate) fn of_bytes(size_bytes: u64) -> Self {
        Self::new(Ram::new(size_bytes))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path().display())
    }

    pub(crate) fn socket(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(Address::Unix(&self.path()), "").unwrap()
    }
}

/// Bytes that differ from place to place, and are never zero.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(state >> 56).unwrap() | 1
        })
        .collect()
}
