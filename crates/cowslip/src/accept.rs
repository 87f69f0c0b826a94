//! [`accept`]: the clients of a control socket, each answered in a thread of its own, and no more than [`CLIENTS_MAX`] at a time.
//!
//! One that is too many is told so, in the words that all control sockets have for it: `{"failed": ...}`.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::failure::Failure;

/// Each is a thread, for as long as what it asked for takes.
const CLIENTS_MAX: usize = 64;
/// Out of descriptors, most likely: others have this time to close some.
const PAUSE: Duration = Duration::from_millis(200);

/// Until it is over, which is looked at when somebody has come.
pub(crate) fn accept(
    listener: &UnixListener,
    is_over: impl Fn() -> bool,
    answer: impl Fn(&UnixStream) + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if is_over() {
            return;
        }
        let Ok(stream) = stream else {
            thread::sleep(PAUSE);
            continue;
        };
        let place = Place::taken(&clients);
        if place.0.load(Ordering::Relaxed) > CLIENTS_MAX {
            turn_away(&stream);
            continue;
        }
        let answer = Arc::clone(&answer);
        let work = move || {
            answer(&stream);
            drop(place);
        };
        // A client that cannot be served notices that the line is closed.
        drop(thread::Builder::new().name("control".into()).spawn(work));
    }
}

/// Given back when it is dropped, also by a thread that panics or was not to be had.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn taken(clients: &Arc<AtomicUsize>) -> Self {
        clients.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(clients))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn turn_away(mut stream: &UnixStream) {
    let failure = Failure::failed(format!("{CLIENTS_MAX} clients are at this server already"))
        .hint("try again when one of them is done");
    let line = serde_json::json!({ "failed": failure });
    // Nothing was said on this line, so there is room. One that has gone does not want to know.
    let _ = writeln!(stream, "{line}");
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    #[test]
    fn one_too_many_is_told_so_and_has_a_place_when_another_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        // Each is greeted, and has its place until it hangs up.
        let answer = |mut stream: &UnixStream| {
            let _ = stream.write_all(b"here\n");
            let _ = stream.read(&mut [0]);
        };
        thread::spawn(move || accept(&listener, || false, answer));
        let come = || {
            let stream = UnixStream::connect(&path).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (stream, line)
        };
        let mut all: Vec<_> = (0..CLIENTS_MAX).map(|_| come()).collect();
        assert!(all.iter().all(|(_, line)| line == "here\n"));
        let (mut turned_away, said) = come();
        assert!(
            said.contains(r#""failed""#) && said.contains("64 clients"),
            "{said}"
        );
        assert_eq!(turned_away.read(&mut [0]).unwrap(), 0, "the line is closed");
        all.pop();
        while come().1 != "here\n" {
            thread::yield_now();
        }
    }
}
