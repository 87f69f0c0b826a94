//! What a long history costs whoever reads it: look-ups counted, whole images timed, commands timed.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cowslip_block::{ByteOffset, Device};
use cowslip_sim::load::{self, BLOCK, Load};
use cowslip_snapshot::Image;
use cowslip_snapshot::reads::StoreReads;

use super::curve::median;
use super::make::{name, open};
use crate::rig::Rig;
use crate::rig::server::Server;

/// Blocks that are looked up, each in a store that was just opened.
pub(super) const LOOKED_UP: usize = 400;

/// Compares all of a snapshot with what was written, in a store that was just opened. How many bytes.
pub(super) fn compare(rig: &Rig, load: &Load, number: usize) -> Result<u64> {
    let store = open(rig)?;
    let image = Image::new(Arc::clone(&store), store.resolve(&name(number))?);
    let compared = load::compare(&image, &load.after(number));
    compared.map_err(|why| anyhow::anyhow!("snapshot {number}: {why}"))
}

/// What it takes to read a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) label: String,
    /// Opening it and reading one block of 4 KiB, nothing cached: the sum over [`LOOKED_UP`] blocks
    /// with data.
    pub(super) look_ups: StoreReads,
    /// All of it, in order.
    pub(super) whole: StoreReads,
    pub(super) whole_ms: f64,
}

impl Read {
    pub(super) fn measure(rig: &Rig, load: &Load, number: usize, label: String) -> Result<Self> {
        let look_ups = look_ups(rig, load, number)?;
        let (mut whole, mut times) = (StoreReads::default(), Vec::new());
        for _ in 0..3 {
            let store = open(rig)?;
            let from = Instant::now();
            let image = Image::new(Arc::clone(&store), store.resolve(&name(number))?);
            let mut part = vec![0; 1 << 20];
            for at in (0..image.geometry().size_bytes).step_by(part.len()) {
                (&image as &dyn Device).read_at(ByteOffset(at), &mut part)?;
            }
            times.push(from.elapsed().as_secs_f64() * 1e3);
            whole = store.reads();
        }
        let whole_ms = median(&times);
        Ok(Self {
            label,
            look_ups,
            whole,
            whole_ms,
        })
    }

    /// The mean of all reads of one look-up.
    pub(super) fn look_up(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some thousand reads")]
        let mean = self.look_ups.total() as f64 / LOOKED_UP as f64;
        mean
    }
}

fn look_ups(rig: &Rig, load: &Load, number: usize) -> Result<StoreReads> {
    let versions = load.after(number);
    let mut all = StoreReads::default();
    for block in load::some_with_data(&versions, LOOKED_UP) {
        let store = open(rig)?;
        let image = Image::new(Arc::clone(&store), store.resolve(&name(number))?);
        let mut bytes = [0; BLOCK];
        (&image as &dyn Device).read_at(ByteOffset((block * BLOCK) as u64), &mut bytes)?;
        if bytes != load::content(versions[block], block) {
            bail!("block {block} of snapshot {number} is not what was written");
        }
        all += store.reads();
    }
    Ok(all)
}

/// What commands take on the store as it is, in milliseconds with their start.
pub(super) fn commands(rig: &Rig, number: usize, label: &str) -> Result<Vec<(&'static str, f64)>> {
    let mut all = Vec::new();
    for line in ["ls", "log NAME", "inspect NAME", "gc", "verify NAME"] {
        let typed = line.replace("NAME", name(number).as_str());
        all.push((line, command(rig, &typed)?));
    }
    all.push(("snapshot", snapshot_command(rig, number, label)?));
    Ok(all)
}

/// The median of three.
fn command(rig: &Rig, line: &str) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..3 {
        let from = Instant::now();
        rig.ok(line).with_context(|| line.to_owned())?;
        times.push(from.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&times))
}

/// Of a session of its own that is served, with a block to store: the median of five.
fn snapshot_command(rig: &Rig, from: usize, label: &str) -> Result<f64> {
    let dir = rig.path(label);
    let mut serve = rig.command(["serve", name(from).as_str(), "--session"]);
    serve.arg(&dir);
    let server = Server::start(serve, dir.join("nbd.sock"))?;
    let mut client = server.client()?;
    let mut times = Vec::new();
    for number in 0..5u8 {
        client.write(0, &[number + 1; BLOCK])?;
        let begun = Instant::now();
        rig.ok(&format!("snapshot {label} {label}-{number}"))?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    server.end()?;
    Ok(median(&times))
}
