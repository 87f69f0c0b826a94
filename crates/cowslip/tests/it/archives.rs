//! Archives that mean harm, and old ones that do not: nothing is written outside of the image, and each refusal says why.

use std::fs;
use std::path::Path;

use crate::rig::Rig;
use crate::tools::{have, skip};

/// One entry: a header and its data, filled up.
fn entry(name: &[u8], kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", data.len()).as_bytes());
    put(136, b"00000000000\0");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    with_data(header, data)
}

/// The checksum goes in last.
fn with_data(mut header: [u8; 512], data: &[u8]) -> Vec<u8> {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(name.as_bytes(), b'0', "", data)
}

fn records(all: &[(&str, &str)]) -> Vec<u8> {
    let line = |(key, value): &(&str, &str)| {
        let rest = key.len() + value.len() + 3;
        let len = (rest + 1..)
            .find(|len| rest + len.to_string().len() == *len)
            .unwrap();
        format!("{len} {key}={value}\n")
    };
    let lines: String = all.iter().map(line).collect();
    entry(b"records", b'x', "", lines.as_bytes())
}

/// As GNU tar writes sparse files: so long, with nothing in it.
fn sparse(name: &str, real: u64) -> Vec<u8> {
    let whole = entry(name.as_bytes(), b'S', "", b"");
    let mut header: [u8; 512] = whole[..512].try_into().unwrap();
    header[257..265].copy_from_slice(b"ustar  \0");
    let mut number = [0; 12];
    number[0] = 0x80;
    number[4..].copy_from_slice(&real.to_be_bytes());
    header[386..398].copy_from_slice(&number);
    header[398..410].copy_from_slice(b"00000000000\0");
    header[483..495].copy_from_slice(&number);
    with_data(header, b"")
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// The ways that this machine has.
fn ways(test: &str) -> Vec<&'static str> {
    if !have(test, &["mkfs.ext4", "debugfs", "e2fsck"]) {
        return Vec::new();
    }
    let is_root = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !is_root {
        skip(test, "root and loop devices, for one of the two ways");
    }
    [&["--rootless"][..], &["--as-root"]]
        .concat()
        .into_iter()
        .take(if is_root { 2 } else { 1 })
        .collect()
}

#[test]
fn archives_that_mean_harm() {
    let rig = Rig::new();
    let outside = rig.path("outside");
    fs::create_dir(&outside).unwrap();
    let out = outside.to_str().unwrap();
    let link = |name: &str, to: &str| entry(name.as_bytes(), b'2', to, b"");
    let hard = |name: &str, to: &str| entry(name.as_bytes(), b'1', to, b"");
    let pax_sparse = |map: &str, size: &str| {
        let keys = [
            ("GNU.sparse.name", "big"),
            ("GNU.sparse.size", size),
            ("GNU.sparse.map", map),
        ];
        [records(&keys), file("x", b"abc")].concat()
    };
    let mut flipped = file("flipped", b"abc");
    flipped[3] ^= 1;
    let long = "x".repeat(300);
    let tera = (1u64 << 40).to_string();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("..", vec![file("../evil", b"x")]),
        ("..", vec![file("a/../../evil", b"x")]),
        (
            "..",
            vec![records(&[("path", "a/../../evil")]), file("x", b"x")],
        ),
        (
            "symbolic link",
            vec![link("way", out), file("way/evil", b"x")],
        ),
        (
            "symbolic link",
            vec![link("way", ".."), entry(b"way/evil", b'5', "", b"")],
        ),
        (
            "symbolic link",
            vec![link("way", out), link("way/evil", "x")],
        ),
        (
            "symbolic link",
            vec![link("a", "."), link("b", "a/.."), file("b/evil", b"x")],
        ),
        (
            "not there",
            vec![link("way", "/etc"), hard("evil", "way/passwd")],
        ),
        ("not there", vec![hard("evil", "/etc/passwd")]),
        ("..", vec![hard("evil", "../../etc/passwd")]),
        (
            "directory",
            vec![entry(b"d", b'5', "", b""), hard("evil", "d")],
        ),
        ("something in it", vec![file("d/x", b"x"), file("d", b"x")]),
        ("1099511627776 bytes long", vec![sparse("big", 1 << 40)]),
        ("1099511627776 bytes long", vec![pax_sparse("0,3", &tera)]),
        ("not within it", vec![pax_sparse("9,3", "10")]),
        ("not in order", vec![pax_sparse("5,1,0,1", "10")]),
        ("more than the archive has", vec![pax_sparse("0,8", "10")]),
        ("17825792 bytes long", vec![file("big", &vec![0; 17 << 20])]),
        ("checksum", vec![flipped]),
        ("255", vec![records(&[("path", &long)]), file("x", b"x")]),
        (
            "cannot have",
            vec![
                records(&[("SCHILY.xattr.system.evil", "1")]),
                file("x", b"x"),
            ],
        ),
        ("no name", vec![link("empty", "")]),
        ("another volume", vec![entry(b"x", b'M', "", b"")]),
        ("type", vec![entry(b"x", b'?', "", b"")]),
        ("device", vec![device("777777")]),
    ];
    for way in ways("archives_that_mean_harm") {
        for (why, entries) in &cases {
            // What comes before is no excuse.
            let all = [vec![file("good", b"good")], entries.clone()].concat();
            rig.file("evil.tar", &archive(&all));
            let said = rig.fails(1, &format!("build evil.tar evil --size 16M {way}"));
            assert!(said.contains(why), "{why}: {said}");
            assert!(
                said.contains("evil.tar: ") && said.contains("at byte"),
                "{said}"
            );
        }
        rig.fails(3, "inspect evil");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!rig.path("evil").exists());
}

