//! The repository polices itself: what a reviewer would otherwise have to look for each time.
//!
//! Each test names the rule in its own name and lists every place that breaks it. Only files that
//! git tracks are looked at.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file that is longer is two files.
const LINES_MAX: usize = 600;
/// Files that were longer when the rule came, and how long they were: none may grow, and each goes
/// from here once it fits.
const LONGER: [(&str, usize); 0] = [];

/// Which of our crates each may use. `sim` is for tests only.
const ARROWS: [(&str, &[&str]); 13] = [
    ("cowslip-block", &[]),
    ("cowslip-snapshot", &["cowslip-block"]),
    ("cowslip-nbd", &["cowslip-block"]),
    ("cowslip-attach", &["cowslip-block", "cowslip-nbd"]),
    ("cowslip-ext4", &["cowslip-block"]),
    ("cowslip-tree", &[]),
    ("cowslip-memory", &["cowslip-block", "cowslip-snapshot"]),
    ("cowslip-guest", &[]),
    (
        "cowslip",
        &[
            "cowslip-block",
            "cowslip-snapshot",
            "cowslip-nbd",
            "cowslip-attach",
            "cowslip-ext4",
            "cowslip-tree",
            "cowslip-memory",
            "cowslip-guest",
        ],
    ),
    ("cowslip-sim", &["cowslip-block", "cowslip-snapshot"]),
    ("cowslip-vmm", &["cowslip-memory"]),
    ("cowslip-machine", &["cowslip-guest"]),
    (
        "xtask",
        &[
            "cowslip-block",
            "cowslip-snapshot",
            "cowslip-nbd",
            "cowslip-sim",
            "cowslip-vmm",
            "cowslip-machine",
        ],
    ),
];

