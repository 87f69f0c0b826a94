//! The two threads that work behind a session: one seals, one tidies.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cowslip_block::DeviceError;

use super::{Session, SessionError};
use crate::error::StoreError;
use crate::seal::SealError;

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
    /// Starts them. `say` is told of what went wrong and will be tried again, once per kind of error,
    /// and of each snapshot that was given up.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(
        session: &Arc<Session>,
        say: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let mut workers = Self {
            session: Arc::clone(session),
            threads: Vec::new(),
        };
        let sealing = Arc::clone(session);
        let tidying = Arc::clone(session);
        let say = Arc::new(say);
        let also = Arc::clone(&say);
        let seal = move || run_seals(&sealing, &*also);
        let tidy = move || run_tidy(&tidying, &*say);
        workers
            .threads
            .push(thread::Builder::new().name("seal".into()).spawn(seal)?);
        workers
            .threads
            .push(thread::Builder::new().name("tidy".into()).spawn(tidy)?);
        Ok(workers)
    }
}

fn run_seals(session: &Session, say: &dyn Fn(&str)) {
    let mut said = HashSet::new();
    while session.wait_for_seal() {
        let Some(seal) = session.next_seal() else {
            continue;
        };
        session.seal_next();
        let name = seal.name();
        match (seal.wait(Duration::ZERO), seal.attempts().last_error) {
            (Some(Ok(_)), _) => said.clear(),
            (Some(Err(SessionError::Seal(error))), _) => match &*error {
                SealError::Interrupted | SealError::Cancelled => {}
                error => say(&format!(
                    "snapshot {name} is given up, what was written goes into the next one: {error}"
                )),
            },
            (None, Some(error)) if said.insert(kind_of(&error)) => say(&format!(
                "snapshot {name} is not stored yet, and will be tried again: {error}"
            )),
            _ => {}
        }
    }
}

/// Errors of one kind are said once.
fn kind_of(error: &SealError) -> io::ErrorKind {
    match error {
        SealError::Store(StoreError::NoSpace { .. }) | SealError::Read(DeviceError::NoSpace) => {
            io::ErrorKind::StorageFull
        }
        SealError::Store(StoreError::Io { source, .. })
        | SealError::Read(DeviceError::Io(source)) => source.kind(),
        SealError::Store(StoreError::Busy(_)) => io::ErrorKind::WouldBlock,
        _ => io::ErrorKind::Other,
    }
}

fn run_tidy(session: &Session, say: &dyn Fn(&str)) {
    let mut said = None;
    let mut went_over = None;
    let mut let_go = Instant::now();
    while !session.is_stopping() {
        if let Err(error) = session.tidy()
            && said.replace(error.kind()) != Some(error.kind())
        {
            say(&format!("giving room back will be tried again: {error}"));
        }
        let settled = session.settle().map_err(SessionError::from);
        if let Err(error) = session.go_over().and(settled) {
            let error = error.to_string();
            if went_over.replace(error.clone()) != Some(error.clone()) {
                say(&format!(
                    "telling the store which base is needed will be tried again: {error}"
                ));
            }
        }
        // Also while there is much to do, no more often than this.
        if let_go.elapsed() >= TIDY_EVERY {
            session.let_go_of_removed();
            let_go = Instant::now();
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
