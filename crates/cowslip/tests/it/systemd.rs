//! The units of docs/systemd.md, block by block, under a systemd of its own in a machine of its own.

use std::path::Path;
use std::time::Duration;

use cowslip_machine::{Access, Machine, Running, have};

use super::recipe::blocks;
use super::rig::COWSLIP;
use super::tools;

const RECIPE: &str = include_str!("../../../../docs/systemd.md");
/// An emulated processor, on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(300);
/// systemd as the first process of a namespace, which empties /tmp when it begins: it has `/run`, `/proc` and its groups for itself.
const BEGIN: &str = r"
mkdir -p /srv /var/lib/cowslip /etc/cowslip
mount -t tmpfs tmpfs /var/lib/cowslip
cat > /srv/begin <<'END'
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=test
exec /lib/systemd/systemd --system --unit=sockets.target
END
unshare --mount --pid --fork sh /srv/begin > /srv/systemd.log 2>&1 < /dev/null &
until pid=$(pgrep -P $!); do sleep 0.1; done
echo $pid > /srv/systemd.pid
";

struct World(Running);

impl World {
    /// Where systemd is.
    fn sh(&mut self, script: &str) -> String {
        let pid = "$(cat /srv/systemd.pid)";
        let script = script.replace('\'', r"'\''");
        let line = format!("nsenter -t {pid} -m -p sh -ec '{script}'");
        self.0.sh(&line, LONG)
    }
}

#[test]
fn a_disk_of_systemd_goes_on_after_kill_9() {
    let test = "a_disk_of_systemd_goes_on_after_kill_9";
    let tools = ["systemctl", "unshare", "nsenter", "pgrep", "nbdcopy"];
    let (true, Some(kernel)) = (tools::have(test, &tools), have(test, "6.1")) else {
        return;
    };
    let program = Path::new(COWSLIP);
    let machine = Machine::new(&kernel).share(program.parent().unwrap(), Access::Read);
    let mut world = World(machine.boot());
    let link = format!("ln -s {} /usr/local/bin/cowslip", program.display());
    world.0.sh(&format!("{link}\n{BEGIN}"), LONG);
    world.sh("until systemctl is-active -q sockets.target; do sleep 0.2; done");
    world.sh(
        "cd /var/lib/cowslip; export COWSLIP_STORE=/var/lib/cowslip/store
        truncate -s 1M disk; cowslip import disk template --format raw --quiet",
    );
    let [units, begin, snapshot, end] = blocks(RECIPE)[..] else {
        panic!("the recipe has other blocks than this test runs");
    };
    world.sh(units);
    world.sh(begin);
    let uri = "'nbd+unix:///?socket=/run/cowslip/vm1.sock'";
    let is_active = "systemctl is-active cowslip@vm1.service || true";
    assert_eq!(world.sh(is_active), "inactive\n", "before its first client");
    let write =
        |bytes: &str| format!("printf {bytes} > /srv/bytes; nbdcopy --flush /srv/bytes {uri}");
    let read = format!("nbdcopy {uri} - | head -c 6");
    world.sh(&write("first."));
    assert_eq!(world.sh(is_active), "active\n");
    let of = "systemctl show -P MainPID cowslip@vm1.service";
    let served = world.sh(of);
    world.sh(&format!("kill -9 {}", served.trim()));
    assert_eq!(world.sh(&read), "first.");
    assert_ne!(world.sh(of), served);
    world.sh(&write("second"));
    world.sh(snapshot);
    let exported = "COWSLIP_STORE=/var/lib/cowslip/store cowslip export vm1-monday /srv/found --quiet > /srv/said; head -c 6 /srv/found";
    assert_eq!(world.sh(exported), "second");
    world.sh(end);
    assert_eq!(world.sh(is_active), "inactive\n");
    world.sh("! pgrep cowslip; ! ls /run/cowslip/vm1.sock 2> /dev/null");
    world.sh("systemctl start cowslip@vm1.socket");
    assert_eq!(world.sh(&read), "second");
}
