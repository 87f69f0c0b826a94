//! [`Device`]: a live session as its clients know it: what they have on their way, and what each unit
//! must hold.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use cowslip_nbd::{Client, Cookie};

use crate::rig::oracle::{Clock, Cut, UNIT, Version, Write, content};
use crate::rig::random::Random;
use crate::rig::requests::{self, Wish};
use crate::rig::server::Server;

/// Requests on their way over one connection.
const IN_FLIGHT: usize = 16;
/// Connections to a server.
const CLIENTS: usize = 2;

/// A request that has no answer yet.
struct Pending {
    /// What it touches.
    units: Range<usize>,
    /// What it changes, if anything.
    write: Option<Rc<Write>>,
}

/// See the module.
pub(super) struct Device {
    versions: Vec<Version>,
    clients: Vec<Client>,
    /// By connection and cookie.
    pending: BTreeMap<(usize, Cookie), Pending>,
    /// Units that a pending request touches.
    busy: Vec<bool>,
    /// What had no answer when the server was killed.
    doubtful: Vec<Rc<Write>>,
    /// Snapshots that were asked for and are not answered.
    cuts: Vec<Rc<Cut>>,
    pub(super) requests: u64,
}

impl Device {
    pub(super) fn new(versions: Vec<Version>) -> Self {
        Self {
            busy: vec![false; versions.len()],
            versions,
            clients: Vec::new(),
            pending: BTreeMap::new(),
            doubtful: Vec::new(),
            cuts: Vec::new(),
            requests: 0,
        }
    }

    pub(super) fn connect(&mut self, server: &Server) -> Result<()> {
        self.clients = (0..CLIENTS)
            .map(|_| server.client())
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// The server has gone, and with it the answers to all that was on its way.
    pub(super) fn cut_off(&mut self) {
        let lost = std::mem::take(&mut self.pending).into_values();
        self.doubtful
            .extend(lost.filter_map(|pending| pending.write));
        self.busy.fill(false);
        self.clients.clear();
    }

    /// What a snapshot that is asked for now may hold; it grows until it is closed.
    pub(super) fn open_cut(&mut self) -> Rc<Cut> {
        let pending = self.pending.values().filter_map(|p| p.write.as_ref());
        let cut = Cut::new(
            self.versions.clone(),
            pending.chain(&self.doubtful).cloned().collect(),
        );
        self.cuts.push(Rc::clone(&cut));
        cut
    }

    pub(super) fn close_cut(&mut self, cut: &Rc<Cut>) {
        self.cuts.retain(|other| !Rc::ptr_eq(other, cut));
    }

    /// Puts some requests on their way; with too many of them it waits for answers.
    pub(super) fn burst(&mut self, random: &mut Random, clock: &Clock) -> Result<()> {
        for wish in requests::burst(random, self.versions.len()) {
            let client = random.below(self.clients.len());
            self.submit(client, &wish, clock)?;
        }
        Ok(())
    }

    /// One request, unless another is on its way to the same units.
    fn submit(&mut self, client: usize, wish: &Wish, clock: &Clock) -> Result<()> {
        while self.clients[client].in_flight() >= IN_FLIGHT {
            self.complete(client, clock)?;
        }
        let units = wish.units.clone();
        if self.busy[units.clone()].contains(&true) {
            return Ok(());
        }
        let number = clock.tick();
        let data = wish.data(number, &self.versions[units.clone()]);
        let write = wish.leaves(number).map(|version| {
            Rc::new(Write {
                units: units.clone(),
                submitted: number,
                version,
                answered: Cell::new(u32::MAX),
            })
        });
        // Noted first: when sending fails, it may have been served all the same.
        if let Some(write) = &write {
            self.cuts.iter().for_each(|cut| cut.add(write));
        }
        self.busy[units.clone()].fill(true);
        let cookie = self.clients[client].submit(wish.command(&data))?;
        self.pending
            .insert((client, cookie), Pending { units, write });
        self.requests += 1;
        Ok(())
    }

    /// Waits for one answer.
    fn complete(&mut self, client: usize, clock: &Clock) -> Result<()> {
        let (cookie, answer) = self.clients[client].complete()?;
        let pending = self.pending.remove(&(client, cookie));
        let Pending { units, write } = pending.context("an answer to no question")?;
        if let Err(errno) = answer {
            bail!("a request was refused ({errno}): {write:?}");
        }
        self.busy[units].fill(false);
        if let Some(write) = write {
            write.answered.set(clock.tick());
            self.versions[write.units.clone()].fill(write.version);
        }
        Ok(())
    }

    /// Waits for all answers.
    pub(super) fn drain(&mut self, clock: &Clock) -> Result<()> {
        for client in 0..self.clients.len() {
            while self.clients[client].in_flight() > 0 {
                self.complete(client, clock)?;
            }
        }
        Ok(())
    }

    /// Reads somewhere, also where requests are on their way. How many bytes.
    pub(super) fn read_some(&mut self, random: &mut Random) -> Result<usize> {
        let start = random.below(self.versions.len());
        let end = self.versions.len().min(start + 1 + random.below(256));
        let mut bytes = vec![0; (end - start) * UNIT];
        // Those that are on their way now may be served before or after this read.
        self.clients[0].read((start * UNIT) as u64, &mut bytes)?;
        for (unit, found) in (start..end).zip(bytes.chunks_exact(UNIT)) {
            let pending = self.pending.values().filter_map(|p| p.write.as_ref());
            let mut pending = pending.filter(|w| w.units.contains(&unit));
            let may_be = |version| found == content(version, unit);
            if !may_be(self.versions[unit]) && !pending.any(|w| may_be(w.version)) {
                bail!("unit {unit} does not hold version {}", self.versions[unit]);
            }
        }
        Ok(bytes.len())
    }

    /// Compares all of it, and settles what was doubtful. How many bytes.
    pub(super) fn compare(&mut self, server: &Server, clock: &Clock) -> Result<usize> {
        self.drain(clock)?;
        let image = server.read_all()?;
        let may_be = Cut::new(self.versions.clone(), std::mem::take(&mut self.doubtful));
        self.versions = may_be.judge(&image).map_err(anyhow::Error::msg)?;
        Ok(image.len())
    }
}
