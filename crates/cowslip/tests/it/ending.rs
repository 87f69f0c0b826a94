//! SIGTERM and SIGINT: within five seconds, whatever clients do, with exit code 0 and nothing lost.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::process::Signal;

use crate::bytes::{MIB, assert_same, noise, sum};
use crate::rig::{Rig, Served, said, until};

const WRITE: u16 = 1;
const READ: u16 = 0;

fn request(kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0];
    bytes.extend(kind.to_be_bytes());
    bytes.extend([7; 8]);
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A client that has shaken hands and does as it likes from here.
fn raw(served: &Served) -> UnixStream {
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

#[test]
fn signals_end_a_server_whose_clients_go_on() {
    for signal in [Signal::TERM, Signal::INT] {
        let rig = Rig::new();
        rig.import("base", &noise(1, 33 * MIB));
        let served = rig.serve("base --session s");
        // One that does nothing, one that has not even shaken hands.
        let idle = raw(&served);
        let mute = UnixStream::connect(served.socket()).unwrap();
        // One in the middle of a write of 32 MiB.
        let mut half = raw(&served);
        half.write_all(&request(WRITE, 0, 32 << 20)).unwrap();
        half.write_all(&noise(2, 5 * MIB)).unwrap();
        // One that asks for more and more and never reads: until the server takes no more.
        let mut greedy = raw(&served);
        greedy.set_nonblocking(true).unwrap();
        let ask = request(READ, 0, 32 << 20).repeat(100);
        until("the server to have enough", || {
            greedy.write(&ask).is_err().then_some(())
        });
        // What is acknowledged meanwhile.
        let mut client = served.client();
        client.write(32 << 20, &noise(3, MIB)).unwrap();
        served.end_by(signal);
        drop((idle, mute, half, greedy));
        let served = rig.serve("--session s");
        let mut wanted = noise(1, 33 * MIB);
        wanted[32 * MIB..].copy_from_slice(&noise(3, MIB));
        // The half of a write never was a request.
        assert_same(&served.read_all(), &wanted, "the session");
    }
}

#[test]
fn a_signal_in_the_middle_of_a_seal() {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    let served = rig.serve("base --session s --size 96M");
    let data = noise(2, 96 * MIB);
    let mut client = served.client();
    for (i, part) in data.chunks(8 * MIB).enumerate() {
        client.write((i * 8 * MIB) as u64, part).unwrap();
    }
    let mut asked = rig.command(["snapshot", "s", "big"]);
    let asked = asked
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let tmp = rig.store().join("tmp");
    until("the seal to begin", || {
        (sum(&tmp, &|m| m.len()) > 0).then_some(())
    });
    served.end_by(Signal::TERM);
    let output = asked.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("served again"), "{}", said(&output));
    assert_eq!(sum(&tmp, &|m| m.len()), 0, "what was half made is gone");
    rig.fails(3, "inspect big");
    // It was promised, and comes.
    let served = rig.serve("--session s");
    until("the snapshot", || {
        rig.run("inspect big").status.success().then_some(())
    });
    assert_same(&rig.export("big"), &data, "the snapshot");
    assert_same(&served.read_all(), &data, "the session");
}

#[test]
fn a_signal_ends_a_server_without_clients_and_a_read_only_one() {
    let rig = Rig::new();
    rig.import("base", &noise(1, MIB));
    rig.serve("base --session s").end_by(Signal::INT);
    rig.serve_at("base --read-only", "ro.sock")
        .end_by(Signal::TERM);
    let mut command = rig.command(["serve", "base", "--stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Served::start(command, rig.path("none")).end_by(Signal::TERM);
}
