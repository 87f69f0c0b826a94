//! The control socket of a memory server: how `cowslip memory snapshot` reaches it.
//!
//! `PATH.control`, beside the socket of the userfaultfds at `PATH`; one request a connection, one JSON object a line:
//!
//! | client | server |
//! |---|---|
//! | a [`Request`] | |
//! | | `pause`: it is this one's turn, and what could be copied ahead is copied |
//! | a line, any: the guest is paused; and with it the monitor's state, opened by the client | |
//! | | `goes_on`: all that must be looked at while the guest is paused was looked at |
//! | a line, any: it was paused until now. A client that has lost patience hangs up instead, and nothing is stored | |
//! | | `progress`, any number |
//! | | `done` or `failed` |

use std::io::{self, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cowslip_block::files::RealFile;
use cowslip_memory::live::Live;
use cowslip_memory::seal::Step;
use cowslip_memory::server::{Server, chain};
use cowslip_memory::snapshot::{Holder, SnapshotError, capture};
use cowslip_snapshot::ids::{ImageName, SnapshotName};
use cowslip_snapshot::parts::{Part, Parts};
use cowslip_snapshot::store::Snapshot;
use cowslip_snapshot::{Store, StoreError};
use serde::{Deserialize, Serialize};

use super::import::{Imported, import_state};
use super::passed::Incoming;
use crate::accept::accept;
use crate::control::read_line;
use crate::failure::{Failure, Kind};

/// Whoever says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// A guest may take longer to be paused, with its monitor's state written. Other snapshots of it wait meanwhile.
const PAUSED_WITHIN: Duration = Duration::from_secs(600);

/// A snapshot is wanted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) name: SnapshotName,
    pub(super) replace: bool,
    /// Of which guest; left out where there is one.
    pub(super) pid: Option<u32>,
    /// The snapshot whose disk it is.
    pub(super) disk: Option<SnapshotName>,
    pub(super) disk_frames: u64,
    /// The monitor's own state comes once the guest is paused, as a descriptor.
    pub(super) state: bool,
    /// The guest is paused already, if it ever is.
    pub(super) is_paused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Pause,
    GoesOn,
    Progress {
        storing: bool,
        done_bytes: u64,
        total_bytes: u64,
    },
    /// The report, for programs and for people.
    Done {
        report: serde_json::Value,
        text: String,
    },
    Failed(Failure),
}

/// Where the control socket of a server is.
pub(super) fn path(uffd: &Path) -> PathBuf {
    let mut path = uffd.as_os_str().to_owned();
    path.push(".control");
    path.into()
}

/// What the server's side needs.
pub(super) struct Control {
    pub(super) server: Arc<Server>,
    pub(super) store: Arc<Store>,
    /// Where what was written is put aside for a moment.
    pub(super) spool: PathBuf,
}

