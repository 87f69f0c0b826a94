//! `Client`: a device of the kernel's NBD client, and our end of its sockets.
//!
//! ```text
//! ext4, xfs, ... -> /dev/nbdN -> the kernel's NBD client -> pairs of sockets -> cowslip_nbd::Server -> Device
//! ```
//!
//! Each socket has a thread that waits for its end:
//!
//! | the end | what it means | what is done |
//! |---|---|---|
//! | DISC | the device is disconnected: with its last user, or by whoever says `nbd-client -d` | nothing: that socket has ended |
//! | a stream that ends, and the device is not ours any more | the same | nothing |
//! | a stream that ends, and it is | the kernel gave it up: a request took longer than [`REQUEST_WITHIN`] | once all of it is answered, the kernel gets another in its place, and sends again what was not answered in time |
//!
//! When the last has ended, the kernel has let go. A request that took too long on one of several sockets is sent again over another at once, while the first is
//! still at it: what was written to the same place in between may be overwritten by the first. With one socket it waits until that has ended. So one is the default.
//!
//! When this process dies the kernel keeps the device, for the time that it was given ([`Options::dead_timeout`]): whoever has
//! its label gives it new sockets (`Start::Resume`), and what waited goes on at once, what had been sent within [`REQUEST_WITHIN`] of that.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use cowslip_block::Device;
use cowslip_nbd::{Counters, Export, Gone, Served, Server};
use rustix::process::configure_io_flusher_behavior;

use crate::disk::Say;
use crate::ended::Ended;
use crate::error::AttachError;
use crate::loops::SECTOR_BYTES;
use crate::nbds;
use crate::netlink::{Change, Connect};

/// The kernel's patience with one request. It is also how long a request that a killed server had received waits before it
/// is sent to the next one.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// Sockets are given again at once, and then ever more slowly, as long as they do not last.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How the kernel's NBD client is to be used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sockets of a device; requests take turns on each.
    pub connections: usize,
    /// Without a server, requests wait so long for one before they fail.
    pub dead_timeout: Duration,
}

/// Where a device comes from.
pub(crate) enum Start {
    /// The kernel makes it.
    New,
    /// It is there, and waits for sockets, so many.
    Resume { index: u32, connections: usize },
}

/// See the module.
pub(crate) struct Client {
    shared: Arc<Shared>,
    device: PathBuf,
    connections: usize,
}

struct Shared {
    server: Server,
    label: String,
    /// Once it is connected.
    index: OnceLock<u32>,
    stopping: AtomicBool,
    /// Sockets that have not ended.
    left: AtomicUsize,
    ended: Ended,
}

impl Client {
    /// `on_end` is told when the kernel has let go.
    pub(crate) fn start(
        device: Arc<dyn Device>,
        label: String,
        start: &Start,
        options: Options,
        say: Say,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, AttachError> {
        let netlink = nbds::netlink()?;
        let size_bytes = device.geometry().size_bytes;
        let export = Export {
            name: String::new(),
            description: String::new(),
            device,
        };
        let failed = || AttachError::io("serving the kernel's NBD client");
        let server = Server::new(export, Box::new(move |line| say(line))).map_err(failed())?;
        let connections = match start {
            Start::New => options.connections,
            Start::Resume { connections, .. } => *connections,
        };
        let shared = Arc::new(Shared {
            server,
            label,
            index: OnceLock::new(),
            stopping: AtomicBool::new(false),
            left: AtomicUsize::new(connections),
            ended: Ended::new(on_end),
        });
        let sockets: io::Result<Vec<_>> = (0..connections).map(|_| shared.open()).collect();
        let sockets = sockets.map_err(failed())?;
        let index = match start {
            Start::New => {
                let wanted = Connect {
                    // What is left behind the last whole sector cannot be reached.
                    size_bytes: size_bytes / SECTOR_BYTES * SECTOR_BYTES,
                    sector_bytes: SECTOR_BYTES,
                    flags: shared.server.transmission_flags(),
                    request_within: REQUEST_WITHIN,
                    dead_timeout: options.dead_timeout,
                    label: &shared.label,
                };
                netlink.connect(&wanted, &sockets)?
            }
            Start::Resume { index, .. } => {
                let change = Change {
                    dead_timeout: Some(options.dead_timeout),
                    goes_with_last_user: Some(false),
                };
                netlink.reconfigure(*index, &shared.label, &change, &sockets)?;
                *index
            }
        };
        // A thread that looks for it before sees a device that is not ours.
        let _ = shared.index.set(index);
        let device = nbds::path(index);
        Ok(Self {
            shared,
            device,
            connections,
        })
    }

    pub(crate) fn device(&self) -> PathBuf {
        self.device.clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// Has the kernel let go, after so long at most?
    pub(crate) fn ends_within(&self, within: Duration) -> bool {
        self.shared.ended.within(within)
    }

    /// What the kernel has asked for so far.
    pub(crate) fn told(&self) -> String {
        let Counters {
            reads,
            writes,
            zeroes,
            trims,
            fuas,
            flushes,
            ..
        } = self.shared.server.counters();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "the kernel sent READ {}, WRITE {}, WRITE_ZEROES {}, TRIM {}, of these with FUA {}, FLUSH {}",
            count(reads),
            count(writes),
            count(zeroes),
            count(trims),
            count(fuas),
            count(flushes)
        )
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.server.stop();
    }
}

impl Shared {
    /// Opens a pair, and serves our end, by a thread that waits for its end; the kernel's.
    fn open(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let (give, take) = mpsc::channel();
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name("nbd-socket".into())
            .spawn(move || {
                // Handed down to the thread that serves: see `server.rs`.
                let _ = configure_io_flusher_behavior(true);
                match shared.pair() {
                    Ok((served, kernels)) => {
                        // Whoever asked for it may have given up.
                        let _ = give.send(Ok(kernels));
                        shared.watch(served);
                    }
                    Err(error) => drop(give.send(Err(error))),
                }
                if shared.left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    shared.ended.tell();
                }
            })?;
        let gone = || io::Error::other("the thread of a socket has ended");
        take.recv().map_err(|_| gone())?
    }

    fn pair(&self) -> io::Result<(Served, OwnedFd)> {
        let (ours, kernels) = UnixStream::pair()?;
        let served = self.server.serve_transmission(ours.into())?;
        Ok((served, kernels.into()))
    }

    /// The table of the module; returns when the socket has ended for good.
    fn watch(&self, mut served: Served) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = Instant::now();
            if served.wait() == Gone::Disconnected {
                return;
            }
            pause = if begun.elapsed() > PAUSE_MAX {
                PAUSE_MIN
            } else {
                (2 * pause).min(PAUSE_MAX)
            };
            thread::sleep(pause);
            match self.open_again() {
                Some(again) => served = again,
                None => return,
            }
        }
    }

    /// Another socket in the place of one that has ended; nothing where the device is not ours any more.
    fn open_again(&self) -> Option<Served> {
        if self.stopping.load(Ordering::SeqCst) {
            return None;
        }
        let index = *self.index.get()?;
        let netlink = nbds::netlink().ok()?;
        let (served, kernels) = self.pair().ok()?;
        let change = Change::default();
        // Refused by the kernel where the label is another's, or the device disconnected.
        netlink
            .reconfigure(index, &self.label, &change, &[kernels])
            .ok()?;
        Some(served)
    }
}
