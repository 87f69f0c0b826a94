//! What the command promises to those who call it: exit codes, JSON, names, where the store is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bytes::{MIB, noise};
use crate::rig::{COWSLIP, Rig, Served, said};
use crate::tools::{have, run};

fn rig() -> Rig {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    rig
}

#[test]
fn json_has_what_is_promised() {
    let rig = rig();
    let served = rig.serve("base --session s");
    let mut client = served.client();
    client.write(0, &noise(2, 8192)).unwrap();
    client.trim(8192, 4096).unwrap();
    client.write(12288, &noise(1, 16384)[12288..]).unwrap();
    let taken = rig.json("snapshot s one");
    client.write(0, &noise(3, 8192)).unwrap();
    client.trim(8192, 4096).unwrap();
    let sessions = rig.json("sessions");
    let live = &sessions[0]["live"];
    assert_eq!(
        (
            &live["dirty_blocks"],
            &live["zero_blocks"],
            &live["frozen_caches"]
        ),
        (&2.into(), &1.into(), &0.into()),
        "{live}"
    );
    for field in ["pid", "cache_bytes", "journal_bytes", "state_memory_bytes"] {
        assert!(live[field].as_u64().unwrap() > 0, "{field}: {live}");
    }
    assert_eq!(live["seal_memory_bytes"], 0);
    assert_eq!(live["sealing"], Value::Array(Vec::new()));
    served.end();
    assert!(taken["held_us"].as_f64().unwrap() >= 0.0 && taken["seconds"].as_f64().unwrap() > 0.0);
    let info = rig.inspect("one");
    let strings = ["name", "id", "parent", "parent_name", "made_by"];
    assert!(strings.iter().all(|s| info[s].is_string()), "{info}");
    let numbers = [
        ("size_bytes", 1 << 20),
        ("block_size_bytes", 4096),
        ("generation", 1),
        ("dirty_blocks", 2),
        ("zero_blocks", 1),
        ("same_blocks", 1),
    ];
    for (field, value) in numbers {
        assert_eq!(info[field], value, "{field}");
        assert_eq!(taken[field], value, "{field} of snapshot");
    }
    let n = |f: &str| info[f].as_u64().unwrap();
    assert_eq!(n("stored_bytes"), n("payload_bytes") + n("header_bytes"));
    assert!(n("payload_bytes") > 8192 && n("header_bytes") > 0 && n("created_unix_ms") > 0);
    let layers = info["layers"].as_array().unwrap();
    let blocks: Vec<_> = layers
        .iter()
        .map(|l| l["blocks"].as_u64().unwrap())
        .collect();
    assert_eq!(blocks, [253, 2]);
    let base = rig.inspect("base");
    assert_eq!(
        (&base["id"], &base["parent"]),
        (&info["parent"], &Value::Null)
    );
    // The others.
    let list = rig.json("ls");
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["name"])
        .collect();
    assert_eq!(names, ["base", "one"]);
    assert_eq!(rig.json("list")[1]["stored_bytes"], info["stored_bytes"]);
    let verified = rig.json("verify one");
    assert_eq!(
        (&verified["ok"], &verified["damaged"]),
        (&true.into(), &0.into())
    );
    let exported = rig.json("export one out.raw");
    assert_eq!(exported["size_bytes"], 1 << 20);
    assert_eq!(rig.json("rm one")["removed"], "one");
    rig.file("b.raw", &noise(3, 8192));
    assert_eq!(rig.json("import b.raw b")["dirty_blocks"], 2);
    let empty = Rig::new();
    assert_eq!(empty.json("ls"), Value::Array(Vec::new()));
}

#[test]
fn what_is_not_there_is_3() {
    let rig = rig();
    rig.file("a.raw", &[1; 4096]);
    for line in [
        "inspect nothing",
        "verify nothing",
        "export nothing out.raw",
        "rm nothing",
        "serve nothing --session s",
        "serve nothing --nbd unix:n.sock",
        "serve nothing --read-only --nbd unix:n.sock",
        "import nothing.raw x",
        "snapshot nowhere x",
        "serve --session nowhere",
    ] {
        let said = rig.fails(3, line);
        assert!(
            said.contains("nothing") || said.contains("nowhere"),
            "{line}: {said}"
        );
    }
    assert!(!rig.path("out.raw").exists() && !rig.path("s").exists());
    // A store that is not there is made by an import only.
    let none = Rig::new();
    for line in [
        "inspect x",
        "verify x",
        "rm x",
        "export x out",
        "serve x --session s",
    ] {
        let said = none.fails(3, line);
        assert!(said.contains("cowslip import"), "{line}: {said}");
    }
    assert_eq!(std::fs::read_dir(none.path("")).unwrap().count(), 0);
    assert_eq!(none.ok("ls --quiet").lines().count(), 1);
}

