//! [`Requests`]: a client of our own over NBD, with an oracle for each unit ([`super::history`]).
//!
//! When a connection ends in whatever way, its requests may be served all the same, until the server's
//! thread has gone: until then nobody touches their units.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use cowslip_nbd::client::Reply;
use cowslip_nbd::{Client, ClientError, Cookie, Errno};

use super::client::{Settled, Shared, Trouble, Work};
use super::fault::Break;
use super::history::{Grade, History};
use crate::rig::oracle::{Clock, UNIT, Version};
use crate::rig::random::Random;
use crate::rig::requests::{Kind, Wish, burst};
use crate::rig::server::read_all;
use crate::rig::usage::connections;

const IN_FLIGHT: usize = 16;
const CLIENTS: usize = 2;
/// For the server's thread of a connection that has ended, and for a server to be there again.
const WITHIN: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(5);

struct Connection {
    client: Client,
    /// The same socket.
    wire: UnixStream,
    pending: BTreeMap<Cookie, Pending>,
}

struct Pending {
    wish: Wish,
    number: u32,
    /// It changes something.
    changes: bool,
}

/// See the module.
pub(super) struct Requests {
    connections: [Option<Connection>; CLIENTS],
    busy: Vec<bool>,
    history: History,
    /// Which server it knows.
    generation: u32,
    clock: Clock,
    random: Random,
}

fn gone(error: impl std::fmt::Display) -> Trouble {
    Trouble::Gone(error.to_string())
}

/// What a refusal is.
fn refused(errno: Errno, what: &str) -> Trouble {
    let why = format!("{what}: {errno}");
    match errno {
        Errno::NoSpc => Trouble::NoRoom(why),
        Errno::Io => Trouble::Failed(why),
        Errno::Shutdown => Trouble::Gone(why),
        _ => Trouble::Finding(why),
    }
}

fn failed(error: &ClientError, what: &str) -> Trouble {
    match error {
        ClientError::Refused { errno, .. } => refused(*errno, what),
        ClientError::Io(_) => gone(format_args!("{what}: {error}")),
        _ => Trouble::Finding(format!("{what}: {error}")),
    }
}

impl Requests {
    pub(super) fn new(versions: Vec<Version>, clock: Clock, random: Random) -> Self {
        Self {
            connections: Default::default(),
            busy: vec![false; versions.len()],
            history: History::new(versions),
            generation: 0,
            clock,
            random,
        }
    }

    fn connect(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let generation = shared.generation.load(Ordering::SeqCst);
        if generation != self.generation {
            (0..CLIENTS).try_for_each(|at| self.lose(at, shared))?;
        }
        for connection in &mut self.connections {
            if connection.is_none() {
                *connection = Some(Connection::to(&shared.address())?);
            }
        }
        if shared.generation.load(Ordering::SeqCst) != generation {
            (0..CLIENTS).try_for_each(|at| self.lose(at, shared))?;
            return Err(gone("it is served anew"));
        }
        if shared.may.grade() == Grade::Cut && generation != self.generation {
            let image = self.read_image(shared)?;
            let now = self.clock.tick();
            shared.tell(format_args!("what is left is read at {now}"));
            let adopted = self.history.adopt(&image, Grade::Cut, now);
            adopted.map_err(|why| Trouble::Finding(format!("lost: {why}")))?;
        }
        self.generation = generation;
        Ok(())
    }

    fn read_image(&mut self, shared: &Shared) -> Result<Vec<u8>, Trouble> {
        let Some(connection) = &mut self.connections[0] else {
            return Err(gone("no connection"));
        };
        match read_all(&mut connection.client) {
            Ok(image) => {
                add_compared(shared, image.len());
                Ok(image)
            }
            // Why, says another question.
            Err(error) => {
                shared.told_error();
                self.lose(0, shared)?;
                Err(Trouble::Failed(format!("reading all: {error:#}")))
            }
        }
    }

    /// One connection is no more. Returns when the server knows.
    fn lose(&mut self, at: usize, shared: &Shared) -> Result<(), Trouble> {
        let Some(lost) = self.connections[at].take() else {
            return Ok(());
        };
        drop(lost.wire.shutdown(Shutdown::Both));
        let Connection { pending, .. } = lost;
        let left = self.connections.iter().flatten().count();
        let give_up = Instant::now() + WITHIN;
        // Without a process there is no thread.
        while let pid @ 1.. = shared.pid.load(Ordering::SeqCst) {
            if connections(pid).is_ok_and(|there| there <= left) {
                break;
            }
            if Instant::now() > give_up {
                let there = connections(pid);
                let what = format!(
                    "the server keeps {there:?} connections {WITHIN:?} after all but {left} have ended"
                );
                return Err(Trouble::Finding(what));
            }
            std::thread::sleep(TICK);
        }
        for pending in pending.into_values() {
            self.busy[pending.wish.units].fill(false);
        }
        Ok(())
    }

