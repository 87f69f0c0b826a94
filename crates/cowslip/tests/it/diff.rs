//! `diff` and `log`: what they say of snapshots, and with which exit codes.

use std::fs;

use serde_json::{Value, json};

use crate::bytes::{BLOCK, MIB, noise};
use crate::rig::{Rig, said};

/// `base`; `one` over it, with two blocks rewritten, three trimmed and one written with what was
/// there; `two` over that, larger.
fn chain() -> Rig {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    let served = rig.serve("base --session s");
    let mut client = served.client();
    client.write(8 * 4096, &noise(2, 2 * BLOCK)).unwrap();
    client.trim(20 * 4096, 3 * 4096).unwrap();
    client.write(0, &noise(1, MIB)[..BLOCK]).unwrap();
    rig.ok("snapshot s one");
    served.end();
    let served = rig.serve_at("one --session t --size 2M", "t.sock");
    served.client().write((2 << 20) - 5, b"zebra").unwrap();
    rig.ok("snapshot t two");
    served.end();
    rig
}

#[test]
fn a_diff_names_the_runs() {
    let rig = chain();
    let diff = rig.json("diff base one");
    let want = json!({
        "a": "base",
        "b": "one",
        "equal": false,
        "changed_blocks": 2,
        "zeroed_blocks": 3,
        "block_size_bytes": 4096,
        "size_bytes": [1 << 20, 1 << 20],
        "runs_total": 2,
        "runs": [
            {"start_block": 8, "blocks": 2, "kind": "changed"},
            {"start_block": 20, "blocks": 3, "kind": "zeroed"},
        ],
    });
    assert_eq!(diff, want);
    let text = rig.ok("diff base one");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["OFFSET", "LENGTH", "KIND"]);
    assert_eq!(rows[1], ["32768", "8.00", "KiB", "changed"]);
    assert_eq!(rows[2], ["81920", "12.00", "KiB", "zeroed"]);
    let totals = "base -> one: blocks changed: 2 (8.00 KiB), zeroed: 3 (12.00 KiB); runs: 2";
    assert_eq!(text.lines().last(), Some(totals));
    // Backwards, what was trimmed has come back.
    let back = rig.json("diff one base");
    assert_eq!(
        (&back["changed_blocks"], &back["zeroed_blocks"]),
        (&5.into(), &0.into())
    );
    let grown = rig.json("diff one two");
    assert_eq!(grown["size_bytes"], json!([1 << 20, 2 << 20]));
    assert_eq!(
        grown["runs"],
        json!([{"start_block": 511, "blocks": 1, "kind": "changed"}])
    );
    assert!(
        rig.ok("diff one two")
            .contains("size: 1048576 -> 2097152 bytes")
    );
    assert_eq!(rig.ok("diff one one"), "one and one are equal\n");
    let equal = rig.json("diff one one");
    assert_eq!(
        (&equal["equal"], &equal["runs"]),
        (&true.into(), &json!([]))
    );
}

#[test]
fn images_that_are_not_related_are_compared_by_their_bytes() {
    let rig = Rig::new();
    let mut bytes = noise(1, MIB + 100);
    rig.import("a", &bytes);
    rig.import("b", &bytes);
    assert_eq!(rig.json("diff a b")["equal"], true);
    bytes[MIB + 99] ^= 1;
    rig.import("c", &bytes);
    let diff = rig.json("diff a c");
    assert_eq!(
        diff["runs"],
        json!([{"start_block": 256, "blocks": 1, "kind": "changed"}])
    );
    // The last block is a part of one.
    let text = rig.ok("diff a c");
    assert!(text.contains("100 B"), "{text}");
}

#[test]
fn a_long_table_is_cut_and_says_so() {
    let rig = Rig::new();
    let mut bytes = noise(1, MIB);
    rig.import("a", &bytes);
    bytes.chunks_mut(2 * BLOCK).for_each(|c| c[0] ^= 1);
    rig.import("b", &bytes);
    let output = rig.run("diff a b");
    let (stdout, stderr) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    let lines = String::from_utf8(stdout).unwrap().lines().count();
    assert_eq!(lines, 1 + 40 + 1);
    assert!(
        stderr.contains("88 more runs; --json lists them"),
        "{stderr}"
    );
    let diff = rig.json("diff a b");
    assert_eq!(diff["runs"].as_array().unwrap().len(), 128);
    assert_eq!(diff["runs_total"], 128);
}

