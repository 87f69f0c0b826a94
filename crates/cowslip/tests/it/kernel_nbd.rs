//! The kernel's NBD client, in real kernels: a machine each, and all that a device of it may meet.
//!
//! One boot, one session: each part goes on from what the one before has left. What is run is the command without its symbols, in the machine's memory: it
//! is read over and over.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cowslip_machine::{Access, Machine, Running, have};
use cowslip_nbd::Client;
use cowslip_nbd::client::Address;
use serde_json::Value;

use super::growth::{self, grown};
use super::rig::{COWSLIP, Rig, Served, said, until};
use crate::bytes::{BLOCK, MIB, assert_same};
use crate::tools;

/// For what takes seconds on a machine that has nothing else to do.
const LONG: Duration = Duration::from_secs(300);
/// Attached and detached so often before it is measured what that leaves.
const WARM_UP: i64 = 10;

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

/// This machine, and its loopback, as 10.0.2.2.
const NETWORK: [&str; 4] = [
    "-netdev",
    "user,id=host",
    "-device",
    "virtio-net-pci,netdev=host,romfile=",
];

struct World(Running);

impl World {
    fn boot(test: &str, version: &str) -> Option<Self> {
        let kernel = have(test, version)?;
        if !tools::have(
            test,
            &["busybox", "nbd-client", "prlimit", "qemu-nbd", "strace"],
        ) {
            return None;
        }
        let rig = Rig::new();
        let program = rig.path("cowslip");
        let stripped = Command::new("strip")
            .arg("-o")
            .args([&program, Path::new(COWSLIP)])
            .output()
            .unwrap();
        assert!(stripped.status.success(), "{}", said(&stripped));
        let machine = Machine::new(&kernel).share(&rig.path(""), Access::Read);
        let mut world = Self(machine.qemu(NETWORK).boot());
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
        cat synced >killed_at
        # One that is refused its third message to the kernel, for want of memory: the device is there for the next one.
        if strace -f --seccomp-bpf -o /dev/null -e trace=sendto -e inject=sendto:error=ENOMEM:when=3 cowslip attach --session s 2>early.err; then exit 1; fi
        grep -q 'changing /dev/nbd0: Cannot allocate memory' early.err || { cat early.err >&2; exit 1; }",
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

/// One of several sockets is slow: what came over it is sent again over another, and answered; what is written to the same place then is not undone when the first goes on.
fn slow(world: &mut World) {
    world.sh(
        "start a cowslip attach --session s --via nbd --connections 2
        # Opened for the first time it is read, for partitions.
        exec 3</dev/nbd0; echo 1000 >/sys/block/nbd0/queue/io_timeout
        for letter in A B; do head -c 4096 /dev/zero | tr '\\0' $letter >$letter; done
        write() { dd if=$1 of=/dev/nbd0 bs=4096 seek=100 oflag=direct conv=notrunc status=none; }
        thread=$(grep -lx nbd-0 /proc/$(cat a.pid)/task/*/comm | cut -d/ -f5)
        # What it receives from now on it has after twelve seconds.
        strace -o /dev/null -e trace=recvfrom -e inject=recvfrom:delay_exit=12000000 -p $thread 2>strace.err & echo $! >strace.pid
        until_ grep -q attached strace.err
        dmesg -c >/dev/null
        write A; write B; kill -0 $(cat strace.pid); until_ gone strace
        dmesg | grep -q 'Connection timed out, retrying'
        dd if=/dev/nbd0 bs=4096 skip=100 count=1 iflag=direct status=none | cmp - B
        until_ sh -c 'dmesg | grep -q \"reconnected socket\"'; exec 3<&-; end a; nothing_left",
    );
}

/// The server stands still until the kernel gives a socket up, and has no files when it goes on: both pass, and nothing is lost.
fn stopped(world: &mut World) {
    world.sh(
        "start a cowslip attach --session s --via nbd --connections 2
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        echo 1000 >/sys/block/nbd0/queue/io_timeout
        rm -f stop synced writer; (write_on) >/dev/null 2>&1 &
        until_ has_synced 3; server=$(cat a.pid); dmesg -c >/dev/null
        kill -STOP $server; until_ sh -c 'dmesg | grep -q \"Receive control failed\"'
        prlimit --pid $server --nofile=4:4; kill -CONT $server
        until_ grep -q 'there is no other yet' a.err; prlimit --pid $server --nofile=1024:1024
        until_ has_synced $(($(cat synced) + 3))
        : >stop; until_ test -e writer; grep -q ^done writer
        for i in $(seq $(cat synced)); do seq $i $((i + 3000)) | cmp - mnt/f$i; done
        umount mnt; e2fsck -fn /dev/nbd0 >e2fsck 2>&1 || { cat e2fsck >&2; exit 1; }
        end a; nothing_left; rm -f mnt/f*
        ! dmesg | grep 'I/O error' >&2",
    );
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
    assert!(said.contains("others have served"), "{said}");
    world.sh("cowslip detach --stale --quiet; [ \"$(places | wc -l)\" = 1 ]; head -c 512 /dev/nbd1 >/dev/null; end a; nothing_left");
}

/// Somebody else disconnects it; somebody uses it at the end.
fn other_ends(world: &mut World) {
    world.sh("start a cowslip attach --session s
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        qemu-nbd --disconnect /dev/nbd0
        ended a; wait $(cat a.pid); nothing_left
        start a cowslip attach --session s
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        nbd-client -d /dev/nbd0
        ended a; wait $(cat a.pid); nothing_left");
    let said = world.sh("start a cowslip attach --session s; killed a
        modprobe -a fuse loop; start b cowslip attach --session s --via fuse; cat b.out b.err; end b; cowslip detach --stale --quiet; nothing_left");
    assert!(said.starts_with("/dev/loop"), "{said}");
    assert!(said.contains("this is by way of fuse"), "{said}");
    let said = world.sh("start a cowslip attach --session s
        mount -o discard,noatime,lazytime /dev/nbd0 mnt
        sleep 1000 <mnt/lost+found >/dev/null 2>&1 & echo $! >user.pid
        end a; kill $(cat user.pid); until_ gone user
        cowslip detach --stale >&2; nothing_left");
    assert!(said.contains("still in use"), "{said}");
}

/// A hundred devices come and go, and leave nothing: no device, place, file, process, thread of the kernel's, socket, nor memory. All is done by the shell itself, since each
/// program that it starts costs as much as a cycle (0.2 s).
fn cycles(world: &mut World) {
    let (measure, times) = (growth::MEASURE, growth::TIMES);
    let measured = world.sh(&format!(
        "{measure}
        # A huge page of zeros comes and goes as it likes.
        echo never >/sys/kernel/mm/transparent_hugepage/enabled
        rm -f told; mkfifo told
        cycle() {{
            cowslip attach --session s --via nbd >/dev/null 2>told &
            exec 4<told
            while read -r line <&4; do case $line in *ready:*) break;; esac; done
            : </dev/nbd0; kill $!; wait $!; exec 4<&-
        }}
        cycles() {{ i=0; while [ $i -lt $1 ]; do i=$((i + 1)); cycle; done; }}
        there_is() {{
            for of in /proc/[0-9]*/comm; do read -r name <$of && case $name in kworker*) ;; *) echo $name;; esac; done >names
            sort names; wc -l </proc/net/unix; ls /sys/block /tmp/w /tmp/w/s; cat /proc/mounts
        }}
        cycles {WARM_UP}; : >after; there_is >before
        measure; cycles {times}; measure; cycles {times}; measure; cycles {times}; measure
        there_is >after; diff before after >&2
        for of in /sys/block/nbd*/pid /sys/block/loop*/loop/backing_file; do [ ! -e $of ] || {{ echo $of >&2; exit 1; }}; done
        nothing_left; rm told"
    ));
    assert_eq!(grown(&measured), [""; 0]);
}

