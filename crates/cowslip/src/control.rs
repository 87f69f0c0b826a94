//! The control socket of a served session: how `cowslip snapshot` reaches the server.
//!
//! `control.sock` in the session's directory; one request a connection, one JSON object a line.
//! A client sends a [`Request`]; the server answers with any number of `goes_on`, `progress` and `retrying`
//! lines, and ends with one of the others. Where the server runs the session's guest, it holds that itself while the device is frozen. A client that leaves changes nothing, but for one that holds a guest, and has not said that it did. The socket is bound and reached through an open handle of the directory
//! (`/proc/self/fd/N/control.sock`), so that the length of its path does not matter: a unix
//! socket's address has room for 107 bytes (unix(7)).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cowslip_block::files::{Dir, RealDir};
use cowslip_snapshot::header::Header;
use cowslip_snapshot::ids::SnapshotName;
use cowslip_snapshot::seal::SealError;
use cowslip_snapshot::session::{Seal, Session, SessionError, SnapshotOptions};
use cowslip_snapshot::store::Store;
use serde::{Deserialize, Serialize};

use crate::accept::accept;
use crate::failure::Failure;
use crate::report::Taken;
use crate::run::{Guest, Held, Hold};

pub(crate) const SOCKET: &str = "control.sock";
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Whoever says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Whoever has a session open for longer, and does not serve it, is not waited for.
const OPEN_FOR_A_MOMENT: Duration = Duration::from_secs(10);
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
        fs_aware: bool,
        /// The client holds the guest until it is told that it goes on; then it says, in a line, that it was held until now. Without that nothing is stored.
        #[serde(default)]
        held: bool,
    },
    Cancel {
        name: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Progress {
        done_blocks: u64,
        total_blocks: u64,
    },
    /// It is taken: whoever was held for it goes on.
    GoesOn,
    /// An attempt at this snapshot failed. It is the one that was asked for, or one before it.
    Retrying(Sealing),
    Done(Taken),
    Cancelled,
    Live(Live),
    Failed(Failure),
}

/// What a server says of its session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Live {
    /// The server's process.
    pub(crate) pid: u32,
    pub(crate) block_size_bytes: u64,
    /// Blocks with bytes, and blocks zeroed or trimmed, since the last snapshot.
    pub(crate) dirty_blocks: u64,
    pub(crate) zero_blocks: u64,
    /// Zeroed blocks whose room has not been given back yet.
    pub(crate) held_blocks: u64,
    /// Room of all its caches and of their journals.
    pub(crate) cache_bytes: u64,
    pub(crate) journal_bytes: u64,
    /// Frozen caches that are not stored yet, of snapshots on their way or given up.
    pub(crate) frozen_caches: usize,
    /// Memory for the states of all blocks in all caches, and for the seal that is being made.
    pub(crate) state_memory_bytes: u64,
    pub(crate) seal_memory_bytes: u64,
    /// Snapshots on their way, oldest first.
    pub(crate) sealing: Vec<Sealing>,
    /// Why it refuses writes, if it does.
    pub(crate) refuses_writes: Option<String>,
}

/// A snapshot on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sealing {
    pub(crate) name: SnapshotName,
    pub(crate) done_blocks: u64,
    pub(crate) total_blocks: u64,
    pub(crate) failed_attempts: u32,
    /// Why the last of them failed, and when the next is due.
    pub(crate) last_error: Option<String>,
    pub(crate) next_try_ms: Option<u64>,
}

