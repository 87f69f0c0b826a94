//! `cowslip serve`: a snapshot, or a session, as an NBD device, until a signal ends it.
//!
//! In order: what is served (`target.rs`), the NBD server, and one line that says that it is ready. The end
//! goes the other way round, and takes less than five seconds: clients are told to go, what was written is flushed.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use cowslip_nbd::{Bound, Export, Listen, Served, Server};
use listenfd::ListenFd;

use super::target::{Target, Wanted, on_signal, signals};
use super::{Context, refused};
use crate::args::{Address, Serve};
use crate::failure::Failure;
use crate::report::complain;

pub(super) fn run(context: &Context, args: &Serve) -> Result<(), Failure> {
    let signals = signals()?;
    let wanted = Wanted {
        name: args.name.as_ref(),
        options: &args.device,
    };
    let served = Target::open(context, &wanted)?;
    let device = served.device(args.device.read_only);
    let name = served.name.to_string();
    let description = format!("{name}, served by {}", cowslip_snapshot::MADE_BY);
    let export = Export {
        name,
        description,
        device: Arc::clone(&device),
    };
    let server = Server::new(export, Box::new(complain))
        .map_err(|e| Failure::failed(format!("starting the server: {e}")))?;
    let (at, one_client) = listen(args, &server, &served)?;
    served.say_ready(&*device, &at);
    let (end, ended) = mpsc::channel();
    if let Some(one_client) = one_client {
        let end = end.clone();
        thread::spawn(move || {
            one_client.wait();
            let _ = end.send(());
        });
    }
    on_signal(signals, end);
    // Either of the two; both threads have gone only if both have spoken.
    let _ = ended.recv();
    server.stop();
    served.close(device);
    Ok(())
}

/// Begins to listen; says where, and hands out the one client where there is only one.
fn listen(
    args: &Serve,
    server: &Server,
    target: &Target,
) -> Result<(String, Option<Served>), Failure> {
    if args.stdio {
        let clone = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let stdio = clone(io::stdin().as_fd())
            .and_then(|input| Ok((input, clone(io::stdout().as_fd())?)))
            .and_then(|(input, output)| server.serve_stdio(input, output));
        let client = stdio.map_err(|e| Failure::failed(format!("standard input: {e}")))?;
        return Ok(("on standard input and output".into(), Some(client)));
    }
    let mut places = Vec::new();
    for at in listeners(args, target)? {
        let bound = server.listen(at).map_err(|e| refused(&e))?;
        places.push(match bound {
            Bound::Unix(path) => {
                format!("nbd+unix:///{}?socket={}", target.name, in_uri(&path))
            }
            Bound::Tcp(at) => format!("nbd://{at}/{}", target.name),
        });
    }
    Ok((format!("at {}", places.join(", ")), None))
}

/// A path as a part of a URI (RFC 3986): other bytes than these are percent-encoded.
fn in_uri(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            other => text += &format!("%{other:02X}"),
        }
    }
    text
}

fn listeners(args: &Serve, target: &Target) -> Result<Vec<Listen>, Failure> {
    match &args.nbd {
        Some(Address::Unix(path)) => return Ok(vec![Listen::Unix(path.clone())]),
        Some(Address::Tcp(at)) => return Ok(vec![Listen::Tcp(tcp_address(args, at)?)]),
        None => {}
    }
    let inherited = inherited()?;
    match target.session() {
        _ if !inherited.is_empty() => Ok(inherited),
        Some(session) => Ok(vec![Listen::Unix(session.join("nbd.sock"))]),
        None => Err(Failure::usage("nothing says where to listen").hint(
            "--nbd unix:PATH, --nbd tcp:HOST:PORT or --stdio; a --session has a socket of its own",
        )),
    }
}

/// Sockets that whoever started us listens on already (systemd's LISTEN_FDS, sd_listen_fds(3)).
fn inherited() -> Result<Vec<Listen>, Failure> {
    let mut fds = ListenFd::from_env();
    let failed = |e: io::Error| Failure::failed(format!("a socket of LISTEN_FDS: {e}"));
    let mut sockets = Vec::new();
    for index in 0..fds.len() {
        if let Ok(Some(unix)) = fds.take_unix_listener(index) {
            sockets.push(Listen::InheritedUnix(unix));
        } else if let Some(tcp) = fds.take_tcp_listener(index).map_err(failed)? {
            sockets.push(Listen::InheritedTcp(tcp));
        }
    }
    Ok(sockets)
}

fn tcp_address(args: &Serve, at: &str) -> Result<SocketAddr, Failure> {
    let found = at
        .to_socket_addrs()
        .map_err(|e| Failure::usage(format!("tcp:{at}: {e}")))?;
    let all: Vec<SocketAddr> = found.collect();
    let Some(first) = all.first() else {
        return Err(Failure::usage(format!("tcp:{at}: no such address")));
    };
    if !args.allow_remote && !all.iter().all(|a| a.ip().is_loopback()) {
        let message = format!("tcp:{at} can be reached from other machines");
        return Err(Failure::usage(message)
            .hint("there is no encryption yet: --allow-remote, if that is what you want"));
    }
    Ok(*first)
}