impl Control {
    /// Serves requests, to the end of the process.
    pub(super) fn serve(self, listener: UnixListener) -> io::Result<()> {
        let serve = move || {
            accept(&listener, || false, move |stream| self.answer(stream));
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(serve)
            .map(drop)
    }

    fn answer(&self, stream: &UnixStream) {
        let timeouts = stream
            .set_read_timeout(Some(SILENCE))
            .and_then(|()| stream.set_write_timeout(Some(SILENCE)));
        let mut reader = BufReader::new(Incoming::new(stream));
        let request = timeouts.and_then(|()| read_line(&mut reader));
        let request = request.and_then(|line| Ok(serde_json::from_slice::<Request>(&line)?));
        let answer = match request {
            Ok(request) => self.snapshot(&request, stream, &mut reader),
            Err(error) => Err(Failure::usage(format!("a bad request: {error}"))),
        };
        say(stream, &answer.unwrap_or_else(Answer::Failed));
    }

    fn snapshot(
        &self,
        request: &Request,
        stream: &UnixStream,
        reader: &mut BufReader<Incoming<'_>>,
    ) -> Result<Answer, Failure> {
        let (store, name) = (&self.store, &request.name);
        if !request.replace && store.has(name)? {
            let name = name.to_string();
            return Err(StoreError::AlreadyExists { name }.into());
        }
        let live = self.guest(request.pid)?;
        let spool =
            tempfile::tempfile_in(&self.spool).map_err(|e| Failure::file(&self.spool, &e))?;
        let lease = store.lease()?;
        let mut client = Client {
            stream,
            reader,
            is_paused: request.is_paused,
        };
        let captured = capture(&live, spool, &mut client);
        let captured = captured.map_err(|e| Failure::failed(chain(&e)))?;
        // By now: it may have been taken while the guest was paused.
        let disk = request
            .disk
            .as_ref()
            .map(|disk| store.resolve_image_leased(&ImageName::part(disk, Part::Disk)));
        let disk = disk.transpose()?;
        let mut told = 0;
        let taken = captured.store(
            &lease,
            disk.as_ref().map(|(header, _)| header),
            request.disk_frames,
            &mut |step, done_bytes, total_bytes| {
                // A line for each 16 MiB.
                if done_bytes >> 24 != told || done_bytes == total_bytes {
                    told = done_bytes >> 24;
                    let storing = step == Step::Store;
                    say(
                        stream,
                        &Answer::Progress {
                            storing,
                            done_bytes,
                            total_bytes,
                        },
                    );
                }
            },
        )?;
        let mut parts = Parts::one(Part::Memory, Arc::clone(taken.header()));
        if let Some((disk, _)) = disk {
            parts = parts.with(Part::Disk, disk);
        }
        if request.state {
            let file = RealFile::from(OwnedFd::from(client.reader.get_mut().file()?));
            let header = import_state(store, &lease, &file);
            parts = parts.with(Part::State, header.map_err(|f| f.about("the state"))?);
        }
        store.commit_parts(
            &lease,
            name,
            &parts.map(|_, header| &**header),
            request.replace,
        )?;
        let figures = taken.figures();
        taken.committed(lease);
        let (_, last) = parts.own().expect("the memory is there");
        let origin = last.meta().origin;
        let snapshot = Snapshot { origin, parts };
        let imported = Imported::new(store, name, &snapshot, &figures);
        let report = serde_json::to_value(&imported);
        Ok(Answer::Done {
            report: report.map_err(|e| Failure::failed(format!("writing JSON: {e}")))?,
            text: imported.text(),
        })
    }

    fn guest(&self, pid: Option<u32>) -> Result<Arc<Live>, Failure> {
        let guests = self.server.guests();
        let found: Vec<_> = guests
            .iter()
            .filter(|live| pid.is_none_or(|pid| live.pid() == pid))
            .collect();
        let pids: Vec<_> = guests.iter().map(|live| live.pid().to_string()).collect();
        match (found.as_slice(), pid) {
            ([live], _) => Ok(Arc::clone(live)),
            ([], Some(pid)) => Err(Failure::new(
                Kind::NotFound,
                format!("no guest of process {pid} is served here"),
            )),
            ([], None) => Err(Failure::new(Kind::NotFound, "no guest is served here")),
            _ => Err(Failure::usage("there is more than one guest")
                .hint(format!("--pid, one of {}", pids.join(", ")))),
        }
    }
}

/// Who asked, and pauses the guest.
struct Client<'a, 'b> {
    stream: &'a UnixStream,
    reader: &'a mut BufReader<Incoming<'b>>,
    is_paused: bool,
}

impl Client<'_, '_> {
    /// Says something, and waits for a line.
    fn is_answered(&mut self, what: &Answer, within: Duration) -> bool {
        say(self.stream, what)
            && self.stream.set_read_timeout(Some(within)).is_ok()
            && read_line(self.reader).is_ok()
    }
}

impl Holder for Client<'_, '_> {
    fn is_paused(&self) -> bool {
        self.is_paused
    }

    fn pause(&mut self) -> Result<(), SnapshotError> {
        match self.is_answered(&Answer::Pause, PAUSED_WITHIN) {
            true => Ok(()),
            false => Err(SnapshotError::NotWanted),
        }
    }

    fn goes_on(&mut self) -> bool {
        self.is_answered(&Answer::GoesOn, SILENCE)
    }
}

/// Says whether it could.
pub(super) fn say(mut stream: &UnixStream, what: &impl Serialize) -> bool {
    stream.write_all(&line(what)).is_ok()
}

pub(super) fn line(what: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(what).unwrap_or_default();
    line.push(b'\n');
    line
}
