//! The control socket of a served session: how `cowslip snapshot` reaches the server.
//!
//! `control.sock` in the session's directory; one request a connection, one JSON object a line.
//! A client sends a [`Request`]; the server answers with any number of `progress` lines and ends
//! with `done` or `failed`. The socket is bound and reached through an open handle of the directory
//! (`/proc/self/fd/N/control.sock`), so that the length of its path does not matter: a unix
//! socket's address has room for 107 bytes (unix(7)).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cowslip_block::files::{Dir, RealDir};
use cowslip_snapshot::ids::SnapshotName;
use cowslip_snapshot::seal::SealProgress;
use cowslip_snapshot::session::{Seal, Session, SnapshotOptions};
use cowslip_snapshot::store::Store;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::report::Taken;

pub(crate) const SOCKET: &str = "control.sock";
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Whoever says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Progress is reported so often.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Request {
    Status,
    Snapshot {
        name: String,
        replace: bool,
        dedup: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Progress { done_blocks: u64, total_blocks: u64 },
    Done(Taken),
    Live(Live),
    Failed(Failure),
}

/// What a server says of its session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Live {
    pub(crate) block_size_bytes: u64,
    /// Blocks with bytes, and blocks zeroed or trimmed, since the last snapshot.
    pub(crate) dirty_blocks: u64,
    pub(crate) zero_blocks: u64,
    /// Zeroed blocks whose room has not been given back yet.
    pub(crate) held_blocks: u64,
    /// Room of all its caches and of their journals.
    pub(crate) cache_bytes: u64,
    pub(crate) journal_bytes: u64,
    /// Snapshots on their way.
    pub(crate) sealing: usize,
    /// Why it refuses writes, if it does.
    pub(crate) refuses_writes: Option<String>,
}

/// A path to the socket that is short, whatever the directory's. The handle has to stay open
/// while it is used.
fn short_path(dir: &RealDir) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET}", dir.fd().as_raw_fd()).into()
}

/// The server's side; ends when dropped.
pub(crate) struct Control {
    dir: Arc<RealDir>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens. The session's lock is held, so a socket that is there already is a dead server's.
    pub(crate) fn listen(
        dir: Arc<RealDir>,
        session: Arc<Session>,
        store: Arc<Store>,
    ) -> io::Result<Self> {
        match dir.remove(SOCKET) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(short_path(&dir))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let accept = move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (session, store) = (Arc::clone(&session), Arc::clone(&store));
                match stream {
                    // A client that cannot be served notices that the line is closed.
                    Ok(stream) => drop(
                        std::thread::Builder::new()
                            .name("control".into())
                            .spawn(move || answer(&stream, &session, &store)),
                    ),
                    // Out of descriptors, most likely: give others time to close some.
                    Err(_) => std::thread::sleep(TICK),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(accept)?;
        Ok(Self {
            dir,
            stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let woken = UnixStream::connect(short_path(&self.dir)).is_ok();
        drop(self.dir.remove(SOCKET));
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            drop(thread.join());
        }
    }
}

fn answer(stream: &UnixStream, session: &Session, store: &Arc<Store>) {
    let say = |answer: &Answer| {
        let mut line = serde_json::to_vec(answer).unwrap_or_default();
        line.push(b'\n');
        // A client that has gone away does not hold up the snapshot that it asked for.
        drop((&*stream).write_all(&line));
    };
    let timeouts = stream
        .set_read_timeout(Some(SILENCE))
        .and_then(|()| stream.set_write_timeout(Some(SILENCE)));
    let request = timeouts.and_then(|()| read_line(&mut BufReader::new(stream)));
    let request = match request.and_then(|line| Ok(serde_json::from_slice::<Request>(&line)?)) {
        Ok(request) => request,
        Err(error) => {
            return say(&Answer::Failed(Failure::usage(format!(
                "a bad request: {error}"
            ))));
        }
    };
    let answer = match request {
        Request::Status => status_of(session).map(Answer::Live),
        Request::Snapshot {
            name,
            replace,
            dedup,
        } => {
            let options = SnapshotOptions { replace, dedup };
            let mut progress = |p: SealProgress| {
                let (done_blocks, total_blocks) = (p.done_blocks, p.total_blocks);
                say(&Answer::Progress {
                    done_blocks,
                    total_blocks,
                });
            };
            take(session, store, &name, &options, &mut progress).map(Answer::Done)
        }
    };
    say(&answer.unwrap_or_else(Answer::Failed));
}

fn status_of(session: &Session) -> Result<Live, Failure> {
    let status = session
        .status()
        .map_err(|e| Failure::failed(format!("looking at the session: {e}")))?;
    Ok(Live {
        block_size_bytes: session.manifest().block_size_bytes.into(),
        dirty_blocks: status.dirty_blocks,
        zero_blocks: status.zero_blocks,
        held_blocks: status.held_blocks,
        cache_bytes: status.cache_bytes,
        journal_bytes: status.journal_bytes,
        sealing: status.frozen,
        refuses_writes: status.poisoned,
    })
}

/// Freezes, and waits until somebody else's thread has sealed.
fn take(
    session: &Session,
    store: &Arc<Store>,
    name: &str,
    options: &SnapshotOptions,
    progress: &mut dyn FnMut(SealProgress),
) -> Result<Taken, Failure> {
    let name: SnapshotName = name.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    let begun = std::time::Instant::now();
    let seal = session.freeze(&name, options)?;
    let header = wait(&seal, progress)?;
    Taken::new(store, &name, &header, seal.held(), begun.elapsed())
}

fn wait(
    seal: &Seal,
    progress: &mut dyn FnMut(SealProgress),
) -> Result<Arc<cowslip_snapshot::header::Header>, Failure> {
    loop {
        if let Some(outcome) = seal.wait(TICK) {
            return Ok(outcome?);
        }
        progress(seal.progress());
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// The client's side: asks the server of this session directory for a snapshot.
///
/// Nothing where no server listens there.
pub(crate) fn ask(
    dir: &RealDir,
    request: &Request,
    progress: &mut dyn FnMut(SealProgress),
) -> Option<Result<Taken, Failure>> {
    let stream = UnixStream::connect(short_path(dir)).ok()?;
    Some(match converse(&stream, request, progress) {
        Ok(Answer::Done(taken)) => Ok(taken),
        Ok(_) => Err(Failure::failed("the server answered something else")),
        Err(failure) => Err(failure),
    })
}

/// What the server of this session directory says of its session; nothing where none answers.
pub(crate) fn status(dir: &RealDir) -> Option<Live> {
    let stream = UnixStream::connect(short_path(dir)).ok()?;
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    match converse(&stream, &Request::Status, &mut |_| {}) {
        Ok(Answer::Live(live)) => Some(live),
        _ => None,
    }
}

fn converse(
    mut stream: &UnixStream,
    request: &Request,
    progress: &mut dyn FnMut(SealProgress),
) -> Result<Answer, Failure> {
    let lost = |error: io::Error| {
        Failure::failed(format!("the server went away: {error}"))
            .hint("the snapshot is finished when the session is served again")
    };
    let mut line = serde_json::to_vec(request).map_err(|e| lost(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(lost)?;
    let mut reader = BufReader::new(stream);
    loop {
        let line = read_line(&mut reader).map_err(lost)?;
        match serde_json::from_slice(&line).map_err(|e| lost(e.into()))? {
            Answer::Progress {
                done_blocks,
                total_blocks,
            } => {
                progress(SealProgress {
                    done_blocks,
                    total_blocks,
                });
            }
            Answer::Failed(failure) => return Err(failure),
            last => return Ok(last),
        }
    }
}
