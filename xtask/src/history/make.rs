//! Making a long history: a template, one session, and a snapshot after each round of a small load.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cowslip_block::files::RealDir;
use cowslip_sim::load::{self, BLOCK, Load};
use cowslip_snapshot::compact::{Around, Options, Policy, compact};
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::session::{Session, SnapshotOptions, Surroundings};
use cowslip_snapshot::{Caches, SnapshotName, Store};

use crate::rig::Rig;

/// Of 1 GiB.
pub(super) const BLOCKS: usize = 1 << 18;
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Snapshots between two rounds of what a server does behind the requests.
const TIDY_EVERY: usize = 64;

/// What one snapshot cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) payload_bytes: u64,
    pub(super) header_bytes: u64,
    /// From the freeze to the commit, and the session's next base.
    pub(super) ms: f64,
}

pub(super) fn name(number: usize) -> SnapshotName {
    let name = format!("s{number:06}");
    name.parse().expect("a letter and digits are a name")
}

/// The store, with nothing in its caches.
pub(super) fn open(rig: &Rig) -> Result<Arc<Store>> {
    let dir = RealDir::open(&rig.store())?;
    let store = Store::open(&dir, Arc::new(RealHost), Caches::default())?;
    Ok(Arc::new(store))
}

/// The template, as snapshot 0.
pub(super) fn import(rig: &Rig, load: &Load) -> Result<()> {
    let path = rig.path("template.raw");
    let file = std::fs::File::create(&path)?;
    file.set_len((BLOCKS * BLOCK) as u64)?;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
    let mut at = 0;
    for (block, version) in load.after(0).into_iter().enumerate() {
        if version != 0 {
            if at != block {
                file.seek(SeekFrom::Start((block * BLOCK) as u64))?;
            }
            file.write_all(&load::content(version, block))?;
            at = block + 1;
        }
    }
    file.flush()?;
    drop(file);
    rig.ok(&format!(
        "import template.raw {} --format raw --quiet",
        name(0)
    ))?;
    Ok(std::fs::remove_file(path)?)
}

/// What compacting the store cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compaction {
    pub(super) written_bytes: u64,
    pub(super) ms: f64,
}

/// So many snapshots; the store is compacted, where that is due, after each `compact_every` of them.
pub(super) fn snapshots(
    rig: &Rig,
    load: &mut Load,
    count: usize,
    compact_every: Option<usize>,
) -> Result<(Vec<Cost>, Vec<Compaction>)> {
    let store = open(rig)?;
    let path = rig.path("session");
    let around = Surroundings {
        dir: Arc::new(RealDir::open_or_create(&path)?),
        path,
        temporary: false,
        store: Arc::clone(&store),
        store_path: rig.store(),
        host: Arc::new(RealHost),
        unneeded: None,
        say: Box::new(|text| eprintln!("the session says: {text}")),
    };
    let session = Session::create(around, &name(0), None)?;
    let device = session.device();
    let (mut costs, mut compactions) = (Vec::with_capacity(count), Vec::new());
    let (begun, mut told) = (Instant::now(), Instant::now());
    for number in 1..=count {
        load.round(&*device)?;
        let from = Instant::now();
        let seal = session.freeze(&name(number), &SnapshotOptions::default())?;
        session.seal_next();
        let header = seal.wait(Duration::ZERO).context("it is sealed by now")??;
        let ms = from.elapsed().as_secs_f64() * 1e3;
        let stored = store.stored_bytes(&header);
        costs.push(Cost {
            payload_bytes: stored.payload,
            header_bytes: stored.header,
            ms,
        });
        if number % TIDY_EVERY == 0 {
            session.tidy()?;
        }
        if compact_every.is_some_and(|every| number % every == 0) {
            compactions.extend(compact_auto(&store, &session)?);
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            eprintln!(
                "{:5} s  {number} of {count} snapshots",
                begun.elapsed().as_secs()
            );
        }
    }
    Ok((costs, compactions))
}

/// What `cowslip compact --auto` does beside a server of the session; nothing where it is not due.
fn compact_auto(store: &Store, session: &Session) -> Result<Option<Compaction>> {
    let options = Options {
        policy: Policy::AUTO,
        names: Vec::new(),
        step_bytes: 4 << 30,
    };
    let around = Around {
        moved: &|_| drop(session.go_over()),
        progress: &|_| true,
    };
    let begun = Instant::now();
    let done = compact(store, &options, &around)?;
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok((done.left_objects > 0).then_some(Compaction {
        written_bytes: done.written_bytes,
        ms,
    }))
}