/// The client is the kernel itself, over TCP to a server outside, and vanishes with all of it: what it flushed is there, and what was answered; who comes next is served.
fn vanishes(mut world: World) {
    let rig = Rig::new();
    rig.import("base", &vec![0; 16 * MIB]);
    let served = rig.serve("base --session s --nbd tcp:127.0.0.1:0");
    let port = served.ready.split("nbd://127.0.0.1:").nth(1).unwrap();
    let port = port.split('/').next().unwrap();
    let (flushed, answered) = (numbers(1), numbers(2));
    world.sh(&format!(
        "modprobe virtio_net
        busybox ip addr add 10.0.2.15/24 dev eth0; busybox ip link set eth0 up
        nbd-client 10.0.2.2 {port} /dev/nbd3 >&2
        to() {{ dd of=/dev/nbd3 bs=64k seek=$1 oflag=direct iflag=fullblock conv=notrunc$2 status=none; }}
        seq 1 200000 | head -c 1048576 | to 0 ,fsync
        seq 2 200000 | head -c 1048576 | to 32 ''
        (n=3; while :; do seq $n 300000 | head -c 1048576 | to 64 ''; n=$((n + 1)); done) >/dev/null 2>&1 &"
    ));
    assert!(connections(&served) > 0);
    // kill -9 of QEMU.
    drop(world);
    until("the connection to end", || {
        (connections(&served) == 0).then_some(())
    });
    let read = |at: usize, wanted: &[u8]| {
        let (mut client, mut found) = (tcp(port), vec![0; MIB]);
        client.read((at * MIB) as u64, &mut found).unwrap();
        assert_same(&found, wanted, &format!("MiB {at}"));
        client
    };
    read(0, &flushed);
    let mut next = read(2, &answered);
    next.write(0, b"next").unwrap();
    next.flush().unwrap();
    rig.ok("snapshot s taken");
    served.end();
    let taken = rig.export("taken");
    assert!(taken.starts_with(b"next"));
    assert_same(&taken[4..MIB], &flushed[4..], "the snapshot");
}

