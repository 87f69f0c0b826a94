//! NBD clients that others wrote, against a served session: libnbd's tools and fio.

use serde_json::Value;

use crate::bytes::{MIB, assert_same, noise};
use crate::rig::Rig;
use crate::tools::{have, python, run};

/// Some data, then nothing.
fn half_full() -> Vec<u8> {
    let mut image = noise(1, 4 * MIB);
    image.resize(8 * MIB, 0);
    image
}

#[test]
fn nbdinfo_sees_the_export() {
    if !have("nbdinfo_sees_the_export", &["nbdinfo"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &half_full());
    let served = rig.serve("base --session s");
    let info: Value = serde_json::from_str(&run("nbdinfo", ["--json", &served.uri()])).unwrap();
    assert_eq!(
        (&info["protocol"], &info["structured"]),
        (&"newstyle-fixed".into(), &true.into())
    );
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 8 * MIB);
    assert_eq!(export["is_read_only"], false);
    for can in [
        "cache",
        "df",
        "fast_zero",
        "flush",
        "fua",
        "multi_conn",
        "trim",
        "zero",
    ] {
        assert_eq!(export[format!("can_{can}")], true, "{can}");
    }
    let sizes = ["minimum", "preferred", "maximum"].map(|s| &export[format!("block_size_{s}")]);
    assert_eq!(sizes, [1, 4096, 32 << 20].map(Value::from).each_ref());
    let contexts: Vec<String> = serde_json::from_value(export["contexts"].clone()).unwrap();
    assert_eq!(contexts, ["base:allocation", "cowslip:dirty"]);
    let list: Value =
        serde_json::from_str(&run("nbdinfo", ["--list", "--json", &served.uri()])).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "base");
    // The export's own name works as well as the empty one; no other does.
    let named = |name: &str| format!("nbd+unix:///{name}?socket={}", served.socket().display());
    assert_eq!(
        run("nbdinfo", ["--size", &named("base")]).trim(),
        (8 * MIB).to_string()
    );
    python(
        "import nbd, sys\nh = nbd.NBD()\ntry:\n h.connect_uri(sys.argv[1])\n sys.exit('connected')\nexcept nbd.Error: pass",
        [named("other")],
    );
}

/// The map as (offset, length, flags).
fn map(context: &str, uri: &str) -> Vec<(u64, u64, u64)> {
    let text = run("nbdinfo", ["--json", &format!("--map={context}"), uri]);
    let map: Vec<Value> = serde_json::from_str(&text).unwrap();
    let n = |v: &Value| v.as_u64().unwrap();
    map.iter()
        .map(|e| (n(&e["offset"]), n(&e["length"]), n(&e["type"])))
        .collect()
}

