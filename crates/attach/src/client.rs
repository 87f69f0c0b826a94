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
//! | a stream that ends, and it is | the kernel gave it up: a request took longer than [`REQUEST_WITHIN`] | once all of it is answered, the kernel gets another in its place, and sends again what was not answered in time; a want of files or of memory is waited for |
//!
//! When the last has ended, the kernel has let go. A request that took too long is sent again: over another socket at once, where there are several, and it is the fence that holds
//! it back until the first is done with (`fence.rs`); over the one that takes its place, where there is one.
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
use crate::fence::Fence;
use crate::loops::SECTOR_BYTES;
use crate::nbds;
use crate::netlink::{Change, Connect, Netlink};

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
    device: Arc<dyn Device>,
    /// Of a device of several sockets.
    fence: Option<Arc<Fence>>,
    say: Say,
    label: String,
    /// Once it is connected.
    index: OnceLock<u32>,
    stopping: AtomicBool,
    /// Sockets that have not ended.
    left: AtomicUsize,
    ended: Ended,
}

/// A socket that has not ended; dropped when it has, however that came.
struct Counted(Arc<Shared>);

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
        let export = Export {
            name: String::new(),
            description: String::new(),
            device: Arc::clone(&device),
        };
        let failed = || AttachError::io("serving the kernel's NBD client");
        let report = Arc::clone(&say);
        let server = Server::new(export, Box::new(move |line| report(line))).map_err(failed())?;
        let connections = match start {
            Start::New => options.connections,
            Start::Resume { connections, .. } => *connections,
        };
        let fence = (connections > 1).then(|| Arc::new(Fence::new(Arc::clone(&device))));
        // Where it goes wrong from here on, what has been begun ends with this.
        let mut client = Self {
            shared: Arc::new(Shared {
                server,
                device,
                fence,
                say,
                label,
                index: OnceLock::new(),
                stopping: AtomicBool::new(false),
                left: AtomicUsize::new(connections),
                ended: Ended::new(on_end),
            }),
            device: PathBuf::new(),
            connections,
        };
        let sockets: io::Result<Vec<_>> = (0..connections).map(|_| client.shared.open()).collect();
        let sockets = sockets.map_err(failed())?;
        let index = client.shared.tell(&netlink, start, options, &sockets)?;
        let _ = client.shared.index.set(index);
        client.device = nbds::path(index);
        Ok(client)
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

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.ended.tell();
        }
    }
}

impl Shared {
    /// Gives the kernel its sockets; the number of its device.
    fn tell(
        &self,
        netlink: &Netlink,
        start: &Start,
        options: Options,
        sockets: &[OwnedFd],
    ) -> Result<u32, AttachError> {
        match start {
            Start::New => netlink.connect(
                &Connect {
                    // What is left behind the last whole sector cannot be reached.
                    size_bytes: self.device.geometry().size_bytes / SECTOR_BYTES * SECTOR_BYTES,
                    sector_bytes: SECTOR_BYTES,
                    flags: self.server.transmission_flags(),
                    request_within: REQUEST_WITHIN,
                    dead_timeout: options.dead_timeout,
                    label: &self.label,
                },
                sockets,
            ),
            Start::Resume { index, .. } => {
                let change = Change {
                    dead_timeout: Some(options.dead_timeout),
                    goes_with_last_user: Some(false),
                };
                netlink.reconfigure(*index, &self.label, &change, sockets)?;
                Ok(*index)
            }
        }
    }

    /// Opens a pair, and serves our end, by a thread that waits for its end; the kernel's.
    fn open(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let (give, take) = mpsc::channel();
        let counted = Counted(Arc::clone(self));
        thread::Builder::new()
            .name("nbd-socket".into())
            .spawn(move || {
                // Handed down to the thread that serves: see `server.rs`.
                let _ = configure_io_flusher_behavior(true);
                match counted.0.pair() {
                    Ok((served, kernels)) => {
                        // Whoever asked for it may have given up.
                        let _ = give.send(Ok(kernels));
                        counted.0.watch(served);
                    }
                    Err(error) => drop(give.send(Err(error))),
                }
            })?;
        let gone = || io::Error::other("the thread of a socket has ended");
        take.recv().map_err(|_| gone())?
    }

    fn pair(&self) -> io::Result<(Served, OwnedFd)> {
        let (ours, kernels) = UnixStream::pair()?;
        let ours = OwnedFd::from(ours);
        let device: Arc<dyn Device> = match &self.fence {
            Some(fence) => Arc::new(fence.lane(&ours)?),
            None => Arc::clone(&self.device),
        };
        let served = self.server.serve_transmission(ours, device)?;
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
            if begun.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            match self.another(&mut pause) {
                Some(another) => served = another,
                None => return,
            }
        }
    }

    /// Another socket in the place of one that has ended, as soon as it can be had; nothing where the device is not ours any more.
    fn another(&self, pause: &mut Duration) -> Option<Served> {
        let mut is_said = false;
        loop {
            thread::sleep(*pause);
            *pause = (2 * *pause).min(PAUSE_MAX);
            match self.open_again() {
                Ok(again) => return again,
                Err(error) if !is_said => {
                    is_said = true;
                    (self.say)(&format!(
                        "a socket of the kernel's NBD client has ended, and there is no other yet: {error}"
                    ));
                }
                Err(_) => {}
            }
        }
    }

    /// An error says nothing of the device.
    fn open_again(&self) -> Result<Option<Served>, AttachError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let early = || io::Error::other("it is being connected");
        let Some(&index) = self.index.get() else {
            return Err(AttachError::io("an NBD device")(early()));
        };
        // The kernel refuses a label that is another's, and lets one pass where the other has none.
        if !nbds::is_labelled(index, &self.label)? {
            return Ok(None);
        }
        let Some(netlink) = Netlink::open()? else {
            return Ok(None);
        };
        let opened = self.pair();
        let (served, kernels) = opened.map_err(AttachError::io("opening a socket"))?;
        let change = Change::default();
        match netlink.reconfigure(index, &self.label, &change, &[kernels]) {
            Err(error) if error.is_refusal() => Ok(None),
            other => other.map(|()| Some(served)),
        }
    }
}
