//! The server's life: where it listens, how many it serves, how it ends.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cowslip_nbd::client::Address;
use cowslip_nbd::{Bound, Client, Gone, Listen, ListenError};

use super::raw::{Raw, Simple, request};
use super::rig::{Rig, pattern};

#[test]
fn stop_ends_clients_of_every_kind_in_time() {
    let rig = Rig::of_bytes(64 << 20);
    let fresh = rig.socket();
    let halfway = Raw::greet(rig.socket(), 3);
    let mut idle = Raw::transmission(rig.socket(), true);
    idle.assert_in_step(true);
    let mut deaf = Raw::transmission(rig.socket(), false);
    for cookie in 0..100 {
        deaf.put(&request(0, 0, cookie, 0, 1 << 20));
    }
    let mut asking = Raw::transmission(rig.socket(), false);
    asking.put(&request(0, 1, 7, 0, 4));
    asking.put(b"late");
    let began = Instant::now();
    assert_eq!(rig.server.stop(), 0);
    // A bound that is promised, not a measure of speed.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        asking.simple(),
        Simple {
            error: 0,
            cookie: 7
        },
        "what was received is answered"
    );
    asking.assert_closed();
    assert_eq!(rig.ram.bytes()[..4], *b"late");
    assert!(!rig.path().exists());
    assert_eq!(rig.server.stop(), 0, "a second time does nothing");
    drop((fresh, halfway, deaf));
}

#[test]
fn a_device_that_hangs_is_left_behind() {
    let rig = Rig::of_bytes(4096);
    rig.ram.set_gate(false);
    let mut raw = Raw::transmission(rig.socket(), false);
    raw.put(&request(0, 3, 1, 0, 0));
    rig.ram.wait_for_flushes(1);
    assert_eq!(rig.server.stop(), 1);
    rig.ram.set_gate(true);
}

#[test]
fn a_panic_in_the_device_ends_one_connection() {
    let rig = Rig::of_bytes(1 << 20);
    rig.ram.panic_bytes.lock().unwrap().insert(5000);
    let mut other = rig.client();
    let mut raw = Raw::transmission(rig.socket(), false);
    raw.put(&request(0, 0, 1, 4096, 4096));
    raw.assert_closed();
    other.write(0, b"alive").unwrap();
    rig.client().write(0, b"as well").unwrap();
    drop((other, rig.server));
    assert_eq!(
        *rig.said.lock().unwrap(),
        ["a connection was ended by a panic"]
    );
}

#[test]
fn one_connection_too_many_is_closed_at_once() {
    let rig = Rig::of_bytes(4096);
    let mut clients: Vec<_> = (0..128)
        .map(|_| Raw::transmission(rig.socket(), false))
        .collect();
    let mut refused = rig.socket();
    assert_eq!(refused.read_to_end(&mut Vec::new()).unwrap(), 0);
    let counters = rig.server.counters();
    assert_eq!(counters.connections.load(Ordering::Relaxed), 128);
    assert_eq!(counters.connections_refused.load(Ordering::Relaxed), 1);
    // A place is free again once its client has gone.
    let mut gone = clients.pop().unwrap();
    gone.put(&request(0, 2, 0, 0, 0));
    gone.assert_closed();
    loop {
        let mut socket = rig.socket();
        if socket.read(&mut [0; 18]).unwrap() == 18 {
            break;
        }
    }
}

#[test]
fn tcp_long_paths_and_inherited_listeners() {
    let rig = Rig::of_bytes(4096);
    let Bound::Tcp(address) = rig
        .server
        .listen(Listen::Tcp("[::1]:0".parse().unwrap()))
        .unwrap()
    else {
        panic!("a TCP address")
    };
    Client::connect(Address::Tcp(address), "disk")
        .unwrap()
        .write(0, b"tcp")
        .unwrap();

    let deep = rig.dir.path().join("x".repeat(150));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("socket");
    rig.server.listen(Listen::Unix(path.clone())).unwrap();
    let mut buf = [0; 3];
    Client::connect(Address::Unix(&path), "")
        .unwrap()
        .read(0, &mut buf)
        .unwrap();
    assert_eq!(&buf, b"tcp");

    let theirs = rig.dir.path().join("inherited");
    let listener = UnixListener::bind(&theirs).unwrap();
    let bound = rig.server.listen(Listen::InheritedUnix(listener)).unwrap();
    assert_eq!(bound, Bound::Unix(theirs.clone()));
    Client::connect(Address::Unix(&theirs), "")
        .unwrap()
        .read(0, &mut buf)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let Bound::Tcp(address) = rig.server.listen(Listen::InheritedTcp(listener)).unwrap() else {
        panic!("a TCP address")
    };
    Client::connect(Address::Tcp(address), "")
        .unwrap()
        .read(0, &mut buf)
        .unwrap();
    assert!(matches!(
        rig.server.listen(Listen::Unix(path.clone())),
        Err(ListenError::InUse(_))
    ));
    rig.server.stop();
    assert!(
        !path.exists() && theirs.exists(),
        "only files of our own are removed"
    );
}

