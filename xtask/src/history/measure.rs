//! What a long history costs whoever reads it: look-ups counted, whole images timed, commands timed.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cowslip_block::{ByteOffset, Device};
use cowslip_sim::load::{self, BLOCK, Load};
use cowslip_snapshot::Image;
use cowslip_snapshot::reads::StoreReads;

use super::make::{name, open};
use crate::rig::Rig;

/// Blocks that are looked up, each in a store that was just opened.
pub(super) const LOOKED_UP: usize = 400;

/// What it takes to open a snapshot and read one block of 4 KiB, nothing cached: the sum over
/// [`LOOKED_UP`] blocks with data.
pub(super) fn look_ups(rig: &Rig, load: &Load, number: usize) -> Result<StoreReads> {
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
        let reads = store.reads();
        all.headers += reads.headers;
        all.nodes += reads.nodes;
        all.layers += reads.layers;
        all.frames += reads.frames;
    }
    Ok(all)
}

/// Compares all of a snapshot with what was written, in a store that was just opened. How many bytes.
pub(super) fn compare(rig: &Rig, load: &Load, number: usize) -> Result<u64> {
    let store = open(rig)?;
    let image = Image::new(Arc::clone(&store), store.resolve(&name(number))?);
    let compared = load::compare(&image, &load.after(number));
    compared.map_err(|why| anyhow::anyhow!("snapshot {number}: {why}"))
}

/// Reading all of a snapshot, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole {
    pub(super) reads: StoreReads,
    pub(super) ms: f64,
}

/// Three times, in a store that was just opened; the median of the times.
pub(super) fn read_whole(rig: &Rig, number: usize) -> Result<Whole> {
    let mut times = Vec::new();
    let mut reads = StoreReads::default();
    for _ in 0..3 {
        let store = open(rig)?;
        let from = Instant::now();
        let image = Image::new(Arc::clone(&store), store.resolve(&name(number))?);
        let size = image.geometry().size_bytes;
        let mut part = vec![0; 1 << 20];
        for at in (0..size).step_by(part.len()) {
            (&image as &dyn Device).read_at(ByteOffset(at), &mut part)?;
        }
        times.push(from.elapsed().as_secs_f64() * 1e3);
        reads = store.reads();
    }
    let ms = super::curve::median(&times);
    Ok(Whole { reads, ms })
}

/// How long a command takes, with its start: the median of three, in milliseconds.
pub(super) fn command(rig: &Rig, line: &str) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..3 {
        let from = Instant::now();
        rig.ok(line).with_context(|| line.to_owned())?;
        times.push(from.elapsed().as_secs_f64() * 1e3);
    }
    Ok(super::curve::median(&times))
}

/// How long `cowslip snapshot` takes, of a session of its own that is at rest, with a block to store.
pub(super) fn snapshot_command(rig: &Rig, from: usize, label: &str) -> Result<f64> {
    use crate::rig::server::Server;
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
    Ok(super::curve::median(&times))
}