impl Sealing {
    fn of(seal: &Seal) -> Self {
        let (progress, attempts) = (seal.progress(), seal.attempts());
        let next_try = attempts
            .next_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        Self {
            name: seal.name().clone(),
            done_blocks: progress.done_blocks,
            total_blocks: progress.total_blocks,
            failed_attempts: attempts.failed,
            last_error: attempts.last_error.map(|e| e.to_string()),
            next_try_ms: next_try.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// The guest of a session, once there is one.
pub(crate) type ItsGuest = Arc<OnceLock<Arc<Guest>>>;

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
    leaves_socket: bool,
}

impl Control {
    /// Listens. The session's lock is held, so a socket that is there already is a dead server's.
    pub(crate) fn listen(
        dir: Arc<RealDir>,
        session: Arc<Session>,
        store: Arc<Store>,
        guest: ItsGuest,
    ) -> io::Result<Self> {
        match dir.remove(SOCKET) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(short_path(&dir))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let serve = move || {
            let is_over = || stop.load(Ordering::Relaxed);
            accept(&listener, is_over, move |stream| {
                answer(stream, &session, &store, guest.get().map(AsRef::as_ref));
            });
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(serve)?;
        Ok(Self {
            dir,
            stopping,
            thread: Some(thread),
            leaves_socket: false,
        })
    }

    /// Its end leaves the socket behind, as that of a killed server does: whoever comes next sees who was here last.
    pub(crate) fn leave_socket(&mut self) {
        self.leaves_socket = true;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let woken = UnixStream::connect(short_path(&self.dir)).is_ok();
        if !self.leaves_socket {
            drop(self.dir.remove(SOCKET));
        }
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            drop(thread.join());
        }
    }
}

fn answer(stream: &UnixStream, session: &Session, store: &Arc<Store>, guest: Option<&Guest>) {
    let say = |answer: &Answer| {
        let mut line = serde_json::to_vec(answer).unwrap_or_default();
        line.push(b'\n');
        // A client that has gone away does not hold up the snapshot that it asked for.
        drop((&*stream).write_all(&line));
    };
    let timeouts = stream
        .set_read_timeout(Some(SILENCE))
        .and_then(|()| stream.set_write_timeout(Some(SILENCE)));
    let mut reader = BufReader::new(stream);
    let request = timeouts.and_then(|()| read_line(&mut reader));
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
            fs_aware,
            held,
        } => {
            let options = SnapshotOptions {
                replace,
                dedup,
                fs_aware,
                unconfirmed: held,
            };
            let was_held = || {
                if held {
                    say(&Answer::GoesOn);
                }
                !held || read_line(&mut reader).is_ok()
            };
            parse(&name)
                .and_then(|name| take(session, store, guest, &name, &options, was_held, &say))
                .map(Answer::Done)
        }
        Request::Cancel { name } => cancel(session, &name, &say).map(|()| Answer::Cancelled),
    };
    say(&answer.unwrap_or_else(Answer::Failed));
}

fn status_of(session: &Session) -> Result<Live, Failure> {
    let status = session
        .status()
        .map_err(|e| Failure::failed(format!("looking at the session: {e}")))?;
    Ok(Live {
        pid: std::process::id(),
        block_size_bytes: session.manifest().block_size_bytes.into(),
        dirty_blocks: status.dirty_blocks,
        zero_blocks: status.zero_blocks,
        held_blocks: status.held_blocks,
        cache_bytes: status.cache_bytes,
        journal_bytes: status.journal_bytes,
        frozen_caches: status.frozen,
        state_memory_bytes: status.state_memory_bytes,
        seal_memory_bytes: status.seal_memory_bytes,
        sealing: session.pending().iter().map(|s| Sealing::of(s)).collect(),
        refuses_writes: status.poisoned,
    })
}

/// Freezes, with the guest held if there is one, and waits until somebody else's thread has sealed. `was_held` says whether those who were to hold it
/// did until now.
pub(crate) fn take(
    session: &Session,
    store: &Arc<Store>,
    guest: Option<&Guest>,
    name: &SnapshotName,
    options: &SnapshotOptions,
    was_held: impl FnOnce() -> bool,
    say: &dyn Fn(&Answer),
) -> Result<Taken, Failure> {
    let begun = Instant::now();
    let over = session.newest();
    let hold = guest.map(Guest::hold).transpose()?;
    let held = hold.as_ref().map(|hold| hold.held);
    let options = SnapshotOptions {
        unconfirmed: options.unconfirmed || held.is_some(),
        ..*options
    };
    let seal = session.freeze(name, &options);
    // It goes on, whatever came of that.
    let went_on = hold.map_or(Ok(()), Hold::let_go);
    let seal = seal?;
    if options.unconfirmed {
        let nobody = || Failure::failed("nobody held the guest until now");
        let confirmed = went_on.and_then(|()| was_held().then_some(()).ok_or_else(nobody));
        if let Err(failure) = confirmed
            && let Ok(seal) = session.cancel(name)
        {
            cancelled(&seal, wait(session, &seal, say))?;
            return Err(failure);
        }
        // Where it cannot be given up it is stored all the same: its blocks are nowhere else.
        session.confirm(&seal);
    }
    let header = wait(session, &seal, say)?;
    let taken = Taken::new(store, &header, &over, &seal, begun.elapsed());
    let taken = taken.fs_aware(options.fs_aware, &seal);
    Ok(taken.of_guest(held.and_then(Held::name)))
}

fn cancel(session: &Session, name: &str, say: &dyn Fn(&Answer)) -> Result<(), Failure> {
    let seal = session.cancel(&parse(name)?)?;
    cancelled(&seal, wait(session, &seal, say))
}