#[test]
fn a_socket_as_standard_input_is_served_as_it_is() {
    let rig = Rig::of_bytes(4096);
    let (here, there) = UnixStream::pair().unwrap();
    let output = there.try_clone().unwrap();
    let served = rig.server.serve_stdio(there.into(), output.into()).unwrap();
    let mut client = Client::over(here.into(), "disk").unwrap();
    client.write(0, b"stdio").unwrap();
    drop(client);
    served.wait();
    assert_eq!(rig.ram.bytes()[..5], *b"stdio");
}

#[test]
fn two_pipes_are_served_to_the_last_byte() {
    let rig = Rig::of_bytes(8 << 20);
    let data = pattern(1 << 20, 4);
    rig.client().write(0, &data).unwrap();
    let (input, mut requests) = std::io::pipe().unwrap();
    let (mut replies, output) = std::io::pipe().unwrap();
    let served = rig
        .server
        .serve_stdio(OwnedFd::from(input), OwnedFd::from(output))
        .unwrap();
    requests.write_all(&3u32.to_be_bytes()).unwrap();
    requests.write_all(&super::raw::option(1, b"")).unwrap();
    for cookie in 0..8 {
        requests
            .write_all(&request(0, 0, cookie, 0, 1 << 20))
            .unwrap();
    }
    drop(requests);
    // Everything that was asked for before the end of the input arrives.
    let mut all = Vec::new();
    replies.read_to_end(&mut all).unwrap();
    served.wait();
    assert_eq!(all.len(), 18 + 10 + 8 * (16 + (1 << 20)));
    assert!(all.ends_with(&data));
}

#[test]
fn pipes_that_nobody_uses_do_not_hold_up_the_end() {
    let rig = Rig::of_bytes(4096);
    let (input, requests) = std::io::pipe().unwrap();
    let (replies, output) = std::io::pipe().unwrap();
    let served = rig
        .server
        .serve_stdio(OwnedFd::from(input), OwnedFd::from(output))
        .unwrap();
    assert_eq!(rig.server.stop(), 0);
    served.wait();
    drop((requests, replies));
    assert!(
        rig.server
            .serve_stream(UnixStream::pair().unwrap().0.into())
            .is_err()
    );
}

#[test]
fn counters_count() {
    let rig = Rig::of_bytes(1 << 20);
    let mut client = rig.client();
    client.write(0, &[1; 1000]).unwrap();
    client.read(0, &mut [0; 500]).unwrap();
    client.write_zeroes(0, 10).unwrap();
    client.trim(0, 10).unwrap();
    client.flush().unwrap();
    client.block_status(0, 10).unwrap();
    client.read(1 << 20, &mut [0; 1]).unwrap_err();
    let counters = rig.server.counters();
    let counts = [
        &counters.writes,
        &counters.written_bytes,
        &counters.reads,
        &counters.read_bytes,
        &counters.zeroes,
        &counters.trims,
        &counters.flushes,
        &counters.statuses,
        &counters.errors,
        &counters.connections,
    ]
    .map(|counter| counter.load(Ordering::Relaxed));
    assert_eq!(counts, [1, 1000, 1, 500, 1, 1, 1, 1, 1, 1]);
}

/// The kernel's client has no handshake, and says when its device is disconnected.
#[test]
fn a_client_past_a_handshake_is_served_and_how_it_goes_is_told() {
    let rig = Rig::of_bytes(1 << 20);
    assert_eq!(rig.server.transmission_flags(), 0b1101_0110_1101);
    for gone in [Gone::Disconnected, Gone::Silently] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let device = Arc::clone(&rig.ram) as _;
        let served = rig.server.serve_transmission(ours.into(), device).unwrap();
        // A WRITE with FUA.
        theirs.write_all(&request(1, 1, 7, 4096, 5)).unwrap();
        theirs.write_all(b"bytes").unwrap();
        let mut reply = [0; 16];
        theirs.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        if gone == Gone::Disconnected {
            theirs.write_all(&request(0, 2, 0, 0, 0)).unwrap();
        }
        drop(theirs);
        assert_eq!(served.wait(), gone);
    }
    assert!(rig.ram.bytes()[4096..].starts_with(b"bytes"));
    let counters = rig.server.counters();
    assert_eq!(counters.fuas.load(Ordering::Relaxed), 2);
    assert_eq!(counters.writes.load(Ordering::Relaxed), 2);
}