#[test]
fn what_cannot_be_meant_is_2() {
    let rig = rig();
    let long = "n".repeat(129);
    let no_text = OsStr::from_bytes(b"a\xffb");
    let names = [
        "", ".hidden", "..", "../up", "a/b", "-x", "ü", "а", "a b", "a\nb", &long,
    ];
    for name in names.map(OsStr::new).into_iter().chain([no_text]) {
        for line in [
            "inspect",
            "rm",
            "verify",
            "import import.raw",
            "snapshot s",
            "serve",
        ] {
            let words = line.split(' ').chain(["--"]).map(OsStr::new);
            let args = words.chain([name]);
            let output = rig.command(args).output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{line} {name:?}: {}",
                said(&output)
            );
            let why = String::from_utf8(output.stderr).unwrap();
            assert!(
                why.contains("1 to 128 of A-Z a-z 0-9"),
                "{line} {name:?}: {why}"
            );
        }
    }
    for line in [
        "",
        "fly",
        "ls --fast",
        "import a.raw",
        "serve",
        "serve base --nbd /path",
        "serve base --nbd tcp:host",
        "serve base --stdio --nbd unix:x",
        "serve base --size big",
        "completions tcsh",
    ] {
        let said = rig.fails(2, line);
        assert!(!said.is_empty(), "{line}");
    }
    rig.ok("--help");
    rig.ok("--version");
    rig.ok("help serve");
}

#[test]
fn where_the_store_is() {
    let rig = Rig::new();
    rig.file("a.raw", &noise(1, 8192));
    let with = |line: &str, vars: &[(&str, &str)]| {
        let mut command = rig.command(line.split(' '));
        command
            .env_remove("COWSLIP_STORE")
            .env_remove("XDG_DATA_HOME")
            .env_remove("HOME");
        command
            .envs(vars.iter().map(|(k, v)| (k, rig.path(v))))
            .output()
            .unwrap()
    };
    let there = |dir: &str| rig.path(dir).join("snapshots/x").exists();
    let import = "import a.raw x";
    assert!(
        with(import, &[("XDG_DATA_HOME", "xdg"), ("HOME", "home")])
            .status
            .success()
    );
    assert!(there("xdg/cowslip") && !rig.path("home").exists());
    assert!(with(import, &[("HOME", "home")]).status.success());
    assert!(there("home/.local/share/cowslip"));
    assert!(
        with(
            import,
            &[("COWSLIP_STORE", "env"), ("XDG_DATA_HOME", "xdg")]
        )
        .status
        .success()
    );
    assert!(there("env"));
    let both = with(
        "import a.raw x --store option",
        &[("COWSLIP_STORE", "env2")],
    );
    assert!(both.status.success() && there("option") && !rig.path("env2").exists());
    assert!(with("--store before import a.raw x", &[]).status.success() && there("before"));
    let nowhere = with("ls", &[]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", said(&nowhere));
    // A directory that holds other things is not made a store.
    std::fs::create_dir(rig.path("other")).unwrap();
    rig.file("other/letter.txt", b"dear");
    rig.fails(3, "inspect x --store other");
    let output = rig.run("import a.raw x --store other");
    assert!(
        !output.status.success() && said(&output).contains("letter.txt"),
        "{}",
        said(&output)
    );
    assert_eq!(std::fs::read_dir(rig.path("other")).unwrap().count(), 1);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let rig = rig();
    for line in ["ls", "ls --json", "inspect base", "completions bash"] {
        let mut command = rig.command(line.split(' '));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{line}: {}",
            said(&output)
        );
    }
    // A disk that is full is one.
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = rig
        .command(["ls"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn completions_are_scripts() {
    if !have("completions_are_scripts", &["bash"]) {
        return;
    }
    let rig = Rig::new();
    rig.file("script", rig.ok("completions bash").as_bytes());
    run("bash", ["-n".as_ref(), rig.path("script").as_os_str()]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(rig.ok(&format!("completions {shell}")).contains("cowslip"));
    }
    // Without a store, a home, or anything else.
    let output = Command::new(COWSLIP)
        .args(["completions", "bash"])
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn removing_a_name_leaves_what_others_need() {
    let rig = rig();
    let served = rig.serve("base --session s");
    served.client().write(0, b"x").unwrap();
    rig.ok("snapshot s one");
    rig.ok("rm base");
    rig.fails(3, "inspect base");
    rig.ok("verify one");
    let info = rig.inspect("one");
    assert!(
        info["parent"].is_string() && info["parent_name"].is_null(),
        "{info}"
    );
    served.client().write(4096, b"y").unwrap();
    rig.ok("snapshot s two");
    let served: Served = served;
    served.end();
    rig.ok("ls");
}
