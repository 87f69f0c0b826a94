//! `cowslip memory snapshot`: of guests that are served, with the commands that pause them and let them go.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use cowslip_vmm::{Control, Shape, can};
use rustix::process::{Signal, kill_process};

use super::rig::{Rig, Served, until};

const PAGES: usize = 300;
const PAGE: usize = 4096;

struct World {
    rig: Rig,
    served: Option<Served>,
    memory: Vec<u8>,
}

impl World {
    fn new(test: &str) -> Option<Self> {
        let rig = can(test, false).then(Rig::new)?;
        let memory: Vec<u8> = (0..PAGES * PAGE)
            .map(|i| u8::try_from(i / PAGE % 7).unwrap())
            .collect();
        rig.file("memory.bin", &memory);
        rig.ok("memory import memory.bin m --quiet");
        let served = Some(rig.serve_memory("m"));
        Some(Self {
            rig,
            served,
            memory,
        })
    }

    fn guest(&self, is_async: bool) -> Control {
        let shape = Shape {
            pages: PAGES,
            is_async,
            ..Shape::default()
        };
        let mut guest = Control::start(&self.rig.path("."), shape);
        // Served from here on.
        guest.begin("a read 0");
        assert_eq!(guest.answer(), "a 0");
        guest
    }

    fn write(&mut self, guest: &mut Control, page: usize, value: u8) {
        guest.begin(&format!("a write {page} {value}"));
        assert_eq!(guest.answer(), "a written");
        self.memory[page * PAGE] = value;
    }

    fn line(&self, rest: &str) -> String {
        format!(
            "memory snapshot --server unix:{} {rest}",
            self.rig.path("memory.sock").display()
        )
    }

    /// What the commands wrote.
    fn steps(&self) -> String {
        std::fs::read_to_string(self.rig.path("steps")).unwrap_or_default()
    }

    fn paused(&self, rest: &str) -> std::process::Output {
        let mut words: Vec<String> = self
            .line(rest)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let step = |what: &str| format!("echo {what} >> {}", self.rig.path("steps").display());
        words.extend([
            "--before".into(),
            step("paused"),
            "--after".into(),
            step("resumed"),
        ]);
        self.rig.command(words).output().unwrap()
    }
}

/// As they are, and as deltas.
fn stored_pages(report: &serde_json::Value) -> u64 {
    let of = |field: &str| report[field].as_u64().unwrap();
    of("payload_pages") + of("delta_pages")
}

#[test]
fn snapshots_over_one_another_restore_what_the_guest_had() {
    let test = "snapshots_over_one_another_restore_what_the_guest_had";
    for is_async in [false, true] {
        let Some(mut world) = World::new(test) else {
            return;
        };
        let mut guest = world.guest(is_async);
        world.rig.file("state", b"the monitor's");
        world.rig.import("d", &[9; 2 * PAGE]);
        world.write(&mut guest, 5, 100);
        world.write(&mut guest, 70, 101);
        guest.begin("a remove 200 210");
        assert_eq!(guest.answer(), "a removed");
        world.memory[200 * PAGE..210 * PAGE].fill(0);
        let state = world.rig.path("state");
        let output = world.paused(&format!("one --json --disk d --state {}", state.display()));
        assert!(output.status.success(), "{}", super::rig::said(&output));
        assert_eq!(world.steps(), "paused\nresumed\n");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(stored_pages(&report), 2, "{report}");
        assert!(world.rig.export("one:memory") == world.memory);
        assert_eq!(world.rig.export("one:state"), b"the monitor's");
        assert_eq!(world.rig.export("one:disk"), [9; 2 * PAGE]);
        let before = world.memory.clone();
        world.write(&mut guest, 71, 102);
        // With those that are zeros: 10, and page 0, which it read.
        let second = world.rig.json(&world.line("two"));
        assert_eq!(
            (second["looked_at_pages"].as_u64(), stored_pages(&second)),
            (Some(12), 1),
            "{second}"
        );
        assert!(
            world.rig.export("two:memory") == world.memory
                && world.rig.export("one:memory") == before
        );
        // What it stands on may lose its names.
        world.rig.ok("rm one");
        world.rig.ok("rm two");
        world.rig.ok("gc");
        world.write(&mut guest, 72, 103);
        world.rig.ok(&world.line("three"));
        drop(guest);
        world.served.take().unwrap().end();
        world.served = Some(world.rig.serve_memory("three"));
        let mut fork = world.guest(is_async);
        for page in [5, 70, 71, 72, 205, 299] {
            fork.begin(&format!("a read {page}"));
            assert_eq!(fork.answer(), format!("a {}", world.memory[page * PAGE]));
        }
    }
}

