//! Files by their paths: with blocks, with holes, in the inode itself, through links, and what is none.

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;

use cowslip_ext4::State;

use super::rig::{Image, have};

#[test]
fn files_are_found_by_their_paths_and_read() {
    if !have(
        "files_are_found_by_their_paths_and_read",
        &["mkfs.ext4", "debugfs"],
    ) {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    let at = |path: &str| tree.path().join(path);
    std::fs::create_dir_all(at("usr/lib/modules/6.1")).unwrap();
    symlink("usr/lib", at("lib")).unwrap();
    symlink("/lib/modules/6.1/large", at("usr/out")).unwrap();
    symlink("../../usr/./lib/../out", at("usr/lib/back")).unwrap();
    symlink("circle", at("circle")).unwrap();
    let long = "/x".repeat(40) + "/../../" + &"../".repeat(40) + "/small";
    symlink(long, at("far")).unwrap();
    for name in ["small", "longer"] {
        std::fs::write(at(name), "few bytes").unwrap();
    }
    let large: Vec<u8> = (0..300_007_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(at("lib/modules/6.1/large"), &large).unwrap();
    let mut holes = std::fs::File::create(at("holes")).unwrap();
    holes.seek(SeekFrom::Start(40_000)).unwrap();
    holes.write_all(b"end").unwrap();
    let source = tree.path().to_str().unwrap();
    for features in ["^inline_data", "inline_data", "^extent,^64bit"] {
        let image = Image::mkfs(8 << 10, &["-O", features, "-I", "256", "-d", source]);
        // Made longer by truncate(2): a hole, also where the bytes are in the inode.
        image.debugfs(true, "set_inode_field /longer size 5000\n");
        let fs = image.open(State::Replayed);
        let read = |path: &str| {
            let inode = fs.look_up(path).unwrap()?;
            Some(fs.read_file(&inode, 1 << 20).unwrap())
        };
        assert_eq!(read("/small").unwrap(), b"few bytes", "{features}");
        let longer = read("/longer").unwrap();
        assert!(
            longer.len() == 5000 && longer.starts_with(b"few bytes\0"),
            "{features}"
        );
        for path in ["/lib/modules/6.1/large", "usr//out", "/usr/lib/back"] {
            assert!(read(path).unwrap() == large, "{features}: {path}");
        }
        let holes = read("/lib/../../holes").unwrap();
        assert!(
            holes.len() == 40_003 && holes.ends_with(b"\0end"),
            "{features}"
        );
        assert!(holes[..40_000].iter().all(|byte| *byte == 0), "{features}");
        for path in ["/no", "/small/x", "/lib/modules/6.2/large", "/far"] {
            assert_eq!(read(path), None, "{features}: {path}");
        }
        let circle = fs.look_up("/circle").unwrap_err().to_string();
        assert!(circle.contains("too many symbolic links"), "{circle}");
        let lib = fs.look_up("/lib").unwrap().unwrap();
        let mut names = fs.names(&lib).unwrap();
        names.sort();
        assert_eq!(names, [&b"back"[..], b"modules"], "{features}");
        let refused = fs.read_file(&lib, 1 << 20).unwrap_err().to_string();
        assert!(refused.contains("no regular file"), "{refused}");
        let inode = fs.look_up("/usr/out").unwrap().unwrap();
        let refused = fs.read_file(&inode, 300_006).unwrap_err().to_string();
        assert!(refused.contains("at most 300006"), "{refused}");
    }
}