    /// What came of a call; a connection that failed is left.
    fn on<T>(
        &mut self,
        at: usize,
        shared: &Shared,
        result: Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        if result.is_err() {
            shared.told_error();
        }
        if matches!(result, Err(Trouble::Gone(_))) {
            self.lose(at, shared)?;
        }
        result
    }

    fn submit(&mut self, at: usize, wish: Wish, shared: &Shared) -> Result<(), Trouble> {
        while self.in_flight(at) >= IN_FLIGHT {
            self.complete(at, shared)?;
        }
        let units = wish.units.clone();
        if self.busy[units.clone()].contains(&true) {
            return Ok(());
        }
        let mut there = Vec::new();
        if wish.kind == Kind::Same {
            let certain = units.clone().map(|unit| self.history.certain(unit));
            match certain.collect::<Option<Vec<_>>>() {
                Some(certain) => there = certain,
                None => return Ok(()),
            }
        }
        let number = self.clock.tick();
        let data = wish.data(number, &there);
        let version = wish.leaves(number);
        if let Some(version) = version {
            self.history.submitted(units.clone(), version, number);
        }
        self.busy[units].fill(true);
        let Some(connection) = &mut self.connections[at] else {
            return Err(gone("no connection"));
        };
        let sent = connection.client.submit(wish.command(&data));
        let pending = Pending {
            wish,
            number,
            changes: version.is_some(),
        };
        match sent {
            Ok(cookie) => {
                connection.pending.insert(cookie, pending);
                Ok(())
            }
            Err(error) => {
                // Perhaps some of it went out.
                connection.pending.insert(Cookie(0), pending);
                self.on(at, shared, Err(failed(&error, "sending")))
            }
        }
    }

    fn in_flight(&self, at: usize) -> usize {
        let connection = self.connections[at].as_ref();
        connection.map_or(0, |connection| connection.client.in_flight())
    }

    fn complete(&mut self, at: usize, shared: &Shared) -> Result<(), Trouble> {
        let Some(connection) = &mut self.connections[at] else {
            return Err(gone("no connection"));
        };
        let (cookie, answer) = match connection.client.complete() {
            Ok(answer) => answer,
            Err(error) => return self.on(at, shared, Err(failed(&error, "an answer"))),
        };
        let Some(pending) = connection.pending.remove(&cookie) else {
            return Err(Trouble::Finding("an answer to no question".to_owned()));
        };
        let Pending {
            wish,
            number,
            changes,
        } = pending;
        self.busy[wish.units.clone()].fill(false);
        shared.done(1);
        match answer {
            Ok(Reply::Done) => {
                let now = self.clock.tick();
                if changes && wish.fua && shared.may.grade() == Grade::Cut {
                    shared.tell(format_args!("FUA {number} is answered at {now}"));
                }
                if changes {
                    self.history.answered(wish.units, number, now, wish.fua);
                } else if wish.kind == Kind::Flush {
                    self.history.flushed(number);
                    if shared.may.grade() == Grade::Cut {
                        shared.tell(format_args!("flush {number} is answered at {now}"));
                    }
                }
                Ok(())
            }
            Ok(other) => Err(Trouble::Finding(format!("{wish:?} is answered {other:?}"))),
            Err(errno) => {
                shared.told_error();
                Err(refused(errno, &format!("{:?}", wish.kind)))
            }
        }
    }

    /// Waits for all answers; the last of the errors.
    fn drain(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let mut trouble = Ok(());
        for at in 0..CLIENTS {
            while self.in_flight(at) > 0 {
                match self.complete(at, shared) {
                    Err(finding @ Trouble::Finding(_)) => return Err(finding),
                    Err(other) => trouble = Err(other),
                    Ok(()) => {}
                }
            }
        }
        trouble
    }

    fn burst(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let mut trouble = Ok(());
        for wish in burst(&mut self.random, self.history.units()) {
            let at = self.random.below(CLIENTS);
            match self.submit(at, wish, shared) {
                Ok(()) => {}
                Err(Trouble::NoRoom(why)) => trouble = Err(Trouble::NoRoom(why)),
                Err(other) => return Err(other),
            }
        }
        trouble
    }

    fn read_some(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let start = self.random.below(self.history.units());
        let end = (start + 1 + self.random.below(256)).min(self.history.units());
        let mut bytes = vec![0; (end - start) * UNIT];
        let Some(connection) = &mut self.connections[0] else {
            return Err(gone("no connection"));
        };
        let read = connection.client.read((start * UNIT) as u64, &mut bytes);
        if let Err(error) = read {
            return self.on(0, shared, Err(failed(&error, "Read")));
        }
        let grade = shared.may.grade();
        for (unit, found) in (start..end).zip(bytes.chunks_exact(UNIT)) {
            // What is being written just now may be half there.
            if self.busy[unit] {
                continue;
            }
            let checked = self.history.check(unit, found, grade);
            checked.map_err(|why| Trouble::Finding(format!("while it runs: {why}")))?;
        }
        shared.done(1);
        add_compared(shared, bytes.len());
        Ok(())
    }

