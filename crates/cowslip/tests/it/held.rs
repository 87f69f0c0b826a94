//! `snapshot --before --after`: a guest that is held until its snapshot is taken, and no longer, whatever happens.

use std::process::Output;

use rustix::process::{Signal, kill_process};

use super::bytes::{BLOCK, noise};
use super::rig::{Rig, said};

struct World(Rig);

impl World {
    /// A store with `base`.
    fn new() -> Self {
        let rig = Rig::new();
        rig.import("base", &noise(1, 8 * BLOCK));
        Self(rig)
    }

    /// `snapshot s ...`, held by commands that say so.
    fn held(&self, line: &str, before: &str, after: &str) -> Output {
        let steps = self.0.path("steps");
        drop(std::fs::remove_file(&steps));
        let step = |word: &str, end: &str| format!("echo {word} >> {}; {end}", steps.display());
        let (before, after) = (step("paused", before), step("resumed", after));
        let words = ["snapshot", "s"].into_iter().chain(line.split(' '));
        let words = words.chain(["--before", &before, "--after", &after]);
        self.0.command(words).output().unwrap()
    }

    fn steps(&self) -> String {
        std::fs::read_to_string(self.0.path("steps")).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        let listed = self.0.json("ls");
        let rows = listed.as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn it_is_held_until_the_snapshot_is_taken() {
    let world = World::new();
    let served = world.0.serve("base --session s");
    let mut bytes = served.read_all();
    let new = noise(7, BLOCK);
    served.client().write(0, &new).unwrap();
    bytes[..BLOCK].copy_from_slice(&new);
    let output = world.held("one --json", ":", ":");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(world.steps(), "paused\nresumed\n");
    assert!(world.0.export("one") == bytes);
    // What the commands print is no part of the result.
    let output = world.held("two --json", "echo noise", "echo noise");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["name"], "two");
    // A guest that cannot be let go is told of, and the snapshot is there.
    let output = world.held("three", ":", "exit 5");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("--after"), "{}", said(&output));
    served.end();
    // Of a session at rest as well.
    let output = world.held("four", ":", ":");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(world.steps(), "paused\nresumed\n");
    assert_eq!(world.names(), ["base", "four", "one", "three", "two"]);
    assert!(world.0.export("four") == bytes);
}

#[test]
fn one_that_cannot_be_held_is_let_go_and_nothing_is_stored() {
    let world = World::new();
    let served = world.0.serve("base --session s");
    let output = world.held("one", "exit 3", ":");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("--before"), "{}", said(&output));
    assert_eq!(world.steps(), "paused\nresumed\n", "it may be half done");
    let output = world.held("base", ":", ":");
    assert_eq!(output.status.code(), Some(1), "the name is taken");
    assert_eq!(world.steps(), "paused\nresumed\n");
    served.end();
    let output = world.held("base", ":", ":");
    assert_eq!(output.status.code(), Some(1), "also at rest");
    assert_eq!(world.steps(), "paused\nresumed\n");
    assert_eq!(world.names(), ["base"]);
}

#[test]
fn patience_has_an_end_and_then_there_is_no_snapshot() {
    let world = World::new();
    let served = world.0.serve("base --session s");
    served.client().write(0, &noise(7, BLOCK)).unwrap();
    kill_process(served.pid(), Signal::STOP).unwrap();
    let output = world.held("one --pause-timeout 200ms", ":", ":");
    kill_process(served.pid(), Signal::CONT).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let told = said(&output);
    assert!(told.contains("goes on, and nothing is stored"), "{told}");
    assert_eq!(world.steps(), "paused\nresumed\n");
    // The same where the server hears of it while it is let go: nobody says that it was held until now.
    kill_process(served.pid(), Signal::STOP).unwrap();
    let let_go =
        "kill -TERM $PPID; kill -CONT ".to_owned() + &served.pid().as_raw_nonzero().to_string();
    let output = world.held(
        "late --pause-timeout 200ms",
        ":",
        &format!("{let_go}; sleep 0.5"),
    );
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    // What was asked for first is dealt with first, and holds up nobody.
    world.0.ok("snapshot s two");
    served.end();
    assert_eq!(world.names(), ["base", "two"]);
    assert!(world.0.export("two")[..BLOCK] == noise(7, BLOCK));
}
