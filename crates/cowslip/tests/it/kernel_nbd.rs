//! The kernel's NBD client, in real kernels: a machine each, and all that a device of it may meet.
//!
//! One boot, one session: each part goes on from what the one before has left. What is run is the command without its symbols, in the machine's memory: it
//! is read over and over.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cowslip_machine::{Access, Machine, Running, have};
use serde_json::Value;

use super::rig::{COWSLIP, Rig, said};
use crate::bytes::{BLOCK, MIB};

/// For what takes seconds on a machine that has nothing else to do.
const LONG: Duration = Duration::from_secs(300);
/// Attached and detached so often; 100 were run by hand.
const CYCLES: u32 = 10;

/// What every part begins with. A server `NAME` writes to NAME.out and NAME.err, and its process is in NAME.pid.
const BEGIN: &str = r#"
set -eu
cd /tmp/w
export COWSLIP_STORE=/tmp/w/store COWSLIP_RUN_DIR=/tmp/w/run TMPDIR=/tmp/w PATH=/tmp/w/bin:$PATH
# until COMMAND..., for minutes if it must be
until_() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 4000 ] || { echo "waited for: $*" >&2; tail ./*.err >&2; exit 1; }; sleep 0.05; done; }
start() {
    name=$1; shift
    "$@" >"$name.out" 2>"$name.err" </dev/null &
    echo $! >"$name.pid"
    until_ grep -q ready: "$name.err"
}
gone() { ! kill -0 "$(cat "$1.pid")" 2>/dev/null; }
ended() { until_ gone "$1"; cat "$1.err"; }
end() { kill "$(cat "$1.pid")"; ended "$1"; }
killed() { kill -9 "$(cat "$1.pid")"; until_ gone "$1"; }
labels() { cat /sys/block/nbd*/backend 2>/dev/null || true; }
places() { ls run 2>/dev/null || true; }
nothing_left() {
    [ -z "$(labels)" ] || { echo "devices: $(labels)" >&2; exit 1; }
    [ -z "$(places)" ] || { echo "places: $(places)" >&2; exit 1; }
    ! grep /dev/nbd /proc/self/mounts >&2
}
# writes files one after the other until there is a file `stop`; the last that is synced is in `synced`. Not in a function's redirection: sh(1) keeps what it had
write_on() {
    i=0
    while [ ! -e stop ]; do
        i=$((i + 1))
        if seq $i $((i + 3000)) >mnt/f$i && sync mnt/f$i; then echo $i >synced; else echo failed >writer; exit 0; fi
    done
    echo "done $i" >writer
}
has_synced() { [ "$(cat synced 2>/dev/null || echo 0)" -ge "$1" ]; }
"#;

struct World(Running);

impl World {
    fn boot(test: &str, version: &str) -> Option<Self> {
        let kernel = have(test, version)?;
        let rig = Rig::new();
        let program = rig.path("cowslip");
        let stripped = Command::new("strip")
            .arg("-o")
            .args([&program, Path::new(COWSLIP)])
            .output()
            .unwrap();
        assert!(stripped.status.success(), "{}", said(&stripped));
        let machine = Machine::new(&kernel).share(&rig.path(""), Access::Read);
        let mut world = Self(machine.boot());
        let begin = format!(
            "mkdir -p /tmp/w/bin /tmp/w/mnt && cp {} /tmp/w/bin && cd /tmp/w && truncate -s 64M empty.raw",
            program.display()
        );
        world.0.sh(&begin, LONG);
        world.sh("cowslip import empty.raw base --format raw --quiet");
        Some(world)
    }

    #[track_caller]
    fn sh(&mut self, script: &str) -> String {
        self.0.sh(&format!("{BEGIN}\n{script}"), LONG)
    }

    #[track_caller]
    fn json(&mut self, script: &str) -> Value {
        let text = self.sh(script);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{script}: {e}: {text}"))
    }
}

