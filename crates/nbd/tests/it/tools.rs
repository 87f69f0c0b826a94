//! Other people's clients. A tool that is missing is said aloud, and is a failure where
//! `COWSLIP_REQUIRE_TOOLS=1` is set.

use std::path::Path;
use std::process::Command;

use super::ram::Ram;
use super::rig::{MIB, Rig, pattern};

fn has(test: &str, tool: &str, probe: &mut Command) -> bool {
    let found = probe.output().is_ok_and(|output| output.status.success());
    let required = std::env::var_os("COWSLIP_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(
        found || !required,
        "{test} needs {tool}, and COWSLIP_REQUIRE_TOOLS=1 is set"
    );
    if !found {
        println!("SKIP {test}: needs {tool}");
    }
    found
}

macro_rules! needs {
    ($test:literal, $($tool:literal),+) => {
        $(if !has($test, $tool, Command::new($tool).arg("--version")) { return; })+
    };
}

fn run(program: &str, args: &[&str]) -> String {
    // Some leave files where they are started.
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(args)
        .current_dir(&dir)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{out}{err}",
        output.status
    );
    out
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// 16 MiB with holes, data, and a ragged end.
fn disk() -> (Rig, Vec<u8>) {
    let rig = Rig::of_bytes(16 * MIB as u64 + 100);
    let mut client = rig.client();
    client.write(1 << 20, &pattern(3 * MIB, 1)).unwrap();
    client.write((9 << 20) + 17, &pattern(MIB + 3, 2)).unwrap();
    client.write(16 << 20, &pattern(100, 3)).unwrap();
    let bytes = rig.ram.bytes();
    (rig, bytes)
}

#[test]
fn nbdinfo_describes_the_export() {
    needs!("nbdinfo_describes_the_export", "nbdinfo");
    let (rig, _) = disk();
    let json = run("nbdinfo", &["--json", &rig.uri()]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-size\": 16777316",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
        "\"base:allocation\"",
        "\"cowslip:dirty\"",
        "\"can_multi_conn\": true",
        "\"can_fast_zero\": true",
        "\"can_df\": true",
        "\"is_read_only\": false",
    ] {
        assert!(json.contains(expected), "{expected}\n{json}");
    }
    let list = run("nbdinfo", &["--list", &rig.uri()]);
    assert!(
        list.contains("export=\"disk\"") && list.contains("a test's disk"),
        "{list}"
    );
    let read_only = Rig::new(Ram::new(4096).read_only());
    run("nbdinfo", &["--is", "read-only", &read_only.uri()]);
}

#[test]
fn nbdinfo_maps_both_contexts() {
    needs!("nbdinfo_maps_both_contexts", "nbdinfo");
    let (rig, _) = disk();
    let rows = |map: String| {
        map.lines()
            .map(|line| {
                let mut words = line
                    .split_whitespace()
                    .map(|word| word.parse::<u64>().unwrap_or(99));
                let mut word = || words.next().unwrap();
                (word(), word(), word())
            })
            .collect::<Vec<_>>()
    };
    let (mib, block) = (MIB as u64, 4096);
    let expected = |hole, data| {
        [
            (0, mib, hole),
            (mib, 3 * mib, data),
            (4 * mib, 5 * mib, hole),
            (9 * mib, mib + block, data),
            (10 * mib + block, 6 * mib - block, hole),
            (16 * mib, 100, data),
        ]
    };
    assert_eq!(rows(run("nbdinfo", &["--map", &rig.uri()])), expected(3, 0));
    assert_eq!(
        rows(run("nbdinfo", &["--map=cowslip:dirty", &rig.uri()])),
        expected(0, 1)
    );
}

#[test]
fn nbdcopy_both_ways() {
    needs!("nbdcopy_both_ways", "nbdcopy");
    let (rig, bytes) = disk();
    let file = rig.dir.path().join("copy.img");
    run("nbdcopy", &[&rig.uri(), text(&file)]);
    assert!(std::fs::read(&file).unwrap() == bytes);
    let other = Rig::of_bytes(bytes.len() as u64);
    other.client().write(5 << 20, &pattern(MIB, 7)).unwrap();
    run("nbdcopy", &["--flush", text(&file), &other.uri()]);
    assert!(other.ram.bytes() == bytes);
    // Server to server, over several connections.
    let third = Rig::of_bytes(bytes.len() as u64);
    run("nbdcopy", &["--connections=4", &rig.uri(), &third.uri()]);
    assert!(third.ram.bytes() == bytes);
}

const NBDSH: &str = r#"
import errno, os, nbd
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.add_meta_context("cowslip:dirty")
h.connect_uri(os.environ["URI"])
size = h.get_size()
assert size == 48 << 20, size

