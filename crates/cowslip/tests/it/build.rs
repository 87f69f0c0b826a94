//! Templates that are built: what was in the source is in the image, both ways; the same input gives the same blocks; what a
//! command deletes is gone; and nothing is left of a build that was killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::RwLockWriteGuard;

use serde_json::Value;

use crate::bytes::noise;
use crate::devices::no_devices;
use crate::rig::{Rig, Served, said, until};
use crate::tools::{have, run, skip, tool};

const E2FSPROGS: [&str; 3] = ["mkfs.ext4", "debugfs", "e2fsck"];

/// Has it e2fsprogs, and these?
fn ready(test: &str, tools: &[&str]) -> bool {
    have(test, &[&E2FSPROGS, tools].concat())
}

/// To mount, in a namespace.
fn as_root(test: &str) -> Option<RwLockWriteGuard<'static, ()>> {
    let yes = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !yes {
        skip(test, "root and loop devices");
    }
    yes.then(no_devices)
}

/// Names that something might take for more than names.
const NAMES: [&str; 12] = [
    "a \"quoted\" name; rm <2>",
    "tab\there",
    "<12>",
    "it's #1",
    " lead and trail ",
    "back\\slash",
    "!x",
    "#y",
    "-f",
    "$(touch x) `y`",
    "ünï",
    "quit",
];

/// What any user can make.
fn plain_tree(root: &Path) {
    fs::create_dir_all(root.join("many/deep/er")).unwrap();
    for i in 0..300u64 {
        fs::write(
            root.join(format!("many/a-file-with-a-name-{i}")),
            noise(i, 10),
        )
        .unwrap();
    }
    for name in NAMES {
        fs::write(root.join(name), name).unwrap();
        fs::create_dir(root.join("many/deep").join(name)).unwrap();
        fs::write(root.join("many/deep").join(name).join(name), name).unwrap();
    }
    let file = fs::File::create(root.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 3 << 20).unwrap();
    fs::write(root.join("noise"), noise(1, 777_777)).unwrap();
    fs::write(root.join("x".repeat(255)), "long").unwrap();
    fs::hard_link(root.join("noise"), root.join("0-first")).unwrap();
    fs::hard_link(root.join("noise"), root.join("many/deep/er/last")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("absolute")).unwrap();
    std::os::unix::fs::symlink("y".repeat(300), root.join("long-link")).unwrap();
    fs::set_permissions(root.join("noise"), fs::Permissions::from_mode(0o4751)).unwrap();
}

/// And what only root can: owners, devices, attributes, access rules, times of all times.
const AS_ROOT: &str = r#"
set -e
cd "$1"
mknod null c 1 3; mknod sda b 8 300; mkfifo fifo
chown 1000:70000 many; chown -h 5:6 absolute; chmod 1777 many/deep
setfattr -n user.x -v value noise; setfattr -n trusted.t -v 1 many
setfattr -n user.long -v "$(head -c 900 /dev/zero | tr '\0' z)" holes
setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= noise
setfacl -m u:1000:r,g:33:rw holes; setfacl -d -m u:7:rx many/deep/er
touch -d '1960-01-01 00:00:00.5' holes; touch -d '2100-05-05 01:02:03.123456789' null
touch -h -d 2001-01-01 absolute; touch -d 2002-02-02 many/deep .
"#;

/// Lists how a template's mounted contents differ from a directory.
#[track_caller]
fn differences(rig: &Rig, name: &str, tree: &Path) -> String {
    rig.ok(&format!("export {name} mounted.raw --replace --quiet"));
    let image = rig.path("mounted.raw");
    run("e2fsck", ["-fn".as_ref(), image.as_os_str()]);
    let dir = rig.path("mnt");
    fs::create_dir_all(&dir).unwrap();
    // In a namespace of its own, which is gone with the shell.
    let script = r#"mount -o loop,ro "$1" "$2" && exec rsync -aHAXni --delete --checksum --exclude=/lost+found "$3/" "$2/""#;
    let args = [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
    ]
    .map(std::ffi::OsStr::new);
    let paths = [image.as_os_str(), dir.as_os_str(), tree.as_os_str()];
    run("unshare", args.into_iter().chain(paths))
}

