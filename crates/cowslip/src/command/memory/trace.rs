//! Traces: what the first guest of a snapshot touched, noted, kept with the snapshot, and put in place for the next ones before they ask.
//!
//! A trace is a hint, and no more: one that is damaged, or cannot be kept, is said, and guests are served without.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cowslip_memory::server::{Options, Server};
use cowslip_memory::trace::Trace;
use cowslip_snapshot::{Header, HeaderId, Image, Part, Snapshot, SnapshotName, Store, StoreError};

use crate::args::MemoryServe;
use crate::report::{bytes, complain, count};

/// What is known of the snapshot that is served.
pub(super) struct Traced {
    store: Arc<Store>,
    name: SnapshotName,
    /// Which snapshot; nothing where it is not to have another trace.
    record: Option<(HeaderId, Duration)>,
    replay: Option<Arc<Trace>>,
}

impl Traced {
    /// What is to be done for guests of this memory.
    pub(super) fn find(store: &Arc<Store>, args: &MemoryServe, memory: &Header) -> Self {
        let mut traced = Self {
            store: Arc::clone(store),
            name: args.name.name.clone(),
            record: None,
            replay: None,
        };
        if args.no_prefetch {
            return traced;
        }
        // Its trace need not be kept longer than it takes to be read.
        let (snapshot, _lease) = match store.resolve_snapshot_leased(&traced.name) {
            Ok(found) => found,
            Err(error) => {
                complain(&format!("nothing is prefetched: {error}"));
                return traced;
            }
        };
        let is_of_it = |(_, header): (Part, &Arc<Header>)| header.id() == memory.id();
        // The name may stand for another one by now.
        if !snapshot.parts.iter().any(is_of_it) {
            return traced;
        }
        if !args.record {
            traced.replay = load(store, &snapshot, memory);
        }
        if traced.replay.is_none() {
            traced.record = Some((snapshot.origin, args.record_for));
        }
        traced
    }

    pub(super) fn options(&self) -> Options {
        Options {
            trace: self.replay.clone(),
            record: self.record.is_some(),
        }
    }

    /// Waits in a thread for the trace, if there is to be one, and keeps it.
    pub(super) fn keep(self, server: &Arc<Server>) -> Option<JoinHandle<()>> {
        let (origin, time) = self.record?;
        let server = Arc::clone(server);
        let wait = move || {
            let trace = server.await_trace(time);
            let Some(trace) = trace.filter(|trace| trace.pages() > 0) else {
                return;
            };
            let (name, size) = (&self.name, bytes(trace.bytes()));
            match add(&self.store, name, origin, &trace) {
                Ok(true) => complain(&format!(
                    "noted for the next guests of {name}: {} ({size}) that the first one touched",
                    count(trace.pages(), "page")
                )),
                Ok(false) => complain(&format!(
                    "{name} is another snapshot by now: what its guest touched is not kept"
                )),
                Err(error) => complain(&format!("what the guest touched is not kept: {error}")),
            }
        };
        match thread::Builder::new().name("trace".into()).spawn(wait) {
            Ok(thread) => Some(thread),
            Err(error) => {
                complain(&format!("what the guest touches is not kept: {error}"));
                None
            }
        }
    }
}

fn load(store: &Arc<Store>, snapshot: &Snapshot, memory: &Header) -> Option<Arc<Trace>> {
    let header = snapshot.parts.get(Part::Trace)?;
    let image = Image::new(Arc::clone(store), Arc::clone(header));
    match Trace::load(&image, memory.size_bytes()) {
        Ok(trace) => Some(Arc::new(trace)),
        Err(error) => {
            complain(&format!("its trace is left out: {error}"));
            None
        }
    }
}

fn add(
    store: &Arc<Store>,
    name: &SnapshotName,
    origin: HeaderId,
    trace: &Trace,
) -> Result<bool, StoreError> {
    let lease = store.lease()?;
    let header = trace.store(store, &lease)?;
    store.add_trace(&lease, name, origin, &header)
}