/// Whoever seals may have been faster.
pub(crate) fn cancelled(
    seal: &Seal,
    outcome: Result<Arc<Header>, SessionError>,
) -> Result<(), Failure> {
    match outcome {
        Err(SessionError::Seal(error)) if matches!(*error, SealError::Cancelled) => Ok(()),
        Ok(_) => {
            let name = seal.name();
            let message = format!("snapshot {name} was stored before it could be cancelled");
            Err(Failure::failed(message).hint("`cowslip rm` removes it"))
        }
        Err(other) => Err(other.into()),
    }
}

fn parse(name: &str) -> Result<SnapshotName, Failure> {
    name.parse().map_err(|e| Failure::usage(format!("{e}")))
}

fn wait(
    session: &Session,
    seal: &Seal,
    say: &dyn Fn(&Answer),
) -> Result<Arc<Header>, SessionError> {
    let mut told = None;
    loop {
        if let Some(outcome) = seal.wait(TICK) {
            return outcome;
        }
        let progress = seal.progress();
        say(&Answer::Progress {
            done_blocks: progress.done_blocks,
            total_blocks: progress.total_blocks,
        });
        // What holds up the first holds up all behind it.
        let first = session.next_seal().map(|first| Sealing::of(&first));
        let Some(first) = first.filter(|first| first.failed_attempts > 0) else {
            continue;
        };
        let now = Some((first.name.clone(), first.failed_attempts));
        if told != now {
            told = now;
            say(&Answer::Retrying(first));
        }
    }
}

/// One line, which is not too long, with its end.
pub(crate) fn read_line(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// The client's side: asks the server of this session directory. `hear` is told of each answer that is
/// not the last, may say something itself, and ends the conversation by failing. Where a guest is held, it goes on in this time, or the conversation ends.
///
/// Nothing where no server listens there.
pub(crate) fn ask(
    dir: &RealDir,
    request: &Request,
    held_for: Option<Duration>,
    hear: &mut dyn FnMut(Answer, &mut dyn Write) -> Result<(), Failure>,
) -> Option<Result<Answer, Failure>> {
    let stream = UnixStream::connect(short_path(dir)).ok()?;
    // Zero would mean for ever.
    let held_for = held_for.map(|time| time.max(Duration::from_millis(1)));
    if let Err(error) = stream.set_read_timeout(held_for) {
        return Some(Err(Failure::failed(format!("asking the server: {error}"))));
    }
    Some(converse(&stream, request, hear))
}

/// Does a server listen there?
pub(crate) fn is_served(dir: &RealDir) -> bool {
    UnixStream::connect(short_path(dir)).is_ok()
}

/// What the server of this session directory says of its session; nothing where none answers.
pub(crate) fn status(dir: &RealDir) -> Option<Live> {
    let stream = UnixStream::connect(short_path(dir)).ok()?;
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    match converse(&stream, &Request::Status, &mut |_, _| Ok(())) {
        Ok(Answer::Live(live)) => Some(live),
        _ => None,
    }
}

/// For who finds a session open: a compaction has one at rest open for a moment, and so has a list of them; a
/// command that takes a snapshot of one, for as long as that takes.
pub(crate) struct Patience(Instant);

impl Patience {
    pub(crate) fn begin() -> Self {
        Self(Instant::now() + OPEN_FOR_A_MOMENT)
    }

    /// After a while, is it worth another try? A server that answers is not waited for.
    pub(crate) fn tries_again(&self, dir: &RealDir) -> bool {
        if Instant::now() >= self.0 || status(dir).is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
        true
    }
}

fn converse(
    mut stream: &UnixStream,
    request: &Request,
    hear: &mut dyn FnMut(Answer, &mut dyn Write) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::failed(
            "the server did not answer in time: what was held for it goes on, and nothing is stored",
        ),
        _ => Failure::failed(format!("the server went away: {error}"))
            .hint("the snapshot is finished when the session is served again"),
    };
    let mut line = serde_json::to_vec(request).map_err(|e| lost(e.into()))?;
    line.push(b'\n');
    // One that has turned us away has said why.
    let _ = stream.write_all(&line);
    let mut reader = BufReader::new(stream);
    loop {
        let line = read_line(&mut reader).map_err(lost)?;
        match serde_json::from_slice(&line).map_err(|e| lost(e.into()))? {
            Answer::Failed(failure) => return Err(failure),
            Answer::GoesOn => {
                stream.set_read_timeout(None).map_err(lost)?;
                hear(Answer::GoesOn, &mut stream)?;
            }
            more @ (Answer::Progress { .. } | Answer::Retrying(_)) => {
                hear(more, &mut stream)?;
            }
            last => return Ok(last),
        }
    }
}
