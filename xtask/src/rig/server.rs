//! [`Server`]: `cowslip serve` as a process, ready when it says so, and gone when dropped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cowslip_nbd::Client;
use cowslip_nbd::client::Address;
use rustix::process::{Pid, Signal, kill_process};

/// For whatever takes milliseconds, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of what a server says, so many lines are remembered.
const LINES: usize = 100;
/// One request of a read of all.
const CHUNK: usize = 1 << 20;
/// Of them, so many are on their way.
const CHUNKS: usize = 4;

/// See the module.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
    /// What it said when it was ready.
    pub(crate) ready: String,
    said: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts it; returns when it is ready.
    pub(crate) fn start(mut command: Command, socket: PathBuf) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting a server")?;
        let stderr = BufReader::new(child.stderr.take().expect("asked for above"));
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (say, ready) = channel();
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("ready:") {
                    let _ = say.send(line);
                    continue;
                }
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.push(line);
                let over = heard.len().saturating_sub(LINES);
                heard.drain(..over);
            }
        });
        let mut server = Self {
            child,
            socket,
            ready: String::new(),
            said,
        };
        server.ready = server.wait_until_ready(&ready)?;
        Ok(server)
    }

    fn wait_until_ready(&self, ready: &Receiver<String>) -> Result<String> {
        match ready.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(why) => bail!("the server is not ready ({why}): {}", self.said()),
        }
    }

    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(Address::Unix(&self.socket), "").context("connecting to the server")
    }

    /// All bytes of the device, through a connection of its own.
    pub(crate) fn read_all(&self) -> Result<Vec<u8>> {
        let read = read_all(&mut self.client()?);
        read.with_context(|| format!("the server says: {:?}", self.said()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where what it says is remembered.
    pub(crate) fn hears(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.said)
    }

    /// What it said beside being ready.
    pub(crate) fn said(&self) -> String {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("\n")
    }

    /// Fails where it has ended by itself, or where a thread of it panicked.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("a server ended by itself ({status}): {}", self.said());
        }
        if self.said().contains("panicked") {
            bail!("a server's thread panicked: {}", self.said());
        }
        Ok(())
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended well.
    pub(crate) fn end(self) -> Result<()> {
        let said = Arc::clone(&self.said);
        let status = self.end_somehow()?;
        if !status.success() {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            bail!("a server ended badly ({status}): {}", said.join("\n"));
        }
        Ok(())
    }

    /// SIGTERM, and waits until it has ended; it may say that not all went well.
    pub(crate) fn end_somehow(mut self) -> Result<ExitStatus> {
        self.check()?;
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a server has a pid")?, Signal::TERM)?;
        let status = wait_within(&mut self.child, PATIENCE)?;
        let Some(status) = status else {
            bail!("a server did not end within {PATIENCE:?}: {}", self.said());
        };
        if status.code().is_none() || self.said().contains("panicked") {
            bail!("a server ended badly ({status}): {}", self.said());
        }
        Ok(status)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By its own id, which is not given to another before it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a child ended; nothing where it does not in this time.
pub(crate) fn wait_within(child: &mut Child, time: Duration) -> Result<Option<ExitStatus>> {
    let give_up = Instant::now() + time;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() > give_up {
            return Ok(status);
        }
        sleep(Duration::from_millis(2));
    }
}

/// All bytes of a device.
pub(crate) fn read_all(client: &mut Client) -> Result<Vec<u8>> {
    use cowslip_block::ByteRange;
    use cowslip_nbd::client::{Command, Reply};
    let size = usize::try_from(client.info().size_bytes)?;
    let mut all = vec![0; size];
    let mut on_their_way = std::collections::HashMap::new();
    let mut next = 0;
    while next < size || !on_their_way.is_empty() {
        while next < size && on_their_way.len() < CHUNKS {
            let end = size.min(next + CHUNK);
            let range = ByteRange::new(next as u64, end as u64);
            let cookie = client.submit(Command::Read {
                range,
                whole: false,
            })?;
            on_their_way.insert(cookie, next);
            next = end;
        }
        let (cookie, answer) = client.complete()?;
        let at = on_their_way
            .remove(&cookie)
            .context("an answer to no question")?;
        match answer {
            Ok(Reply::Data(data)) => all[at..at + data.len()].copy_from_slice(&data),
            other => bail!("reading at {at}: {other:?}"),
        }
    }
    Ok(all)
}

/// A server of an image, on a socket of its own.
pub(crate) fn socket_argument(path: &Path) -> String {
    format!("unix:{}", path.display())
}
