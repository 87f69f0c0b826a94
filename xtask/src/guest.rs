//! `cargo xtask guest [--json] [--save]`: what a real guest's file system adds to a snapshot in each phase of its life, beside the same on a block device of this
//! machine.
//!
//! ```text
//! mmdebstrap ──> cowslip build ──> base
//! guest: cowslip run base          ── a shell in it   ── cowslip snapshot, which holds the guest      ── cowslip explain
//! loop:  cowslip mount base, chroot ── the same shell ── cowslip quiesce -- cowslip snapshot          ── cowslip explain
//! ```
//!
//! One shell on each side does one phase after the other, as it is told line by line. The last snapshots are checked by e2fsck.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::machine;
use crate::rig::Rig;
use crate::rig::table::{bytes, table};
use crate::run::{output, program, save};

const USAGE: &str = "usage: cargo xtask guest [--json] [--save]";
const KERNEL: &str = "6.1";
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";
const MOUNTED_WITHIN: Duration = Duration::from_secs(60);

/// Does a line, and says so. It lives in the image, and needs no more of it than sh.
const SHELL: &str = "while read -r line; do eval \"$line\" && echo done; done";

const PHASES: [(&str, &str); 4] = [
    // The tables of inodes, which mkfs.ext4 left to the first mount, are written within seconds.
    ("lazyinit", "sleep 20"),
    (
        "unpack",
        "mkdir /unpacked; tar -C / -cf - etc var/lib/dpkg usr/lib/x86_64-linux-gnu/perl-base usr/share/perl5 usr/share/zoneinfo/Europe | tar -C /unpacked -xf -",
    ),
    ("delete", "rm -r /unpacked"),
    ("idle", "sleep 20"),
];

const ABOUT: &str = "*guest*: `cowslip run` boots Debian's 6.1 from the template, and its snapshots freeze the guest's file system after a sync, a trim and a checkpoint of the journal. *loop*: `cowslip mount` of the same template on this machine, the same shell in a \
    chroot, `cowslip quiesce DIR -- cowslip snapshot`. Template: mmdebstrap's minbase, default profile, 1 GiB. Each snapshot is explained against the one before it, in blocks of 4 KiB that are not zero; *zeroed* are those that were not, and are now; *stored* is what the snapshot added to the store.";

pub(crate) fn run(args: &[&str]) -> Result<()> {
    ensure!(
        args.iter().all(|arg| ["--json", "--save"].contains(arg)),
        USAGE
    );
    let as_json = args.contains(&"--json");
    let Some(kernel) = cowslip_machine::have("guest", KERNEL) else {
        return Ok(());
    };
    let where_and_when = machine::describe();
    let rig = Rig::build_as("cowslip-guest-", as_json, false)?;
    eprintln!("guest: in {}", rig.dir().display());
    template(&rig)?;
    let mut words = vec!["run", "base", "--session", "guest", "--quiet", "--kernel"];
    let (program, modules) = (kernel.program(), kernel.modules());
    words.extend([
        text_of(&program)?,
        "--modules",
        text_of(&modules)?,
        "--",
        "sh",
        "-c",
        SHELL,
    ]);
    let guest = phases(
        "guest",
        Shell::start(rig.command(words))?,
        |name| rig.json(&format!("snapshot guest {name}")),
        &rig,
    )?;
    let on_loop = on_loop(&rig)?;
    let all: Vec<(&str, &str, &Value)> = PHASES
        .iter()
        .enumerate()
        .flat_map(|(n, (phase, _))| [(*phase, "guest", &guest[n]), (*phase, "loop", &on_loop[n])])
        .collect();
    for last in ["guest-idle", "loop-idle"] {
        check(&rig, last)?;
    }
    match as_json {
        true => println!("{:#}", json!(all)),
        false => print!("\n{}", text(&all)),
    }
    if args.contains(&"--save") {
        let page = format!(
            "# What a guest adds in each phase of its life\n\n{where_and_when}\n\n`cargo xtask guest --save`. {ABOUT}\n\n{}\n{WHY}",
            text(&all)
        );
        save("guest.md", &page)?;
    }
    Ok(())
}

/// What the table was found to mean; to be looked at again where it changes.
const WHY: &str = "
## Where they differ, and why

In no block: an emulated Debian with Linux 6.1 behind virtio and NBD, and this machine's kernel behind a loop device and FUSE, change the same number of blocks of each class in each phase. What the disk is reached by does not show in a diff, so the figures of [the lab](ext4-knobs.md), which are taken on loop devices,
stand for guests as well.

- **lazyinit**: the tables of inodes that mkfs.ext4 left to the first mount are zeros in the template, and are written as zeros: nothing. What is left is the superblock of the mount, and one block of the journal, as the lab's `first-mount-file` has it.
- **unpack**: 2,506 blocks of files, and 6 % around them: inodes, directories. Every block is named.
- **delete**: the files' blocks are trimmed, by `discard` and again before the snapshot: 2,554 blocks become zeros. The inodes stay dirty, since the time of the deletion is in each. Those times are all that differs in stored bytes (36.8 and 32.5 KiB): `rm` under emulation takes longer, so they are more different from each other, and compress less.
- **idle**: 20 seconds are one block, the superblock, which the freeze writes; as in the lab.
";