#[test]
fn nbdinfo_maps_holes_and_changes() {
    if !have("nbdinfo_maps_holes_and_changes", &["nbdinfo"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &half_full());
    let served = rig.serve("base --session s");
    let uri = served.uri();
    let (size, half) = (8 << 20, 4 << 20);
    assert_eq!(
        map("base:allocation", &uri),
        [(0, half, 0), (half, half, 3)]
    );
    assert_eq!(map("cowslip:dirty", &uri), [(0, size, 0)]);
    let mut client = served.client();
    client.write(2 << 20, &noise(2, 65536)).unwrap();
    client.trim(1 << 20, 65536).unwrap();
    client.write(6 << 20, &[1; 10]).unwrap();
    let (m, k) = (1 << 20, 1 << 10);
    let holes = [
        (0, m, 0),
        (m, 64 * k, 3),
        (m + 64 * k, 3 * m - 64 * k, 0),
        (4 * m, 2 * m, 3),
        (6 * m, 4 * k, 0),
        (6 * m + 4 * k, 2 * m - 4 * k, 3),
    ];
    assert_eq!(map("base:allocation", &uri), holes);
    let dirty = [
        (0, m, 0),
        (m, 64 * k, 1),
        (m + 64 * k, m - 64 * k, 0),
        (2 * m, 64 * k, 1),
        (2 * m + 64 * k, 4 * m - 64 * k, 0),
        (6 * m, 4 * k, 1),
        (6 * m + 4 * k, 2 * m - 4 * k, 0),
    ];
    assert_eq!(map("cowslip:dirty", &uri), dirty);
    // Since the last snapshot, nothing; what is where has not changed.
    rig.ok("snapshot s one");
    assert_eq!(map("cowslip:dirty", &uri), [(0, size, 0)]);
    assert_eq!(map("base:allocation", &uri), holes);
}

#[test]
fn nbdcopy_both_ways() {
    if !have("nbdcopy_both_ways", &["nbdcopy"]) {
        return;
    }
    let rig = Rig::new();
    let image = half_full();
    rig.import("base", &image);
    let served = rig.serve("base --session s");
    let out = rig.path("out.raw");
    run("nbdcopy", [served.uri().as_ref(), out.as_os_str()]);
    assert_same(&std::fs::read(&out).unwrap(), &image, "copied out");
    let mut other = noise(2, 8 * MIB);
    other[2 * MIB..3 * MIB].fill(0);
    let from = rig.file("in.raw", &other);
    run("nbdcopy", [from.as_os_str(), served.uri().as_ref()]);
    run(
        "nbdcopy",
        [
            "--connections=4".as_ref(),
            served.uri().as_ref(),
            out.as_os_str(),
        ],
    );
    assert_same(&std::fs::read(&out).unwrap(), &other, "copied in and out");
    rig.ok("snapshot s copy");
    assert_same(&rig.export("copy"), &other, "exported");
    // 1 MiB of zeros over data costs nothing.
    let info = rig.inspect("copy");
    assert_eq!(
        (&info["dirty_blocks"], &info["zero_blocks"]),
        (&1792.into(), &256.into())
    );
}

/// libnbd without its own checks: what the server says to requests that are none.
const STRICT_OFF: &str = r"
import nbd, sys, errno
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(sys.argv[1])
h.set_strict_mode(0)
size = h.get_size()
first = h.pread(4096, 0)

def refused(what, code, call):
    try:
        call()
        sys.exit(what + ': served')
    except nbd.Error as e:
        if e.errnum != code:
            sys.exit('%s: %s instead of %s' % (what, e, errno.errorcode[code]))
    assert h.pread(4096, 0) == first, what + ': the connection does not live'

M = 1 << 20
E = errno
refused('read past the end', E.EINVAL, lambda: h.pread(4096, size))
refused('read across the end', E.EINVAL, lambda: h.pread(4096, size - 1))
refused('read far out', E.EINVAL, lambda: h.pread(1, (1 << 63) - 1))
refused('write past the end', E.ENOSPC, lambda: h.pwrite(b'x' * 4096, size))
refused('write across the end', E.ENOSPC, lambda: h.pwrite(b'x' * 4096, size - 1))
refused('zero past the end', E.ENOSPC, lambda: h.zero(4096, size))
refused('trim past the end', E.EINVAL, lambda: h.trim(4096, size))
refused('cache past the end', E.EINVAL, lambda: h.cache(4096, size))
refused('status past the end', E.EINVAL, lambda: h.block_status(4096, size, lambda *a: 0))
refused('read of 33 MiB', E.EINVAL, lambda: h.pread(33 * M, 0))
refused('read of 33 MiB in one chunk', E.EOVERFLOW, lambda: h.pread(33 * M, 0, nbd.CMD_FLAG_DF))
refused('write of 33 MiB', E.EINVAL, lambda: h.pwrite(bytes(33 * M), 0))
refused('write with DF', E.EINVAL, lambda: h.pwrite(b'x' * 4096, 0, nbd.CMD_FLAG_DF))
refused('write with an unknown flag', E.EINVAL, lambda: h.pwrite(b'x' * 4096, 0, 1 << 14))
refused('read with an unknown flag', E.EINVAL, lambda: h.pread(4096, 0, 1 << 15))
refused('flush with an unknown flag', E.EINVAL, lambda: h.flush(1 << 12))
refused('trim with NO_HOLE', E.EINVAL, lambda: h.trim(4096, 0, nbd.CMD_FLAG_NO_HOLE))
refused('fast and provisioned', E.ENOTSUP,
        lambda: h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO))
refused('status of nothing', E.EINVAL, lambda: h.block_status(0, 0, lambda *a: 0))

# Exactly 32 MiB is served; nothing of what was refused was written.
big = h.pread(32 * M, 0)
h.pwrite(big, 0)
assert h.pread(32 * M, 0) == big
# So are unaligned requests, down to a byte, and empty ones.
h.pwrite(b'abc', 4095)
assert h.pread(5, 4094) == first[4094:4095] + b'abc' + big[4098:4099]
h.pwrite(b'!', size - 1, nbd.CMD_FLAG_FUA)
assert h.pread(1, size - 1) == b'!'
h.pwrite(b'', 0); h.zero(0, 0); h.trim(0, size)
assert h.pread(0, 0) == b''
h.flush(); h.flush(nbd.CMD_FLAG_FUA)
h.pread(10, 3, nbd.CMD_FLAG_DF)
h.shutdown()
";

#[test]
fn nbdsh_without_its_own_checks_gets_the_right_errno() {
    if !have(
        "nbdsh_without_its_own_checks_gets_the_right_errno",
        &["python3-nbd"],
    ) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, 33 * MIB + 777));
    let served = rig.serve("base --session s");
    python(STRICT_OFF, [served.uri()]);
}

/// Zeroing and trimming, against a mirror in memory.
const ZEROES: &str = r"
import nbd, sys, random
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(sys.argv[1])
size = h.get_size()
mirror = bytearray(h.pread(size, 0))
rand = random.Random(7)
flags = [0, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO,
         nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA]