/// A MiB of what seq(1) writes.
fn numbers(from: u32) -> Vec<u8> {
    let text: String = (from..=200_000).map(|n| format!("{n}\n")).collect();
    text.into_bytes()[..MIB].to_vec()
}

fn tcp(port: &str) -> Client {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().unwrap()));
    Client::connect(Address::Tcp(at), "").unwrap()
}

/// Threads of a server that serve one, `nbd-0` say.
fn connections(served: &Served) -> usize {
    let tasks = format!("/proc/{}/task", served.pid().as_raw_nonzero());
    let names = fs::read_dir(tasks).unwrap().filter_map(|task| {
        // It may end meanwhile.
        fs::read_to_string(task.unwrap().path().join("comm")).ok()
    });
    let numbered = |name: &String| {
        let number = name.trim_end().strip_prefix("nbd-");
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    names.filter(numbered).count()
}

fn all(test: &str, version: &str, sends_zeroes: bool) {
    let Some(mut world) = World::boot(test, version) else {
        return;
    };
    files(&mut world, sends_zeroes);
    kill_and_go_on(&mut world);
    slow(&mut world);
    stopped(&mut world);
    stale(&mut world);
    served_by_others_meanwhile(&mut world);
    other_ends(&mut world);
    cycles(&mut world);
    let console = world.0.console();
    for bad in ["BUG:", "WARNING:", "Oops", "hung"] {
        assert!(!console.contains(bad), "{console}");
    }
    vanishes(world);
}

#[test]
fn linux_6_1() {
    all("kernel_nbd::linux_6_1", "6.1", false);
}

#[test]
fn linux_6_12() {
    all("kernel_nbd::linux_6_12", "6.12", true);
}
