//! Where a server listens, and where it refuses to.

use std::os::unix::net::UnixListener;

use cowslip_nbd::Client;
use cowslip_nbd::client::Address;

use crate::bytes::{MIB, noise};
use crate::rig::{COWSLIP, Rig};
use crate::tools::{have, python, run};

fn rig() -> Rig {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    rig
}

#[test]
fn a_unix_socket_of_ones_own_choice() {
    let rig = rig();
    let at = rig.path("at here.sock");
    let served = rig.serve_at("base --session s", "at here.sock");
    assert_eq!(served.client().info().size_bytes, 1 << 20);
    assert!(!rig.path("s/nbd.sock").exists());
    served.end();
    assert!(!at.exists(), "the socket is removed at the end");
}

#[test]
fn tcp_on_loopback() {
    let rig = rig();
    for (host, bare) in [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("localhost", ""),
    ] {
        let served = rig.serve(&format!("base --session s --nbd tcp:{host}:0"));
        // "... at nbd://127.0.0.1:40123/base, session s"
        let at = served
            .ready
            .split("nbd://")
            .nth(1)
            .and_then(|r| r.split('/').next());
        let at: std::net::SocketAddr = at.unwrap().parse().unwrap();
        assert!(at.ip().is_loopback() && (bare.is_empty() || at.ip().to_string() == bare));
        let mut client = Client::connect(Address::Tcp(at), "base").unwrap();
        client.write(4096, b"over tcp").unwrap();
        if have("tcp_on_loopback", &["nbdinfo"]) {
            assert_eq!(
                run("nbdinfo", ["--size", &format!("nbd://{at}/")]).trim(),
                "1048576"
            );
        }
        served.end();
    }
}

#[test]
fn addresses_that_others_reach_want_a_word() {
    let rig = rig();
    for at in ["0.0.0.0:0", "[::]:0"] {
        let said = rig.fails(2, &format!("serve base --session s --nbd tcp:{at}"));
        assert!(said.contains("--allow-remote"), "{said}");
    }
    let said = rig.fails(2, "serve base --session s --nbd tcp:no.such.host.invalid:1");
    assert!(said.contains("no.such.host.invalid"), "{said}");
    let served = rig.serve("base --session s --nbd tcp:0.0.0.0:0 --allow-remote");
    assert!(served.ready.contains("nbd://0.0.0.0:"), "{}", served.ready);
    served.end();
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_refused() {
    let rig = rig();
    let (dead, live) = (rig.path("dead.sock"), rig.path("live.sock"));
    drop(UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    let served = rig.serve_at("base --session s", "dead.sock");
    assert_eq!(served.read_all(), noise(1, MIB));
    let listener = UnixListener::bind(&live).unwrap();
    let said = rig.fails(1, "serve base --session s2 --nbd unix:live.sock");
    assert!(
        said.contains("live.sock: another server listens there"),
        "{said}"
    );
    // It is untouched.
    assert!(std::os::unix::net::UnixStream::connect(&live).is_ok());
    drop(listener);
    // What is no socket is never removed.
    rig.file("precious", b"precious");
    let said = rig.fails(1, "serve base --session s3 --nbd unix:precious");
    assert!(said.contains("precious"), "{said}");
    assert_eq!(std::fs::read(rig.path("precious")).unwrap(), b"precious");
    // After kill -9 its own socket is in the way of nobody.
    served.kill();
    let served = rig.serve("--session s");
    served.kill();
    rig.serve("--session s").end();
}

const STDIO: &str = r"
import nbd, sys
h = nbd.NBD()
h.connect_command(sys.argv[1:])
assert h.get_size() == 1 << 20
h.pwrite(b'over a pipe' * 400, 5)
h.flush()
assert h.pread(11, 5) == b'over a pipe'
h.shutdown()
";

#[test]
fn standard_input_and_output() {
    if !have("standard_input_and_output", &["python3-nbd"]) {
        return;
    }
    let rig = rig();
    let (store, session) = (rig.store(), rig.path("s"));
    let serve = [
        COWSLIP,
        "serve",
        "--store",
        store.to_str().unwrap(),
        "--stdio",
        "base",
    ];
    python(
        STDIO,
        [&serve[..], &["--session", session.to_str().unwrap()]].concat(),
    );
    // Its one client has gone, so it has ended, and the session is free for the next.
    let mut wanted = noise(1, MIB);
    wanted[5..4405].copy_from_slice(&b"over a pipe".repeat(400));
    let served = rig.serve("--session s");
    assert!(served.read_all() == wanted);
    served.end();
    python(STDIO, serve);
}

#[test]
fn pipes_that_are_no_sockets() {
    // What `connect_command` gives is a socket pair; a shell gives pipes. A reader that waits on
    // one must get each answer as it comes.
    let rig = rig();
    let mut command = rig.command(["serve", "base", "--stdio", "--read-only"]);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    use std::io::{Read, Write};
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut greeting = [0; 18];
    output.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
    // NO_ZEROES, EXPORT_NAME "", READ 16 bytes at 0, DISC.
    let read = [
        &[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0][..],
        &[9; 8],
        &[0; 8],
        &[0, 0, 0, 16],
    ]
    .concat();
    let disc = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2][..], &[0; 20]].concat();
    let all = [
        &[0, 0, 0, 3][..],
        b"IHAVEOPT",
        &[0, 0, 0, 1, 0, 0, 0, 0],
        &read,
        &disc,
    ]
    .concat();
    input.write_all(&all).unwrap();
    let mut answers = Vec::new();
    output.read_to_end(&mut answers).unwrap();
    assert_eq!(answers.len(), 10 + 16 + 16, "{answers:?}");
    assert_eq!(answers[26..], noise(1, 16));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

const ACTIVATION: &str = r"
import nbd, sys
h = nbd.NBD()
h.connect_systemd_socket_activation(sys.argv[1:])
assert h.get_size() == 1 << 20
h.pwrite(b'activated', 77)
h.flush()
assert h.pread(9, 77) == b'activated'
h.shutdown()
del h
";

#[test]
fn socket_activation() {
    if !have("socket_activation", &["python3-nbd", "nbdinfo"]) {
        return;
    }
    let rig = rig();
    let (store, session) = (rig.store(), rig.path("s"));
    let (store, session) = (store.to_str().unwrap(), session.to_str().unwrap());
    let serve = [
        COWSLIP,
        "serve",
        "--store",
        store,
        "base",
        "--session",
        session,
    ];
    python(ACTIVATION, serve);
    // The client's end sends SIGTERM and waits: the session is free, and has it all.
    let served = rig.serve("--session s");
    let mut found = [0; 9];
    served.client().read(77, &mut found).unwrap();
    assert_eq!(&found, b"activated");
    served.end();
    let info = run(
        "nbdinfo",
        [&["--size", "--", "["][..], &serve, &["]"]].concat(),
    );
    assert_eq!(info.trim(), "1048576");
    // Without a session there is a temporary one.
    let size = run(
        "nbdinfo",
        [&["--size", "--", "["][..], &serve[..5], &["]"]].concat(),
    );
    assert_eq!(size.trim(), "1048576");
}

#[test]
fn nothing_to_listen_on_is_a_usage_error() {
    let rig = rig();
    let said = rig.fails(2, "serve base --read-only");
    assert!(said.contains("--nbd"), "{said}");
}