def refused(expected, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as e:
        assert e.errnum == expected, (call, args, kwargs, e)
    else:
        raise AssertionError((call, args, kwargs))
    # the connection lives
    assert len(h.pread(1, 0)) == 1

UNKNOWN = 1 << 15
refused(errno.EINVAL, h.pread, 1, size)
refused(errno.EINVAL, h.pread, 512, size - 1)
refused(errno.EINVAL, h.pread, 1, (1 << 64) - 1)
refused(errno.ENOSPC, h.pwrite, b"x", size)
refused(errno.ENOSPC, h.pwrite, b"xx", size - 1)
refused(errno.EINVAL, h.trim, 2, size - 1)
refused(errno.ENOSPC, h.zero, 2, size - 1)
refused(errno.EINVAL, h.cache, 2, size - 1)
refused(errno.EINVAL, h.block_status, 2, size - 1, lambda *a: 0)
refused(errno.EINVAL, h.block_status, 0, 0, lambda *a: 0)
refused(errno.EINVAL, h.pread, (32 << 20) + 1, 0)
refused(errno.EINVAL, h.pwrite, bytes((32 << 20) + 1), 0)
refused(errno.EINVAL, h.pwrite, bytes(48 << 20), 0)
refused(errno.EOVERFLOW, h.pread_structured, (32 << 20) + 1, 0, lambda *a: 0, flags=nbd.CMD_FLAG_DF)
refused(errno.EINVAL, h.pread_structured, 1, 0, lambda *a: 0, flags=UNKNOWN)
refused(errno.EINVAL, h.pwrite, b"x", 0, flags=UNKNOWN)
refused(errno.EINVAL, h.pwrite, b"x", 0, flags=nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.trim, 1, 0, flags=nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.zero, 1, 0, flags=UNKNOWN)
refused(errno.EINVAL, h.flush, flags=UNKNOWN)
refused(errno.EINVAL, h.cache, 1, 0, flags=UNKNOWN)
refused(errno.ENOTSUP, h.zero, 1, 0, flags=nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)

# unaligned
h.pwrite(b"neighbours", 4090)
h.pwrite(b"XX", 4095)
assert h.pread(10, 4090) == b"neighXXurs", h.pread(10, 4090)
h.zero(2, 4095)
assert h.pread(10, 4090) == b"neigh\0\0urs"
h.trim(4096, 4090)
assert h.pread(10, 4090) == b"neigh\0\0urs"

# flags that are served
h.pwrite(bytes([7]) * 8192, 65536, flags=nbd.CMD_FLAG_FUA)
h.zero(4096, 65536, flags=nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 69632, flags=nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 69632, flags=nbd.CMD_FLAG_FUA)
h.flush(flags=nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0, flags=nbd.CMD_FLAG_FUA)
h.pwrite(bytes([7]) * (32 << 20), 1 << 20)
assert h.pread(32 << 20, 1 << 20) == bytes([7]) * (32 << 20)
h.zero(size, 0)
assert h.pread(32 << 20, 1 << 20) == bytes(32 << 20)
h.trim(size, 0)
h.pwrite(b"z", 0)

# no request for nothing hurts
h.pwrite(b"", 0)
h.trim(0, 0)
h.zero(0, size)

# one chunk, or as many as there are pieces
h.pwrite(bytes([9]) * 4096, 8192)
def pieces(flags):
    seen = []
    h.pread_structured(65536, 0, lambda buf, off, status, err: seen.append((off, len(buf), status)), flags=flags)
    return seen
assert pieces(nbd.CMD_FLAG_DF) == [(0, 65536, nbd.READ_DATA)], pieces(nbd.CMD_FLAG_DF)
assert [p[2] for p in pieces(0)] == [nbd.READ_DATA, nbd.READ_HOLE, nbd.READ_DATA, nbd.READ_HOLE], pieces(0)

# status, and one extent only
status = {}
h.block_status(1 << 20, 0, lambda name, off, entries, err: status.update({name: entries}))
assert status["base:allocation"][:4] == [4096, 0, 4096, 3], status
assert status["cowslip:dirty"] == [1 << 20, 1], status
h.block_status(1 << 20, 4096, lambda name, off, entries, err: status.update({name: entries}), flags=nbd.CMD_FLAG_REQ_ONE)
assert status["base:allocation"] == [4096, 3], status
assert len(status["cowslip:dirty"]) == 2, status
h.shutdown()

# without structured replies
h = nbd.NBD()
h.set_strict_mode(0)
h.set_request_structured_replies(False)
h.connect_uri(os.environ["URI"])
assert not h.can_df()
refused(errno.EINVAL, h.pread, 1, size)
refused(errno.EINVAL, h.block_status, 1, 0, lambda *a: 0)
refused(errno.EINVAL, h.pread_structured, 1, 0, lambda *a: 0, flags=nbd.CMD_FLAG_DF)
assert h.pread(1, 8192) == b"\t"
h.shutdown()

# the export's own name works, another does not
h = nbd.NBD()
h.set_export_name("disk")
h.connect_unix(os.environ["SOCKET"])
h.shutdown()
h = nbd.NBD()
h.set_export_name("nonsense")
try:
    h.connect_unix(os.environ["SOCKET"])
    raise AssertionError("connected")
except nbd.Error:
    pass
"#;

#[test]
fn nbdsh_without_strictness() {
    let python = "/usr/bin/python3";
    let probe = &mut Command::new(python);
    if !has(
        "nbdsh_without_strictness",
        "python3-libnbd",
        probe.args(["-c", "import nbd"]),
    ) {
        return;
    }
    let rig = Rig::of_bytes(48 << 20);
    let output = Command::new(python)
        .args(["-c", NBDSH])
        .env("URI", rig.uri())
        .env("SOCKET", rig.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn fio(rig: &Rig, extra: &[&str]) {
    let uri = format!("--uri={}", rig.uri());
    let base = [
        "--name=test",
        "--ioengine=nbd",
        &uri,
        "--iodepth=16",
        "--group_reporting",
    ];
    run("fio", &[&base[..], extra].concat());
}

#[test]
fn fio_verifies_and_trims() {
    needs!("fio_verifies_and_trims", "fio");
    for connections in ["1", "4"] {
        let rig = Rig::of_bytes(64 << 20);
        let jobs = format!("--numjobs={connections}");
        let shared = [
            &jobs[..],
            "--size=16m",
            "--offset_increment=16m",
            "--randseed=7",
        ];
        let verified = [
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--verify=crc32c",
            "--do_verify=1",
        ];
        fio(&rig, &[&shared[..], &verified].concat());
        let trims = ["--rw=randtrimwrite", "--bs=4k", "--fsync=64"];
        fio(&rig, &[&shared[..], &trims].concat());
        assert_eq!(rig.said.lock().unwrap().len(), 0);
        assert_eq!(
            rig.server
                .counters()
                .errors
                .load(std::sync::atomic::Ordering::Relaxed),
            0
        );
    }
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    needs!("qemu_img_converts_compares_and_maps", "qemu-img");
    // QEMU works in sectors: no ragged end here.
    let rig = Rig::of_bytes(16 << 20);
    rig.client().write(1 << 20, &pattern(3 * MIB, 1)).unwrap();
    let file = rig.dir.path().join("copy.img");
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &rig.uri(), text(&file)],
    );
    assert!(std::fs::read(&file).unwrap() == rig.ram.bytes());
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &rig.uri(), text(&file)],
    );
    let map = run(
        "qemu-img",
        &["map", "-f", "raw", "--output=json", &rig.uri()],
    );
    let squeezed: String = map.split_whitespace().collect();
    for expected in [
        "\"start\":0,\"length\":1048576,\"depth\":0,\"present\":true,\"zero\":true,\"data\":false",
        "\"start\":1048576,\"length\":3145728,\"depth\":0,\"present\":true,\"zero\":false,\"data\":true",
        "\"start\":4194304,\"length\":12582912,\"depth\":0,\"present\":true,\"zero\":true",
    ] {
        assert!(squeezed.contains(expected), "{map}");
    }
    let other = Rig::of_bytes(16 << 20);
    let args = [
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        text(&file),
        &other.uri(),
    ];
    run("qemu-img", &args);
    assert!(other.ram.bytes() == rig.ram.bytes());
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    needs!("qemu_io_writes_zeroes_and_discards", "qemu-io");
    let rig = Rig::of_bytes(16 << 20);
    let uri = rig.uri();
    #[rustfmt::skip]
    let commands = [
        "write -P 7 0 1M", "write -z 64k 64k", "write -z -u 128k 64k", "discard 256k 64k",
        "write -f -P 9 512k 512", "flush", "read -P 7 0 64k", "read -P 0 64k 128k",
        "read -P 0 256k 64k", "read -P 9 512k 512", "read -P 7 524800 1k",
    ];
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    commands
        .iter()
        .for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    let out = run("qemu-io", &args);
    assert!(!out.contains("failed"), "{out}");
    assert_eq!(
        rig.server
            .counters()
            .errors
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}