    /// Some requests that are surely on their way.
    fn send_some(&mut self, at: usize, shared: &Shared) -> Result<(), Trouble> {
        for wish in burst(&mut self.random, self.history.units()) {
            self.submit(at, wish, shared)?;
            if self.in_flight(at) + 1 >= IN_FLIGHT {
                break;
            }
        }
        match self.in_flight(at) {
            0 => Ok(()),
            // Whatever waits to be sent is sent by this.
            _ => self.complete(at, shared),
        }
    }

    /// The head of a write and half of its payload: no request.
    fn send_half(&mut self, at: usize) {
        const LEN: u32 = 64 << 10;
        let offset = (self.random.below(self.history.units() - 64) * UNIT) as u64;
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1]);
        bytes.extend(77_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(LEN.to_be_bytes());
        bytes.extend([0xee; (LEN / 2) as usize]);
        if let Some(connection) = &mut self.connections[at] {
            drop(connection.wire.write_all(&bytes));
        }
    }
}

impl Connection {
    fn to(socket: &Path) -> Result<Self, Trouble> {
        let wire = UnixStream::connect(socket).map_err(gone)?;
        let ours = wire.try_clone().map_err(gone)?;
        let client = Client::over(OwnedFd::from(ours), "").map_err(|error| match error {
            ClientError::Io(_) => gone(error),
            other => Trouble::Finding(other.to_string()),
        })?;
        let pending = BTreeMap::new();
        Ok(Self {
            client,
            wire,
            pending,
        })
    }
}

fn add_compared(shared: &Shared, bytes: usize) {
    shared
        .compared_bytes
        .fetch_add(bytes as u64, Ordering::Relaxed);
}

impl Work for Requests {
    fn some(&mut self, shared: &Shared) -> Result<(), Trouble> {
        self.connect(shared)?;
        self.burst(shared)?;
        if self.random.once_in(3) {
            self.read_some(shared)?;
        }
        if self.random.once_in(5) {
            self.drain(shared)?;
        }
        Ok(())
    }

    fn leave(&mut self, how: Break, shared: &Shared) -> Result<(), Trouble> {
        self.connect(shared)?;
        let at = self.random.below(CLIENTS);
        if how == Break::MidRequest {
            self.drain(shared)?;
            self.send_half(at);
        } else {
            self.send_some(at, shared)?;
        }
        let shut = match (how, &self.connections[at]) {
            (_, None) => return Ok(()),
            (Break::Vanish | Break::MidRequest, Some(it)) => it.wire.shutdown(Shutdown::Both),
            (Break::StopsSending, Some(it)) => it.wire.shutdown(Shutdown::Write),
            (Break::StopsReading, Some(it)) => it.wire.shutdown(Shutdown::Read),
        };
        drop(shut);
        if how == Break::StopsSending {
            // What arrived is answered; then the server closes.
            while self.in_flight(at) > 0 && self.complete(at, shared).is_ok() {}
        }
        self.lose(at, shared)?;
        Err(gone(format_args!("{how:?}")))
    }

    fn settle(&mut self, shared: &Shared) -> Result<Settled, Trouble> {
        let give_up = Instant::now() + WITHIN;
        // What is left of connections to a server that has gone.
        if let Err(trouble @ Trouble::Finding(_)) = self.drain(shared) {
            return Err(trouble);
        }
        while let Err(trouble) = self.connect(shared) {
            if matches!(trouble, Trouble::Finding(_)) || Instant::now() > give_up {
                return Err(trouble);
            }
            std::thread::sleep(TICK);
        }
        self.burst(shared)?;
        self.drain(shared)?;
        let flush = Wish {
            kind: Kind::Flush,
            units: 0..0,
            fua: false,
        };
        self.submit(0, flush, shared)?;
        self.drain(shared)?;
        let well_at = Instant::now();
        let image = self.read_image(shared)?;
        let now = self.clock.tick();
        shared.tell(format_args!("all was flushed, and is read at {now}"));
        let settled = self.history.settle(&image, shared.may.grade());
        settled.map_err(|why| Trouble::Finding(format!("lost: {why}")))?;
        let versions = self.history.versions().to_vec();
        Ok(Settled { well_at, versions })
    }

    fn end(&mut self, _: &Shared) -> Result<()> {
        self.connections = Default::default();
        Ok(())
    }
}
