//! `cowslip explain`: whose the changed blocks are.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bytes::{MIB, noise};
use crate::rig::{Rig, said};
use crate::tools::{have, run, tool};

fn number(of: &Value, what: &str) -> u64 {
    of[what]
        .as_u64()
        .unwrap_or_else(|| panic!("{what} in {of}"))
}

/// Blocks of a class.
fn class(of: &Value, name: &str) -> u64 {
    let rows = of["classes"].as_array().unwrap();
    let row = rows.iter().find(|row| row["class"] == name);
    row.map_or(0, |row| number(row, "blocks"))
}

fn debugfs(image: &Path, commands: &str) {
    let mut child = Command::new(tool("debugfs").unwrap())
        .args([
            "-w".as_ref(),
            "-f".as_ref(),
            "-".as_ref(),
            image.as_os_str(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}

/// An image with a file system of 32 MiB in `fs.raw`, and a snapshot of it.
fn imported(rig: &Rig, options: &[&str]) {
    let tree = rig.path("tree");
    std::fs::create_dir_all(tree.join("dir")).unwrap();
    std::fs::write(tree.join("dir/kept"), noise(1, MIB)).unwrap();
    std::fs::write(tree.join("gone"), noise(2, 40 * 4096)).unwrap();
    let image = rig.path("fs.raw");
    let fixed = ["-q", "-F", "-d", tree.to_str().unwrap()];
    let end = [image.to_str().unwrap(), "32M"];
    run("mkfs.ext4", fixed.iter().chain(options).chain(&end));
    rig.ok("import fs.raw one --format raw --quiet");
}

#[test]
fn each_changed_block_has_its_owner() {
    let test = "each_changed_block_has_its_owner";
    if !have(test, &["mkfs.ext4", "debugfs"]) {
        return;
    }
    for (options, unit) in [(&["-b", "4096"][..], 4096), (&["-b", "1024"], 1024)] {
        let rig = Rig::new();
        imported(&rig, options);
        let one = rig.json("explain one");
        assert_eq!(
            (&one["name"], &one["against"]),
            (&"one".into(), &Value::Null)
        );
        assert_eq!(
            number(&one, "total_blocks"),
            number(&rig.inspect("one"), "dirty_blocks")
        );
        let classes = one["classes"].as_array().unwrap();
        let sum = |what| classes.iter().map(|row| number(row, what)).sum::<u64>();
        assert_eq!(sum("blocks"), number(&one, "total_blocks"), "{one}");
        assert_eq!(sum("bytes"), number(&one, "total_blocks") * 4096, "{one}");
        let files = one["files"].as_array().unwrap();
        let file = |i: usize| (&files[i]["path"], number(&files[i], "bytes"));
        assert_eq!(file(0), (&"/dir/kept".into(), MIB as u64));
        assert_eq!(file(1), (&"/gone".into(), 40 * 4096));
        assert_eq!((files.len(), number(&one, "files_total")), (2, 2));
        // A file that is new, under a name for a terminal; one that is gone, with its bytes left; one touched.
        let file = rig.file("new", &noise(3, 30 * 4096));
        let mut commands = String::new();
        writeln!(commands, "write {} <b>new\x07", file.display()).unwrap();
        commands += "rm gone\nset_inode_field dir/kept atime 20010101\n";
        debugfs(&rig.path("fs.raw"), &commands);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(rig.path("fs.raw"))
            .unwrap();
        // What is deleted stays, and something is left in free space.
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(4, 20 * 4096), 30 << 20).unwrap();
        rig.ok("import fs.raw two --format raw --quiet");
        let two = rig.json("explain two --against one");
        assert_eq!(two["against"], "one");
        // With small blocks, a part of another may be free as well.
        assert!((20..=21).contains(&class(&two, "free")), "{two}");
        assert_eq!(number(&two["shadow"], "free_blocks"), 20);
        assert_eq!(two["files"][0]["path"], "/<b>new\u{7}");
        assert!(
            (30..=31).contains(&number(&two["files"][0], "blocks")),
            "{two}"
        );
        assert_eq!(number(&two["files"][0], "bytes"), 30 * 4096, "{two}");
        assert_eq!(
            (&two["unknown_blocks"], &two["named_percent"]),
            (&0.into(), &100.0.into())
        );
        assert_eq!(
            (&two["problems"], number(&two, "zeroed_blocks")),
            (&Value::Array(vec![]), 0)
        );
        let diff = rig.json("diff one two");
        assert_eq!(two["total_blocks"], diff["changed_blocks"]);
        let advice = &two["advice"][0];
        assert_eq!(
            (&advice["what"], &advice["blocks"]),
            (&"free".into(), &20.into())
        );
        // People see the same, and nothing that a terminal would act on.
        let text = rig.ok("explain two --against one");
        assert!(
            text.contains("/<b>new\\u{7}") && text.contains("fstrim"),
            "{text}"
        );
        assert!(!text.contains('\u{7}'));
        page(&rig);
        let few = rig.json("explain one --top 1");
        assert_eq!(few["files"].as_array().unwrap().len(), 1);
        // The other way round, bytes of a block may be two owners'.
        let back = rig.json("explain one --against two --top 0");
        assert!(number(&back, "zeroed_blocks") >= 50 * unit / 4096, "{back}");
    }
}

/// The page holds what the table does, names as text, and nothing from elsewhere.
fn page(rig: &Rig) {
    let before = std::fs::read_dir(rig.path("")).unwrap().count();
    rig.ok("explain two --against one --html page.html");
    let page = std::fs::read_to_string(rig.path("page.html")).unwrap();
    for part in [
        "one \u{2192} two",
        "<bdi>/&lt;b&gt;new",
        "fstrim",
        "default-src 'none'",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<b>new") && !page.contains('\u{7}'));
    assert_eq!(std::fs::read_dir(rig.path("")).unwrap().count(), before + 1);
    // What the picture is drawn from.
    let (_, rest) = page.split_once("id=data>").unwrap();
    let (data, _) = rest.split_once("</script>").unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    let cells = 4usize.pow(u32::try_from(number(&data["cells"], "order")).unwrap());
    for what in ["ground", "changed", "shares"] {
        assert_eq!(data["cells"][what].as_str().unwrap().len(), cells, "{what}");
    }
    let owners = data["owners"].as_array().unwrap();
    assert!(owners.iter().any(|o| o[1] == "/<b>new\\u{7}"), "{owners:?}");
    let pieces = data["pieces"].as_array().unwrap();
    let blocks: u64 = pieces
        .chunks(3)
        .map(|piece| piece[1].as_u64().unwrap())
        .sum();
    assert_eq!(
        blocks,
        number(&rig.json("explain two --against one"), "total_blocks")
    );
    rig.fails(3, "explain one --html nowhere/page.html");
    std::fs::remove_file(rig.path("page.html")).unwrap();
}

#[test]
fn what_is_no_ext4_is_unknown() {
    let rig = Rig::new();
    rig.import("noise", &noise(1, MIB));
    let said = rig.json("explain noise");
    assert_eq!(said["file_system"], Value::Null);
    assert_eq!(class(&said, "unknown"), 256, "{said}");
    assert_eq!(
        (&said["unknown_blocks"], &said["named_percent"]),
        (&256.into(), &0.0.into())
    );
    assert!(
        said["remark"].as_str().unwrap().contains("no ext4"),
        "{said}"
    );
    let served = rig.serve("noise --session s");
    served.client().write(4096, &noise(2, 8192)).unwrap();
    served.client().trim(65536, 4096).unwrap();
    rig.ok("snapshot s next");
    let said = rig.json("explain next");
    assert_eq!(
        (&said["against"], number(&said, "total_blocks")),
        (&"noise".into(), 2)
    );
    assert_eq!(number(&said, "zeroed_blocks"), 1);
    assert_eq!(said["stored_bytes"], rig.inspect("next")["stored_bytes"]);
    // Without a name the parent is there until it is collected, and then not.
    served.end();
    rig.ok("rm noise");
    assert!(rig.json("explain next")["against"].as_str().unwrap().len() > 30);
    rig.fails(3, "explain nobody");
    rig.fails(3, "explain next --against nobody");
}

#[test]
fn a_damaged_image_is_said_to_be_damaged() {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    let layers = std::fs::read_dir(rig.store().join("layers")).unwrap();
    let layer = layers.map(|e| e.unwrap().path()).next().unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let output = rig.run("explain base");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
}