#[test]
fn quiet_says_it_by_the_exit_code_only() {
    let rig = chain();
    rig.import("twin", &noise(1, MIB));
    rig.import("grown", &[noise(1, MIB), vec![0; MIB]].concat());
    let quiet = |code: i32, line: &str| {
        let output = rig.run(line);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {}",
            said(&output)
        );
        assert!(output.stdout.is_empty(), "{line}: {}", said(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    for line in [
        "diff base base -q",
        "diff base twin --quiet",
        "--quiet diff twin base --json",
    ] {
        assert_eq!(quiet(0, line), "", "{line}");
    }
    for line in [
        "diff base one -q",
        "diff one base -q --json",
        "diff base grown -q",
    ] {
        assert_eq!(quiet(1, line), "", "{line}");
    }
    rig.ok("diff base one");
    for options in ["", " --quiet"] {
        quiet(2, &format!("diff base{options}"));
        quiet(2, &format!("diff base ../one{options}"));
        assert!(quiet(3, &format!("diff base nothing{options}")).contains("nothing"));
        assert!(quiet(3, &format!("diff base one --store nowhere{options}")).contains("nowhere"));
    }
    // A version that is not known is neither: it fails, and not with the code of an answer.
    let header = rig.store().join(format!("headers/{}", id(&rig, "twin")));
    let whole = fs::read(&header).unwrap();
    let mut later = whole.clone();
    later[whole.len() - 16] = 9;
    fs::write(&header, later).unwrap();
    assert!(quiet(1, "diff base twin").contains("version 9"));
    assert!(quiet(5, "diff base twin --quiet").contains("version 9"));
    fs::write(&header, whole).unwrap();
    let layer = &rig.inspect("twin")["layers"][0]["id"];
    let layer = format!("layers/{}", layer.as_str().unwrap());
    let mut bytes = fs::read(rig.store().join(&layer)).unwrap();
    bytes[500_000] ^= 1;
    fs::write(rig.store().join(&layer), bytes).unwrap();
    for options in ["", " --quiet", " --json"] {
        let said = quiet(4, &format!("diff base twin{options}"));
        assert!(said.contains(&layer), "{said}");
    }
}

fn id(rig: &Rig, name: &str) -> String {
    rig.inspect(name)["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_log_goes_back_to_the_template() {
    let rig = chain();
    let log = rig.json("log two");
    assert_eq!(
        (&log["name"], &log["missing"]),
        (&"two".into(), &Value::Null)
    );
    let chain = log["chain"].as_array().unwrap();
    let names: Vec<&Value> = chain.iter().map(|e| &e["names"]).collect();
    assert_eq!(names, [&json!(["two"]), &json!(["one"]), &json!(["base"])]);
    for (entry, name) in chain.iter().zip(["two", "one", "base"]) {
        let info = rig.inspect(name);
        for (field, value) in entry.as_object().unwrap() {
            assert!(field == "names" || *value == info[field], "{name}: {field}");
        }
    }
    assert_eq!(chain.len(), 3);
    let one = &chain[1];
    let figures = ["dirty_blocks", "zero_blocks", "same_blocks"].map(|f| one[f].as_u64());
    assert_eq!(figures, [Some(2), Some(3), Some(1)]);
    assert!(one["stored_bytes"].as_u64().unwrap() > 8192);
    let text = rig.ok("log two");
    let last: Vec<&str> = text
        .lines()
        .map(|l| l.split_whitespace().last().unwrap())
        .collect();
    assert_eq!(last, ["NAMES", "two", "one", "base"], "{text}");
    assert_eq!(rig.json("log base")["chain"].as_array().unwrap().len(), 1);
    // A name that was taken away leaves its header in the chain.
    rig.ok("rm one");
    assert_eq!(rig.json("log two")["chain"][1]["names"], json!([]));
    rig.fails(3, "log one");
}

#[test]
fn a_log_ends_where_a_header_is_gone_and_fails_where_one_is_damaged() {
    let rig = chain();
    let base = id(&rig, "base");
    let header = rig.store().join("headers").join(&base);
    let whole = fs::read(&header).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() - 40] ^= 1;
    fs::write(&header, damaged).unwrap();
    let said = rig.fails(4, "log two");
    assert!(said.contains(&format!("headers/{base}")), "{said}");
    let output = rig.run("log two --json");
    let log: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        log["chain"].as_array().unwrap().len(),
        2,
        "what is known is told"
    );
    rig.ok("rm base");
    fs::remove_file(&header).unwrap();
    let log = rig.json("log two");
    assert_eq!(log["chain"].as_array().unwrap().len(), 2);
    assert_eq!(log["missing"], base.as_str());
    let text = rig.ok("log two");
    let end = format!("{base} is not in the store any more");
    assert!(text.lines().last().unwrap().ends_with(&end), "{text}");
}
