//! `cargo xtask guest-memory [--json] [--save]`: what a real guest's memory costs: Debian's kernel under QEMU, its memory a memfd, its disk a session
//! that is served over NBD.
//!
//! ```text
//! mmdebstrap ──> cowslip build ──> cowslip serve ──NBD──> QEMU: boot, work in a chroot on the disk
//! each stage: work; QMP stop; cowslip snapshot (disk), cowslip memory import (memfd, --disk, --parent); cont
//! ```
//!
//! The memory and disk of a stage have one name, and each memory is exported and compared with the memfd as it was while the guest was stopped. What
//! the pages that changed are for, its kernel says (/proc/kpageflags).
//!
//! - `guest.rs`: the machine and its monitor;  `stage.rs`: one snapshot, and what it cost;  `pages.rs`: what pages are for.
//!
//! Held is: ten idle seconds cost at most 64 KiB.

mod guest;
mod pages;
mod stage;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::guest::{Guest, KERNEL, MEMORY_MIB};
use self::stage::{Stage, take};
use crate::machine;
use crate::rig::Rig;
use crate::rig::server::Server;
use crate::rig::table::{bytes, table};
use crate::run::{output, save};

const USAGE: &str = "usage: cargo xtask guest-memory [--json] [--save]";
const IDLE: Duration = Duration::from_secs(10);
/// What ten idle seconds may cost, header included.
const IDLE_BYTES_MAX: u64 = 64 << 10;
const PACKAGES: &str = "python3,sqlite3,dash,coreutils,tar,findutils";
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

/// Names of stages.
const BOOTED: &str = "booted";
const IDLED: &str = "idle";

const WORK: [(&str, &str); 2] = [
    (
        "python-sqlite",
        "python3 -c 'import json, ssl, sqlite3; \
            c = sqlite3.connect(\"/tmp/x.db\"); c.execute(\"create table t (a, b)\"); \
            c.executemany(\"insert into t values (?, ?)\", ((i, str(i) * 20) for i in range(5000))); c.commit()'",
    ),
    (
        "tar-rm",
        "tar -cf /tmp/x.tar /usr/lib/python3.11 && mkdir /tmp/x && tar -xf /tmp/x.tar -C /tmp/x && sync && rm -r /tmp/x /tmp/x.tar && sync",
    ),
];

const ABOUT: &str = "A guest with one processor under TCG, memory as a memfd, its disk a session that is served over NBD, mounted discard,noatime,lazytime; it \
    works in a chroot there. At each stage it is stopped, disk and memory become one snapshot over the one before, and the memory is exported and compared with the memfd, every \
    byte. Pages have 4 KiB. *changed*: other bytes than at the stage before; each of them is one of the next columns. *payload*, *header*: what was written for the memory.";

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut as_json, mut saved) = (false, false);
    for arg in args {
        match *arg {
            "--json" => as_json = true,
            "--save" => saved = true,
            _ => bail!(USAGE),
        }
    }
    let Some(kernel) = cowslip_machine::have("guest-memory", KERNEL) else {
        return Ok(());
    };
    let where_and_when = machine::describe();
    let rig = Rig::build_as("cowslip-guest-memory-", as_json, false)?;
    eprintln!("guest-memory: in {}", rig.dir().display());
    template(&rig)?;
    let dir = rig.path("session");
    let mut serve = rig.command(["serve", "base", "--session"]);
    serve.arg(&dir);
    let server = Server::start(serve, dir.join("nbd.sock"))?;
    let mut guest = Guest::boot(&kernel, &dir.join("nbd.sock"));
    let stages = stages(&rig, &mut guest)?;
    drop(guest);
    server.end()?;
    match as_json {
        true => println!("{:#}", json(&stages)),
        false => print!("\n{}", text(&stages)),
    }
    if saved {
        let page = format!(
            "# What a real guest's memory costs\n\n{where_and_when}\n\n`cargo xtask guest-memory --save`. {ABOUT}\n\n{}",
            text(&stages)
        );
        save("guest-memory.md", &page)?;
    }
    check(&stages)
}

/// A small Debian, in which nothing was run.
fn template(rig: &Rig) -> Result<()> {
    eprintln!("a tree with {PACKAGES}");
    let tree = rig.path("tree.tar");
    let mut make = std::process::Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=extract", "bookworm"]);
    make.arg(format!("--include={PACKAGES}"))
        .arg(&tree)
        .arg(SOURCES);
    output(&mut make)?;
    rig.ok("build tree.tar base --size 1G --quiet")?;
    Ok(std::fs::remove_file(tree)?)
}

fn stages(rig: &Rig, guest: &mut Guest) -> Result<Vec<Stage>> {
    guest.chroot(
        "find / -xdev -type f | wc -l; python3 -c 'print(1)'; sqlite3 :memory: 'select 1'; sync",
    );
    let mut stages: Vec<Stage> = Vec::new();
    let mut stage = |guest: &mut Guest, name: &str| -> Result<()> {
        let parent = stages.last().map(|stage| stage.name.clone());
        let stage = take(rig, guest, name, parent.as_deref())?;
        eprintln!("{}", stage.line());
        stages.push(stage);
        Ok(())
    };
    guest.look_at_pages();
    stage(guest, BOOTED)?;
    std::thread::sleep(IDLE);
    stage(guest, IDLED)?;
    for (name, script) in WORK {
        guest.chroot(script);
        guest.look_at_pages();
        stage(guest, name)?;
    }
    Ok(stages)
}

fn check(stages: &[Stage]) -> Result<()> {
    let idle = stages
        .iter()
        .find(|stage| stage.name == IDLED)
        .context(IDLED)?;
    let stored = idle.number("stored_bytes");
    if stored > IDLE_BYTES_MAX {
        bail!("{IDLE:?} of doing nothing cost {stored} bytes, and may cost {IDLE_BYTES_MAX}");
    }
    Ok(())
}

fn text(stages: &[Stage]) -> String {
    let rows: Vec<_> = stages.iter().map(Stage::row).collect();
    let mut text = format!(
        "{}\nMemory of {MEMORY_MIB} MiB, Linux {KERNEL}; {} compared.\n",
        table(&Stage::HEAD, &rows),
        bytes(stages.len() as u64 * (u64::from(MEMORY_MIB) << 20))
    );
    text += "\nWhat pages are for that changed, and bytes in them that did (a page of zeros before or after counts as changed wholly):\n\n";
    text + &pages::table_of(stages.iter().map(|stage| (&*stage.name, &stage.kinds)))
}

fn json(stages: &[Stage]) -> Value {
    let all: Vec<Value> = stages.iter().map(Stage::json).collect();
    json!({"memory_bytes": u64::from(MEMORY_MIB) << 20, "kernel": KERNEL, "stages": all})
}
