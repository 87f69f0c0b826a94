//! `cargo xtask fs-aware`: what `snapshot --fs-aware` leaves out, in blocks, on a kernel's ext4 without any mount option.
//!
//! For each workload and each of the two ways a file system of its own, made by a plain mkfs.ext4 on an attached device: mounted,
//! snapshotted when quiet, worked on (the same bytes both times), synced, frozen, and snapshotted. What is counted is
//! the difference to the quiet snapshot. The second way's snapshot is checked by e2fsck, and so is the first's.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::machine;
use crate::rig::Rig;
use crate::rig::random::Random;
use crate::rig::table::{bytes, table};
use crate::run::{output, program, save};

const USAGE: &str = "usage: cargo xtask fs-aware [--json] [--save]";
const SIZE_MIB: u64 = 1024;

/// What is done to a file system.
type Work = fn(&Path, &mut Random) -> Result<()>;

const WORKLOADS: [(&str, Work); 2] = [
    ("create and delete 20 MB", create_and_delete),
    ("60 edits by rename, fsync each", edit),
];

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let known = ["--json", "--save"];
    ensure!(args.iter().all(|arg| known.contains(arg)), USAGE);
    ensure!(
        rustix::process::geteuid().is_root(),
        "it attaches and mounts: it needs root"
    );
    let where_and_when = machine::describe();
    let mut all = Vec::new();
    for (name, work) in WORKLOADS {
        eprintln!("{name} ...");
        all.push((name, measure(args.contains(&"--json"), work)?));
    }
    match args.contains(&"--json") {
        true => println!("{:#}", json!(all)),
        false => print!("{}", text(&all)),
    }
    if args.contains(&"--save") {
        let about = "A 1 GiB ext4 by plain mkfs.ext4, mounted without any option, on an attached device. A snapshot when it is quiet; the workload; sync; freeze; \
            then one snapshot as it is and one `--fs-aware`. In blocks of 4 KiB that are not zero, and in bytes that the snapshot added to the store.";
        let page = format!(
            "# What a file system does not need\n\n{where_and_when}\n\n`cargo xtask fs-aware --save`. {about}\n\n{}",
            text(&all)
        );
        save("fs-aware.md", &page)?;
    }
    Ok(())
}

/// One workload, both ways.
fn measure(quiet: bool, work: Work) -> Result<Value> {
    let plain = Guest::start(quiet)?.snapshot(work, "")?;
    let aware = Guest::start(quiet)?.snapshot(work, "--fs-aware")?;
    Ok(json!({ "plain": plain, "fs_aware": aware }))
}

/// A mounted file system on a session. Ended in the order of its fields.
struct Guest {
    mounted: Mounted,
    attached: Attached,
    rig: Rig,
}

struct Mounted(PathBuf);

struct Attached(Child);