/// What a server says at its end of what the kernel asked for.
fn count(said: &str, what: &str) -> u64 {
    let line = said.lines().find(|line| line.contains("the kernel sent"));
    let rest = line.and_then(|line| line.split_once(&format!(" {what} ")));
    let number = rest.and_then(|(_, rest)| rest.split(',').next());
    number
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{what} in {said}"))
}

/// Files come, change and go; what was deleted is gone from the next snapshot, and the requests that this takes arrive as what they are.
fn files(world: &mut World, sends_zeroes: bool) {
    // The module is not loaded yet.
    let told = world.json("start a cowslip attach base --session s --json; cat a.out");
    assert_eq!(told["device"], "/dev/nbd0", "{told}");
    assert_eq!(told["via"], "nbd", "{told}");
    world.sh(
        "blkdiscard -z -o 8M -l 1M /dev/nbd0
        mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1,discard /dev/nbd0
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        dd if=/dev/urandom of=mnt/kept bs=64k count=32 status=none
        dd if=/dev/urandom of=mnt/gone bs=64k count=128 status=none
        dd if=/dev/urandom of=kept bs=64k count=32 status=none
        sync -f mnt; cowslip snapshot s before --quiet >before
        dd if=kept of=mnt/kept bs=64k conv=notrunc,fsync status=none
        rm mnt/gone; sync -f mnt; fstrim mnt; sync -f mnt; cowslip snapshot s after --quiet >after",
    );
    let diff = world.json("cowslip diff before after --json");
    let blocks = |what: &str| diff[what].as_u64().unwrap();
    let (gone, kept) = ((8 * MIB / BLOCK) as u64, (2 * MIB / BLOCK) as u64);
    // Of its blocks of 1 KiB, some share one of ours with what stays.
    assert!(blocks("zeroed_blocks") >= gone - 8, "{diff}");
    assert!(blocks("changed_blocks") < kept + 100, "{diff}");
    let said = world.sh("cmp kept mnt/kept; umount mnt; e2fsck -fn /dev/nbd0 >e2fsck 2>&1 || { cat e2fsck >&2; exit 1; }; end a; nothing_left");
    for what in ["READ", "WRITE", "TRIM", "FUA", "FLUSH"] {
        assert!(count(&said, what) > 0, "{what}: {said}");
    }
    assert_eq!(count(&said, "WRITE_ZEROES") > 0, sends_zeroes, "{said}");
}

