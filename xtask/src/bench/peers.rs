//! `cargo xtask bench peers [--rounds N] [--seconds N] [--save]`: cowslip beside other NBD servers.
//!
//! All serve the same image of 1 GiB, of which every fourth MiB holds data that does not compress,
//! from memory where there is `/dev/shm`. A round begins with fresh servers, all up at once; in it
//! each cell is measured at one peer after the other, so that the figures of one row are seconds
//! apart. The load is fio's with its NBD engine, one connection.
//!
//! What fio itself costs is in every row: it is the server's processor time per request that
//! compares servers, more than the requests per second.

mod load;
mod server;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::load::{CELLS, Sample};
use self::server::{PEERS, Server};
use crate::machine;
use crate::packages::{self, provide};
use crate::run::{cargo, save, step};

const IMAGE_BYTES: usize = 1 << 30;
const MIB: usize = 1 << 20;

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut rounds, mut seconds, mut saving) = (3, 3, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut number = || {
            args.next()
                .and_then(|n| n.parse::<u32>().ok())
                .filter(|n| *n > 0)
        };
        match *arg {
            "--save" => saving = true,
            "--rounds" => rounds = number().context("--rounds N")?,
            "--seconds" => seconds = number().context("--seconds N")?,
            _ => bail!("usage: cargo xtask bench peers [--rounds N] [--seconds N] [--save]"),
        }
    }
    if let Some(need) = provide(packages::PEERS, true)?.first() {
        bail!("there is no comparison without {}", need.what);
    }
    step(
        "building cowslip",
        &mut cargo(["build", "--release", "-p", "cowslip"]),
    )?;
    let where_and_when = machine::describe();
    let mut temporary = tempfile::Builder::new();
    temporary.prefix("cowslip-peers-");
    let temporary = match Path::new("/dev/shm") {
        memory if memory.is_dir() => temporary.tempdir_in(memory),
        _ => temporary.tempdir(),
    };
    let temporary = temporary.context("a temporary directory")?;
    let dir = temporary.path();
    write_image(&dir.join("base.raw")).context("writing the image")?;
    let mut samples: BTreeMap<(usize, usize), Vec<Sample>> = BTreeMap::new();
    for round in 1..=rounds {
        println!("== round {round} of {rounds}");
        measure(dir, seconds, &mut samples)?;
    }
    let table = table(&samples);
    println!("\n{table}");
    if saving {
        let page = format!(
            "# cowslip beside its peers\n\n{where_and_when}\n\n\
             `cargo xtask bench peers --rounds {rounds} --seconds {seconds} --save`. Each cell: thousand \
             requests a second / median latency in us / the server's processor time per request in us \
             (spread of the requests a second over the rounds); medians of {rounds} rounds. {ABOUT}\n\n{table}"
        );
        save(&format!("peers-{}.md", machine::today()), &page)?;
    }
    Ok(())
}

const ABOUT: &str = "One connection, fio's NBD engine over a unix socket, all files in memory. \
    `nbdkit memory` has no copy-on-write at all; `nbdkit cow` is its cow filter, with blocks of 4 KiB, \
    over the raw file; `qemu-nbd` serves a qcow2 overlay with subclusters of 4 KiB over the raw file.\n\n\
    Every fourth MiB of the image holds noise, so that three of four reads in the first rows find a \
    hole (which cowslip answers without bytes); `data` reads noise only. `first` writes every block \
    once; `hot` is 64 MiB that were written before, `mix` has 70 % reads.";

/// One round: every cell at every peer.
fn measure(
    dir: &Path,
    seconds: u32,
    samples: &mut BTreeMap<(usize, usize), Vec<Sample>>,
) -> Result<()> {
    let round = tempfile::tempdir_in(dir)?;
    let servers = PEERS
        .iter()
        .map(|peer| Server::start(peer, dir, round.path()));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    for (row, cell) in CELLS.iter().enumerate() {
        for (column, server) in servers.iter().enumerate() {
            let sample = cell.measure(server, seconds);
            let sample = sample.with_context(|| format!("{} at {}", cell.name, server.name()))?;
            println!("{:14} {:14} {sample}", cell.name, server.name());
            samples.entry((row, column)).or_default().push(sample);
        }
    }
    Ok(())
}

/// Every fourth MiB holds noise, the rest are holes.
fn write_image(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.set_len(IMAGE_BYTES as u64)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut chunk = Vec::with_capacity(MIB);
    for at in (0..IMAGE_BYTES).step_by(4 * MIB) {
        chunk.clear();
        while chunk.len() < MIB {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(at as u64))?;
        file.write_all(&chunk)?;
    }
    Ok(())
}

fn table(samples: &BTreeMap<(usize, usize), Vec<Sample>>) -> String {
    let row = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let names = PEERS.iter().map(|peer| peer.name.to_owned());
    let mut text = row(&mut std::iter::once(String::new()).chain(names));
    text += &row(&mut (0..=PEERS.len()).map(|_| "---".to_owned()));
    for (number, cell) in CELLS.iter().enumerate() {
        let here = |column| {
            samples
                .get(&(number, column))
                .map_or(&[][..], Vec::as_slice)
        };
        let figures = (0..PEERS.len()).map(|column| load::median(here(column)));
        text += &row(&mut std::iter::once(cell.name.to_owned()).chain(figures));
    }
    text
}
