//! Disk images, in and out: what can be imported, what cannot, and what an export leaves alone.

use crate::bytes::{MIB, assert_same, noise};
use crate::rig::{Rig, said};
use crate::tools::{have, run};

fn rig() -> Rig {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    rig
}

#[test]
fn images_that_cannot_be_imported() {
    let rig = rig();
    rig.file("empty.raw", b"");
    rig.file("a.raw", &noise(2, 8192));
    std::fs::create_dir(rig.path("dir")).unwrap();
    let before = rig.store_bytes();
    let refusals = [
        ("empty.raw x", "empty"),
        ("dir x", "directory"),
        ("a.raw base", "--replace"),
    ];
    for (args, why) in refusals {
        let said = rig.fails(1, &format!("import {args}"));
        assert!(said.contains(why), "{said}");
    }
    rig.fails(3, "import missing.raw x");
    assert_eq!(rig.store_bytes(), before, "nothing is left behind");
    rig.ok("import a.raw base --replace");
    assert_same(&rig.export("base"), &noise(2, 8192), "replaced");
}

#[test]
fn a_sparse_image_is_sparse_again() {
    let rig = Rig::new();
    let file = std::fs::File::create(rig.path("a.raw")).unwrap();
    file.set_len(256 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"a few bytes", 100 << 20).unwrap();
    rig.ok("import a.raw a");
    assert_eq!(rig.inspect("a")["dirty_blocks"], 1);
    let exported = rig.json("export a out.raw");
    assert!(
        exported["allocated_bytes"].as_u64().unwrap() < 1 << 20,
        "{exported}"
    );
    assert_eq!(rig.path("out.raw").metadata().unwrap().len(), 256 << 20);
    let mut bytes = [0; 11];
    let out = std::fs::File::open(rig.path("out.raw")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&out, &mut bytes, 100 << 20).unwrap();
    assert_eq!(&bytes, b"a few bytes");
}

#[test]
fn qcow2_is_read_through_qemu_img() {
    if !have("qcow2_is_read_through_qemu_img", &["qemu-img"]) {
        return;
    }
    let rig = Rig::new();
    let mut image = noise(1, 3 * MIB);
    image[MIB..2 * MIB].fill(0);
    let raw = rig.file("a.raw", &image);
    let qcow2 = rig.path("a.qcow2");
    run(
        "qemu-img",
        [
            "convert",
            "-O",
            "qcow2",
            raw.to_str().unwrap(),
            qcow2.to_str().unwrap(),
        ],
    );
    rig.ok("import a.raw raw");
    rig.ok("import a.qcow2 qcow2");
    rig.ok("import a.qcow2 told --format qcow2");
    for name in ["raw", "qcow2", "told"] {
        assert_same(&rig.export(name), &image, name);
        assert_eq!(rig.inspect(name)["dirty_blocks"], 512);
    }
    // A guest may write anything into its disk: told that it is raw, it is.
    rig.ok("import a.qcow2 bytes --format raw");
    assert_same(
        &rig.export("bytes"),
        &std::fs::read(&qcow2).unwrap(),
        "told that it is raw",
    );
    // What says that it is one and is none.
    rig.file("broken.qcow2", b"QFI\xfbbroken");
    let refused = rig.fails(1, "import broken.qcow2 broken");
    assert!(refused.contains("broken.qcow2"), "{refused}");
    let mut command = rig.command(["import", "a.qcow2", "x"]);
    let output = command.env("PATH", rig.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("qemu-utils"), "{}", said(&output));
    let left = std::fs::read_dir(rig.store())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert_eq!(
        left.filter(|n| n.to_string_lossy().contains("import"))
            .count(),
        0
    );
}

#[test]
fn an_export_never_writes_over_a_file_unasked() {
    let rig = rig();
    rig.file("out.raw", b"precious");
    let said = rig.fails(1, "export base out.raw");
    assert!(said.contains("--replace"), "{said}");
    assert_eq!(std::fs::read(rig.path("out.raw")).unwrap(), b"precious");
    rig.ok("export base out.raw --replace");
    assert_same(
        &std::fs::read(rig.path("out.raw")).unwrap(),
        &noise(1, MIB),
        "replaced",
    );
    rig.fails(3, "export base no/such/dir/out.raw");
    rig.fails(1, "export base store --replace");
    rig.fails(1, "export base ..");
    rig.fails(2, "export base .. --replace");
}
