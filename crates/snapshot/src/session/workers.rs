//! The two threads that work behind a session: one seals, one tidies.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Session;

/// Holes are punched and journals shortened at the latest so long after they are due, also where
/// an error made the thread give up for a while.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// The threads; stopped and joined when dropped. A seal that is running is interrupted, and
/// taken up when the session is opened again.
pub struct Workers {
    session: Arc<Session>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts them. `say` is told of what went wrong and will be tried again, once per kind of error.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(
        session: &Arc<Session>,
        say: impl Fn(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let mut workers = Self {
            session: Arc::clone(session),
            threads: Vec::new(),
        };
        let sealing = Arc::clone(session);
        let tidying = Arc::clone(session);
        let seal = move || while sealing.wait_for_seal() && sealing.seal_next() {};
        let tidy = move || run_tidy(&tidying, &say);
        workers
            .threads
            .push(thread::Builder::new().name("seal".into()).spawn(seal)?);
        workers
            .threads
            .push(thread::Builder::new().name("tidy".into()).spawn(tidy)?);
        Ok(workers)
    }
}

fn run_tidy(session: &Session, say: &dyn Fn(&str)) {
    let mut said = None;
    while !session.is_stopping() {
        if let Err(error) = session.tidy()
            && said.replace(error.kind()) != Some(error.kind())
        {
            say(&format!("giving room back will be tried again: {error}"));
        }
        session.wait_for_work(TIDY_EVERY);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.session.stop();
        for thread in self.threads.drain(..) {
            // A panic there was printed by the runtime; the session's files are whole after any.
            drop(thread.join());
        }
    }
}
