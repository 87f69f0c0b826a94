//! Programs of e2fsprogs, and images made with them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowslip_ext4::{FileSystem, Owners, State};

/// Are these programs there? If not, the test says so and is over; where COWSLIP_REQUIRE_TOOLS is 1,
/// that is a failure.
pub(crate) fn have(test: &str, tools: &[&str]) -> bool {
    let missing = tools.iter().copied().filter(|t| tool(t).is_none());
    let missing = missing.collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var_os("COWSLIP_REQUIRE_TOOLS").is_some_and(|v| v == "1");
    assert!(!required, "{test} needs {missing}");
    skip(test, &missing);
    false
}

/// Says that a test is left out for want of something.
pub(crate) fn skip(test: &str, needs: &str) {
    eprintln!("SKIP {test}: needs {needs}");
}

/// Where a program is; those of e2fsprogs are not on everybody's PATH.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|p| p.join(name)).find(|p| p.is_file())
}

/// Runs a program; its exit code and what it said on standard output.
#[track_caller]
pub(crate) fn try_run<A: AsRef<OsStr>>(
    name: &str,
    args: impl IntoIterator<Item = A>,
) -> (i32, String) {
    let mut command = Command::new(tool(name).unwrap());
    command
        .args(args)
        .stdin(Stdio::null())
        .env("E2FSPROGS_FAKE_TIME", "1700000000");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let code = output.status.code().unwrap_or(-1);
    if code != 0 {
        eprintln!(
            "{command:?}: {code}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    (code, said)
}

/// Runs a program that must succeed.
#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> String {
    let (code, said) = try_run(name, args);
    assert_eq!(code, 0, "{name}: {said}");
    said
}

/// An image in a temporary directory.
pub(crate) struct Image {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Image {
    /// `mkfs.ext4`, with a fixed UUID and hash seed.
    #[track_caller]
    pub(crate) fn mkfs(size_kib: u64, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(size_kib << 10)
            .unwrap();
        let id = "c057119b-0000-4000-8000-000000000001";
        let seed = format!("hash_seed={id}");
        let fixed = ["-q", "-F", "-U", id, "-E", &seed];
        let path_arg = path.to_str().unwrap();
        run("mkfs.ext4", fixed.iter().chain(options).chain([&path_arg]));
        Self { dir, path }
    }

    /// Commands to debugfs, through one file; all that it said.
    #[track_caller]
    pub(crate) fn debugfs(&self, write: bool, commands: &str) -> String {
        let mut script = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        script.write_all(commands.as_bytes()).unwrap();
        let script = script.path().to_str().unwrap();
        let image = self.path.to_str().unwrap();
        let mode = if write { &["-w"][..] } else { &[] };
        run("debugfs", mode.iter().copied().chain(["-f", script, image]))
    }

    /// `e2fsck`, which may repair.
    #[track_caller]
    pub(crate) fn fsck(&self, options: &[&str]) {
        let image = self.path.to_str().unwrap();
        let (code, said) = try_run("e2fsck", options.iter().copied().chain([image]));
        assert!(
            (0..=1).contains(&code),
            "e2fsck {options:?}: {code}: {said}"
        );
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    pub(crate) fn open(&self, state: State) -> FileSystem<'static> {
        FileSystem::open(std::fs::File::open(&self.path).unwrap(), state).unwrap()
    }

    /// A copy of the image, on its own.
    pub(crate) fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::copy(&self.path, &path).unwrap();
        Self { dir, path }
    }
}

pub(crate) fn owners(fs: &FileSystem<'_>) -> Owners {
    Owners::read(fs, &mut |_| {}).unwrap()
}

/// All runs in words, to compare two states.
pub(crate) fn in_words(owners: &Owners) -> Vec<String> {
    let all = cowslip_block::ByteRange::new(0, owners.size_bytes());
    let line = |run: cowslip_ext4::Owned| format!("{} {:?}", run.range, run.owner);
    owners.runs(all).map(line).collect()
}

/// Numbers that look random, and are the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A tree with something of everything.
pub(crate) fn tree(root: &Path) {
    let mut random = Random(7);
    let noise = |len: u64| {
        (0..len)
            .map(|i| (i % 251).to_le_bytes()[0] | 1)
            .collect::<Vec<u8>>()
    };
    let write = |path: PathBuf, bytes: &[u8]| std::fs::write(path, bytes).unwrap();
    std::fs::create_dir(root).unwrap();
    for dir in 0..12u64 {
        let dir = root.join(format!("dir{dir}"));
        std::fs::create_dir(&dir).unwrap();
        for file in 0..20 {
            let len = random.below(20_000);
            write(dir.join(format!("file{file}")), &noise(len));
        }
        std::fs::hard_link(
            dir.join("file3"),
            root.join(dir.file_name().unwrap()).join("again"),
        )
        .unwrap();
        std::os::unix::fs::symlink("file1", dir.join("short")).unwrap();
        std::os::unix::fs::symlink("x/".repeat(100), dir.join("long")).unwrap();
    }
    write(root.join("n".repeat(255)), b"a long name");
    write(root.join("tiny"), b"tiny");
    // Every other block of 4 KiB is a hole: a tree of extents.
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    for block in 0..1500u64 {
        let at = block * 8192;
        std::os::unix::fs::FileExt::write_all_at(&holes, &noise(4096), at).unwrap();
    }
    let big = root.join("big");
    std::fs::create_dir(&big).unwrap();
    for file in 0..1500 {
        write(
            big.join(format!("one of many, with a name that takes room {file}")),
            b"",
        );
    }
    let deep = (0..40).fold(root.to_owned(), |path, _| path.join("deeper"));
    std::fs::create_dir_all(&deep).unwrap();
    write(deep.join("bottom"), &noise(5000));
}

/// What `mkfs.ext4 -d` cannot make: attributes, unwritten blocks, deleted files, hash trees.
#[track_caller]
pub(crate) fn finish(image: &Image, has_extents: bool) {
    let value = image.dir.path().join("value");
    std::fs::write(&value, vec![b'v'; 900]).unwrap();
    let mut commands = String::new();
    for dir in 0..6 {
        let value = value.display();
        writeln!(commands, "ea_set dir{dir}/file0 user.small abc").unwrap();
        writeln!(commands, "ea_set -f {value} dir{dir}/file1 user.large").unwrap();
    }
    if has_extents {
        writeln!(commands, "write /dev/null unwritten").unwrap();
        writeln!(commands, "fallocate unwritten 3 700").unwrap();
    }
    for dir in 6..9 {
        writeln!(commands, "rm dir{dir}/file7").unwrap();
    }
    image.debugfs(true, &commands);
    image.fsck(&["-fyD"]);
}