#[test]
fn a_template_holds_what_its_source_holds() {
    let test = "a_template_holds_what_its_source_holds";
    let tools = [
        "tar", "zstd", "rsync", "setfattr", "setfacl", "mount", "unshare",
    ];
    if !ready(test, &tools) {
        return;
    }
    let Some(_alone) = as_root(test) else {
        return;
    };
    let rig = Rig::new();
    let tree = rig.path("tree");
    fs::create_dir(&tree).unwrap();
    plain_tree(&tree);
    run(
        "sh",
        [
            "-c".as_ref(),
            AS_ROOT.as_ref(),
            "sh".as_ref(),
            tree.as_os_str(),
        ],
    );
    let tar = rig.path("tree.tar");
    let options = [
        "--format=pax",
        "--sparse",
        "--acls",
        "--xattrs",
        "--xattrs-include=*",
        "-C",
    ]
    .map(std::ffi::OsStr::new);
    let paths = [
        tree.as_os_str(),
        "-cf".as_ref(),
        tar.as_os_str(),
        ".".as_ref(),
    ];
    run("tar", options.into_iter().chain(paths));
    run("zstd", ["-q".as_ref(), tar.as_os_str()]);
    let builds = [
        ("a", "tree a"),
        ("b", "tree b --as-root"),
        ("c", "tree.tar.zst c"),
        ("d", "tree.tar d --as-root"),
    ];
    for (name, line) in builds {
        let built = rig.json(&format!("build {line} --size 100M"));
        assert_eq!(built["contents"]["files"], 300 + 12 + 12 + 3, "{built}");
        assert_eq!(differences(&rig, name, &tree), "", "{name}");
    }
    // A directory and its archive are the same input.
    rig.ok("diff a c --quiet");
    fs::write(tree.join("many/deep/!x/!x"), "!y").unwrap();
    fs::set_permissions(tree.join("quit"), fs::Permissions::from_mode(0o600)).unwrap();
    let planted = differences(&rig, "a", &tree);
    assert!(
        planted.contains("many/deep/!x/!x") && planted.contains("quit"),
        "{planted}"
    );
}

#[test]
fn a_whole_distribution_is_the_same_both_ways() {
    let test = "a_whole_distribution_is_the_same_both_ways";
    let Some(tar) = std::env::var_os("COWSLIP_TEST_ROOTFS") else {
        skip(
            test,
            "COWSLIP_TEST_ROOTFS, an archive as mmdebstrap makes it",
        );
        return;
    };
    if !ready(test, &["tar", "rsync", "mount", "unshare"]) {
        return;
    }
    let Some(_alone) = as_root(test) else {
        return;
    };
    let rig = Rig::new();
    let tree = rig.path("tree");
    fs::create_dir(&tree).unwrap();
    let unpack = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"];
    let paths = [tar.as_os_str(), "-C".as_ref(), tree.as_os_str()];
    run(
        "tar",
        unpack.map(std::ffi::OsStr::new).into_iter().chain(paths),
    );
    std::os::unix::fs::symlink(&tar, rig.path("tree.tar")).unwrap();
    for source in ["tree", "tree.tar"] {
        for way in ["--rootless", "--as-root"] {
            rig.ok(&format!("build {source} whole --size 4G {way} --replace"));
            assert_eq!(differences(&rig, "whole", &tree), "", "{source} {way}");
        }
    }
}

#[test]
fn the_same_input_gives_the_same_blocks() {
    let test = "the_same_input_gives_the_same_blocks";
    if !ready(test, &["tar", "gzip", "cp", "find"]) {
        return;
    }
    let rig = Rig::new();
    let one = rig.path("one");
    fs::create_dir(&one).unwrap();
    plain_tree(&one);
    // Another copy, made in the opposite order, and an archive in that order as well.
    let script = r#"set -e; cd "$1"; mkdir ../two
        find . -depth -print0 | sort -rz > ../list
        tar --no-recursion --null --files-from=../list -czf ../three.tar --format=pax
        tar -C ../two -xpzf ../three.tar"#;
    run(
        "sh",
        [
            "-c".as_ref(),
            script.as_ref(),
            "sh".as_ref(),
            one.as_os_str(),
        ],
    );
    for (source, name) in [("one", "a"), ("two", "b"), ("three.tar", "c")] {
        rig.ok(&format!("build {source} {name} --size 100M --label data"));
        rig.ok(&format!("export {name} {name}.raw --quiet"));
    }
    let bytes = |name: &str| fs::read(rig.path(name)).unwrap();
    assert!(bytes("a.raw") == bytes("b.raw"), "a copy in another order");
    assert!(bytes("a.raw") == bytes("c.raw"), "an archive");
    fs::write(one.join("quit"), "QUIT").unwrap();
    rig.ok("build one changed --size 100M --label data");
    rig.fails(1, "diff a changed --quiet");
}