fn device(major: &str) -> Vec<u8> {
    let whole = entry(b"dev", b'3', "", b"");
    let mut header: [u8; 512] = whole[..512].try_into().unwrap();
    header[329..329 + major.len()].copy_from_slice(major.as_bytes());
    with_data(header, b"")
}

#[test]
fn an_archive_that_was_cut_off() {
    if ways("an_archive_that_was_cut_off").is_empty() {
        return;
    }
    let rig = Rig::new();
    let whole = archive(&[
        file("a", &[1; 700]),
        records(&[("uid", "5")]),
        file("b", b"b"),
    ]);
    rig.file("whole.tar", &whole);
    rig.ok("build whole.tar whole --size 16M");
    // Up to the block of zeros that ends it.
    for len in (0..whole.len() - 1024).step_by(100) {
        rig.file("cut.tar", &whole[..len]);
        let said = rig.fails(1, "build cut.tar cut --size 16M");
        assert!(said.contains("cut off"), "{len}: {said}");
    }
}

#[test]
fn old_and_odd_archives_that_mean_no_harm() {
    let rig = Rig::new();
    let long = "d/".repeat(100) + "name";
    let target = "t".repeat(200);
    let all = archive(&[
        file("/absolute", b"1"),
        file("./again", b"old"),
        entry(b"alias", b'1', "again", b""),
        file("again", b"new"),
        entry(b"old-directory/", 0, "", b""),
        file("old-directory/x", b"x"),
        entry(
            b"././@LongLink",
            b'L',
            "",
            [long.as_bytes(), b"\0"].concat().as_slice(),
        ),
        file("short", b"long name"),
        entry(b"././@LongLink", b'K', "", target.as_bytes()),
        entry(b"link", b'2', "short", b""),
        entry(b"contiguous", b'7', "", b"c"),
        records(&[
            ("path", "from-records"),
            ("mtime", "-1.5"),
            ("uid", "4000000000"),
        ]),
        file("x", b"r"),
        entry(b"label", b'V', "", b""),
        file("\"; quit", b"q"),
    ]);
    rig.file("odd.tar", &all);
    for way in ways("old_and_odd_archives_that_mean_no_harm") {
        let name = way.trim_start_matches('-');
        let built = rig.json(&format!("build odd.tar {name} --size 16M {way}"));
        let contents = &built["contents"];
        assert_eq!(
            (&contents["files"], &contents["symlinks"]),
            (&8.into(), &1.into()),
            "{built}"
        );
        // The later of two files with one name wins; the earlier lives on under its other name.
        rig.ok(&format!("export {name} odd.raw --replace --quiet"));
        let cat = |path: &str| {
            let image = rig.path("odd.raw");
            let said = crate::tools::run(
                "debugfs",
                ["-R", &format!("cat \"{path}\""), image.to_str().unwrap()],
            );
            // Of a file that lies in its inode it shows all the room there.
            said.trim_end_matches('\0').to_owned()
        };
        assert_eq!(
            (cat("/again").as_str(), cat("/alias").as_str()),
            ("new", "old")
        );
        assert_eq!(cat(&format!("/{long}")), "long name");
        assert_eq!(
            (cat("/absolute").as_str(), cat("/from-records").as_str()),
            ("1", "r")
        );
    }
}

#[test]
fn a_line_break_in_a_name_is_for_the_kernel_alone() {
    let rig = Rig::new();
    let all = archive(&[
        records(&[("path", "a\nrm \"good\"")]),
        file("x", b"x"),
        file("good", b"good"),
    ]);
    rig.file("break.tar", &all);
    for way in ways("a_line_break_in_a_name_is_for_the_kernel_alone") {
        let line = format!("build break.tar broken --size 16M {way}");
        if way == "--as-root" {
            assert_eq!(rig.json(&line)["contents"]["files"], 2);
        } else {
            let said = rig.fails(1, &line);
            assert!(
                said.contains("line break") && said.contains("--as-root"),
                "{said}"
            );
        }
    }
}