/// Whoever tests may use them.
const FOR_TESTS: [&str; 3] = ["cowslip-sim", "cowslip-vmm", "cowslip-machine"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The tracked files that are there and are text, by path.
fn files() -> BTreeMap<String, String> {
    let listed = output("git", &["ls-files"]);
    let read = |path: &str| {
        Some((
            path.to_owned(),
            std::fs::read_to_string(root().join(path)).ok()?,
        ))
    };
    listed.lines().filter_map(read).collect()
}

fn rust_files() -> BTreeMap<String, String> {
    files()
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .collect()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[track_caller]
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// What the manifests say.
fn packages() -> Vec<Value> {
    let metadata = output(
        env!("CARGO"),
        &["metadata", "--no-deps", "--offline", "--format-version=1"],
    );
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn arrows_between_crates_go_one_way() {
    let packages = &packages();
    let ours: Vec<&str> = packages
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            broken.push(format!(
                "{name} has no arrows yet: say in this test which crates it may use"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"] == "dev";
            let fine = allowed.contains(&on) || (for_tests && FOR_TESTS.contains(&on));
            if ours.contains(&on) && !fine {
                broken.push(format!("{name} -> {on}"));
            }
        }
    }
    none("a crate uses one that it must not know", &broken);
}

/// Bugs can be planted, and locks be those of a simulation, only where `cowslip-sim` is told so by name.
#[test]
fn no_release_has_what_is_for_tests() {
    let mut broken = Vec::new();
    for package in &packages() {
        let name = package["name"].as_str().unwrap();
        for (feature, enables) in package["features"].as_object().unwrap() {
            let enables = enables.to_string();
            let is_ours = ["cowslip-block", "cowslip-sim"].contains(&name);
            let is_theirs = |f| enables.contains(f) && (!is_ours || feature != f);
            if ["planted", "shuttle"].into_iter().any(is_theirs) {
                broken.push(format!("{name}: feature {feature} = {enables}"));
            }
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            let features = dependency["features"].to_string();
            if features.contains("planted") || features.contains("shuttle") {
                broken.push(format!("{name}: {} {features}", dependency["name"]));
            }
        }
    }
    none("what is for tests gets into what is not", &broken);
    let main = file("crates/cowslip/src/main.rs");
    assert!(main.contains("!cowslip_block::planted::IS_POSSIBLE"));
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let mute = |(path, text): (String, String)| (!text.starts_with("//! ")).then_some(path);
    let broken: Vec<String> = rust_files().into_iter().filter_map(mute).collect();
    none("no module doc on the first line", &broken);
}

#[test]
fn no_file_is_a_drawer_for_everything() {
    let vague = ["util", "utils", "misc", "common", "helpers", "helper"];
    let stem_is_vague = |path: &String| {
        Path::new(path).iter().any(|part| {
            let part = part.to_str().unwrap();
            part.split(['.', '_', '-'])
                .any(|word| vague.contains(&word))
        })
    };
    let broken: Vec<String> = files().into_keys().filter(stem_is_vague).collect();
    none("a name that does not say what is in it", &broken);
}

#[test]
fn unsafe_code_has_one_address() {
    let forms = ["{", "fn ", "impl ", "trait ", "extern "].map(|what| ["unsafe", what].join(" "));
    let attribute = format!("#[{}(", "unsafe");
    let mut broken = Vec::new();
    for (path, text) in rust_files() {
        let in_its_place = path.ends_with("/sys.rs");
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap();
            let found = forms.iter().any(|form| code.contains(form)) || code.contains(&attribute);
            if found && !in_its_place {
                broken.push(format!("{path}:{number}"));
            }
        }
    }
    none("unsafe code outside a sys.rs", &broken);
}

#[test]
fn files_stay_short() {
    let mut broken = Vec::new();
    let lines: BTreeMap<String, usize> = rust_files()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .collect();
    for (path, count) in &lines {
        let allowed = LONGER
            .iter()
            .find(|(p, _)| p == path)
            .map_or(LINES_MAX, |(_, n)| *n);
        if *count > allowed {
            broken.push(format!("{path}: {count} lines, at most {allowed}"));
        }
    }
    for (path, _) in LONGER {
        if lines.get(path).is_none_or(|count| *count <= LINES_MAX) {
            broken.push(format!("{path} fits: take it off the list"));
        }
    }
    none("files that are too long", &broken);
}

#[test]
fn nothing_tells_where_it_was_made() {
    let places = ["work", "root", "home"].map(|dir| format!("/{dir}/"));
    let mut broken = Vec::new();
    for (path, text) in files() {
        for (number, line) in (1..).zip(text.lines()) {
            if places.iter().any(|place| is_absolute_in(line, place)) {
                broken.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    none("a path of somebody's machine", &broken);
}

/// A place at the start of a path, not within a longer one.
fn is_absolute_in(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"_-.}/".contains(c))
    })
}

/// What stands between single backticks on one line, outside code blocks.
fn quoted(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            found.extend(
                line.split('`')
                    .skip(1)
                    .step_by(2)
                    .map(|q| (number, q.to_owned())),
            );
        }
    }
    found
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
}

/// Does this word stand in the text, not as a part of a longer one?
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        !part(text[..at].chars().next_back()) && !part(text[at + word.len()..].chars().next())
    })
}

/// Is what a document quotes there? Paths of files, `Type::name`, `function()`; others are not judged.
fn is_there(quote: &str, all: &BTreeMap<String, String>) -> bool {
    let path = quote.split([':', '#']).next().unwrap();
    let is_path =
        path.ends_with(".rs") || path.starts_with("crates/") || path.starts_with("xtask/");
    if is_path && !path.contains([' ', '{', '*', '<']) {
        let path = path.trim_end_matches('/');
        return all
            .keys()
            .any(|p| p == path || p.ends_with(&format!("/{path}")))
            || all.keys().any(|p| p.starts_with(&format!("{path}/")));
    }
    let call = quote.strip_suffix("()");
    let names: Vec<&str> = call.unwrap_or(quote).split("::").collect();
    if !names.iter().all(|name| is_name(name)) || (names.len() == 1 && call.is_none()) {
        return true;
    }
    let sources = || all.iter().filter(|(path, _)| path.ends_with(".rs"));
    let last = names.last().unwrap();
    let defined = |text: &str| call.is_none() || has_word(text, &format!("fn {last}"));
    sources().any(|(path, text)| {
        defined(text)
            && names
                .iter()
                .all(|name| has_word(text, name) || path.contains(name))
    })
}