/// A tree with a shell.
fn shell(rig: &Rig) {
    fs::create_dir_all(rig.path("shell/bin")).unwrap();
    fs::create_dir_all(rig.path("shell/dev")).unwrap();
    fs::copy(tool("busybox").unwrap(), rig.path("shell/bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", rig.path("shell/bin/sh")).unwrap();
}

/// `cowslip build` with a command, which has blanks in it.
fn build_with(rig: &Rig, name: &str, script: &str) -> Command {
    let args = [
        "build", "shell", name, "--size", "100M", "--json", "--run", script,
    ];
    rig.command(args)
}

#[test]
fn what_a_command_deletes_leaves_nothing() {
    let test = "what_a_command_deletes_leaves_nothing";
    if !ready(test, &["busybox", "unshare", "setpriv", "fstrim"]) {
        return;
    }
    let Some(_alone) = as_root(test) else {
        return;
    };
    let rig = Rig::new();
    shell(&rig);
    let built = |name, script| -> Value {
        let output = build_with(&rig, name, script).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let rootless = rig.json("build shell rootless --size 100M");
    let without = built("without", "true");
    let script = "busybox dd if=/dev/urandom of=/big bs=1M count=30 2>/dev/null && busybox rm /big";
    let with = built("with", script);
    let blocks = |built: &Value| built["dirty_blocks"].as_u64().unwrap();
    let (with, without, rootless) = (blocks(&with), blocks(&without), blocks(&rootless));
    // The journal that the mount wrote is none of the template's.
    assert!(
        without <= rootless + 4,
        "{without} blocks, {rootless} without a mount"
    );
    assert!(with <= without + 2, "{with} blocks, {without} without");
    // What it leaves is there, and its failure is one.
    let kept = built(
        "kept",
        "busybox dd if=/dev/urandom of=/big bs=1M count=3 2>/dev/null; echo out",
    );
    assert!(blocks(&kept) >= without + 768, "{kept}");
    let output = build_with(&rig, "failed", "exit 3").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    rig.fails(3, "inspect failed");
}

#[test]
fn nothing_is_left_of_a_build_that_was_killed() {
    let test = "nothing_is_left_of_a_build_that_was_killed";
    if !ready(test, &["busybox", "unshare", "setpriv", "fstrim"]) {
        return;
    }
    let Some(_alone) = as_root(test) else {
        return;
    };
    let rig = Rig::new();
    shell(&rig);
    // A process of the command that nobody else has; it ends by itself, whatever becomes of the test.
    let mark = format!("60.{}", std::process::id());
    let script = format!("echo ready: >&2; busybox sleep {mark} & busybox sleep {mark}");
    let served = Served::start(build_with(&rig, "killed", &script), rig.path("none"));
    let processes = || {
        let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .filter(|line| String::from_utf8_lossy(line).contains(&mark))
            .count()
    };
    until("its processes", || (processes() > 0).then_some(()));
    served.kill();
    until("its processes to end", || (processes() == 0).then_some(()));
    let store = rig.store();
    let store = store.to_str().unwrap();
    let loops = || {
        let all = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
        let files =
            all.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
        files.filter(|file| file.starts_with(store)).count()
    };
    until("its loop device to go", || (loops() == 0).then_some(()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(rig.path("").to_str().unwrap()), "{mounts}");
    let left: Vec<_> = fs::read_dir(store)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    let known = [
        "headers",
        "layers",
        "leases",
        "sessions",
        "snapshots",
        "store",
        "tmp",
    ];
    assert!(
        left.iter().all(|name| known.iter().any(|k| name == k)),
        "{left:?}"
    );
    rig.fails(3, "inspect killed");
}

#[test]
fn an_image_that_is_too_small_says_how_large_it_should_be() {
    let test = "an_image_that_is_too_small_says_how_large_it_should_be";
    if !ready(test, &[]) {
        return;
    }
    let rig = Rig::new();
    fs::create_dir(rig.path("tree")).unwrap();
    for i in 0..10 {
        fs::write(rig.path(&format!("tree/{i}")), noise(i, 1 << 20)).unwrap();
    }
    let refused = rig.fails(1, "build tree x --size 8M --knob no-journal");
    assert!(refused.contains("it takes 10.0"), "{refused}");
    let size = refused.split("--size ").nth(1).unwrap();
    let size = size.split(' ').next().unwrap();
    rig.ok(&format!("build tree x --size {size} --knob no-journal"));
    rig.ok("verify x");
    let before = rig.store_bytes();
    let refused = rig.fails(
        1,
        "build tree y --size 64M --knob inode-ratio=64K --mkfs=-N16",
    );
    assert!(refused.contains("files"), "{refused}");
    assert_eq!(rig.store_bytes(), before, "nothing is left behind");
}

#[test]
fn every_knob_makes_a_file_system() {
    let test = "every_knob_makes_a_file_system";
    if !ready(test, &[]) {
        return;
    }
    let rig = Rig::new();
    fs::create_dir(rig.path("tree")).unwrap();
    plain_tree(&rig.path("tree"));
    let listed = rig.json("build --list-profiles");
    for profile in listed["profiles"].as_array().unwrap() {
        let name = profile["name"].as_str().unwrap();
        rig.ok(&format!("build tree {name} --profile {name} --size 200M"));
    }
    for knob in listed["knobs"].as_array().unwrap() {
        if knob["mkfs_args"].as_array().unwrap().is_empty() {
            continue;
        }
        // It is checked by e2fsck before it is stored.
        let name = knob["name"].as_str().unwrap();
        rig.ok(&format!(
            "build tree knob --profile plain --knob {name} --size 400M --replace"
        ));
    }
}

#[test]
fn the_kernels_line_has_the_templates_options() {
    let test = "the_kernels_line_has_the_templates_options";
    if !ready(test, &[]) {
        return;
    }
    let rig = Rig::new();
    fs::create_dir(rig.path("tree")).unwrap();
    rig.ok("build tree base --size 16M --mount commit=30,nodelalloc");
    let wanted = "console=ttyS0 reboot=k panic=1 pci=off root=/dev/vda rw rootfstype=ext4 \
                  rootflags=discard,commit=30,nodelalloc,lazytime\n";
    assert_eq!(rig.ok("kernel-args base"), wanted);
    // A snapshot of a guest has what its template has.
    let served = rig.serve("base --session s");
    served.client().write(8 << 20, b"something").unwrap();
    rig.ok("snapshot s one");
    served.end();
    assert_eq!(rig.ok("kernel-args one"), wanted);
    let line = rig.json("kernel-args one --initrd --for qemu --root LABEL=x");
    assert_eq!(
        line["rootflags"],
        "discard,commit=30,nodelalloc,noatime,lazytime"
    );
    let line = line["line"].as_str().unwrap();
    assert!(
        line.starts_with("console=ttyS0 panic=1 root=LABEL=x rw "),
        "{line}"
    );
    let left_out = rig.json("kernel-args one");
    assert_eq!(left_out["left_out"][0], "noatime");
    rig.ok("build tree plain --size 16M --profile plain");
    assert!(rig.ok("kernel-args plain").ends_with("rootfstype=ext4\n"));
    // An image that was made elsewhere gets the system's.
    rig.ok("export base raw --quiet");
    rig.ok("build tree bare --size 16M --profile plain");
    rig.ok("export bare bare.raw --quiet");
    rig.ok("import bare.raw imported");
    assert!(
        rig.ok("kernel-args imported")
            .ends_with("rootflags=discard,lazytime\n")
    );
    rig.import("zeros", &[0; 8192]);
    let refused = rig.fails(1, "kernel-args zeros");
    assert!(refused.contains("ext4"), "{refused}");
    rig.fails(3, "kernel-args missing");
}

#[test]
fn what_cannot_be_built() {
    let test = "what_cannot_be_built";
    if !ready(test, &[]) {
        return;
    }
    let rig = Rig::new();
    fs::create_dir(rig.path("tree")).unwrap();
    rig.ok("build tree there --size 16M");
    let usage = [
        ("tree x --profile nosuch", "nosuch"),
        ("tree x --knob nosuch", "nosuch"),
        ("tree x --mkfs=-d/etc", "-d/etc"),
        ("tree x --mount a\"b", "mount options"),
        ("tree x --size 5000", "1 MiB"),
        ("tree x --size 10000001", "4 KiB"),
        ("tree x --rootless --as-root", "--as-root"),
        ("tree x --label 12345678901234567", "16 bytes"),
        ("tree", "<NAME>"),
        (". x", "store"),
    ];
    for (args, why) in usage {
        let said = rig.fails(2, &format!("build {args}"));
        assert!(said.contains(why), "{args}: {said}");
    }
    rig.fails(3, "build nosuch x");
    let said = rig.fails(1, "build tree there --size 16M");
    assert!(said.contains("--replace"), "{said}");
    rig.file("image.qcow2", b"QFI\xfbetc");
    let said = rig.fails(1, "build image.qcow2 x");
    assert!(said.contains("cowslip import"), "{said}");
    let mut command = rig.command(["build", "tree", "x", "--size", "16M"]);
    let output = command
        .env("SOURCE_DATE_EPOCH", "soon")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}",
        crate::rig::said(&output)
    );
}
