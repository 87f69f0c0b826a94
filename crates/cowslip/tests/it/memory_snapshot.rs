//! `cowslip memory snapshot`: of guests that are served, with the commands that pause them and let them go.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use cowslip_vmm::{Control, Shape, can};
use rustix::process::{Signal, kill_process};

use super::rig::{COWSLIP, Rig, Served, until};

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
        self.held(rest, "true")
    }

    /// Paused by one command more.
    fn held(&self, rest: &str, by: &str) -> std::process::Output {
        let mut words: Vec<String> = self
            .line(rest)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let step = |what: &str| format!("echo {what} >> {}", self.rig.path("steps").display());
        words.extend([
            "--before".into(),
            format!("{}; {by}", step("paused")),
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
        world.rig.file("disk", &[9; 2 * PAGE]);
        world.write(&mut guest, 5, 100);
        world.write(&mut guest, 70, 101);
        guest.begin("a remove 200 210");
        assert_eq!(guest.answer(), "a removed");
        world.memory[200 * PAGE..210 * PAGE].fill(0);
        let state = world.rig.path("state");
        // The disk has its name once the guest is paused.
        let line = format!("one --json --disk d --state {}", state.display());
        let import = format!("{COWSLIP} import disk d --format raw --quiet");
        let output = world.held(&line, &import);
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
        world.steps()
    };
    // It is not paused for what can be known before.
    assert_eq!(refused(&world, "m", 1, "m"), "");
    assert_eq!(refused(&world, "x --pid 1", 3, "process 1"), "");
    let other = world.guest(false);
    until("both", || {
        world.paused("x").status.code().filter(|code| *code == 2)
    });
    drop(other);
    let both = "paused\nresumed\n";
    assert_eq!(refused(&world, "x --state nowhere", 3, "nowhere"), both);
    assert_eq!(refused(&world, "x --disk nobody", 3, "nobody"), both);
    // A server that does not answer from then on.
    let server = world.served.as_ref().unwrap().pid();
    // One of its threads takes the signal, and stops the others.
    let stopping = format!(
        "kill -STOP {0}; while grep -h ^State: /proc/{0}/task/*/status | grep -qv 'T (stopped)'; do :; done",
        server.as_raw_nonzero()
    );
    std::fs::remove_file(world.rig.path("steps")).ok();
    let output = world.held("x --pause-timeout 300ms", &stopping);
    kill_process(server, Signal::CONT).unwrap();
    let said = super::rig::said(&output);
    assert!(said.contains("nothing is stored"), "{said}");
    assert_eq!((output.status.code(), &*world.steps()), (Some(1), both));
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
        let request = r#"{"name":"two","replace":false,"is_paused":true,"disk_frames":0,"state":"#;
        // It is paused, and stays so.
        writeln!(&asked, "{request}{state}}}\n\n").unwrap();
        let said = BufReader::new(asked).lines().map(Result::unwrap);
        let said = said.last().unwrap();
        assert!(said.contains("failed") && said.contains(why), "{said}");
    }
}