/// A server is killed while a program writes; the next one goes on with its device, and with what was under way.
fn kill_and_go_on(world: &mut World) {
    world.sh(
        "start a cowslip attach --session s --via nbd --connections 3
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        rm -f stop synced writer; (write_on) >/dev/null 2>&1 &
        until_ has_synced 3
        killed a
        cat synced >killed_at",
    );
    let told = world.json("start b cowslip attach --session s --json; cat b.out");
    assert_eq!(told["device"], "/dev/nbd0", "{told}");
    assert_eq!(told["taken_over"], true, "{told}");
    world.sh("until_ has_synced $(($(cat killed_at) + 3))
        : >stop; until_ test -e writer; grep -q ^done writer
        for i in $(seq $(cat synced)); do seq $i $((i + 3000)) | cmp - mnt/f$i; done
        umount mnt; e2fsck -fn /dev/nbd0 >e2fsck 2>&1 || { cat e2fsck >&2; exit 1; }
        end b; nothing_left; rm -f mnt/f*
        ! dmesg | grep 'I/O error' >&2");
}

/// What a killed server left ends, whoever used it, and nobody else's device with it.
fn stale(world: &mut World) {
    world.sh(
        "truncate -s 8M other.raw; echo others | dd of=other.raw conv=notrunc status=none
        qemu-nbd --fork --socket=/tmp/w/other.sock --format=raw --connect=/dev/nbd9 other.raw
        start c env COWSLIP_RUN_DIR=/tmp/w/elsewhere cowslip attach base --read-only
        start a cowslip attach --session s
        start d env COWSLIP_RUN_DIR=/tmp/w/elsewhere cowslip attach base --session d; killed d
        mount -o discard,noatime,lazytime $(cat a.out) mnt
        rm -f stop synced writer; (write_on) >/dev/null 2>&1 &
        until_ has_synced 3
        killed a",
    );
    let dry = world.json("cowslip detach --stale --dry-run --json");
    assert_eq!(dry["stale"].as_array().unwrap().len(), 1, "{dry}");
    assert_eq!(dry["stale"][0]["mounts"][0], "/tmp/w/mnt", "{dry}");
    let ended = world.json("cowslip detach --stale --json; until_ grep -q ^failed writer");
    assert_eq!(ended["stale"][0]["is_gone"], true, "{ended}");
    let left = world.sh(
        "! grep -q /tmp/w/mnt /proc/self/mounts; [ -z \"$(places)\" ]
        head -c 7 /dev/nbd9; head -c 512 $(cat c.out) | wc -c; labels | wc -l
        qemu-nbd --disconnect /dev/nbd9 >/dev/null
        COWSLIP_RUN_DIR=/tmp/w/elsewhere cowslip detach --stale --quiet >&2
        end c >&2; nothing_left",
    );
    assert_eq!(left, "others\n512\n2\n");
    // What was synced is in the session.
    world.sh("start m cowslip mount base mnt --session s --via nbd
        for i in $(seq $(cat synced)); do seq $i $((i + 3000)) | cmp - mnt/f$i; done
        umount mnt; ended m; nothing_left");
}

/// Others served the session meanwhile: what the kernel still has of it is not to be written over that.
fn served_by_others_meanwhile(world: &mut World) {
    world.sh(
        "start a cowslip attach --session s; killed a; start b cowslip serve --session s; end b",
    );
    let said = world.sh("start a cowslip attach --session s; cat a.out a.err");
    assert!(said.starts_with("/dev/nbd1\n"), "{said}");
    assert!(said.contains("/dev/nbd0 was this session's"), "{said}");
    world.sh("cowslip detach --stale --quiet; [ \"$(places | wc -l)\" = 1 ]; head -c 512 /dev/nbd1 >/dev/null; end a; nothing_left");
}

/// Somebody else disconnects it; somebody uses it at the end.
fn other_ends(world: &mut World) {
    world.sh("start a cowslip attach --session s
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        qemu-nbd --disconnect /dev/nbd0
        ended a; nothing_left");
    let said = world.sh("start a cowslip attach --session s
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        sleep 1000 <mnt/lost+found >/dev/null 2>&1 & echo $! >user.pid
        end a; kill $(cat user.pid); until_ gone user
        cowslip detach --stale >&2; nothing_left");
    assert!(said.contains("still in use"), "{said}");
}

/// Devices come and go, and leave nothing: no device, place, process, socket.
fn cycles(world: &mut World) {
    world.sh(&format!(
        "unix() {{ wc -l </proc/net/unix; }}
        cycle() {{ start a cowslip attach --session s; head -c 4096 /dev/nbd0 >/dev/null; end a >/dev/null; nothing_left; }}
        cycle; unix=$(unix)
        for i in $(seq {CYCLES}); do cycle; done
        [ $unix = $(unix) ]; ! grep -qsx cowslip /proc/[0-9]*/comm"
    ));
}

fn all(test: &str, version: &str, sends_zeroes: bool) {
    let Some(mut world) = World::boot(test, version) else {
        return;
    };
    files(&mut world, sends_zeroes);
    kill_and_go_on(&mut world);
    stale(&mut world);
    served_by_others_meanwhile(&mut world);
    other_ends(&mut world);
    cycles(&mut world);
    let console = world.0.console();
    for bad in ["BUG:", "WARNING:", "Oops", "hung"] {
        assert!(!console.contains(bad), "{console}");
    }
}

#[test]
fn linux_6_1() {
    all("kernel_nbd::linux_6_1", "6.1", false);
}

#[test]
fn linux_6_12() {
    all("kernel_nbd::linux_6_12", "6.12", true);
}