for i in range(400):
    start = rand.randrange(size)
    len = min(size - start, rand.choice([1, 511, 4095, 4096, 4097, 40000, 300000]))
    kind = rand.randrange(3)
    if kind == 0:
        h.zero(len, start, rand.choice(flags))
        mirror[start:start + len] = bytes(len)
    elif kind == 1:
        h.trim(len, start, rand.choice([0, nbd.CMD_FLAG_FUA]))
        # Whole blocks; the last one of the device counts as whole.
        first, end = -(-start // 4096) * 4096, (start + len) // 4096 * 4096
        if start + len == size: end = size
        if end > first: mirror[first:end] = bytes(end - first)
    else:
        data = rand.randbytes(len)
        h.pwrite(data, start)
        mirror[start:start + len] = data
    at = max(0, start - 5000)
    count = min(size - at, len + 10000)
    assert h.pread(count, at) == mirror[at:at + count], (i, kind, start, len)
assert h.pread(size, 0) == mirror
# One request over all of it.
h.zero(size, 0)
assert h.pread(size, 0) == bytes(size)
seen = []
h.block_status(size, 0, lambda context, offset, entries, error: seen.extend(entries))
assert seen == [size, 3], seen
";

#[test]
fn zeroes_and_trims_are_exact() {
    if !have("zeroes_and_trims_are_exact", &["python3-nbd"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, 2 * MIB + 1000));
    let served = rig.serve("base --session s");
    python(ZEROES, [served.uri()]);
}

/// By hand, because no client library sends what does not exist.
const UNKNOWN_COMMAND: &str = r"
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def take(n):
    data = b''
    while len(data) < n:
        part = s.recv(n - len(data))
        assert part, 'the connection ended'
        data += part
    return data
magic, opts, flags = struct.unpack('>QQH', take(18))
assert (magic, opts) == (0x4e42444d41474943, 0x49484156454F5054)
s.sendall(struct.pack('>I', flags & 3))
s.sendall(struct.pack('>QII', opts, 999, 5) + b'hello')
m, option, kind, length = struct.unpack('>QIII', take(20))
assert (option, kind) == (999, (1 << 31) + 1), (option, hex(kind))
take(length)
s.sendall(struct.pack('>QII', opts, 1, 0))
size, flags = struct.unpack('>QH', take(10))
for kind in [8, 77, 0xffff]:
    s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, kind, kind, 0, 4096))
    assert struct.unpack('>IIQ', take(16)) == (0x67446698, 22, kind)
# Flags and type are parsed apart: FUA on a read is served.
s.sendall(struct.pack('>IHHQQI', 0x25609513, 1, 0, 1, 0, 4096))
assert struct.unpack('>IIQ', take(16)) == (0x67446698, 0, 1)
take(4096)
s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 2, 2, 0, 0))
assert s.recv(1) == b''
";

#[test]
fn unknown_options_and_commands_are_refused_politely() {
    if !have(
        "unknown_options_and_commands_are_refused_politely",
        &["python3-nbd"],
    ) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    let served = rig.serve("base --session s");
    python(UNKNOWN_COMMAND, [served.socket()]);
}

fn fio(uri: &str, args: &[&str]) {
    let uri = format!("--uri={uri}");
    let all = [
        "--name=job",
        "--ioengine=nbd",
        "--thread",
        "--iodepth=16",
        &uri,
        "--verify_state_save=0",
    ];
    let output = run("fio", all.iter().chain(args));
    // fio ends well after some kinds of errors.
    assert!(output.contains("err= 0"), "{output}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have("fio_verifies_what_it_wrote", &["fio"]) {
        return;
    }
    let rig = Rig::new();
    rig.import("base", &noise(1, 32 * MIB));
    let served = rig.serve("base --session s");
    let uri = served.uri();
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--rw=randwrite"];
    let with = |more: &[&'static str]| [&verify[..], more].concat();
    fio(&uri, &with(&["--size=32m", "--bsrange=4k-64k"]));
    fio(&uri, &with(&["--size=8m", "--bs=512", "--io_size=2m"]));
    let jobs = [
        "--numjobs=4",
        "--size=8m",
        "--offset_increment=8m",
        "--bsrange=512-32k",
    ];
    fio(&uri, &with(&jobs));
    // Each block trimmed, then written, then verified; some trimmed again and verified as zeros.
    let trims = [
        "--rw=randtrimwrite",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--bs=4k",
    ];
    let again = [
        "--trim_percentage=30",
        "--trim_backlog=64",
        "--trim_verify_zero=1",
    ];
    fio(&uri, &[&trims[..], &["--size=16m"]].concat());
    fio(&uri, &[&trims[..], &again, &["--size=16m"]].concat());
    fio(&uri, &[&trims[..], &again, &jobs[..3]].concat());
    rig.ok("snapshot s after");
    assert_same(
        &rig.export("after"),
        &served.read_all(),
        "what fio left behind",
    );
}