impl Guest {
    fn start(quiet: bool) -> Result<Self> {
        let rig = Rig::build("cowslip-fs-aware-", quiet)?;
        File::create(rig.path("empty.raw"))?.set_len(SIZE_MIB << 20)?;
        rig.ok("import empty.raw base --format raw --quiet")?;
        let mut command = rig.command(["attach", "base", "--session", "s", "--run-dir", "run"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut attached = Attached(child.context("starting cowslip attach")?);
        let mut device = String::new();
        let out = attached.0.stdout.take().expect("asked for above");
        BufReader::new(out).read_line(&mut device)?;
        let device = device.trim_end();
        ensure!(device.starts_with("/dev/"), "cowslip attach gave no device");
        tool("mkfs.ext4", &["-q", device])?;
        let dir = rig.path("mnt");
        fs::create_dir(&dir)?;
        tool("mount", &[device, &dir.to_string_lossy()])?;
        let mounted = Mounted(dir);
        Ok(Self {
            mounted,
            attached,
            rig,
        })
    }

    /// What is there before, quiet; then the work; then a snapshot of this kind, frozen.
    fn snapshot(self, work: Work, how: &str) -> Result<Value> {
        let (mut random, dir) = (Random(1), &self.mounted.0);
        fs::create_dir(dir.join("work"))?;
        for i in 0..6 {
            write(&dir.join(format!("work/f{i}")), &noise(&mut random, 3000))?;
        }
        sync(dir)?;
        self.rig.ok("snapshot s quiet")?;
        work(dir, &mut random)?;
        sync(dir)?;
        tool("fsfreeze", &["-f", &dir.to_string_lossy()])?;
        let taken = self.rig.json(&format!("snapshot s taken {how}"));
        tool("fsfreeze", &["-u", &dir.to_string_lossy()])?;
        let taken = taken?;
        let explained = self.rig.json("explain taken")?;
        self.check()?;
        Ok(json!({
            "blocks": explained["total_blocks"],
            "stored_bytes": taken["stored_bytes"],
            "unneeded_blocks": taken["unneeded_blocks"],
            "classes": explained["classes"],
        }))
    }

    /// The snapshot is a sound file system.
    fn check(self) -> Result<()> {
        self.rig.ok("export taken taken.raw --quiet")?;
        let raw = self.rig.path("taken.raw");
        tool("e2fsck", &["-fn", &raw.to_string_lossy()])?;
        let Self {
            mounted,
            mut attached,
            ..
        } = self;
        drop(mounted);
        kill_process(Pid::from_child(&attached.0), Signal::TERM)?;
        let status = attached.0.wait()?;
        ensure!(status.success(), "cowslip attach ended with {status}");
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Also where something failed while it was frozen, when it is not, this changes nothing.
        let dir = self.0.to_string_lossy().into_owned();
        if tool("umount", &[&dir]).is_err() {
            drop(tool("fsfreeze", &["-u", &dir]));
            drop(tool("umount", &["-l", &dir]));
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

fn create_and_delete(dir: &Path, random: &mut Random) -> Result<()> {
    let path = dir.join("gone");
    for _ in 0..20 {
        let mut file = File::options().create(true).append(true).open(&path)?;
        file.write_all(&noise(random, 1 << 20))?;
    }
    sync(dir)?;
    fs::remove_file(path)?;
    Ok(())
}

fn edit(dir: &Path, random: &mut Random) -> Result<()> {
    for i in 0..60 {
        let (new, old) = (dir.join("work/new"), dir.join(format!("work/f{}", i % 6)));
        write(&new, &noise(random, 3000))?;
        fs::rename(new, old)?;
        File::open(dir.join("work"))?.sync_all()?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}

fn sync(dir: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn tool(name: &str, args: &[&str]) -> Result<String> {
    let Some(path) = program(name) else {
        bail!("{name} is missing");
    };
    output(Command::new(path).args(args))
}

fn text(all: &[(&str, Value)]) -> String {
    let rows: Vec<Vec<String>> = all
        .iter()
        .flat_map(|(name, found)| {
            [("as it is", "plain"), ("fs-aware", "fs_aware")].map(|way| (name, way, found))
        })
        .map(|(name, (way, field), found)| {
            let one = &found[field];
            let class = |name: &str| {
                let mut rows = one["classes"].as_array().into_iter().flatten();
                let row = rows.find(|row| row["class"] == name);
                row.map_or(0, |row| row["blocks"].as_u64().unwrap_or(0))
                    .to_string()
            };
            vec![
                (*name).to_owned(),
                way.to_owned(),
                one["blocks"].to_string(),
                class("free"),
                class("journal_dead"),
                class("file"),
                bytes(one["stored_bytes"].as_u64().unwrap_or(0)),
            ]
        })
        .collect();
    let head = [
        "workload",
        "snapshot",
        "blocks",
        "of them free",
        "dead journal",
        "files",
        "stored",
    ];
    table(&head, &rows)
}
