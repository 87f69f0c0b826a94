//! `cowslip lab`, on a few small cells: what it measures, that it goes on where it was, and that it leaves nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::devices::{Devices, gone};
use crate::rig::{said, until};

const TOOLS: [&str; 6] = [
    "mkfs.ext4",
    "e2fsck",
    "dumpe2fs",
    "sqlite3",
    "setpriv",
    "losetup",
];

/// Places of devices that the lab in `out` attached.
fn places(devices: &Devices) -> usize {
    fs::read_dir(devices.rig.path("out/run"))
        .into_iter()
        .flatten()
        .count()
}

/// A stage's figure of a cell.
fn blocks(found: &Value, variant: &str, workload: &str, stage: &str) -> u64 {
    let cells = found["cells"].as_array().unwrap();
    let is = |cell: &&Value| cell["variant"] == variant && cell["workload"] == workload;
    let cell = cells
        .iter()
        .find(is)
        .unwrap_or_else(|| panic!("{variant}/{workload} in {found}"));
    let stages = cell["stages"].as_array().unwrap();
    let stage = stages.iter().find(|s| s["stage"] == stage).unwrap();
    stage["blocks"].as_u64().unwrap()
}

#[test]
fn cells_are_measured_once_and_told() {
    let Some(devices) = Devices::new("cells_are_measured_once_and_told", &TOOLS) else {
        return;
    };
    let rig = &devices.rig;
    let line = "lab --quick --out out --variant plain,default --workload unpack,zero-fill,read-walk,sqlite,chain --json";
    let run = || {
        let output = rig.run(line);
        assert!(output.status.success(), "{}", said(&output));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        (found, String::from_utf8(output.stderr).unwrap())
    };
    let (found, told) = run();
    assert!(
        told.contains("10 cells, 0 of them measured before"),
        "{told}"
    );
    assert_eq!(found["cells"].as_array().unwrap().len(), 10, "{found}");
    for cell in found["cells"].as_array().unwrap() {
        let (variant, workload) = (
            cell["variant"].as_str().unwrap(),
            cell["workload"].as_str().unwrap(),
        );
        let at = |stage| blocks(&found, variant, workload, stage);
        let floor = cell["floor_blocks"].as_u64().unwrap();
        assert!(at("quiesce") <= at("sync"), "{cell}");
        assert!(at("quiesce") >= floor, "{cell}");
        let is_idle = ["read-walk", "zero-fill"].contains(&workload);
        assert_eq!(floor == 0, is_idle, "{cell}");
    }
    // Times of access are what reading writes, and `noatime` is against that.
    let [plain, default] = ["plain", "default"].map(|v| blocks(&found, v, "read-walk", "quiesce"));
    assert!(plain > default + 20 && default < 6, "{plain} {default}");
    assert!(
        found["named_percent_min"].as_f64().unwrap() >= 99.0,
        "{found}"
    );
    for file in [
        "results.jsonl",
        "results.tsv",
        "results.json",
        "report.md",
        "report.html",
    ] {
        assert!(
            fs::metadata(rig.path("out").join(file)).unwrap().len() > 0,
            "{file}"
        );
    }
    assert_eq!(places(&devices), 0);
    devices.assert_nothing_left();

    let (again, told) = run();
    assert!(
        told.contains("10 cells, 10 of them measured before"),
        "{told}"
    );
    assert_eq!(again["cells"], found["cells"]);
    let other = rig.fails(2, "lab --quick --out out --seed 2");
    assert!(other.contains("another size or seed"), "{other}");
    rig.fails(2, "lab --quick --out new --variant no-such");
    assert!(!Path::new(&rig.path("new")).exists());
}

#[test]
fn a_lab_that_ends_early_leaves_nothing() {
    let Some(devices) = Devices::new("a_lab_that_ends_early_leaves_nothing", &TOOLS) else {
        return;
    };
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut lab = start(&devices);
        until("a file system of the lab", || {
            (!devices.mounts().is_empty()).then_some(())
        });
        kill_process(Pid::from_child(&lab), signal).unwrap();
        let status = lab.wait().unwrap();
        let code = (signal != Signal::KILL).then_some(1);
        assert_eq!(status.code(), code, "{signal:?}: {status}");
        // What the lab cannot end any more ends by itself.
        gone("what the lab attached", || {
            places(&devices) > 0 || !devices.mounts().is_empty()
        });
    }
    devices.assert_nothing_left();
}

fn start(devices: &Devices) -> Child {
    let line = "lab --quick --out out --quiet --variant plain --workload idle";
    let mut command = devices.rig.command(line.split(' '));
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn one_crash_is_looked_at() {
    let Some(devices) = Devices::new("one_crash_is_looked_at", &TOOLS) else {
        return;
    };
    let rig = &devices.rig;
    let found = rig.json("lab --quick --out out --quiet --variant default --workload crash");
    let crash = &found["cells"][0]["crash"];
    assert!(crash["synced_files"].as_u64().unwrap() > 100, "{found}");
    for nothing in ["synced_lost", "damaged", "mounts_failed", "foreign"] {
        assert_eq!(crash[nothing], 0, "{nothing}: {found}");
    }
    // What was not synced is not all there: the copies are really taken in the middle.
    assert!(crash["unsynced_lost"].as_u64().unwrap() > 0, "{found}");
}