fn template(rig: &Rig) -> Result<()> {
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=minbase", "bookworm"]);
    output(make.arg(rig.path("tree.tar")).arg(SOURCES))?;
    rig.ok("build tree.tar base --size 1G --quiet")?;
    Ok(std::fs::remove_file(rig.path("tree.tar"))?)
}

/// A shell that is told what to do, line by line. It ends with this.
struct Shell {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("a shell")?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().expect("asked for above")),
            child,
        })
    }

    fn does(&mut self, line: &str) -> Result<()> {
        writeln!(self.input.as_ref().expect("not ended yet"), "{line}")?;
        let mut said = String::new();
        self.output.read_line(&mut said)?;
        ensure!(said == "done\n", "{line}: {said:?}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// All phases on one side, each explained.
fn phases(
    side: &str,
    mut shell: Shell,
    snapshot: impl Fn(&str) -> Result<Value>,
    rig: &Rig,
) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for (phase, line) in PHASES {
        let begun = Instant::now();
        shell.does(line)?;
        let name = format!("{side}-{phase}");
        let taken = snapshot(&name)?;
        let explained = rig.json(&format!("explain {name} --top 8"))?;
        eprintln!(
            "{name}: {} blocks, {:.0} s",
            explained["total_blocks"],
            begun.elapsed().as_secs_f64()
        );
        found.push(json!({ "taken": taken, "explained": explained }));
    }
    shell.end()?;
    Ok(found)
}

fn on_loop(rig: &Rig) -> Result<Vec<Value>> {
    let dir = rig.path("mnt");
    std::fs::create_dir(&dir)?;
    let mount = rig.command([
        "mount",
        "base",
        text_of(&dir)?,
        "--session",
        "loop",
        "--run-dir",
        "run",
        "--quiet",
    ]);
    let mut mounted = Mounted::start(mount, &dir)?;
    let mut shell = Command::new("chroot");
    shell
        .arg(&dir)
        .args(["/bin/sh", "-c", SHELL])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let found = phases(
        "loop",
        Shell::start(shell)?,
        |name| {
            let own = rig.command(["snapshot"]);
            let own = text_of(Path::new(own.get_program()))?;
            rig.ok(&format!(
                "quiesce mnt -- {own} snapshot loop {name} --quiet"
            ))?;
            rig.json(&format!("inspect {name}"))
        },
        rig,
    )?;
    mounted.end()?;
    Ok(found)
}

/// `cowslip mount`, until it is told to end.
struct Mounted(Child);

impl Mounted {
    fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let outside = rustix::fs::stat(dir)?.st_dev;
        let mut mounted = Self(
            command
                .stdout(Stdio::null())
                .spawn()
                .context("cowslip mount")?,
        );
        let give_up = Instant::now() + MOUNTED_WITHIN;
        while rustix::fs::stat(dir)?.st_dev == outside {
            if let Some(status) = mounted.0.try_wait()? {
                bail!("cowslip mount ended with {status}");
            }
            ensure!(Instant::now() < give_up, "cowslip mount takes too long");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(mounted)
    }

    fn end(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "cowslip mount ended with {status}");
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.end();
        }
    }
}

/// The snapshot is a sound file system.
fn check(rig: &Rig, name: &str) -> Result<()> {
    rig.ok(&format!("export {name} check.raw --quiet --replace"))?;
    let fsck = program("e2fsck").context("e2fsck is missing")?;
    output(Command::new(fsck).arg("-fn").arg(rig.path("check.raw")))?;
    Ok(())
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn text(all: &[(&str, &str, &Value)]) -> String {
    let rows_of = |found: &Value| {
        let rows = found["explained"]["classes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        rows.into_iter()
            .map(|row| {
                (
                    row["class"].as_str().unwrap_or("").to_owned(),
                    row["blocks"].to_string(),
                )
            })
            .collect::<Vec<_>>()
    };
    let classes: BTreeSet<String> = all
        .iter()
        .flat_map(|(_, _, found)| rows_of(found))
        .map(|(class, _)| class)
        .collect();
    let mut head = vec!["phase, where", "blocks"];
    head.extend(classes.iter().map(String::as_str));
    head.extend(["zeroed", "stored"]);
    let row = |(phase, side, found): &(&str, &str, &Value)| {
        let own = rows_of(found);
        let mut row = vec![
            format!("{phase}, {side}"),
            found["explained"]["total_blocks"].to_string(),
        ];
        row.extend(classes.iter().map(|class| {
            own.iter()
                .find(|(name, _)| name == class)
                .map_or_else(|| "0".to_owned(), |(_, blocks)| blocks.clone())
        }));
        row.push(found["explained"]["zeroed_blocks"].to_string());
        row.push(bytes(found["taken"]["stored_bytes"].as_u64().unwrap_or(0)));
        row
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table(&head, &rows)
}