#[test]
fn what_the_documents_name_is_there() {
    let all = files();
    let mut broken = Vec::new();
    let documents = [
        "ARCHITECTURE.md",
        "SPEC.md",
        "README.md",
        "docs/format.md",
        "docs/using.md",
    ];
    for document in documents {
        for (number, quote) in quoted(&file(document)) {
            if !is_there(&quote, &all) {
                broken.push(format!("{document}:{number}: `{quote}`"));
            }
        }
    }
    none("a document names what is not there", &broken);
}

#[test]
fn the_commands_that_the_readme_shows_are_there() {
    let xtask = Command::new(env!("CARGO_BIN_EXE_xtask")).output().unwrap();
    let xtask = String::from_utf8(xtask.stdout).unwrap();
    let words = file("crates/cowslip/src/args.rs");
    let mut broken = Vec::new();
    for (number, line) in (1..).zip(file("README.md").lines()) {
        let line = line.trim().trim_start_matches("$ ");
        // What follows is told to cowslip.
        let told = ["cowslip ", "cargo run --release -- ", "cargo run -- "];
        if let Some(told) = told.iter().find_map(|start| line.strip_prefix(start)) {
            let missing = told
                .split_whitespace()
                .take_while(|word| !["#", "|", "&", "&&"].contains(word))
                .find(|word| !knows(&words, word, told.starts_with(*word)));
            broken.extend(missing.map(|word| format!("README.md:{number}: cowslip has no {word}")));
        }
        if let Some(told) = line.strip_prefix("cargo xtask ") {
            let command = format!(
                "cargo xtask {}",
                told.split_whitespace().next().unwrap_or("")
            );
            if !xtask.contains(&command) {
                broken.push(format!("README.md:{number}: there is no {command}"));
            }
        }
    }
    none("the README shows a command that is not there", &broken);
}

/// A command is a variant of the arguments' enum, an option a field of one of its structs.
fn knows(args: &str, word: &str, is_first: bool) -> bool {
    if let Some(option) = word.strip_prefix("--") {
        let option = option.split('=').next().unwrap();
        return option.is_empty()
            || ["help", "version"].contains(&option)
            || args.contains(&format!(" {}: ", option.replace('-', "_")));
    }
    let mut letters = word.chars();
    let first = letters.next().unwrap().to_uppercase();
    let variant: String = first.chain(letters).collect();
    let forms = [",", "(", " {"].map(|after| format!("    {variant}{after}"));
    !is_first || word.starts_with('-') || forms.iter().any(|form| args.contains(form))
}

#[test]
fn the_rules_notice_what_they_are_for() {
    assert!(is_absolute_in("see /place/x", "/place/") && !is_absolute_in("a/place/x", "/place/"));
    assert_eq!(quoted("a `b` c `d`\n```\n`e`\n```\n`f`").len(), 3);
    let all = BTreeMap::from([
        (
            "crates/a/src/b.rs".to_owned(),
            "impl Thing { fn make_it() {} }".to_owned(),
        ),
        ("docs/x.md".to_owned(), "Other::name".to_owned()),
    ]);
    for there in [
        "crates/a/src/b.rs",
        "b.rs",
        "crates/a",
        "Thing::make_it",
        "make_it()",
        "a word",
        "b.rs:3",
    ] {
        assert!(is_there(there, &all), "{there}");
    }
    for gone in [
        "crates/a/src/c.rs",
        "c.rs",
        "Thing::make",
        "Thing::take_it",
        "made()",
        "Other::name",
    ] {
        assert!(!is_there(gone, &all), "{gone}");
    }
    let args = "enum Command {\n    Serve(Serve),\n    Ls,\n}\n    pub(crate) read_only: bool,";
    for (word, first) in [
        ("serve", true),
        ("ls", true),
        ("--read-only", false),
        ("name", false),
    ] {
        assert!(knows(args, word, first), "{word}");
    }
    assert!(!knows(args, "server", true) && !knows(args, "--read", false));
}