#[test]
fn the_guest_is_let_go_whatever_happens() {
    let Some(mut world) = World::new("the_guest_is_let_go_whatever_happens") else {
        return;
    };
    let mut guest = world.guest(false);
    world.write(&mut guest, 5, 100);
    let refused = |world: &World, rest: &str, code: i32, why: &str| {
        std::fs::remove_file(world.rig.path("steps")).ok();
        let output = world.paused(rest);
        let said = super::rig::said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{said}");
        assert_eq!(world.steps(), "paused\nresumed\n");
    };
    refused(&world, "m", 1, "m");
    refused(&world, "x --pid 1", 3, "process 1");
    refused(&world, "x --disk nobody", 3, "nobody");
    let other = world.guest(false);
    until("both", || {
        world.paused("x").status.code().filter(|code| *code == 2)
    });
    drop(other);
    // A server that does not answer.
    let server = world.served.as_ref().unwrap().pid();
    kill_process(server, Signal::STOP).unwrap();
    refused(&world, "x --pause-timeout 300ms", 1, "nothing is stored");
    kill_process(server, Signal::CONT).unwrap();
    // Whoever lost patience has let the guest go: what it asked for is not stored, and not lost either.
    world.write(&mut guest, 6, 101);
    let report = until("one guest", || {
        let output = world
            .rig
            .command(world.line("y --json").split_whitespace())
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap())
    });
    assert_eq!(stored_pages(&report), 2, "{report}");
    assert!(world.rig.export("y:memory") == world.memory);
    let listed = world.rig.ok("ls");
    assert!(
        !listed.lines().any(|line| line.starts_with("x ")),
        "{listed}"
    );
    // A command that cannot pause it may have done so in part.
    let line = world.line("z");
    let words = line
        .split_whitespace()
        .chain(["--before", "exit 3", "--after"]);
    std::fs::remove_file(world.rig.path("steps")).ok();
    let resumes = format!("echo resumed >> {}", world.rig.path("steps").display());
    let output = world
        .rig
        .command(words.chain([resumes.as_str()]))
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), world.steps()),
        (Some(1), "resumed\n".into())
    );
    // No server at all: nothing is paused.
    world.served.take().unwrap().end();
    std::fs::remove_file(world.rig.path("steps")).ok();
    let output = world.paused("z");
    assert_eq!(
        (output.status.code(), world.steps()),
        (Some(3), String::new())
    );
}

/// A guest may take longer to be paused, with its monitor's state saved, than a server waits for who says nothing.
#[test]
fn a_server_is_asked_once_the_guest_is_paused() {
    let rig = Rig::new();
    let path = rig.path("memory.sock.control");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        drop(listener.accept().unwrap());
        let mut line = String::new();
        let (asked, _) = listener.accept().unwrap();
        BufReader::new(asked).read_line(&mut line).unwrap();
        line
    });
    let server_at = rig.path("memory.sock");
    let line = format!(
        "memory snapshot x --before true --server unix:{}",
        server_at.display()
    );
    let said = rig.fails(1, &line);
    assert!(said.contains("the server went away"), "{said}");
    // Where nobody asked a second time, this is what the server hears.
    drop(UnixStream::connect(&path));
    let asked = server.join().unwrap();
    assert!(asked.contains(r#""name":"x""#), "{asked:?}");
}

/// The server could not open it: it has no name any more. And it opens none that it is told.
#[test]
fn the_monitor_s_state_is_opened_by_the_client_alone() {
    let Some(mut world) = World::new("the_monitor_s_state_is_opened_by_the_client_alone") else {
        return;
    };
    let mut guest = world.guest(false);
    world.write(&mut guest, 5, 100);
    let mut state = tempfile::tempfile().unwrap();
    state.write_all(b"the monitor's").unwrap();
    let line = world.line("one --state /dev/stdin");
    let mut command = world.rig.command(line.split_whitespace());
    let output = command.stdin(state).output().unwrap();
    assert!(output.status.success(), "{}", super::rig::said(&output));
    assert_eq!(world.rig.export("one:state"), b"the monitor's");
    assert!(world.rig.export("one:memory") == world.memory);
    for (state, why) in [
        ("\"/etc/hostname\"", "a bad request"),
        ("true", "no file came"),
    ] {
        let asked = UnixStream::connect(world.rig.path("memory.sock.control")).unwrap();
        let request = r#"{"name":"two","replace":false,"disk_frames":0,"state":"#;
        writeln!(&asked, "{request}{state}}}").unwrap();
        let mut said = String::new();
        BufReader::new(asked).read_line(&mut said).unwrap();
        assert!(said.contains("failed") && said.contains(why), "{said}");
    }
}
