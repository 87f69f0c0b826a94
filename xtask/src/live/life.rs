//! [`Life`]: a server of one snapshot, and its guests, from their restore to their end.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use cowslip_vmm::{Control, Shape, can, can_kvm};

use crate::rig::Rig;
use crate::rig::random::Random;
use crate::rig::server::{Server, socket_argument};

/// Of each guest.
pub(super) const MEMORY_BYTES: usize = 32 << 20;
/// As many guests as there are at a time, and a page more for each.
pub(super) const HUGE_PAGES: u32 = 2 * (16 + 1);
const WORKERS: usize = 2;

/// What a guest is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// A processor of /dev/kvm works in it, instead of threads.
    pub(super) is_virtual: bool,
    /// The kernel notes its writes, and it stays paused while they are copied; else they are faults, and it goes on.
    pub(super) is_tracked: bool,
    pub(super) is_huge: bool,
    pub(super) name: &'static str,
}

pub(super) const KINDS: [Kind; 6] = [
    kind("live, 4 KiB", (false, false, false)),
    kind("tracked, 4 KiB", (false, true, false)),
    kind("live, 2 MiB", (false, false, true)),
    kind("tracked, 2 MiB", (false, true, true)),
    kind("KVM, live, 4 KiB", (true, false, false)),
    kind("KVM, tracked, 4 KiB", (true, true, false)),
];

const fn kind(name: &'static str, (is_virtual, is_tracked, is_huge): (bool, bool, bool)) -> Kind {
    Kind {
        name,
        is_virtual,
        is_tracked,
        is_huge,
    }
}

impl Kind {
    /// Can this machine have such guests? If not, a line says why.
    pub(super) fn is_possible(&self) -> bool {
        can(self.name, self.is_huge) && (!self.is_virtual || can_kvm(self.name))
    }

    fn shape(self) -> Shape {
        let page = if self.is_huge { 2 << 20 } else { 4096 };
        Shape {
            pages: MEMORY_BYTES / page,
            is_huge: self.is_huge,
            is_async: self.is_tracked,
            keeps: false,
        }
    }

    /// Snapshots of one life, at most. A processor that is emulated takes its time.
    pub(super) fn snapshots(self) -> usize {
        if self.is_virtual { 4 } else { 20 }
    }

    fn workers(self) -> usize {
        if self.is_virtual { 0 } else { WORKERS }
    }
}

/// A guest at work, and the file that shadows its memory.
pub(super) struct Guest {
    pub(super) control: Control,
    pub(super) shadow: PathBuf,
}

impl Guest {
    /// It does what it is told, and says so.
    pub(super) fn tell(&mut self, order: &str) -> Result<()> {
        let answer = self.control.ask(order);
        answer
            .map(drop)
            .with_context(|| format!("a guest was told to {order}"))
    }
}

/// See the module.
pub(super) struct Life {
    pub(super) kind: Kind,
    pub(super) server: Server,
    pub(super) guests: Vec<Guest>,
}

impl Life {
    /// Of the snapshot, whose bytes are in this file.
    pub(super) fn begin(
        rig: &Rig,
        kind: Kind,
        of: (&str, &PathBuf),
        random: &mut Random,
    ) -> Result<Self> {
        let (name, bytes) = of;
        let socket = rig.path("memory.sock");
        let at = socket_argument(&socket);
        let server = Server::start(
            rig.command(["memory", "serve", name, "--uffd", &at]),
            socket,
        )?;
        let mut guests = Vec::new();
        for number in 0..=random.below(2) {
            let shadow = rig.path(&format!("shadow-{number}"));
            fs::copy(bytes, &shadow)?;
            let control = Control::start(rig.dir(), kind.shape());
            let mut guest = Guest { control, shadow };
            let seed = random.next() >> 32;
            let workers = kind.workers();
            guest.tell(&format!("work {} {seed} {workers}", guest.shadow.display()))?;
            guests.push(guest);
        }
        Ok(Self {
            kind,
            server,
            guests,
        })
    }

    /// All memory of all guests is compared with its shadow. Their server ends before, or after they have.
    pub(super) fn end(self, server_first: bool) -> Result<usize> {
        let Self {
            server, mut guests, ..
        } = self;
        let mut server = Some(server);
        if server_first && let Some(server) = server.take() {
            server.end()?;
        }
        let count = guests.len();
        for guest in &mut guests {
            guest.tell("pause")?;
            guest.tell("check")?;
            fs::remove_file(&guest.shadow)?;
        }
        drop(guests);
        server.map_or(Ok(()), Server::end)?;
        Ok(count * MEMORY_BYTES)
    }
}

/// Two files have the same bytes.
pub(super) fn compare(found: &PathBuf, expected: &PathBuf) -> Result<()> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| path.display().to_string());
    let (has, should) = (read(found)?, read(expected)?);
    if has == should {
        return Ok(());
    }
    let pages = has.chunks(4096).zip(should.chunks(4096));
    let other: Vec<_> = pages
        .enumerate()
        .filter(|(_, (has, should))| has != should)
        .map(|(n, _)| n)
        .collect();
    bail!(
        "{} bytes instead of {}; {} pages are other than at the freeze, the first is {:?}",
        has.len(),
        should.len(),
        other.len(),
        other.first()
    )
}

/// A memory to begin with: pages of noise, of zeros, of few bytes.
pub(super) fn first_memory(path: &PathBuf, random: &mut Random) -> Result<()> {
    use std::io::Write;
    let mut file = std::io::BufWriter::new(File::create(path)?);
    for _ in 0..MEMORY_BYTES / 4096 {
        let mut page = [0; 4096];
        match random.below(3) {
            0 => {}
            1 => page[random.below(4096)] = 1,
            _ => page
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .for_each(|word| *word = random.next().to_ne_bytes()),
        }
        file.write_all(&page)?;
    }
    Ok(file.flush()?)
}
